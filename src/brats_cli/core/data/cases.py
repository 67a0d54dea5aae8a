"""One patient visit on disk: which files belong together, in the naming of any BraTS year."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..compute.processes import in_threads
from ..errors import (
    BratsError,
    CaseError,
    MissingModalityError,
    NoCasesError,
    UnreadableFileError,
)
from ..images.grid import Volume, require_same_grid
from ..images.nifti import (
    NIFTI_ENDINGS,
    LabelCount,
    read_channels,
    read_image,
    shape_on_disk,
    stem,
)
from .dataset_json import channel_order, declared_scheme, read_description
from .labels import SCHEMES, LabelScheme, label_scheme, noted_scheme
from .naming import (
    MODALITIES,
    case_id_of,
    label_rank,
    lies_beside,
    naming_of,
    parse_name,
    patient_of,
    schemes_by_name,
)

_MSD_ORDER = ("flair", "t1", "t1ce", "t2")
"""Channels of a 4D file of the Medical Decathlon, unless a dataset.json gives another order."""

_OTHER_ENDINGS = (".mha", ".mhd", ".nrrd", ".dcm", ".zip", ".tar", ".tgz", ".7z", ".hdr")
"""Files that brats does not read, but that may be found where NIfTI files are expected."""

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
    """

    id: str
    patient: str
    images: Mapping[str, ImageFile]
    label: Path | None
    scheme: LabelScheme | None
    allowed: tuple[LabelScheme, ...] = ()

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
            raise MissingModalityError(self.id, missing, self.images)


def find_cases(root: Path) -> list[Case]:
    """Every case in the folder `root`, at any depth, sorted by id.

    Raises:
        NoCasesError: If there is none.
        CaseError: If a case, or a modality of a case, is found in two places.
    """
    cases, clashes = survey(root)
    if clashes:
        raise clashes[0]
    return cases


def survey(root: Path) -> tuple[list[Case], list[BratsError]]:
    """Every case in the folder `root`, and the conflicts between its files.

    Raises:
        NoCasesError: If there is neither.
    """
    if not root.is_dir():
        raise UnreadableFileError(root, "it is not a folder", hint="give the folder of a data set")
    cases, clashes = _gather(_folders(root))
    if not cases and not clashes:
        others = {path.suffix for path in root.rglob("*") if path.suffix.lower() in _OTHER_ENDINGS}
        raise NoCasesError(root, found=sorted(others))
    return cases, clashes


def case_at(path: Path) -> Case:
    """The case at `path`: its folder, its 4D file, or any one of its modality files.

    Raises:
        NoCasesError: If the folder holds none.
        CaseError: If it holds several, or if the file's name does not give its modality.
    """
    if path.is_dir():
        cases = find_cases(path)
        if len(cases) > 1:
            raise CaseError(
                f"{path} holds {len(cases)} cases ({cases[0].id} to {cases[-1].id})",
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
    """The cases at `paths`, each a case (folder or file) or a data set; every case once.

    Raises:
        CaseError: If one case id is found in two places.
    """
    cases: dict[str, Case] = {}
    for path in paths:
        for case in find_cases(path) if path.is_dir() else [case_at(path)]:
            other = cases.setdefault(case.id, case)
            if other.folder.resolve() != case.folder.resolve():
                raise CaseError.twice(case.id, other.folder, case.folder)
    return list(cases.values())


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
    roles = {path: parse_name(stem(path))[1] for path in files}
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
        return read_channels(files[0].path, [file.channel for file in files])
    volumes = list(in_threads(lambda file: read_image(file.path, file.channel), files))
    require_same_grid(volumes)
    return [replace(volume, grid=volumes[0].grid) for volume in volumes]


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
            kin.setdefault((naming_of(case.id).name, *known), []).append(case)
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
    return label_scheme(present, declared, _labels_of(cases), labels, allowed=first.allowed)


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


def _folders(root: Path) -> Iterator[_Folder]:
    """`root` and all folders below it that hold NIfTI files, in order of path."""
    entered = [root.resolve()]
    parent = root.absolute().parent
    above = read_description(parent) if _IMAGES.fullmatch(root.absolute().name) else {}
    waiting = [(root, above)]
    while waiting:
        path, above = waiting.pop()
        description = read_description(path) or above
        files, below = _listing(path, entered)
        if files:
            yield _Folder(path, files, description)
        waiting.extend((folder, description) for folder in reversed(below))


def _folders_near(path: Path) -> list[_Folder]:
    """The folder of the file `path`, and that of its labels where they lie apart."""
    folder = path.absolute().parent
    near = [path.parent]
    if _IMAGES.fullmatch(folder.name):
        labels = re.sub("images", "labels", folder.name, flags=re.IGNORECASE)
        near.append(path.parent.with_name(labels) if path.parent.name else folder.parent / labels)
    return [
        _Folder(
            each, _listing(each, [])[0], read_description(each) or read_description(folder.parent)
        )
        for each in near
        if each.is_dir()
    ]


def _listing(path: Path, entered: list[Path]) -> tuple[tuple[str, ...], list[Path]]:
    """Names of the NIfTI files in a folder, and its subfolders; hidden ones are left out.

    A linked folder is added to `entered`; it is left out if it lies inside or around one of
    those, so that links cannot form an endless loop.
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
    """Whether `link` points inside or around one of `entered`; if not, it is added to them."""
    real = link.resolve()
    if any(real.is_relative_to(other) or other.is_relative_to(real) for other in entered):
        return True
    entered.append(real)
    return False


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


def _gather(folders: Iterable[_Folder]) -> tuple[list[Case], list[BratsError]]:
    """The cases in `folders`, sorted by id, and the conflicts between their files.

    A label map without images beside it belongs to the case with its id, in whatever folder.
    """
    found: dict[str, _Found] = {}
    lone: dict[str, list[Path]] = {}
    clashes: list[BratsError] = []
    for folder in folders:
        for case in _gather_folder(folder, clashes):
            key = case.id.casefold()
            if not case.images:
                lone.setdefault(key, []).extend([case.label] if case.label else [])
            elif key in found:
                places = [next(iter(each.images.values())).path for each in (found[key], case)]
                clashes.append(CaseError.twice(case.id, *places))
            else:
                found[key] = case
    for key, case in found.items():
        labels = lone.get(key, [])
        if case.label is None and len(labels) > 1:
            clashes.append(CaseError.twice(f"{case.id}'s label map", *labels[:2]))
        case.label = case.label or next(iter(labels), None)
    return [_finish(found[key]) for key in sorted(found)], clashes


def _gather_folder(folder: _Folder, clashes: list[BratsError]) -> list[_Found]:
    """The cases and lone label maps of one folder."""
    found: dict[str, _Found] = {}
    plain: list[str] = []
    for name in folder.files:
        case_id, role = parse_name(stem(Path(name)))
        if not role:
            plain.append(name)
            continue
        case = _entry(found, case_id or folder.path.absolute().name, folder)
        path = folder.path / name
        if role == "label":
            case.label = min(filter(None, (case.label, path)), key=label_rank)
        elif role in case.images:
            clashes.append(CaseError.modality_twice(case.id, role, case.images[role].path, path))
        else:
            case.images[role] = ImageFile(path)
    _adopt_lone_label(found)
    _add_plain(found, folder, plain, clashes)
    return list(found.values())


def _entry(found: dict[str, _Found], case_id: str, folder: _Folder) -> _Found:
    return found.setdefault(case_id.casefold(), _Found(case_id, folder.description))


def _adopt_lone_label(found: dict[str, _Found]) -> None:
    """In a folder with one case, a label map with another name belongs to that case.

    The label map of BraTS20_Training_355 is called W39_1998.09.19_Segm.nii.
    """
    with_images = [case for case in found.values() if case.images]
    lone = [case for case in found.values() if not case.images]
    if len(with_images) == len(lone) == 1 and with_images[0].label is None:
        with_images[0].label = lone[0].label
        del found[lone[0].id.casefold()]


def _add_plain(
    found: dict[str, _Found], folder: _Folder, plain: list[str], clashes: list[BratsError]
) -> None:
    """Add files whose names do not end in a modality: label maps, 4D files, nnU-Net's channels."""
    if _LABELS.fullmatch(folder.path.absolute().name):
        for name in plain:
            _entry(found, stem(Path(name)), folder).label = folder.path / name
        return
    in_images = _IMAGES.fullmatch(folder.path.absolute().name) is not None
    named = set(found)
    for name in plain:
        if lies_beside(stem(Path(name))):
            continue
        case_id, path = stem(Path(name)), folder.path / name
        channel = _CHANNEL.fullmatch(case_id)
        if channel and (in_images or folder.description):
            _add_channel(_entry(found, channel["id"], folder), path, channel["channel"], clashes)
        elif not _derives(case_id.casefold(), named) and (in_images or _is_4d(path)):
            case = _entry(found, case_id, folder)
            case.layout = "msd"
            order = channel_order(folder.description) or _MSD_ORDER
            case.images = {
                role: ImageFile(path, number)
                for number, role in enumerate(order)
                if role in MODALITIES
            }


def _derives(name: str, named: set[str]) -> bool:
    """Whether `name` is a case id with a further suffix, like that of a brain mask."""
    ends = (match.start() for match in re.finditer(r"[_. -]", name))
    return any(name[:end] in named for end in ends)


def _is_4d(path: Path) -> bool:
    shape = shape_on_disk(path)
    return shape is not None and len(shape) == 4 and shape[3] > 1


def _add_channel(case: _Found, path: Path, channel: str, clashes: list[BratsError]) -> None:
    """Add nnU-Net's file of one channel, whose modality is given in dataset.json."""
    case.layout = "nnunet"
    order = channel_order(case.description)
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


def _finish(found: _Found) -> Case:
    allowed = _allowed(found)
    return Case(
        found.id,
        patient_of(found.id),
        {role: found.images[role] for role in MODALITIES if role in found.images},
        found.label,
        allowed[0] if len(allowed) == 1 else None,
        allowed if len(allowed) > 1 else (),
    )


def _allowed(found: _Found) -> tuple[LabelScheme, ...]:
    """The label schemes that the name, the grid and the layout of a case leave open."""
    if found.layout and (declared := declared_scheme(found.description, found.layout)):
        return (declared,)
    if found.layout:
        return (*schemes_by_name(found.id, None), SCHEMES[found.layout])
    grid_decides = naming_of(found.id).by_grid and found.images
    shape = shape_on_disk(next(iter(found.images.values())).path) if grid_decides else None
    return schemes_by_name(found.id, shape)
