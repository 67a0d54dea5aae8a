import inspect
import json
from functools import partial

import pytest
from helpers import brats
from viewcases import label_map, write, write_case

import brats_cli
from brats_cli.commands.view import view as command

run = partial(brats, "view")

EXISTS = "exists already"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two cases, and a prediction of the first that is one voxel larger."""
    folder = tmp_path_factory.mktemp("command")
    for number in (1, 2):
        write_case(folder / "data", case=f"BraTS2021_0000{number}")
    larger = label_map()
    larger[40:41, 12:24, 15:27] = 2
    write(folder / "seg.nii.gz", larger)
    return folder


def test_a_picture_and_its_numbers(data, tmp_path):
    result = run(
        data / "data/BraTS2021_00001", "--seg", data / "seg.nii.gz", "-o", tmp_path / "v.png"
    )
    assert result.exit_code == 0
    assert (tmp_path / "v.png").is_file()
    head, row = result.stdout.splitlines()
    assert " ".join(head.split()) == "file WT ml TC ml ET ml Dice WT Dice TC Dice ET"
    # 1,872, 512 and 64 mm3; Dice of WT 2 * 1728 / (1728 + 1872).
    assert row.split()[1:] == ["1.87", "0.51", "0.06", "0.960", "1.000", "1.000"]


def test_a_batch_says_where_its_index_is(data, tmp_path):
    result = run(data / "data", "-o", tmp_path / "views")
    assert result.exit_code == 0
    assert f"wrote {tmp_path / 'views/index.html'}" in result.stderr
    assert len(result.stdout.splitlines()) == 3


def test_paths_from_stdin(data, tmp_path):
    paths = "\n".join(str(path) for path in sorted((data / "data").iterdir()))
    result = run("-", "-o", tmp_path / "views", stdin=paths)
    assert result.exit_code == 0
    assert (tmp_path / "views/BraTS2021_00002.html").is_file()


def test_json(data, tmp_path):
    case = data / "data/BraTS2021_00001"
    result = run(case, "--seg", data / "seg.nii.gz", "-o", tmp_path / "v.svg", "--json")
    content = json.loads(result.stdout)
    assert content["format"] == "brats-views/1"
    assert content["cases"][0]["scores"]["WT"]["dice"] == pytest.approx(0.96)
    assert (content["failed"], content["index"]) == ([], None)


def test_a_mistake_is_two_lines_and_status_3(data, tmp_path):
    result = run(data / "data/BraTS2021_00001", "-o", tmp_path / "v.gif")
    assert result.exit_code == 3
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert "v.gif has a format that brats view does not write" in error
    assert hint.startswith(" hint: end it in .html")


def test_nothing_is_replaced_unless_asked(data, tmp_path):
    path = tmp_path / "v.png"
    path.write_text("mine")
    result = run(data / "data/BraTS2021_00001", "-o", path)
    assert result.exit_code == 3
    assert EXISTS in result.stderr
    assert path.read_text() == "mine"
    assert run(data / "data/BraTS2021_00001", "-o", path, "--overwrite").exit_code == 0


def test_one_bad_case_of_a_batch_is_named_at_the_end(data, tmp_path):
    write_case(tmp_path / "data", case="BraTS2021_00001")
    write_case(tmp_path / "data", case="BraTS2021_00002")
    (tmp_path / "data/BraTS2021_00002/BraTS2021_00002_t1.nii.gz").write_bytes(b"no image")
    result = run(tmp_path / "data", "-o", tmp_path / "views")
    assert result.exit_code == 3
    assert "BraTS2021_00002_t1.nii.gz" in result.stderr
    assert (tmp_path / "views/BraTS2021_00001.html").is_file()


def test_notes_are_shown(data, tmp_path):
    case = write_case(tmp_path, {"t1": label_map()}, labels=None, case="Anna")
    result = run(case, "-o", tmp_path / "v.png")
    assert result.exit_code == 0
    assert "Anna: The case has no T1ce, T2, FLAIR." in result.stderr


def test_the_function_has_the_commands_parameters():
    ours = set(inspect.signature(command).parameters) - {"as_json"}
    theirs = set(inspect.signature(brats_cli.view).parameters) - {"on_progress"}
    assert ours == theirs
