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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(
    ("stop", "raised"), [("SIGINT", KeyboardInterrupt), ("SIGTERM", SystemExit)]
)
def test_a_stop_that_python_drops_is_obeyed_a_moment_later(stop, raised, busy):
    """Also where the machine is so busy that it comes again before Python has cleared up."""
    slow = (
        "import threading, time\n"
        "class Slow(threading.Timer):\n"
        "    def start(self):\n"
        "        threading.Timer = usual\n"
        "        super().start()\n"
        "        time.sleep(600)\n"
        "usual, threading.Timer = threading.Timer, Slow\n"
    )
    code = (slow if busy else "") + (
        "import signal, sys, time\n"
        "from brats_cli.core.compute.signals import raise_on_stops, repeat_dropped_stops\n"
        "raise_on_stops()\n"
        "repeat_dropped_stops()\n"
        "class Cleared:\n"
        "    def __del__(self):\n"
        f"        signal.raise_signal(signal.{stop})\n"
        "Cleared()\n"
        "try:\n"
        "    print('goes on', flush=True)\n"
        "    time.sleep(600)\n"
        "    print('never stopped')\n"
        "except (KeyboardInterrupt, SystemExit) as error:\n"
        "    print(type(error).__name__)\n"
    )
    # The sleep is cut short: a stop that came after it would run into the limit.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["goes on", raised.__name__]
    assert done.stderr == ""


def test_other_errors_that_python_drops_are_still_printed():
    code = (
        "from brats_cli.core.compute.signals import repeat_dropped_stops\n"
        "repeat_dropped_stops()\n"
        "class Cleared:\n"
        "    def __del__(self):\n"
        "        raise ValueError('seen')\n"
        "Cleared()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ValueError: seen" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize("cut", ["end_without_clearing_up()", "pass"])
@pytest.mark.parametrize(("stop", "status"), [("SIGINT", -2), ("SIGTERM", 143), (None, 1)])
def test_an_error_after_a_stop_that_was_dropped_is_that_stop(stop, status, cut):
    """As numpy's was, whose import Ctrl-C had broken off."""
    code = (
        "import signal\n"
        "from brats_cli.core.compute.signals import "
        "end_without_clearing_up, program, raise_on_stops\n"
        "raise_on_stops()\n"
        "with program():\n"
        f"    {cut}\n"
        "    try:\n"
        f"        {f'signal.raise_signal(signal.{stop})' if stop else 'pass'}\n"
        "    except BaseException:\n"
        "        pass\n"
        "    raise RecursionError('half imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == status
    assert ("half imported" in done.stderr) == (stop is None)
