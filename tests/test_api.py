"""The Python API: a function for every command, with its parameters, imported when it is used."""

import inspect
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import typer
from helpers import loaded_by, write_case

import brats_cli
from brats_cli.app import app
from brats_cli.core.errors import BratsError

NAMED_OTHERWISE = {"import": "import_model"}
"""Commands whose names no function can have."""

COMMANDS = {
    NAMED_OTHERWISE.get(name, name): command
    for name, command in typer.main.get_command(app).commands.items()
}

VERBS = sorted(COMMANDS)


@pytest.fixture
def data(tmp_path):
    """Six cases of 6 x 6 x 6 voxels, named as in 2021, with labels."""
    for number in range(6):
        labels = np.zeros((6, 6, 6), np.uint8)
        labels[2, 2, :3] = (1, 2, 4)
        labels[3, 3, : number + 1] = 2
        write_case(tmp_path / "data", f"BraTS2021_{number:05}", labels, seed=number)
    return tmp_path / "data"


def plain(value):
    """A default as text if it is a path, as which a function takes it too."""
    return str(value) if isinstance(value, Path) else value


def test_every_command_is_a_function():
    functions = {name for name in brats_cli.__all__ if name in COMMANDS}
    assert functions == set(VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_every_parameter_of_a_command_is_one_of_its_function(name):
    of_command = {param.name for param in COMMANDS[name].params} - {"as_json"}
    of_function = inspect.signature(getattr(brats_cli, name)).parameters
    assert of_command <= set(of_function)
    # The first is given by position, the others by name alone.
    kinds = [parameter.kind for parameter in of_function.values()]
    assert set(kinds[2:]) <= {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("name", VERBS)
def test_defaults_of_a_command_are_those_of_its_function(name):
    command = inspect.signature(COMMANDS[name].callback).parameters
    function = inspect.signature(getattr(brats_cli, name)).parameters
    different = {
        key: (command[key].default, function[key].default)
        for key in command.keys() & function.keys()
        # The command line has None for a list that is not given.
        if not (command[key].default is None and isinstance(function[key].default, tuple))
        and plain(command[key].default) != plain(function[key].default)
    }
    assert set(different) <= {"output"}, different  # a function writes no file that nobody named


@pytest.mark.parametrize("name", VERBS)
def test_every_parameter_and_the_result_have_a_type(name):
    signature = inspect.signature(getattr(brats_cli, name))
    empty = inspect.Parameter.empty
    assert [each.name for each in signature.parameters.values() if each.annotation is empty] == []
    assert signature.return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("name", brats_cli.__all__)
def test_every_name_is_there(name):
    assert getattr(brats_cli, name) is not None
    assert name in dir(brats_cli)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'brats_cli' has no attribute 'segment'"):
        brats_cli.segment  # noqa: B018


def test_importing_it_loads_no_library():
    heavy = {"torch", "numpy", "scipy", "nibabel", "typer", "rich"}
    assert loaded_by("import brats_cli", heavy) == set()


@pytest.mark.slow
def test_types_are_known_to_mypy(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import brats_cli\n"
        "reveal_type(brats_cli.split('data').split)\n"
        "brats_cli.check('data', label='x')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(script)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert 'Revealed type is "brats_cli.core.data.splits.Split"' in done.stdout, done.stdout
    assert 'Unexpected keyword argument "label" for "check"' in done.stdout


# --- what the functions do, beyond what the tests of their commands hold ------------------------


def test_paths_may_be_text_and_nothing_is_printed(data, tmp_path, capfd):
    made = brats_cli.split(str(data), output=str(tmp_path / "splits.yaml"), labels="brats2020")
    report = brats_cli.check(str(data), workers=0)
    assert (tmp_path / "splits.yaml").is_file()
    assert len(made.split.ids()) == len(report.cases) == 6
    assert capfd.readouterr() == ("", "")


def test_a_split_is_written_only_where_it_is_asked_for(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    brats_cli.split(data)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_errors_are_raised(data, tmp_path):
    with pytest.raises(BratsError, match="there is no label scheme 'brats1999'"):
        brats_cli.check(data, labels="brats1999")
    with pytest.raises(brats_cli.BratsError, match="no case id matches 'x'"):
        brats_cli.split(data, include=["x"])


def test_an_executor_that_is_given_makes_the_same_files(data, tmp_path):
    labels = sorted(data.glob("*/*seg.nii.gz"))
    made = {}
    with ThreadPoolExecutor(3) as executor:
        for name, where in (("one", {"workers": 0}), ("other", {"executor": executor})):
            folder = tmp_path / name
            brats_cli.evaluate(data, data, output=folder / "scores.csv", **where)
            brats_cli.mesh(labels, output=folder, region="all", **where)
            brats_cli.view(data, output=folder / "views", **where)
            files = [path for path in folder.rglob("*") if path.is_file()]
            made[name] = {path.relative_to(folder): path.read_bytes() for path in files}
    assert len(made["one"]) == 1 + 6 * 3 + 7  # scores, three regions of each case, pages, index
    assert made["one"] == made["other"]
