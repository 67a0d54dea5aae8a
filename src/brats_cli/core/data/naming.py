"""What is read from names: modalities of files, patients of cases, possible label schemes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..images.nifti import stem
from .labels import SCHEMES, LabelScheme

MODALITIES = ("t1", "t1ce", "t2", "flair")
"""The four MR sequences, in the order of the channels everywhere in brats."""

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("t1", "t1n", "t1w"), "t1"),
    **dict.fromkeys(("t1ce", "t1c", "t1gd"), "t1ce"),
    **dict.fromkeys(("t2", "t2w"), "t2"),
    **dict.fromkeys(("flair", "fla", "t2f"), "flair"),
    **dict.fromkeys(
        ("seg", "segm", "glistrboost_manuallycorrected", "glistrboost", "gtv"), "label"
    ),
}
"""Role of a file by the end of its name. Of two label maps, the one listed first here is used."""

BESIDE = ("probabilities", "uncertainty")
"""Name endings of the maps that `brats predict` writes beside a label map."""

_UNCERTAINTY = re.compile(r"_unc_(whole|core|enhance)$")  # as BraTS 2020's task 3 names them

_SUFFIX = re.compile(rf"(?:(?P<id>.*?)[_. -])?(?P<suffix>{'|'.join(ROLES)})", re.IGNORECASE)


@dataclass(frozen=True)
class Naming:
    """How one release names its cases, and the label schemes that the name leaves open.

    Attributes:
        name: The release.
        id: Pattern of a whole case id; its groups, joined by `_`, are the patient.
        labels: Label schemes that a case of this name may have.
        by_grid: Label scheme by grid, (X, Y, Z), if the grid identifies the year.
    """

    name: str
    id: re.Pattern[str]
    labels: tuple[str, ...] = ()
    by_grid: Mapping[tuple[int, ...], str] = field(default_factory=dict)


def _row(
    name: str,
    pattern: str,
    *labels: str,
    by_grid: Mapping[tuple[int, ...], str] | None = None,
) -> Naming:
    return Naming(name, re.compile(pattern, re.IGNORECASE), labels, by_grid or {})


# The first row that matches wins. Where a pattern has no group, every case is a patient. The last
# number of a 2017-2019 id is the visit; the year is left out of the patient, because the same
# patients came back every year, and so is the number of TCIA's site, which 2017 did not have.
# A tumour of 2024+ without cavity reads the same in 2023's labels, so the latter may stand first.
NAMINGS = (
    _row("BraTS 2017-2019", r"brats1[789]_(tcia)\d*_(.+?)_\d+", "brats2020"),
    _row("BraTS 2017-2019", r"brats1[789]_(.+?)_\d+", "brats2020"),
    _row("BraTS 2017-2019", r"brats1[789]_(.+)", "brats2020"),
    _row("BraTS 2020", r"brats20_[a-z]+_\d+", "brats2020"),
    _row("BraTS 2021-2022", r"brats2021_(?:[a-z]+_)?\d+", "brats2020"),
    _row("BraTS 2024 MEN-RT", r"(brats-men-rt-\d+)-\d+", "men-rt"),
    _row(
        "BraTS 2023+ GLI",
        r"(brats-gli-\d+)-\d+",
        "brats2023",
        "brats2024",
        by_grid={(240, 240, 155): "brats2023", (182, 218, 182): "brats2024"},
    ),
    _row("BraTS 2023+ PED", r"(brats-ped-\d+)-\d+", "brats2023", "brats2024-ped"),
    _row("BraTS 2023+ SSA", r"(brats-ssa-\d+)-\d+", "brats2023", "brats2024"),
    _row("BraTS 2023+ MEN", r"(brats-men-\d+)-\d+", "brats2023", "brats2024"),
    _row("BraTS 2023+ MET", r"(brats-met-\d+)-\d+", "brats2023", "brats2024"),
    _row("TCGA", r"(tcga-\w\w-\w{4})(?:_.+)?", "brats2020"),
    _row("MSD Task01", r"brats_\d+"),
    _row("UPENN-GBM", r"(upenn-gbm-\d+)_\d+"),
    _row("BIDS", r"(sub-[^_]+)(?:_.+)?"),
    _row("other", r"(?s:.*)"),
)


def parse_name(name: str) -> tuple[str, str]:
    """Case id and role (a modality, `label` or nothing) of a file name without its ending."""
    match = _SUFFIX.fullmatch(name)
    if match is None:
        return name, ""
    return match["id"] or "", ROLES[match["suffix"].lower()]


def lies_beside(name: str) -> bool:
    """Whether a file name without its ending is one that `predict` gives to a further map."""
    return name.rpartition("_")[2] in BESIDE or _UNCERTAINTY.search(name) is not None


def label_rank(path: Path) -> int:
    """Position of a label map's suffix in `ROLES`; the lowest is preferred."""
    match = _SUFFIX.fullmatch(stem(path))
    return list(ROLES).index(match["suffix"].lower()) if match else -1


def case_id_of(path: Path) -> str:
    """File name without its ending and without modality or `seg` suffix.

    A bare `t1.nii.gz` or `seg.nii.gz` takes the name of its folder.
    """
    case_id, _ = parse_name(stem(path))
    return case_id or path.absolute().parent.name


def naming_of(case_id: str) -> Naming:
    """The row of `NAMINGS` that a case id follows."""
    return next(row for row in NAMINGS if row.id.fullmatch(case_id))


def patient_of(case_id: str) -> str:
    """The patient of a case; the case id itself if its name has no number for the visit."""
    match = naming_of(case_id).id.fullmatch(case_id)
    return "_".join(match.groups() if match else ()) or case_id


def schemes_by_name(case_id: str, shape: tuple[int, ...] | None) -> tuple[LabelScheme, ...]:
    """The label schemes that a case's id and grid leave open; empty if they leave all open."""
    row = naming_of(case_id)
    by_grid = row.by_grid.get(shape) if shape else None
    return tuple(SCHEMES[name] for name in ((by_grid,) if by_grid else row.labels))
