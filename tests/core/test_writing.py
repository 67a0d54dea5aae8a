import os
import subprocess
import sys

import pytest

from brats_cli.core.errors import OutputError, OutputExistsError
from brats_cli.core.writing import require_writable, whole_file


def test_the_file_is_there_when_the_block_has_ended(tmp_path):
    path = tmp_path / "new" / "scores.csv"
    with whole_file(path) as partial:
        partial.write_text("a")
        assert not path.exists()
        assert (partial.parent, partial.suffix) == (path.parent, ".csv")
    assert path.read_text() == "a"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "scores.csv"
    path.write_text("old")

    def fail():
        with whole_file(path) as partial:
            partial.write_text("half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_double_ending_is_kept(tmp_path):
    # nibabel chooses the format by it
    with whole_file(tmp_path / "a.nii.gz") as partial:
        assert partial.name.endswith(".partial.a.nii.gz")
        partial.touch()


def test_what_exists_is_not_replaced_unasked(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with (
        pytest.raises(OutputExistsError, match=r"a.txt exists already") as caught,
        whole_file(path, overwrite=False),
    ):
        pass
    assert "--overwrite" in caught.value.hint
    require_writable(path, overwrite=True)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(OutputError, match="it is a folder"):
        require_writable(tmp_path, overwrite=True)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file is not a folder"):
        require_writable(tmp_path / "file" / "a.txt", overwrite=True)


def test_nothing_is_made_to_find_out_whether_one_could_write(tmp_path):
    require_writable(tmp_path / "new" / "a.txt", overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="permissions work differently")
def test_no_permission_is_an_error_before_any_work(tmp_path, monkeypatch):
    # Told to `access` only, as root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="no permission to write in") as caught:
        require_writable(tmp_path / "a.txt", overwrite=False)
    assert caught.value.hint.startswith("choose a path with -o")


def test_the_system_saying_no_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="cannot write"), whole_file(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def a_process_that_ended():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.skipif(os.name != "posix", reason="only there can one ask whether a process runs")
def test_what_a_killed_process_left_goes_when_the_file_is_written_again(tmp_path):
    ended, running = a_process_that_ended(), os.getppid()
    for name in (f".{ended}.partial.a.nii.gz", f".{ended}.partial.b.nii.gz"):
        (tmp_path / name).write_text("half")
    (tmp_path / f".{running}.partial.a.nii.gz").write_text("being written")
    with whole_file(tmp_path / "a.nii.gz") as partial:
        partial.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f".{ended}.partial.b.nii.gz", f".{running}.partial.a.nii.gz", "a.nii.gz"]
    )
