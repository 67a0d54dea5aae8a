"""What can be wrong with a file or a case: tables of rules, each with its limit and message."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.labels import is_predicted
from ..data.naming import MODALITIES
from ..images.background import odd_background, signs_of_skull
from ..images.grid import SAME_GRID_MM, Grid, Volume, times
from ..images.nifti import ROUNDS_TO_LABEL, as_float32

ERROR, WARNING, NOTE = LEVELS = ("error", "warning", "note")
"""Stops the work or spoils its result; may do so; is worth knowing."""

NOT_ORTHONORMAL = 1e-4
"""Tolerance for the products of direction cosines, which are 0 and 1 up to float32's rounding."""

OUTSIDE_BRAIN = 0.05
"""Largest share of a tumour outside the brain; above it, label map and images do not match."""

OF_BRAIN = 0.6
"""Largest share of the brain that a tumour takes (of twelve cases of BraTS at most a sixth); labels
of more are of tissues, such as grey and white matter."""

BRAIN_OVERLAP = 0.8
"""Minimum Dice of the brain masks of two modalities; below it, they are not registered, or are of
two patients."""

LITTLE_ET_MM3 = 500.0
"""With less enhancing tumour than this, single voxels decide its Dice."""

_UNITS = {1: "metres", 3: "micrometres"}
"""By NIfTI's code of the unit of length."""


@dataclass(frozen=True)
class Finding:
    """One problem in one file or folder.

    Attributes:
        level: error, warning or note.
        rule: Name of the rule.
        message: What is wrong, and what was found.
        file: The file or folder it is about, or None for the data set as a whole.
        repair: The kind of repair that `--fix` makes; empty if it cannot be repaired.
    """

    level: str
    rule: str
    message: str
    file: Path | None = None
    repair: str = ""


@dataclass(frozen=True)
class Rule:
    """A defect that one file may have, and its test, which returns a message if it does."""

    name: str
    level: str
    test: Callable[[Volume], str | None]
    repair: str = ""

    def find(self, volume: Volume) -> Iterator[Finding]:
        """The finding of this rule in `volume`, if there is one."""
        message = self.test(volume)
        if message:
            yield Finding(self.level, self.name, message, volume.path, self.repair)


# --- headers -----------------------------------------------------------------------------------


def _ending(volume: Volume) -> str | None:
    if volume.gzipped == volume.path.name.lower().endswith(".gz"):
        return None
    if volume.gzipped:
        return "it is gzipped, but its name does not end in .gz"
    return "its name ends in .gz, but it is not gzipped"


def _written_sizes(volume: Volume) -> npt.NDArray[np.float64]:
    """The voxel sizes in the header (pixdim) as written, (3,), in whatever unit it says."""
    return np.asarray(volume.header["pixdim"][1:4], dtype=float)


def _voxel_size(volume: Volume) -> str | None:
    sizes = _written_sizes(volume)
    if (sizes > 0).all() and np.isfinite(sizes).all():
        return None
    return f"its header gives voxels of {_by(sizes)} mm"


def _affine(volume: Volume) -> str | None:
    if volume.grid.is_usable:
        return None
    return "its affine is flat or not finite, so its position in space is unknown"


def _cosines(volume: Volume) -> str | None:
    off = not_orthonormal(volume.grid)
    if not off > NOT_ORTHONORMAL:
        return None
    return f"its direction cosines are not orthonormal (off by {off:.2g})"


def not_orthonormal(grid: Grid) -> float:
    """Largest deviation of the products of a grid's direction cosines; 0 for a rotation.

    0 as well for an affine that is flat or not finite, which has another rule.
    """
    if not grid.is_usable:
        return 0.0
    cosines = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    return float(np.abs(cosines.T @ cosines - np.eye(3)).max())


def _header_size(volume: Volume) -> str | None:
    if _voxel_size(volume) or not volume.grid.is_usable:
        return None
    if np.allclose(_written_sizes(volume), volume.spacing_mm, rtol=0.01):
        return None
    written, by_affine = _by(_written_sizes(volume)), _by(volume.spacing_mm)
    return f"its header gives voxels of {written} mm, its affine of {by_affine} mm"


def _forms(volume: Volume) -> float:
    """Distance between the grids of sform and qform in mm; 0 if only one of them is used."""
    qform = volume.grid.qform if min(volume.grid.codes) > 0 else None
    if qform is None or _voxel_size(volume) or not volume.grid.is_usable:
        return 0.0
    return volume.grid.distance_mm(replace(volume.grid, affine=qform))


def _forms_disagree(volume: Volume) -> str | None:
    distance = _forms(volume)
    if not distance > _half_a_voxel(volume):  # NaN where the affine has no voxels
        return None
    return f"its sform and qform disagree by {distance:.3g} mm"


def _forms_differ(volume: Volume) -> str | None:
    distance = _forms(volume)
    if not SAME_GRID_MM < distance <= _half_a_voxel(volume):
        return None
    return f"its sform and qform differ by {distance:.3g} mm, less than half a voxel"


def _rotation(volume: Volume) -> str | None:
    if volume.grid.codes[1] > 0 and volume.grid.qform is None:
        return "the quaternion of its qform is not a rotation"
    return None


def _no_orientation(volume: Volume) -> str | None:
    return None if max(volume.grid.codes) > 0 else "its sform and qform codes are 0: no orientation"


def _sform_zero(volume: Volume) -> str | None:
    return (
        "sform code 0; its position is taken from its qform"
        if volume.grid.codes[0] <= 0 < volume.grid.codes[1]
        else None
    )


def _unit(volume: Volume) -> str | None:
    unit = _UNITS.get(volume.grid.units & 7)
    return f"its header says that lengths are in {unit}, not mm" if unit else None


def _implausible(volume: Volume) -> str | None:
    if volume.grid.is_plausible or not volume.grid.is_usable or _unit(volume):
        return None
    return f"voxels of {_by(volume.spacing_mm)} mm are implausible for a head scan"


HEADER_RULES = (
    Rule("ending", ERROR, _ending, "name"),
    Rule("voxel-size", ERROR, _voxel_size, "header"),
    Rule("affine", ERROR, _affine, "header"),
    Rule("cosines", ERROR, _cosines, "header"),
    Rule("header-size", ERROR, _header_size, "header"),
    Rule("sform-qform", ERROR, _forms_disagree, "header"),
    Rule("sform-qform-close", WARNING, _forms_differ, "header"),
    Rule("qform-rotation", ERROR, _rotation, "header"),
    Rule("orientation", ERROR, _no_orientation, "header"),
    Rule("unit", ERROR, _unit, "header"),
    Rule("spacing", ERROR, _implausible),
    Rule("sform-code", NOTE, _sform_zero),
)


def header_is_sound(volume: Volume) -> bool:
    """Whether no rule finds an error in the header; the ending of the file name is not judged."""
    rules = [rule for rule in HEADER_RULES if rule.level == ERROR and rule.repair != "name"]
    return not any(rule.test(volume) for rule in rules)


# --- voxels of images --------------------------------------------------------------------------


def _not_finite(volume: Volume) -> str | None:
    if volume.data.dtype.kind != "f":
        return None
    wrong = volume.values.size - int(np.isfinite(volume.values).sum())
    return f"{wrong:,} voxels are not finite (NaN or infinite)" if wrong else None


def _empty(volume: Volume) -> str | None:
    return None if volume.foreground.size else "every voxel is 0"


def _few_values(volume: Volume) -> str | None:
    some = np.unique(volume.foreground[:: max(1, volume.foreground.size // 10_000)])
    if not 0 < some.size <= 5:
        return None
    values = ", ".join(f"{value:g}" for value in np.unique(volume.foreground)[:5])
    return f"besides 0 it holds only {values}: is it a mask or a label map?"


def _wrapped(volume: Volume) -> str | None:
    if volume.data.dtype != np.int16 or not volume.foreground.size:
        return None
    low, high = int(volume.foreground.min()), int(volume.foreground.max())
    if low > -16_384 or high < 16_384:
        return None
    return f"values from {low} to {high}: values above 32767 have overflowed int16"


def _odd_background(volume: Volume) -> str | None:
    value = odd_background(volume.data)
    return None if value is None else f"its background is {value:g}, not 0: brats takes it as 0"


def _negative(volume: Volume) -> str | None:
    below = int((volume.foreground < 0).sum())
    if below <= 0.01 * volume.foreground.size or _wrapped(volume):
        return None
    share = 100 * below / volume.foreground.size
    return f"{share:.0f} % of its brain is negative: is it normalised already?"


def _clipped(volume: Volume) -> str | None:
    if volume.data.dtype.kind not in "iu" or not volume.foreground.size or _wrapped(volume):
        return None
    most = np.iinfo(volume.data.dtype).max
    if volume.foreground.max() < most:
        return None
    return f"clipped at {most}, the maximum of {volume.data.dtype}, or scaled to it"


def _few_levels(volume: Volume) -> str | None:
    if volume.data.dtype.kind not in "iu" or not volume.foreground.size or _few_values(volume):
        return None
    most = int(volume.foreground.max())
    return f"few grey levels: its largest value is {most}" if most <= 400 else None


BACKGROUND = Rule("background", WARNING, _odd_background)

IMAGE_RULES = (
    Rule("not-finite", ERROR, _not_finite, "zeros"),
    Rule("empty", ERROR, _empty),
    Rule("few-values", ERROR, _few_values),
    Rule("wrapped", ERROR, _wrapped, "unsigned"),
    Rule("negative", NOTE, _negative),
    Rule("clipped", NOTE, _clipped),
    Rule("coarse", NOTE, _few_levels),
)


# --- voxels of label maps ----------------------------------------------------------------------


def _off_by(volume: Volume) -> npt.NDArray[np.float64]:
    """Distance of each foreground voxel to the nearest whole number."""
    values = volume.foreground
    off: npt.NDArray[np.float64] = np.abs(values - np.rint(values))
    return off


def _spoilt(volume: Volume) -> str | None:
    off = _off_by(volume)
    if not off.any() or off.max() > ROUNDS_TO_LABEL:
        return None
    return f"it holds {volume.foreground[off > 0][0]:.6g}, which is close to a label, but not one"


def _no_labels(volume: Volume) -> str | None:
    off = _off_by(volume)
    if not off.any() or off.max() <= ROUNDS_TO_LABEL:
        return None
    return f"it holds {volume.foreground[off.argmax()]:.6g}: is it a probability map?"


def _out_of_range(volume: Volume) -> str | None:
    values = volume.foreground
    wrong = values[(values < 0) | (values > 255)]
    return f"it holds {wrong[0]:g}, which is not a label (0-255)" if wrong.size else None


def _float_labels(volume: Volume) -> str | None:
    return f"labels stored as {volume.data.dtype}" if volume.data.dtype.kind == "f" else None


def _no_tumour(volume: Volume) -> str | None:
    return None if volume.foreground.size else "no tumour: every voxel is 0"


def _predicted(volume: Volume) -> str | None:
    return "made by brats predict, not by an expert" if is_predicted(volume.note) else None


LABEL_RULES = (
    Rule("not-finite", ERROR, _not_finite, "zeros"),
    Rule("rounding", ERROR, _spoilt, "round"),
    Rule("not-whole", ERROR, _no_labels),
    Rule("range", ERROR, _out_of_range),
    Rule("no-tumour", WARNING, _no_tumour),
    Rule("predicted", ERROR, _predicted),
    Rule("float-labels", NOTE, _float_labels),
)


# --- files of one case -------------------------------------------------------------------------


def compare(volumes: Mapping[str, Volume], reference: Volume) -> Iterator[Finding]:
    """Compare the files of a case, given by modality or `label`, with each other."""
    yield from _grids(volumes, reference)
    images = {role: volumes[role] for role in MODALITIES if role in volumes}
    yield from _same_voxels(images)
    alike = {r: volume for r, volume in images.items() if volume.data.shape == reference.data.shape}
    yield from _brains(alike)
    yield from _skull(images)
    label = volumes.get("label")
    if label is not None and alike and label.data.shape == reference.data.shape:
        yield from _outside(label, alike)


def _grids(volumes: Mapping[str, Volume], reference: Volume) -> Iterator[Finding]:
    for path, volume in {volume.path: volume for volume in volumes.values()}.items():
        if path == reference.path:
            continue
        if volume.data.shape != reference.data.shape:
            shapes = f"{times(volume.data.shape)} voxels, {reference.path.name} has "
            yield Finding(ERROR, "shape", shapes + times(reference.data.shape), path)
        elif volume.grid.is_usable:
            yield from _place(volume, reference)


def _place(volume: Volume, reference: Volume) -> Iterator[Finding]:
    distance = volume.grid.distance_mm(reference.grid)
    if distance <= SAME_GRID_MM:
        return
    off = f"its corners are {distance:.3g} mm from those of {reference.path.name}"
    if distance <= _half_a_voxel(reference):
        yield Finding(
            WARNING, "place-close", f"{off}, less than half a voxel", volume.path, "header"
        )
        return
    yield Finding(ERROR, "place", off, volume.path, "header" if _place_in_doubt(volume) else "")


def _place_in_doubt(volume: Volume) -> bool:
    """Whether the errors in the header leave the position of the voxels open."""
    names = {"cosines", "header-size", "sform-qform", "qform-rotation", "orientation"}
    if volume.grid.codes[0] <= 0:
        names |= {"voxel-size"}  # the qform is nothing without it
    if not volume.grid.is_plausible:
        names |= {"unit"}
    return any(rule.test(volume) for rule in HEADER_RULES if rule.name in names)


def _same_voxels(images: Mapping[str, Volume]) -> Iterator[Finding]:
    seen: dict[Any, tuple[str, Volume]] = {}
    for role, volume in images.items():
        other_role, other = seen.setdefault(print_of(volume), (role, volume))
        if other is not volume and volume.foreground.size:
            message = f"{role} holds the same voxels as {other_role}, {other.path.name}"
            yield Finding(ERROR, "same-voxels", message, volume.path)


def print_of(volume: Volume) -> str:
    """A fingerprint of shape and voxels; equal numbers in another type have the same one."""
    where = np.packbits(volume.values != 0).tobytes()
    what = as_float32(volume.foreground).tobytes()
    return hashlib.sha256(repr(volume.data.shape).encode() + where + what).hexdigest()


def _brains(images: Mapping[str, Volume]) -> Iterator[Finding]:
    masks: dict[str, npt.NDArray[np.bool_]] = {
        role: volume.data != 0 for role, volume in images.items() if volume.foreground.size
    }
    if not masks:
        return
    first, brain = next(iter(masks.items()))
    for role, mask in masks.items():
        both = np.count_nonzero(mask) + np.count_nonzero(brain)
        overlap = 2 * np.count_nonzero(mask & brain) / both
        if overlap < BRAIN_OVERLAP:
            message = f"its brain and that of {first} overlap with a Dice of only {overlap:.2f}"
            yield Finding(ERROR, "registration", message, images[role].path)


def _skull(images: Mapping[str, Volume]) -> Iterator[Finding]:
    for role, volume in images.items():
        if odd_background(volume.data) is None:
            voxel_mm3 = volume.grid.in_millimetres().voxel_mm3
            signs = signs_of_skull(volume.data, voxel_mm3, is_t1=role in ("t1", "t1ce"))
            if signs:
                message = f"{signs}: was the skull not removed?"
                yield Finding(WARNING, "skull", message, volume.path)
                return  # the others are of the same head


def _outside(label: Volume, images: Mapping[str, Volume]) -> Iterator[Finding]:
    tumour: npt.NDArray[np.bool_] = label.data != 0
    brain = np.zeros_like(tumour)
    for volume in images.values():
        brain |= volume.data != 0
    of_brain = int(np.count_nonzero(tumour & brain)) / max(int(np.count_nonzero(brain)), 1)
    if of_brain > OF_BRAIN:
        message = f"its labels cover {_percent(of_brain)} of the brain: are they of tissues?"
        yield Finding(WARNING, "tissues", message, label.path)
    share = int(np.count_nonzero(tumour & ~brain)) / max(int(np.count_nonzero(tumour)), 1)
    if share > 0:
        message = f"{_percent(share)} of its tumour lies outside the brain"
        level = ERROR if share > OUTSIDE_BRAIN else WARNING
        yield Finding(level, "outside", message, label.path)


# --- measures ----------------------------------------------------------------------------------


def _half_a_voxel(volume: Volume) -> float:
    return min(volume.spacing_mm) / 2


def _by(sizes: Iterable[float]) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"
