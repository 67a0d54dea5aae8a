"""Pictures of a training: its curves, and what the network finds in a slice.

matplotlib is imported when the first is drawn; nothing else has to wait for it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..data.labels import REGION_COLOURS, REGIONS
from ..images.grid import Mask
from ..wording import drawable
from ..writing import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_EXPERT, _PREDICTION = "#56B4E9", "#FF7F0E"

_MARKED = 30
"""Up to this many epochs, each is marked by a dot; with more, the line is clearer without."""


@dataclass(frozen=True, eq=False)
class Preview:
    """One slice of a case: what the expert drew, and what the network found.

    Attributes:
        case_id: The case.
        image: (H, W) intensities in radiological view: anterior at the top, the patient's left on
            the right.
        truth: Expert masks of WT, TC and ET, (3, H, W).
        found: The network's, same shape.
    """

    case_id: str
    image: npt.NDArray[np.float32]
    truth: Mask
    found: Mask

    @classmethod
    def of(cls, case_id: str, image: npt.NDArray[np.floating], truth: Mask, found: Mask) -> Preview:
        """The axial slice with most whole tumour by the expert; the middle one if there is none.

        Args:
            case_id: The case.
            image: (X, Y, Z), in RAS.
            truth: Expert masks of WT, TC and ET, (3, X, Y, Z).
            found: The network's, same shape.
        """
        tumour = truth[0].sum(axis=(0, 1))
        height = int(tumour.argmax()) if tumour.any() else image.shape[2] // 2
        image, truth, found = (
            np.swapaxes(volume[..., height], -2, -1)[..., ::-1, ::-1]
            for volume in (image, truth, found)
        )
        return cls(case_id, image.astype(np.float32), truth, found)

    def draw(self) -> npt.NDArray[np.uint8]:
        """The slice once for each region, with both contours; (H, W, 3) pixels."""
        from matplotlib.lines import Line2D

        high, wide = self.image.shape
        figure = _figure(9, 3 * high / wide + 0.7)
        figure.set_facecolor("black")
        brain = np.ma.masked_equal(self.image, 0)  # black outside, not mean grey
        dark, bright = np.percentile(brain.compressed(), (1, 99.5)) if brain.count() else (0, 1)
        for axes, region, truth, found in zip(
            figure.subplots(1, len(REGIONS)), REGIONS, self.truth, self.found, strict=True
        ):
            axes.imshow(brain, cmap="gray", vmin=dark, vmax=bright)
            for mask, colour in ((truth, _EXPERT), (found, _PREDICTION)):
                # matplotlib warns where there is nothing to draw a contour of.
                if mask.any() and not mask.all():
                    axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.3)
            axes.set_title(region, color="white", fontsize=11)
            axes.set_axis_off()
        lines = [Line2D([], [], color=colour) for colour in (_EXPERT, _PREDICTION)]
        figure.legend(
            lines,
            [f"expert, {drawable(self.case_id)}", "network"],
            loc="outside lower center",
            ncols=2,
            frameon=False,
            labelcolor="white",
            fontsize=10,
        )
        figure.set_layout_engine("constrained", h_pad=0.08)
        return _pixels(figure)


def draw_curves(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw loss, validation Dice by region and learning rate of the rows of a `log.csv`.

    Raises:
        OutputError: If `path` (a `.png`) cannot be written.
    """
    figure = _figure(12, 3.8)
    # A layout that matplotlib finds takes it as long as all the rest.
    figure.subplots_adjust(left=0.045, right=0.99, bottom=0.24, top=0.9, wspace=0.17)
    loss, dice, rate = figure.subplots(1, 3)
    _line(loss, "Training loss", rows, "loss")
    for region in REGIONS:
        colour = REGION_COLOURS[region]
        _line(dice, "Validation Dice", rows, f"val_dice_{region}", color=colour, label=region)
    _mark_best(dice, rows)
    # Below, where no curve can be: Dice may be anything from 0 to 1.
    dice.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=4,
        columnspacing=1,
        handlelength=1.3,
        fontsize=9,
        frameon=False,
    )
    dice.set_ylim(-0.02, 1.02)
    _line(rate, "Learning rate", rows, "learning_rate")
    rate.ticklabel_format(axis="y", scilimits=(-2, 2))
    rates = _column(rows, "learning_rate")[1] or [0.0]
    if min(rates) > 0 and max(rates) >= 10 * min(rates):
        rate.set_yscale("log")
    elif min(rates) == max(rates):
        rate.set_ylim(0, 2 * max(rates) or 1)
    for axes in (loss, dice, rate):
        axes.set_xlim(*_epochs_shown(rows))
    with whole_file(path) as partial:
        figure.savefig(partial, metadata={"Software": None})


def _line(
    axes: Axes,
    title: str,
    rows: Sequence[Mapping[str, str]],
    name: str,
    *,
    color: str = "#333333",
    label: str = "",
) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs, values = _column(rows, name)
    marker = "o" if len(rows) <= _MARKED else ""
    axes.plot(epochs, values, marker=marker, markersize=4, linewidth=1.5, color=color, label=label)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _mark_best(axes: Axes, rows: Sequence[Mapping[str, str]]) -> None:
    """Mark the epoch whose mean Dice is the highest, the first of several."""
    epochs, means = _column(rows, "val_dice_mean")
    if not means:
        return
    best = int(np.argmax(means))
    text = f"best, epoch {epochs[best]}: {means[best]:.3f}"
    axes.axvline(
        epochs[best],
        color="#999999",
        linestyle="--",
        linewidth=1.2,
        antialiased=False,  # upright: sharp without
        zorder=1,
        label=text,
    )


def _column(rows: Sequence[Mapping[str, str]], name: str) -> tuple[list[int], list[float]]:
    """The epochs in which a column has a value that can be drawn, and the values."""
    filled = [(int(row["epoch"]), float(row[name])) for row in rows if row.get(name)]
    drawn = [(epoch, value) for epoch, value in filled if abs(value) < 1e30]  # NaN is not, either
    return [epoch for epoch, _ in drawn], [value for _, value in drawn]


def _epochs_shown(rows: Sequence[Mapping[str, str]]) -> tuple[float, float]:
    first, last = int(rows[0]["epoch"]), int(rows[-1]["epoch"])
    margin = max(0.5, 0.03 * (last - first))
    return first - margin, last + margin


def _figure(wide: float, high: float) -> Figure:
    # It would report on the terminal a font cache that it builds or has no place for.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # Not by pyplot, which keeps every figure and looks for a screen.
    from matplotlib.figure import Figure

    return Figure(figsize=(wide, high), dpi=100)


def _pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A letter that the font lacks, as in a Chinese name, is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
