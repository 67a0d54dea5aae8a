"""How files of `torch.save` are read: nothing in them is run, and none takes more than it holds."""

from __future__ import annotations

import pickle
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch

from ..reading import require_small

# What torch and pickle raise for archives with something else in them.
DAMAGED = (
    pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError, EOFError, ImportError,
    LookupError, MemoryError, OSError, RecursionError, RuntimeError, TypeError, ValueError,
    BadZipFile,
)  # fmt: skip


def load_archive(path: Path, *, zipped: bool = False) -> Any:
    """What a file of `torch.save` holds, its tensors on the CPU.

    `torch.save` compresses nothing. So no tensor is larger than its file, and one that claims to
    be (a compressed entry, one part of the file under several names, a view that repeats its few
    numbers) is refused before the memory for it is taken.

    Beside tensors and plain values it may hold single numbers of NumPy, as nnU-Net's log does.

    Args:
        path: The file.
        zipped: Refuse what PyTorch wrote before version 1.6.

    Raises:
        DAMAGED: One of these errors, if it is none, holds anything else, or would run code.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise pickle.UnpicklingError("it is not a regular file")
    if is_zipfile(path):
        _require_stored(path)
    elif zipped:  # torch would take text for a pickle, and stumble anywhere
        raise pickle.UnpicklingError("it is no archive, as torch.save writes it")
    with _numbers_of_numpy(), warnings.catch_warnings():
        # A pickle of another protocol is no reason to tell users to report it to PyTorch.
        warnings.simplefilter("ignore", UserWarning)
        content = torch.load(path, map_location="cpu", weights_only=True)
    require_small(content)
    _require_own_numbers(content)
    return content


def _require_stored(path: Path) -> None:
    with ZipFile(path) as archive:
        entries = archive.infolist()
    size = sum(entry.file_size for entry in entries)
    if any(entry.compress_type != ZIP_STORED for entry in entries) or size > path.stat().st_size:
        raise pickle.UnpicklingError(f"it claims to hold {size:,} bytes, more than it has")


def _require_own_numbers(content: Any) -> None:
    """Check that every tensor is a plain one with a number in the file for each of its elements."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            plain = value.layout == torch.strided and value.device.type == "cpu"
            if not plain or value.is_quantized or value.nbytes > value.untyped_storage().nbytes():
                raise pickle.UnpicklingError(f"it holds a tensor {tuple(value.shape)} of no size")
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set):
            waiting.extend(value)


@contextmanager
def _numbers_of_numpy() -> Iterator[None]:
    scalar = np.float64(0).__reduce__()[0]  # numpy._core.multiarray.scalar, where it now lives
    names: list[Any] = [
        (scalar, "numpy._core.multiarray.scalar"),
        (scalar, "numpy.core.multiarray.scalar"),
        np.dtype,
        type(np.dtype(np.float64)),
        type(np.dtype(np.float32)),
    ]
    with torch.serialization.safe_globals(names):
        yield
