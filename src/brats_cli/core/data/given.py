"""The cases that are given to a command: by their files, in data sets, or by a splits file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import BratsError, CaseError, SplitError
from ..reading import real_path
from .cases import Case
from .finding import case_at, survey
from .splits import Split


def as_paths(given: str | Path | Sequence[str | Path]) -> list[Path]:
    """One path or several, as a list."""
    return [Path(each) for each in ([given] if isinstance(given, str | Path) else given)]


def find_each(paths: Sequence[Path]) -> tuple[list[Case], list[BratsError]]:
    """The cases at `paths`, and the errors of those paths where something is wrong.

    Args:
        paths: Each a case (its folder or a file), a data set, or a splits file, which stands for
            its test cases.

    Returns:
        Every case once, and the errors; a case id that is found in two places is one.
    """
    cases: dict[str, Case] = {}
    wrong: list[BratsError] = []
    for path in paths:
        try:
            found, clashes = _at(path)
        except BratsError as error:
            found, clashes = [], [error]
        except OSError as error:  # a name that is too long, a folder without permission
            if error.filename is None:
                raise
            found, clashes = [], [BratsError.of_system(error)]
        wrong += clashes
        for case in found:
            other = cases.setdefault(case.id, case)
            if real_path(other.folder) != real_path(case.folder):
                wrong.append(CaseError.twice(case.id, other.folder, case.folder))
    return list(cases.values()), wrong


def _at(path: Path) -> tuple[Sequence[Case], Sequence[BratsError]]:
    if path.is_dir():
        return survey(path)[:2]
    if path.suffix.lower() not in (".yaml", ".yml"):
        return [case_at(path)], []
    split = Split.load(path)
    if not split.test:
        raise SplitError(
            f"{path} has no test cases",
            hint="split again with a test part, such as --ratios 70/15/15, or give the data set",
        )
    cases = split.cases()
    return [cases[case_id] for case_id in split.test], []
