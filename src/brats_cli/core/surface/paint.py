"""A surface painted with a scan: a grey for each vertex, or a picture with places for faces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.labels import REGIONS
from ..errors import MeshError
from ..images.grid import Affine, Volume, require_same_grid
from ..images.nifti import as_float32, read_volume
from .triangles import Points, TriangleMesh

Greys = npt.NDArray[np.uint8]

# Of the voxels that are not 0. Vessels of contrast medium are several times as bright as the brain,
# which would be black beside them.
_DARKEST, _BRIGHTEST = 1.0, 98.0

_MOST_FOR_WINDOW = 200_000  # voxels that the percentiles are taken of

CELL = 8
"""Texels along a cell of the picture, which holds two triangles. On 1 mm voxels, whose triangles
have sides of about 1 mm, a texel is 0.2 mm."""

# A triangle's corners lie this far apart, so that the texels between which its points are
# interpolated are all its own: colours of neighbours in the picture never bleed in.
_SIDE = CELL - 3


@dataclass(frozen=True, eq=False)
class Texture:
    """A picture, and where in it each face's corners lie.

    Attributes:
        picture: (H, W) greys, the first row on top.
        places: (F, 3, 2) of 0 to 1, from the left and from the top.
    """

    picture: Greys
    places: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Paint:
    """A scan to paint surfaces with.

    Attributes:
        values: (X, Y, Z).
        affine: (4, 4), from voxel indices to mm.
        window: The values that become black and white.
    """

    values: npt.NDArray[Any]
    affine: Affine
    window: tuple[float, float]

    @classmethod
    def of(cls, path: Path, label_map: Volume, region: str) -> Paint:
        """The scan at `path`, or of a map per region (`brats predict --uncertainty`) the region's.

        Raises:
            UnreadableFileError: If it cannot be read.
            GridMismatchError: If it does not lie on the label map's grid.
            MeshError: If it has several channels that are not the regions'.
        """
        scan = read_volume(path)
        require_same_grid([label_map, scan])
        if scan.data.ndim > 3:
            if scan.data.shape[3] != len(REGIONS) or region not in REGIONS:
                raise MeshError(
                    f"{path} has {scan.data.shape[3]} channels, and none is that of {region}",
                    hint="paint with a 3D scan, or with a map of WT, TC and ET",
                )
            scan = scan.channel(REGIONS.index(region))
        seen = scan.foreground[:: scan.foreground.size // _MOST_FOR_WINDOW + 1]
        low, high = np.percentile(seen, [_DARKEST, _BRIGHTEST]) if seen.size else (0, 1)
        return cls(scan.data, scan.affine, (float(low), float(max(high, low + 1e-9))))

    def greys(self, points: Points) -> Greys:
        """The scan's greys at points in mm, (..., 3), by trilinear interpolation, (...)."""
        from scipy import ndimage  # 0.1 s to import, and seldom needed

        to_index = np.linalg.inv(self.affine)
        indices = points.reshape(-1, 3) @ to_index[:3, :3].T + to_index[:3, 3]
        # Only the part that is looked at: a copy of all of a scan would take longer than the rest.
        low = np.floor(indices.min(axis=0)).astype(int).clip(0, np.array(self.values.shape) - 1)
        high = np.ceil(indices.max(axis=0)).astype(int) + 1
        part = self.values[tuple(map(slice, low, high))]
        found = ndimage.map_coordinates(
            np.nan_to_num(as_float32(part)), (indices - low).T, order=1, mode="nearest"
        )
        black, white = self.window
        shares = np.clip((found - black) / (white - black), 0, 1)
        greys: Greys = np.round(shares * 255).astype(np.uint8)
        return greys.reshape(points.shape[:-1])

    def texture(self, mesh: TriangleMesh) -> Texture:
        """A picture of the scan along a surface, at more places than its vertices."""
        cells = (len(mesh.faces) + 1) // 2
        columns = int(np.ceil(np.sqrt(cells)))
        rows = -(-cells // columns)
        corners = mesh.vertices[mesh.faces]
        if len(corners) % 2:
            corners = np.concatenate((corners, corners[-1:]))
        places = _texel_places(corners.reshape(cells, 2, 3, 3))
        texels = np.zeros((rows * columns, CELL, CELL), dtype=np.uint8)
        texels[:cells] = self.greys(places)
        picture = texels.reshape(rows, columns, CELL, CELL).swapaxes(1, 2)
        return Texture(
            picture.reshape(rows * CELL, columns * CELL), _places(len(mesh.faces), columns, rows)
        )


_FIRST = np.array([[0, 0], [_SIDE, 0], [0, _SIDE]])
"""The texels (column, row) of a cell in which the corners of its first face lie; the second face's
are these seen from the opposite corner."""


def _texel_places(corners: Points) -> Points:
    """Where on the plane of their face the texels of each cell lie.

    Args:
        corners: Of the two faces of each cell, in mm, (C, 2, 3, 3).

    Returns:
        (C, CELL, CELL, 3), by row and column.
    """
    row, column = np.indices((CELL, CELL))
    is_first = row + column < CELL - 1
    right = np.where(is_first, column, CELL - 1 - column) / _SIDE
    down = np.where(is_first, row, CELL - 1 - row) / _SIDE
    shares = np.stack((1 - right - down, right, down), axis=-1)  # (CELL, CELL, 3 corners)
    by_face = [np.tensordot(corners[:, face], shares, axes=(1, 2)) for face in (0, 1)]
    first, second = (np.moveaxis(each, 1, -1) for each in by_face)  # (C, CELL, CELL, 3)
    places: Points = np.where(is_first[..., None], first, second)
    return places


def _places(faces: int, columns: int, rows: int) -> npt.NDArray[np.float32]:
    """Where the corners of each face lie in a picture of cells, (F, 3, 2), from 0 to 1."""
    face = np.arange(faces)
    row, column = np.divmod(face // 2, columns)
    within = np.where((face % 2 == 0)[:, None, None], _FIRST, CELL - 1 - _FIRST)
    texels = np.stack((column, row), axis=1)[:, None] * CELL + within + 0.5
    shares: npt.NDArray[np.float32] = (texels / (CELL * columns, CELL * rows)).astype(np.float32)
    return shares
