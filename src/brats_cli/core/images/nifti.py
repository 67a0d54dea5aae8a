"""NIfTI in and out: arrays with their affine, and what counts as the same grid."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.spatialimages import HeaderDataError

from ..data.labels import SCHEMES, LabelScheme
from ..errors import BratsWarning, GridMismatchError, LabelError, UnreadableFileError
from ..writing import whole_file

NIFTI_ENDINGS = (".nii.gz", ".nii")

SAME_GRID_MM = 0.01
"""Corners no farther apart than this are the same point: headers are float32."""

_UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError)


@dataclass(frozen=True, eq=False)
class Volume:
    """An image on a voxel grid in space.

    Attributes:
        data: (X, Y, Z), or (X, Y, Z, C) for several channels.
        affine: (4, 4), from voxel indices to millimetres in RAS+.
        header: The NIfTI header read with it (codes, units, description), if any.
        path: Where it was read.
    """

    data: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    header: Any = None
    path: Path = Path()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis, (X, Y, Z)."""
        x, y, z = self.data.shape[:3]
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along each array axis."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)

    @property
    def scheme(self) -> LabelScheme | None:
        """The label scheme noted in the header, as `write_label_map` does, or None."""
        description = bytes(self.header["descrip"]).decode("latin-1") if self.header else ""
        noted = re.search(r"labels=(\S+)", description.rstrip("\0"))
        return SCHEMES.get(noted[1]) if noted else None


def stem(path: Path) -> str:
    """File name without `.nii` or `.nii.gz`."""
    for ending in NIFTI_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def is_nifti(path: Path) -> bool:
    """Whether the file's name ends as a NIfTI file's does."""
    return path.name.lower().endswith(NIFTI_ENDINGS)


def shape_on_disk(path: Path) -> tuple[int, ...] | None:
    """Shape of the image from its first bytes alone, or None if it is no NIfTI-1 file.

    Some thirty times as fast as loading it, for folders of thousands.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4096)
        if start[:2] == b"\x1f\x8b":
            start = zlib.decompressobj(wbits=31).decompress(start, 348)
    except (OSError, zlib.error):
        return None
    for order in "<>":
        if start[:4] == struct.pack(f"{order}i", 348) and len(start) >= 56:
            dimensions, *shape = struct.unpack(f"{order}8h", start[40:56])
            return tuple(shape[:dimensions]) if 0 < dimensions < 8 else None
    return None


def read_volume(path: Path, *, dtype: npt.DTypeLike = np.float32) -> Volume:
    """Read an image as `dtype`, whatever its type on disk.

    Raises:
        UnreadableFileError: If it is missing, is not NIfTI or is cut short.
    """
    image = _open(path)
    try:
        data = np.asanyarray(image.dataobj).astype(dtype, copy=False)
    except _UNREADABLE as error:
        raise UnreadableFileError(path, "the image data are cut short or damaged") from error
    return Volume(data, image.affine, image.header, path)


def read_channel(path: Path, channel: int | None) -> Volume:
    """Read one 3D image, or one channel of a 4D file, as float32.

    Raises:
        UnreadableFileError: If the file does not have the dimensions asked for.
    """
    image = _open(path)
    expected = 3 if channel is None else 4
    shape = image.shape
    while len(shape) > expected and shape[-1] == 1:  # some tools write (X, Y, Z, 1)
        shape = shape[:-1]
    if len(shape) != expected:
        raise UnreadableFileError(
            path,
            f"it has {len(shape)} dimensions {tuple(image.shape)} where {expected} are due",
            hint="give a 3D file for each modality, or one 4D file in the order "
            "FLAIR, T1, T1ce, T2",
        )
    if channel is None:
        volume = read_volume(path)
        return Volume(volume.data.reshape(shape), volume.affine, volume.header, path)
    if channel >= shape[3]:
        raise UnreadableFileError(
            path, f"it has {shape[3]} channels, too few", hint="a 4D file holds FLAIR, T1, T1ce, T2"
        )
    try:
        data = np.asarray(image.dataobj[..., channel], dtype=np.float32)
    except _UNREADABLE as error:
        raise UnreadableFileError(path, "the image data are cut short or damaged") from error
    return Volume(data, image.affine, image.header, path)


def read_label_map(path: Path) -> Volume:
    """Read a label map as uint8; files that store whole numbers as floats are fine.

    Raises:
        UnreadableFileError: If it is missing, is not NIfTI or is not 3D.
        LabelError: If a value is not a whole number from 0 to 255 (2.9999 is not a label).
    """
    image = _open(path)
    data = _stored(image, path)
    labels = _whole_numbers(data, path)
    return Volume(labels, image.affine, image.header, path)


@dataclass(frozen=True)
class LabelCount:
    """How many voxels of each value a label map holds.

    Attributes:
        voxels: By value, in rising order of value.
        voxel_mm3: Size of a voxel.
        scheme: The label scheme noted in the header, if any.
    """

    voxels: Mapping[int, int]
    voxel_mm3: float
    scheme: LabelScheme | None


def count_labels(path: Path) -> LabelCount:
    """Count a label map's voxels by value, several times as fast as reading it in full.

    Raises:
        UnreadableFileError: As `read_label_map`.
        LabelError: As `read_label_map`.
    """
    image = _open(path)
    data = _stored(image, path)
    # A hundredth of the voxels; `ravel` keeps the order on disk, which is ten times as fast.
    flat = data.ravel("K")
    foreground = _whole_numbers(flat[flat != 0], path)
    counts = np.bincount(foreground, minlength=1)
    counts[0] = flat.size - foreground.size
    volume = Volume(data, image.affine, image.header, path)
    voxels = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    return LabelCount(voxels, float(np.prod(volume.spacing_mm)), volume.scheme)


def _stored(image: Any, path: Path) -> npt.NDArray[Any]:
    """The values of a 3D image in the type they have on disk."""
    try:
        data: npt.NDArray[Any] = np.asanyarray(image.dataobj)
    except _UNREADABLE as error:
        raise UnreadableFileError(path, "the image data are cut short or damaged") from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise UnreadableFileError(
            path,
            f"it has {data.ndim} dimensions {tuple(data.shape)} where 3 are due",
            hint="a label map is a 3D file with one whole number a voxel",
        )
    return data


def _whole_numbers(data: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
    if data.dtype == np.uint8:
        return data
    with np.errstate(invalid="ignore"):
        labels = data.astype(np.uint8)
    wrong = labels != data
    if wrong.any():
        raise LabelError(
            f"{path} holds {data[wrong][0]:g}, which is not a label (a whole number 0-255)",
            hint="is it an MR image or a probability map, not a label map?",
        )
    return labels


def write_label_map(
    path: Path,
    labels: npt.NDArray[np.integer],
    like: Volume,
    scheme: LabelScheme,
    *,
    overwrite: bool = False,
) -> None:
    """Write labels as uint8 on the grid of `like`: its shape, affine, and sform and qform codes.

    The scheme's name goes into the header's description, so that later steps need no flag.

    Raises:
        ValueError: If the shapes differ.
        OutputExistsError: If `path` exists and `overwrite` is false.
        OutputError: If it cannot be written.
    """
    note = f"brats labels={scheme.name}"
    write_maps(path, labels.astype(np.uint8), like, note, overwrite=overwrite)


def write_maps(
    path: Path,
    values: npt.NDArray[np.integer],
    like: Volume,
    note: str,
    *,
    step: float = 1,
    overwrite: bool = False,
) -> None:
    """Write whole numbers on the grid of `like`: its shape, affine, and sform and qform codes.

    Args:
        path: Where to write.
        values: (X, Y, Z), or (X, Y, Z, C) for several maps.
        like: Whose grid to take.
        note: The header's description, at most 79 characters.
        step: What a value of 1 means; readers multiply by it (the header's slope).
        overwrite: Whether `path` may exist.

    Raises:
        ValueError: If the shapes differ.
        OutputExistsError: If `path` exists and `overwrite` is false.
        OutputError: If it cannot be written.
    """
    if values.shape[:3] != like.shape:
        raise ValueError(f"maps {values.shape} do not fit the grid {like.shape}")
    image = nib.Nifti1Image(values, like.affine)
    if like.header is not None:
        image.set_sform(like.header.get_sform(), int(like.header["sform_code"]))
        image.set_qform(like.header.get_qform(), int(like.header["qform_code"]))
        image.header.set_xyzt_units(*like.header.get_xyzt_units())
    image.header["descrip"] = note.encode()
    if step != 1:
        image.header.set_slope_inter(step, 0)
    with whole_file(path, overwrite=overwrite) as partial:
        nib.save(image, partial)


def require_same_grid(volumes: Sequence[Volume]) -> None:
    """Check that all volumes lie on the grid of the first.

    Corners within `SAME_GRID_MM` are the same; up to half a voxel apart is taken for a header
    written with few digits and warned about, as the voxels still correspond one to one.

    Raises:
        GridMismatchError: Naming the first file that differs, and by how much.
    """
    first = volumes[0]
    half_a_voxel = min(first.spacing_mm) / 2
    for other in volumes[1:]:
        if other.shape != first.shape:
            difference = f"{times(other.shape)} voxels, not {times(first.shape)}"
            raise GridMismatchError(first.path, other.path, difference)
        apart = corner_distance_mm(first, other)
        if not apart <= half_a_voxel:  # NaN in an affine must fail too
            raise GridMismatchError(first.path, other.path, f"corners {apart:.3g} mm apart")
        if apart > SAME_GRID_MM:
            warnings.warn(
                f"{other.path} is {apart:.3g} mm off the grid of {first.path}, less than half a "
                "voxel: taken as the same grid",
                BratsWarning,
                stacklevel=2,
            )


def corner_distance_mm(first: Volume, second: Volume) -> float:
    """Largest distance between corresponding corners of two grids of one shape."""
    corners = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * np.array(
        [*(np.array(first.shape) - 1), 1.0]
    )
    offsets = corners @ (first.affine - second.affine).T
    return float(np.linalg.norm(offsets[:, :3], axis=1).max())


def times(shape: tuple[int, ...]) -> str:
    """A shape as people write it: `240 x 240 x 155`."""
    return " x ".join(map(str, shape))


def _open(path: Path) -> Any:
    """The image at `path` with its data still on disk."""
    if not path.exists():
        raise UnreadableFileError(path, "there is no such file", hint="check the path")
    try:
        # nibabel logs what it mends in a header; `brats check` says it with the file's name.
        with LoggingOutputSuppressor():
            image = nib.load(path)
    except _UNREADABLE as error:
        raise UnreadableFileError(
            path, "it is not a NIfTI file", hint="is it text, or an archive that was renamed?"
        ) from error
    if not isinstance(image, nib.Nifti1Image | nib.Nifti2Image):
        raise UnreadableFileError(path, "it is not a NIfTI file", hint="convert it to .nii.gz")
    return image
