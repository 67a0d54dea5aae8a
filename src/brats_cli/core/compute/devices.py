"""What this machine has: devices, arithmetic, memory and CPUs."""

from __future__ import annotations

import ctypes
import mmap
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, DeviceError

# A window may take this much on a CPU, however much memory there is: the machine is shared. By the
# estimate, the largest of twelve brains as a whole takes 2.8 GiB in float32 with 16 channels.
CPU_BYTES = 3 * 2**30

# What a process may keep for its next step of what it has freed.
_KEPT_BYTES = 9 * 2**29

# What it offers depends on the system, and is asked of it.
_C_LIBRARY: Any = None if sys.platform == "win32" else ctypes.CDLL(None)


def choose_device(device: str = "auto", gpu: int | None = None) -> torch.device:
    """The device asked for, or the best there is.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        gpu: Number of a CUDA device; goes before `device`.

    Raises:
        DeviceError: If this machine does not have it.
    """
    if gpu is not None:
        device = f"cuda:{gpu}"
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(
            f"there is no device '{device}'", hint="use --device auto, cpu, cuda or mps"
        ) from error
    _require(chosen)
    return chosen


def choose_devices(device: str = "auto", gpus: str | None = None) -> list[torch.device]:
    """The devices asked for, such as `--gpu 0,1`, or the one best there is.

    Raises:
        ConfigError: If `gpus` are not numbers with commas between them, each once.
        DeviceError: If this machine does not have one of them.
    """
    if gpus is None:
        return [choose_device(device)]
    numbers = [number.strip() for number in gpus.split(",")]
    if len(set(numbers)) < len(numbers) or not all(map(str.isdecimal, numbers)):
        raise ConfigError(
            f"--gpu {gpus} does not number GPUs", hint="write --gpu 0, or --gpu 0,1 for several"
        )
    return [choose_device(gpu=int(number)) for number in numbers]


def _require(device: torch.device) -> None:
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = f"CUDA devices found: {count}"
            raise DeviceError(
                f"this machine has no GPU {device.index or 0} ({found})",
                hint="use --device cpu, or check the driver with nvidia-smi",
            )
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("this machine has no Apple GPU (mps)", hint="use --device cpu")
    elif device.type != "cpu":
        raise DeviceError(
            f"brats does not run on '{device.type}'", hint="use --device auto, cpu, cuda or mps"
        )


def describe(device: torch.device) -> str:
    """A device's name as its maker gives it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({torch.get_num_threads()} threads)" if device.type == "cpu" else "mps"


def arithmetic(device: torch.device, precision: str) -> torch.dtype:
    """The type that `precision` means on a device.

    `auto` is bfloat16 where the device computes it natively: there it is several times as fast,
    and the network's logits agree with float32 to the second decimal.
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
            precision
        ]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and "avx512_bf16" in _cpu_flags()
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Run a network's convolutions in `dtype`."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held: of a GPU's memory, else of the machine's.

    Other processes, such as those that read patches, are not counted; what they share with this
    one is. 0 where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # elsewhere, it counts in KiB


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


def memory_for_network(device: torch.device, *, beside: int = 0) -> int:
    """Bytes that one pass of a network may take, `beside` others that come or came with it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * 0.8) - beside
    return min(CPU_BYTES, int(free_memory() * 0.6)) - beside


def _cpu_flags() -> str:
    information = Path("/proc/cpuinfo")
    return information.read_text() if information.is_file() else ""


def free_memory() -> int:
    """Bytes that this process could get, caches included; generous where nothing says."""
    information = Path("/proc/meminfo")
    if not information.is_file():
        return 2 * CPU_BYTES
    lines = dict(line.split(":") for line in information.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    return min(available, _left_by_control_group()) + _kept_memory()


class _Mallinfo(ctypes.Structure):
    """What glibc tells of the memory that it manages; see `man mallinfo2`."""

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
    told = mallinfo()
    # Some of what is free may have been given back, which glibc does not tell.
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    unused = (resident - shared) * mmap.PAGESIZE - told.uordblks - told.hblkhd
    return int(max(0, min(told.fordblks, unused)))


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
