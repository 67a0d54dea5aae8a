"""One patient visit on disk: which files belong together, in the naming of any BraTS year."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..compute.processes import in_threads
from ..errors import (
    BratsError,
    BratsWarning,
    CaseError,
    LabelError,
    MissingModalityError,
    NoCasesError,
    UnreadableFileError,
)
from ..images.background import odd_background, on_zero
from ..images.grid import Volume, require_same_grid
from ..images.nifti import (
    NIFTI_ENDINGS,
    LabelCount,
    is_nifti,
    read_channels,
    read_image,
    shape_on_disk,
    stem,
)
from .dataset_json import (
    Declared,
    channel_order,
    declared_schemes,
    described_channels,
    read_description,
)
from .labels import SCHEMES, LabelScheme, fitting_schemes, label_scheme, noted_scheme
from .naming import (
    MODALITIES,
    case_id_of,
    folder_id,
    label_rank,
    lies_beside,
    name_of,
    naming_of,
    parse_name,
    patient_of,
    schemes_by_name,
)

_MSD_ORDER = ("flair", "t1", "t1ce", "t2")
"""Channels of a 4D file of the Medical Decathlon, unless a dataset.json gives another order."""

_OTHER_ENDINGS = (".mha", ".mhd", ".nrrd", ".dcm", ".zip", ".tar", ".tgz", ".7z", ".hdr")
"""Files that brats does not read, but that may be found where NIfTI files are expected."""

_OTHER_IMAGES = (".mha", ".mhd", ".nrrd", ".mgz", ".mgh", ".hdr")
"""Those of them that may be images of a case."""

_CHANNEL = re.compile(r"(?P<id>.+)_(?P<channel>\d{4})")
_IMAGES = re.compile(r"images(tr|ts|val)?", re.IGNORECASE)
_LABELS = re.compile(r"labels(tr|ts|val)?", re.IGNORECASE)


@dataclass(frozen=True)
class ImageFile:
    """The image of one modality: a 3D file, or one channel of a 4D file."""

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
        scheme: The label scheme, if name and layout alone determine it.
        allowed: The schemes that name and layout leave open; empty if they leave all open.
        unclear: The labels as dataset.json names them, if no label scheme agrees with it.
        others: Images beside its own whose names give neither a modality nor a label map.
    """

    id: str
    patient: str
    images: Mapping[str, ImageFile]
    label: Path | None
    scheme: LabelScheme | None
    allowed: tuple[LabelScheme, ...] = ()
    unclear: str = ""
    others: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder that holds its images."""
        return next(iter(self.images.values())).path.parent

    def require(self, modalities: Sequence[str] = MODALITIES) -> None:
        """Check that the case has all of `modalities`.

        Raises:
            MissingModalityError: If it lacks one; the message lists those missing.
        """
        missing = [modality for modality in modalities if modality not in self.images]
        if missing:
            others = [path.name for path in self.others]
            raise MissingModalityError(self.id, missing, self.images, others=others)


def find_cases(root: Path) -> list[Case]:
    """Every case in the folder `root`, at any depth, sorted by id.

    Raises:
        NoCasesError: If there is none.
        CaseError: If a case, or a modality of a case, is found in two places.
    """
    found = survey(root)
    if found.clashes:
        raise found.clashes[0]
    return found.cases


class Survey(NamedTuple):
    """What was found in a folder.

    Attributes:
        cases: The cases, sorted by id.
        clashes: The conflicts between files.
        strays: Label maps without images.
        others: Images that belong to no case, as their names are not understood.
    """

    cases: list[Case]
    clashes: list[BratsError]
    strays: list[Path]
    others: list[Path]


def survey(root: Path) -> Survey:
    """Every case in the folder `root`, and the conflicts between its files.

    Folders that may not be read are skipped with a warning.

    Raises:
        NoCasesError: If there is neither a case nor a conflict.
    """
    if not root.is_dir():
        raise UnreadableFileError(root, "it is not a folder", hint="give the folder of a data set")
    found = _gather(_folders(root))
    if not found.cases and not found.clashes:
        others = {path.suffix for path in root.rglob("*") if path.suffix.lower() in _OTHER_ENDINGS}
        raise NoCasesError(root, found=sorted(others), files=found.others)
    return found


def case_at(path: Path) -> Case:
    """The case at `path`: its folder, its 4D file, or any one of its modality files.

    Raises:
        NoCasesError: If the folder holds none.
        CaseError: If it holds several, or if the file's name does not give its modality.
    """
    if path.is_dir() and not parse_name(name_of(path / "x"))[1]:
        cases = find_cases(path)
        if len(cases) > 1:
            raise CaseError(
                f"{path} holds {len(cases)} cases ({cases[0].id} to {cases[-1].id})",
                hint="give the folder of one case",
            )
        return cases[0]
    if not path.exists():
        raise UnreadableFileError(path, "there is no such file", hint="check the path")
    cases, clashes, *_ = _gather(_folders_near(path))
    for case in cases:
        files = [image.path for image in case.images.values()] + [case.label]
        if path in files or path in [file.parent for file in files if file]:
            return case
    raise next(
        (clash for clash in clashes if path.name in str(clash)),
        CaseError(
            f"{path} is neither a 4D file nor does its name end in a modality",
            hint="name it CASE_t1.nii.gz, _t1ce, _t2 or _flair (or _t1n, _t1c, _t2w, _t2f), or "
            "give one 4D file in the order FLAIR, T1, T1ce, T2",
        ),
    )


def find_each(paths: Sequence[Path]) -> tuple[list[Case], list[BratsError]]:
    """The cases at `paths`, each a case (folder or file) or a data set, and the errors of others.

    Every case comes once; a case id that is found in two places is an error.
    """
    cases: dict[str, Case] = {}
    wrong: list[BratsError] = []
    for path in paths:
        try:
            found, clashes = survey(path)[:2] if path.is_dir() else ([case_at(path)], [])
        except BratsError as error:
            found, clashes = [], [error]
        wrong += clashes
        for case in found:
            other = cases.setdefault(case.id, case)
            if other.folder.resolve() != case.folder.resolve():
                wrong.append(CaseError.twice(case.id, other.folder, case.folder))
    return list(cases.values()), wrong


def find_label_maps(root: Path) -> dict[str, Path]:
    """Label maps by case id: of a data set, of a folder of label maps, or of one file.

    In a folder without images every NIfTI file is a label map, with or without a `_seg` suffix,
    except for the probabilities and uncertainties that `brats predict` writes beside them.

    Raises:
        NoCasesError: If there is no label map.
        CaseError: If two label maps have the same case id.
    """
    if root.is_file():
        return {case_id_of(root): root}
    if not root.is_dir():
        raise UnreadableFileError(root, "there is no such file or folder", hint="check the path")
    files = [path for path in nifti_files(root) if not lies_beside(stem(path))]
    roles = {path: parse_name(name_of(path))[1] for path in files}
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


def nifti_files(root: Path) -> list[Path]:
    """Every NIfTI file in the folder `root`, at any depth."""
    return [folder.path / name for folder in _folders(root) for name in folder.files]


def declared_beside(label_map: Path) -> Declared:
    """What a dataset.json beside a label map, or above its `labelsTr`, says of its values.

    nnU-Net copies the one of the data set that it was trained on into the folder of predictions.
    """
    folder = label_map.absolute().parent
    description = read_description(folder)
    if not description and _LABELS.fullmatch(folder.name):
        description = read_description(folder.parent)
    return declared_schemes(description)


def read_images(case: Case, modalities: Sequence[str] = MODALITIES) -> list[Volume]:
    """The images of `case` as float32, in the order of `modalities`, all on one grid.

    Raises:
        MissingModalityError: If the case lacks one.
        UnreadableFileError: If a file is damaged or does not have the expected dimensions.
        GridMismatchError: If two images do not lie on the same grid.
    """
    case.require(modalities)
    files = [case.images[modality] for modality in modalities]
    if len({file.path for file in files}) == 1:
        volumes = read_channels(files[0].path, [file.channel for file in files])
    else:
        volumes = list(in_threads(lambda file: read_image(file.path, file.channel), files))
        require_same_grid(volumes)
    found = [replace(on_zero(volume), grid=volumes[0].grid) for volume in volumes]
    for before, after in zip(volumes, found, strict=True):
        if after.data is not before.data:
            background = odd_background(before.data)
            message = f"{before.path}: its background is {background:g}, taken as 0"
            warnings.warn(message, BratsWarning, stacklevel=2)
    return found


def with_schemes(
    cases: Sequence[Case], counts: Mapping[str, LabelCount], labels: LabelScheme | None = None
) -> list[Case]:
    """The cases with their label schemes, judged by the values of all cases that are named alike.

    Args:
        cases: Cases whose label maps were counted.
        counts: Label voxels by case id.
        labels: The scheme that the user gave.

    Raises:
        LabelError: If values fit no scheme, or several that give them different meanings.
    """
    schemes = {}
    for alike in alike_in_labels(cases, counts):
        scheme = scheme_of_all(alike, counts, labels)
        schemes.update({case.id: scheme for case in alike})
    return [replace(case, scheme=schemes[case.id], allowed=()) for case in cases]


def alike_in_labels(
    cases: Iterable[Case], counts: Mapping[str, LabelCount]
) -> Iterator[list[Case]]:
    """Groups of cases whose name, layout and header declare the same label schemes.

    A case whose values do not fit what is declared is a group of its own.
    """
    kin: dict[object, list[Case]] = {}
    for case in cases:
        count = counts[case.id]
        scheme = noted_scheme(count.note) or case.scheme
        if scheme and not scheme.values >= set(count.voxels):
            yield [case]
        else:
            known = [each.name for each in ((scheme,) if scheme else case.allowed)]
            kin.setdefault((naming_of(case.id).name, case.unclear, *known), []).append(case)
    yield from kin.values()


def scheme_of_all(
    cases: Sequence[Case], counts: Mapping[str, LabelCount], labels: LabelScheme | None = None
) -> LabelScheme:
    """The one label scheme of a group of cases, judged by all the values they hold.

    Raises:
        LabelError: If values fit no scheme, or several that give them different meanings.
    """
    first = cases[0]
    present = {value for case in cases for value in counts[case.id].voxels}
    declared = noted_scheme(counts[first.id].note) or first.scheme
    if first.unclear and labels is None and declared is None:
        raise unclear_labels(_labels_of(cases), present, first.unclear)
    return label_scheme(present, declared, _labels_of(cases), labels, allowed=first.allowed)


def unclear_labels(
    source: str, present: Iterable[int], words: str, *, flag: str = "--labels"
) -> LabelError:
    """What to say of label values whose names in dataset.json no label scheme agrees with."""
    values = sorted(set(present))
    fitting = [scheme.name for scheme in fitting_schemes(values)]
    return LabelError(
        f"{source} holds labels {', '.join(map(str, values))}, and its dataset.json says "
        f"'{words}', which no label scheme agrees with",
        hint=f"choose one with {flag}: {', '.join(fitting) or ', '.join(SCHEMES)}",
    )


def _labels_of(cases: Sequence[Case]) -> str:
    """The label maps of `cases`, for the start of a message."""
    if len(cases) == 1:
        return str(cases[0].label)
    return f"{cases[0].label} (and {len(cases) - 1} more with such a name)"


# --- reading folders ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Folder:
    """The NIfTI files of one folder, and the dataset.json in it or above it."""

    path: Path
    files: tuple[str, ...]
    description: Mapping[str, Any]
    others: tuple[str, ...] = ()


def _folders(root: Path) -> Iterator[_Folder]:
    """`root` and all folders below it that hold NIfTI files, in order of path."""
    entered = _Entered(root)
    parent = root.absolute().parent
    above = read_description(parent) if _IMAGES.fullmatch(root.absolute().name) else {}
    waiting = [(root, above)]
    while waiting:
        path, above = waiting.pop()
        try:
            files, others, below = _listing(path, entered)
        except UnreadableFileError as error:
            if path == root:
                raise
            warnings.warn(f"{error}; it is skipped", BratsWarning, stacklevel=2)
            continue
        description = read_description(path) or above
        if files or others:
            yield _Folder(path, files, description, others)
        waiting.extend((folder, description) for folder in reversed(below))


def _folders_near(path: Path) -> list[_Folder]:
    """The folder of the file `path`, and that of its labels where they lie apart."""
    inside = parse_name(stem(path.parent))[1] if is_nifti(path.parent) else ""
    near = [path.parent.parent if inside else path.parent]
    folder = near[0].absolute()
    if _IMAGES.fullmatch(folder.name):
        labels = re.sub("images", "labels", folder.name, flags=re.IGNORECASE)
        near.append(near[0].with_name(labels) if near[0].name else folder.parent / labels)
    found = []
    for each in near:
        if each.is_dir():
            files, others, _ = _listing(each, _Entered(each))
            description = read_description(each) or read_description(folder.parent)
            found.append(_Folder(each, files, description, others))
    return found


def _listing(path: Path, entered: _Entered) -> tuple[tuple[str, ...], tuple[str, ...], list[Path]]:
    """Names of the NIfTI files in a folder, of other images, and its subfolders.

    Hidden ones are left out. A folder that is named like a file of a case and holds one, as in
    Kaggle's copies of BraTS, stands for that file: `CASE_t1.nii/brain.nii`. A linked folder is left
    out if it lies inside or around one of `entered`, so that links cannot form an endless loop.
    """
    files, others, below = [], [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if not _is_folder(entry):
                    if name.lower().endswith(NIFTI_ENDINGS):
                        files.append(name)
                    elif name.lower().endswith(_OTHER_IMAGES):
                        others.append(name)
                elif inside := _only_file(path / name):
                    files.append(f"{name}/{inside}")
                elif not (entry.is_symlink() and entered.met(path / name)):
                    below.append(path / name)
    except OSError as error:
        raise UnreadableFileError(
            path, error.strerror or str(error), hint="check the permissions of the folder"
        ) from error
    return tuple(sorted(files)), tuple(sorted(others)), sorted(below)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _only_file(folder: Path) -> str:
    """The one file in a folder that is named like a file of a case; else nothing."""
    if not (is_nifti(folder) and parse_name(stem(folder))[1]):
        return ""
    try:
        inside = [entry.name for entry in os.scandir(folder) if is_nifti(Path(entry.name))]
    except OSError:
        return ""
    return inside[0] if len(inside) == 1 else ""


class _Entered:
    """The real folders that links led to, so that none is entered twice."""

    def __init__(self, root: Path) -> None:
        self._folders: set[Path] = set()
        self._around: set[Path] = set()
        self._add(root.resolve())

    def met(self, link: Path) -> bool:
        """Whether `link` leads in or around a folder that was entered; if not, it counts as one."""
        real = link.resolve()
        if real in self._around or not self._folders.isdisjoint((real, *real.parents)):
            return True
        self._add(real)
        return False

    def _add(self, real: Path) -> None:
        self._folders.add(real)
        self._around.update((real, *real.parents))


# --- gathering cases ---------------------------------------------------------------------------


@dataclass
class _Found:
    """A case while its files are gathered.

    Attributes:
        layout: The label scheme of the layout: msd, nnunet or empty.
    """

    id: str
    description: Mapping[str, Any]
    images: dict[str, ImageFile] = field(default_factory=dict)
    label: Path | None = None
    layout: str = ""
    others: list[Path] = field(default_factory=list)


def _gather(folders: Iterable[_Folder]) -> Survey:
    """The cases in `folders`, sorted by id, and the conflicts between their files.

    A label map without images beside it belongs to the case with its id, in whatever folder.
    """
    found: dict[str, _Found] = {}
    lone: dict[str, list[Path]] = {}
    clashes: list[BratsError] = []
    others: list[Path] = []
    for folder in folders:
        for case in _gather_folder(folder, clashes, others):
            key = case.id.casefold()
            if not case.images:
                lone.setdefault(key, []).extend([case.label] if case.label else [])
            elif key in found:
                places = [next(iter(each.images.values())).path for each in (found[key], case)]
                clashes.append(CaseError.twice(case.id, *places))
            else:
                found[key] = case
    for key, case in found.items():
        labels = sorted(lone.pop(key, []), key=label_rank)
        if case.label is None and len(labels) > 1 and len(set(map(label_rank, labels[:2]))) == 1:
            clashes.append(CaseError.twice(f"{case.id}'s label map", *labels[:2]))
        case.label = case.label or next(iter(labels), None)
    strays = [path for paths in lone.values() for path in paths]
    return Survey([_finish(found[key]) for key in sorted(found)], clashes, strays, others)


def _gather_folder(folder: _Folder, clashes: list[BratsError], others: list[Path]) -> list[_Found]:
    """The cases and lone label maps of one folder; images that are neither go to `others`."""
    found: dict[str, _Found] = {}
    plain: list[str] = []
    for name in folder.files:
        path = folder.path / name
        case_id, role = parse_name(name_of(path))
        if not role:
            plain.append(name)
            continue
        case = _entry(found, case_id or folder_id(folder.path), folder)
        if role == "label":
            _add_label(case, path, clashes)
        elif role in case.images:
            clashes.append(CaseError.modality_twice(case.id, role, case.images[role].path, path))
        else:
            case.images[role] = ImageFile(path)
    _adopt_lone_label(found)
    strange = _add_plain(found, folder, plain, clashes)
    for name in (*strange, *folder.others):
        _owner(found, name, others).append(folder.path / name)
    return list(found.values())


def _add_label(case: _Found, path: Path, clashes: list[BratsError]) -> None:
    """Add a label map; of two the one that `ROLES` has first, as the expert's, is taken."""
    if case.label and label_rank(case.label) == label_rank(path):
        clashes.append(CaseError.modality_twice(case.id, "label", case.label, path))
    case.label = min(filter(None, (case.label, path)), key=label_rank)


def _owner(found: Mapping[str, _Found], name: str, others: list[Path]) -> list[Path]:
    """The list that an image belongs to whose name is not understood: its case's, or `others`."""
    with_images = [case for case in found.values() if case.images]
    if len(with_images) == 1:
        return with_images[0].others
    lower = name.casefold()
    kin = [case for case in with_images if _derives(lower, {case.id.casefold()})]
    return kin[0].others if kin else others


def _entry(found: dict[str, _Found], case_id: str, folder: _Folder) -> _Found:
    return found.setdefault(case_id.casefold(), _Found(case_id, folder.description))


def _adopt_lone_label(found: dict[str, _Found]) -> None:
    """In a folder with one case, a label map with another name belongs to that case.

    The label map of BraTS20_Training_355 is called W39_1998.09.19_Segm.nii. One whose name starts
    with the case id is of something else, such as `CASE_ventricles_seg`.
    """
    with_images = [case for case in found.values() if case.images]
    lone = [case for case in found.values() if not case.images]
    if len(with_images) == len(lone) == 1 and with_images[0].label is None:
        case, other = with_images[0], lone[0]
        if not _derives(other.id.casefold(), {case.id.casefold()}):
            case.label = other.label
            del found[other.id.casefold()]


def _add_plain(
    found: dict[str, _Found], folder: _Folder, plain: list[str], clashes: list[BratsError]
) -> list[str]:
    """Add files whose names do not end in a modality: label maps, 4D files, nnU-Net's channels.

    Returns:
        The files that are none of these.
    """
    if _LABELS.fullmatch(folder.path.absolute().name):
        for name in plain:
            _entry(found, stem(Path(name)), folder).label = folder.path / name
        return []
    in_images = _IMAGES.fullmatch(folder.path.absolute().name) is not None
    named = set(found)
    complete = any(set(MODALITIES) <= set(case.images) for case in found.values())
    strange = []
    for name in plain:
        if lies_beside(stem(Path(name))):
            continue
        case_id, path = stem(Path(name)), folder.path / name
        channel = _CHANNEL.fullmatch(case_id)
        if channel and (in_images or folder.description):
            _add_channel(_entry(found, channel["id"], folder), path, channel["channel"], clashes)
        elif _derives(case_id.casefold(), named):
            strange.append(name)
        elif in_images or (not complete and _volumes(path) == _volumes_due(folder)):
            _add_4d(_entry(found, case_id, folder), path, clashes)
        else:
            strange.append(name)
    return strange


def _derives(name: str, named: set[str]) -> bool:
    """Whether `name` is a case id with a further suffix, like that of a brain mask."""
    ends = (match.start() for match in re.finditer(r"[_. -]", name))
    return any(name[:end] in named for end in ends)


def _volumes(path: Path) -> int | None:
    """How many volumes a 4D file holds; None if it is no such file."""
    shape = shape_on_disk(path)
    return shape[3] if shape is not None and len(shape) == 4 and shape[3] > 1 else None


def _volumes_due(folder: _Folder) -> int:
    return len(channel_order(folder.description) or _MSD_ORDER)


def _add_4d(case: _Found, path: Path, clashes: list[BratsError]) -> None:
    """Add a 4D file, whose channels are the Decathlon's or those that dataset.json gives."""
    case.layout = "msd"
    order: Sequence[str] = channel_order(case.description)
    if not order and described_channels(case.description):
        clashes.append(_unknown_channels(path, case.description))
        return
    order = order or _MSD_ORDER
    volumes = _volumes(path)
    if volumes is not None and volumes > len(order):
        clashes.append(
            CaseError(
                f"{path} holds {volumes} volumes where {len(order)} are due",
                hint="say which is which in a dataset.json (channel_names) above it, or keep "
                "FLAIR, T1, T1ce, T2 alone",
            )
        )
        return
    case.images = {
        role: ImageFile(path, number) for number, role in enumerate(order) if role in MODALITIES
    }


def _add_channel(case: _Found, path: Path, channel: str, clashes: list[BratsError]) -> None:
    """Add nnU-Net's file of one channel, whose modality is given in dataset.json."""
    case.layout = "nnunet"
    order = channel_order(case.description)
    if not order and described_channels(case.description):
        clashes.append(_unknown_channels(path, case.description))
        return
    if int(channel) >= len(order):
        clashes.append(
            CaseError(
                f"{path} is channel {int(channel)} of a case, but no dataset.json beside it or "
                "above it gives the modality of that channel",
                hint="add nnU-Net's dataset.json (with channel_names), or rename the files to "
                "CASE_t1.nii.gz, _t1ce, _t2 and _flair",
            )
        )
        return
    if order[int(channel)] in MODALITIES:
        case.images[order[int(channel)]] = ImageFile(path)


def _unknown_channels(path: Path, description: Mapping[str, Any]) -> CaseError:
    said = str(described_channels(description))
    return CaseError(
        f"the dataset.json of {path} names its channels {said[:200]}, which are not understood",
        hint="name them T1, T1ce, T2 and FLAIR, each once, by numbers from 0",
    )


def _finish(found: _Found) -> Case:
    declared = declared_schemes(found.description, found.layout)
    allowed = declared.schemes if declared.words else _allowed(found)
    return Case(
        found.id,
        patient_of(found.id),
        {role: found.images[role] for role in MODALITIES if role in found.images},
        found.label,
        allowed[0] if len(allowed) == 1 else None,
        allowed if len(allowed) > 1 else (),
        declared.words if declared.is_unclear else "",
        tuple(found.others),
    )


def _allowed(found: _Found) -> tuple[LabelScheme, ...]:
    """The label schemes that the name, the grid and the layout of a case leave open."""
    if found.layout:
        return (*schemes_by_name(found.id, None), SCHEMES[found.layout])
    grid_decides = naming_of(found.id).by_grid and found.images
    shape = shape_on_disk(next(iter(found.images.values())).path) if grid_decides else None
    return schemes_by_name(found.id, shape)
