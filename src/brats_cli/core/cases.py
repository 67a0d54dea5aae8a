"""One patient visit on disk: which files belong together, in the naming scheme of any year."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .errors import (
    BratsError,
    CaseError,
    LabelError,
    MissingModalityError,
    NoCasesError,
    UnreadableFileError,
)
from .labels import SCHEMES, LabelScheme, fitting_schemes, scheme_named
from .volumes import (
    NIFTI_ENDINGS,
    Volume,
    read_channel,
    read_volume,
    require_same_grid,
    shape_on_disk,
    stem,
)

MODALITIES = ("t1", "t1ce", "t2", "flair")
"""The channel order of everything that follows."""

_ROLES: Mapping[str, str] = {
    **dict.fromkeys(("t1", "t1n", "t1w"), "t1"),
    **dict.fromkeys(("t1ce", "t1c", "t1gd"), "t1ce"),
    **dict.fromkeys(("t2", "t2w"), "t2"),
    **dict.fromkeys(("flair", "fla", "t2f"), "flair"),
    **dict.fromkeys(
        ("seg", "segm", "glistrboost_manuallycorrected", "glistrboost", "gtv"), "label"
    ),
}
"""What a file is by the end of its name. Of two labels the one named first here is taken."""

_MSD_ORDER = ("flair", "t1", "t1ce", "t2")
"""Channels of a 4D file of the Medical Decathlon, where no dataset.json says otherwise."""

_SUFFIX = re.compile(rf"(?:(?P<id>.*?)[_. -])?(?P<suffix>{'|'.join(_ROLES)})", re.IGNORECASE)
_CHANNEL = re.compile(r"(?P<id>.+)_(?P<channel>\d{4})")
_IMAGES = re.compile(r"images(tr|ts|val)?", re.IGNORECASE)
_LABELS = re.compile(r"labels(tr|ts|val)?", re.IGNORECASE)


@dataclass(frozen=True)
class Naming:
    """How one release names its cases, and the label schemes that the name leaves open.

    Attributes:
        name: The release.
        id: A case id; its groups, joined by `_`, are the patient.
        labels: Label schemes that a case of this name may have.
        by_grid: The scheme of each grid, where the grid tells the year.
    """

    name: str
    id: re.Pattern[str]
    labels: tuple[str, ...] = ()
    by_grid: Mapping[tuple[int, ...], str] = field(default_factory=dict)


def _naming(name: str, pattern: str, *labels: str, **by_grid: tuple[int, ...]) -> Naming:
    grids = {shape: scheme for scheme, shape in by_grid.items()}
    return Naming(name, re.compile(pattern, re.IGNORECASE), labels, grids)


# The first row that matches a whole case id wins. Where a pattern has no group, the patient is
# the case. The last number of a 2017-2019 id is the visit; the year is left out of the patient,
# because the same patients came back every year (and TCIA's sites were numbered from 2018 on).
NAMINGS = (
    _naming("BraTS 2017-2019", r"brats1[789]_(tcia)\d*_(.+?)_\d+", "brats2020"),
    _naming("BraTS 2017-2019", r"brats1[789]_(.+?)_\d+", "brats2020"),
    _naming("BraTS 2017-2019", r"brats1[789]_(.+)", "brats2020"),
    _naming("BraTS 2020", r"brats20_(?:training|validation)_\d+", "brats2020"),
    _naming("BraTS 2021-2022", r"brats2021_(?:\w+_)?\d+", "brats2020"),
    _naming("BraTS 2024 MEN-RT", r"(brats-men-rt-\d+)-\d+", "men-rt"),
    _naming(
        "BraTS 2023+ GLI",
        r"(brats-gli-\d+)-\d+",
        brats2023=(240, 240, 155),
        brats2024=(182, 218, 182),
    ),
    _naming("BraTS 2023+ PED", r"(brats-ped-\d+)-\d+", "brats2023", "brats2024-ped"),
    _naming("BraTS 2023+", r"(brats-(?:ssa|men|met)-\d+)-\d+", "brats2023", "brats2024"),
    _naming("TCGA", r"(tcga-\w\w-\w{4})_.+", "brats2020"),
    _naming("MSD Task01", r"brats_\d+"),
    _naming("UPENN-GBM", r"(upenn-gbm-\d+)_\d+"),
    _naming("BIDS", r"(sub-[^_]+)_.+"),
    _naming("other", r".+"),
)


@dataclass(frozen=True)
class ImageFile:
    """Where one modality of a case is: a 3D file, or a channel of a 4D file."""

    path: Path
    channel: int | None = None


@dataclass(frozen=True)
class Case:
    """One visit of one patient.

    Attributes:
        id: Case id, without modality or `seg` suffix.
        patient: Shared by all visits of one patient.
        images: The file of each modality; some may be missing.
        label: The expert's label map, if there is one.
        scheme: The label scheme as name and layout alone tell it, or None.
        allowed: Where they leave several open, those; empty if they say nothing.
        naming: The release whose naming the id follows.
    """

    id: str
    patient: str
    images: Mapping[str, ImageFile]
    label: Path | None
    scheme: LabelScheme | None
    allowed: tuple[LabelScheme, ...] = ()
    naming: str = "other"

    @property
    def folder(self) -> Path:
        """The folder that holds its images."""
        return next(iter(self.images.values())).path.parent

    def require(self, modalities: Sequence[str] = MODALITIES) -> None:
        """Check that the case has all of `modalities`.

        Raises:
            MissingModalityError: Naming those that it lacks.
        """
        missing = [modality for modality in modalities if modality not in self.images]
        if missing:
            raise MissingModalityError(self.id, missing, self.images)


def case_id_of(path: Path) -> str:
    """File name without its ending and without modality or `seg` suffix.

    A bare `t1.nii.gz` or `seg.nii.gz` takes the name of its folder.
    """
    case_id, _ = _parse(stem(path))
    return case_id or path.absolute().parent.name


def patient_of(case_id: str) -> str:
    """The patient whose visit `case_id` is; the case id itself where it tells no visits."""
    return _naming_of(case_id)[1]


def find_cases(root: Path) -> list[Case]:
    """Every case in the folder `root`, at any depth, sorted by id.

    Raises:
        NoCasesError: If there is none.
        CaseError: If an id or a modality of a case stands in two places.
    """
    cases, clashes = survey(root)
    if clashes:
        raise clashes[0]
    return cases


def survey(root: Path) -> tuple[list[Case], list[BratsError]]:
    """Every case in the folder `root`, and what keeps others from being told apart.

    Raises:
        NoCasesError: If there is neither.
    """
    if not root.is_dir():
        raise UnreadableFileError(root, "it is not a folder", hint="give the data set's folder")
    cases, clashes = _gather(_folders(root))
    if not cases and not clashes:
        raise NoCasesError(root)
    return cases, clashes


def case_at(path: Path) -> Case:
    """The case at `path`: its folder, its 4D file, or any one of its modality files.

    Raises:
        NoCasesError: If the folder holds none.
        CaseError: If it holds several, or the file's name does not tell what it is.
    """
    if path.is_dir():
        cases = find_cases(path)
        if len(cases) > 1:
            raise CaseError(
                f"{path} holds {len(cases)} cases, {cases[0].id} to {cases[-1].id}",
                hint="give the folder of one case",
            )
        return cases[0]
    if not path.exists():
        raise UnreadableFileError(path, "there is no such file", hint="check the path")
    cases, clashes = _gather(_folders_near(path))
    for case in cases:
        if path in [image.path for image in case.images.values()] + [case.label]:
            return case
    raise next(
        (clash for clash in clashes if path.name in str(clash)),
        CaseError(
            f"{path} is neither a 4D file nor does its name end in a modality",
            hint="name it CASE_t1.nii.gz, _t1ce, _t2 or _flair (or _t1n, _t1c, _t2w, _t2f), or "
            "give one 4D file in the order FLAIR, T1, T1ce, T2",
        ),
    )


def resolve_cases(paths: Sequence[Path]) -> list[Case]:
    """The cases at `paths`, each a case (folder or file) or a data set folder; every case once."""
    cases: dict[str, Case] = {}
    for path in paths:
        for case in find_cases(path) if path.is_dir() else [case_at(path)]:
            other = cases.setdefault(case.id, case)
            if other.folder.resolve() != case.folder.resolve():
                raise CaseError.twice(case.id, other.folder, case.folder)
    return list(cases.values())


def find_label_maps(root: Path) -> dict[str, Path]:
    """Label maps by case id: of a data set, of a folder of label maps, or one file's.

    In a folder without images every NIfTI file is a label map, with or without a `_seg` suffix.

    Raises:
        NoCasesError: If there is no label map.
        CaseError: If two label maps have one id.
    """
    if root.is_file():
        return {case_id_of(root): root}
    if not root.is_dir():
        raise UnreadableFileError(root, "there is no such file or folder", hint="check the path")
    files = [folder.path / name for folder in _folders(root) for name in folder.files]
    roles = {path: _parse(stem(path))[1] for path in files}
    found: dict[str, Path] = {}
    if any(role in MODALITIES for role in roles.values()) or any(
        _IMAGES.fullmatch(path.parent.name) for path in files
    ):
        found = {case.id: case.label for case in find_cases(root) if case.label}
    else:
        for path in files:
            other = found.setdefault(case_id_of(path), path)
            if other != path:
                raise CaseError.twice(case_id_of(path), other, path)
    if not found:
        raise NoCasesError(root, "label maps")
    return dict(sorted(found.items()))


def read_images(case: Case, modalities: Sequence[str] = MODALITIES) -> list[Volume]:
    """The images of `case` as float32, in the order of `modalities`, all on one grid.

    Raises:
        MissingModalityError: If the case lacks one.
        UnreadableFileError: If a file is damaged or not of the dimensions due.
        GridMismatchError: If two do not lie on the same grid.
    """
    case.require(modalities)
    files = [case.images[modality] for modality in modalities]
    paths = {file.path for file in files}
    if len(paths) == 1 and len(files) > 1:
        read_channel(files[0].path, files[0].channel)  # checks the dimensions
        whole = read_volume(files[0].path)  # once, not once a channel
        return [
            Volume(whole.data[..., file.channel], whole.affine, whole.header, whole.path)
            for file in files
        ]
    volumes = [read_channel(file.path, file.channel) for file in files]
    require_same_grid(volumes)
    return volumes


def label_scheme(
    values: Iterable[int],
    declared: LabelScheme | None,
    source: str,
    labels: str | None = None,
    *,
    allowed: Sequence[LabelScheme] = (),
) -> LabelScheme:
    """What the values of `source` mean.

    The user's `labels` win; then what name or header declare, if the values fit; then what is
    left of `allowed`; then the schemes that hold these values and as few others as can be.

    Args:
        values: Values present, over the whole data set where there is one.
        declared: The scheme that name, layout or header tell, if they do.
        source: What the values come from, for messages.
        labels: The name of the scheme as the user gave it.
        allowed: The schemes that the name leaves open, if it tells no single one.

    Raises:
        LabelError: If no scheme fits, or two that give the values different meanings.
    """
    present = set(values)
    if labels is not None:
        scheme_named(labels).require(present, source)
        return scheme_named(labels)
    if declared is not None and present <= declared.values:
        return declared
    fitting = [scheme for scheme in allowed if present <= scheme.values] or _tightest(present)
    if not fitting:
        (declared or SCHEMES["brats2024"]).require(present, source)
    if any(_meanings(scheme, present) != _meanings(fitting[0], present) for scheme in fitting):
        names = ", ".join(scheme.name for scheme in fitting)
        held = ", ".join(map(str, sorted(present)))
        raise LabelError(
            f"{source} holds labels {held}, which fit several schemes: {names}",
            hint=f"say which it is with --labels, one of {names}",
        )
    return fitting[0]


def _tightest(present: set[int]) -> list[LabelScheme]:
    """The fitting schemes of whole tumours with no other fitting scheme's values inside theirs.

    So {0, 1, 2, 4} is 2017-2022's and not, with label 3 missing everywhere, 2012-2015's.
    """
    fitting = [
        scheme
        for scheme in fitting_schemes(present)
        if any(region.name == "WT" for region in scheme.regions)
    ]
    return [
        scheme for scheme in fitting if not any(other.values < scheme.values for other in fitting)
    ]


def _meanings(scheme: LabelScheme, present: set[int]) -> dict[int, str]:
    return {value: scheme.tissues[value] for value in present if value}


# --- reading folders ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Folder:
    """The NIfTI files of one folder, and the dataset.json in or above it."""

    path: Path
    files: tuple[str, ...]
    description: Path | None


@dataclass
class _Found:
    """A case while its files are gathered."""

    id: str
    images: dict[str, ImageFile] = field(default_factory=dict)
    label: Path | None = None
    layout: str = ""  # the label scheme that the layout tells: msd, nnunet or ""
    description: Path | None = None


def _folders(root: Path) -> Iterator[_Folder]:
    """`root` and all folders below it that hold NIfTI files, in order of path."""
    entered = [root.resolve()]
    waiting: list[tuple[Path, Path | None]] = [(root, None)]
    while waiting:
        path, above = waiting.pop()
        description = _description(path, above)
        files, below = _listing(path, entered)
        if files:
            yield _Folder(path, files, description)
        waiting.extend((folder, description) for folder in reversed(below))


def _folders_near(path: Path) -> list[_Folder]:
    """The folder of the file `path`, and that of its labels where they lie apart."""
    folder = path.parent
    near = [folder]
    if _IMAGES.fullmatch(folder.name):
        near.append(folder.parent / re.sub("images", "labels", folder.name, flags=re.IGNORECASE))
    above = _description(folder.absolute().parent, None)
    return [
        _Folder(each, _listing(each, [])[0], _description(each, above))
        for each in near
        if each.is_dir()
    ]


def _listing(path: Path, entered: list[Path]) -> tuple[tuple[str, ...], list[Path]]:
    """Names of the NIfTI files in a folder, and the folders in it; what is hidden is left out.

    A linked folder is added to `entered`, and left out if it lies in or around one of those, so
    that links cannot go round in circles.
    """
    files, below = [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.lower().endswith(NIFTI_ENDINGS) and not entry.is_dir():
                    files.append(entry.name)
                elif entry.is_dir() and not (entry.is_symlink() and _met(Path(entry), entered)):
                    below.append(path / entry.name)
    except OSError as error:
        raise UnreadableFileError(
            path, error.strerror or str(error), hint="check the permissions of the folder"
        ) from error
    return tuple(sorted(files)), sorted(below)


def _met(link: Path, entered: list[Path]) -> bool:
    """Whether `link` leads to a folder in or around one of `entered`; if not, it is added."""
    real = link.resolve()
    if any(real.is_relative_to(other) or other.is_relative_to(real) for other in entered):
        return True
    entered.append(real)
    return False


def _description(folder: Path, above: Path | None) -> Path | None:
    beside = folder / "dataset.json"
    return beside if beside.is_file() else above


def _parse(name: str) -> tuple[str, str]:
    """Case id and role (a modality, `label` or nothing) of a file name without its ending."""
    match = _SUFFIX.fullmatch(name)
    if match is None:
        return name, ""
    return match["id"] or "", _ROLES[match["suffix"].lower()]


def _label_rank(path: Path) -> int:
    match = _SUFFIX.fullmatch(stem(path))
    return list(_ROLES).index(match["suffix"].lower()) if match else -1


# --- gathering cases ---------------------------------------------------------------------------


def _gather(folders: Iterable[_Folder]) -> tuple[list[Case], list[BratsError]]:
    """The cases in `folders`, sorted by id, and what keeps others from being told apart.

    A label map without images beside it goes to the case of its id, wherever that lies.
    """
    found: dict[str, _Found] = {}
    labels: dict[str, Path] = {}
    clashes: list[BratsError] = []
    for folder in folders:
        for case in _gather_folder(folder, clashes):
            key = case.id.casefold()
            if not case.images and case.label:
                labels.setdefault(key, case.label)
            elif key in found:
                places = [next(iter(each.images.values())).path for each in (found[key], case)]
                clashes.append(CaseError.twice(case.id, *places))
            else:
                found[key] = case
    for key, case in found.items():
        case.label = case.label or labels.get(key)
    return [_finish(found[key]) for key in sorted(found)], clashes


def _gather_folder(folder: _Folder, clashes: list[BratsError]) -> list[_Found]:
    """The cases and lone label maps of one folder."""
    found: dict[str, _Found] = {}
    plain: list[str] = []
    for name in folder.files:
        case_id, role = _parse(stem(Path(name)))
        if not role:
            plain.append(name)
            continue
        case = _entry(found, case_id or folder.path.absolute().name, folder)
        path = folder.path / name
        if role == "label":
            case.label = min(filter(None, (case.label, path)), key=_label_rank)
        elif role in case.images:
            clashes.append(CaseError.modality_twice(case.id, role, case.images[role].path, path))
        else:
            case.images[role] = ImageFile(path)
    _adopt_lone_label(found, folder, plain)
    _add_plain(found, folder, plain, clashes)
    return list(found.values())


def _entry(found: dict[str, _Found], case_id: str, folder: _Folder) -> _Found:
    return found.setdefault(case_id.casefold(), _Found(case_id, description=folder.description))


def _adopt_lone_label(found: dict[str, _Found], folder: _Folder, plain: list[str]) -> None:
    """In a folder of one case, a label map with another name is that case's.

    BraTS20_Training_355's is called W39_1998.09.19_Segm.nii.
    """
    with_images = [case for case in found.values() if case.images]
    lone = [case for case in found.values() if not case.images]
    if len(with_images) == len(lone) == 1 and with_images[0].label is None:
        with_images[0].label = lone[0].label
        del found[lone[0].id.casefold()]


def _add_plain(
    found: dict[str, _Found], folder: _Folder, plain: list[str], clashes: list[BratsError]
) -> None:
    """Cases in files whose names end in no modality: label maps, 4D files, nnU-Net's channels."""
    if _LABELS.fullmatch(folder.path.name):
        for name in plain:
            _entry(found, stem(Path(name)), folder).label = folder.path / name
        return
    known = tuple(found)
    for name in plain:
        case_id, path = stem(Path(name)), folder.path / name
        channel = _CHANNEL.fullmatch(case_id)
        if channel and (folder.description or _IMAGES.fullmatch(folder.path.name)):
            _add_channel(_entry(found, channel["id"], folder), path, channel["channel"], clashes)
        elif known and case_id.casefold().startswith(known):
            continue  # something derived of a case at hand, such as a brain mask
        elif _is_4d(path, folder):
            case = _entry(found, case_id, folder)
            case.layout = "msd"
            order = _channel_order(folder.description) or _MSD_ORDER
            case.images = {role: ImageFile(path, channel) for channel, role in enumerate(order)}


def _is_4d(path: Path, folder: _Folder) -> bool:
    if _IMAGES.fullmatch(folder.path.name):
        return True
    shape = shape_on_disk(path)
    return shape is not None and len(shape) == 4 and shape[3] > 1


def _add_channel(case: _Found, path: Path, channel: str, clashes: list[BratsError]) -> None:
    """Add nnU-Net's file of one channel; dataset.json tells which modality it is."""
    case.layout = "nnunet"
    order = _channel_order(case.description)
    if order is None or int(channel) >= len(order):
        clashes.append(
            CaseError(
                f"{path} is channel {int(channel)} of a case, but no dataset.json beside or above "
                "it tells which modality that is",
                hint="put nnU-Net's dataset.json (channel_names) there, or name the files "
                "CASE_t1.nii.gz, _t1ce, _t2 and _flair",
            )
        )
        return
    case.images[order[int(channel)]] = ImageFile(path)


@cache
def _content(description: Path) -> Mapping[str, Any]:
    """What dataset.json says."""
    try:
        content = json.loads(description.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UnreadableFileError(description, "it is not JSON") from error
    return content if isinstance(content, dict) else {}


def _channel_order(description: Path | None) -> list[str] | None:
    """Modalities by channel, as dataset.json names them; None where it does not."""
    if description is None:
        return None
    content = _content(description)
    names = content.get("channel_names") or content.get("modality")
    if not isinstance(names, dict):
        return None
    order = []
    for _, name in sorted(names.items(), key=lambda item: int(item[0])):
        order.append(_ROLES.get(str(name).lower(), str(name)))
    return order


def _declared(description: Path | None, layout: str) -> LabelScheme | None:
    """The scheme whose tissues dataset.json names, or None."""
    labels = _content(description).get("labels") if description else None
    if not isinstance(labels, dict):
        return None
    if any(isinstance(value, list) for value in labels.values()):
        tissues = _tissues_of_regions(labels)
    else:
        # The Decathlon writes {"1": "edema"}, nnU-Net {"edema": 1}.
        pairs = [(v, k) if str(v).isdigit() else (k, v) for k, v in labels.items()]
        tissues = {int(v): _tissue(str(n)) for v, n in pairs if str(v).isdigit() and int(v)}
    fitting = {s.name: s for s in SCHEMES.values() if s.tissues == tissues}
    return fitting.get(layout) or next(iter(fitting.values()), None)


# In this order: "non-enhancing" is met before "enhancing".
_TISSUE_WORDS = {
    r"edema|snfh|peritum": "ED",
    r"resection|cavity|^rc$": "RC",
    r"cyst|^cc$": "CC",
    r"non.?enh|necro|ncr|net|core": "NCR",
    r"enh|^et$": "ET",
}


def _tissue(name: str) -> str:
    lower = name.lower()
    return next((t for words, t in _TISSUE_WORDS.items() if re.search(words, lower)), lower)


def _tissues_of_regions(labels: Mapping[str, Any]) -> dict[int, str]:
    """Tissues by value, where dataset.json gives nested regions as lists of values.

    What lies in one region only is edema, in two necrosis, in all three enhancing tumour.
    """
    lists = [value if isinstance(value, list) else [value] for value in labels.values()]
    depth = Counter(value for values in lists for value in values if value)
    return {int(v): ("ED", "NCR", "ET")[min(n, 3) - 1] for v, n in sorted(depth.items())}


def _allowed(row: Naming, found: _Found) -> tuple[LabelScheme, ...]:
    """The schemes that the name, the grid and the layout of a case leave open."""
    if found.layout and (declared := _declared(found.description, found.layout)):
        return (declared,)
    names = row.labels or tuple(row.by_grid.values())
    if found.layout:
        names = (*names, found.layout)
    elif row.by_grid and found.images:
        shape = shape_on_disk(next(iter(found.images.values())).path)
        if shape is not None and shape in row.by_grid:
            names = (row.by_grid[shape],)
    return tuple(SCHEMES[name] for name in names)


def _naming_of(case_id: str) -> tuple[Naming, str]:
    """The row of `NAMINGS` that a case id follows, and the patient it tells."""
    for row in NAMINGS:
        match = row.id.fullmatch(case_id)
        if match:
            return row, "_".join(match.groups()) or case_id
    raise ValueError("a case id cannot be empty")


def _finish(found: _Found) -> Case:
    row, patient = _naming_of(found.id)
    allowed = _allowed(row, found)
    return Case(
        found.id,
        patient,
        {role: found.images[role] for role in MODALITIES if role in found.images},
        found.label,
        allowed[0] if len(allowed) == 1 else None,
        allowed if len(allowed) > 1 else (),
        row.name,
    )
