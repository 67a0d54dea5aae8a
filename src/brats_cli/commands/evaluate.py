"""`brats evaluate`: score label maps against the experts'."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..core.errors import BratsError
from ..core.wording import listing
from . import options
from .batch import raise_failures

if TYPE_CHECKING:
    from ..core.score.metrics import MaskScore
    from ..core.score.pairing import Matching
    from ..core.score.scores import Report
    from ..core.score.statistics import Summary

SHOWN_CASES = 20
"""Up to so many cases, the table has a row for each."""

_COLUMNS = ("Dice", "Jaccard", "sens.", "spec.", "HD mm", "HD95 mm")
_METRICS = ("dice", "jaccard", "sensitivity", "specificity", "hausdorff_mm", "hausdorff95_mm")
_DIGITS = (3, 3, 3, 4, 2, 2)


def evaluate(
    predictions: Annotated[
        Path,
        typer.Argument(metavar="PREDICTIONS", help="Folder of predicted label maps, or one file."),
    ],
    references: Annotated[
        Path,
        typer.Argument(
            metavar="REFERENCES",
            help="Data set with labels, folder of expert label maps, or one file.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="CSV", help="Write every score to this file."),
    ] = None,
    as_json: options.Json = False,
    labels: Annotated[
        Any,
        options.scheme("Label scheme of the predictions, if their files do not record it."),
    ] = None,
    reference_labels: Annotated[
        Any, options.scheme("Label scheme of the references, if their files do not record it.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, metavar="MM", help="Tolerance of the surface Dice, in mm.")
    ] = 1.0,
    workers: options.Workers = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEAN",
            help="Exit with status 3 if a mean is lower (a distance: higher) than given, such as "
            "WT.dice=0.8 or ET.hausdorff95_mm=10. Repeatable.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Score label maps: Dice, Jaccard, sensitivity, specificity, Hausdorff distances and more.

    Files are paired by case id, whatever suffix they have. Regions are compared, so that
    predictions and references may be in the label schemes of different years. Distances are in
    mm, and medpy's. Where an empty mask leaves a metric undefined, the BraTS convention up
    to 2022 gives a value: Dice 1 and HD95 0 if both masks are empty, Dice 0 and HD95 373.13 mm if
    one is. Where that matters, a row 'defined' has the means without such values.

    Example: brats evaluate out/ data/ -o scores.csv --fail-under WT.dice=0.8
    """
    from ..core.score.evaluation import evaluate

    with console.progress() as bars:
        cases = bars.add_task("cases", total=None, visible=False)

        def on_progress(matching: Matching, scored: int) -> None:
            if not scored:
                _report_left_over(matching)
            bars.update(cases, completed=scored, total=len(matching.pairs), visible=True)

        def on_report(report: Report) -> None:
            bars.update(cases, visible=False)
            if report.scores and as_json:
                console.result_json(report.to_json_dict())
            elif report.scores:
                _show(report)

        report = evaluate(
            predictions,
            references,
            output=output,
            labels=labels,
            reference_labels=reference_labels,
            tolerance=tolerance,
            workers=workers,
            fail_under=fail_under or (),
            overwrite=overwrite,
            on_progress=on_progress,
            on_report=on_report,
        )
    if output is not None and report.scores:
        console.message(f"wrote {output}")
    _raise_problems(report)


def _report_left_over(matching: Matching) -> None:
    if unknown := matching.without_reference:
        console.message(f"not scored, for want of a reference: {listing(unknown, shown=5)}")
    if matching.without_prediction:
        count = len(matching.without_prediction)
        console.message(f"{count} reference{'s have' if count > 1 else ' has'} no prediction")


def _raise_problems(report: Report) -> None:
    """Name the means that were missed and the cases that failed; nothing if there are none."""
    missed = BratsError(
        "; ".join(report.missed),
        hint="the means of all cases that could be scored; -o FILE.csv shows which are the worst",
    )
    if report.missed and report.failures:
        console.error(str(missed), missed.hint)
    failed = [BratsError(each.message, hint=each.hint) for each in report.failures]
    tried = len({each.case for each in report.scores}) + len(failed)
    raise_failures(failed, tried=tried, of="cases")
    if report.missed:
        raise missed


def _show(report: Report) -> None:
    cases = len({each.case for each in report.scores})
    if cases <= SHOWN_CASES:
        rows = [(each.case, each.region, *_cells(each.metrics)) for each in report.official]
        console.table(("case", "region", *_COLUMNS), rows, left=("region",))
        console.result("")
    console.table(
        ("region", "n", *_COLUMNS),
        _mean_rows(report.summary(), report.summary_of_defined()),
        title=f"mean of {cases} case{'s' * (cases != 1)}, empty masks as in "
        f"{report.convention.name}",
    )


def _mean_rows(official: Summary, defined: Summary) -> list[tuple[str, ...]]:
    """A row a region, and one of the defined values alone where they are others."""
    rows = []
    for region in official:
        rows.append(_mean_row(region, official))
        if any(official[region][metric].n != defined[region][metric].n for metric in _METRICS):
            rows.append(_mean_row(region, defined, suffix=" defined"))
    return rows


def _mean_row(region: str, summary: Summary, suffix: str = "") -> tuple[str, ...]:
    found = [summary[region][metric] for metric in _METRICS]
    counts = sorted({each.n for each in found})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    means = (console.number(each.mean, digits) for each, digits in zip(found, _DIGITS, strict=True))
    return (region + suffix, n, *means)


def _cells(metrics: MaskScore) -> tuple[str, ...]:
    values = [getattr(metrics, metric) for metric in _METRICS]
    return tuple(map(console.number, values, _DIGITS))
