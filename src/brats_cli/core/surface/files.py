"""How meshes are written: STL, PLY, OBJ and GLB, each with the space that its axes lie in."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import stl

from ... import __version__
from ..images.png import png
from ..writing import require_writable, together, whole_file
from .paint import Greys, Texture
from .triangles import TriangleMesh

Space = Literal["ras", "lps"]
"""Where x, y and z grow: to the patient's right, front and head, or to left, back and head."""

FORMATS = ("stl", "ply", "obj", "glb")

_FROM_RAS = {"ras": (1, 1, 1), "lps": (-1, -1, 1)}

# glTF's axes: y up, and the front of what is shown along z, hence its right along -x. By columns.
_TO_GLTF = {
    "ras": ((-1, 0, 0), (0, 0, 1), (0, 1, 0)),
    "lps": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
}

_METRES = 0.001  # glTF's unit

_HEADER_BYTES = 80


@dataclass(frozen=True, eq=False)
class Model:
    """A surface with its name and how it looks.

    Attributes:
        name: The region.
        mesh: In RAS, mm.
        colour: `#RRGGBB`.
        opacity: From 0 to 1; only GLB can hold less than 1.
        greys: One for each vertex, (V,), which replace the colour, or None.
        texture: A picture, which replaces both where the format can hold it, or None.
    """

    name: str
    mesh: TriangleMesh
    colour: str = "#C8C8C8"
    opacity: float = 1.0
    greys: Greys | None = None
    texture: Texture | None = None

    @property
    def rgb(self) -> tuple[int, int, int]:
        """The colour, each part from 0 to 255."""
        red, green, blue = bytes.fromhex(self.colour.removeprefix("#"))
        return red, green, blue


@dataclass(frozen=True)
class Placing:
    """How coordinates in RAS and mm become those of a file.

    Attributes:
        space: The file's axes.
        scale: What coordinates are multiplied by.
    """

    space: Space = "ras"
    scale: float = 1.0

    def points(self, mesh: TriangleMesh) -> npt.NDArray[np.float32]:
        """The vertices, (V, 3)."""
        scale = np.array(_FROM_RAS[self.space]) * self.scale
        points: npt.NDArray[np.float32] = (mesh.vertices * scale).astype(np.float32)
        return points

    def directions(self, normals: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Normals, (N, 3). Neither space mirrors."""
        turned: npt.NDArray[np.float32] = (normals * _FROM_RAS[self.space]).astype(np.float32)
        return turned

    @property
    def note(self) -> str:
        """What a file says of itself; 3D Slicer reads `SPACE=` and else takes LPS."""
        scale = "" if self.scale == 1 else f" scale={self.scale:g}"
        return f"unit=mm{scale} SPACE={self.space.upper()}"


def files_of(path: Path, *, textured: bool) -> list[Path]:
    """All files that are written for the mesh `path`, which is the last."""
    if path.suffix.lower() != ".obj":
        return [path]
    return [*([path.with_suffix(".png")] if textured else []), path.with_suffix(".mtl"), path]


def write_models(
    path: Path,
    models: Sequence[Model],
    placing: Placing | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write surfaces in the format that the suffix of `path` names; only GLB may hold several.

    The same surfaces give the same bytes.

    Raises:
        ValueError: If there is no such format, or a mesh is empty.
        OutputExistsError: If a file exists and `overwrite` is false.
        OutputError: If it cannot be written.
    """
    if any(model.mesh.is_empty for model in models):
        raise ValueError("an empty mesh cannot be printed or shown")
    placing = placing or Placing()
    suffix = path.suffix.lower()
    if suffix == ".obj":
        (model,) = models
        _write_obj(path, model, placing, overwrite=overwrite)
        return
    contents = {".stl": _stl, ".ply": _ply, ".glb": _glb}
    if suffix not in contents:
        raise ValueError(f"{path.name} ends in none of {', '.join(FORMATS)}")
    _write(path, contents[suffix](models, placing), overwrite=overwrite)


def _write(path: Path, content: bytes, *, overwrite: bool) -> None:
    with whole_file(path, overwrite=overwrite) as partial:
        partial.write_bytes(content)


def _stl(models: Sequence[Model], placing: Placing) -> bytes:
    (model,) = models
    triangles = np.zeros(len(model.mesh.faces), dtype=stl.Mesh.dtype)
    triangles["vectors"] = np.take(placing.points(model.mesh), model.mesh.faces, axis=0)
    triangles["normals"] = placing.directions(model.mesh.normals)
    written = io.BytesIO()
    solid = stl.Mesh(triangles, calculate_normals=False)
    solid.save(model.name, fh=written, mode=stl.Mode.BINARY, update_normals=False)
    # Not 'solid' first: by that word readers know a text STL. numpy-stl's own header holds the
    # time of day, and two runs would differ.
    header = f"brats {__version__} region={model.name} {placing.note}".encode()
    written.seek(0)
    written.write(header[:_HEADER_BYTES].ljust(_HEADER_BYTES))
    return written.getvalue()


def _ply(models: Sequence[Model], placing: Placing) -> bytes:
    (model,) = models
    mesh = model.mesh
    vertices = np.empty(
        len(mesh.vertices), dtype=[("place", "<f4", 3), ("normal", "<f4", 3), ("colour", "u1", 3)]
    )
    vertices["place"] = placing.points(mesh)
    vertices["normal"] = placing.directions(mesh.vertex_normals)
    vertices["colour"] = model.rgb if model.greys is None else model.greys[:, None]
    faces = np.empty(len(mesh.faces), dtype=[("corners", "u1"), ("vertices", "<i4", 3)])
    faces["corners"], faces["vertices"] = 3, mesh.faces
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment brats {__version__} region={model.name}",
        f"comment {placing.note}",
        f"element vertex {len(vertices)}",
        *(f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header\n",
    ]
    return "\n".join(header).encode() + vertices.tobytes() + faces.tobytes()


def _write_obj(path: Path, model: Model, placing: Placing, *, overwrite: bool) -> None:
    for file in files_of(path, textured=model.texture is not None):
        require_writable(file, overwrite=overwrite)
    material = [f"# brats {__version__}", f"newmtl {model.name}", "illum 1", "Ka 0 0 0", "Ks 0 0 0"]
    with together():
        if model.texture is not None:
            picture = path.with_suffix(".png")
            _write(picture, png(model.texture.picture), overwrite=overwrite)
            material += ["Kd 1 1 1", f"map_Kd {picture.name}"]
        else:
            material += ["Kd {:.4f} {:.4f} {:.4f}".format(*(each / 255 for each in model.rgb))]
        described = _encoded("\n".join(material) + "\n")
        _write(path.with_suffix(".mtl"), described, overwrite=overwrite)
        _write(path, _obj(path, model, placing), overwrite=overwrite)


def _obj(path: Path, model: Model, placing: Placing) -> bytes:
    mesh = model.mesh
    corners = mesh.faces + 1  # counted from 1
    parts = [
        f"# brats {__version__} region={model.name}\n# {placing.note}\n"
        f"mtllib {path.with_suffix('.mtl').name}\no {model.name}\nusemtl {model.name}\n",
        _lines("v %.6f %.6f %.6f\n", placing.points(mesh)),
        _lines("vn %.4f %.4f %.4f\n", placing.directions(mesh.vertex_normals)),
    ]
    if model.texture is None:
        parts.append(_lines("f %d//%d %d//%d %d//%d\n", np.repeat(corners, 2, axis=1)))
    else:
        places = model.texture.places.reshape(-1, 2) * (1, -1) + (0, 1)  # from the bottom
        numbers = np.arange(1, len(places) + 1).reshape(-1, 3)
        parts.append(_lines("vt %.6f %.6f\n", places))
        parts.append(
            _lines(
                "f %d/%d/%d %d/%d/%d %d/%d/%d\n",
                np.stack((corners, numbers, corners), axis=2).reshape(-1, 9),
            )
        )
    return _encoded("".join(parts))


def _encoded(text: str) -> bytes:
    """A text with names of files, of which some hold bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def _lines(line: str, rows: npt.NDArray[Any]) -> str:
    """A line for each row; one long format is twice as fast as one a row."""
    return line * len(rows) % tuple(rows.ravel().tolist())


class _Buffer:
    """The binary part of a GLB, and its index of what lies where."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, content: bytes, **more: Any) -> int:
        """The number of a view of these bytes, which begin at a multiple of 4."""
        self.views.append(
            {"buffer": 0, "byteOffset": len(self.content), "byteLength": len(content), **more}
        )
        self.content += content + b"\0" * (-len(content) % 4)
        return len(self.views) - 1

    def array(self, values: npt.NDArray[Any], kind: str, target: int, **more: Any) -> int:
        """The number of an accessor of an array; `kind` is glTF's name of a row."""
        number = {"f": 5126, "u1": 5121, "u4": 5125}[
            "f" if values.dtype.kind == "f" else values.dtype.str[1:]
        ]
        view = self.view(np.ascontiguousarray(values).tobytes(), target=target)
        count = values.size if kind == "SCALAR" else len(values)
        self.accessors.append(
            {"bufferView": view, "componentType": number, "count": count, "type": kind, **more}
        )
        return len(self.accessors) - 1


_VERTICES, _TRIANGLES = 34962, 34963  # what a GPU keeps them as

_LINEAR, _CLAMPED = 9729, 33071  # how a texture is read: between texels, and never from the far end


def _glb(models: Sequence[Model], placing: Placing) -> bytes:
    """A scene of surfaces, the transparent ones last."""
    buffer = _Buffer()
    scene: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": f"brats {__version__}"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": placing.note, "matrix": _matrix(placing.space), "children": []}],
        "meshes": [],
        "materials": [],
    }
    for model in sorted(models, key=lambda model: -model.opacity):
        scene["nodes"][0]["children"].append(len(scene["nodes"]))
        scene["nodes"].append({"name": model.name, "mesh": len(scene["meshes"])})
        primitive = _primitive(model, placing, buffer) | {"material": len(scene["materials"])}
        scene["meshes"].append({"name": model.name, "primitives": [primitive]})
        scene["materials"].append(_material(model, scene, buffer))
    scene |= {
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": len(buffer.content)}],
    }
    text = json.dumps(scene, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(buffer.content)
    return b"".join(
        (
            struct.pack("<4sII", b"glTF", 2, length),
            struct.pack("<I4s", len(text), b"JSON") + text,
            struct.pack("<I4s", len(buffer.content), b"BIN\0") + bytes(buffer.content),
        )
    )


def _matrix(space: Space) -> list[float]:
    """From mm in a space to glTF's metres and axes, (4, 4), column by column."""
    columns = [[value * _METRES for value in column] + [0.0] for column in _TO_GLTF[space]]
    return [*columns[0], *columns[1], *columns[2], 0.0, 0.0, 0.0, 1.0]


def _primitive(model: Model, placing: Placing, buffer: _Buffer) -> dict[str, Any]:
    points = placing.points(model.mesh)
    normals = placing.directions(model.mesh.vertex_normals)
    faces = model.mesh.faces
    if model.texture is not None:  # a vertex can have one place in a picture only
        points, normals = points[faces].reshape(-1, 3), normals[faces].reshape(-1, 3)
        faces = np.arange(faces.size).reshape(-1, 3)
    low, high = ([float(each) for each in edge] for edge in (points.min(0), points.max(0)))
    attributes = {
        "POSITION": buffer.array(points, "VEC3", _VERTICES, min=low, max=high),
        "NORMAL": buffer.array(normals, "VEC3", _VERTICES),
    }
    if model.texture is not None:
        places = model.texture.places.reshape(-1, 2)
        attributes["TEXCOORD_0"] = buffer.array(places, "VEC2", _VERTICES)
    elif model.greys is not None:
        grey = np.round(_linear_light(model.greys / 255) * 255).astype(np.uint8)
        rgba = np.stack((grey, grey, grey, np.full_like(grey, 255)), axis=1)
        attributes["COLOR_0"] = buffer.array(rgba, "VEC4", _VERTICES, normalized=True)
    indices = buffer.array(faces.astype("<u4"), "SCALAR", _TRIANGLES)
    return {"attributes": attributes, "indices": indices}


def _material(model: Model, scene: dict[str, Any], buffer: _Buffer) -> dict[str, Any]:
    is_painted = model.texture is not None or model.greys is not None
    colour = [1.0] * 3 if is_painted else _linear_light(np.array(model.rgb) / 255).tolist()
    surface: dict[str, Any] = {
        "baseColorFactor": [*colour, model.opacity],
        "metallicFactor": 0.0,
        "roughnessFactor": 0.7,
    }
    if model.texture is not None:
        images = scene.setdefault("images", [])
        textures = scene.setdefault("textures", [])
        wrapped = {"wrapS": _CLAMPED, "wrapT": _CLAMPED}
        scene["samplers"] = [{"magFilter": _LINEAR, "minFilter": _LINEAR, **wrapped}]
        view = buffer.view(png(model.texture.picture))
        surface["baseColorTexture"] = {"index": len(textures)}
        textures.append({"sampler": 0, "source": len(images)})
        images.append({"bufferView": view, "mimeType": "image/png"})
    material = {"name": model.name, "pbrMetallicRoughness": surface}
    return material if model.opacity == 1 else material | {"alphaMode": "BLEND"}


def _linear_light(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """sRGB, as colours are given and greys are seen, to the linear light that glTF counts in."""
    bright = ((shares + 0.055) / 1.055) ** 2.4
    return np.where(shares <= 0.04045, shares / 12.92, bright)
