"""Devices to compute on: which there are, their arithmetic and their memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from ..errors import ConfigError, DeviceError
from ..wording import count_of
from .machine import CPU_BYTES, free_memory


def choose_device(device: str = "auto", gpu: int | None = None) -> torch.device:
    """The device asked for, or the best there is.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        gpu: Number of a CUDA device; overrides `device`.

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
            shown = os.environ.get("CUDA_VISIBLE_DEVICES")
            raise DeviceError(
                f"this machine has no GPU {device.index or 0} (CUDA devices found: {count})",
                hint="use --device cpu, or check the driver with nvidia-smi"
                if shown is None
                else f"CUDA_VISIBLE_DEVICES={shown} hides the others, and --gpu counts from 0 "
                "those it shows",
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
    if device.type == "mps":
        return "mps"
    return f"cpu ({count_of(torch.get_num_threads(), 'thread')})"


def arithmetic(device: torch.device, precision: str) -> torch.dtype:
    """The type that `precision` means on a device.

    `auto` is bfloat16 where the device computes it natively: there it is several times as fast,
    and the network's logits agree with float32 to the second decimal. NVIDIA's GPUs do so from
    Ampere (capability 8); Volta and Turing (7) compute float16 as fast, and older ones neither.
    """
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
            precision
        ]
    if device.type == "cuda":
        generation, _ = torch.cuda.get_device_capability(device)
        if generation == 7:
            return torch.float16
        native = generation >= 8
    else:
        native = device.type == "cpu" and "avx512_bf16" in _cpu_flags()
    return torch.bfloat16 if native else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """A type's name, such as bfloat16."""
    return str(dtype).removeprefix("torch.")


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Run a network's convolutions in `dtype`."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


@contextmanager
def searching_kernels(device: torch.device) -> Iterator[None]:
    """Let cuDNN try its algorithms for each new shape, and keep the fastest.

    For work that has one shape: it takes seconds, once. Brains differ in theirs.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small tensor of the CPU on a device, without waiting for the work that is queued there."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held: of a GPU's memory, else of the machine's.

    Of a GPU's, what PyTorch has taken from it, as nvidia-smi shows it less the CUDA context. Of
    the machine's, other processes, such as those that read patches, are not counted; what they
    share with this one is. 0 where the system does not say (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # elsewhere, it counts in KiB


def restart_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` of a GPU count from now on, and not from what ran before."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # else there are no numbers to reset
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def memory_for_network(device: torch.device, *, beside: int = 0) -> int:
    """Bytes that one pass of a network may take, `beside` others that come or came with it."""
    if device.type == "cuda":
        # What PyTorch keeps of freed memory is taken to the driver, and free to PyTorch.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((torch.cuda.mem_get_info(device)[0] + kept) * 0.8) - beside
    return min(CPU_BYTES, int(free_memory() * 0.6)) - beside


def memory_text(device: torch.device) -> str:
    """A device's memory, as an error names it."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return f"the {total / 1e9:.0f} GB of {device}"
    return f"the memory of {'this machine' if device.type == 'cpu' else device.type}"


def more_memory(device: torch.device) -> str:
    """The hint for a device whose memory does not suffice."""
    if device.type == "cpu":
        return "end other programs, or use a larger machine"
    return "free memory there (see nvidia-smi), or use --device cpu"


def release_cached_memory(device: torch.device) -> None:
    """Give the driver back what PyTorch keeps of a GPU's freed memory, which comes in pieces."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


# Only CUDA's allocator has a class of its own for it; these are the words of the CPU's, of Apple's
# and of NVIDIA's libraries, which ask for memory themselves.
_OUT_OF_MEMORY = (
    "out of memory",  # also "MPS backend out of memory"
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute",  # cuDNN's, where no workspace is left
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error) for each in _OUT_OF_MEMORY)


def _cpu_flags() -> str:
    information = Path("/proc/cpuinfo")
    return information.read_text() if information.is_file() else ""
