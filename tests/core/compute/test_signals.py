import subprocess
import sys

import pytest

ENDS = """
import atexit, sys
from brats_cli.core.compute.signals import end_without_clearing_up, program

atexit.register(print, "cleared up")
with program():
    print("begun")
    {cut}
    {end}
"""


@pytest.mark.parametrize("cut", ["end_without_clearing_up()", "pass"])
@pytest.mark.parametrize(
    ("end", "status", "stderr"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit()", 0, ""),
        ("raise ValueError('a bug')", 1, "ValueError: a bug"),
        ("pass", 0, ""),
    ],
)
def test_a_program_that_is_cut_off_ends_with_its_status_and_no_clearing_up(
    cut, end, status, stderr
):
    code = ENDS.format(cut=cut, end=end)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == status
    assert ended.stderr.rstrip().endswith(stderr)
    clears = cut == "pass" or end == "pass"  # without an error nothing is cut off
    assert ended.stdout.split("\n")[:2] == ["begun", "cleared up" if clears else ""]
