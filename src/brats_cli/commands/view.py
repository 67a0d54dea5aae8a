"""`brats view`: cases as pictures, and as pages that open offline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console
from . import options
from .batch import paths_of, raise_failures, show_plan

if TYPE_CHECKING:
    from ..core.view.views import View, Views

FORMAT = "brats-views/1"


Seg = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="SEG",
        help="Label map to show, or a folder with one per case. Repeat it to compare two: "
        "prediction, then reference. Default of the reference: the case's own label map.",
    ),
]
Output = Annotated[
    Path | None,
    options.output(
        "File (.html, .png, .pdf or .svg), or folder for pages and their index. "
        "Default: CASE.html, for several cases the folder views."
    ),
]
Slice = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PLANE=INDEX",
        help="Slice to show instead of the one with most tumour, such as axial=77, counted "
        "from 0; can be repeated.",
    ),
]
Montage = Annotated[
    int | None,
    typer.Option(
        min=1, max=40, metavar="N", help="Show N axial slices through the tumour (pictures)."
    ),
]
Uncertainty = Annotated[
    Path | None,
    typer.Option(metavar="MAP", help="Uncertainty map to lay over the scans, or a folder of them."),
]
Probabilities = Annotated[
    Path | None,
    typer.Option(metavar="MAP", help="Probability map to lay over the scans, or a folder of them."),
]


def view(
    case: options.Cases,
    seg: Seg = None,
    output: Output = None,
    slice: Slice = None,  # noqa: A002
    montage: Montage = None,
    uncertainty: Uncertainty = None,
    probabilities: Probabilities = None,
    labels: options.Labels = None,
    workers: options.Workers = None,
    executor: options.Scheduler = None,
    skip_existing: options.SkipExisting = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Show cases: the four sequences with contours, volumes and scores.

    An .html page is interactive (linked slices, 3D surfaces) and opens without a network; .png,
    .pdf and .svg are pictures. A folder gets one page per case and an index of all.

    Example: brats view data/BraTS2021_00006 --seg seg.nii.gz -o view.html
    """
    from ..core.view import views

    with console.counted("cases") as on_progress:
        shown = views.view(
            paths_of(case),
            seg=seg or (),
            output=output,
            slice=slice or (),
            montage=montage,
            uncertainty=uncertainty,
            probabilities=probabilities,
            labels=labels,
            workers=workers,
            executor=executor,
            skip_existing=skip_existing,
            dry_run=dry_run,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if shown.planned is not None:
        show_plan(shown.planned, as_json=as_json)
    else:
        show_views(shown, as_json=as_json)
    planned = shown.planned.cases if shown.planned is not None else ()
    tried = len(shown.made) + len(planned) + len(shown.failed)
    raise_failures(list(shown.failed), tried=tried, of="cases")


def show_views(shown: Views, *, as_json: bool = False) -> None:
    """The cases on stdout, where they are on stderr."""
    if shown.unmatched:
        count = len(shown.unmatched)
        console.message(f"{count} case{'s have' if count > 1 else ' has'} no segmentation there")
    if shown.skipped:
        console.message(f"{len(shown.skipped)} of the cases have their file")
    if as_json:
        failed = [{"error": str(error), "hint": error.hint} for error in shown.failed]
        console.result_json(
            {
                "format": FORMAT,
                "cases": [each.row() for each in shown.made],
                "index": str(shown.index) if shown.index else None,
                "failed": failed,
            }
        )
    elif shown.made:
        _table(shown.made)
    if shown.index:
        console.message(f"wrote {shown.index}")


def _table(made: tuple[View, ...]) -> None:
    """A row per case: the volumes of what is shown, and the Dice where it is scored."""
    regions = list(dict.fromkeys(name for each in made for name in _volumes(each)))
    scored = [name for name in regions if any(name in each.scores for each in made)]
    rows = []
    for each in made:
        volumes = _volumes(each)
        rows.append(
            [
                each.file,
                *(console.number(volumes.get(name, math.nan) / 1000, 2) for name in regions),
                *(console.number(each.scores.get(name, {}).get("dice")) for name in scored),
            ]
        )
    volume_headings = (f"{name} ml" for name in regions)
    console.table(["file", *volume_headings, *(f"Dice {name}" for name in scored)], rows)
    for each in made:
        for note in each.notes:
            console.message(f"{each.case}: {note}")


def _volumes(each: View) -> dict[str, float]:
    shown = each.volumes_mm3.get("prediction") or each.volumes_mm3.get("reference") or {}
    return dict(shown)
