"""The property that is balanced between the parts of a split: tumour size, or a table's column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import SplitError
from ..images.nifti import LabelCount
from ..reading import read_table
from ..wording import did_you_mean
from .cases import Case


def tumour_strata(cases: Sequence[Case], counts: Mapping[str, LabelCount]) -> dict[str, str]:
    """Stratum by case id: tercile of the whole-tumour volume, with or without enhancing tumour."""
    volume = {case.id: _voxels(case, counts, "WT") * counts[case.id].voxel_mm3 for case in cases}
    thirds = np.quantile(list(volume.values()), [1 / 3, 2 / 3])
    size = {case_id: int(np.searchsorted(thirds, mm3)) for case_id, mm3 in volume.items()}
    return {
        case.id: f"{('small', 'medium', 'large')[size[case.id]]}, "
        + ("ET" if _voxels(case, counts, "ET") else "no ET")
        for case in cases
    }


def _voxels(case: Case, counts: Mapping[str, LabelCount], region: str) -> int:
    assert case.scheme is not None
    voxels = counts[case.id].voxels
    return sum(voxels.get(value, 0) for value in case.scheme.region(region).labels)


def table_strata(option: str, cases: Sequence[Case]) -> dict[str, str]:
    """Stratum by case id from a column of a table, such as grade, site or survival.

    The column of ids is the one that fits the most cases or patients. Numbers are grouped into
    terciles; a case that is not in the table is `unknown`.

    Args:
        option: `TABLE.csv:COLUMN`, as given on the command line.
        cases: The cases to look up.

    Raises:
        UnreadableFileError: If there is no such table.
        SplitError: If there is no such column, or if no column holds the case ids.
    """
    values = column_by_case(option, cases, option="--stratify")
    strata = _terciles(values) or values
    return {case.id: strata.get(case.id, "unknown") for case in cases}


def column_by_case(place: str, cases: Sequence[Case], *, option: str) -> dict[str, str]:
    """The values of a table's column by case id, where it has one.

    Args:
        place: `TABLE.csv:COLUMN`, as given on the command line.
        cases: The cases to look up.
        option: The option it was given to, for messages.

    Raises:
        UnreadableFileError: If there is no such table.
        SplitError: If there is no such column, or if no column holds the case ids.
    """
    name, _, column = place.rpartition(":")
    if not name or not column:
        raise SplitError(
            f"{option} {place} is not of the form TABLE.csv:COLUMN",
            hint="for example survival_info.csv:Survival_days",
        )
    rows = _rows(Path(name))
    if column not in rows[0]:
        columns = f"its columns are {', '.join(rows[0])}"
        raise SplitError(
            f"{name} has no column '{column}'",
            hint=did_you_mean(column, rows[0], otherwise=columns),
        )
    values = _look_up(rows, column, cases)
    if not values:
        raise SplitError(
            f"no column of {name} holds the case ids", hint=f"case ids look like {cases[0].id}"
        )
    return values


def _rows(path: Path) -> list[dict[str, str]]:
    rows = read_table(path)
    if not rows:
        raise SplitError(
            f"{path} is empty",
            hint="a table has a first line with column names, then one row per case",
        )
    return rows


def _look_up(
    rows: Sequence[Mapping[str, str]], column: str, cases: Sequence[Case]
) -> dict[str, str]:
    """The value of `column` by case id; rows are looked up by case id or patient id.

    No two cases of a data set differ in upper and lower case alone.
    """
    best: dict[str, str] = {}
    for key in rows[0]:
        by_id = {row[key].strip().casefold(): row[column].strip() for row in rows}
        found = {
            case.id: by_id.get(case.id.casefold()) or by_id.get(case.patient.casefold(), "")
            for case in cases
        }
        best = max(best, {case_id: value for case_id, value in found.items() if value}, key=len)
    return best


def _terciles(values: Mapping[str, str]) -> dict[str, str]:
    """Terciles of the values; empty unless nearly all are numbers, and more than a few codes."""
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
