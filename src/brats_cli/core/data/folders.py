"""Which NIfTI files lie in a folder and below it; links are followed once."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BratsWarning, UnreadableFileError
from ..images.nifti import NIFTI_ENDINGS, is_nifti, stem
from ..reading import real_path
from .dataset_json import read_description, read_dseg, read_dseg_above
from .naming import parse_name

_OTHER_IMAGES = (".mha", ".mhd", ".nrrd", ".mgz", ".mgh", ".hdr")
"""Files that brats does not read, but that may be images of a case."""

IMAGES = re.compile(r"images(tr|ts|val)?", re.IGNORECASE)
"""Names of the folders of images in the Medical Decathlon and nnU-Net."""

LABELS = re.compile(r"labels(tr|ts|val)?", re.IGNORECASE)
"""Names of the folders of their label maps."""


@dataclass(frozen=True)
class Folder:
    """The NIfTI files of one folder, and the dataset.json (BIDS: dseg.tsv) in it or above it."""

    path: Path
    files: tuple[str, ...]
    description: Mapping[str, Any]
    others: tuple[str, ...] = ()


def nifti_files(root: Path) -> list[Path]:
    """Every NIfTI file in the folder `root`, at any depth."""
    return [folder.path / name for folder in folders(root) for name in folder.files]


def folders(root: Path) -> Iterator[Folder]:
    """`root` and all folders below it that hold NIfTI files, in order of path."""
    entered = _Entered(root)
    parent = root.absolute().parent
    above = read_description(parent) if IMAGES.fullmatch(root.absolute().name) else {}
    above = above or read_dseg_above(root)
    waiting = [(root, above)]
    while waiting:
        path, above = waiting.pop()
        try:
            files, others, below, tables = _listing(path, entered)
        except UnreadableFileError as error:
            if path == root:
                raise
            warnings.warn(f"{error}; it is skipped", BratsWarning, stacklevel=2)
            continue
        beside = read_dseg(path) if tables else {}
        description = read_description(path) or {**above, **beside}
        if files or others:
            yield Folder(path, files, description, others)
        waiting.extend((folder, description) for folder in reversed(below))


def folders_near(path: Path) -> list[Folder]:
    """The folder of the file `path`, and that of its labels where they lie apart."""
    inside = parse_name(stem(path.parent))[1] if is_nifti(path.parent) else ""
    near = [path.parent.parent if inside else path.parent]
    folder = near[0].absolute()
    if IMAGES.fullmatch(folder.name):
        labels = re.sub("images", "labels", folder.name, flags=re.IGNORECASE)
        near.append(near[0].with_name(labels) if near[0].name else folder.parent / labels)
    found = []
    for each in near:
        if each.is_dir():
            files, others, *_ = _listing(each, _Entered(each))
            description = read_description(each) or read_description(folder.parent)
            description = description or read_dseg_above(each)
            found.append(Folder(each, files, description, others))
    return found


def _listing(
    path: Path, entered: _Entered
) -> tuple[tuple[str, ...], tuple[str, ...], list[Path], bool]:
    """Names of the NIfTI files in a folder, of other images, its subfolders, whether it has tables.

    Hidden ones are left out. A folder that is named like a file of a case and holds one, as in
    Kaggle's copies of BraTS, stands for that file: `CASE_t1.nii/brain.nii`. A linked folder is left
    out if it lies inside or around one of `entered`, so that links cannot form an endless loop.
    """
    files, others, below, tables = [], [], [], False
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
                    tables = tables or name.endswith(".tsv")
                elif inside := _only_file(path / name):
                    files.append(f"{name}/{inside}")
                elif not (entry.is_symlink() and entered.met(path / name)):
                    below.append(path / name)
    except OSError as error:
        raise UnreadableFileError(
            path, error.strerror or str(error), hint="check the permissions of the folder"
        ) from error
    return tuple(sorted(files)), tuple(sorted(others)), sorted(below), tables


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
        self.folders: set[Path] = set()
        self._around: set[Path] = set()
        self._add(real_path(root))

    def met(self, link: Path) -> bool:
        """Whether `link` leads in or around a folder that was entered; if not, it counts as one."""
        real = real_path(link)
        if real in self._around or not self.folders.isdisjoint((real, *real.parents)):
            return True
        self._add(real)
        return False

    def _add(self, real: Path) -> None:
        self.folders.add(real)
        self._around.update((real, *real.parents))
