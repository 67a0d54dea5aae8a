"""Where the cases and the label maps are: at a path, or in the folder of a data set."""

from __future__ import annotations

from pathlib import Path

from ..errors import CaseError, NoCasesError, UnreadableFileError
from ..images.nifti import stem
from .cases import Case
from .folders import IMAGES, folders, folders_near, nifti_files
from .gathering import Survey, gather
from .naming import MODALITIES, case_id_of, lies_beside, name_of, parse_name

_OTHER_ENDINGS = (".mha", ".mhd", ".nrrd", ".dcm", ".zip", ".tar", ".tgz", ".7z", ".hdr")
"""Files that brats does not read, but that may be found where NIfTI files are expected."""


def find_cases(root: Path) -> list[Case]:
    """Every case in the folder `root`, at any depth, sorted by id.

    Raises:
        NoCasesError: If there is none.
        UnreadableFileError: If `root` is not a folder, or may not be read.
        CaseError: If a case, or a modality of a case, is found in two places.
    """
    found = survey(root)
    if found.clashes:
        raise found.clashes[0]
    return found.cases


def survey(root: Path) -> Survey:
    """Every case in the folder `root`, and the conflicts between its files.

    Folders that may not be read are skipped with a warning.

    Raises:
        NoCasesError: If there is neither a case nor a conflict.
        UnreadableFileError: If `root` is not a folder, or may not be read.
    """
    if not root.is_dir():
        raise UnreadableFileError(root, "it is not a folder", hint="give the folder of a data set")
    found = gather(folders(root))
    if not found.cases and not found.clashes:
        others = {path.suffix for path in root.rglob("*") if path.suffix.lower() in _OTHER_ENDINGS}
        raise NoCasesError(root, found=sorted(others), files=found.others)
    return found


def case_at(path: Path) -> Case:
    """The case at `path`: its folder, its 4D file, or any one of its modality files.

    Raises:
        NoCasesError: If the folder holds none.
        UnreadableFileError: If there is nothing at `path`.
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
    cases, clashes, *_ = gather(folders_near(path))
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


def find_label_maps(root: Path) -> dict[str, Path]:
    """Label maps by case id: of a data set, of a folder of label maps, or of one file.

    In a folder without images every NIfTI file is a label map, with or without a `_seg` suffix,
    except for the probabilities and uncertainties that `brats predict` writes beside them.

    Raises:
        NoCasesError: If there is no label map.
        UnreadableFileError: If there is nothing at `root`.
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
        IMAGES.fullmatch(path.parent.name) for path in files
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
