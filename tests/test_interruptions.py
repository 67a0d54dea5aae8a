"""Every command that writes, interrupted in each way a few times; `make faults` does it thoroughly.

See interruptions.py: what is injected, and what must hold after it.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("interruptions.py")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and POSIX signals")

QUICK = ("mesh", "predict")
"""Commands of which a run takes a fraction of a second."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What was tried of each command by fault, and what was lost, from one run of the script."""
    file = tmp_path_factory.mktemp("interruptions") / "found.json"
    words = [*QUICK, "--tries", "1", "--points", "2", "--json", str(file)]
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)
    assert file.is_file(), done.stderr
    return json.loads(file.read_text()), done.stdout


@pytest.mark.parametrize("command", QUICK)
def test_an_interrupted_command_loses_nothing(found, command):
    tallies, printed = found
    lost = {fault: each["lost"] for fault, each in tallies[command].items() if each["lost"]}
    assert lost == {}, printed
    # The faults did happen.
    for fault in ("kill at a step", "kill in a file", "Ctrl-C at a step", "no space at a step"):
        assert tallies[command][fault]["struck"] > 0, fault


def test_the_script_notices_what_is_lost(tmp_path):
    # A door that writes in place: a kill in a file leaves half of it.
    patch = (
        "import contextlib, runpy, sys\n"
        "from brats_cli.core import writing\n"
        "@contextlib.contextmanager\n"
        "def in_place(path, *, overwrite=True):\n"
        "    path.parent.mkdir(parents=True, exist_ok=True)\n"
        "    yield path\n"
        "writing.whole_file = in_place\n"
        f"sys.argv = [{str(SCRIPT)!r}, 'split', '--tries', '1', '--points', '4']\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", patch], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "LOST split, kill in a file: neither old nor new: splits.yaml" in done.stdout
