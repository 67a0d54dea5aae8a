"""What is shown of a case: scans, masks and maps on one upright grid, with volumes and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..compute.machine import available_cpus
from ..data.cases import Case, read_images
from ..data.labels import LabelScheme
from ..data.meaning import Known, known_of, values_in
from ..data.naming import MODALITIES
from ..errors import CaseError, UnreadableFileError
from ..images.grid import (
    Affine,
    Box,
    Mask,
    Volume,
    bounding_box,
    require_same_grid,
    spacing_of,
)
from ..images.nifti import as_float32, read_labels, read_volume

if TYPE_CHECKING:
    from ..score.metrics import MaskScore

Array = npt.NDArray[Any]

SEQUENCES: Mapping[str, str] = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
"""The names of the sequences as they are printed, in the order in which they are shown."""

PLANES: Mapping[str, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
"""The axis of the upright grid that each plane cuts across."""

# Of the brain's voxels: noise below and vessels above would otherwise set the contrast.
_DARKEST, _BRIGHTEST = 1.0, 99.5

_MARGIN = 2
"""Voxels of background around the brain, so that contours at its edge can be seen."""


@dataclass(frozen=True)
class Wanted:
    """The files that are shown with a case.

    Attributes:
        prediction: The label map drawn with solid lines, if any.
        reference: The one that the prediction is scored against; dashed beside a prediction.
        uncertainty: Map from 0 (certain) to 100, 3D, or 4D with a map per region.
        probabilities: Map from 0 to 1, likewise.
        labels: Label scheme of label maps whose header and data set leave it open.
        known: What is known of the label maps together with the others of their folders; by
            default what each says by itself.
    """

    prediction: Path | None = None
    reference: Path | None = None
    uncertainty: Path | None = None
    probabilities: Path | None = None
    labels: LabelScheme | None = None
    known: Mapping[Path, Known] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Scan:
    """One sequence.

    Attributes:
        name: T1, T1ce, T2 or FLAIR.
        voxels: (X, Y, Z) float32; 0 outside the brain.
        window: The intensities that are shown black and white.
    """

    name: str
    voxels: npt.NDArray[np.float32]
    window: tuple[float, float]

    @property
    def is_empty(self) -> bool:
        """Whether every voxel is 0."""
        return not self.voxels.any()


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map as its regions.

    Attributes:
        name: "prediction" or "reference".
        masks: By region, (X, Y, Z), the outer regions first.
        volumes_mm3: By region.
        dashed: Whether it is drawn with dashed lines: a reference beside a prediction.
    """

    name: str
    masks: Mapping[str, Mask]
    volumes_mm3: Mapping[str, float]
    dashed: bool = False


@dataclass(frozen=True, eq=False)
class Heat:
    """A map of numbers that is laid over the scans.

    Attributes:
        name: "uncertainty" or "probability".
        maps: By region, (X, Y, Z) float32; one without a name if the file holds one map.
        top: The value that is drawn strongest; 0 is not drawn.
    """

    name: str
    maps: Mapping[str, npt.NDArray[np.float32]]
    top: float


@dataclass(frozen=True, eq=False)
class Scene:
    """A case on a grid whose axes run, most nearly, to the right, anterior and superior.

    Attributes:
        case: Case id.
        scans: By modality (t1, t1ce, t2, flair); some may be missing.
        affine: (4, 4), from voxels of the upright grid to millimetres in RAS+.
        segmentations: None, one or two.
        heats: None, one or two.
        scores: Of the prediction against the reference, by region; empty if one is missing.
        notes: What a reader should know, one sentence each.
        file_start: Along each axis, the voxel index in the file of the grid's first voxel.
        file_step: 1 where the file's axis runs as the grid's, -1 where it runs the other way.
        file_order: For each axis of the file, the axis of the grid.
    """

    case: str
    scans: Mapping[str, Scan]
    affine: Affine
    segmentations: tuple[Segmentation, ...] = ()
    heats: tuple[Heat, ...] = ()
    scores: Mapping[str, MaskScore] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    file_start: tuple[int, int, int] = (0, 0, 0)
    file_step: tuple[int, int, int] = (1, 1, 1)
    file_order: tuple[int, int, int] = (0, 1, 2)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis, (X, Y, Z)."""
        x, y, z = next(iter(self.scans.values())).voxels.shape
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along each axis."""
        return spacing_of(self.affine)

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions of all segmentations, the outer ones first."""
        return tuple(dict.fromkeys(name for each in self.segmentations for name in each.masks))

    @cached_property
    def outside(self) -> Mask:
        """Where every scan is 0, (X, Y, Z): a single one may be 0 inside the brain, too."""
        outside: Mask = ~np.any([scan.voxels for scan in self.scans.values()], axis=0)
        return outside

    @property
    def tumour(self) -> Mask | None:
        """Where any segmentation has any region, (X, Y, Z); None if that is nowhere."""
        masks = [mask for each in self.segmentations for mask in each.masks.values()]
        found: Mask | None = np.any(masks, axis=0) if masks else None
        return found if found is not None and found.any() else None

    def file_index(self, axis: int, index: int) -> int:
        """The voxel index in the case's files of a slice of this grid."""
        return self.file_start[axis] + self.file_step[axis] * index

    def index_of(self, axis: int, file_index: int) -> int:
        """The slice of this grid with a voxel index of the case's files; may lie outside."""
        return (file_index - self.file_start[axis]) * self.file_step[axis]

    @cached_property
    def fullest(self) -> tuple[int, int, int]:
        """The sagittal, coronal and axial slice with most tumour; the middle ones without any.

        What is in several regions counts for each, so that slices through the core are preferred;
        of equal ones the one in their middle is taken.
        """
        depth = np.zeros(self.shape, dtype=np.uint8, order="F")
        for segmentation in self.segmentations:
            for mask in segmentation.masks.values():
                depth += mask
        found = []
        for others in ((1, 2), (0, 2), (0, 1)):
            areas = depth.sum(axis=others, dtype=np.int64)
            best = np.flatnonzero(areas == areas.max())
            found.append(int(best[len(best) // 2]))
        return found[0], found[1], found[2]


def load_scene(case: Case, wanted: Wanted) -> Scene:
    """Read everything that is shown of a case, crop it to the brain and turn it upright.

    Raises:
        CaseError: If the case has no image at all.
        UnreadableFileError: If a file is damaged, or does not have the dimensions due.
        GridMismatchError: If two files do not lie on one grid.
        LabelError: If a label map's values fit no scheme, or several.
    """
    modalities = [name for name in SEQUENCES if name in case.images]
    if not modalities:
        raise CaseError(
            f"case {case.id} has no image to show",
            hint=f"give a folder with at least one of {', '.join(SEQUENCES.values())}",
        )
    images, maps, heats = _read(case, modalities, wanted)
    spacing_mm = images[0].spacing_mm
    notes = _notes(case, modalities, images)
    arrays = [*(image.data for image in images), *(each.data for each, _ in maps.values())]
    upright = _Upright.around(arrays, images[0].affine)
    del arrays
    scans = {name: _scan(SEQUENCES[name], upright.turn(images.pop(0).data)) for name in modalities}
    segmentations = tuple(
        _segmentation(
            name,
            upright.turn(volume.data),
            scheme,
            spacing_mm,
            dashed=name == "reference" and len(maps) > 1,
        )
        for name, (volume, scheme) in maps.items()
    )
    return Scene(
        case.id,
        scans,
        upright.affine,
        segmentations,
        tuple(_heat(name, upright, volume.data, segmentations) for name, volume in heats.items()),
        _scores(segmentations, upright.spacing_mm),
        tuple(notes),
        upright.file_start,
        upright.file_step,
        (upright.order.index(0), upright.order.index(1), upright.order.index(2)),
    )


def _read(
    case: Case, modalities: Sequence[str], wanted: Wanted
) -> tuple[list[Volume], dict[str, tuple[Volume, LabelScheme]], dict[str, Volume]]:
    """Images, label maps with their schemes, and maps of numbers, all on one grid."""
    label_maps = {"prediction": wanted.prediction, "reference": wanted.reference}
    maps = {"uncertainty": wanted.uncertainty, "probability": wanted.probabilities}
    one_file = len({image.path for image in case.images.values()}) == 1
    with ThreadPoolExecutor(available_cpus()) as pool:
        together = [modalities] if one_file else [[name] for name in modalities]
        images = [pool.submit(read_images, case, names) for names in together]
        labels = {n: pool.submit(read_labels, path) for n, path in label_maps.items() if path}
        heats = {n: pool.submit(read_volume, path) for n, path in maps.items() if path}
        if len(labels) == 2:
            # It takes a second to load, while the files are unzipped.
            from ..score import metrics  # noqa: F401
    volumes = [volume for each in images for volume in each.result()]
    found = {name: each.result() for name, each in labels.items()}
    numbers = {name: each.result() for name, each in heats.items()}
    require_same_grid([*volumes, *found.values(), *numbers.values()])
    for volume in numbers.values():
        _require_map(volume)
    schemes = {name: _scheme_of(case, volume, wanted) for name, volume in found.items()}
    return volumes, {name: (found[name], schemes[name]) for name in found}, numbers


def _notes(case: Case, modalities: Sequence[str], images: Sequence[Volume]) -> list[str]:
    missing = [SEQUENCES[name] for name in MODALITIES if name not in modalities]
    empty = [
        SEQUENCES[name]
        for name, image in zip(modalities, images, strict=True)
        if not image.data.any()
    ]
    notes = []
    if missing:
        notes.append(f"The case has no {', '.join(missing)}.")
    if empty:
        notes.append(f"Every voxel of {', '.join(empty)} is 0.")
    degrees = _tilt_degrees(images[0].affine)
    if degrees > 1:
        notes.append(
            f"The scan is oblique: slices follow its own axes, {degrees:.0f} degrees off the "
            "patient's."
        )
    return notes


def _scan(name: str, voxels: Array) -> Scan:
    finite = as_float32(voxels)
    if not np.isfinite(finite).all():
        finite = np.nan_to_num(finite, posinf=0, neginf=0)
    inside = finite[finite != 0]
    if not inside.size:
        return Scan(name, finite, (0.0, 1.0))
    low, high = (float(value) for value in np.percentile(inside, (_DARKEST, _BRIGHTEST)))
    return Scan(name, finite, (low, high) if high > low else (low - 1, low + 1))


def _scheme_of(case: Case, label_map: Volume, wanted: Wanted) -> LabelScheme:
    """What a label map's values mean: as its header records, or the data set, or the user says.

    Raises:
        LabelError: If its values fit no scheme, or several.
    """
    values = values_in(label_map)
    of_data_set = {case.id: case} if label_map.path == case.label else {}
    known = (
        wanted.known.get(label_map.path)
        or (known_of({label_map.path: case.id}, of_data_set)[label_map.path])
    )
    declared = known.declared or (case.scheme if of_data_set else None)
    fits = declared is not None and declared.values >= values
    return known.scheme(values, label_map.path, None if fits else wanted.labels)


def _segmentation(
    name: str,
    label_map: npt.NDArray[np.uint8],
    scheme: LabelScheme,
    spacing_mm: Sequence[float],
    *,
    dashed: bool,
) -> Segmentation:
    masks = {region.name: region.mask(label_map) for region in scheme.regions}
    voxel_mm3 = float(np.prod(spacing_mm))
    volumes = {region: float(np.count_nonzero(mask) * voxel_mm3) for region, mask in masks.items()}
    return Segmentation(name, masks, volumes, dashed)


def _scores(
    segmentations: Sequence[Segmentation], spacing_mm: tuple[float, float, float]
) -> dict[str, MaskScore]:
    """The prediction's scores in the regions that both segmentations have.

    The grid is the brain's box: all but the specificity is that of the whole image.
    """
    if len(segmentations) < 2:
        return {}
    from ..score.metrics import score  # scipy and medpy load here

    predicted, reference = segmentations
    return {
        region: score(reference.masks[region], mask, spacing_mm)
        for region, mask in predicted.masks.items()
        if region in reference.masks
    }


def _require_map(volume: Volume) -> None:
    """Check that a volume can be a map of uncertainty or probability.

    Raises:
        UnreadableFileError: If it has other dimensions, or values that are none.
    """
    if volume.data.ndim not in (3, 4):
        raise UnreadableFileError(
            volume.path,
            f"it has {volume.data.ndim} dimensions where 3 or 4 are due",
            hint="give a map that brats predict wrote with --uncertainty or --probabilities",
        )
    if not np.isfinite(volume.data).all() or volume.data.min() < 0:
        raise UnreadableFileError(
            volume.path,
            "it holds values that are negative or not finite",
            hint="an uncertainty map runs from 0 to 100, a probability map from 0 to 1",
        )


def _heat(name: str, upright: _Upright, data: Array, segmentations: Sequence[Segmentation]) -> Heat:
    channels = [data] if data.ndim == 3 else list(np.moveaxis(data, -1, 0))
    names = [""] if len(channels) == 1 else ["WT", "TC", "ET", *map(str, range(4, 99))]
    if segmentations and len(channels) == len(segmentations[0].masks) > 1:
        names = list(segmentations[0].masks)
    maps = {
        channel_name: as_float32(upright.turn(channel))
        for channel_name, channel in zip(names, channels, strict=False)
    }
    highest = max(float(each.max()) for each in maps.values())
    return Heat(name, maps, 1.0 if highest <= 1 else 100.0 if highest <= 100 else highest)


# --- turning upright ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Upright:
    """How arrays of a file become views whose axes run to the right, anterior and superior.

    Attributes:
        box: What is kept, in the file's voxels.
        order: The file's axis for each upright axis.
        file_start: Along each upright axis, the file's index of the first voxel.
        file_step: 1 or -1.
        affine: (4, 4), from upright voxels to RAS millimetres.
    """

    box: Box
    order: tuple[int, int, int]
    file_start: tuple[int, int, int]
    file_step: tuple[int, int, int]
    affine: Affine

    @classmethod
    def around(cls, arrays: Sequence[Array], affine: Affine) -> _Upright:
        """Upright, and cropped to where any of `arrays` is not 0."""
        box = _box_around(arrays)
        order = _order(affine)
        start, step = [], []
        turned = np.eye(4)
        for row, axis in enumerate(order):
            forward = affine[row, axis] >= 0
            side = box[axis]
            step.append(1 if forward else -1)
            start.append(side.start if forward else side.stop - 1)
            turned[:3, row] = affine[:3, axis] * step[row]
        origin = np.ones(4)
        origin[list(order)] = start
        turned[:3, 3] = (affine @ origin)[:3]
        return cls(box, order, (start[0], start[1], start[2]), (step[0], step[1], step[2]), turned)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along each upright axis."""
        return spacing_of(self.affine)

    def turn(self, array: Array) -> Array:
        """The part of a file's array (X, Y, Z) that is kept, upright."""
        view = array[self.box].transpose(self.order)
        flips = tuple(slice(None, None, step) for step in self.file_step)
        return np.asfortranarray(view[flips])


def _order(affine: Affine) -> tuple[int, int, int]:
    """The file's axis that lies nearest to right, anterior and superior, each once."""
    columns = np.abs(affine[:3, :3])
    directions = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-12)
    best = max(
        permutations(range(3)),
        key=lambda order: sum(directions[row, order[row]] for row in range(3)),
    )
    return best[0], best[1], best[2]


def _tilt_degrees(affine: Affine) -> float:
    """The largest angle between an axis of the grid and the patient's axis nearest to it."""
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = [abs(columns[row, axis]) for row, axis in enumerate(_order(affine))]
    return float(np.degrees(np.arccos(np.clip(min(cosines), 0, 1))))


def _box_around(arrays: Sequence[Array]) -> Box:
    """The box of all voxels that are not 0 in one of `arrays`, with a margin; all if none is."""
    found = arrays[0] != 0
    buffer = np.empty_like(found)
    for array in arrays[1:]:
        found |= np.not_equal(array, 0, out=buffer)
    if not found.any():
        return slice(0, found.shape[0]), slice(0, found.shape[1]), slice(0, found.shape[2])
    return bounding_box(found, margin=_MARGIN)
