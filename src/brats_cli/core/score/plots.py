"""Pictures of scores: distributions, Dice by volume, volumes against each other, cases, models."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from ..data.labels import REGION_COLOURS
from ..data.naming import MODALITIES
from ..errors import BratsError
from ..images.grid import Grid, Mask, to_canonical
from ..images.nifti import read_image
from ..wording import drawable
from ..writing import whole_file
from .paired import Comparison
from .pairing import Pair, Scoring, read_pair, shared_regions
from .reliability import Reliability
from .scores import HEADINGS, CaseScore, Report, lower_is_better

# It would complain on stderr of a font cache that it builds or has no place for.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

_INTERVALS = "#0072B2"
"""The colour of everything that belongs to no region."""

_STYLES: Mapping[str, Literal["-", "--"]] = {"reference": "--", "prediction": "-"}
"""The lines of the two label maps, as `brats view` draws them."""

SHOWN = (
    *("dice", "hausdorff95_mm", "surface_dice", "sensitivity", "precision"),
    *("lesion_dice", "lesion_hausdorff95_mm", "uncertainty_score"),
)
"""Metrics whose distribution is drawn, where the report has them."""


def distributions(report: Report) -> Figure:
    """A box per region and a dot per case, for each metric."""
    names = [name for name in SHOWN if name in report.columns]
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = _figure(3.6 * columns, 3.1 * rows)
    official = report.official
    regions = list(dict.fromkeys(each.region for each in official))
    values = [(each.region, each.values()) for each in official]
    jitter = np.random.default_rng(0)
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        for place, region in enumerate(regions):
            of_region = [row.get(name, math.nan) for where, row in values if where == region]
            found = np.array([value for value in of_region if not math.isnan(value)])
            if len(found):
                _box_and_dots(axes, place, found, REGION_COLOURS[region], jitter)
        axes.set_xticks(range(len(regions)), regions)
        axes.set_title(HEADINGS[name], fontsize=11)
        if not name.endswith("_mm"):
            axes.set_ylim(-0.03, 1.03)
        _plain(axes)
    return figure


def _box_and_dots(
    axes: Any, place: int, found: npt.NDArray[Any], colour: str, jitter: np.random.Generator
) -> None:
    axes.boxplot(
        found,
        positions=[place],
        widths=0.55,
        showfliers=False,
        manage_ticks=False,
        boxprops={"color": colour},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        medianprops={"color": colour, "linewidth": 2},
    )
    beside = place + jitter.uniform(-0.18, 0.18, len(found))
    size = 18 if len(found) <= 100 else 6
    alpha = 0.7 if len(found) <= 100 else 0.3
    axes.scatter(beside, found, s=size, color=colour, alpha=alpha, linewidths=0, zorder=3)


def dice_by_volume(report: Report) -> Figure:
    """Dice against the volume of the reference: small tumours are harder."""
    figure = _figure(10.8, 3.6)
    by_region = _by_region(report)
    for number, (region, scores) in enumerate(by_region.items()):
        axes = figure.add_subplot(1, len(by_region), number + 1)
        drawn = [each for each in scores if each.metrics.reference_mm3 > 0]
        none = [each for each in scores if each.metrics.reference_mm3 == 0]
        colour = REGION_COLOURS[region]
        if drawn:
            volumes = [each.metrics.reference_mm3 / 1000 for each in drawn]
            axes.scatter(
                volumes, [each.metrics.dice for each in drawn], s=22, color=colour, alpha=0.7
            )
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            if max(volumes) < 100 * min(volumes):  # else one label or two are all there are
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        elif none:
            axes.set_xticks([])
        for each in none:
            if not math.isnan(each.metrics.dice):
                axes.axhline(each.metrics.dice, color=colour, linestyle=":", linewidth=1)
        title = region + (f" ({len(none)} without, dotted)" if none else "")
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("reference volume (ml)")
        axes.set_ylabel("Dice" if not number else "")
        axes.set_ylim(-0.03, 1.03)
        _plain(axes)
    return figure


def bland_altman(report: Report) -> Figure:
    """Predicted less reference volume, against their mean, with the limits of agreement."""
    figure = _figure(10.8, 3.6)
    by_region = _by_region(report)
    for number, (region, scores) in enumerate(by_region.items()):
        axes = figure.add_subplot(1, len(by_region), number + 1)
        reference = np.array([each.metrics.reference_mm3 for each in scores]) / 1000
        predicted = np.array([each.metrics.predicted_mm3 for each in scores]) / 1000
        off = predicted - reference
        colour = REGION_COLOURS[region]
        axes.scatter((reference + predicted) / 2, off, s=22, color=colour, alpha=0.7)
        bias, spread = float(off.mean()), float(off.std(ddof=1)) if len(off) > 1 else 0.0
        axes.axhline(0, color="#999999", linewidth=1)
        axes.axhline(bias, color=colour, linewidth=1.5)
        title = f"{region}: bias {bias:+.1f} ml"
        if spread:
            for limit in (bias - 1.96 * spread, bias + 1.96 * spread):
                axes.axhline(limit, color=colour, linewidth=1.2, linestyle="--")
            title += f" ± {1.96 * spread:.1f}"
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("mean of both volumes (ml)")
        axes.set_ylabel("predicted − reference (ml)" if not number else "")  # noqa: RUF001
        _plain(axes)
    return figure


def _by_region(report: Report) -> dict[str, list[CaseScore]]:
    found: dict[str, list[CaseScore]] = {}
    for each in report.official:
        found.setdefault(each.region, []).append(each)
    return found


def compared(found: Comparison) -> Figure:
    """The differences of each pair of models with their intervals, a panel per metric."""
    metrics = list(dict.fromkeys(each.metric for each in found.differences))
    pairs = list(dict.fromkeys((each.a, each.b) for each in found.differences))
    regions = list(dict.fromkeys(each.region for each in found.differences))
    rows = len(pairs) * len(regions)
    figure = _figure(1.5 + 4.6 * len(metrics), 1.35 + 0.34 * rows + 0.28 * len(pairs))
    for column, metric in enumerate(metrics):
        axes = figure.add_subplot(1, len(metrics), column + 1)
        places, names = [], []
        for number, (a, b) in enumerate(pairs):
            for line, region in enumerate(regions):
                place = number * (len(regions) + 0.8) + line
                places.append(place)
                name = f"{a} − {b}, {region}" if len(pairs) > 1 else region  # noqa: RUF001
                names.append(drawable(name))
                (each,) = (
                    each
                    for each in found.differences
                    if (each.a, each.b, each.region, each.metric) == (a, b, region, metric)
                )
                _interval(axes, place, each.mean_difference, each.ci95, each.p_holm)
        axes.axvline(0, color="#999999", linewidth=1)
        axes.set_yticks(places, names if not column else [""] * len(names))
        axes.margins(y=0.5 / rows + 0.04)
        axes.invert_yaxis()
        side = "left" if lower_is_better(metric) else "right"
        axes.set_xlabel(f"{side} of 0: the first is better", fontsize=9)
        axes.set_title(HEADINGS.get(metric, metric), fontsize=11)
        _plain(axes)
    a, b = pairs[0]
    title = drawable(f"{a} minus {b}") if len(pairs) == 1 else "differences between models"
    figure.suptitle(
        f"{title}: mean of {len(found.cases)} cases, 95 % bootstrap interval\n"
        "filled: significant after Holm's correction (5 %)",
        fontsize=10,
    )
    return figure


def _interval(
    axes: Any, place: float, mean: float, interval: tuple[float, float], p: float
) -> None:
    if math.isnan(mean):
        return
    colour = _INTERVALS
    if not math.isnan(interval[0]):
        axes.plot(interval, [place, place], color=colour, linewidth=1.8)
    face = colour if p < 0.05 else "white"
    axes.plot([mean], [place], "o", color=colour, markerfacecolor=face, markersize=7)


# --- cases -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CasePicture:
    """The slice of a case on which reference and prediction differ most.

    Attributes:
        figure: Every sequence at hand, with the contours of both.
        height_mm: Where the slice lies, along the axis from foot to head.
    """

    figure: Figure
    height_mm: float


def picture(pair: Pair, scoring: Scoring) -> CasePicture:
    """Draw the contours of all regions on every sequence of the case, or on black without one.

    Raises:
        BratsError: If a file cannot be read any more.
    """
    expert, guess = read_pair(pair, scoring)
    regions = shared_regions(pair, expert.scheme, guess.scheme)
    grid = expert.volume.grid
    sides = [
        dict(zip(regions, _turned([side.region(name) for name in regions], grid), strict=True))
        for side in (expert, guess)
    ]
    wrong = sum((sides[0][name] != sides[1][name]).sum(axis=(0, 1)) for name in regions)
    height = int(np.argmax(wrong))
    contours = [{name: mask[..., height] for name, mask in side.items()} for side in sides]
    scans: dict[str, npt.NDArray[Any]] = {}
    for modality in MODALITIES:
        if modality in pair.images:
            file = pair.images[modality]
            (scan,) = _turned([read_image(file.path, file.channel).data], grid)
            scans[modality] = scan[..., height]
    (turned,), affine = to_canonical([expert.volume.data], grid.affine)
    x, y = ((size - 1) / 2 for size in turned.shape[:2])
    return CasePicture(_draw(contours, scans), float(affine[2] @ [x, y, height, 1]))


def _turned(images: Sequence[npt.NDArray[Any]], grid: Grid) -> list[npt.NDArray[Any]]:
    """Images with axes that run to the right, front and top."""
    return to_canonical(images, grid.affine)[0]


def _draw(contours: Sequence[Mapping[str, Mask]], scans: Mapping[str, npt.NDArray[Any]]) -> Figure:
    """Draw the whole slice once, with a frame, and the part in the frame on every sequence."""
    regions = list(contours[0])
    shape = contours[0][regions[0]].shape
    frame = _square(_around([mask for side in contours for mask in side.values()]), shape)
    shown = scans or {"": np.zeros(shape)}
    panels = len(shown) + bool(scans)
    figure = _figure(2.6 * panels if scans else 6.0, 3.3, face="black")
    if scans:
        whole = figure.add_subplot(1, panels, 1)
        last = list(scans)[-1]
        inside = [scan != 0 for scan in scans.values()]
        inside[0][frame] = True
        around = _around(inside)
        _slice(whole, scans[last][around])
        _mark(whole, frame, around)
        whole.set_title(f"{_heading(last)}, whole slice", color="white", fontsize=10)
    for number, (name, scan) in enumerate(shown.items(), panels - len(shown) + 1):
        axes = figure.add_subplot(1, panels, number)
        _slice(axes, scan[frame])
        axes.set_title(_heading(name), color="white", fontsize=10)
        for side, style in zip(contours, _STYLES.values(), strict=True):
            for region in regions:
                _contour(axes, side[region][frame], REGION_COLOURS[region], style)
    lines = [Line2D([], [], color=REGION_COLOURS[region]) for region in regions]
    lines += [Line2D([], [], color="white", linestyle=style) for style in _STYLES.values()]
    figure.legend(
        lines,
        [*regions, *_STYLES],
        loc="outside lower center",
        ncols=len(lines),
        frameon=False,
        labelcolor="white",
        fontsize=9,
    )
    return figure


def _heading(modality: str) -> str:
    return modality.upper().replace("T1CE", "T1ce")


def _square(box: tuple[slice, slice], shape: Sequence[int]) -> tuple[slice, slice]:
    """The box as a square around the same middle, of at least 60 voxels, inside the slice."""
    edge = min(max(60, *(each.stop - each.start for each in box)), *shape)
    starts = [
        min(max((each.start + each.stop - edge) // 2, 0), size - edge)
        for each, size in zip(box, shape, strict=True)
    ]
    return slice(starts[0], starts[0] + edge), slice(starts[1], starts[1] + edge)


def _mark(axes: Any, frame: tuple[slice, slice], around: tuple[slice, slice]) -> None:
    """Draw a frame in the picture of the slice inside `around`, which is seen mirrored."""
    x, y = (whole.stop - 1 - part.stop + 0.5 for part, whole in zip(frame, around, strict=True))
    wide, high = (part.stop - part.start for part in frame)
    axes.add_patch(Rectangle((x, y), wide, high, fill=False, edgecolor="white", linewidth=1))


def _around(slices: Sequence[Mask], margin: int = 6) -> tuple[slice, slice]:
    """The box around everything in any of the slices (X, Y); the whole slice if all are empty."""
    inside = np.any(np.stack(slices), axis=0)
    if not inside.any():
        return slice(0, inside.shape[0]), slice(0, inside.shape[1])
    spans = []
    for axis in (0, 1):
        where = np.flatnonzero(inside.any(axis=1 - axis))
        stop = min(int(where[-1]) + 1 + margin, inside.shape[axis])
        spans.append(slice(max(int(where[0]) - margin, 0), stop))
    return spans[0], spans[1]


def _seen(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(X, Y) as it is displayed: anterior at the top, the patient's left on the right."""
    return data.T[::-1, ::-1]


def _slice(axes: Any, scan: npt.NDArray[Any]) -> None:
    inside = scan[scan != 0]
    dark, bright = np.percentile(inside, (1, 99.5)) if inside.size else (0, 1)
    axes.imshow(_seen(scan), cmap="gray", vmin=dark, vmax=max(bright, dark + 1e-6))
    axes.set_axis_off()


def _contour(axes: Any, mask: Mask, colour: str, style: str) -> None:
    # matplotlib warns where there is nothing to draw a contour of.
    if mask.any() and not mask.all():
        axes.contour(_seen(mask), levels=[0.5], colors=[colour], linewidths=1.1, linestyles=[style])


# --- files -------------------------------------------------------------------------------------


def figures(report: Report) -> Mapping[str, Figure]:
    """The figures of a report by name."""
    return {
        "distributions": distributions(report),
        "dice_by_volume": dice_by_volume(report),
        "volumes": bland_altman(report),
    }


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # A letter that the font lacks, as in a Chinese name, is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def save(figure: Figure, path: Path, *, overwrite: bool = False) -> None:
    """Write a figure as PNG.

    Raises:
        OutputExistsError: If `path` exists and `overwrite` is false.
        OutputError: If it cannot be written.
    """
    with whole_file(path, overwrite=overwrite) as partial:
        partial.write_bytes(png(figure))


def save_comparison(found: Comparison, path: Path, *, overwrite: bool = False) -> None:
    """Write the picture of a comparison as PNG; raises as `save`."""
    save(compared(found), path, overwrite=overwrite)


def reliability(found: Mapping[str, Reliability]) -> Figure:
    """How often a voxel is inside each region, by its probability; the diagonal would be right."""
    figure = _figure(4.6, 4.4)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    for region, each in found.items():
        some = each.voxels > 0
        means = each.probability[some] / each.voxels[some]
        label = f"{region}, calibration error {each.ece:.3f}"
        colour = REGION_COLOURS[region]
        axes.plot(means, each.inside[some] / each.voxels[some], "o-", color=colour, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set(xlabel="probability", ylabel="share of voxels inside the region")
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    _plain(axes)
    return figure


def save_reliability(
    found: Mapping[str, Reliability], path: Path, *, overwrite: bool = False
) -> None:
    """Write the picture of the reliability as PNG; raises as `save`."""
    save(reliability(found), path, overwrite=overwrite)


def worst_pictures(report: Report, cases: Sequence[str]) -> dict[str, CasePicture | BratsError]:
    """The pictures of cases, or why there is none."""
    pairs = {pair.case: pair for pair in report.pairs}
    found: dict[str, CasePicture | BratsError] = {}
    for case in cases:
        if case in pairs:
            try:
                found[case] = picture(pairs[case], report.scoring)
            except BratsError as error:
                found[case] = error
    return found


def _figure(wide: float, high: float, *, face: str = "white") -> Figure:
    # Not by pyplot, which keeps every figure and looks for a screen.
    # By default the title of a row is nearer to the labels above it than to its own axes.
    layout = ConstrainedLayoutEngine(h_pad=0.1)  # inches
    return Figure(figsize=(wide, high), dpi=110, facecolor=face, layout=layout)


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
