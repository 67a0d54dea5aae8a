import json
import os
import signal
import sys
import time
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
from helpers import launched

from brats_cli.core.compute import distributed
from brats_cli.core.compute.distributed import ALONE, Group, summed
from brats_cli.core.errors import BratsError, ConfigError

CPU = torch.device("cpu")


# --- one process -------------------------------------------------------------------------------


def test_a_process_is_alone_unless_torchrun_says_otherwise(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Group.from_environment() == ALONE == Group(0, 1, local_rank=0, local_size=1)
    # The second of two processes on the second of two machines.
    told = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert Group.from_environment() == Group(3, 4, local_rank=1, local_size=2)


def test_an_environment_of_other_words_is_refused(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "gold")
    with pytest.raises(ConfigError, match="the environment says RANK=gold, which") as caught:
        Group.from_environment()
    assert "torchrun sets these variables" in caught.value.hint


def test_one_process_leads_and_does_everything():
    with ALONE.joined(CPU), ALONE.one_by_machine():
        assert ALONE.leads
        assert ALONE.share([1, 2, 3]) == ALONE.gathered([1, 2, 3]) == [1, 2, 3]
        assert ALONE.mean(2.5) == 2.5
        assert ALONE.as_the_first("mine") == "mine"
        assert summed(torch.tensor([1.0, 2.0])).tolist() == [1, 2]


def visible(monkeypatch, gpus):
    """A machine that shows this process some GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


def cuda(index=None):
    return torch.device("cuda") if index is None else torch.device("cuda", index)


@pytest.mark.parametrize(
    ("asked", "local_rank", "local_size", "gpus", "expected"),
    [
        # `--gpu 2,5` on two machines of two processes.
        ([cuda(2), cuda(5)], 0, 2, 6, cuda(2)),
        ([cuda(2), cuda(5)], 1, 2, 6, cuda(5)),
        # `torchrun` with `--device cuda` or auto: by their number on the machine.
        ([cuda()], 1, 2, 4, cuda(1)),
        ([cuda(0)], 1, 2, 4, cuda(1)),
        # `--gpu 3` with one process per machine.
        ([cuda(3)], 0, 1, 4, cuda(3)),
        # A launcher that shows each process a GPU of its own, as Slurm's `--gpus-per-task=1`.
        ([cuda()], 1, 2, 1, cuda(0)),
        ([CPU], 1, 2, 0, CPU),
    ],
)
def test_each_process_has_a_gpu_of_its_machine(
    monkeypatch, asked, local_rank, local_size, gpus, expected
):
    visible(monkeypatch, gpus)
    assert Group(local_rank, 4, local_rank, local_size).device(asked) == expected


@pytest.mark.parametrize(("asked", "gpus"), [([cuda(0), cuda(1)], 4), ([cuda()], 2)])
def test_more_processes_than_gpus_are_refused(monkeypatch, asked, gpus):
    visible(monkeypatch, gpus)
    with pytest.raises(ConfigError) as caught:
        Group(2, 4, 2, 4).device(asked)
    assert str(caught.value) == "4 processes train on this machine, and have 2 GPUs"
    assert caught.value.hint == "each needs its own: torchrun --nproc-per-node 2"


def test_processes_of_a_machine_divide_its_cpus():
    assert ALONE.of_each(8) == 8
    assert Group(1, 8, 1, 4).of_each(18) == 4


# --- connected by NCCL, which is not here --------------------------------------------------------


@pytest.fixture
def connections(monkeypatch):
    """What was asked of PyTorch, by name, in place of doing it."""
    asked = []

    def note(name, *given, **named):
        asked.append((name, given, named))

    for place, name in (
        (torch.cuda, "set_device"),
        (dist, "init_process_group"),
        (dist, "destroy_process_group"),
        (dist.distributed_c10d, "_abort_process_group"),
    ):
        monkeypatch.setattr(place, name, partial(note, name))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "end_without_clearing_up", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return asked


def test_processes_with_gpus_are_connected_by_nccl_and_by_gloo_for_what_lies_on_cpus(connections):
    with Group(1, 2, 1, 2).joined(cuda(1)):
        pass
    chosen, joined, left = connections
    assert chosen == ("set_device", (cuda(1),), {})
    # With its device, or each process says that it guesses; a step waits no longer than this.
    half_an_hour = {"timeout": timedelta(minutes=30), "device_id": cuda(1)}
    assert joined == ("init_process_group", ("cpu:gloo,cuda:nccl",), half_an_hour)
    assert left == ("destroy_process_group", (), {})


def test_after_an_error_the_others_are_left_without_waiting(connections):
    with pytest.raises(BratsError, match="damaged"), Group(1, 2, 1, 2).joined(cuda(1)):
        raise BratsError("the case is damaged", hint="remove it")
    assert [name for name, *_ in connections][2:] == ["_abort_process_group"]


def test_one_gpu_for_two_processes_is_refused(connections):
    with pytest.raises(ConfigError) as caught, Group(1, 2, 1, 2).joined(cuda(1)):
        raise RuntimeError("NCCL error: Duplicate GPU detected : rank 0 and rank 1")
    assert str(caught.value) == "another process of this training has cuda:1 as well"
    assert "--nproc-per-node" in caught.value.hint


# --- two processes -----------------------------------------------------------------------------

TOGETHER = """
import json, time, torch
from brats_cli.core.compute.distributed import Group, summed
from brats_cli.core.errors import BratsError

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
        "mean": group.mean(group.rank + 1.0),
        "first": group.as_the_first(group.rank + 7),
        "total": total.tolist(),
        "gradient": weight.grad.tolist(),
    }
    norm = torch.nn.BatchNorm3d(1)
    norm.running_mean.fill_(group.rank)
    norm.num_batches_tracked.fill_(5)
    group.share_buffers(norm)
    told["buffers"] = [buffer.item() for buffer in norm.buffers()]
    group.raise_together(None)
    try:
        group.raise_together(None if group.leads else BratsError("not finite", hint=""))
    except BratsError as error:
        told["error"] = f"{type(error).__name__}: {error}"
(folder / f"{group.rank}.json").write_text(json.dumps(told))
"""


def test_two_processes_by_hand(tmp_path):
    assert launched(TOGETHER, tmp_path).ended() == ("", 0)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (first.pop("leads"), second.pop("leads")) == (True, False)
    assert (first.pop("share"), second.pop("share")) == ("ace", "bd")
    # The second came a second earlier, and waited.
    assert (first.pop("seen"), second.pop("seen")) == ([], ["went-0"])
    # 1 and 2 times the weights; each process's loss has the whole sum in it, so that gradients
    # of the sum come from both: (1 + 1) and (2 + 2), once and twice.
    assert (first.pop("gradient"), second.pop("gradient")) == ([2, 4], [4, 8])
    # The second alone has an error, and reports it alone; but both end.
    assert first.pop("error") == "PeerError: another process of this training has failed"
    assert second.pop("error") == "BratsError: not finite"
    alike = {"gathered": list("ABCDE"), "mean": 1.5, "first": 7, "total": [3, 30]}
    # Means of 0 and 1, and of two variances of 1; and 5 batches seen by each.
    alike["buffers"] = [0.5, 1, 5]
    assert first == second == alike


def test_the_status_is_that_of_the_process_that_failed(tmp_path):
    code = "import os, sys\nsys.exit(3 if os.environ['RANK'] == '1' else 0)"
    assert launched(code, tmp_path).ended() == ("", 3)


def test_a_process_whose_peer_has_failed_leaves_it_the_word(tmp_path):
    code = (
        "import os, sys\nimport torch\n"
        "from brats_cli.core.compute.distributed import Group, PeerError\n"
        "from brats_cli.core.compute.signals import program\n"
        "group = Group.from_environment()\n"
        "with program():\n    try:\n"
        "        with group.joined(torch.device('cpu')), group.one_by_machine():\n"
        "            sys.exit(3 if group.leads else 0)\n"
        "    except PeerError:\n        sys.exit(9)\n"
    )
    assert launched(code, tmp_path).ended() == ("", 3)


AS_NCCL = """
import os, sys, time
import torch
import torch.distributed as dist
from brats_cli.core.compute.distributed import Group
from brats_cli.core.compute.signals import program
from brats_cli.core.errors import BratsError

group = Group.from_environment()

def destroy_together(*_):
    # As NCCL, which waits for every process before it disconnects.
    store = dist.distributed_c10d._get_default_store()
    store.add("gone", 1)
    until = time.monotonic() + 20
    while store.add("gone", 0) < group.size:
        time.sleep(0.1)
        if time.monotonic() > until:
            os._exit(77)  # NCCL would wait for hours

dist.destroy_process_group = destroy_together
with program():
    try:
        with group.joined(torch.device("cpu")):
            group.as_the_first(1)
            (folder / f"met-{group.rank}").touch()
            if not group.leads:
                # Gradients on their way to a peer that never takes them.
                pending = dist.all_reduce(torch.ones(1), async_op=True)
                raise BratsError("the case is damaged", hint="remove it")
            while True:  # a kernel that waits for its peers, who are gone
                time.sleep(0.1)
    except BratsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
"""


def test_an_error_in_one_process_is_reported_at_once_and_ends_all(tmp_path):
    running = launched(AS_NCCL, tmp_path)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("met-*"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    met = time.monotonic()
    assert running.stderr.readline() == "error: the case is damaged\n"
    assert time.monotonic() - met < 5
    assert running.ended(within=20) == ("", 3)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("death", "told"),
    [
        ("SIGKILL", "was killed, most likely because memory ran out"),
        # As NCCL's watchdog ends a process that has waited for another for too long.
        ("SIGABRT", "was ended by SIGABRT, most likely because another one no longer answers"),
    ],
)
def test_a_killed_process_is_told(tmp_path, death, told):
    code = (
        "import os, signal, time\nif os.environ['RANK'] == '1':\n"
        f"    os.kill(os.getpid(), signal.{death})\ntime.sleep(60)\n"
    )
    stderr, _ = launched(code, tmp_path).ended()
    assert stderr.splitlines()[-1].endswith(f"BratsError: process 2 of 2 {told}")


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
    assert running.ended() == ("", 128 + stop)
    names = sorted(path.name.replace("began", "stopped") for path in began)
    assert sorted(path.name for path in tmp_path.glob("stopped-*")) == names
