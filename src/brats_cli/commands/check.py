"""`brats check`: is a data set complete and sound?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..core.errors import CaseError
from ..core.wording import count_of, listing
from .options import Json, Labels, Workers

if TYPE_CHECKING:
    from ..core.check.report import CaseReport, DataReport


def check(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder of a data set or of one case.")
    ],
    labels: Labels = None,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write repaired copies of cases with errors to OUT."),
    ] = None,
    as_json: Json = False,
    workers: Workers = None,
) -> None:
    """Check whether a data set is complete and sound; report every problem, one row per case.

    The exit status is 3 if a case has an error that was not repaired. The files of the data set
    are never changed.

    Example: brats check data/ --fix repaired/
    """
    from ..core.check import run
    from ..core.check.report import summarize

    with console.counted("checking") as on_progress:
        report = run.check(
            data,
            labels=labels,
            fix=fix,
            workers=workers,
            on_progress=on_progress,
        )
    if as_json:
        console.result_json(report.as_dict())
    else:
        _show_cases(report)
        _show_summary(summarize(report))
    if fix is not None:
        count = len(report.repaired)
        console.message(
            f"wrote repaired copies of {count_of(count, 'case')} to {fix}"
            if count
            else "no case was repaired"
        )
    if left := report.unrepaired_errors:
        repairable = report.repairable_errors
        raise CaseError(
            f"{left} of {len(report.cases)} cases in {data} have errors",
            hint=f"--fix OUT writes repaired copies of {repairable} of them"
            if repairable and fix is None
            else "repair them by hand, or leave them out of the split with --exclude",
        )


def _show_cases(report: DataReport) -> None:
    """One row per case, worst first; then all errors and warnings, and the notes by message."""
    rows = [
        [
            case.id,
            case.level,
            case.scheme.name if case.scheme else "-",
            *(_millilitres(case, region) for region in ("WT", "TC", "ET")),
            ", ".join(dict.fromkeys(finding.rule for finding in case.findings)),
        ]
        for case in report.cases
    ]
    columns = ["case", "result", "labels", "WT ml", "TC ml", "ET ml", "findings"]
    console.table(columns, rows, left=["result", "labels", "findings"])
    console.result("")
    for line in _findings(report):
        console.result(line)


def _millilitres(case: CaseReport, region: str) -> str:
    volume = case.regions_mm3.get(region)
    return "-" if volume is None else console.number(volume / 1000, 1)


def _findings(report: DataReport) -> Iterator[str]:
    """One line per error and per warning; one line per note for all cases that it is about."""
    general = [("", finding) for finding in report.findings]
    found = general + [(case.id, finding) for case in report.cases for finding in case.findings]
    notes: dict[tuple[str, str], list[str]] = {}
    for level in ("error", "warning", "note"):
        for case_id, finding in found:
            if finding.level == level == "note":
                notes.setdefault((finding.rule, finding.message), []).append(case_id)
            elif finding.level == level:
                place = f"{finding.file}: " if finding.file else ""
                yield f"{level}: {place}{finding.message} [{finding.rule}]"
    for (rule, message), ids in notes.items():
        yield f"note: {message}: {listing(list(dict.fromkeys(ids)), shown=4)} [{rule}]"


def _show_summary(summary: Mapping[str, Any]) -> None:
    """Properties of the data set as a whole."""

    def tally(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{name} ({number})" for name, number in counts.items()) or "-"

    visits = summary["patients_with_several_visits"]
    lines = {
        "cases": f"{summary['cases']} of {summary['patients']} patients, {visits} of whom were "
        "scanned more than once",
        "result": f"{summary['errors']} with errors, {summary['warnings']} with warnings; "
        f"{summary['repairable']} can be repaired with --fix",
        "grid": tally(summary["grids"]),
        "voxels, mm": tally(summary["spacings_mm"]),
        "labels": tally(summary["labels"]),
        "without ET": str(summary["without_et"]),
    }
    console.result("")
    for name, line in lines.items():
        console.result(f"{name:<12}{line}")
    console.result("")
    intensities = {modality: each for modality, each in summary["intensities"].items() if each}
    shown = [(key, "median") for key in ("low", "median", "high")]
    shown += [("largest", "min"), ("largest", "max")]
    rows = [
        [modality, *(console.number(each[key][which], 0) for key, which in shown)]
        for modality, each in intensities.items()
    ]
    columns = ["intensity in the brain", "1 %", "median", "99 %"]
    columns += ["lowest maximum", "highest maximum"]
    console.table(columns, rows)
    console.result("")
    rows = [
        [region, *(console.number(volumes[key] / 1000, 1) for key in ("min", "median", "max"))]
        for region, volumes in summary["regions_mm3"].items()
    ]
    console.table(["volume in ml", "minimum", "median", "maximum"], rows)
