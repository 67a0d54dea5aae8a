"""`brats evaluate`: score label maps against the experts'."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console
from ..core.errors import BratsError
from ..core.writing import require_writable
from .batch import raise_failures

if TYPE_CHECKING:
    from ..core.score.evaluation import Matching, Report, Summary, Threshold
    from ..core.score.metrics import MaskScore

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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEME", help="Label scheme of the predictions, if they do not tell it."
        ),
    ] = None,
    reference_labels: Annotated[
        str | None, typer.Option(metavar="SCHEME", help="That of the references.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, metavar="MM", help="How far off surface Dice takes as found.")
    ] = 1.0,
    workers: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Processes. Default: one a CPU that may be used."),
    ] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEAN",
            help="Exit with status 3 if a mean is lower (a distance: higher) than given, such as "
            "WT.dice=0.8 or ET.hausdorff95_mm=10. Repeatable.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace CSV.")] = False,
) -> None:
    """Score label maps: Dice, Jaccard, sensitivity, specificity, Hausdorff distances and more.

    Files belong together by case id, whatever suffix they have. Regions are compared, so that
    predictions and references may be in the label schemes of different years. Distances are in
    mm, and medpy's. Where an empty mask leaves a metric without a value, the BraTS convention up
    to 2022 gives one: Dice 1 and HD95 0 if both masks are empty, Dice 0 and HD95 373.13 mm if one
    is. Where that matters, a row 'defined' has the means without such values.

    Example: brats evaluate out/ data/ -o scores.csv --fail-under WT.dice=0.8
    """
    from ..core.score.evaluation import Report, Threshold, match, score_pairs

    thresholds = [Threshold.parse(text) for text in fail_under or ()]
    if output is not None:
        require_writable(output, overwrite=overwrite)
    matching = match(predictions, references)
    _tell_left_over(matching)
    with console.progress() as bars:
        outcomes = score_pairs(
            matching.pairs,
            labels=labels,
            reference_labels=reference_labels,
            tolerance_mm=tolerance,
            workers=workers,
        )
        scored = bars.track(outcomes, total=len(matching.pairs), description="cases")
        report = Report.of(matching, scored, tolerance)
    if report.scores:
        if as_json:
            console.result_json(report.to_json_dict())
        else:
            _show(report)
        if output is not None:  # last, so that a full disk does not take the tables along
            report.to_csv(output, overwrite=overwrite)
            console.message(f"wrote {output}")
    missed = _missed(report, thresholds)
    for problem in missed[: None if report.failures else -1]:
        console.error(str(problem), problem.hint)
    failed = [BratsError(each.message, hint=each.hint) for each in report.failures]
    raise_failures(failed, tried=len(matching.pairs), of="cases")
    if missed:
        raise missed[-1]


def _tell_left_over(matching: Matching) -> None:
    if unknown := matching.without_reference:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        console.message(f"not scored, for want of a reference: {', '.join(unknown[:5])}{more}")
    if matching.without_prediction:
        count = len(matching.without_prediction)
        console.message(f"{count} reference{'s have' if count > 1 else ' has'} no prediction")


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


def _missed(report: Report, thresholds: list[Threshold]) -> list[BratsError]:
    """An error for all thresholds that the means miss."""
    summary = report.summary()
    missed = [words for each in thresholds if (words := each.missed_by(summary))]
    if not missed or not report.scores:
        return []
    hint = "the means of all cases that could be scored; -o FILE.csv tells which are the worst"
    return [BratsError("; ".join(missed), hint=hint)]
