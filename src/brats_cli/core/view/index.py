"""The index of a folder of pages: one row per case, with a thumbnail, volumes and scores."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from ..data.labels import REGION_COLOURS
from ..errors import OutputExistsError
from ..images.png import png
from ..reading import parse_json
from ..writing import require_writable, whole_file
from .page import render
from .scene import Scene

FORMAT = "brats-view/1"

INDEX = "index.html"

_SUMMARY = '<script type="application/json" id="summary">'

_SUMMARY_WITHIN = 1 << 18
"""A page that brats wrote has its summary within this number of bytes."""


def summarise(row: Mapping[str, Any], scene: Scene) -> dict[str, Any]:
    """What the index says of a page: the row of its case, and a thumbnail.

    Paths of files on the disk of the page's author are left out.
    """
    known = {key: value for key, value in row.items() if key != "file"}
    return {"format": FORMAT, **known, "thumbnail": _thumbnail(scene)}


def _thumbnail(scene: Scene) -> str:
    """The axial slice with most tumour, its regions in their colours, as a data URI."""
    name = next(each for each in ("t1ce", "flair", "t2", "t1") if each in scene.scans)
    scan = scene.scans[name]
    height = scene.fullest[2]

    def flat(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return volume[:, :, height].T[::-1, ::-1]

    low, high = scan.window
    grey = np.clip((flat(scan.voxels) - low) / (high - low), 0, 1) * ~flat(scene.outside)
    scans = np.repeat(grey[..., None] * 255, 3, axis=2)
    pixels = scans.copy()
    for segmentation in scene.segmentations[:1]:
        for region, mask in segmentation.masks.items():  # the inner regions over the outer ones
            colour = np.array(list(bytes.fromhex(REGION_COLOURS[region].lstrip("#"))))
            pixels[flat(mask)] = 0.55 * scans[flat(mask)] + 0.45 * colour
    every = max(1, max(pixels.shape) // 180)
    return (
        "data:image/png;base64,"
        + base64.b64encode(png(pixels[::every, ::every].round().astype(np.uint8))).decode()
    )


def read_summary(page: Path) -> dict[str, Any] | None:
    """The summary in a page; None if brats did not write the page, or it cannot be read."""
    _, _, rest = _start(page, _SUMMARY_WITHIN).partition(_SUMMARY)
    text, end, _ = rest.partition("</script>")
    try:
        summary = parse_json(text) if end else None
    except ValueError:
        return None
    return summary if _is_ours(summary) else None


def _is_ours(summary: Any) -> bool:
    """Whether a page's summary is as `summarise` writes it; the folder may hold other pages."""
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:
        return False
    tables = [summary.get("volumes_mm3"), summary.get("scores")]
    rows = [row for table in tables if isinstance(table, dict) for row in table.values()]
    numbers = [number for row in rows if isinstance(row, dict) for number in row.values()]
    return (
        all(isinstance(each, dict) for each in (*tables, *rows))
        and all(_is_number(number) for number in (*numbers, summary.get("review")))
        and isinstance(summary.get("notes"), list)
        and all(isinstance(note, str) for note in summary["notes"])
        and {"case", "review", "thumbnail"} <= set(summary)
    )


def _is_number(value: Any) -> bool:
    """Whether a value is None or a number that can be shown."""
    kind = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (kind and abs(value) < 1e12)


def require_own_index(index: Path, *, overwrite: bool) -> None:
    """Check that `index` may be written: only an index that brats wrote is replaced."""
    require_writable(index, overwrite=True)
    if index.exists() and not overwrite and f"brats index {FORMAT}" not in _start(index, 4096):
        raise OutputExistsError(index)


def _start(path: Path, most: int) -> str:
    """The first bytes of a file as text; empty if it is not a regular file or cannot be read."""
    try:
        if not path.is_file():  # a pipe would never end
            return ""
        with path.open("rb") as file:
            return file.read(most).decode("utf-8", errors="replace")
    except OSError:
        return ""


def write_index(path: Path) -> None:
    """Write a page that lists all pages of cases in its folder.

    Raises:
        OutputError: If it cannot be written.
    """
    pages = sorted(each for each in path.parent.glob("*.html") if each.name != path.name)
    found = [(page.name, summary) for page in pages if (summary := read_summary(page))]
    found.sort(key=lambda each: -(each[1]["review"] or 0))  # what to look at first
    regions = list(
        dict.fromkeys(
            region
            for _, summary in found
            for volumes in summary["volumes_mm3"].values()
            for region in volumes
        )
    )
    columns = _columns(regions, [summary for _, summary in found])
    text = render(
        "index",
        title=f"{len(found)} case{'s' * (len(found) != 1)}",
        mark=f"brats index {FORMAT}",
        heads="".join(f'<th scope="col">{_sorter(name)}</th>' for name, _ in columns),
        rows="\n".join(_row(page, summary, columns) for page, summary in found),
    )
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


Column = tuple[str, Callable[[Mapping[str, Any]], float | None]]


def _columns(regions: Iterable[str], summaries: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of numbers that at least one case has a value in."""

    def volume(region: str, which: str) -> Callable[[Mapping[str, Any]], float | None]:
        def of(summary: Mapping[str, Any]) -> float | None:
            mm3 = summary["volumes_mm3"].get(which, {}).get(region)
            return None if mm3 is None else mm3 / 1000

        return of

    def scored(region: str, metric: str) -> Callable[[Mapping[str, Any]], float | None]:
        return lambda summary: summary["scores"].get(region, {}).get(metric)

    columns: list[Column] = [("review", lambda summary: summary["review"])]
    for region in regions:
        columns += [
            (f"{region} ml", volume(region, "prediction")),
            (f"{region} reference ml", volume(region, "reference")),
            (f"{region} Dice", scored(region, "dice")),
            (f"{region} HD95 mm", scored(region, "hausdorff95_mm")),
        ]
    return [each for each in columns if any(each[1](summary) is not None for summary in summaries)]


def _sorter(name: str) -> str:
    return f'<button type="button">{html.escape(name)}</button>'


def _row(page: str, summary: Mapping[str, Any], columns: Sequence[Column]) -> str:
    link = html.escape(quote(os.fsencode(page)), quote=True)
    case = html.escape(str(summary["case"]))
    notes = html.escape(" ".join(summary["notes"]))
    thumbnail = html.escape(str(summary["thumbnail"]), quote=True)
    cells = []
    for name, value_of in columns:
        value = value_of(summary)
        digits = 3 if name.endswith(("Dice", "review")) else 1
        shown = "-" if value is None else f"{value:.{digits}f}"
        cells.append(f'<td data-value="{"" if value is None else value}">{shown}</td>')
    return (
        f'<tr><td><a href="{link}"><img src="{thumbnail}" alt="" loading="lazy"></a></td>'
        f'<th scope="row" data-value="{case}"><a href="{link}">{case}</a>'
        f'<span class="note">{notes}</span></th>{"".join(cells)}</tr>'
    )
