import os
import subprocess
import sys

import pytest

from brats_cli.core.compute import machine
from brats_cli.core.compute.machine import CPU_BYTES, available_cpus


def test_processors_are_counted_where_the_system_cannot_say(monkeypatch):
    assert available_cpus() >= 1
    monkeypatch.delattr(machine.os, "sched_getaffinity", raising=False)
    assert available_cpus() == os.cpu_count()


def quota(monkeypatch, tmp_path, text, *, affinity=8):
    file = tmp_path / "cpu.max"
    file.write_text(text)
    monkeypatch.setattr(machine, "Path", lambda path: file)
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda process: set(range(affinity)), raising=False
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000\n", 8), ("400000 100000\n", 4), ("50000 100000\n", 1), ("1600000 100000\n", 8)],
    ids=["no quota", "four CPUs", "half a CPU", "more than it may run on"],
)
def test_cpus_are_those_of_affinity_and_quota(monkeypatch, tmp_path, text, expected):
    quota(monkeypatch, tmp_path, text)
    assert available_cpus() == expected


def test_this_machine_has_a_cpu():
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)


def test_free_memory_is_some_and_not_more_than_there_is():
    if not hasattr(os, "sysconf"):
        pytest.skip("the system does not say how much memory it has")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.free_memory() <= max(total, 2 * CPU_BYTES)


@pytest.mark.parametrize(
    ("most", "expected"), [("3000000\n", 2_100_000), ("max\n", machine.sys.maxsize)]
)
def test_memory_of_a_control_group_is_what_it_may_still_take(monkeypatch, tmp_path, most, expected):
    # Of 3,000,000 bytes 1,000,000 are taken, of which 100,000 are files that could go.
    (tmp_path / "memory.max").write_text(most)
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("anon 900000\ninactive_file 100000\n")
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path)
    assert machine._left_by_control_group() == expected


# What torch does of a tensor's memory, without the seconds that it takes to import.
_USE = """
import ctypes
system = ctypes.CDLL(None)

def use(mib):
    block, size = ctypes.c_void_p(), ctypes.c_size_t(mib * 2**20)
    system.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), size)
    system.memset(block, 1, size)
    system.free(block)
"""

_ALLOCATE = (
    _USE
    + """
import resource
from brats_cli.core.compute.machine import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

{before}
for _ in range(10):  # until the heap has found its shape
    use(100)
seen = faults()
for _ in range(4):
    use(100)
print(faults() - seen)
"""
)


@pytest.mark.skipif(not hasattr(machine._C_LIBRARY, "mallinfo2"), reason="needs glibc 2.33")
@pytest.mark.parametrize(
    ("before", "least", "most"),
    [
        # 100 MiB are 25,600 pages of 4 KiB, and are asked for four times.
        ("", 100_000, 110_000),
        ("keep_freed_memory()", 0, 1_000),
    ],
    ids=["as it is", "kept"],
)
def test_kept_memory_is_not_asked_for_again(before, least, most):
    # From some places in the heap it takes turns between two holes: each try begins at another.
    counts = []
    while not counts or (len(counts) < 4 and not least <= counts[-1] <= most):
        moved = f"moved = bytearray({1000 * len(counts)})\n{before}"
        command = [sys.executable, "-c", _ALLOCATE.format(before=moved)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        counts.append(int(done.stdout))
    assert least <= counts[-1] <= most, counts


@pytest.mark.skipif(not hasattr(machine._C_LIBRARY, "mallinfo2"), reason="needs glibc 2.33")
def test_kept_memory_counts_as_free():
    code = (
        "import torch; from brats_cli.core.compute.machine import _kept_memory, keep_freed_memory\n"
        "keep_freed_memory()\nones = torch.ones(25 * 2**20)\nbefore = _kept_memory()\n"
        "del ones\nprint(_kept_memory() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(100 * 2**20, rel=0.05)


@pytest.mark.skipif(not hasattr(machine._C_LIBRARY, "mallinfo2"), reason="needs glibc 2.33")
@pytest.mark.parametrize(("limit_mib", "left_mib"), [(250, 0), (2000, 500)], ids=["much", "little"])
def test_only_much_kept_memory_is_given_back_and_is_then_kept_no_more(limit_mib, left_mib):
    # 500 MiB are freed. The system's own count of what the process holds tells what becomes of it.
    code = (
        f"{_USE}from pathlib import Path\nfrom brats_cli.core.compute import machine\n"
        f"machine._KEPT_BYTES = {limit_mib} * 2**20\n"
        "def counts():\n"
        "    held = int(Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "    return held / 2**20, machine._kept_memory() / 2**20\n"
        "machine.keep_freed_memory()\nuse(4)\nheld, kept = counts()\nuse(500)\n"
        "machine.release_freed_memory()\nnow_held, now_kept = counts()\n"
        "print(now_held - held, now_kept - kept)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    held, kept = map(float, done.stdout.split())
    assert held == pytest.approx(left_mib, abs=10)
    assert kept == pytest.approx(left_mib, abs=60)  # as Python's own heap may be counted
