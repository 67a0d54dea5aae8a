"""`brats check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console

if TYPE_CHECKING:
    from ..core.check.report import CaseReport, DataReport


def check(
    data: Annotated[Path, typer.Argument(help="Folder of a data set, or of one case.")],
    labels: Annotated[
        str | None,
        typer.Option(metavar="SCHEME", help="Label scheme, where names and values leave it open."),
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write repaired copies of broken cases to this folder."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one a processor.")
    ] = None,
) -> None:
    """Say whether a data set is complete and sound: one row a case, every problem named.

    Ends with status 3 if any case has an error that was not repaired.

    Example: brats check data/ --fix repaired/
    """
    from ..core.check.repair import repair_data_set
    from ..core.check.report import check_data_set, summarize
    from ..core.errors import CaseError

    with console.progress() as bars:
        task = bars.add_task("checking", total=None)
        report = check_data_set(
            data,
            labels=labels,
            workers=workers,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    if json:
        console.result_json(report.as_dict())
    else:
        _show_cases(report)
        _show_summary(summarize(report))
    repaired: list[str] = []
    if fix is not None:
        repaired = repair_data_set(report, fix, workers=workers)
        console.message(f"wrote {len(repaired)} repaired cases to {fix}")
    left = report.errors - sum(c.id in repaired for c in report.cases if c.level == "error")
    if left:
        repairable = sum(c.repairable for c in report.cases if c.level == "error")
        raise CaseError(
            f"{left} of {len(report.cases)} cases in {data} have errors",
            hint=f"--fix OUT writes repaired copies of {repairable} of them"
            if repairable and fix is None
            else "mend them by hand, or leave them out of the split with --exclude",
        )


def _show_cases(report: DataReport) -> None:
    """A row a case, worst first; then every error and warning, and what notes say of how many."""
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
    columns = ["case", "verdict", "labels", "WT ml", "TC ml", "ET ml", "found"]
    console.table(columns, rows, left=["verdict", "labels", "found"])
    console.result("")
    for line in _told(report):
        console.result(line)


def _millilitres(case: CaseReport, region: str) -> str:
    volume = case.regions_mm3.get(region)
    return "-" if volume is None else console.number(volume / 1000, 1)


def _told(report: DataReport) -> Iterator[str]:
    """A line for each error and each warning; one for all the cases that a note is about."""
    of_all = [("", finding) for finding in report.findings]
    found = of_all + [(case.id, finding) for case in report.cases for finding in case.findings]
    notes: dict[tuple[str, str], list[str]] = {}
    for level in ("error", "warning", "note"):
        for case_id, finding in found:
            if finding.level == level == "note":
                notes.setdefault((finding.rule, finding.message), []).append(case_id)
            elif finding.level == level:
                place = f"{finding.file}: " if finding.file else ""
                yield f"{level}: {place}{finding.message} [{finding.rule}]"
    for (rule, message), ids in notes.items():
        cases = list(dict.fromkeys(ids))
        more = f" and {len(cases) - 4} more" if len(cases) > 4 else ""
        yield f"note: {message}: {', '.join(cases[:4])}{more} [{rule}]"


def _show_summary(summary: Mapping[str, Any]) -> None:
    """The data set as a whole."""

    def tally(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{name} ({number})" for name, number in counts.items()) or "-"

    visits = summary["patients_with_several_visits"]
    lines = {
        "cases": f"{summary['cases']} of {summary['patients']} patients, {visits} of whom were "
        "scanned more than once",
        "verdict": f"{summary['errors']} with errors, {summary['warnings']} with warnings; "
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
    columns = ["intensity in the brain", "1 %", "median", "99 %", "least maximum", "largest"]
    console.table(columns, rows)
    console.result("")
    rows = [
        [region, *(console.number(volumes[key] / 1000, 1) for key in ("min", "median", "max"))]
        for region, volumes in summary["regions_mm3"].items()
    ]
    console.table(["volume in ml", "least", "median", "most"], rows)
