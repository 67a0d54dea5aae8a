"""By which property the parts of a split are balanced: tumour size, or a column of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import SplitError
from ..images.nifti import LabelCount
from ..reading import read_table
from .cases import Case
from .labels import LabelScheme


def tumour_strata(
    counts: Mapping[str, LabelCount], schemes: Mapping[str, LabelScheme]
) -> dict[str, str]:
    """Stratum by case id: tercile of whole-tumour volume, and whether there is enhancing tumour."""
    volume = {
        case_id: _voxels(count, schemes[case_id], "WT") * count.voxel_mm3
        for case_id, count in counts.items()
    }
    thirds = np.quantile(list(volume.values()), [1 / 3, 2 / 3])
    size = {case_id: int(np.searchsorted(thirds, mm3)) for case_id, mm3 in volume.items()}
    return {
        case_id: f"{('small', 'medium', 'large')[size[case_id]]}, "
        + ("ET" if _voxels(count, schemes[case_id], "ET") else "no ET")
        for case_id, count in counts.items()
    }


def _voxels(count: LabelCount, scheme: LabelScheme, region: str) -> int:
    return sum(count.voxels.get(value, 0) for value in scheme.region(region).labels)


def table_strata(option: str, cases: Sequence[Case]) -> dict[str, str]:
    """Stratum by case id from a column of a table, such as grade, site or survival.

    The ids are in whichever column fits the most cases or patients. A column of numbers counts
    by terciles; a case that the table does not have is `unknown`.

    Args:
        option: `TABLE.csv:COLUMN`, as given on the command line.
        cases: The cases to look up.

    Raises:
        UnreadableFileError: If there is no such table.
        SplitError: If there is no such column, or no column holds the cases' ids.
    """
    name, _, column = option.rpartition(":")
    if not name or not column:
        raise SplitError(
            f"--stratify {option} is not TABLE.csv:COLUMN",
            hint="as survival_info.csv:Survival_days",
        )
    rows = _rows(Path(name))
    if column not in rows[0]:
        raise SplitError(
            f"{name} has no column '{column}'", hint=f"its columns are {', '.join(rows[0])}"
        )
    values = _look_up(rows, column, cases)
    if not values:
        raise SplitError(
            f"no column of {name} holds the case ids", hint=f"they look like {cases[0].id}"
        )
    strata = _terciles(values) or values
    return {case.id: strata.get(case.id, "unknown") for case in cases}


def _rows(path: Path) -> list[dict[str, str]]:
    rows = read_table(path)
    if not rows:
        raise SplitError(f"{path} is empty", hint="a table has a line of column names, then rows")
    return rows


def _look_up(
    rows: Sequence[Mapping[str, str]], column: str, cases: Sequence[Case]
) -> dict[str, str]:
    """The value of `column` by case id, the rows found by case or patient id."""
    best: dict[str, str] = {}
    for key in rows[0]:
        by_id = {row[key].strip(): row[column].strip() for row in rows}
        found = {
            case.id: by_id.get(case.id) or by_id.get(case.patient, "")
            for case in cases
            if case.id in by_id or case.patient in by_id
        }
        best = max(best, {case_id: value for case_id, value in found.items() if value}, key=len)
    return best


def _terciles(values: Mapping[str, str]) -> dict[str, str]:
    """Terciles of values nearly all of which are numbers, and not a few codes; else nothing."""
    numbers = {}
    for case_id, value in values.items():
        try:
            numbers[case_id] = float(value)
        except ValueError:
            continue
    numbers = {case_id: number for case_id, number in numbers.items() if math.isfinite(number)}
    if len(set(numbers.values())) <= 6 or len(numbers) < 0.8 * len(values):
        return {}
    thirds = np.quantile(list(numbers.values()), [1 / 3, 2 / 3])
    return {
        case_id: ("low", "middle", "high")[int(np.searchsorted(thirds, number))]
        for case_id, number in numbers.items()
    }
