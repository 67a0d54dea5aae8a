"""The patch store: each case is prepared once; patches are read without reading the volume.

Arrays are compressed by Blosc2 (LZ4HC after a byte shuffle), not memory-mapped. The twelve real
cases, by `benchmarks/bench_store.py` on one busy CPU core with the files in memory:

    format                   size, of the .nii.gz    a patch of 128    of 64
    float16, mapped          371 MB    3.45           2.0 ms           0.7 ms
    the same, channels last  371 MB    3.45           1.9 ms           0.4 ms
    float32, mapped          701 MB    6.52           3.6 ms           0.7 ms
    Blosc2, LZ4HC            123 MB    1.14           9.0 ms           2.5 ms
    Blosc2, Zstandard        108 MB    1.01          15.7 ms           4.9 ms

At 9 ms, one core reads several times what a GPU learns from in that time, and the whole of
BraTS 2021 stays in 13 GB of memory; mapped files would take 39 GB, and come from the disk.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import blosc2
import numpy as np
import numpy.typing as npt

from ..compute.executors import in_order
from ..compute.machine import keep_freed_memory
from ..compute.plan import free_disk
from ..compute.processes import in_threads
from ..data.cases import Case, read_images
from ..data.labels import REGIONS, LabelScheme, is_predicted, scheme_named
from ..data.naming import MODALITIES
from ..errors import LabelError, OutputError, UnreadableFileError
from ..images.grid import require_same_grid
from ..images.nifti import MOST_VOXELS, read_labels
from ..reading import real_path
from ..wording import size_text
from .preparation import PREPARATION, prepare_labels
from .recipe import RECIPE, Recipe, prepare_by

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT = "brats-store/3"

_SUMS = "sums.json"
"""Beside the arrays of a case, the CRC-32 of each file: Blosc2 does not notice every flipped bit.
Verified once, when a run looks for its cases: 10 MB, about a case of BraTS, take 3.5 ms."""

# What Blosc2 raises for bytes that are not its own.
_DAMAGED = (
    ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError,
    TypeError, ValueError,
)  # fmt: skip

CENTRES = 4096
"""Voxels stored per region, and of the brain, to centre patches on."""

_FILES = ("images.b2nd", "labels.b2nd", "centres.b2nd")

_CENTRED_ON = (*REGIONS, "brain")

# A block is the smallest unit that is decompressed: 32 voxels per edge, all modalities together.
_BLOCK, _CHUNK = 32, 64
_PACKING = {"codec": blosc2.Codec.LZ4HC, "clevel": 3, "nthreads": 1}

# Bytes stored per byte of the images, as measured on the real cases.
_SHARE_OF_ZIPPED, _SHARE_OF_UNZIPPED = 1.15, 0.16

_HINT = "make room, or choose another place with --store DIR"


class PackedArray:
    """An array on disk; a slice unpacks no more than the blocks that it touches.

    Raises:
        UnreadableFileError: If it is missing, cut short or, when it is read, damaged; or if it is
            no array of up to as many numbers as four large scans.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # One thread: a training reads with as many processes as it needs.
            self._array = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
            self.shape: tuple[int, ...] = tuple(self._array.shape)
            self.dtype = np.dtype(self._array.dtype)
        except _DAMAGED as error:
            raise _damaged(path) from error
        if not isinstance(self._array, blosc2.NDArray) or math.prod(self.shape) > MOST_VOXELS:
            raise _damaged(path)

    def __getitem__(self, box: Any) -> npt.NDArray[Any]:
        try:
            values: npt.NDArray[Any] = self._array[box]
        except _DAMAGED as error:
            raise _damaged(self.path) from error
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        values = self[...]
        return values if dtype is None else values.astype(dtype)


@dataclass(frozen=True, eq=False)
class StoredCase:
    """A prepared case, its arrays on disk and not yet read.

    Attributes:
        id: Case id.
        images: (C, X, Y, Z) float16, z-scores.
        labels: (X, Y, Z) uint8, in the store's label scheme.
        centres: By region, and by "brain", (N, 3) voxels drawn at random from it.
    """

    id: str
    images: PackedArray | npt.NDArray[np.float16]
    labels: PackedArray | npt.NDArray[np.uint8]
    centres: Mapping[str, npt.NDArray[np.int16]]

    def read(self) -> StoredCase:
        """The same with its arrays in memory.

        Raises:
            UnreadableFileError: If it is damaged.
        """
        return replace(self, images=np.asarray(self.images), labels=np.asarray(self.labels))

    def masks(self, scheme: LabelScheme) -> npt.NDArray[np.bool_]:
        """The masks of WT, TC and ET as the expert drew them, (3, X, Y, Z)."""
        return np.stack(scheme.masks(np.array(self.labels)))


class StoredCases(Sequence[StoredCase]):
    """Cases of a store, each opened when it is indexed and closed when it is no longer used.

    Thousands of open cases would be as many open files, and what was read of them would stay in
    the memory of every process.
    """

    def __init__(self, places: Sequence[tuple[str, Path]]) -> None:
        self.places = list(places)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> StoredCase: ...

    @overload
    def __getitem__(self, index: slice) -> StoredCases: ...

    def __getitem__(self, index: int | slice) -> StoredCase | StoredCases:
        if isinstance(index, slice):
            return StoredCases(self.places[index])
        return _open(*self.places[index])


@dataclass(frozen=True)
class Store:
    """A folder of prepared cases, all in one label scheme and prepared alike."""

    folder: Path
    scheme: LabelScheme
    modalities: tuple[str, ...] = MODALITIES
    recipe: Recipe | None = None

    def plan(self, cases: Sequence[Case]) -> Preparation:
        """Where each of `cases` is stored, or will be; their files are looked at once, here.

        What was stored is compared with its checksums; a damaged case is among the missing.

        Raises:
            UnreadableFileError: If one of their files is missing.
        """
        places = {case.id: self._place(case) for case in cases}
        whole = in_threads(_is_whole, [places[case.id] for case in cases])
        missing = tuple(case for case, found in zip(cases, whole, strict=True) if not found)
        return Preparation(self, places, missing)

    def bytes_needed(self, cases: Sequence[Case]) -> int:
        """About what it takes to store `cases`, estimated from the size of their images."""
        paths = {case.images[name].path for case in cases for name in self.modalities}
        return int(
            sum(
                path.stat().st_size
                * (_SHARE_OF_ZIPPED if path.suffix == ".gz" else _SHARE_OF_UNZIPPED)
                for path in paths
            )
        )

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While the block runs, no other training removes anything from the store."""
        with _lock(self.folder, alone=False):
            yield

    def _place(self, case: Case) -> Path:
        """Folder of a case, named by what is stored of which files in which state."""
        assert case.label is not None
        assert case.scheme is not None
        images = [case.images[name] for name in self.modalities]
        paths = [*(real_path(image.path) for image in images), real_path(case.label)]
        wanted: list[Any] = [self.scheme.name, case.scheme.name, self.modalities, *map(str, paths)]
        wanted += [image.channel for image in images]
        wanted += [RECIPE, self.recipe.content()] if self.recipe else []
        state: list[Any] = [FORMAT, PREPARATION]
        for path in paths:
            try:
                status = path.stat()
            except OSError as error:
                raise UnreadableFileError(path, error.strerror or str(error)) from error
            state += [status.st_size, status.st_mtime_ns]
        # An id may be as long as a file name, or hold what file systems do not.
        name = re.sub(r"[^\w.-]", "_", case.id, flags=re.ASCII)[:100]
        return self.folder / f"{name}-{_digest(wanted)}-{_digest(state)}"

    def _remove_stale(self, places: Iterable[Path]) -> None:
        """Remove what was stored of earlier states of the same files, and by killed processes."""
        with _lock(self.folder, alone=True) as alone:
            for entry in self._stale(places) if alone else ():
                shutil.rmtree(entry, ignore_errors=True)

    def _stale(self, places: Iterable[Path]) -> list[Path]:
        """What earlier states of the same files, and killed processes, left in the store."""
        wanted = {place.name for place in places}
        kin = {name.rpartition("-")[0] for name in wanted}
        if not self.folder.is_dir():
            return []
        return [
            entry
            for entry in self.folder.iterdir()
            if ".partial." in entry.name
            or (entry.name not in wanted and entry.name.rpartition("-")[0] in kin)
        ]

    def _require_room(self, cases: Sequence[Case], *, freed: int = 0) -> None:
        needed, free = self.bytes_needed(cases), free_disk(self.folder) + freed
        if needed > free:
            raise OutputError(
                self.folder,
                f"{len(cases)} prepared cases take about {size_text(needed)}, "
                f"and the disk has {size_text(free)} left",
                hint=_HINT,
            )

    def _prepare_case(self, job: tuple[Case, Path]) -> str:
        case, place = job
        keep_freed_memory()  # else a tenth of the time is page faults
        if not _is_whole(place):  # another training may have stored it meanwhile
            _write(place, self._packed(case))
        return case.id

    def _packed(self, case: Case) -> dict[str, bytes]:
        """The content of a stored case's files."""
        assert case.label is not None
        assert case.scheme is not None
        volumes = read_images(case, self.modalities)
        label_map = read_labels(case.label)
        if is_predicted(label_map.note):
            raise LabelError.predicted(case.label)
        require_same_grid([volumes[0], label_map])
        case.scheme.require(np.unique(label_map.data).tolist(), str(case.label))
        prepared = prepare_by(self.recipe, volumes)
        labels = case.scheme.convert(prepare_labels(label_map, prepared), self.scheme)
        masks = (*self.scheme.masks(labels), prepared.brain)
        centres = [_some_voxels(mask, case.id) for mask in masks]
        rows = [np.insert(voxels, 0, kind, axis=0) for kind, voxels in enumerate(centres)]
        return {
            "images.b2nd": _pack(prepared.images.astype(np.float16)),
            "labels.b2nd": _pack(labels),
            "centres.b2nd": _pack(np.concatenate(rows, axis=1)),
        }


@dataclass(frozen=True)
class Preparation:
    """Cases and their places in a store, by their files as these were when it was made.

    Attributes:
        store: The store.
        places: Folder of each case by its id.
        missing: The cases that are not stored whole.
    """

    store: Store
    places: Mapping[str, Path]
    missing: tuple[Case, ...]

    def require_room(self) -> None:
        """Check, before anything is removed or stored, that the missing cases would fit.

        Raises:
            OutputError: If not, even without what is stale.
        """
        stale = self.store._stale(self.places.values())
        files = (file for entry in stale for file in entry.rglob("*") if file.is_file())
        self.store._require_room(self.missing, freed=sum(file.stat().st_size for file in files))

    def run(self, *, workers: int) -> Iterator[str]:
        """Store the cases that are missing, yielding the id of each when it is done.

        What was stored of the same files before they changed is removed, unless another training
        uses the store. An interruption loses only the cases in progress; two processes may prepare
        at once.

        Raises:
            BratsError: If a case cannot be read, its labels do not fit, or the disk is too small.
        """
        store = self.store
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(store.folder, error.strerror or str(error), hint=_HINT) from error
        store._remove_stale(self.places.values())
        store._require_room(self.missing)
        work = [(case, self.places[case.id]) for case in self.missing]
        with store.in_use():
            yield from in_order(
                store._prepare_case, work, workers=workers, name=lambda job: f"case {job[0].id}"
            )

    def cases(self, ids: Iterable[str]) -> StoredCases:
        """The stored cases of these ids, none of them open yet."""
        return StoredCases([(case_id, self.places[case_id]) for case_id in ids])


def training_scheme(cases: Iterable[Case]) -> LabelScheme:
    """The label scheme that most cases have; the labels of the others are converted to it."""
    names = [case.scheme.name for case in cases if case.scheme]
    return scheme_named(max(sorted(set(names)), key=names.count))


def _open(case_id: str, place: Path) -> StoredCase:
    images, labels, centres = (PackedArray(place / name) for name in _FILES)
    # What was damaged after its checksums were compared is to be named, not trained on.
    for array, shape, dtype in (
        (images, (*images.shape[:1], *labels.shape), np.float16),
        (labels, (*labels.shape, 0, 0)[:3], np.uint8),
        (centres, (4, *centres.shape[1:2]), np.int16),
    ):
        if array.shape != shape or array.dtype != dtype:
            raise _damaged(array.path)
    rows = centres[...]
    if (rows[1:] < 0).any() or (rows[1:] >= np.reshape(labels.shape, (3, 1))).any():
        raise _damaged(centres.path)
    return StoredCase(
        case_id,
        images,
        labels,
        {name: rows[1:, rows[0] == kind].T for kind, name in enumerate(_CENTRED_ON)},
    )


def _is_whole(place: Path) -> bool:
    """Whether a case is stored and its files are what was written."""
    try:
        sums = json.loads((place / _SUMS).read_bytes())
        return bool(sums == {name: zlib.crc32((place / name).read_bytes()) for name in _FILES})
    except (OSError, ValueError):
        return False


def _damaged(path: Path) -> UnreadableFileError:
    return UnreadableFileError(
        path,
        "the prepared case is damaged" if path.exists() else "there is no such prepared case",
        hint=f"remove {path.parent} and start again: the case is then prepared again",
    )


def _write(place: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder of a case, whole or not at all."""
    # Not by the process's number: another machine that shares the store may have the same.
    partial = place.with_name(f".{uuid.uuid4().hex}.partial.{place.name}")
    try:
        partial.mkdir(parents=True)
        for name, content in files.items():
            (partial / name).write_bytes(content)
        sums = {name: zlib.crc32(content) for name, content in files.items()}
        (partial / _SUMS).write_text(json.dumps(sums))
        shutil.rmtree(place, ignore_errors=True)  # if it is there, it is damaged
        partial.replace(place)
    except OSError as error:
        if not _is_whole(place):  # as another training stored it this very moment
            raise OutputError(place, error.strerror or str(error), hint=_HINT) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _pack(array: npt.NDArray[Any]) -> bytes:
    grid = {}
    if array.ndim > 2:
        for name, edge in (("chunks", _CHUNK), ("blocks", _BLOCK)):
            sides = (min(edge, side) for side in array.shape[-3:])
            grid[name] = (*array.shape[:-3], *sides)
    values = np.ascontiguousarray(array)
    packed: bytes = blosc2.asarray(values, **grid, cparams=_PACKING).to_cframe()
    return packed


def _some_voxels(mask: npt.NDArray[np.bool_], case_id: str) -> npt.NDArray[np.int16]:
    """At most `CENTRES` voxels of a mask, (3, N); the same at every preparation."""
    inside = np.flatnonzero(mask)
    if inside.size > CENTRES:
        seed = int.from_bytes(hashlib.sha256(os.fsencode(case_id)).digest()[:8], "little")
        inside = np.sort(np.random.default_rng(seed).choice(inside, CENTRES, replace=False))
    return np.stack(np.unravel_index(inside, mask.shape)).astype(np.int16)


@contextmanager
def _lock(folder: Path, *, alone: bool) -> Iterator[bool]:
    """Lock a folder while the block runs; whether that could be done.

    Args:
        folder: What to lock.
        alone: An exclusive lock, which fails if there is another; else a shared one, which waits.
    """
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        locked = True
    except OSError:  # in use; or a file system without locks, where nothing is ever removed
        locked = False
    try:
        yield locked
    finally:
        os.close(handle)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
