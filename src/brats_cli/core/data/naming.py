"""What is read from names: modalities of files, patients of cases, possible label schemes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..images.nifti import is_nifti, stem
from .labels import SCHEMES, LabelScheme

MODALITIES = ("t1", "t1ce", "t2", "flair")
"""The four MR sequences, in the order of the channels everywhere in brats."""

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("t1", "t1n", "t1w", "t1_to_sri_brain"), "t1"),
    **dict.fromkeys(("t1ce", "t1c", "t1gd", "ct1", "t1ce_to_sri_brain"), "t1ce"),
    **dict.fromkeys(("t2", "t2w", "t2_to_sri_brain"), "t2"),
    **dict.fromkeys(("flair", "fla", "t2f", "fl_to_sri_brain"), "flair"),
    **dict.fromkeys(
        (
            "seg", "segm", "glistrboost_manuallycorrected", "glistrboost", "gtv", "dseg", "label",
            "labels", "segmentation", "segmentations", "tumor_segmentation", "tumour_segmentation",
            "tumormask", "tumor_mask", "gt", "ground_truth", "groundtruth",
            "braintumormask_sri", "automated_approx_segm",
        ),
        "label",
    ),
}  # fmt: skip
"""Role of a file by the end of its name. Of two label maps, the one listed first here is used."""

BESIDE = ("probabilities", "uncertainty")
"""Name endings of the maps that `brats predict` writes beside a label map."""

UNCERTAINTY_OF = {"WT": "unc_whole", "TC": "unc_core", "ET": "unc_enhance"}
"""The same for the uncertainty of each region, as BraTS 2020's task 3 names these files."""

# MU-Glioma-Post and FeTS say in the name that the skull was stripped: `CASE_brain_t1n`.
_SUFFIX = re.compile(
    rf"(?:(?P<id>.*?)[_. -])?(?P<brain>brain[_. -])?(?P<suffix>{'|'.join(ROLES)})", re.IGNORECASE
)

# `sub-01_ses-1_acq-3d_ce-gadolinium_run-1_T1w`: subject and session are the case.
_BIDS = re.compile(
    r"(?P<id>sub-[^_]+(?:_ses-[^_]+)?)(?P<entities>(?:_[a-z]+-[^_]+)*)_(?P<suffix>T1w|T2w|FLAIR|dseg)"
)

_VISIT = r"(?:visit|timepoint|tp|week|session|ses|follow-?up)[-_ ]?\d+(?:-\d+)?"

# Folders that name no case of their own, where the files in them are called t1.nii.gz and so on.
_OF_A_VISIT = re.compile(
    rf"{_VISIT}|(?:19|20)\d\d[-_.]?\d\d[-_.]?\d\d|baseline|(?:pre|post)[-_]?op", re.IGNORECASE
)
_OF_NO_CASE = re.compile(r"anat|mri?|nifti|nii|scans?|preprocessed|registered", re.IGNORECASE)


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


VISITS = "visits"
"""The row of names that nobody's release has, but that end like visits of one patient."""

OTHER = "other"
"""The row of all other names."""

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
    _row("UCSF-PDGM", r"(ucsf-pdgm-\d+)(?:_fu\d+d?)?"),
    _row("RHUH-GBM", r"(rhuh-\d+)_\d+"),
    _row("MU-Glioma-Post", r"(patientid_\d+)_timepoint_\d+"),
    _row("LUMIERE", r"(patient-\d+)_week-\d+(?:-\d+)?"),
    _row("BIDS", r"(sub-[^_]+)(?:_.+)?"),
    _row(VISITS, rf"(?=.*[a-z0-9]+[_. -]+{_VISIT})(.*?)[_. -]+{_VISIT}(.*)"),
    _row(OTHER, r"(?s:.*)"),
)


def parse_name(name: str) -> tuple[str, str]:
    """Case id and role (a modality, `label` or nothing) of a file name without its ending."""
    case_id, suffix = _parsed(name)
    return case_id, ROLES.get(suffix, "")


def _parsed(name: str) -> tuple[str, str]:
    """Case id and the suffix, as `ROLES` has it, of a file name without its ending."""
    if bids := _BIDS.fullmatch(name):
        suffix = bids["suffix"].lower()
        if "_ce-" not in bids["entities"] or suffix == "dseg":
            return bids["id"], suffix
        # An enhanced T1; of the other images the one without contrast is wanted.
        return (bids["id"], "t1ce") if suffix == "t1w" else (name, "")
    match = _SUFFIX.fullmatch(name)
    if match is None:
        return name, ""
    suffix, case_id = match["suffix"].lower(), match["id"] or ""
    of_brain = match["brain"] or re.search(r"(^|[_. -])(brain|parenchyma)$", case_id.lower())
    if ROLES[suffix] == "label" and of_brain:
        return name, ""  # the brain's mask, not the tumour's
    return case_id, suffix


def modality_named(channel: str) -> str | None:
    """The modality that a channel's name stands for: `T1w`, `t1gd`, `T2-FLAIR`, `T1 post`; or None.

    >>> modality_named("T2-FLAIR")
    'flair'
    """
    plain = re.sub(r"[^a-z0-9]", "", channel.lower())
    more = {"t2flair": "flair", "t1post": "t1ce", "t1contrast": "t1ce", "t1pre": "t1"}
    role = ROLES.get(channel.lower()) or ROLES.get(plain) or more.get(plain)
    return role if role in MODALITIES else None


def name_of(path: Path) -> str:
    """The name that says what a file is: its own, without the ending, or that of its folder.

    Kaggle's copies of BraTS have folders named like files, `CASE_flair.nii/brain_flair.nii`.
    """
    folder = path.parent
    if is_nifti(folder) and parse_name(stem(folder))[1]:
        return stem(folder)
    return stem(path)


def folder_id(folder: Path) -> str:
    """The case id of bare files such as `t1.nii.gz` in a folder.

    >>> folder_id(Path("/data/Anna"))
    'Anna'
    >>> folder_id(Path("/data/Patient-001/week-000"))
    'Patient-001_week-000'
    """
    folder = folder.absolute()
    if folder.parent != folder and _OF_NO_CASE.fullmatch(folder.name):
        return folder_id(folder.parent) or folder.name
    if folder.parent != folder and _OF_A_VISIT.fullmatch(folder.name):
        return f"{folder_id(folder.parent)}_{folder.name}".lstrip("_")
    return folder.name


def companion(label_map: Path, name: str) -> Path:
    """The file of a further map, one of `BESIDE` or `UNCERTAINTY_OF`, beside a label map."""
    return label_map.with_name(f"{stem(label_map)}_{name}.nii.gz")


def lies_beside(name: str) -> bool:
    """Whether a file name without its ending is one that `predict` gives to a further map."""
    endings = tuple(f"_{each}" for each in (*BESIDE, *UNCERTAINTY_OF.values()))
    return f"_{name}".endswith(endings)


def label_rank(path: Path) -> int:
    """Position of a label map's suffix in `ROLES`; the lowest is preferred."""
    _, suffix = _parsed(name_of(path))
    return list(ROLES).index(suffix) if suffix else -1


def case_id_of(path: Path) -> str:
    """File name without its ending and without modality or `seg` suffix.

    A bare `t1.nii.gz` or `seg.nii.gz` takes the name of its folder.
    """
    case_id, _ = parse_name(name_of(path))
    return case_id or folder_id(path.parent)


def naming_of(case_id: str) -> Naming:
    """The row of `NAMINGS` that a case id follows."""
    return next(row for row in NAMINGS if row.id.fullmatch(case_id))


def patient_of(case_id: str) -> str:
    """The patient of a case; the case id itself if its name has no number for the visit."""
    match = naming_of(case_id).id.fullmatch(case_id)
    return "_".join(filter(None, match.groups() if match else ())) or case_id


def schemes_by_name(case_id: str, shape: tuple[int, ...] | None) -> tuple[LabelScheme, ...]:
    """The label schemes that a case's id and grid leave open; empty if they leave all open."""
    row = naming_of(case_id)
    by_grid = row.by_grid.get(shape) if shape else None
    return tuple(SCHEMES[name] for name in ((by_grid,) if by_grid else row.labels))
