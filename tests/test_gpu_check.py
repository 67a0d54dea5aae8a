"""What waits for a machine with a GPU runs at any time: a dry run of it on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from brats_cli.core.data.phantom import write_phantoms

REPOSITORY = Path(__file__).parents[1]


def test_the_script_for_a_bare_machine_finds_the_repository(tmp_path):
    # That machine has no brats installed: a package that says where it was imported from, a
    # script in the place of the check, and a python3 that installs nothing.
    source = (REPOSITORY / "benchmarks/pack_gpu_check.py").read_text(encoding="utf-8")
    for folder in (".gpu/whl", "benchmarks", "src/brats_cli", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".gpu/whl/a.whl").touch()
    script = source.partition('RUN = """')[2].partition('"""')[0].replace("\\\\", "\\")
    (tmp_path / ".gpu/run.sh").write_text(script)
    (tmp_path / "src/brats_cli/__init__.py").touch()
    (tmp_path / "benchmarks/gpu_check.py").write_text(
        "import sys, brats_cli\nprint(brats_cli.__file__, *sys.argv[1:], sep='\\n')"
    )
    stand_in = tmp_path / "bin/python3"
    stand_in.write_text(f'#!/bin/sh\n[ "$1" = -m ] && exit\nexec {sys.executable} "$@"\n')
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["bash", ".gpu/run.sh", "there", "--small"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{stand_in.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    imported, *words = done.stdout.split()
    assert Path(imported) == tmp_path / "src/brats_cli/__init__.py"
    assert words == ["--cases", ".gpu/cases", "--out", "there", "--small"]


ENDLESS = """
import signal, sys, time
import gpu_check

def heeds(check):
    check.report("begun")
    time.sleep(60)

def heeds_not(check):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # as what waits for a GPU in C++
    time.sleep(60)

gpu_check.STAGES, gpu_check.LEAST, gpu_check.GRACE = (heeds, heeds_not), 0, 1
gpu_check.main()
"""


@pytest.mark.slow
def test_the_check_of_a_gpu_ends_by_itself(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-c", ENDLESS, "--device", "cpu", "--seconds", "1"),
            *("--cases", tmp_path, "--out", tmp_path / "out", "--work", tmp_path / "work"),
        ],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY / 'benchmarks'}"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 1
    first, failed, *_, took, last = (tmp_path / "out/check.txt").read_text().splitlines()
    assert (first, failed[:13]) == ("begun", "heeds FAILED:")
    assert took == "(heeds: 1 s)"
    assert last == "ENDED: the time is up, and the stage goes on"


@pytest.mark.slow
def test_the_check_of_a_gpu_runs_dry_on_the_cpu(tmp_path):
    write_phantoms(tmp_path / "cases", cases=4, shape=(40, 40, 40))
    stages = ["machine", "prepare", "syncs", "epochs", "memory"]
    done = subprocess.run(
        [
            *(sys.executable, REPOSITORY / "benchmarks/gpu_check.py", "--device", "cpu", "--small"),
            *("--cases", tmp_path / "cases", "--out", tmp_path / "out"),
            *("--work", tmp_path / "work", "--only", *stages),
        ],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "out/check.txt").read_text()
    assert "FAILED" not in table
    ended = [line[1:].split(":")[0] for line in table.splitlines() if line.startswith("(")]
    assert ended == stages
    assert "4 cases prepared in " in table
    assert "epoch: " in table
    assert (tmp_path / "work/model.pt").is_file()
