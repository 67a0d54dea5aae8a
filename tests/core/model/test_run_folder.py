from pathlib import Path

import pytest
from helpers import loaded_by

from brats_cli.core.errors import CheckpointError, OutputError, OutputExistsError
from brats_cli.core.model.run_folder import RunFolder, checkpoint_paths


@pytest.fixture(autouse=True)
def _work_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def made(run, *names):
    """A run with these files, all of them empty."""
    run.folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (run.folder / name).touch()
    return run


def test_the_run_noted_last_is_the_newest():
    for name in ("b", "a"):
        made(RunFolder(Path("runs") / name)).note_as_newest()
    assert Path("runs/latest").read_text() == "a\n"
    assert RunFolder.newest() == RunFolder(Path("runs/a"))


def test_a_fold_of_a_run_is_noted_with_the_run():
    made(RunFolder(Path("runs/all")).fold(1)).note_as_newest()
    assert Path("runs/latest").read_text() == "all/fold_1\n"


def test_a_run_elsewhere_is_not_noted():
    made(RunFolder(Path("elsewhere/first"))).note_as_newest()
    assert not list(Path().rglob("latest"))


def test_without_a_run_the_newest_names_the_folder_and_the_command(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        RunFolder.newest()
    assert str(caught.value) == f"there is no trained model in {tmp_path / 'runs'}"
    assert "brats train" in caught.value.hint
    assert "--model" in caught.value.hint


def test_a_run_is_named_by_the_time():
    name = RunFolder.named_by_time().folder
    assert name.parent == Path("runs")
    assert len(name.name) == len("2026-11-22_10-30-00")


def test_a_run_that_is_there_is_not_replaced_unless_asked():
    run = made(RunFolder(Path("first")), "log.csv", "last.pt")
    with pytest.raises(OutputExistsError, match=r"first/log\.csv exists already") as caught:
        run.require_absent(overwrite=False)
    assert "--overwrite" in caught.value.hint
    run.require_absent(overwrite=True)
    run.log.unlink()
    with pytest.raises(OutputExistsError, match="first exists already"):
        run.require_absent(overwrite=False)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=f"{tmp_path / 'file'} is not a folder"):
        RunFolder(tmp_path / "file" / "run").require_absent(overwrite=False)


def test_a_run_to_resume_must_be_there():
    run = RunFolder(Path("first"))
    with pytest.raises(CheckpointError) as caught:
        run.require_present()
    assert str(caught.value) == "there is no run to resume in first"
    made(run, "config.yaml", "splits.yaml").require_present()


def test_a_checkpoint_is_meant_by_a_file_a_run_or_nothing():
    run = made(RunFolder(Path("runs/a")), "best.pt", "last.pt")
    run.note_as_newest()
    assert checkpoint_paths(run.last) == (run.last,)
    assert checkpoint_paths(run.folder) == (run.best,)
    assert checkpoint_paths(None) == (run.best,)


def test_a_cross_validation_means_the_best_of_every_fold():
    runs = [made(RunFolder(Path("all")).fold(number), "best.pt") for number in (1, 0)]
    assert checkpoint_paths(Path("all")) == (runs[1].best, runs[0].best)


@pytest.mark.parametrize("name", ["nowhere", "nowhere/best.pt", "."])
def test_a_run_without_a_best_checkpoint_is_named(name):
    with pytest.raises(CheckpointError) as caught:
        checkpoint_paths(Path(name))
    assert str(caught.value) == f"there is no best.pt in {name}"
    assert "--model" in caught.value.hint


def test_a_newest_run_that_was_removed_is_named():
    run = made(RunFolder(Path("runs/a")))
    run.note_as_newest()
    run.folder.rmdir()
    with pytest.raises(CheckpointError, match=r"no best\.pt in runs/a, the newest run$"):
        checkpoint_paths(None)


def test_finding_a_run_needs_neither_torch_nor_the_training():
    heavy = {"torch", "matplotlib", "tensorboard", "numpy"}
    assert loaded_by("import brats_cli.core.model.run_folder", heavy) == set()


def test_runs_of_one_second_have_folders_of_their_own(tmp_path):
    run = RunFolder(tmp_path / "runs/2026-11-26_12-00-00")
    made = [run.fresh().folder.name for _ in range(3)]
    assert made == [run.folder.name, f"{run.folder.name}-2", f"{run.folder.name}-3"]
