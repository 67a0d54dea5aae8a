"""`brats mesh`: label maps to surfaces that can be printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .. import console
from . import options
from .batch import paths_of, raise_failures, show_plan

if TYPE_CHECKING:
    from ..core.surface.meshing import Meshes

NOTED = 20
"""Of up to so many meshes, what is special about each is printed; of more, only under -v."""


Segmentations = Annotated[
    list[Path],
    typer.Argument(
        metavar="SEG",
        help="Label maps (NIfTI), or scans for the region brain; - reads paths from standard "
        "input.",
    ),
]
Region = Annotated[
    str,
    typer.Option(
        metavar="REGION",
        help="WT, TC, ET, another region, a label value, all, or brain (the outline of a "
        "scan's voxels that are not 0).",
    ),
]
Output = Annotated[
    Path | None,
    options.output("A file for one mesh, a folder for several; default: beside the label map."),
]
Format = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        help="stl, ply, obj or glb; default: by the suffix of OUT, or stl. GLB holds all "
        "regions in one scene.",
    ),
]
Space = Annotated[
    Literal["ras", "lps"],
    typer.Option(
        metavar="AXES",
        help="Axes of the mesh, noted in the file: NIfTI's (ras) or DICOM's (lps).",
    ),
]
Scale = Annotated[
    float,
    typer.Option(metavar="X", help="Multiply coordinates: 0.5 prints at half the size."),
]
Smooth = Annotated[
    Literal["none", "light", "medium", "strong"],
    typer.Option(
        metavar="LEVEL",
        help="none, light, medium or strong. The volume stays that of the voxels.",
    ),
]
Interpolate = Annotated[
    bool | None,
    typer.Option(
        "--interpolate/--no-interpolate",
        help="Interpolate the shape between slices; default: where slices are at least 2.5 "
        "times as thick as voxels are wide.",
    ),
]
Faces = Annotated[
    int | None,
    typer.Option(metavar="N", help="Reduce each surface to about N triangles."),
]
Reduce = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Reduce each surface: the part of its triangles to keep, above 0 and up to 1.",
    ),
]
Paint = Annotated[
    Path | None,
    typer.Option(
        metavar="SCAN",
        help="Paint surfaces with a scan or map on the same grid (PLY, OBJ and GLB).",
    ),
]
Texture = Annotated[
    bool,
    typer.Option(
        "--texture",
        help="Paint into a picture, which shows more detail than vertices (GLB; always OBJ).",
    ),
]
MinVolume = Annotated[
    float,
    typer.Option(metavar="MM3", help="Leave out separate parts smaller than this."),
]
Largest = Annotated[
    bool, typer.Option("--largest", help="Keep only the largest part of each region.")
]
FillHoles = Annotated[bool, typer.Option("--fill-holes", help="Fill cavities inside each region.")]


def mesh(
    segmentations: Segmentations,
    region: Region = "WT",
    output: Output = None,
    format: Format = None,  # noqa: A002
    space: Space = "ras",
    scale: Scale = 1.0,
    smooth: Smooth = "light",
    interpolate: Interpolate = None,
    faces: Faces = None,
    reduce: Reduce = None,
    paint: Paint = None,
    texture: Texture = False,
    min_volume: MinVolume = 0.0,
    largest: Largest = False,
    fill_holes: FillHoles = False,
    labels: options.Labels = None,
    workers: options.Workers = None,
    executor: options.Scheduler = None,
    skip_existing: options.SkipExisting = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Make closed surfaces of tumour regions, smooth and exactly as large as their voxels.

    Writes `seg_WT.stl` beside `seg.nii.gz`, in millimetres, and prints its volume, its area and
    its mean distance to the faces of the voxels, sampled at up to 1,500 points each way. Every
    mesh is closed and a manifold.

    Example: brats mesh seg.nii.gz --region WT
    """
    from ..core.surface import meshing

    paths = paths_of(segmentations)
    with console.counted("meshes") as on_progress:
        meshes = meshing.mesh(
            paths,
            region=region,
            output=output,
            format=format,
            space=space,
            scale=scale,
            smooth=smooth,
            interpolate=interpolate,
            faces=faces,
            reduce=reduce,
            paint=paint,
            texture=texture,
            min_volume=min_volume,
            largest=largest,
            fill_holes=fill_holes,
            labels=labels,
            workers=workers,
            executor=executor,
            skip_existing=skip_existing,
            dry_run=dry_run,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if meshes.left_out:
        count = len(meshes.left_out)
        console.message(f"left out {count} map{'s' * (count > 1)} of probabilities or uncertainty")
    if meshes.planned is not None:
        show_plan(meshes.planned, as_json=as_json)
    elif as_json:
        console.result_json(meshes.to_json_dict())
    else:
        show_meshes(meshes)
    tried = len(paths) - len(meshes.left_out)
    raise_failures([each.error for each in meshes.failed], tried=tried, of="label maps")


def show_meshes(meshes: Meshes) -> None:
    """The meshes on stdout; where they are, and what is special about them, on stderr."""
    if meshes.made:
        files = [result.file for result in meshes.made]
        console.table(
            ["file", "faces", "volume", "area", "mean mm", "closed"],
            [
                [
                    result.file.name + f" ({result.region})" * (files.count(result.file) > 1),
                    str(result.faces),
                    console.volume(result.volume_mm3),
                    f"{result.area_mm2 / 100:.1f} cm2",
                    console.number(result.mean_mm, 2),
                    "yes" if result.closed else "NO",
                ]
                for result in meshes.made
            ],
        )
        folders = {file.parent for file in files}
        if folders != {Path()}:
            place = f"to {folders.pop()}" if len(folders) == 1 else "beside the label maps"
            console.message(f"written {place}")
    if meshes.skipped:
        count = len(meshes.skipped)
        console.message(f"skipped {count} mesh{'es' * (count > 1)} that existed")
    say = console.message if len(meshes.made) <= NOTED else console.detail
    for result in meshes.made:
        for note in result.notes:
            say(f"{result.file.name}: {note}")
