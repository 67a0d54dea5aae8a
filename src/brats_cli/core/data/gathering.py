"""Which files make up a case: gathered from folders in the naming of any BraTS year."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import BratsError, CaseError
from ..images.nifti import shape_on_disk, stem
from .cases import Case, ImageFile
from .dataset_json import channel_order, declared_schemes, described_channels
from .folders import IMAGES, LABELS, Folder
from .labels import SCHEMES, LabelScheme
from .naming import (
    MODALITIES,
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

_CHANNEL = re.compile(r"(?P<id>.+)_(?P<channel>\d{4})")


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


def gather(folders: Iterable[Folder]) -> Survey:
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


def _gather_folder(folder: Folder, clashes: list[BratsError], others: list[Path]) -> list[_Found]:
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


def _entry(found: dict[str, _Found], case_id: str, folder: Folder) -> _Found:
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
    found: dict[str, _Found], folder: Folder, plain: list[str], clashes: list[BratsError]
) -> list[str]:
    """Add files whose names do not end in a modality: label maps, 4D files, nnU-Net's channels.

    Returns:
        The files that are none of these.
    """
    if LABELS.fullmatch(folder.path.absolute().name):
        for name in plain:
            _entry(found, stem(Path(name)), folder).label = folder.path / name
        return []
    in_images = IMAGES.fullmatch(folder.path.absolute().name) is not None
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


def _volumes_due(folder: Folder) -> int:
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
        declared.unclear,
        tuple(found.others),
    )


def _allowed(found: _Found) -> tuple[LabelScheme, ...]:
    """The label schemes that the name, the grid and the layout of a case leave open."""
    if found.layout:
        return (*schemes_by_name(found.id, None), SCHEMES[found.layout])
    grid_decides = naming_of(found.id).by_grid and found.images
    shape = shape_on_disk(next(iter(found.images.values())).path) if grid_decides else None
    return schemes_by_name(found.id, shape)
