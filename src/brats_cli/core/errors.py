"""Errors that a user can fix: each says what is wrong and where, and hints at the remedy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .wording import listing


class BratsError(Exception):
    """An error in the user's data, files or settings; printed in two lines, without a traceback.

    Args:
        message: One line: what is wrong, where, and what was found.
        hint: One line: what to do about it.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(" ".join(message.split()))
        self.hint = " ".join(hint.split())

    @classmethod
    def of_system(cls, error: OSError) -> BratsError:
        """What the system says of a path: too long a name, no permission, a disk that is gone."""
        name = error.filename
        found = BratsError(
            f"cannot use {os.fsdecode(name) if isinstance(name, bytes) else name}: "
            f"{error.strerror}",
            hint="check the path, the permissions of its folders, and that the disk is not full",
        )
        found.__cause__ = error
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        # To travel between processes: a subclass cannot be created again from its message alone.
        return _again, (type(self), str(self), vars(self))


def _again(kind: type[BratsError], message: str, facts: dict[str, Any]) -> BratsError:
    error = kind.__new__(kind, message)
    vars(error).update(facts)
    return error


class BratsWarning(UserWarning):
    """Something unusual in the user's data that does not stop the work."""


class ConfigError(BratsError):
    """A setting that does not exist or cannot have the given value."""


class SplitError(BratsError):
    """A split that is malformed, has a patient in two parts, or is impossible."""


class CheckpointError(BratsError):
    """A checkpoint that cannot be read or used."""


class DeviceError(BratsError):
    """A device that this machine does not have."""


class LabelError(BratsError):
    """A label map whose values fit no label scheme, or several."""

    @classmethod
    def predicted(cls, path: Path) -> LabelError:
        """A label map of a network where an expert's is needed."""
        return cls(
            f"{path} was made by brats predict: it is not an expert's label map",
            hint="a network would learn from itself: move the predictions out of the data set",
        )


class MeshError(BratsError):
    """A surface that cannot be made from a label map."""


class UnreadableFileError(BratsError):
    """A file that is missing, truncated, or not in the format that its name indicates."""

    def __init__(self, path: Path, reason: str, *, hint: str = "") -> None:
        super().__init__(
            f"cannot read {path}: {reason}",
            hint=hint or "is the file complete? copy or download it again, and compare its size",
        )
        self.path = path


class GridMismatchError(BratsError):
    """Two files of one case that do not lie on the same voxel grid."""

    def __init__(
        self, first: Path, second: Path, difference: str, *, lost: Sequence[Path] = ()
    ) -> None:
        hint = (
            "all files of a case must have the same shape and affine: "
            "resample one to the grid of the other"
        )
        if len(lost) == 1:
            other = first if lost[0] == second else second
            hint = (
                f"{lost[0].name} lost its header (its affine is the identity, or has no code): if "
                f"its voxels are those of {other.name}, copy the affine of that; do not resample"
            )
        super().__init__(f"{second} does not lie on the grid of {first}: {difference}", hint=hint)


class NoCasesError(BratsError):
    """A folder without cases."""

    def __init__(
        self,
        root: Path,
        wanted: str = "cases",
        found: Sequence[str] = (),
        files: Sequence[Path] = (),
    ) -> None:
        instead = f" (only {', '.join(found)} files: convert them to .nii.gz)" if found else ""
        if files and not instead:
            names = listing([path.name for path in files])
            instead = f" (only images whose names are not understood: {names})"
        super().__init__(
            f"no {wanted} in {root}{instead}",
            hint="a case is a folder with one NIfTI file for each of T1, T1ce, T2 and FLAIR, "
            "or one 4D file; see README, 'Which data'",
        )


class CaseError(BratsError):
    """Files that cannot be assigned to cases."""

    @classmethod
    def twice(cls, case_id: str, first: Path, second: Path) -> CaseError:
        """One case id in two places."""
        return cls(
            f"case {case_id} was found in two places: {first} and {second}",
            hint="remove one of them, or rename it if they are different cases",
        )

    @classmethod
    def modality_twice(cls, case_id: str, modality: str, first: Path, second: Path) -> CaseError:
        """Two files for one modality of a case."""
        return cls(
            f"case {case_id} has two {modality} files: {first} and {second.name}",
            hint="keep one of them; perhaps one is an uncompressed copy of the other",
        )


class MissingModalityError(BratsError):
    """A case that lacks some of the four MR sequences."""

    def __init__(
        self,
        case_id: str,
        missing: Iterable[str],
        found: Iterable[str],
        *,
        blank: Sequence[str] = (),
        others: Sequence[str] = (),
        hint: str = "",
    ) -> None:
        facts = f"found: {', '.join(found) or 'none'}"
        if blank:
            facts += f"; every voxel of {', '.join(blank)} is the same"
        if others:
            facts += f"; not understood: {listing(others)}"
        super().__init__(
            f"case {case_id} has no {', '.join(missing)} ({facts})",
            hint=hint or "each case needs t1, t1ce, t2 and flair; see README, 'Which data'",
        )


class OutputExistsError(BratsError):
    """An output that exists and may not be replaced."""

    def __init__(self, path: Path, *, hint: str = "") -> None:
        super().__init__(
            f"{path} exists already",
            hint=hint or "choose another path with -o, or replace it with --overwrite",
        )


class OutputError(BratsError):
    """An output that cannot be written."""

    def __init__(self, path: Path, reason: str, *, hint: str = "") -> None:
        super().__init__(
            f"cannot write {path}: {reason}",
            hint=hint or "choose a path with -o where you may write and the disk is not full",
        )
