"""Synthetic cases: small, similar to BraTS, with tumours whose volumes are known by formula."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..images.grid import Grid, Mask
from ..images.nifti import write_image
from .labels import SCHEMES, write_labels

Field = npt.NDArray[np.float32]
"""One number per voxel, (X, Y, Z)."""

Coordinate = npt.NDArray[np.floating[Any]]
Vector = npt.NDArray[np.float64]

Tissues = npt.NDArray[np.uint8]
"""One index into `TISSUES` per voxel, (X, Y, Z)."""

SCHEME = SCHEMES["brats2023"]
"""Label scheme of the cases; BraTS-GLI cases on a grid like ours are taken as those of 2023."""

SHAPE = (80, 96, 72)
"""Voxels of 1 mm: a head at about half size, so that a network trains in a minute or two."""

TISSUES = ("background", "CSF", "GM", "WM", "vessel", "NCR", "ED", "ET")
_CSF, _GM, _WM, _VESSEL, _NCR, _ED, _ET = range(1, 8)

# Intensities of the tissues, relative to white matter in T1. The order of CSF, GM and WM in each
# sequence is that of textbooks; the tumour tissues are about where they are in real cases.
_CONTRAST: Mapping[str, tuple[float, ...]] = {
    "t1": (0, 0.35, 0.74, 1.0, 0.60, 0.50, 0.76, 0.78),
    "t1ce": (0, 0.36, 0.78, 1.0, 1.45, 0.48, 0.76, 1.75),
    "t2": (0, 2.30, 1.25, 0.9, 0.55, 2.05, 1.70, 1.40),
    "flair": (0, 0.30, 1.10, 0.9, 0.55, 0.95, 1.65, 1.40),
}
_SOLID_CORE: Mapping[str, float] = {"t1": 0.60, "t1ce": 0.62, "t2": 1.95, "flair": 1.30}
"""Core of a tumour that does not enhance: solid tissue, not necrosis, though both are NCR."""

_FILE_SUFFIX: Mapping[str, str] = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}

_MM_AND_SECONDS = 2 + 8  # NIfTI's codes

_SHRINK = 0.88
"""Length of the tumour's axes relative to those at the previous visit."""

_MARGIN_MM = 1.5
"""Minimum distance between the tumour and the surface of the brain."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """One synthetic visit.

    Attributes:
        images: int16 by modality (t1, t1ce, t2, flair), (X, Y, Z); 0 outside the brain and
            nowhere inside it.
        labels: uint8 in `SCHEME`, (X, Y, Z).
        tissues: What each voxel is.
        affine: As in BraTS: the axes point to left, posterior, superior; voxels of 1 mm.
        volumes_mm3: Of NCR, ED and ET by formula, not counted; 0 for what the tumour lacks.
    """

    images: Mapping[str, npt.NDArray[np.int16]]
    labels: npt.NDArray[np.uint8]
    tissues: Tissues
    affine: npt.NDArray[np.float64]
    volumes_mm3: Mapping[str, float]


@dataclass(frozen=True)
class PhantomCase:
    """A phantom on disk; the folder's name is the case's id."""

    folder: Path
    volumes_mm3: Mapping[str, float]


def write_phantoms(
    folder: Path,
    *,
    cases: int = 14,
    seed: int = 0,
    shape: tuple[int, int, int] = SHAPE,
    overwrite: bool = False,
) -> list[PhantomCase]:
    """Write synthetic cases named as in BraTS 2023, one folder per visit.

    Every third patient, beginning with the first, has two visits; the second patient's tumour
    does not enhance.

    Args:
        folder: Where the cases are written.
        cases: Number of cases (visits).
        seed: Random seed; the same seed gives the same cases.
        shape: Voxels of 1 mm along each axis, at least 32.
        overwrite: Replace files that exist.

    Raises:
        OutputExistsError: If a file exists and `overwrite` is false.
        OutputError: If the folder cannot be written to.
        ValueError: If an axis has fewer than 32 voxels.
    """
    visits = [(patient, visit) for patient in range(cases) for visit in range(_visits(patient))]
    written = []
    for patient, visit in visits[:cases]:
        phantom = make_phantom(
            1000 * seed + patient, visit=visit, shape=shape, enhancing=patient != 1
        )
        case_folder = folder / f"BraTS-GLI-{patient:05}-{visit:03}"
        _write(phantom, case_folder, overwrite=overwrite)
        written.append(PhantomCase(case_folder, phantom.volumes_mm3))
    return written


def make_phantom(
    seed: int,
    *,
    visit: int = 0,
    shape: tuple[int, int, int] = SHAPE,
    enhancing: bool = True,
) -> Phantom:
    """Generate a patient's brain and tumour, and their four images.

    Visits of one seed share brain and tumour. From one visit to the next, the tumour's axes
    shrink by the factor `_SHRINK`; noise, bias field and intensity scale are drawn again.

    Raises:
        ValueError: If `shape` has an axis below 32 voxels, too short for the anatomy.
    """
    if min(shape) < 32:
        raise ValueError(f"a phantom needs 32 voxels along each axis, not {shape}")
    patient = np.random.default_rng(seed)
    scanner = np.random.default_rng([seed, visit])
    depth, normal = _brain(patient, shape)
    tumour = _place_tumour(patient, depth, normal)
    tissues, distance = tumour.grow(normal, scale=_SHRINK**visit, enhancing=enhancing)
    strength = _edema_strength(patient, distance, normal)
    return Phantom(
        images={
            modality: _scan(scanner, modality, normal, tissues, strength, enhancing=enhancing)
            for modality in _CONTRAST
        },
        labels=_LABEL_OF[tissues],
        tissues=tissues,
        affine=_affine(shape),
        volumes_mm3=tumour.volumes_mm3(scale=_SHRINK**visit, enhancing=enhancing),
    )


_LABEL_OF = np.array(
    [{tissue: label for label, tissue in SCHEME.tissues.items()}.get(t, 0) for t in TISSUES],
    dtype=np.uint8,
)


def _visits(patient: int) -> int:
    return 2 if patient % 3 == 0 else 1


def _write(phantom: Phantom, folder: Path, *, overwrite: bool) -> None:
    x, y, z = phantom.labels.shape
    grid = Grid((x, y, z), phantom.affine, units=_MM_AND_SECONDS)
    for modality, data in phantom.images.items():
        path = folder / f"{folder.name}-{_FILE_SUFFIX[modality]}.nii.gz"
        write_image(path, data, grid, overwrite=overwrite)
    path = folder / f"{folder.name}-seg.nii.gz"
    write_labels(path, phantom.labels, grid, SCHEME, overwrite=overwrite)


def _affine(shape: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    """As BraTS's on its own grid, where the offset of 239 mm is the second axis's length."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[1, 3] = shape[1] - 1
    return affine


# The brain


def _brain(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Field, Tissues]:
    """A brain without a tumour.

    Returns:
        How far below the brain's surface a voxel lies, in millimetres, negative outside;
        and its tissue.
    """
    fraction = np.array([0.44, 0.45, 0.45]) * rng.uniform(0.94, 1.0, size=3)
    half_mm = (fraction * shape).astype(np.float32)
    # In units of the brain's semi-axes, slightly deformed, differently for each patient.
    x, y, z = (
        at / size + 0.03 * _smooth(rng, shape, wavelength_mm=60)
        for at, size in zip(_grid_mm(shape), half_mm, strict=True)
    )
    x = x / (1 + 0.12 * y)  # narrower in front
    z = z * np.where(z < 0, np.float32(1.25), np.float32(1))  # flatter below
    midline = np.exp(-((x * half_mm[0] / 1.5) ** 2)) * (z > 0)
    radius = np.sqrt(x**2 + y**2 + z**2) * (1 + 0.06 * midline)
    depth: Field = (1 - radius) * half_mm.mean()

    tissues = np.full(shape, _WM, dtype=np.uint8)
    folds = np.abs(_smooth(rng, shape, wavelength_mm=15))
    tissues[(depth < 3) | ((folds < 0.75) & (depth < 10))] = _GM
    tissues[_deep_grey(x, y, z)] = _GM
    tissues[(folds < 0.18) & (depth < 7) | (midline > 0.75) & (radius > 0.62)] = _CSF
    veins = _smooth(rng, shape, wavelength_mm=10) > 1
    tissues[(depth < 4) & (veins & (tissues == _CSF) | (midline > 0.6) & (y > 0.2))] = _VESSEL
    tissues[_ventricles(x, y, z, size=rng.uniform(0.8, 1.3))] = _CSF
    tissues[depth < 0] = 0
    return depth, tissues


def _deep_grey(x: Field, y: Field, z: Field) -> Mask:
    """Thalamus and putamen, on either side."""
    thalamus = _ellipsoid(np.abs(x) - 0.15, y - 0.14, z + 0.08, (0.11, 0.17, 0.14))
    putamen = _ellipsoid(np.abs(x) - 0.38 - 0.1 * y, y + 0.08, z + 0.05, (0.07, 0.24, 0.18))
    return thalamus | putamen


def _ventricles(x: Field, y: Field, z: Field, *, size: float) -> Mask:
    """The lateral ventricles, whose horns bend outwards and down, and the third."""
    outwards, down = 0.06 + 0.45 * y**2, 0.5 * y**2 - 0.18
    lateral = _ellipsoid(np.abs(x) - outwards, y, z + down, (0.09 * size, 0.5, 0.15 * size))
    third = _ellipsoid(x, y - 0.08, z + 0.05, (0.035 * size, 0.2, 0.16))
    return lateral | third


def _ellipsoid(x: Coordinate, y: Coordinate, z: Coordinate, half_axes: Sequence[float]) -> Mask:
    a, b, c = half_axes
    inside: Mask = (x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 <= 1
    return inside


# The tumour


@dataclass(frozen=True, eq=False)
class _Tumour:
    """Three nested balls in warped coordinates, which make them look like a tumour.

    Attributes:
        centre_mm: Of the whole tumour, before warping.
        turn: (3, 3), from millimetres to the tumour's axes in units of its semi-axes.
        waves: Directions and phases for `_bend`, (3, 3).
        core: The tumour core's centre in those coordinates and, fourth, its radius.
        necrosis: Likewise, inside the core. The whole tumour is the unit ball.
    """

    centre_mm: Vector
    turn: Vector
    waves: Vector
    core: Vector
    necrosis: Vector

    def grow(self, normal: Tissues, *, scale: float, enhancing: bool) -> tuple[Tissues, Field]:
        """Insert the tumour, every length multiplied by `scale`, into normal tissues.

        Returns:
            Tissues, in which all of the core is NCR where it does not enhance; and how far each
            voxel lies from the tumour's centre, 1 being its margin.
        """
        at = self.coordinates(_grid_mm(normal.shape)) / np.float32(scale)
        distance = _distance(at, np.array([0, 0, 0, 1]))
        tissues = normal.copy()
        tissues[distance <= 1] = _ED
        tissues[_distance(at, self.core) <= 1] = _ET if enhancing else _NCR
        tissues[_distance(at, self.necrosis) <= 1] = _NCR
        return tissues, distance

    def volumes_mm3(self, *, scale: float, enhancing: bool) -> dict[str, float]:
        """Of NCR, ED and ET: differences of the balls' volumes, 4/3 pi a b c each."""
        unit_mm3 = scale**3 / abs(float(np.linalg.det(self.turn)))
        whole, core, necrosis = (
            4 / 3 * math.pi * float(radius) ** 3 * unit_mm3
            for radius in (1, self.core[3], self.necrosis[3])
        )
        if not enhancing:
            necrosis = core
        return {"NCR": necrosis, "ED": whole - core, "ET": core - necrosis}

    def coordinates(self, grid_mm: Sequence[Field]) -> Field:
        """The tumour's coordinates of the voxels of a grid, (3, X, Y, Z)."""
        x, y, z = (at - c for at, c in zip(grid_mm, self.centre_mm, strict=True))
        straight = [row[0] * x + row[1] * y + row[2] * z for row in self.turn]
        return _bend(np.stack(straight).astype(np.float32), self.waves)


def _bend(at: Field, waves: Vector) -> Field:
    """Warp: shift each coordinate in turn by waves of the other two.

    Such a shear preserves volumes (the determinant of its Jacobian is 1), so the formula for
    ellipsoids holds for the resulting shape.
    """
    for axis, (along, phase, fine_phase) in enumerate(waves.astype(np.float32)):
        first, second = at[axis - 1], at[axis - 2]
        across = np.cos(along) * first + np.sin(along) * second
        at[axis] += 0.18 * np.sin(2.5 * across + phase) + 0.08 * np.sin(6 * first + fine_phase)
    return at


def _distance(at: Field, ball: Vector) -> Field:
    """Distance of each of the coordinates from a ball's centre, in units of its radius."""
    x, y, z = (axis - c for axis, c in zip(at, ball[:3].astype(np.float32), strict=True))
    distance: Field = np.sqrt(x**2 + y**2 + z**2) / np.float32(ball[3])
    return distance


def _place_tumour(rng: np.random.Generator, depth: Field, normal: Tissues) -> _Tumour:
    """A random tumour within the brain; a smaller one if none of the size drawn fits."""
    longest_mm = min(depth.shape) * rng.uniform(0.22, 0.30)
    while True:
        deep = np.argwhere(depth > 0.8 * min(longest_mm, float(depth.max())))
        tumour = _any_tumour(rng, longest_mm, rng.choice(deep) - (np.array(depth.shape) - 1) / 2)
        # Every fourth voxel along each axis shows most misfits quickly.
        if all(_lies_within(tumour, depth, normal, step=step) for step in (4, 1)):
            return tumour
        longest_mm *= 0.98


def _any_tumour(rng: np.random.Generator, longest_mm: float, centre_mm: Vector) -> _Tumour:
    """An irregular tumour with a core and a necrosis that are not concentric."""
    half_axes_mm = longest_mm * rng.uniform(0.75, 1.0, size=3)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    core_radius = rng.uniform(0.55, 0.68)
    necrosis_radius = core_radius * rng.uniform(0.55, 0.75)
    aside = _direction(rng) * rng.uniform(0, 0.8) * (1 - core_radius)
    further = _direction(rng) * rng.uniform(0, 0.5) * (core_radius - necrosis_radius)
    return _Tumour(
        centre_mm=centre_mm,
        turn=rotation / half_axes_mm[:, None],
        waves=rng.uniform(0, 2 * math.pi, size=(3, 3)),
        core=np.append(aside, core_radius),
        necrosis=np.append(aside + further, necrosis_radius),
    )


def _direction(rng: np.random.Generator) -> Vector:
    vector = rng.normal(size=3)
    direction: Vector = vector / np.linalg.norm(vector)
    return direction


def _lies_within(tumour: _Tumour, depth: Field, normal: Tissues, *, step: int) -> bool:
    """Whether all of the tumour is in the brain and little of it in the ventricles."""
    every = (slice(None, None, step),) * 3
    grid_mm = [at[every] for at in _grid_mm(depth.shape)]
    inside = _distance(tumour.coordinates(grid_mm), np.array([0, 0, 0, 1])) <= 1
    in_csf = (normal[every][inside] == _CSF).sum()
    return bool((depth[every][inside] > _MARGIN_MM).all() and in_csf <= 0.1 * inside.sum())


# The scanner


def _edema_strength(rng: np.random.Generator, distance: Field, normal: Tissues) -> Field:
    """Strength of the edema's contrast, 0 to 1: full at the core, less at the margin, patchy.

    Grey matter takes up less of it than white matter.
    """
    patches = 0.15 * _smooth(rng, normal.shape, wavelength_mm=12)
    strength = np.clip(1.2 - 0.55 * distance**2 + patches, 0.4, 1)
    return np.where(normal == _GM, 0.7 * strength, strength).astype(np.float32)


def _scan(
    rng: np.random.Generator,
    modality: str,
    normal: Tissues,
    tissues: Tissues,
    strength: Field,
    *,
    enhancing: bool,
) -> npt.NDArray[np.int16]:
    """One sequence: contrast, partial volume, bias field, Rician noise, a scale of its own."""
    contrast = np.array(_CONTRAST[modality], dtype=np.float32)
    if not enhancing:
        contrast[_NCR] = _SOLID_CORE[modality]
    contrast *= rng.uniform(0.95, 1.05, size=len(contrast)).astype(np.float32)
    # Edema lies in grey and white matter; it has displaced fluid and vessels.
    soaked = contrast[np.where((normal == _GM) | (normal == _WM), normal, _WM)]
    soaked += strength * (contrast[_ED] - soaked)
    signal = ndimage.gaussian_filter(np.where(tissues == _ED, soaked, contrast[tissues]), sigma=0.6)
    signal *= np.exp(0.12 * _smooth(rng, normal.shape, wavelength_mm=120))
    real, imaginary = 0.05 * rng.standard_normal((2, *normal.shape), dtype=np.float32)
    magnitude = np.hypot(signal + real, imaginary)
    scale = math.exp(rng.uniform(math.log(300), math.log(3000)))
    # From 1 on, so that zero always means outside the brain.
    counts = np.clip(scale * magnitude, 1, np.iinfo(np.int16).max)
    return np.where(tissues > 0, counts, 0).astype(np.int16)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], *, wavelength_mm: float) -> Field:
    """Random field, mean about 0 and standard deviation 1, that varies over `wavelength_mm`.

    A sum of cosines with random weights: whatever the wavelength, three small matrix products.
    """
    counts = [min(n, math.ceil(4 * n / wavelength_mm)) for n in shape]
    cosines = [
        np.cos(np.pi * np.outer(np.arange(m), (np.arange(n) + 0.5) / n))
        for m, n in zip(counts, shape, strict=True)
    ]
    per_mm = [np.arange(m) / (2 * n) for m, n in zip(counts, shape, strict=True)]
    x, y, z = np.meshgrid(*per_mm, indexing="ij", sparse=True)
    waves = np.sqrt(x**2 + y**2 + z**2) * wavelength_mm
    weights = rng.normal(size=counts) * np.exp(-2 * (waves - 1) ** 2)
    weights[0, 0, 0] = 0
    field: Any = np.einsum("abc,ai,bj,ck->ijk", weights, *cosines, optimize=True)
    smooth: Field = (field / field.std()).astype(np.float32)
    return smooth


def _grid_mm(shape: tuple[int, ...]) -> list[Field]:
    """Coordinates of the voxels along each axis from the middle of the grid, broadcastable."""
    axes = [np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in shape]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))
