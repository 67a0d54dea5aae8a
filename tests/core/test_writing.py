import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from brats_cli.core.errors import OutputError, OutputExistsError
from brats_cli.core.writing import (
    append_line,
    growing_file,
    own_folder,
    require_ending,
    require_writable,
    together,
    whole_file,
    whole_folder,
)


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


@pytest.mark.parametrize("length", [200, 201, 240, 255])
def test_a_name_as_long_as_can_be_is_written_and_a_longer_one_refused(tmp_path, length):
    longest = tmp_path / f"{'a' * 248}.nii.gz"[-length:]
    with whole_file(longest) as partial:
        assert partial.name.endswith(".nii.gz")
        partial.write_text("x")
    assert longest.read_text() == "x"
    with (
        pytest.raises(OutputError, match="File name too long"),
        whole_file(tmp_path / f"{'a' * 300}.nii.gz"),
    ):
        pass


def test_a_folder_is_whole_or_absent(tmp_path):
    out = tmp_path / "out"
    (tmp_path / ".999999999.partial.out").mkdir()  # of a killed process
    with pytest.raises(OutputError), whole_folder(out) as folder:
        (folder / "a").write_text(Path("missing.txt").read_text())
    assert list(tmp_path.iterdir()) == []
    with whole_folder(out) as folder:
        (folder / "a").write_text("x")
    assert (out / "a").read_text() == "x"
    with pytest.raises(OutputExistsError), whole_folder(out):
        pass


@pytest.mark.skipif(os.name != "posix", reason="no locks")
def test_a_folder_belongs_to_one_process(tmp_path):
    with (
        own_folder(tmp_path / "run"),
        pytest.raises(OutputError, match="another process is writing into it"),
        own_folder(tmp_path / "run"),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_lines_are_added(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, "a")
    append_line(path, "é")
    assert path.read_bytes() == "a\né\n".encode()


def test_a_line_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OutputError, match=f"cannot write {tmp_path / 'no' / 'lines.jsonl'}"):
        append_line(tmp_path / "no" / "lines.jsonl", "a")


@pytest.mark.parametrize("torn", ["half", "h" * 10000])
@pytest.mark.parametrize("before", ["", "whole\n"])
def test_what_a_killed_process_left_of_a_line_goes_when_the_next_is_appended(
    tmp_path, before, torn
):
    path = tmp_path / "lines.jsonl"
    path.write_text(before + torn)
    append_line(path, "next")
    assert path.read_text() == f"{before}next\n"


@pytest.mark.skipif(os.name != "posix", reason="no limit of a file's size")
def test_of_a_line_that_does_not_fit_nothing_is_kept(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("whole\n")
    # A file of at most ten bytes: the system takes four of the next line, and then no more.
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from brats_cli.core.writing import append_line\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "append_line(Path(sys.argv[1]), 'a long line')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert "OutputError: cannot write" in done.stderr
    assert path.read_text() == "whole\n"


def test_a_growing_file_stays_if_a_line_was_added(tmp_path):
    path = tmp_path / "out" / "lines.jsonl"
    with growing_file(path):
        assert path.read_text() == ""
    assert list(tmp_path.iterdir()) == []
    with growing_file(path):
        append_line(path, "a")
    assert path.read_text() == "a\n"
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"), growing_file(tmp_path / "file" / "x"):
        pass


def test_a_killed_process_of_the_same_number_leaves_nothing_in_a_folder(tmp_path):
    left = tmp_path / f".{os.getpid()}.partial.out"
    left.mkdir()
    (left / "stray").touch()
    with whole_folder(tmp_path / "out") as folder:
        (folder / "a").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_two_machines_that_write_one_file_do_not_share_the_temporary_one(tmp_path):
    # As the first processes of two containers do, which have one number.
    with whole_file(tmp_path / "a") as first, whole_file(tmp_path / "b") as other:
        assert first.name.partition(".partial")[0] != other.name.partition(".partial")[0]
        first.touch()
        other.touch()
    left = tmp_path / f".{os.getpid()}-0.partial.a"  # of a process that had our number
    left.touch()
    with whole_file(tmp_path / "a") as partial:
        partial.touch()
    assert not left.exists()


# --- files that belong together ----------------------------------------------------------------

KILLS = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from interruptions import send_at_step
from brats_cli.core.writing import together, whole_file

folder, names = Path(sys.argv[2]), ("a", "b", "main")
for step in range(1, 99):
    for left in folder.iterdir():
        left.unlink()  # else the steps that remove it would count
    for name in (*names, "left"):
        (folder / name).write_text("old")
    child = os.fork()
    if not child:
        send_at_step(folder, step, signal.SIGKILL)
        with together(folder / name for name in ("left", "none", "main")):
            for name in names:
                with whole_file(folder / name) as partial:
                    partial.write_text("new")
        os._exit(0)
    _, how = os.waitpid(child, 0)
    print(json.dumps({p.name: p.read_text() for p in folder.iterdir() if "." not in p.name}))
    if not how:
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_step_leaves_none_of_several_files_new_beside_an_old_one(tmp_path):
    words = [sys.executable, "-c", KILLS, str(Path(__file__).parents[1]), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    states = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(len(set(state.values())) == 1 and "main" in state for state in states)
    # What is not written now goes, then the old ones; the main file is replaced, and the others
    # follow.
    assert [state for before, state in pairwise(states) if state != before] == [
        {"a": "old", "b": "old", "main": "old"},
        {"b": "old", "main": "old"},
        {"main": "old"},
        {"main": "new"},
        {"a": "new", "main": "new"},
        {"a": "new", "b": "new", "main": "new"},
    ]


def test_a_failure_among_several_files_leaves_all_old_ones(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("old")

    def fail():
        with together():
            with whole_file(first) as partial:
                partial.write_text("new")
            with whole_file(second) as partial:
                raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"b: No space left on device"):
        fail()
    assert first.read_text() == "old"
    assert list(tmp_path.iterdir()) == [first]
    with whole_file(first) as partial:
        partial.write_text("later")
    assert first.read_text() == "later"  # at once, as nothing is waited for any more


def test_nothing_to_write_together_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with together():
        pass
    assert list(tmp_path.iterdir()) == []


# --- names of other formats --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.xlsx", "a.JSON", "b/a.nii.gz", "a.tsv"])
def test_a_name_of_another_format_is_refused(name):
    with pytest.raises(OutputError, match=r"it is written in the format \.csv") as caught:
        require_ending(Path(name), ".csv", ".txt")
    assert caught.value.hint == "end its name in .csv or .txt"


@pytest.mark.parametrize("name", ["a.csv", "a.CSV", "a.txt", "a", "scores_0.5", "a.b"])
def test_other_names_are_fine(name):
    assert require_ending(Path(name), ".csv", ".txt") is None
