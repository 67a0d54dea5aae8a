"""Where voxels lie in space, and images on such grids: corners, boxes, and which grids are one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from ..errors import BratsWarning, GridMismatchError

Affine = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Box = tuple[slice, slice, slice]

SAME_GRID_MM = 0.01
"""Corners no farther apart than this are the same point: headers are float32."""

MILLIMETRES = 2
"""NIfTI's code of the unit of length; 0 is unknown, 1 metres, 3 micrometres."""

MILLIMETRES_IN = {1: 1000.0, 3: 0.001}
"""By NIfTI's code of the unit: metres and micrometres."""

_SPACING_LIMITS_MM = (0.15, 20.0)
_LARGEST_SIDE_MM = 0.35
"""Voxels with a side outside of the limits, or with no side as large as this, are no head scan's:
metres, centimetres or micrometres taken for millimetres. (A head of 2 mm voxels in centimetres
has voxels of 0.2.)"""


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Size of a voxel along each array axis, in the unit of the affine."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(x), float(y), float(z)


@dataclass(frozen=True, eq=False)
class Grid:
    """A voxel grid in space.

    Attributes:
        shape: Voxels along each axis, (X, Y, Z).
        affine: (4, 4), from voxel indices to millimetres in RAS+.
        codes: NIfTI's sform and qform codes, which name the space that `affine` leads to.
        qform: The affine of the qform where the header has one, (4, 4); else None.
        units: NIfTI's code of the units of length (the lowest three bits) and time.
        unit_mm: What a length of 1 in the file was taken for, in millimetres; files written on
            this grid have its numbers again.
    """

    shape: tuple[int, int, int]
    affine: Affine
    codes: tuple[int, int] = (1, 1)
    qform: Affine | None = None
    units: int = MILLIMETRES
    unit_mm: float = 1.0

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along each array axis."""
        return spacing_of(self.affine)

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.spacing_mm))

    @property
    def determinant(self) -> float:
        """How much the affine stretches space, negative if it mirrors; 0 if it is not finite."""
        return float(np.linalg.det(self.affine[:3, :3])) if np.isfinite(self.affine).all() else 0.0

    @property
    def is_usable(self) -> bool:
        """Whether the affine is finite and leaves space its three dimensions."""
        return abs(self.determinant) > 1e-12

    @property
    def is_plausible(self) -> bool:
        """Whether its voxels are of the size of a head scan's."""
        low, high = _SPACING_LIMITS_MM
        return low <= min(self.spacing_mm) and _LARGEST_SIDE_MM <= max(self.spacing_mm) <= high

    def in_millimetres(self) -> Grid:
        """The grid, scaled if the unit in its header explains why its voxels are not plausible."""
        unit = MILLIMETRES_IN.get(self.units & 7, 1.0)
        if unit == 1 or self.is_plausible:
            return self
        scale = np.diag([unit, unit, unit, 1.0])
        qform = None if self.qform is None else scale @ self.qform
        return replace(self, affine=scale @ self.affine, qform=qform, unit_mm=unit)

    @property
    def is_lost(self) -> bool:
        """Whether the header says nothing: the identity, or no code that gives it a meaning.

        What has the identity in the axes of ITK or FSL has it in NIfTI's with signs.
        """
        return bool(max(self.codes) <= 0 or np.array_equal(np.abs(self.affine), np.eye(4)))

    def distance_mm(self, other: Grid) -> float:
        """Largest distance between corresponding corners of two grids of one shape."""
        offsets = (_UNIT_CORNERS * self._last) @ (self.affine - other.affine).T
        return float(np.linalg.norm(offsets[:, :3], axis=1).max())

    def centre_mm(self, mask: Mask) -> npt.NDArray[np.float64]:
        """The mean of the centres of a mask's voxels, (3,), in RAS+ millimetres."""
        size = np.count_nonzero(mask)
        # Sums by slice: where each voxel lies is not asked.
        centre = [
            mask.sum(axis=tuple(other for other in range(3) if other != axis))
            @ np.arange(length)
            / size
            for axis, length in enumerate(mask.shape)
        ]
        found: npt.NDArray[np.float64] = self.affine[:3, :3] @ centre + self.affine[:3, 3]
        return found

    def crop(self, box: Box) -> Grid:
        """The grid of what `box` cuts out."""
        shape = [len(range(*side.indices(n))) for side, n in zip(box, self.shape, strict=True)]
        shift = translation([side.indices(n)[0] for side, n in zip(box, self.shape, strict=True)])
        qform = None if self.qform is None else self.qform @ shift
        return replace(
            self, shape=(shape[0], shape[1], shape[2]), affine=self.affine @ shift, qform=qform
        )

    @property
    def _last(self) -> npt.NDArray[np.float64]:
        return np.array([*(np.array(self.shape) - 1), 1.0])


_UNIT_CORNERS = np.array([[*corner, 1.0] for corner in product((0, 1), repeat=3)])


@dataclass(frozen=True, eq=False)
class Volume:
    """An image on a grid.

    Attributes:
        data: (X, Y, Z), or (X, Y, Z, C) for several channels.
        grid: Where its voxels lie.
        path: The file it was read from.
        header: That file's NIfTI header as it was written, nothing repaired; None if made here.
        gzipped: Whether the file's bytes were gzipped, whatever its name says.
    """

    data: npt.NDArray[Any]
    grid: Grid
    path: Path = Path()
    header: Any = None
    gzipped: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis, (X, Y, Z)."""
        return self.grid.shape

    @property
    def affine(self) -> Affine:
        """That of the grid, (4, 4)."""
        return self.grid.affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along each array axis."""
        return self.grid.spacing_mm

    @property
    def note(self) -> str:
        """What the header's description says, where there is one."""
        written = b"" if self.header is None else bytes(self.header["descrip"])
        return written.decode("latin-1").rstrip("\0")

    @property
    def is_blank(self) -> bool:
        """Whether all voxels have one value, as many write it where a sequence is missing.

        The value of a single voxel says nothing, unless it is 0.
        """
        if self.data.size < 2:
            return not self.data.any()
        return bool((self.data == self.data.flat[0]).all())

    @cached_property
    def values(self) -> npt.NDArray[Any]:
        """The voxels in their order in memory, flat and without a copy."""
        return self.data.ravel("K")

    @cached_property
    def foreground(self) -> npt.NDArray[Any]:
        """The voxels that are finite and not 0, (n,)."""
        chosen: npt.NDArray[Any] = self.values[self.values != 0]
        return chosen[np.isfinite(chosen)] if chosen.dtype.kind == "f" else chosen

    def channel(self, number: int) -> Volume:
        """One channel of (X, Y, Z, C)."""
        return replace(self, data=self.data[..., number])


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
        lost = [volume.path for volume in (other, first) if volume.grid.is_lost]
        apart = first.grid.distance_mm(other.grid)
        if not apart <= half_a_voxel:  # NaN in an affine must fail too
            raise GridMismatchError(
                first.path, other.path, f"corners {apart:.3g} mm apart", lost=lost
            )
        if apart > SAME_GRID_MM:
            warnings.warn(
                f"{other.path} is {apart:.3g} mm off the grid of {first.path}, less than half a "
                "voxel: taken as the same grid",
                BratsWarning,
                stacklevel=2,
            )


def on_one_grid(first: Volume, second: Volume) -> tuple[Volume, Volume]:
    """Two label maps on one grid, where their voxels coincide though they are stored otherwise.

    One that was cropped, or whose axes run in another order, is padded and turned, which is
    exact: nothing is resampled, and no label is lost.

    Raises:
        GridMismatchError: As `require_same_grid`, if the voxels do not coincide.
    """
    if second.shape != first.shape or first.grid.distance_mm(second.grid) > SAME_GRID_MM:
        for one, other in ((second, first), (first, second)):
            moved = _stored_on(one, other.grid)
            if moved is not None:
                return (first, moved) if one is second else (moved, second)
    require_same_grid([first, second])
    return first, second


def _stored_on(volume: Volume, grid: Grid) -> Volume | None:
    """`volume` turned, padded and cropped onto `grid`; None if that would not keep it as it is."""
    # From indices of `grid` to its own.
    whole = np.rint(np.linalg.solve(volume.affine, grid.affine))
    if not is_turn(whole):
        return None
    off = (_UNIT_CORNERS * volume.grid._last) @ (
        grid.affine @ np.linalg.inv(whole) - volume.affine
    ).T
    if np.linalg.norm(off[:, :3], axis=1).max() > SAME_GRID_MM:
        return None
    moved, shared = copied(volume.data, whole, grid.shape)
    turned = np.abs(whole[:3, :3]).T @ volume.shape
    if (shared < np.minimum(turned, grid.shape)).any():
        return None  # moved, not cropped or padded: one of the headers is wrong
    if np.count_nonzero(moved) != np.count_nonzero(volume.data):
        return None
    return replace(volume, data=moved, grid=grid)


def is_turn(steps: Affine) -> bool:
    """Whether whole numbers, (4, 4), permute and flip axes, beside a shift."""
    size = np.abs(steps[:3, :3])
    return bool((size.sum(axis=0) == 1).all() and (size.sum(axis=1) == 1).all())


def copied(
    values: npt.NDArray[Any], steps: Affine, shape: tuple[int, ...]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int_]]:
    """Values on a grid that differs from theirs by flips, permutations and whole shifts.

    Args:
        values: (X, Y, Z).
        steps: From the new grid's indices to those of `values`; see `is_turn`.
        shape: Of the new grid.

    Returns:
        The values on the new grid, 0 where they have none, and how many voxels the two grids share
        along each axis of the new one.

    >>> steps = np.array([[-1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    >>> copied(np.array([4, 5, 6]).reshape(3, 1, 1), steps, (4, 1, 1))[0].ravel().tolist()
    [6, 5, 4, 0]
    """
    axes = np.abs(steps[:3, :3]).argmax(axis=0)  # of the values, for each of the new grid
    turned = values.transpose(tuple(axes))
    there, here = [], []
    for axis, (size, length) in enumerate(zip(shape, turned.shape, strict=True)):
        start = int(steps[axes[axis], 3])
        if steps[axes[axis], axis] < 0:
            turned = np.flip(turned, axis)
            start = length - 1 - start
        # The new grid's voxel t holds value start + t.
        first = max(0, -start)
        last = max(first, min(size, length - start))
        there.append(slice(first, last))
        here.append(slice(first + start, last + start))
    found = np.zeros(shape, values.dtype)
    found[tuple(there)] = turned[tuple(here)]
    return found, np.array([side.stop - side.start for side in there])


def bounding_box(mask: Mask, *, margin: int = 0) -> Box:
    """Smallest box around the true voxels of a mask, grown by `margin` voxels within the grid.

    The box of an empty mask is empty.

    >>> bounding_box(np.array([[[0, 1, 0], [0, 1, 1]]], dtype=bool))
    (slice(0, 1, None), slice(0, 2, None), slice(1, 3, None))
    """
    sides = [slice(0, 0)] * 3
    inside = mask
    # The axis with the largest steps in memory first: what follows looks at ever less of it.
    for axis in sorted(range(3), key=lambda axis: -abs(mask.strides[axis])):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(inside.any(axis=others))
        if not found.size:
            return slice(0, 0), slice(0, 0), slice(0, 0)
        first, last = int(found[0]), int(found[-1]) + 1
        sides[axis] = slice(max(first - margin, 0), min(last + margin, mask.shape[axis]))
        inside = inside[(slice(None),) * axis + (slice(first, last),)]
    return sides[0], sides[1], sides[2]


def to_canonical(
    images: Sequence[npt.NDArray[Any]], affine: Affine, axes: str = "RAS"
) -> tuple[list[npt.NDArray[Any]], Affine]:
    """Views of images (X, Y, Z) of one grid whose axes run, most nearly, in given directions.

    Args:
        images: The images.
        affine: Their affine.
        axes: Right or Left, Anterior or Posterior, Superior or Inferior, in any order.

    Returns:
        The views, and their affine.
    """
    present = nib.orientations.io_orientation(affine)
    wanted = nib.orientations.axcodes2ornt(tuple(axes))
    change = nib.orientations.ornt_transform(present, wanted)
    turned = [nib.orientations.apply_orientation(image, change) for image in images]
    return turned, affine @ nib.orientations.inv_ornt_aff(change, images[0].shape)


def translation(offset: Sequence[float] | npt.NDArray[Any]) -> Affine:
    """The affine that moves by `offset`.

    >>> translation([1, 2, 3])[:3, 3].tolist()
    [1.0, 2.0, 3.0]
    """
    affine = np.eye(4)
    affine[:3, 3] = offset
    return affine


def times(shape: Sequence[int]) -> str:
    """A shape as people write it.

    >>> times((240, 240, 155))
    '240 x 240 x 155'
    """
    return " x ".join(map(str, shape))
