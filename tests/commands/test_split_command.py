import numpy as np
import pytest
import yaml
from helpers import assert_refused, brats, write_case

from brats_cli.core.data import folders


def write(folder, case_id, seed, *, labelled=True):
    labels = np.zeros((6, 6, 6), np.uint8)
    labels.ravel()[: 5 + seed] = 2
    labels.ravel()[:3] = (1, 3 if "GLI" in case_id else 4, 0)
    write_case(folder, case_id, labels if labelled else None, seed=seed)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Eleven cases of ten patients, two of the cases named as in 2023."""
    monkeypatch.chdir(tmp_path)
    for number in range(9):
        write(tmp_path / "data", f"BraTS2021_{number:05}", number)
    for visit in range(2):
        write(tmp_path / "data", f"BraTS-GLI-00000-{visit:03}", 20 + visit)
    return tmp_path / "data"


def test_the_missions_line_writes_a_file_and_tells_what_went_where(data, tmp_path):
    result = brats("split", "data")
    assert result.exit_code == 0
    content = yaml.safe_load((tmp_path / "splits.yaml").read_text())
    fold = content["folds"][0]
    rows = {row[0]: row[1:] for row in map(str.split, result.stdout.splitlines()[1:])}
    assert list(rows) == ["train", "val", "test"]
    sizes = {"train": fold["train"], "val": fold["val"], "test": content["test"]}
    for name, ids in sizes.items():
        assert rows[name][0] == str(len(ids))
        assert rows[name][1] == str(len({case_id[:15] for case_id in ids}))  # patients
    assert content["data"] == "data"
    assert content["labels"]["BraTS-GLI-00000-000"] == "brats2023"
    assert "labels: brats2020 (9), brats2023 (2)" in result.stderr.replace(
        "brats2023 (2), brats2020 (9)", "brats2020 (9), brats2023 (2)"
    )
    assert result.stderr.endswith("wrote splits.yaml\n")


def test_the_same_call_gives_the_same_bytes(data, tmp_path):
    brats("split", data, "-o", tmp_path / "a.yaml", "--seed", 3)
    brats("split", data, "-o", tmp_path / "b.yaml", "--seed", 3)
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()


def test_the_data_set_is_listed_once(data, monkeypatch):
    entered = []
    listing = folders._listing
    monkeypatch.setattr(
        folders, "_listing", lambda path, links: entered.append(path.name) or listing(path, links)
    )
    assert brats("split", "data").exit_code == 0
    cases = [f"BraTS2021_{number:05}" for number in range(9)]
    assert sorted(entered) == ["BraTS-GLI-00000-000", "BraTS-GLI-00000-001", *cases, "data"]


def test_a_row_for_every_fold(data):
    result = brats("split", data, "--folds", 3)
    names = [line.rsplit("  ")[0].strip() for line in result.stdout.splitlines()[1:]]
    assert [name[:6] for name in names] == ["fold 0", "fold 1", "fold 2", "test"]


def test_a_split_is_replaced_on_request_only(data, tmp_path):
    brats("split", data)
    before = (tmp_path / "splits.yaml").read_bytes()
    again = brats("split", data, "--seed", 5)
    remedy = "choose another path with -o, or replace it with --overwrite"
    assert_refused(again, "splits.yaml exists already", remedy)
    assert (tmp_path / "splits.yaml").read_bytes() == before
    assert brats("split", data, "--seed", 5, "--overwrite").exit_code == 0
    assert (tmp_path / "splits.yaml").read_bytes() != before


def test_cases_are_chosen_by_pattern(data, tmp_path):
    brats("split", data, "--include", "BraTS2021_*", "--exclude", "*_00003", "--exclude", "*_00004")
    content = yaml.safe_load((tmp_path / "splits.yaml").read_text())
    ids = {*content["folds"][0]["train"], *content["folds"][0]["val"], *content["test"]}
    assert ids == {f"BraTS2021_{number:05}" for number in (0, 1, 2, 5, 6, 7, 8)}
    assert content["labels"] == "brats2020"


def test_a_table_says_what_to_balance(data, tmp_path):
    rows = [f"BraTS2021_{number:05},{'AB'[number % 2]}" for number in range(9)]
    (tmp_path / "sites.csv").write_text("case,site\n" + "\n".join(rows))
    header = brats("split", data, "--stratify", "sites.csv:site").stdout.splitlines()[0]
    assert header.split()[-3:] == ["A", "B", "unknown"]


def test_what_is_left_out_is_told(data):
    write(data, "BraTS2021_00100", 100, labelled=False)
    assert "left out 1 case without a label map" in brats("split", data).stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--ratios", "70/30"],
            "--ratios 70/30 is not of the form training/validation/test, such as 70/15/15",
        ),
        (["--folds", "10"], "10 patients are too few for 10 parts and a test part"),
        (["--include", "none*"], "no case id matches 'none*'"),
        (["--stratify", "none.csv:a"], "cannot read none.csv: there is no such file"),
        (["--labels", "brats1999"], "there is no label scheme 'brats1999'"),
        (["--labels", "msd"], "which label scheme msd (Medical Decathlon Task01) does not have"),
        (["-o", "data"], "cannot write data: it is a folder"),
    ],
)
def test_a_mistake_is_two_lines_and_leaves_nothing(data, tmp_path, words, message):
    result = brats("split", data, *words)
    assert (result.exit_code, result.stdout) == (3, "")
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith(" hint: ")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_one_fold_is_wrong_usage(data):
    assert brats("split", data, "--folds", 1).exit_code == 2
