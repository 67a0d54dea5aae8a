"""How a case is drawn as slices in one picture: PNG, PDF or SVG."""

from __future__ import annotations

import logging
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..data.labels import REGION_COLOURS
from ..errors import ConfigError
from ..wording import drawable
from ..writing import whole_file
from .scene import PLANES, SEQUENCES, Heat, Scene, Segmentation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Without dates and versions: the same case gives the same bytes.
_METADATA = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}

FORMATS = tuple(_METADATA)

_PER_INCH = 150
_MM_PER_INCH = 60.0
"""Scale of every slice: at 150 dots an inch, a millimetre is 2.5 dots."""

_GAP = 0.06  # inches between slices
_HEAD, _FOOT, _SIDE, _PANEL = 0.52, 0.12, 0.62, 2.95  # inches around them

_BAR_MM = 50
_RIM_MM = 6  # around each slice, for the letters
_LINE = 0.19  # inches from one line of the legend to the next
_INK, _DIM, _NOTE, _PAPER = "#F2F2F2", "#9A9A9A", "#FFC20A", "#000000"

_LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
"""What lies to the left, right, top and bottom: seen from the feet, the front and the left."""

_HEAT_COLOURS = "inferno"

Outline = npt.NDArray[np.float64]
"""A contour as points (N, 2) in pixels, x before y."""


@dataclass(frozen=True)
class Cut:
    """One slice of the upright grid."""

    plane: str
    index: int

    @property
    def axis(self) -> int:
        """The axis of the grid that it cuts across."""
        return PLANES[self.plane]

    def of(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The slice of `volume` (X, Y, Z) as it is displayed, (H, W).

        Right is on the left, as radiologists see it; anterior above in axial slices and on the
        left in sagittal ones; superior above.
        """
        flat: npt.NDArray[Any] = volume.take(self.index, axis=self.axis).T[::-1, ::-1]
        return flat

    def size_mm(self, scene: Scene) -> tuple[float, float]:
        """Width and height of the slice with its rim."""
        wide, high = (
            count * spacing + 2 * _RIM_MM
            for axis, (count, spacing) in enumerate(zip(scene.shape, scene.spacing_mm, strict=True))
            if axis != self.axis
        )
        return wide, high

    def spacing_mm(self, scene: Scene) -> tuple[float, float]:
        """Size of a pixel of the slice, across and along."""
        across, along = (scene.spacing_mm[axis] for axis in range(3) if axis != self.axis)
        return across, along


def parse_slices(scene: Scene, wanted: Sequence[str]) -> dict[str, int]:
    """Slices given as `axial=77`, by plane, as indices of the scene's grid.

    Raises:
        ConfigError: If one has another form, or lies outside the brain.
    """
    chosen = {}
    for text in wanted:
        plane, _, number = text.partition("=")
        if plane not in PLANES or not number.isdecimal():
            raise ConfigError(
                f"'{text}' is not a slice",
                hint="write PLANE=INDEX, as axial=77; the planes are axial, coronal and sagittal",
            )
        axis = PLANES[plane]
        index = scene.index_of(axis, int(number))
        if not 0 <= index < scene.shape[axis]:
            ends = sorted(scene.file_index(axis, end) for end in (0, scene.shape[axis] - 1))
            raise ConfigError(
                f"{plane} slice {number} of case {scene.case} shows nothing",
                hint=f"its {plane} slices with brain are {ends[0]} to {ends[1]}",
            )
        chosen[plane] = index
    return chosen


def choose_cuts(
    scene: Scene, *, slices: Sequence[str] = (), montage: int | None = None
) -> list[Cut]:
    """The slices of a picture: one per plane, or `montage` axial ones spread over the tumour.

    Raises:
        ConfigError: If one of `slices` is not a slice of the case.
    """
    chosen = parse_slices(scene, slices)
    if montage is None:
        fullest = scene.fullest
        return [Cut(plane, chosen.get(plane, fullest[axis])) for plane, axis in PLANES.items()]
    tumour = scene.tumour
    low, high = 0, scene.shape[2] - 1
    if tumour is not None:
        low, high = (int(end) for end in np.flatnonzero(tumour.any(axis=(0, 1)))[[0, -1]])
    # Neither end, where a tumour is a dot and a brain has ended.
    heights = np.linspace(low, high, montage + 2)[1:-1].round().astype(int)
    return [Cut("axial", index) for index in np.unique(heights).tolist()]


def draw_slices(
    scene: Scene,
    path: Path,
    *,
    slices: Sequence[str] = (),
    montage: int | None = None,
    overwrite: bool = False,
) -> None:
    """Draw slices of every sequence with the contours of the segmentations.

    Args:
        scene: What to show.
        path: Where to write; its suffix, one of `FORMATS`, decides the format.
        slices: Slices to show in place of those with most tumour, as `axial=77`.
        montage: Show this many axial slices in place of one per plane.
        overwrite: Whether `path` may exist.

    Raises:
        ConfigError: If one of `slices` is not a slice of the case.
        OutputError: If `path` cannot be written.
    """
    import matplotlib

    cuts = choose_cuts(scene, slices=slices, montage=montage)
    figure = _Sheet(scene, cuts).draw()
    suffix = path.suffix.lower()
    # A third of the time of the default, 6, for a seventh more bytes.
    options: dict[str, Any] = {"pil_kwargs": {"compress_level": 2}} if suffix == ".png" else {}
    with (
        matplotlib.rc_context({"svg.hashsalt": "brats"}),
        whole_file(path, overwrite=overwrite) as partial,
        warnings.catch_warnings(),
    ):
        # A letter that the font lacks, as in a Chinese name, is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(
            partial,
            format=suffix.lstrip("."),
            dpi=_PER_INCH,
            facecolor=_PAPER,
            metadata=_METADATA[suffix],
            **options,
        )


@dataclass(frozen=True)
class _Cell:
    """A slice on the sheet: what is drawn there, and where, in inches from the top left."""

    cut: Cut
    left: float
    top: float
    sequence: str
    heat: Heat | None = None
    map_name: str = ""


class _Sheet:
    """The places of all slices, on one scale, and the drawing of them."""

    def __init__(self, scene: Scene, cuts: Sequence[Cut]) -> None:
        self.scene = scene
        self.cuts = cuts
        self.outlines: dict[tuple[Cut, str], dict[str, list[Outline]]] = {}
        self.cell_width = max(cut.size_mm(scene)[0] for cut in cuts) / _MM_PER_INCH
        blocks = 1 if len(cuts) < 5 else 2  # of all sequences, side by side
        columns = blocks * len(SEQUENCES)
        self.cells: list[_Cell] = []
        self.row_tops: list[tuple[float, Cut]] = []
        top = _HEAD
        for first in range(0, len(cuts), blocks):
            row = cuts[first : first + blocks]
            for block, cut in enumerate(row):
                self.row_tops.append((top, cut))
                for column, sequence in enumerate(SEQUENCES):
                    left = self._left(block * len(SEQUENCES) + column, block)
                    self.cells.append(_Cell(cut, left, top, sequence))
            top += max(self._height(cut) for cut in row) + _GAP
        self.heat_tops: list[tuple[float, Heat]] = []
        for heat in scene.heats:
            self.heat_tops.append((top, heat))
            top += self._add_heat(heat, top) + _GAP
        self.blocks = blocks
        self.width = self._left(columns, blocks - 1) + _PANEL
        self.height = max(top + _FOOT, self._panel_height())

    def _left(self, column: int, block: int) -> float:
        return _SIDE * (block + 1) + column * (self.cell_width + _GAP)

    def _height(self, cut: Cut) -> float:
        return cut.size_mm(self.scene)[1] / _MM_PER_INCH

    def _panel_height(self) -> float:
        return _HEAD + _LINE * len(list(self._panel_lines())) + 0.7 * len(self.scene.heats) + _FOOT

    def _add_heat(self, heat: Heat, top: float) -> float:
        """Add a row for the maps: several maps on the first slice, or one map on each slice."""
        base = next(name for name in ("flair", "t2", "t1ce", "t1") if name in self.scene.scans)
        names = list(heat.maps)
        if len(names) > 1:
            shown = [(self.cuts[0], name) for name in names]
        else:
            shown = [(cut, names[0]) for cut in self.cuts]
        shown = shown[: len(SEQUENCES)]
        for column, (cut, name) in enumerate(shown):
            self.cells.append(_Cell(cut, self._left(column, 0), top, base, heat, name))
        return max(self._height(cut) for cut, _ in shown)

    def draw(self) -> Figure:
        """The whole sheet."""
        figure = _figure(self.width, self.height)
        for cell in self.cells:
            self._draw_cell(figure, cell)
        self._draw_words(figure)
        self._draw_panel(figure)
        return figure

    # --- slices --------------------------------------------------------------------------------

    def _draw_cell(self, figure: Figure, cell: _Cell) -> None:
        wide, high = (each / _MM_PER_INCH for each in cell.cut.size_mm(self.scene))
        left = cell.left + (self.cell_width - wide) / 2
        bottom = self.height - cell.top - high
        axes = figure.add_axes(
            (left / self.width, bottom / self.height, wide / self.width, high / self.height)
        )
        axes.set_axis_off()
        scan = self.scene.scans.get(cell.sequence)
        if scan is None:
            self._say(axes, f"no {SEQUENCES[cell.sequence]}")
            return
        # Not drawn outside the brain, where 0 is no value and may be brighter than negative ones.
        brain = np.ma.array(cell.cut.of(scan.voxels), mask=cell.cut.of(self.scene.outside))
        axes.imshow(
            brain,
            cmap="gray",
            vmin=scan.window[0],
            vmax=scan.window[1],
            aspect="auto",
            interpolation="bilinear",
        )
        across, along = cell.cut.spacing_mm(self.scene)
        axes.set_xlim(-0.5 - _RIM_MM / across, brain.shape[1] - 0.5 + _RIM_MM / across)
        axes.set_ylim(brain.shape[0] - 0.5 + _RIM_MM / along, -0.5 - _RIM_MM / along)
        if scan.is_empty:
            self._say(axes, f"{scan.name} is empty", height=0.92)  # above the contours
        if cell.heat is not None:
            _lay_over(axes, cell.cut.of(cell.heat.maps[cell.map_name]), cell.heat.top)
        for segmentation in self.scene.segmentations:
            self._outline(axes, cell, segmentation)
        self._letter(axes, cell)

    def _outline(self, axes: Axes, cell: _Cell, segmentation: Segmentation) -> None:
        from matplotlib.collections import LineCollection

        for region, lines in self._outlines(cell.cut, segmentation).items():
            drawn = LineCollection(
                lines,
                colors=REGION_COLOURS[region],
                linewidths=1 if cell.heat is None else 0.7,
                linestyles=[_style(segmentation)],
            )
            axes.add_collection(drawn, autolim=False)

    def _outlines(self, cut: Cut, segmentation: Segmentation) -> dict[str, list[Outline]]:
        """The contours of each region in a slice, half-way between voxels inside and outside."""
        from contourpy import contour_generator  # what matplotlib itself draws contours with

        key = cut, segmentation.name
        if key not in self.outlines:  # every sequence shows the same
            self.outlines[key] = {}
            for name, mask in segmentation.masks.items():
                # Around the slice there is nothing, so that every contour is closed.
                flat = np.pad(cut.of(mask), 1).astype(np.float32)
                lines: Any = contour_generator(z=flat).lines(0.5) if flat.any() else []
                self.outlines[key][name] = [line - 1 for line in lines]
        return self.outlines[key]

    def _say(self, axes: Axes, text: str, *, height: float = 0.5) -> None:
        axes.text(0.5, height, text, transform=axes.transAxes, color=_DIM, ha="center", va="center")

    def _letter(self, axes: Axes, cell: _Cell) -> None:
        """Orientation letters and a bar of 50 mm; what the bar is, once in a row."""
        places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.985), (0.5, 0.015))
        sides = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
        for letter, (x, y), (across, along) in zip(
            _LETTERS[cell.cut.plane], places, sides, strict=True
        ):
            axes.text(
                x, y, letter, transform=axes.transAxes, color=_INK, fontsize=7, ha=across, va=along
            )
        wide, high = cell.cut.size_mm(self.scene)
        share = _BAR_MM / wide
        if share < 0.9:
            start, level = 0.03, 2.5 / high
            axes.plot(
                [start, start + share],
                [level, level],
                transform=axes.transAxes,
                color=_INK,
                linewidth=1.6,
                solid_capstyle="butt",
            )
            if cell.sequence == "t1" or cell.heat is not None:
                axes.text(
                    start,
                    level + 2.5 / high,
                    f"{_BAR_MM} mm",
                    transform=axes.transAxes,
                    color=_INK,
                    fontsize=6.5,
                    ha="left",
                    va="bottom",
                )

    # --- words ---------------------------------------------------------------------------------

    def _write(self, figure: Figure, left: float, top: float, text: str, **style: Any) -> None:
        """Text on the sheet, in inches from the top left."""
        style = {"color": _INK, "fontsize": 9, "va": "top", **style}
        place = left / self.width, 1 - top / self.height
        figure.text(*place, drawable(text), **style)

    def _draw_words(self, figure: Figure) -> None:
        self._write(figure, 0.12, 0.08, self.scene.case, fontsize=12, weight="bold")
        for block in range(self.blocks):
            for column, name in enumerate(SEQUENCES.values()):
                middle = self._left(block * len(SEQUENCES) + column, block) + self.cell_width / 2
                self._write(figure, middle, 0.31, name, ha="center", fontsize=10)
        for number, (top, cut) in enumerate(self.row_tops):
            left = self._left(0, 0) if number % self.blocks == 0 else self._left(4, 1)
            self._write_upright(figure, left - 0.4, top, self._height(cut), self._describe(cut))
        for top, heat in self.heat_tops:
            cut = self.cuts[0]
            self._write_upright(figure, self._left(0, 0) - 0.4, top, self._height(cut), heat.name)
            for cell in self.cells:
                if cell.heat is heat and cell.map_name:
                    middle = cell.left + self.cell_width / 2
                    self._write(
                        figure, middle - 0.45 * self.cell_width, top + 0.03, cell.map_name,
                        fontsize=8,
                    )  # fmt: skip

    def _write_upright(
        self, figure: Figure, left: float, top: float, high: float, text: str
    ) -> None:
        self._write(
            figure, left, top + high / 2, text, rotation=90, ha="left", va="center",
            linespacing=1.5,
        )  # fmt: skip

    def _describe(self, cut: Cut) -> str:
        """A slice by the voxel index in the case's files, and by its place in space.

        For an oblique slice, the place in the tumour, as on a page that opens there.
        """
        point = np.array([*self.scene.fullest, 1])
        point[cut.axis] = cut.index
        place = float((self.scene.affine @ point)[cut.axis])
        index = self.scene.file_index(cut.axis, cut.index)
        return f"{cut.plane} {index}\n{'xyz'[cut.axis]} = {place:+.0f} mm"

    # --- the panel on the right ----------------------------------------------------------------

    def _draw_panel(self, figure: Figure) -> None:
        left = self.width - _PANEL + 0.25
        top = _HEAD
        for kind, text, style in self._panel_lines():
            if kind == "key":
                self._draw_key(figure, left, top + 0.075, **style)
                self._write(figure, left + 0.5, top, text)
            elif kind == "item":
                self._write(figure, left + 0.5, top, text, fontsize=8.5)
            else:
                self._write(figure, left, top, text, **{"color": _DIM, "fontsize": 8, **style})
            top += _LINE if text else 0.6 * _LINE
        for _, heat in self.heat_tops:
            top = self._draw_scale(figure, left, top + 0.1, heat)

    def _panel_lines(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Kind, text and style of each line of the legend."""
        segmentations = self.scene.segmentations
        for segmentation in segmentations:
            yield "key", segmentation.name, {"colour": _INK, "style": _style(segmentation)}
        if not segmentations:
            yield "text", "no segmentation", {}
        yield "text", "", {}
        for region in self.scene.regions:
            yield "key", region, {"colour": REGION_COLOURS[region], "style": "solid"}
            for segmentation in segmentations:
                if region in segmentation.volumes_mm3:
                    volume = segmentation.volumes_mm3[region] / 1000
                    yield "item", f"{segmentation.name}  {volume:.1f} ml", {}
            if (found := self.scene.scores.get(region)) is not None:
                yield "item", f"Dice  {_number(found.dice, 3)}", {}
                yield "item", f"HD95  {_number(found.hausdorff95_mm, 1)} mm", {}
            yield "text", "", {}
        yield "text", "the patient's right is on the left", {}
        for note in self.scene.notes:
            for line in textwrap.wrap(note, 44):
                yield "text", line, {"color": _NOTE}
        yield "text", "for research only", {}

    def _draw_key(
        self, figure: Figure, left: float, top: float, *, colour: str, style: Any
    ) -> None:
        from matplotlib.lines import Line2D

        x = [left / self.width, (left + 0.4) / self.width]
        y = [1 - top / self.height] * 2
        figure.add_artist(Line2D(x, y, color=colour, linewidth=2, linestyle=style))

    def _draw_scale(self, figure: Figure, left: float, top: float, heat: Heat) -> float:
        """The colour scale of a map; returns where the next thing may begin."""
        self._write(figure, left, top, heat.name)
        axes = figure.add_axes(
            (
                left / self.width,
                1 - (top + 0.34) / self.height,
                1.8 / self.width,
                0.12 / self.height,
            )
        )
        ramp = np.linspace(0, heat.top, 128)[None]
        _lay_over(axes, ramp, heat.top)
        axes.set_facecolor("#606060")
        axes.set_xticks([])
        axes.set_yticks([])
        self._write(figure, left, top + 0.36, "0", fontsize=7.5)
        self._write(figure, left + 1.8, top + 0.36, f"{heat.top:g}", fontsize=7.5, ha="right")
        return top + 0.6


def _style(segmentation: Segmentation) -> Any:
    return (0, (3, 2)) if segmentation.dashed else "solid"


def _lay_over(axes: Axes, values: npt.NDArray[Any], top: float) -> None:
    """A map in colours that fade out towards 0."""
    share = np.clip(values / top, 0, 1)
    axes.imshow(
        values,
        cmap=_HEAT_COLOURS,
        vmin=0,
        vmax=top,
        alpha=np.minimum(1, 1.6 * share),
        aspect="auto",
        interpolation="nearest",
    )


def _number(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def _figure(wide: float, high: float) -> Figure:
    # It would report a font cache that it builds or has no place for.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # Not by pyplot, which keeps every figure and looks for a screen.
    from matplotlib.figure import Figure

    return Figure(figsize=(wide, high), dpi=_PER_INCH)
