"""The report of an evaluation: one HTML page that is complete and opens offline."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from ..errors import BratsError
from ..wording import listing
from ..writing import require_writable, whole_file
from . import plots
from .scores import HEADINGS, WORST, Report, digits_of, lower_is_better, plot_files
from .statistics import Statistics, Summary

_MEANINGS = {
    "dice": "Overlap of prediction and reference: twice the common volume over the sum of both. "
    "1 is perfect, 0 is none.",
    "hausdorff95_mm": "How far apart the two surfaces are: 95 % of the surface lies nearer than "
    "this. 0 is perfect.",
    "surface_dice": "Share of both surfaces that lie within the tolerance of the other.",
    "sensitivity": "Share of the reference that was found.",
    "precision": "Share of the prediction that is right.",
    "lesion_dice": "Mean Dice over lesions, where each missed and each invented lesion counts "
    "as 0.",
    "lesion_hausdorff95_mm": "Mean HD95 over lesions, where each missed and each invented lesion "
    "counts with the challenge's penalty.",
    "uncertainty_score": "Whether the model is uncertain where it errs and certain where it is "
    "right (QU-BraTS). 1 is perfect.",
}

_REGIONS = {
    "WT": "whole tumour (core and edema)",
    "TC": "tumour core (necrosis and enhancing tumour)",
    "ET": "enhancing tumour",
    "RC": "resection cavity",
    "GTV": "gross tumour volume",
}


def write_plots(report: Report, folder: Path, *, overwrite: bool = False) -> None:
    """Write the page's plots as PNG: `distributions`, `dice_by_volume`, `volumes`, `worst_1` ...

    Raises:
        OutputExistsError: If a file exists and `overwrite` is false.
        OutputError: If one cannot be written.
    """
    pictures = dict(plots.figures(report))
    for number, found in enumerate(plots.worst_pictures(report, worst_cases(report)).values(), 1):
        if isinstance(found, plots.CasePicture):
            pictures[f"worst_{number}"] = found.figure
    files = plot_files(folder)
    for path in files.values():
        require_writable(path, overwrite=overwrite)
    for name, figure in pictures.items():
        plots.save(figure, files[name], overwrite=overwrite)


def write_page(report: Report, path: Path, *, overwrite: bool = False) -> None:
    """Write the page: tables that can be sorted, plots, and the worst cases in slices.

    Everything is in this one file, which loads nothing over the network.

    Raises:
        OutputExistsError: If `path` exists and `overwrite` is false.
        OutputError: If it cannot be written.
    """
    official, defined = report.summary(), report.summary_of_defined()
    pictures = {name: plots.png(figure) for name, figure in plots.figures(report).items()}
    content = Template(_PAGE).substitute(
        count=_count(len(report.cases), "case"),
        convention=escape(report.convention.name),
        about=escape(report.convention.about),
        tolerance=f"{report.scoring.tolerance_mm:g}",
        left_over=_left_over(report),
        meanings=_meanings(report),
        regions="".join(
            f"<dt>{escape(region)}</dt><dd>{_REGIONS.get(region, '')}</dd>" for region in official
        ),
        headline=_headline(official),
        means=_means(report, official, defined),
        intervals=_intervals(official),
        decided=_decided(report),
        lesions=_lesions(report, official),
        distributions=_image(pictures["distributions"], "Scores of every case by region"),
        dice_by_volume=_image(pictures["dice_by_volume"], "Dice against reference volume"),
        volumes=_image(pictures["volumes"], "Bland-Altman plot of volumes"),
        worst=_worst(report),
        cases=_cases(report),
    )
    with whole_file(path, overwrite=overwrite) as partial:
        # A case id may hold bytes of a file name that is not UTF-8.
        partial.write_bytes(content.encode("utf-8", "backslashreplace"))


def worst_cases(report: Report) -> list[str]:
    """The cases with the lowest mean Dice over their regions, the worst first."""
    dice: dict[str, list[float]] = {}
    for each in report.official:
        dice.setdefault(each.case, []).append(each.metrics.dice)
    means = {
        case: float(np.nanmean(values))
        for case, values in dice.items()
        if not all(math.isnan(value) for value in values)
    }
    return sorted(means, key=lambda case: means[case])[:WORST]


# --- parts -------------------------------------------------------------------------------------


def _headline(official: Summary) -> str:
    """The most important means, as tiles."""
    tiles = []
    for region, found in official.items():
        dice, hd95 = found["dice"], found["hausdorff95_mm"]
        tiles.append(
            f"<div class=tile><b>{escape(region)}</b><span class=big>{_number(dice.mean, 3)}</span>"
            f"<span>mean Dice</span><span>HD95 {_number(hd95.mean, 1)} mm</span></div>"
        )
    return "".join(tiles)


def _means(report: Report, official: Summary, defined: Summary) -> str:
    names = [name for name in plots.SHOWN if name in report.columns]
    rows = []
    for region in official:
        rows.append((region, official[region]))
        if any(official[region][name].n != defined[region][name].n for name in names):
            rows.append((f"{region}, defined cases only", defined[region]))
    return _table(
        ["region", *(HEADINGS[name] for name in names)],
        (
            [label, *(_mean(found[name], digits_of(name), len(report.cases)) for name in names)]
            for label, found in rows
        ),
    )


def _mean(found: Statistics, digits: int, cases: int) -> str:
    if not found.n:
        return "-"
    spread = f" ± {found.std:.{digits}f}" if found.n > 1 else ""
    of = f" ({found.n})" if found.n != cases else ""
    return f"{found.mean:.{digits}f}{spread}{of}"


def _intervals(official: Summary) -> str:
    rows = []
    for region, found in official.items():
        for name in ("dice", "hausdorff95_mm"):
            each, digits = found[name], digits_of(name)
            if each.n > 1:
                cells = [
                    f"{low:.{digits}f} to {high:.{digits}f}"
                    for low, high in (each.ci95, each.ci95_bootstrap)
                ]
                median = f"{each.median:.{digits}f}"
                rows.append([region, HEADINGS[name], f"{each.mean:.{digits}f}", median, *cells])
    if not rows:
        return ""
    table = _table(["region", "metric", "mean", "median", "Student's t", "bootstrap"], rows)
    return (
        "<h3>How certain the means are</h3><p>Where the mean of all such cases lies with 95 % "
        "confidence. Student's t takes it as normally distributed, and may reach beyond what is "
        f"possible; the bootstrap resamples the cases.</p>{table}"
    )


def _decided(report: Report) -> str:
    decided = report.decided_by_rule()
    if not decided:
        return "<p>No mask was empty, so that no rule decided a score.</p>"
    rows = [[region, how, case] for region, cases in decided.items() for case, how in cases]
    return (
        "<p>In these cases a mask is empty, and the convention rather than a measurement gives "
        "the score. <i>Both empty</i>: there was nothing to find and nothing was found. "
        "<i>Missed</i>: there was, and nothing was found. <i>Invented</i>: the other way round."
        f"</p>{_table(['region', 'empty', 'case'], rows)}"
    )


def _lesions(report: Report, official: Summary) -> str:
    if not report.lesion_wise:
        return ""
    rows = []
    for region in official:
        found = [each.lesions for each in report.scores if each.region == region and each.lesions]
        rows.append(
            [
                region,
                *(
                    str(sum(getattr(each, name) for each in found))
                    for name in ("lesions", "lesions_found", "lesions_missed", "lesions_invented")
                ),
                _number(official[region]["lesion_dice"].mean, 3),
                _number(official[region]["lesion_hausdorff95_mm"].mean, 2),
            ]
        )
    headings = ["region", "lesions", "found", "missed", "invented", "mean Dice", "mean HD95 (mm)"]
    return (
        f"<h2>Lesion by lesion</h2><p>By the rules of BraTS {escape(report.lesion_wise)}: each "
        "lesion of the reference is compared with what touches it; missed and invented lesions "
        f"count as failures. Numbers of lesions are totals.</p>{_table(headings, rows)}"
    )


def _worst(report: Report) -> str:
    cases = worst_cases(report)
    found = plots.worst_pictures(report, cases)
    parts = []
    for number, case in enumerate(cases, 1):
        scores = [each for each in report.official if each.case == case]
        names = [name for name in plots.SHOWN if name in report.columns]
        table = _table(
            ["region", *(HEADINGS[name] for name in names), "reference (ml)", "predicted (ml)"],
            (
                [
                    each.region,
                    *(_number(each.values().get(name), digits_of(name)) for name in names),
                    _number(each.metrics.reference_mm3 / 1000, 2),
                    _number(each.metrics.predicted_mm3 / 1000, 2),
                ]
                for each in scores
            ),
        )
        parts.append(f"<h3>{number}. {escape(case)}</h3>{_picture(found.get(case))}{table}")
    return "".join(parts)


def _picture(found: plots.CasePicture | BratsError | None) -> str:
    if found is None:
        return ""
    if isinstance(found, BratsError):
        return f"<p class=quiet>No picture: {escape(str(found))}</p>"
    caption = (
        f"Axial slice at {found.height_mm:.0f} mm, where reference and prediction differ most; "
        "front above, the patient's left on the right."
    )
    image = _image(plots.png(found.figure), caption)
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _cases(report: Report) -> str:
    names = list(report.columns)
    return _table(
        ["case", "region", *names],
        (
            [
                each.case,
                each.region,
                *(_number(value, digits_of(name)) for name, value in _row(each.values(), names)),
            ]
            for each in report.official
        ),
    )


def _row(values: Mapping[str, float], names: Sequence[str]) -> Iterable[tuple[str, float | None]]:
    return ((name, values.get(name)) for name in names)


def _left_over(report: Report) -> str:
    lines = []
    if report.failures:
        items = "".join(
            f"<li>{escape(each.case)}: {escape(each.message)}</li>" for each in report.failures
        )
        count = _count(len(report.failures), "case")
        lines.append(f"<p class=warn>{count} could not be scored:</p><ul>{items}</ul>")
    if missing := report.without_prediction:
        as_empty = any(pair.predicted is None for pair in report.pairs)
        what = "counted as missed" if as_empty else "not counted below"
        cases = escape(listing(missing, shown=10))
        lines.append(f"<p class=warn>Cases without a prediction, {what}: {cases}</p>")
    if unknown := report.without_reference:
        lines.append(
            f"<p class=warn>Predictions without a reference, not scored: "
            f"{escape(listing(unknown, shown=10))}</p>"
        )
    return "".join(lines)


def _meanings(report: Report) -> str:
    return "".join(
        f"<dt>{HEADINGS[name]}</dt><dd>{_MEANINGS[name]} "
        f"{'Lower' if lower_is_better(name) else 'Higher'} is better.</dd>"
        for name in plots.SHOWN
        if name in report.columns
    )


# --- HTML --------------------------------------------------------------------------------------


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th scope=col><button>{escape(each)}</button></th>" for each in headings)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        "</div>"
    )


def _image(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Segmentation scores of $count</title>
<style>
:root { color-scheme: light; --line: #dcdfe4; --quiet: #5b6470; --accent: #0072b2; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2128; margin: 0 auto; max-width: 76rem;
 padding: 1.5rem 2rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem;
 border-top: 1px solid var(--line); padding-top: 1.1rem; } h3 { font-size: 1.02rem;
 margin: 1.4rem 0 .4rem; }
p, dl { max-width: 52rem; } .quiet, figcaption { color: var(--quiet); font-size: .88rem; }
.warn { background: #fff4e0; border-left: 4px solid #e69f00; padding: .5rem .8rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .9rem; margin: 1rem 0; }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem 1.2rem;
 display: grid; min-width: 8rem; } .tile span { color: var(--quiet); font-size: .88rem; }
.tile .big { font-size: 1.9rem; color: var(--accent); line-height: 1.2; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: .5rem 0 1rem;
 font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); text-align: right;
 white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible {
 outline: 2px solid var(--accent); } th[aria-sort] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
tbody tr:hover { background: #f4f7fa; } img { max-width: 100%; height: auto; }
figure { margin: .4rem 0 .6rem; } dl { display: grid; grid-template-columns: 12rem 1fr;
 gap: .3rem 1rem; } dt { font-weight: 600; } dd { margin: 0; }
details summary { cursor: pointer; font-weight: 600; }
@media print { .scroll { overflow: visible; } h2 { break-after: avoid; } }
</style>
</head>
<body>
<h1>Segmentation scores of $count</h1>
<p class=quiet>Predicted tumour regions compared with the reference segmentations, voxel by voxel.
Written by <code>brats evaluate</code>.</p>
$left_over
<div class=tiles>$headline</div>

<h2>What was measured</h2>
<dl>$regions</dl>
<dl>$meanings</dl>
<p><b>Convention $convention.</b> Where a mask is empty, a metric may be undefined; then the
convention decides: $about. The tolerance of the surface Dice is $tolerance mm. Distances are in
mm.</p>

<h2>Means</h2>
<p>Mean ± standard deviation over $count; a number in brackets says how many cases have a value,
where not all do. Click a heading to sort any table.</p>
$means
$intervals

<h2>Where the rule for empty masks decides</h2>
$decided
$lesions

<h2>Every case at a glance</h2>
<p>A dot is a case; the box holds the middle half of them, its line is the median.</p>
$distributions

<h2>Small and large tumours</h2>
<p>Dice falls for small tumours, because each voxel weighs more. A model that is poor only on the
left is good at large tumours and misses small ones.</p>
$dice_by_volume

<h2>Are volumes right?</h2>
<p>Each dot is a case (Bland and Altman). Above zero the model draws too much, below too little. The
solid line is the mean difference; between the dashed lines 95 % of the cases are to be expected.
</p>
$volumes

<h2>The worst cases</h2>
<p>Those with the lowest mean Dice over all regions.</p>
$worst

<h2>All cases</h2>
<details><summary>Show every score</summary>$cases</details>

<script>
document.querySelectorAll("th button").forEach(button => button.onclick = () => {
  const th = button.parentElement, body = th.closest("table").tBodies[0];
  const column = th.cellIndex, down = th.ariaSort === "ascending";
  const key = row => row.cells[column].textContent;
  const value = text => text === "-" ? NaN : parseFloat(text);
  const rows = [...body.rows].sort((a, b) => {
    const x = value(key(a)), y = value(key(b));
    if (isNaN(x) && isNaN(y)) return key(a).localeCompare(key(b), "en", { numeric: true });
    return isNaN(x) ? 1 : isNaN(y) ? -1 : x - y;
  });
  if (down) rows.reverse();
  th.parentElement.querySelectorAll("th").forEach(other => other.ariaSort = null);
  th.ariaSort = down ? "descending" : "ascending";
  body.append(...rows);
});
</script>
</body>
</html>
"""
