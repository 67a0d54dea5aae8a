"""How files of `torch.save` are read: nothing in them is run, and none takes more than it holds."""

from __future__ import annotations

import io
import pickle
import re
import stat
import struct
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
    BadZipFile, struct.error,
)  # fmt: skip


_MOST_BYTES_BESIDE = 6 << 20
"""All that is no tensor has no more bytes; PyTorch takes up to 72 times as much memory for it."""


def load_archive(path: Path) -> Any:
    """What a file of `torch.save` holds (of PyTorch 1.6 or later), its tensors on the CPU.

    `torch.save` compresses nothing. So no tensor is larger than its file, and one that claims to
    be (a compressed entry, one part of the file under several names, a view that repeats its few
    numbers) is refused before the memory for it is taken.

    Beside tensors and plain values it may hold single numbers of NumPy, as nnU-Net's log does.

    Raises:
        DAMAGED: One of these errors, if it is none, holds anything else, or would run code.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise pickle.UnpicklingError("it is not a regular file")
    is_archive = is_zipfile(path)
    for content in _pickles_in(path) if is_archive else [_start_of(path)]:
        _Rehearsal(content).load()
    if not is_archive:  # torch would take text for a pickle, and stumble anywhere
        raise pickle.UnpicklingError("it is no archive, as torch.save writes it")
    with _numbers_of_numpy(), warnings.catch_warnings():
        # A pickle of another protocol is no reason to tell users to report it to PyTorch.
        warnings.simplefilter("ignore", UserWarning)
        found = torch.load(path, map_location="cpu", weights_only=True)
    require_small(found)
    _require_own_numbers(found)
    return found


def _pickles_in(path: Path) -> list[bytes]:
    """What an archive holds beside its tensors: its pickles, if it is stored as by `torch.save`."""
    with path.open("rb") as file, ZipFile(file) as archive:
        entries = archive.infolist()
        size, whole = sum(entry.file_size for entry in entries), path.stat().st_size
        if size > whole or any(entry.compress_type != ZIP_STORED for entry in entries):
            raise pickle.UnpicklingError(f"it claims to hold {size:,} bytes, more than it has")
        # Python looks for the directory where it ends, PyTorch where it is said to begin.
        if archive.start_dir != _start_of_directory(file, whole):
            raise BadZipFile("it has two directories")
        pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if sum(entry.file_size for entry in pickles) > _MOST_BYTES_BESIDE:
            raise pickle.UnpicklingError("it holds too much beside tensors")
        return [archive.read(entry) for entry in pickles]


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MOST_BYTES_BESIDE)


def _start_of_directory(file: io.BufferedReader, size: int) -> int:
    """Where the directory of a zip file begins, as the last bytes of the file say it."""
    end, locator, record = 22, 20, 56
    start = max(0, size - end - locator - record)
    file.seek(start)
    tail = file.read().rjust(end + locator + record, b"\0")
    if tail[-end:][:4] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise BadZipFile("something follows its directory")
    if tail[record:][:4] != b"PK\6\7":
        return int(struct.unpack_from("<L", tail, len(tail) - 6)[0])
    if tail[:4] != b"PK\6\6" or struct.unpack_from("<Q", tail, record + 8)[0] != start:
        raise BadZipFile("its directory is somewhere else")
    return int(struct.unpack_from("<Q", tail, 48)[0])


class _Rehearsal(pickle._Unpickler):
    """Goes through a pickle with stand-ins, to refuse what would take memory without end.

    PyTorch runs no code, but it lets a pickle of a few bytes make a `bytearray` of any size, or
    copy a list as often as it likes. (Python's own reader in C would do so as well: this is the one
    in Python.)
    """

    _MOST_COPIED = 1_000_000

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._copied = 0

    def find_class(self, module: str, name: str) -> Any:
        # As Python 2 called it, whose names `torch.save` writes.
        module = "builtins" if module == "__builtin__" else module
        return _StandIn(self, f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return None

    def call(self, name: str, arguments: tuple[Any, ...]) -> _StandIn:
        """What a function would return, if it is one that `torch.save` has called."""
        of_numpy = name == "numpy.dtype"
        if not _CALLED.fullmatch(name) or (of_numpy and not _is_number(arguments)):
            raise pickle.UnpicklingError(f"it calls {name}")
        self._copied += sum(len(each) for each in arguments if hasattr(each, "__len__"))
        if self._copied > self._MOST_COPIED:
            raise pickle.UnpicklingError(f"it makes too much of itself by {name}")
        return _StandIn(self, "")


_CALLED = re.compile(
    r"collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|complex)"
    r"|torch\.(Size|device)|numpy\.dtype"
    r"|torch\._utils\._rebuild_(tensor_v[23]|parameter(_with_state)?)"
    r"|numpy\._?core\.multiarray\.scalar"
)
"""What files of `torch.save` call."""


def _is_number(arguments: tuple[Any, ...]) -> bool:
    """Whether `numpy.dtype` is called for a type of numbers: text of any length is one as well."""
    return bool(re.fullmatch("[<>=|]?[biufc][0-9]{1,2}", str(arguments[:1] and arguments[0])))


class _StandIn(dict[Any, Any]):
    """In place of what a pickle names or makes."""

    def __init__(self, rehearsal: _Rehearsal, name: str) -> None:
        super().__init__()
        self._rehearsal, self._name = rehearsal, name

    def __call__(self, *arguments: Any) -> _StandIn:
        return self._rehearsal.call(self._name, arguments)

    def __setstate__(self, state: Any) -> None:
        pass

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


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
        *(type(np.dtype(each)) for each in "?bBhHiIlLqQefd"),
    ]
    with torch.serialization.safe_globals(names):
        yield
