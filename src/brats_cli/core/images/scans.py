"""One image file as it lies on disk, before anything is mended: bytes, raw header, voxels."""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from ..errors import UnreadableFileError

Affine = npt.NDArray[np.float64]

_DAMAGED = (
    ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, OverflowError,
    MemoryError,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scan:
    """An image file with its header as it was written.

    Attributes:
        path: Where it is.
        header: The raw header; nibabel's own loading would mend voxel sizes silently.
        affine: As nibabel takes it: from the sform, else from the qform, else from voxel sizes.
        data: Voxels in the type on disk, trailing axes of length 1 dropped.
        gzipped: Whether the bytes are gzipped, whatever the name says.
    """

    path: Path
    header: Any
    affine: Affine
    data: npt.NDArray[Any]
    gzipped: bool

    @property
    def codes(self) -> tuple[int, int]:
        """The sform and the qform code."""
        return int(self.header["sform_code"]), int(self.header["qform_code"])

    @property
    def unit(self) -> int:
        """NIfTI's code of the unit of length: 0 unknown, 1 m, 2 mm, 3 micrometres."""
        return int(self.header["xyzt_units"]) & 7

    @property
    def pixdim(self) -> npt.NDArray[np.float64]:
        """The voxel sizes as written, (3,), in whatever unit the header says."""
        sizes: npt.NDArray[np.float64] = np.asarray(self.header["pixdim"][1:4], dtype=float)
        return sizes

    @cached_property
    def spacing_mm(self) -> npt.NDArray[np.float64]:
        """The voxel sizes by the affine, (3,)."""
        columns: npt.NDArray[np.float64] = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return columns

    @property
    def qform(self) -> Affine | None:
        """The affine of the qform, or None if its numbers make none."""
        try:
            qform: Affine = self.header.get_qform()
        except (ValueError, HeaderDataError):
            return None
        return qform

    def channel(self, number: int) -> Scan:
        """One channel of a 4D file."""
        return Scan(self.path, self.header, self.affine, self.data[..., number], self.gzipped)

    @cached_property
    def values(self) -> npt.NDArray[Any]:
        """The voxels in their order on disk, (X * Y * Z,), without a copy."""
        return self.data.ravel("K")

    @cached_property
    def foreground(self) -> npt.NDArray[Any]:
        """The voxels that are finite and not 0, (n,)."""
        chosen: npt.NDArray[Any] = self.values[self.values != 0]
        return chosen[np.isfinite(chosen)] if chosen.dtype.kind == "f" else chosen


def read_scan(path: Path) -> Scan:
    """Read a file whole, with gzip's checksum checked and its name not believed.

    Raises:
        UnreadableFileError: Saying which way it is damaged.
    """
    raw, gzipped = _unzipped(path)
    kind = nib.Nifti2Image if raw[:4] in _NIFTI2_STARTS else nib.Nifti1Image
    if raw[:4] not in (*_NIFTI1_STARTS, *_NIFTI2_STARTS):
        raise UnreadableFileError(
            path, "it is not a NIfTI file", hint="is it text, or another format that was renamed?"
        )
    try:
        with LoggingOutputSuppressor():
            image = kind.from_bytes(raw)
            header = kind.header_class.from_fileobj(io.BytesIO(raw), check=False)
    except _DAMAGED as error:
        raise UnreadableFileError(path, f"its header is damaged ({_short(error)})") from error
    try:
        data = np.asanyarray(image.dataobj)
    except _DAMAGED as error:
        raise UnreadableFileError(path, "it is cut short, or its header is damaged") from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    return Scan(path, header, np.asarray(image.affine, dtype=float), data, gzipped)


_NIFTI1_STARTS = tuple((348).to_bytes(4, order) for order in ("little", "big"))
_NIFTI2_STARTS = tuple((540).to_bytes(4, order) for order in ("little", "big"))


def _unzipped(path: Path) -> tuple[bytes, bool]:
    """The bytes of a file, unzipped if they are zipped, and whether they were."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(path, error.strerror or str(error)) from error
    if not raw:
        raise UnreadableFileError(path, "it is empty (0 bytes)")
    if raw[:2] != b"\x1f\x8b":
        return raw, False
    try:
        return gzip.decompress(raw), True
    except EOFError as error:
        raise UnreadableFileError(path, "it is cut short") from error
    except (OSError, zlib.error) as error:
        raise UnreadableFileError(path, "its bytes are damaged (checksum)") from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:80]
