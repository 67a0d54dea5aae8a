import os
import subprocess
import sys

import pytest

from brats_cli.core.files import whole_file


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
