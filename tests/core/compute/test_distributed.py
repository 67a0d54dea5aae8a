import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from brats_cli.core.compute.distributed import ALONE, Group, summed

CPU = torch.device("cpu")


def launched(code, folder, processes=2):
    """The process that runs `code`, which has `folder`, in several that train together."""
    script = folder / "each.py"
    script.write_text(f"from pathlib import Path\nfolder = Path({str(folder)!r})\n{code}")
    start = (
        "import sys; from brats_cli.core.compute.distributed import launch\n"
        f"sys.exit(launch([sys.executable, {str(script)!r}], {processes}))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", start], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


# --- one process -------------------------------------------------------------------------------


def test_a_process_is_alone_unless_torchrun_says_otherwise(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Group.from_environment() == ALONE == Group(rank=0, size=1, local_rank=0)
    # The second of two processes on the second of two machines.
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert Group.from_environment() == Group(rank=3, size=4, local_rank=1)


def test_one_process_leads_and_does_everything():
    with ALONE.joined(CPU), ALONE.one_by_machine():
        assert ALONE.leads
        assert ALONE.share([1, 2, 3]) == ALONE.gathered([1, 2, 3]) == [1, 2, 3]
        assert ALONE.mean(2.5, CPU) == 2.5
        assert ALONE.as_the_first("mine") == "mine"
        assert summed(torch.tensor([1.0, 2.0])).tolist() == [1, 2]


def test_each_process_has_a_gpu_of_its_machine():
    gpus = [torch.device("cuda", 2), torch.device("cuda", 5)]
    assert Group(0, 4, 0).device(gpus) == gpus[0]
    assert Group(3, 4, 1).device(gpus) == gpus[1]
    # `torchrun` with --device cuda: by their number on the machine.
    assert Group(3, 4, 1).device([torch.device("cuda", 0)]) == torch.device("cuda", 1)
    assert Group(1, 2, 1).device([CPU]) == CPU


# --- two processes -----------------------------------------------------------------------------

TOGETHER = """
import json, time, torch
from brats_cli.core.compute.distributed import Group, summed

group = Group.from_environment()
with group.joined(torch.device("cpu")):
    if group.leads:
        time.sleep(1)
    with group.one_by_machine():
        seen = sorted(path.name for path in folder.glob("went-*"))
        (folder / f"went-{group.rank}").touch()
    weight = torch.tensor([1.0, 10.0], requires_grad=True)
    total = summed(weight * (group.rank + 1))
    (total * torch.tensor([1.0, 2.0])).sum().backward()
    told = {
        "leads": group.leads,
        "seen": seen,
        "share": group.share("abcde"),
        "gathered": group.gathered([letter.upper() for letter in group.share("abcde")]),
        "mean": group.mean(group.rank + 1.0, torch.device("cpu")),
        "first": group.as_the_first(group.rank + 7),
        "total": total.tolist(),
        "gradient": weight.grad.tolist(),
    }
(folder / f"{group.rank}.json").write_text(json.dumps(told))
"""


def test_two_processes_by_hand(tmp_path):
    running = launched(TOGETHER, tmp_path)
    _, stderr = running.communicate(timeout=240)
    assert (running.returncode, stderr) == (0, "")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (first.pop("leads"), second.pop("leads")) == (True, False)
    assert (first.pop("share"), second.pop("share")) == ("ace", "bd")
    # The second came a second earlier, and waited.
    assert (first.pop("seen"), second.pop("seen")) == ([], ["went-0"])
    # 1 and 2 times the weights; each process's loss has the whole sum in it, so that gradients
    # of the sum come from both: (1 + 1) and (2 + 2), once and twice.
    assert (first.pop("gradient"), second.pop("gradient")) == ([2, 4], [4, 8])
    alike = {"gathered": list("ABCDE"), "mean": 1.5, "first": 7, "total": [3, 30]}
    assert first == second == alike


def test_the_status_is_that_of_the_process_that_failed(tmp_path):
    code = "import os, sys\nsys.exit(3 if os.environ['RANK'] == '1' else 0)"
    running = launched(code, tmp_path)
    _, stderr = running.communicate(timeout=240)
    assert running.returncode == 3
    assert "Traceback" not in stderr


def test_a_process_whose_peer_has_failed_leaves_it_the_word(tmp_path):
    code = (
        "import os, sys\nimport torch\n"
        "from brats_cli.core.compute.distributed import Group, PeerError\n"
        "group = Group.from_environment()\n"
        "try:\n    with group.joined(torch.device('cpu')), group.one_by_machine():\n"
        "        sys.exit(3 if group.leads else 0)\n"
        "except PeerError:\n    sys.exit(9)\n"
    )
    running = launched(code, tmp_path)
    _, stderr = running.communicate(timeout=240)
    assert (running.returncode, stderr) == (3, "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_a_killed_process_is_told(tmp_path):
    code = (
        "import os, signal\nimport torch\nfrom brats_cli.core.compute.distributed import Group\n"
        "group = Group.from_environment()\nwith group.joined(torch.device('cpu')):\n"
        "    if group.leads:\n        group.as_the_first(1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    running = launched(code, tmp_path)
    _, stderr = running.communicate(timeout=240)
    assert stderr.splitlines()[-1].endswith(
        "BratsError: process 2 of 2 was killed, most likely because memory ran out"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
def test_a_stop_reaches_every_process(tmp_path, stop):
    code = (
        "import os, sys, time, signal\n"
        "def stop(number, _):\n    (folder / f'stopped-{os.getpid()}').touch()\n"
        "    sys.exit(128 + number)\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(number, stop)\n"
        "(folder / f'began-{os.getpid()}').touch()\ntime.sleep(120)\n"
    )
    running = launched(code, tmp_path)
    until = time.monotonic() + 120
    while len(began := list(tmp_path.glob("began-*"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.1)
    os.kill(running.pid, stop)
    running.communicate(timeout=60)
    assert running.returncode == 128 + stop
    names = sorted(path.name.replace("began", "stopped") for path in began)
    assert sorted(path.name for path in tmp_path.glob("stopped-*")) == names
