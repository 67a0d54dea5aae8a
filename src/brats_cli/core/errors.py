"""What a user can fix: each error says what, where and what was found, and hints at the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class BratsError(Exception):
    """A mistake in the user's data, files or settings; shown in two lines, never as a traceback.

    Args:
        message: One line: what is wrong, where, and what was found.
        hint: One line: what to do about it.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(" ".join(message.split()))
        self.hint = " ".join(hint.split())

    def __reduce__(self) -> tuple[Any, ...]:
        # On its way from another process: a subclass cannot be made again from the sentence.
        return _again, (type(self), str(self), vars(self))


def _again(kind: type[BratsError], message: str, facts: dict[str, Any]) -> BratsError:
    error = kind.__new__(kind, message)
    vars(error).update(facts)
    return error


class BratsWarning(UserWarning):
    """Something odd in the user's data that was dealt with and does not stop the work."""


class ConfigError(BratsError):
    """A setting that does not exist or cannot have the value given."""


class SplitError(BratsError):
    """A split that is malformed, leaks a patient or cannot be made."""


class CheckpointError(BratsError):
    """A checkpoint that cannot be read or does not fit."""


class DeviceError(BratsError):
    """A device that this machine does not have."""


class LabelError(BratsError):
    """A label map whose values do not fit the label scheme, or fit several."""

    @classmethod
    def predicted(cls, path: Path) -> LabelError:
        """A label map of a network where an expert's is needed."""
        return cls(
            f"{path} was made by brats predict: it is not an expert's label map",
            hint="a network would learn from itself: move the predictions out of the data set",
        )


class MeshError(BratsError):
    """A surface that cannot be made from the label map given."""


class UnreadableFileError(BratsError):
    """A file that is missing, cut short or of another format than its name says."""

    def __init__(self, path: Path, reason: str, *, hint: str = "") -> None:
        super().__init__(
            f"cannot read {path}: {reason}",
            hint=hint or "is it complete? copy or download it again, and compare its size",
        )
        self.path = path


class GridMismatchError(BratsError):
    """Two files of one case that do not lie on the same voxel grid."""

    def __init__(
        self, first: Path, second: Path, difference: str, *, lost: Sequence[Path] = ()
    ) -> None:
        hint = "all files of a case must share shape and affine: resample one onto the other's grid"
        if len(lost) == 1:
            other = first if lost[0] == second else second
            hint = (
                f"{lost[0].name} lost its header (its affine is the identity, or has no code): if "
                f"its voxels are those of {other.name}, copy the affine of that; do not resample"
            )
        super().__init__(f"{second} does not lie on the grid of {first}: {difference}", hint=hint)


class NoCasesError(BratsError):
    """A folder in which no case was found."""

    def __init__(
        self,
        root: Path,
        wanted: str = "cases",
        found: Sequence[str] = (),
        files: Sequence[Path] = (),
    ) -> None:
        instead = f" (but {', '.join(found)} files, to be converted to .nii.gz)" if found else ""
        if files and not instead:
            more = f" and {len(files) - 3} more" if len(files) > 3 else ""
            names = ", ".join(path.name for path in files[:3])
            instead = f" (but images whose names are not understood: {names}{more})"
        super().__init__(
            f"no {wanted} in {root}{instead}",
            hint="a case is a folder with one NIfTI file for each of T1, T1ce, T2 and FLAIR, "
            "or one 4D file; see README, 'Which data'",
        )


class CaseError(BratsError):
    """Files that cannot be told apart, or that do not make up one case."""

    @classmethod
    def twice(cls, case_id: str, first: Path, second: Path) -> CaseError:
        """One case id in two places."""
        return cls(
            f"case {case_id} is there twice: {first} and {second}",
            hint="remove one, or rename it if they are different cases",
        )

    @classmethod
    def modality_twice(cls, case_id: str, modality: str, first: Path, second: Path) -> CaseError:
        """Two files for one modality of a case."""
        return cls(
            f"case {case_id} has two {modality} files: {first} and {second.name}",
            hint="keep one of them, perhaps one is the other unzipped",
        )


class MissingModalityError(BratsError):
    """A case that lacks some of the four MR sequences."""

    def __init__(
        self, case_id: str, missing: Iterable[str], found: Iterable[str], *, hint: str = ""
    ) -> None:
        super().__init__(
            f"case {case_id} has no {', '.join(missing)} (found: {', '.join(found) or 'none'})",
            hint=hint or "each case needs t1, t1ce, t2 and flair; see README, 'Which data'",
        )


class OutputExistsError(BratsError):
    """An output that is there already and may not be replaced."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} exists already", hint="give another name with -o, or --overwrite to replace it"
        )


class OutputError(BratsError):
    """An output that cannot be written."""

    def __init__(self, path: Path, reason: str, *, hint: str = "") -> None:
        super().__init__(
            f"cannot write {path}: {reason}",
            hint=hint or "choose a place with -o that exists, has room and may be written to",
        )
