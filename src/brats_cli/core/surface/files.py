"""How a mesh is written: binary STL that says which way its axes point."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import stl

from ..writing import whole_file
from .triangles import TriangleMesh

Space = Literal["ras", "lps"]
"""Where x, y and z grow: to the patient's right, front and head, or to left, back and head."""

_FROM_RAS = {"ras": (1, 1, 1), "lps": (-1, -1, 1)}

_HEADER_BYTES = 80


def write_stl(
    path: Path, mesh: TriangleMesh, *, space: Space = "ras", overwrite: bool = False
) -> None:
    """Write a mesh given in RAS as binary STL, float32 millimetres, with its space in the header.

    3D Slicer reads `SPACE=` there and takes an STL without it as LPS. A program that reads no
    header shows RAS where nibabel's affine puts the voxels. Neither space mirrors the mesh.
    The same mesh gives the same bytes.

    Raises:
        ValueError: If the mesh is empty.
        OutputExistsError: If `path` exists and `overwrite` is false.
        OutputError: If it cannot be written.
    """
    if mesh.is_empty:
        raise ValueError("an empty mesh cannot be printed or shown")
    towards = np.array(_FROM_RAS[space])
    triangles = np.zeros(len(mesh.faces), dtype=stl.Mesh.dtype)
    triangles["vectors"] = (mesh.vertices * towards)[mesh.faces]
    triangles["normals"] = mesh.normals * towards
    solid = stl.Mesh(triangles, calculate_normals=False)
    # Not 'solid' first: by that word readers know a text STL.
    header = f"brats SPACE={space.upper()}".encode().ljust(_HEADER_BYTES)
    with whole_file(path, overwrite=overwrite) as partial, partial.open("wb") as file:
        solid.save(path.name, fh=file, mode=stl.Mode.BINARY, update_normals=False)
        # numpy-stl writes its version and the time of day, and two runs would differ.
        file.seek(0)
        file.write(header)
