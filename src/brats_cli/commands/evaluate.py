"""`brats evaluate`: score label maps against the experts'."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..core.errors import BratsError
from ..core.wording import listing
from . import options
from .batch import raise_failures

if TYPE_CHECKING:
    from ..core.score.pairing import Matching
    from ..core.score.scores import Report
    from ..core.score.statistics import Statistics, Summary

Columns = Mapping[str, tuple[str, int]]
"""The metrics that a table shows: heading and decimals of each."""

SHOWN_CASES = 20
"""Up to so many cases, the table has a row for each."""

_SHOWN = {
    "dice": ("Dice", 3),
    "jaccard": ("Jaccard", 3),
    "sensitivity": ("sens.", 3),
    "specificity": ("spec.", 4),
    "hausdorff_mm": ("HD mm", 2),
    "hausdorff95_mm": ("HD95 mm", 2),
}
_LESIONS = {
    "lesions": ("lesions", 1),
    "lesions_found": ("found", 1),
    "lesions_missed": ("missed", 1),
    "lesions_invented": ("invented", 1),
    "lesion_dice": ("Dice", 3),
    "lesion_hausdorff95_mm": ("HD95 mm", 2),
    "lesion_surface_dice_05": ("SD 0.5", 3),
    "lesion_surface_dice_1": ("SD 1.0", 3),
}
_UNCERTAINTY = {
    "uncertainty_dice_auc": ("Dice AUC", 4),
    "uncertainty_ftp_auc": ("FTP AUC", 4),
    "uncertainty_ftn_auc": ("FTN AUC", 4),
    "uncertainty_score": ("score", 4),
}


def _file(metavar: str, help: str) -> Any:  # noqa: A002
    return typer.Option(metavar=metavar, help=help)


Predictions = Annotated[
    Path,
    typer.Argument(metavar="PREDICTIONS", help="Folder of predicted label maps, or one file."),
]
References = Annotated[
    Path,
    typer.Argument(
        metavar="REFERENCES",
        help="Data set with labels, folder of expert label maps, or one file.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="CSV", help="Write every score to this file."),
]
Labels = Annotated[
    Any,
    options.scheme("Label scheme of the predictions, if their files do not record it."),
]
ReferenceLabels = Annotated[
    Any, options.scheme("Label scheme of the references, if their files do not record it.")
]
Convention = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Rules for empty masks and HD95: brats2020, brats2023, brats2024, brats2025 or plain.",
    ),
]
Tolerance = Annotated[
    float, typer.Option(min=0, metavar="MM", help="Tolerance of the surface Dice, in mm.")
]
WithinBrain = Annotated[
    bool, typer.Option("--within-brain", help="Count specificity inside the brain only.")
]
LesionWise = Annotated[
    str | None,
    typer.Option(metavar="YEAR", help="Score lesion by lesion as well: 2023 or 2024."),
]
Challenge = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Whose lesion-wise rules: GLI, MET, PED, SSA, MEN or MEN-RT; default: by case "
        "id, else by label scheme, else GLI.",
    ),
]
Lesions = Annotated[Path | None, _file("CSV", "Write one row per lesion to this file.")]
Uncertainty = Annotated[
    Path | None,
    _file("DIR", "Score the uncertainty maps in this folder, as BraTS 2020's task 3."),
]
Brain = Annotated[
    Path | None,
    _file("DIR", "Folder of brain masks; default: where the case's T1 scan is not 0."),
]
MissingAsEmpty = Annotated[
    bool,
    typer.Option("--missing-as-empty", help="Score references without a prediction as missed."),
]
ReportOption = Annotated[
    Path | None,
    _file("HTML", "Write a page with tables, plots and the worst cases; opens offline."),
]
Plots = Annotated[Path | None, _file("DIR", "Write the plots of the page as PNG to this folder.")]
ReliabilityOption = Annotated[
    Path | None,
    _file(
        "PNG",
        "Draw how true the probabilities are that predict --probabilities wrote, and print "
        "their expected calibration error.",
    ),
]
Markdown = Annotated[
    Path | None, _file("FILE", "Write the table of means in Markdown, for papers.")
]
FailUnder = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MEAN",
        help="Exit with status 3 if a mean is lower (a distance: higher) than given, such as "
        "WT.dice=0.8 or ET.hausdorff95_mm=10; can be repeated.",
    ),
]


def evaluate(
    predictions: Predictions,
    references: References,
    output: Output = None,
    as_json: options.Json = False,
    labels: Labels = None,
    reference_labels: ReferenceLabels = None,
    convention: Convention = "brats2020",
    tolerance: Tolerance = 1.0,
    within_brain: WithinBrain = False,
    lesion_wise: LesionWise = None,
    challenge: Challenge = None,
    lesions: Lesions = None,
    uncertainty: Uncertainty = None,
    brain: Brain = None,
    missing_as_empty: MissingAsEmpty = False,
    report: ReportOption = None,
    plots: Plots = None,
    reliability: ReliabilityOption = None,
    markdown: Markdown = None,
    workers: options.Workers = None,
    executor: options.Scheduler = None,
    fail_under: FailUnder = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Score label maps: Dice, Jaccard, sensitivity, specificity, Hausdorff distances and more.

    Files are paired by case id, whatever suffix they have. Regions are compared, so that
    predictions and references may be in the label schemes of different years. Distances are in
    mm, and medpy's. Where an empty mask leaves a metric undefined, the convention gives a value,
    by default that of BraTS up to 2022: Dice 1 and HD95 0 if both masks are empty, Dice 0 and
    HD95 373.13 mm if one is. Where that matters, a row 'defined' has the means without such values.

    Example: brats evaluate out/ data/ -o scores.csv --report report.html
    """
    from ..core.score.evaluation import evaluate

    with console.progress() as bars:
        cases = bars.add_task("cases", total=None, visible=False)

        def on_progress(matching: Matching, scored: int) -> None:
            if not scored:
                _report_left_over(matching)
            bars.update(cases, completed=scored, total=len(matching.pairs), visible=True)

        unprinted: list[console.PrintError] = []

        def on_report(found: Report) -> None:
            bars.update(cases, visible=False)
            try:
                if found.scores and as_json:
                    console.result_json(found.to_json_dict())
                elif found.scores:
                    show_report(found)
            except console.PrintError as error:  # the files are still to be written
                unprinted.append(error)

        found = evaluate(
            predictions,
            references,
            output=output,
            labels=labels,
            reference_labels=reference_labels,
            convention=convention,
            tolerance=tolerance,
            within_brain=within_brain,
            lesion_wise=lesion_wise,
            challenge=challenge,
            lesions=lesions,
            uncertainty=uncertainty,
            brain=brain,
            missing_as_empty=missing_as_empty,
            report=report,
            plots=plots,
            reliability=reliability,
            markdown=markdown,
            workers=workers,
            executor=executor,
            fail_under=fail_under or (),
            overwrite=overwrite,
            on_progress=on_progress,
            on_report=on_report,
        )
    if found.scores:
        for path in filter(None, (output, lesions, markdown, plots, reliability, report)):
            console.message(f"wrote {path}")
    if unprinted:
        raise unprinted[0]
    _raise_problems(found)


def _report_left_over(matching: Matching) -> None:
    if unknown := matching.without_reference:
        console.message(f"not scored because they have no reference: {listing(unknown, shown=5)}")
    if missing := matching.without_prediction:
        as_empty = any(pair.predicted is None for pair in matching.pairs)
        console.message(
            f"{len(missing)} reference{'s have' if len(missing) > 1 else ' has'} no prediction"
            f"{', scored as missed' if as_empty else ''}: {listing(missing, shown=5)}"
        )


def _raise_problems(report: Report) -> None:
    """Name the means that were missed and the cases that failed; nothing if there are none."""
    missed = BratsError(
        "; ".join(report.missed),
        hint="the means of all cases that could be scored; -o FILE.csv shows which are the worst",
    )
    if report.missed and report.failures:
        console.error(str(missed), missed.hint)
    failed = [BratsError(each.message, hint=each.hint) for each in report.failures]
    raise_failures(failed, tried=len(report.cases) + len(failed), of="cases")
    if report.missed:
        raise missed


def show_report(report: Report) -> None:
    """The convention, the scores of a few cases, and the means."""
    official, defined = report.summary(), report.summary_of_defined()
    for line in textwrap.wrap(f"{report.convention.name}: {report.convention.about}", 80):
        console.result(line)
    console.result("")
    if len(report.cases) <= SHOWN_CASES:
        rows = [
            (each.case, each.region, *_cells(each.values(), _SHOWN)) for each in report.official
        ]
        console.table(("case", "region", *_headings(_SHOWN)), rows, left=("region",))
        console.result("")
    count = f"{len(report.cases)} case{'s' * (len(report.cases) != 1)}"
    console.table(
        ("region", "n", *_headings(_SHOWN)),
        _mean_rows(official, defined, _SHOWN),
        title=f"mean of {count}",
    )
    _show_decided(report)
    _show_intervals(official)
    for columns, title in (
        (_LESIONS, f"lesion-wise by the rules of {report.lesion_wise}, mean of {count}"),
        (_UNCERTAINTY, f"uncertainty, mean of {count}"),
    ):
        if shown := {name: how for name, how in columns.items() if name in report.columns}:
            console.result("")
            rows = [(region, *_means(official[region], shown)) for region in official]
            console.table(("region", *_headings(shown)), rows, title=title)
    _show_reliability(report)


def _show_reliability(report: Report) -> None:
    if report.reliability:
        console.result("")
        rows = [
            (region, str(int(each.voxels.sum())), console.number(each.ece, 4))
            for region, each in report.reliability.items()
        ]
        title = "expected calibration error (probabilities from 0.01)"
        console.table(("region", "voxels", "ECE"), rows, title=title)


def _show_decided(report: Report) -> None:
    """The cases that the rule for empty masks decides, which the means do not show."""
    lines = []
    for region, decided in report.decided_by_rule().items():
        for how in ("both empty", "missed", "invented"):
            if cases := [case for case, kind in decided if kind == how]:
                lines.append(f"  {region} {how}: {listing(cases)}")
    if lines:
        console.result("\nempty masks:")
        for line in lines:
            console.result(line)


def _show_intervals(summary: Summary) -> None:
    rows = []
    for region, found in summary.items():
        for name in ("dice", "hausdorff95_mm"):
            each, (heading, digits) = found[name], _SHOWN[name]
            if each.n > 1:
                intervals = (each.ci95, each.ci95_bootstrap)
                cells = [f"{low:.{digits}f} to {high:.{digits}f}" for low, high in intervals]
                rows.append((region, heading, console.number(each.mean, digits), *cells))
    if rows:
        console.result("")
        console.table(
            ("region", "metric", "mean", "Student's t", "bootstrap"),
            rows,
            left=("metric",),
            title="95 % intervals of the mean",
        )


def _headings(columns: Columns) -> list[str]:
    return [heading for heading, _ in columns.values()]


def _cells(values: Mapping[str, float], columns: Columns) -> list[str]:
    return [console.number(values[name], digits) for name, (_, digits) in columns.items()]


def _means(found: Mapping[str, Statistics], columns: Columns) -> list[str]:
    return _cells({name: found[name].mean for name in columns}, columns)


def _mean_rows(official: Summary, defined: Summary, columns: Columns) -> list[tuple[str, ...]]:
    """A row per region, and one of the defined values alone where they are others."""
    rows = []
    for region in official:
        rows.append((region, _counts(official[region], columns)))
        if any(official[region][name].n != defined[region][name].n for name in columns):
            rows.append((f"{region} defined", _counts(defined[region], columns)))
    summaries = {"": official, "defined": defined}
    return [
        (name, n, *_means(summaries[name.partition(" ")[2]][name.partition(" ")[0]], columns))
        for name, n in rows
    ]


def _counts(found: Mapping[str, Statistics], columns: Columns) -> str:
    counts = sorted({found[name].n for name in columns})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
