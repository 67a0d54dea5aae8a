"""How a case becomes one HTML page that opens from disk, without a network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import struct
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import __version__
from ..data.labels import REGION_COLOURS
from ..images import gzipped
from ..images.grid import Grid, Mask
from ..surface.surfaces import SurfaceConfig, surface_of
from ..writing import whole_file
from .scene import SEQUENCES, Heat, Scan, Scene, Segmentation

_LEVELS = 255

# The brightest voxel in 1,000 of the brain is white at most: one vessel would take the grey
# levels of all the rest.
_CLIPPED = 99.9

_TITLES = {
    "WT": "whole tumour",
    "TC": "tumour core",
    "ET": "enhancing tumour",
    "RC": "resection cavity",
    "GTV": "gross tumour volume",
}

_MESH_OPACITY = {"WT": 0.35, "TC": 0.6}
"""The outer regions let the inner ones shine through."""

_SURFACE = SurfaceConfig(faces=20_000)
"""All triangles of a tumour of 200 ml made the page a quarter larger, and a browser without a GPU
a quarter slower, with no difference to the eye."""

_MESH_STEP_MM = 1 / 16
"""Vertices are rounded to this, which makes them half the size."""

# matplotlib's inferno at six places, fading out towards 0.
_HEAT_COLOURS = {
    "R": [0, 66, 147, 221, 252, 252],
    "G": [0, 10, 38, 81, 165, 255],
    "B": [4, 104, 103, 58, 10, 164],
    "A": [0, 110, 180, 230, 255, 255],
    "I": [0, 51, 102, 153, 204, 255],
}


def write_page(
    scene: Scene,
    path: Path,
    *,
    summary: Mapping[str, Any],
    focus: tuple[int, int, int] | None = None,
    overwrite: bool = False,
) -> None:
    """Write the page of a case.

    Args:
        scene: What to show.
        path: The HTML file.
        summary: What an index of pages says of this one; it can be read back from the page.
        focus: The voxel of the scene's grid to begin at; else the slices with most tumour.
        overwrite: Whether `path` may exist.

    Raises:
        OutputExistsError: If `path` exists and `overwrite` is false.
        OutputError: If it cannot be written.
    """
    blobs: dict[str, bytes] = {}
    data = _describe(scene, focus or scene.fullest, blobs)
    page = render(
        "page",
        title=html.escape(scene.case),
        summary=as_json(summary),
        data=as_json(data),
        licences=html.escape(asset("niivue/LICENCES.txt")),
        niivue=asset("niivue/niivue.js"),
        blobs="\n".join(
            f'<script type="text/plain" id="blob-{name}">{base64.b64encode(blob).decode()}</script>'
            for name, blob in blobs.items()
        ),
    )
    with whole_file(path, overwrite=overwrite) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")


def render(name: str, **parts: str) -> str:
    """The page `name`.html with its parts in their places, and with its style and its script.

    Its policy lets the browser run these scripts and no other, and load nothing from anywhere:
    what stood in a case id as HTML could do neither.
    """
    parts = {"style": asset(f"{name}.css"), "script": asset(f"{name}.js"), **parts}
    hashes = (
        base64.b64encode(hashlib.sha256(parts[script].encode()).digest()).decode()
        for script in ("niivue", "script")
        if script in parts
    )
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    parts["policy"] = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    parts["version"] = __version__
    pieces = asset(f"{name}.html").split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        key, rest = piece.split("}}", 1)
        filled += [parts[key], rest]
    return "".join(filled)


@cache
def asset(name: str) -> str:
    """The text of a file in this room's assets."""
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def as_json(content: Any) -> str:
    """JSON that ends no script element, whatever its strings hold; NaN becomes null."""
    text = json.dumps(_plain(content), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


# --- what the page's script reads --------------------------------------------------------------


def _describe(scene: Scene, focus: tuple[int, int, int], blobs: dict[str, bytes]) -> dict[str, Any]:
    """Everything that the script needs; voxels and surfaces are added to `blobs`."""
    sequences = [_describe_scan(name, title, scene, blobs) for name, title in SEQUENCES.items()]
    # The contrast-enhanced one first, on which a tumour's core is seen best.
    shown = [each["id"] for each in sequences if each["present"]]
    return {
        "case": scene.case,
        "first": "t1ce" if "t1ce" in shown else shown[0],
        "sequences": sequences,
        "shape": scene.shape,
        "spacing": scene.spacing_mm,
        "fileStart": scene.file_start,
        "fileStep": scene.file_step,
        "fileOrder": scene.file_order,
        "focus": focus,
        "regions": [
            {"name": name, "title": _TITLES.get(name, name), "colour": REGION_COLOURS[name]}
            for name in scene.regions
        ],
        "segmentations": [
            _describe_segmentation(number, segmentation, scene, blobs)
            for number, segmentation in enumerate(scene.segmentations)
        ],
        "meshes": [
            mesh
            for number, segmentation in enumerate(scene.segmentations)
            for mesh in _describe_meshes(number, segmentation, scene, blobs)
        ],
        "heats": [
            _describe_heat(number, heat, scene, blobs) for number, heat in enumerate(scene.heats)
        ],
        "heatColours": _HEAT_COLOURS,
        "scores": {
            region: {"dice": found.dice, "hausdorff95_mm": found.hausdorff95_mm}
            for region, found in scene.scores.items()
        },
        "notes": scene.notes,
    }


def _describe_scan(name: str, title: str, scene: Scene, blobs: dict[str, bytes]) -> dict[str, Any]:
    scan = scene.scans.get(name)
    if scan is None:
        return {"id": name, "name": title, "present": False}
    voxels, step, least = quantised(scan, scene.outside)
    blobs[name] = _nifti(voxels, scene, step=step, least=least)
    return {
        "id": name,
        "name": title,
        "present": True,
        "window": scan.window,
        "range": (least, least + step * _LEVELS),
        "digits": 0 if step >= 0.5 else 2,
    }


def quantised(scan: Scan, outside: Mask) -> tuple[npt.NDArray[np.uint8], float, float]:
    """A scan in 255 grey levels: the levels, what one means, and what 0 means.

    0 stays 0 where no value is negative; else 0, which then is the least value, is what lies
    outside the brain.
    """
    inside = scan.voxels[~outside]
    if not inside.size or not inside.any():
        return np.zeros(scan.voxels.shape, np.uint8), 1.0, 0.0
    least = min(float(inside.min()), 0.0)
    if least < 0:  # a few voxels far below would take the grey levels of all the rest, too
        least = min(float(np.percentile(inside, 100 - _CLIPPED)), 0.0)
    most = max(float(np.percentile(inside[inside != 0], _CLIPPED)), scan.window[1])
    step = (most - least) / _LEVELS
    levels = np.rint(np.clip((scan.voxels - least) / step, 0, _LEVELS)).astype(np.uint8)
    levels[outside] = 0
    return levels, step, least


def _describe_segmentation(
    number: int, segmentation: Segmentation, scene: Scene, blobs: dict[str, bytes]
) -> dict[str, Any]:
    """The masks as bits of one byte per voxel, the first region in the lowest bit."""
    bits = np.zeros(scene.shape, dtype=np.uint8, order="F")
    for bit, region in enumerate(scene.regions):
        if region in segmentation.masks:
            bits |= segmentation.masks[region].astype(np.uint8) << bit
    blobs[f"masks-{number}"] = gzipped.zipped(bits.tobytes("F"))
    return {
        "name": segmentation.name,
        "dashed": segmentation.dashed,
        "volumes": segmentation.volumes_mm3,
    }


def _describe_meshes(
    number: int, segmentation: Segmentation, scene: Scene, blobs: dict[str, bytes]
) -> list[dict[str, Any]]:
    # The inner regions first: what is drawn later is seen through what was drawn before.
    found = []
    for bit, region in reversed(list(enumerate(scene.regions))):
        mask = segmentation.masks.get(region)
        if mask is None or not mask.any():
            continue
        mesh = surface_of(mask, Grid(scene.shape, scene.affine), _SURFACE).mesh
        name = f"mesh-{number}-{bit}"
        blobs[name] = _mz3(mesh.vertices, mesh.faces)
        colour = REGION_COLOURS[region].lstrip("#")
        found.append(
            {
                "id": name,
                "segmentation": number,
                "region": bit,
                "rgb": list(bytes.fromhex(colour)),
                "opacity": _MESH_OPACITY.get(region, 1.0),
            }
        )
    return found


def _describe_heat(
    number: int, heat: Heat, scene: Scene, blobs: dict[str, bytes]
) -> dict[str, Any]:
    maps = []
    for place, (region, values) in enumerate(heat.maps.items()):
        name = f"heat-{number}-{place}"
        step = heat.top / _LEVELS
        levels = np.rint(np.clip(values / step, 0, _LEVELS)).astype(np.uint8)
        blobs[name] = _nifti(levels, scene, step=step, least=0)
        maps.append({"id": name, "name": region})
    return {"name": heat.name, "top": heat.top, "maps": maps}


# --- bytes -------------------------------------------------------------------------------------


def _nifti(voxels: npt.NDArray[np.uint8], scene: Scene, *, step: float, least: float) -> bytes:
    """A gzipped NIfTI-1 file of `voxels` on the scene's grid that says nothing of its origin."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *scene.shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 2, 8)  # datatype uint8, 8 bits
    struct.pack_into("<8f", header, 76, 1, *scene.spacing_mm, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352, step, least)  # vox_offset, scl_slope, scl_inter
    struct.pack_into("<B", header, 123, 2)  # millimetres
    struct.pack_into("<2h", header, 252, 0, 1)  # no qform; the sform leads to scanner space
    struct.pack_into("<12f", header, 280, *scene.affine[:3].ravel())
    struct.pack_into("<4s", header, 344, b"n+1\0")
    return gzipped.zipped(bytes(header) + voxels.tobytes("F"))


def _mz3(vertices: npt.NDArray[np.float64], faces: npt.NDArray[np.integer]) -> bytes:
    """A surface as gzipped MZ3, the format of Surfice, which NiiVue reads fastest."""
    rounded = np.round(vertices / _MESH_STEP_MM) * _MESH_STEP_MM
    header = struct.pack("<2H3I", 0x5A4D, 3, len(faces), len(vertices), 0)  # faces and vertices
    return gzipped.zipped(header + faces.astype("<i4").tobytes() + rounded.astype("<f4").tobytes())
