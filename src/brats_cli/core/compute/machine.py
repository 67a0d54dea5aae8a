"""What this machine has: CPUs and memory, as much as this process may use of them."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import Any


def available_cpus() -> int:
    """The processors this process may use, by its affinity and its control group's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        most, period = quota.read_text().split()
        if most != "max":
            return max(1, min(allowed, int(most) // int(period)))
    return allowed


# A window may take this much on a CPU, however much memory there is: the machine is shared. By the
# estimate, the largest of twelve brains as a whole takes 2.8 GiB in float32 with 16 channels.
CPU_BYTES = 3 * 2**30


# What a process may keep for its next step of what it has freed.
_KEPT_BYTES = 9 * 2**29


# What it offers depends on the system, and is asked of it.
_C_LIBRARY: Any = None if sys.platform == "win32" else ctypes.CDLL(None)


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, to use it again.

    glibc gives blocks of more than 32 MB back to the system at once, whose next owner pays a page
    fault for every 4 KiB: on a CPU, a training step of two patches of 128^3 then took 9.8 s instead
    of 5.5. Where there is no glibc nothing happens. For the settings see `man mallopt`.
    """
    if hasattr(_C_LIBRARY, "mallopt"):
        trim_threshold, mmap_max = -1, -4
        _C_LIBRARY.mallopt(trim_threshold, -1)  # never
        _C_LIBRARY.mallopt(mmap_max, 0)


def release_freed_memory() -> None:
    """Give back what `keep_freed_memory` kept, where it has become much.

    glibc cannot put a tensor where one of the same size lay, as both are aligned, so that every
    step leaves more holes: two patches of 96^3 in float32 took 7.8 GiB, of which 4.5 were ever in
    use at once. Given back after each step it is 5.9, but the next takes 2 to 3 s longer.
    """
    if _kept_memory() > _KEPT_BYTES:
        _C_LIBRARY.malloc_trim(0)


def free_memory() -> int:
    """Bytes that this process could get, caches included; generous where nothing says."""
    information = Path("/proc/meminfo")
    if not information.is_file():
        return 2 * CPU_BYTES
    lines = dict(line.split(":") for line in information.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    return min(available, _left_by_control_group()) + _kept_memory()


class _Mallinfo(ctypes.Structure):
    """What glibc reports of the memory that it manages; see `man mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _kept_memory() -> int:
    """Bytes that this process has freed and kept: the system counts them as in use."""
    if not hasattr(_C_LIBRARY, "mallinfo2"):
        return 0
    mallinfo = _C_LIBRARY.mallinfo2
    mallinfo.restype = _Mallinfo
    counts = mallinfo()
    # Some of what is free may have been given back, which glibc does not report.
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    unused = (resident - shared) * mmap.PAGESIZE - counts.uordblks - counts.hblkhd
    return int(max(0, min(counts.fordblks, unused)))


def _left_by_control_group() -> int:
    """Bytes that this process's control group may still take: a batch job has less than all."""
    folder = Path("/sys/fs/cgroup")
    try:
        most = int((folder / "memory.max").read_text())  # ValueError: the word `max`
        used = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return sys.maxsize
    cached = dict(line.split() for line in lines).get("inactive_file", 0)
    return most - used + int(cached)
