"""What can be wrong with a file or a case: one table of rules, each with its limit and message."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.cases import MODALITIES
from ..images.nifti import SAME_GRID_MM, Volume, corner_distance_mm, times
from ..images.scans import Affine, Scan

ERROR, WARNING, NOTE = LEVELS = ("error", "warning", "note")
"""What stops the work or spoils its result; what may; what is worth knowing."""

NOT_ORTHONORMAL = 1e-4
"""How far the products of direction cosines may be from 0 and 1, as float32 leaves them."""

SPACING_LIMITS_MM = (0.1, 20.0)
"""Voxel sizes outside are metres or micrometres taken for millimetres, not head scans."""

ROUNDS_TO_LABEL = 0.01
"""How far from a whole number a label may be to be that number, spoilt by a float format."""

OUTSIDE_BRAIN = 0.05
"""Share of a tumour that may lie where all images are 0; beyond it, label and images differ."""

BRAIN_OVERLAP = 0.8
"""Dice of the brains of two modalities below which they are not registered, or not one patient."""

LITTLE_ET_MM3 = 500.0
"""Below this much enhancing tumour, single voxels decide its Dice."""

_UNITS = {1: "metres", 3: "micrometres"}


@dataclass(frozen=True)
class Finding:
    """One thing found in one place.

    Attributes:
        level: error, warning or note.
        rule: Name of the rule.
        message: What is wrong, and what was found.
        file: The file it is about, or None for the case or data set as a whole.
        repair: What `--fix` does about it; empty if it can do nothing.
    """

    level: str
    rule: str
    message: str
    file: Path | None = None
    repair: str = ""


@dataclass(frozen=True)
class Rule:
    """A property of one file, and what to say of a file that has it."""

    name: str
    level: str
    test: Callable[[Scan], str | None]
    repair: str = ""

    def find(self, scan: Scan) -> Iterator[Finding]:
        """The finding of this rule in `scan`, if there is one."""
        message = self.test(scan)
        if message:
            yield Finding(self.level, self.name, message, scan.path, self.repair)


# --- headers -----------------------------------------------------------------------------------


def _ending(scan: Scan) -> str | None:
    if scan.gzipped == scan.path.name.lower().endswith(".gz"):
        return None
    if scan.gzipped:
        return "it is gzipped, but its name does not end in .gz"
    return "its name ends in .gz, but it is not gzipped"


def _voxel_size(scan: Scan) -> str | None:
    sizes = scan.pixdim
    if (sizes > 0).all() and np.isfinite(sizes).all():
        return None
    return f"its header gives voxels of {_by(sizes)} mm"


def usable(affine: Affine) -> bool:
    """Whether an affine is finite and leaves space three dimensions."""
    return bool(np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-12)


def _affine(scan: Scan) -> str | None:
    if usable(scan.affine):
        return None
    return "its affine is flat or not finite, so that it has no place in space"


def _cosines(scan: Scan) -> str | None:
    off = not_orthonormal(scan.affine)
    if not off > NOT_ORTHONORMAL:
        return None
    return f"its direction cosines are not orthonormal (off by {off:.2g})"


def not_orthonormal(affine: Affine) -> float:
    """Largest deviation of the products of an affine's direction cosines; 0 for a rotation."""
    if not usable(affine):
        return 0.0
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(cosines.T @ cosines - np.eye(3)).max())


def _header_size(scan: Scan) -> str | None:
    if _voxel_size(scan) or not usable(scan.affine):
        return None
    if np.allclose(scan.pixdim, scan.spacing_mm, rtol=0.01):
        return None
    return (
        f"its header gives voxels of {_by(scan.pixdim)} mm, its affine of {_by(scan.spacing_mm)} mm"
    )


def _forms(scan: Scan) -> float:
    """How far sform and qform are apart in millimetres, where both are in force."""
    qform = scan.qform if min(scan.codes) > 0 else None
    if qform is None or _voxel_size(scan) or not usable(scan.affine):
        return 0.0
    return apart(scan, Volume(scan.data, qform))


def _forms_disagree(scan: Scan) -> str | None:
    distance = _forms(scan)
    if distance <= _half_a_voxel(scan):
        return None
    return f"its sform and qform disagree by {distance:.3g} mm"


def _forms_differ(scan: Scan) -> str | None:
    distance = _forms(scan)
    if not SAME_GRID_MM < distance <= _half_a_voxel(scan):
        return None
    return f"its sform and qform differ by {distance:.3g} mm, less than half a voxel"


def _rotation(scan: Scan) -> str | None:
    if scan.codes[1] > 0 and scan.qform is None:
        return "the quaternion of its qform is no rotation"
    return None


def _no_orientation(scan: Scan) -> str | None:
    return None if max(scan.codes) > 0 else "its sform and qform codes are 0: no orientation"


def _sform_zero(scan: Scan) -> str | None:
    return "sform code 0, placed by its qform" if scan.codes[0] <= 0 < scan.codes[1] else None


def _unit(scan: Scan) -> str | None:
    unit = _UNITS.get(scan.unit)
    return f"its header says that lengths are in {unit}, not mm" if unit else None


def plausible(scan: Scan) -> bool:
    """Whether its voxels are of the size of a head scan's, read as millimetres."""
    low, high = SPACING_LIMITS_MM
    return bool(low <= scan.spacing_mm.min() <= scan.spacing_mm.max() <= high)


def _implausible(scan: Scan) -> str | None:
    if plausible(scan) or not usable(scan.affine) or _unit(scan):
        return None
    return f"voxels of {_by(scan.spacing_mm)} mm are no head scan's"


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


def header_is_sound(scan: Scan) -> bool:
    """Whether no rule finds an error in the header; the name of the file is another matter."""
    rules = [rule for rule in HEADER_RULES if rule.level == ERROR and rule.repair != "name"]
    return not any(rule.test(scan) for rule in rules)


# --- voxels of images --------------------------------------------------------------------------


def _not_finite(scan: Scan) -> str | None:
    if scan.data.dtype.kind != "f":
        return None
    wrong = scan.values.size - int(np.isfinite(scan.values).sum())
    return f"{wrong:,} voxels are not numbers (NaN or infinite)" if wrong else None


def _empty(scan: Scan) -> str | None:
    return None if scan.foreground.size else "every voxel is 0"


def _few_values(scan: Scan) -> str | None:
    some = np.unique(scan.foreground[:: max(1, scan.foreground.size // 10_000)])
    if not 0 < some.size <= 5:
        return None
    values = ", ".join(f"{value:g}" for value in np.unique(scan.foreground)[:5])
    return f"besides 0 it holds only {values}: is it a mask or a label map?"


def _wrapped(scan: Scan) -> str | None:
    if scan.data.dtype != np.int16 or not scan.foreground.size:
        return None
    low, high = int(scan.foreground.min()), int(scan.foreground.max())
    if low > -16_384 or high < 16_384:
        return None
    return f"values from {low} to {high}: what was above 32767 has wrapped round int16"


def _no_background(scan: Scan) -> str | None:
    zeros = 1 - np.count_nonzero(scan.values) / scan.values.size
    return None if zeros > 0.01 else "hardly any voxel is 0: is the skull still on?"


def _negative(scan: Scan) -> str | None:
    below = int((scan.foreground < 0).sum())
    if below <= 0.01 * scan.foreground.size or _wrapped(scan):
        return None
    return (
        f"{100 * below / scan.foreground.size:.0f} % of its brain is negative: normalised before?"
    )


def _clipped(scan: Scan) -> str | None:
    if scan.data.dtype.kind not in "iu" or not scan.foreground.size or _wrapped(scan):
        return None
    most = np.iinfo(scan.data.dtype).max
    if scan.foreground.max() < most:
        return None
    return f"clipped at {most}, the most that {scan.data.dtype} holds, or scaled to it"


def _few_levels(scan: Scan) -> str | None:
    if scan.data.dtype.kind not in "iu" or not scan.foreground.size or _few_values(scan):
        return None
    most = int(scan.foreground.max())
    return f"coarse: its largest value is {most}" if most <= 400 else None


IMAGE_RULES = (
    Rule("not-finite", ERROR, _not_finite, "zeros"),
    Rule("empty", ERROR, _empty),
    Rule("few-values", ERROR, _few_values),
    Rule("wrapped", ERROR, _wrapped, "unsigned"),
    Rule("background", WARNING, _no_background),
    Rule("negative", NOTE, _negative),
    Rule("clipped", NOTE, _clipped),
    Rule("coarse", NOTE, _few_levels),
)


# --- voxels of label maps ----------------------------------------------------------------------


def _off_by(scan: Scan) -> npt.NDArray[np.float64]:
    """How far each foreground voxel is from a whole number."""
    values = scan.foreground
    off: npt.NDArray[np.float64] = np.abs(values - np.rint(values))
    return off


def _spoilt(scan: Scan) -> str | None:
    off = _off_by(scan)
    if not off.any() or off.max() > ROUNDS_TO_LABEL:
        return None
    return f"it holds {scan.foreground[off > 0][0]:.6g}, which is nearly a label but is none"


def _no_labels(scan: Scan) -> str | None:
    off = _off_by(scan)
    if not off.any() or off.max() <= ROUNDS_TO_LABEL:
        return None
    return f"it holds {scan.foreground[off.argmax()]:.6g}: is it a probability map?"


def _out_of_range(scan: Scan) -> str | None:
    values = scan.foreground
    wrong = values[(values < 0) | (values > 255)]
    return f"it holds {wrong[0]:g}, which is no label (0-255)" if wrong.size else None


def _float_labels(scan: Scan) -> str | None:
    return f"labels stored as {scan.data.dtype}" if scan.data.dtype.kind == "f" else None


def _no_tumour(scan: Scan) -> str | None:
    return None if scan.foreground.size else "no tumour: every voxel is 0"


LABEL_RULES = (
    Rule("not-finite", ERROR, _not_finite, "zeros"),
    Rule("rounding", ERROR, _spoilt, "round"),
    Rule("not-whole", ERROR, _no_labels),
    Rule("range", ERROR, _out_of_range),
    Rule("no-tumour", WARNING, _no_tumour),
    Rule("float-labels", NOTE, _float_labels),
)


# --- files of one case -------------------------------------------------------------------------


def compare(scans: Mapping[str, Scan], reference: Scan) -> Iterator[Finding]:
    """What the files of a case, by modality or `label`, are to each other."""
    yield from _grids(scans, reference)
    images = {role: scans[role] for role in MODALITIES if role in scans}
    yield from _same_voxels(images)
    alike = {r: scan for r, scan in images.items() if scan.data.shape == reference.data.shape}
    yield from _brains(alike)
    label = scans.get("label")
    if label is not None and alike and label.data.shape == reference.data.shape:
        yield from _outside(label, alike)


def _grids(scans: Mapping[str, Scan], reference: Scan) -> Iterator[Finding]:
    for path, scan in {scan.path: scan for scan in scans.values()}.items():
        if path == reference.path:
            continue
        if scan.data.shape != reference.data.shape:
            shapes = f"{times(scan.data.shape)} voxels, {reference.path.name} has "
            yield Finding(ERROR, "shape", shapes + times(reference.data.shape), path)
        elif usable(scan.affine):
            yield from _place(scan, reference)


def _place(scan: Scan, reference: Scan) -> Iterator[Finding]:
    distance = apart(scan, reference)
    if distance <= SAME_GRID_MM:
        return
    off = f"its corners are {distance:.3g} mm off those of {reference.path.name}"
    if distance <= _half_a_voxel(reference):
        yield Finding(WARNING, "place-close", f"{off}, less than half a voxel", scan.path, "header")
        return
    yield Finding(ERROR, "place", off, scan.path, "header" if _place_in_doubt(scan) else "")


def _place_in_doubt(scan: Scan) -> bool:
    """Whether what is wrong with the header leaves open where the voxels are."""
    names = {"cosines", "header-size", "sform-qform", "qform-rotation", "orientation"}
    if scan.codes[0] <= 0:
        names |= {"voxel-size"}  # the qform is nothing without it
    if not plausible(scan):
        names |= {"unit"}
    return any(rule.test(scan) for rule in HEADER_RULES if rule.name in names)


def _same_voxels(images: Mapping[str, Scan]) -> Iterator[Finding]:
    seen: dict[Any, tuple[str, Scan]] = {}
    for role, scan in images.items():
        other_role, other = seen.setdefault(print_of(scan), (role, scan))
        if other is not scan and scan.foreground.size:
            message = f"{role} holds the same voxels as {other_role}, {other.path.name}"
            yield Finding(ERROR, "same-voxels", message, scan.path)


def print_of(scan: Scan) -> str:
    """A fingerprint of shape and voxels, equal for equal numbers in whatever type."""
    where = np.packbits(scan.values != 0).tobytes()
    what = scan.foreground.astype(np.float32).tobytes()
    return hashlib.sha256(repr(scan.data.shape).encode() + where + what).hexdigest()


def _brains(images: Mapping[str, Scan]) -> Iterator[Finding]:
    masks: dict[str, npt.NDArray[np.bool_]] = {
        role: scan.data != 0 for role, scan in images.items() if scan.foreground.size
    }
    if not masks:
        return
    first, brain = next(iter(masks.items()))
    for role, mask in masks.items():
        both = np.count_nonzero(mask) + np.count_nonzero(brain)
        overlap = 2 * np.count_nonzero(mask & brain) / both
        if overlap < BRAIN_OVERLAP:
            message = f"its brain overlaps with that of {first} by a Dice of {overlap:.2f} only"
            yield Finding(ERROR, "registration", message, images[role].path)


def _outside(label: Scan, images: Mapping[str, Scan]) -> Iterator[Finding]:
    outside: npt.NDArray[np.bool_] = label.data != 0
    tumour = int(np.count_nonzero(outside))
    for scan in images.values():
        outside = outside & (scan.data == 0)
    share = int(np.count_nonzero(outside)) / max(tumour, 1)
    if share > 0:
        message = f"{_percent(share)} of its tumour lies outside the brain"
        level = ERROR if share > OUTSIDE_BRAIN else WARNING
        yield Finding(level, "outside", message, label.path)


# --- measures ----------------------------------------------------------------------------------


def apart(scan: Scan, other: Scan | Volume) -> float:
    """Largest distance between the corners of two grids of one shape, in mm."""
    return corner_distance_mm(Volume(scan.data, scan.affine), Volume(other.data, other.affine))


def _half_a_voxel(scan: Scan) -> float:
    return float(scan.spacing_mm.min()) / 2


def _by(sizes: npt.NDArray[np.float64]) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"
