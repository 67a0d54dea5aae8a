"""`brats mesh`: label maps to surfaces that can be printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .. import console
from ..core.errors import BratsError, MeshError
from .batch import paths_of, raise_failures

if TYPE_CHECKING:
    from ..core.surface.regions import RegionSurface

FORMAT = "brats-meshes/1"


def mesh(
    segmentations: Annotated[
        list[Path],
        typer.Argument(metavar="SEG...", help="Label maps (NIfTI); - reads paths from stdin."),
    ],
    region: Annotated[
        str, typer.Option(help="WT, TC, ET, another region, a label value, or all.")
    ] = "WT",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A file for one mesh, a folder for several. Default: beside the label map.",
        ),
    ] = None,
    space: Annotated[
        Literal["ras", "lps"],
        typer.Option(help="Axes of the mesh, noted in the file: NIfTI's (ras) or DICOM's (lps)."),
    ] = "ras",
    labels: Annotated[
        str | None,
        typer.Option(help="Label scheme, where the label map does not tell: brats2023, msd, ..."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace meshes that exist.")
    ] = False,
) -> None:
    """Make closed STL surfaces, in millimetres, of tumour regions.

    Writes `seg_WT.stl` beside `seg.nii.gz`, and prints its volume and area.

    Example: brats mesh seg.nii.gz --region WT
    """
    from ..core.data.labels import scheme_named
    from ..core.images.nifti import read_labels
    from ..core.surface.files import write_stl
    from ..core.surface.regions import region_surfaces, wanted_region

    wanted = wanted_region(region)
    if labels is not None:
        scheme_named(labels)
    paths = paths_of(segmentations)
    name = _naming(paths, output, several=len(paths) > 1 or wanted == "all")
    made: list[dict[str, Any]] = []
    failed: list[tuple[Path, BratsError]] = []
    with console.progress() as bars:
        for path in bars.track(paths, description="meshes"):
            try:
                for surface in region_surfaces(read_labels(path), wanted, labels=labels):
                    file = name(path, surface.region.name)
                    write_stl(file, surface.mesh, space=space, overwrite=overwrite)
                    made.append(_row(path, file, space, surface))
            except BratsError as error:
                failed.append((path, error))
    _show(made, failed, as_json=as_json)
    raise_failures([error for _, error in failed], tried=len(paths), of="label maps")


def _naming(
    paths: list[Path], output: Path | None, *, several: bool
) -> Callable[[Path, str], Path]:
    """How the mesh of a label map's region is called.

    Raises:
        MeshError: If two meshes would have one name, or the name is not an STL's.
    """
    from ..core.images.nifti import stem

    if output is not None and not output.is_dir():
        if several and (output.exists() or output.suffix.lower() == ".stl"):
            raise MeshError(
                f"{output} is one file, and several meshes are to be written",
                hint="give a folder with -o, or leave it out to write beside each label map",
            )
        if not several and output.suffix:
            if output.suffix.lower() != ".stl":
                raise MeshError(
                    f"{output} does not end in .stl, the one format that is written",
                    hint="end it in .stl, or give a folder that exists",
                )
            return lambda path, region: output
    bases = {path: (output or path.parent) / stem(path) for path in paths}
    for path, base in bases.items():
        other = next(first for first in bases if bases[first] == base)
        if other != path:
            raise MeshError(
                f"{other} and {path} would be written to the same mesh, {base.name}_*.stl",
                hint="mesh them one by one with -o, or leave out -o to write beside each",
            )
    return lambda path, region: bases[path].with_name(f"{bases[path].name}_{region}.stl")


def _row(path: Path, file: Path, space: str, surface: RegionSurface) -> dict[str, Any]:
    return {
        "segmentation": str(path),
        "region": surface.region.name,
        "file": str(file),
        "space": space.upper(),
        "vertices": len(surface.mesh.vertices),
        "faces": len(surface.mesh.faces),
        "volume_mm3": surface.mesh.volume_mm3,
        "voxels_mm3": surface.voxels_mm3,
        "area_mm2": surface.mesh.area_mm2,
        "closed": surface.mesh.is_closed,
    }


def _show(
    made: list[dict[str, Any]], failed: list[tuple[Path, BratsError]], *, as_json: bool
) -> None:
    """The meshes on stdout, where they are on stderr."""
    if as_json:
        failures = [
            {"segmentation": str(path), "error": str(error), "hint": error.hint}
            for path, error in failed
        ]
        console.result_json({"format": FORMAT, "meshes": made, "failed": failures})
    elif made:
        _table(made)
        folders = {Path(row["file"]).parent for row in made}
        place = f"to {folders.pop()}" if len(folders) == 1 else "beside the label maps"
        console.message(f"written {place}")


def _table(made: list[dict[str, Any]]) -> None:
    console.table(
        ["file", "vertices", "faces", "volume", "area", "closed"],
        [
            [
                Path(row["file"]).name,
                str(row["vertices"]),
                str(row["faces"]),
                console.volume(row["volume_mm3"]),
                f"{row['area_mm2'] / 100:.1f} cm2",
                "yes" if row["closed"] else "NO",
            ]
            for row in made
        ],
    )
