"""The one way in and out of NIfTI files: strict about bytes, bounded by what headers claim."""

from __future__ import annotations

import io
import logging
import math
import stat
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from ..errors import BratsWarning, LabelError, UnreadableFileError
from ..writing import whole_file
from . import gzipped
from .grid import MILLIMETRES_IN, Grid, Volume, times

NIFTI_ENDINGS = (".nii.gz", ".nii")

ROUNDS_TO_LABEL = 0.01
"""How far from a whole number a label may be to be that number, spoilt by a float format."""

# The size of the header, with which a file begins, tells the version and the order of bytes.
_KINDS = {
    struct.pack(f"{order}i", size): header
    for size, header in ((348, nib.Nifti1Header), (540, nib.Nifti2Header))
    for order in "<>"
}

MOST_VOXELS = 4 * 512**3
"""No image of more voxels is read: a small file of zeros, zipped, would fill any memory."""

_MOST_BEFORE = 1 << 26
"""Voxels begin within so many bytes: in front of them there are only notes of programs."""

_CHUNK = 1 << 20
"""Bytes that are read at once of a file that is not gzipped."""

# What nibabel raises for headers that say something impossible.
_DAMAGED = (
    HeaderDataError, ImageFileError, WrapStructError, EOFError, KeyError, OSError, OverflowError,
    ValueError, np.linalg.LinAlgError,
)  # fmt: skip

# nibabel logs what it repairs in a header; `brats check` reports that with the file's name.
_SILENT = logging.Logger("brats.nifti", level=logging.CRITICAL + 1)


def stem(path: Path) -> str:
    """File name without `.nii` or `.nii.gz`.

    >>> stem(Path("data/BraTS20_Training_001_t1.nii.gz"))
    'BraTS20_Training_001_t1'
    """
    for ending in NIFTI_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def is_nifti(path: Path) -> bool:
    """Whether the file's name ends as a NIfTI file's does."""
    return path.name.lower().endswith(NIFTI_ENDINGS)


# --- reading -----------------------------------------------------------------------------------


def shape_on_disk(path: Path) -> tuple[int, ...] | None:
    """Shape of the image from its first bytes alone, or None if it is not a NIfTI-1 file.

    Some thirty times as fast as loading it, for folders of thousands.
    """
    start = _start(path)
    for order in "<>":
        if start[:4] == struct.pack(f"{order}i", 348) and len(start) >= 56:
            dimensions, *shape = struct.unpack(f"{order}8h", start[40:56])
            return tuple(shape[:dimensions]) if 0 < dimensions < 8 else None
    return None


def voxels_on_disk(path: Path) -> int:
    """Voxels along the first three axes by the header alone; 0 if the file cannot hold so many."""
    shape = shape_on_disk(path)
    if shape is None or len(shape) < 3:
        return 0
    size = path.stat().st_size * (gzipped.MOST_RATIO if path.suffix.lower() == ".gz" else 1)
    count = math.prod(shape[:3])
    return count if 0 < count <= size else 0


def note_on_disk(path: Path) -> str:
    """What the header's description says, from the first bytes alone; empty if it cannot be read.

    As fast as `shape_on_disk`.
    """
    start = _start(path)
    kind = _KINDS.get(start[:4])
    if kind is not nib.Nifti1Header or len(start) < 348:
        return ""
    return bytes(start[148:228]).rstrip(b"\0").decode("latin-1")


def _start(path: Path) -> bytes:
    """The first 348 bytes of an image, a NIfTI-1 header; fewer or none if there are no such."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            start = file.read(4096)
        if start[:2] == gzipped.MAGIC:
            return gzipped.first_unzipped(start, 348)
    except (OSError, gzipped.DamagedGzipError):
        return b""
    return start[:348]


def read_volume(path: Path) -> Volume:
    """Read a file as it lies on disk: voxels in their own type, the header as it was written.

    Gzip is recognised by content and its checksum verified. No more is read, or unzipped, than
    the header claims, and a header that claims more than the file can hold is refused first.
    Scaled values are float64; axes of length 1 behind the third are dropped.

    Raises:
        UnreadableFileError: Saying in which way it is damaged, that its voxels are not numbers, or
            that there is too little memory for it.
    """
    content, was_gzipped = _content(path)
    written = _header(content, path)
    header = written.copy()
    try:
        header.check_fix(logger=_SILENT)
        with np.errstate(all="ignore"):  # as in `_qform`
            affine = _finite(np.asarray(header.get_best_affine(), dtype=float))
        data = np.asanyarray(ArrayProxy(io.BytesIO(content), header))
    except MemoryError as error:
        raise _too_large(path) from error
    except _DAMAGED as error:
        raise UnreadableFileError(path, f"its header is damaged ({_short(error)})") from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if 0 in data.shape:
        raise UnreadableFileError(path, f"it has {times(data.shape)} voxels")
    x, y, z = (*data.shape, 1, 1)[:3]
    codes = int(written["sform_code"]), int(written["qform_code"])
    units = int(written["xyzt_units"]) & 0xFF  # NIfTI-2 has room for more than NIfTI-1
    grid = Grid((x, y, z), affine, codes, _qform(written), units)
    return Volume(data, grid, path, written, was_gzipped)


def read_image(path: Path, channel: int | None = None) -> Volume:
    """Read a 3D image, or one channel of a 4D file, as float32.

    Raises:
        UnreadableFileError: If it is damaged, has no place in space, or does not have the
            dimensions asked for.
    """
    return read_channels(path, [channel])[0]


def read_channels(path: Path, channels: Sequence[int | None]) -> list[Volume]:
    """Read a 3D image (`[None]`), or some channels of a 4D file, as float32; the file is read once.

    Raises:
        UnreadableFileError: As `read_image`.
    """
    volume = _placed(read_volume(path))
    due = 3 if channels[0] is None else 4
    if volume.data.ndim != due:
        raise UnreadableFileError(
            path,
            f"it has {_dimensions(volume)} where {due} are due",
            hint="give a 3D file for each modality, or one 4D file in the order FLAIR, T1, T1ce, "
            "T2",
        )
    found = []
    for channel in channels:
        if channel is not None and channel >= volume.data.shape[3]:
            raise UnreadableFileError(
                path,
                f"it has {volume.data.shape[3]} channels, too few",
                hint="a 4D file holds FLAIR, T1, T1ce, T2",
            )
        one = volume if channel is None else volume.channel(channel)
        found.append(replace(one, data=as_float32(one.data)))
    return found


def as_float32(data: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Voxels as float32, not copied if they are; what float64 may hold beyond it is infinite."""
    with np.errstate(over="ignore"):
        return data.astype(np.float32, copy=False)


def read_labels(path: Path) -> Volume:
    """Read a label map as uint8; files that store whole numbers as floats are fine.

    Raises:
        UnreadableFileError: If it is damaged, has no place in space or is not 3D.
        LabelError: If a value is not a whole number from 0 to 255, to `ROUNDS_TO_LABEL`.
    """
    volume = _read_3d(path)
    return replace(volume, data=_whole_numbers(volume.data, path))


@dataclass(frozen=True)
class LabelCount:
    """How many voxels of each value a label map holds.

    Attributes:
        voxels: By value, in rising order of value.
        voxel_mm3: Volume of a voxel.
        note: What the header's description says.
    """

    voxels: Mapping[int, int]
    voxel_mm3: float
    note: str = ""

    @classmethod
    def of(cls, volume: Volume) -> LabelCount:
        """Count a label map, of which only the foreground is converted to labels.

        Raises:
            LabelError: If a value is not a label.
        """
        # A hundredth of the voxels; `values` keeps their order, which is ten times as fast.
        foreground = _whole_numbers(volume.values[volume.values != 0], volume.path)
        counts = np.bincount(foreground, minlength=1)
        counts[0] = volume.values.size - foreground.size
        voxels = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
        return cls(voxels, volume.grid.voxel_mm3, volume.note)


def count_labels(path: Path) -> LabelCount:
    """Count a label map's voxels by value, several times as fast as reading and sorting them.

    Raises:
        UnreadableFileError: As `read_labels`.
        LabelError: As `read_labels`.
    """
    return LabelCount.of(_read_3d(path))


def _read_3d(path: Path) -> Volume:
    volume = read_volume(path)
    if volume.data.ndim != 3:
        raise UnreadableFileError(
            path,
            f"it has {_dimensions(volume)} where 3 are due",
            hint="a label map is a 3D file with one whole number per voxel",
        )
    return _placed(volume)


def _placed(volume: Volume) -> Volume:
    """`volume` with its lengths in millimetres, whatever unit its header has.

    Raises:
        UnreadableFileError: If it has no place in space, or its voxels are no head scan's.
    """
    grid = volume.grid
    if grid.is_usable or grid.units & 7 in MILLIMETRES_IN:
        grid = grid.in_millimetres()
    if not grid.is_usable:
        raise UnreadableFileError(
            volume.path,
            "its affine is flat or not finite, so that it has no place in space",
            hint="copy the sform and qform of another image of the case, or try brats check --fix",
        )
    if not grid.is_plausible:
        sides = " x ".join(f"{side:.3g}" for side in grid.spacing_mm)
        raise UnreadableFileError(
            volume.path,
            f"its voxels are {sides} mm, which is no head scan",
            hint="are its lengths in centimetres or metres? correct the header's voxel size and "
            "affine",
        )
    return replace(volume, grid=grid)


def _dimensions(volume: Volume) -> str:
    return f"{volume.data.ndim} dimensions ({times(volume.data.shape)})"


def _whole_numbers(data: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
    if data.dtype == np.uint8:
        return data
    with np.errstate(invalid="ignore"):
        near = np.rint(data) if data.dtype.kind == "f" else data
        labels = near.astype(np.uint8)
        right = (labels == near) & (np.abs(data - near) <= ROUNDS_TO_LABEL)
    if not right.all():
        raise LabelError(
            f"{path} holds {data[~right][0]:.9g}, which is not a label (a whole number 0-255)",
            hint="is it an MR image or a probability map, not a label map?",
        )
    if data.dtype.kind == "f" and (spoilt := near != data).any():
        value = data[spoilt][0]
        warnings.warn(
            f"{path} holds {value:.9g}, taken as label {np.rint(value):g}",
            BratsWarning,
            stacklevel=2,
        )
    return labels


# --- bytes -------------------------------------------------------------------------------------


def _content(path: Path) -> tuple[bytes, bool]:
    """The bytes of an image, unzipped, as far as its header claims them; whether they were zipped.

    Raises:
        UnreadableFileError: If there are fewer, or it is not a NIfTI file.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableFileError(path, "it is a folder", hint="give the NIfTI files in it")
        if not stat.S_ISREG(status.st_mode):
            # A pipe would never end, nor would /dev/zero.
            raise UnreadableFileError(path, "it is not a regular file", hint="give a NIfTI file")
        if not status.st_size:
            raise UnreadableFileError(path, "it is empty (0 bytes)")
        with path.open("rb") as file:
            is_gzipped = file.read(2) == gzipped.MAGIC
            file.seek(0)
            if not is_gzipped:
                pieces = iter(lambda: file.read(_CHUNK), b"")
                return _gathered(pieces, path, most=status.st_size), False
            most = status.st_size * gzipped.MOST_RATIO
            return _gathered(gzipped.unzipped(file), path, most=most), True
    except FileNotFoundError as error:
        raise UnreadableFileError(path, "there is no such file", hint="check the path") from error
    except EOFError as error:
        raise UnreadableFileError(path, "it is cut short") from error
    except gzipped.DamagedGzipError as error:
        raise UnreadableFileError(path, "its bytes are damaged (checksum)") from error
    except MemoryError as error:
        raise _too_large(path) from error
    except OSError as error:
        raise UnreadableFileError(path, error.strerror or str(error)) from error


def _too_large(path: Path) -> UnreadableFileError:
    return UnreadableFileError(
        path,
        "there is not enough memory for it",
        hint="end other programs, or use a machine with more memory",
    )


def _gathered(pieces: Iterator[bytes], path: Path, *, most: int) -> bytes:
    """The first of some bytes, as many as the header in them claims; the others are passed over.

    Args:
        pieces: The bytes, in order.
        path: Their file, for messages.
        most: Bytes that there can be at most.
    """
    start = b""
    while len(start) < _HEADER_BYTES and (piece := next(pieces, b"")):
        start += piece
    header = _header(start, path)
    due = _bytes_due(header, path)
    if due > most:
        raise UnreadableFileError(
            path, f"its header claims {due:,} bytes, more than the file can hold"
        )
    shape = header.get_data_shape()
    if math.prod(shape) > MOST_VOXELS:
        raise UnreadableFileError(
            path,
            f"its header claims {times(shape)} voxels, which is no head scan",
            hint=f"brats reads up to {MOST_VOXELS:,} voxels, four volumes of 512 x 512 x 512",
        )
    kept, size = [start[:due]], len(start)
    for piece in pieces:
        if size < due:
            kept.append(piece[: due - size])
        size += len(piece)
        # Bytes behind the image are read for the sake of the checksum, but not without end.
        if size > 2 * due + _CHUNK:
            raise UnreadableFileError(path, f"it holds more than the {due:,} bytes it claims")
    if size < due:
        raise UnreadableFileError(path, "it is cut short, or its header is damaged")
    return b"".join(kept)


_HEADER_BYTES = nib.Nifti2Header.template_dtype.itemsize  # the larger of the two


def _header(content: bytes, path: Path) -> Any:
    """The header at the start of an image as it was written, with nothing repaired."""
    kind = _KINDS.get(content[:4])
    if kind is None:
        raise UnreadableFileError(
            path,
            "it is not a NIfTI file",
            hint="is it text, an archive or another format that was renamed?",
        )
    size = kind.template_dtype.itemsize
    if len(content) < size:
        raise UnreadableFileError(path, "it is cut short, or its header is damaged")
    try:
        return kind(content[:size], check=False)
    except _DAMAGED as error:
        raise UnreadableFileError(path, f"its header is damaged ({_short(error)})") from error


def _bytes_due(header: Any, path: Path) -> int:
    """Bytes from the start of the file to the end of the image, as the header claims them."""
    try:
        shape = [int(side) for side in header.get_data_shape()]
        start = max(int(header.get_data_offset()), header.template_dtype.itemsize)
        kind = header.get_data_dtype()
        itemsize = int(kind.itemsize)
    except _DAMAGED as error:
        raise UnreadableFileError(path, f"its header is damaged ({_short(error)})") from error
    if kind.kind not in "biuf":
        words = "colours" if kind.names else header.get_value_label("datatype")
        raise UnreadableFileError(
            path, f"its voxels are {words}, not numbers", hint="export it as a greyscale image"
        )
    if start > _MOST_BEFORE:
        raise UnreadableFileError(path, f"its header puts the voxels behind {start:,} bytes")
    if not 1 <= int(header["dim"][0]) <= 7 or min(shape) < 0 or not itemsize:
        raise UnreadableFileError(path, f"its header is damaged (dim {header['dim'].tolist()})")
    return int(start + math.prod(shape) * itemsize)


def _qform(header: Any) -> npt.NDArray[np.float64] | None:
    """The affine of the qform, or None if its numbers do not make one."""
    try:
        with np.errstate(all="ignore"):  # voxel sizes of a damaged header: infinite times 0
            qform = _finite(header.get_qform())
    except _DAMAGED:
        return None
    return qform if np.isfinite(qform).all() else None


def _finite(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """An affine in which lengths of a million kilometres are none, of which squares overflow."""
    return np.where(np.abs(affine) < 1e12, affine, np.nan)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:80]


# --- writing -----------------------------------------------------------------------------------


def write_image(
    path: Path,
    data: npt.NDArray[Any],
    grid: Grid,
    *,
    note: str = "",
    step: float = 1,
    overwrite: bool = False,
) -> None:
    """Write an image on a grid: its shape, affine, sform and qform codes and units.

    Args:
        path: Where to write.
        data: (X, Y, Z), or (X, Y, Z, C) for several maps.
        grid: Where its voxels lie.
        note: The header's description, at most 79 characters.
        step: What a stored value of 1 means; readers multiply by it (the header's slope).
        overwrite: Whether `path` may exist.

    Raises:
        ValueError: If the shapes differ.
        OutputExistsError: If `path` exists and `overwrite` is false.
        OutputError: If it cannot be written.
    """
    if data.shape[:3] != grid.shape:
        raise ValueError(f"an image {data.shape} does not fit the grid {grid.shape}")
    to_file = np.diag([1 / grid.unit_mm] * 3 + [1.0])
    affine = to_file @ grid.affine
    image = nib.Nifti1Image(data, affine)
    # Codes that NIfTI does not have mean a place, if they are above 0.
    sform, qform = (code if 0 <= code <= 5 else int(code > 0) for code in grid.codes)
    image.set_sform(affine, sform)
    has_qform = grid.qform is not None and replace(grid, affine=grid.qform).is_usable
    image.set_qform(to_file @ grid.qform if has_qform else affine, qform)
    image.header["xyzt_units"] = grid.units
    image.header["descrip"] = note.encode()
    if step != 1:
        image.header.set_slope_inter(step, 0)
    with whole_file(path, overwrite=overwrite) as partial:
        content = image.to_bytes()
        is_gzipped = path.suffix.lower() == ".gz"
        partial.write_bytes(gzipped.zipped(content) if is_gzipped else content)
