"""The check as a whole: a report of a data set, and repaired copies on request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..data.labels import LabelScheme, as_scheme
from .repair import repair_data_set, require_place
from .report import DataReport, check_data_set


def check(
    data: str | Path,
    *,
    labels: LabelScheme | str | None = None,
    fix: str | Path | None = None,
    workers: int | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> DataReport:
    """Read every file of a data set, and report everything that is wrong with it.

    Problems in the data are findings of the report, not exceptions.

    Args:
        data: Folder of a data set or of one case.
        labels: Label scheme of the label maps, if names, headers and values leave it open.
        fix: Folder for repaired copies of the cases that can be repaired in full. The report's
            `repaired` gives their ids; the original files are left unchanged.
        workers: Number of processes; by default one per CPU.
        on_progress: Called with the number of cases read and their total.

    Raises:
        NoCasesError: If `data` holds no case.
        LabelError: If there is no label scheme called `labels`.
        OutputError: If `fix` lies inside the data set, or cannot be written.
        OutputExistsError: If `fix` is a folder that is not empty.
    """
    data, scheme = Path(data), as_scheme(labels)
    if fix is not None:
        require_place(Path(fix), data)
    report = check_data_set(data, labels=scheme, workers=workers, on_progress=on_progress)
    if fix is None:
        return report
    return replace(report, repaired=tuple(repair_data_set(report, Path(fix), workers=workers)))
