from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import volume
from scipy import ndimage

from brats_cli.core.errors import GridMismatchError, MeshError
from brats_cli.core.surface.paint import CELL, Paint
from brats_cli.core.surface.triangles import TriangleMesh

AFFINE = np.diag([-1.0, 2, 3, 1])
SHAPE = (6, 7, 8)


def scan_at(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def labels() -> object:
    return volume(np.ones(SHAPE, dtype=np.uint8), AFFINE, path=Path("seg.nii.gz"))


def slope() -> np.ndarray:
    """A scan that rises by 10 from voxel to voxel along x."""
    data = np.zeros(SHAPE, dtype=np.int16)
    data += (10 * np.arange(6, dtype=np.int16))[:, None, None]
    return data


def test_greys_are_interpolated_between_voxels():
    paint = Paint(slope(), AFFINE, window=(0, 50))
    # Voxel 2.5 along x lies at -2.5 mm: value 25, half of the window.
    points = np.array([[-2.5, 4, 9], [0, 0, 0], [-5, 12, 21], [-9, 0, 0]])
    assert paint.greys(points).tolist() == [128, 0, 255, 255]


def test_the_window_leaves_out_the_background_and_what_is_rare(tmp_path):
    data = np.zeros(SHAPE, dtype=np.float32)
    data[1:] = np.linspace(100, 200, data[1:].size).reshape(data[1:].shape)
    data[5, 6, 7] = 1e6
    paint = Paint.of(scan_at(tmp_path / "t1.nii.gz", data), labels(), "WT")
    # Percentiles 1 and 99.5 of even values from 100 to 200.
    assert paint.window == pytest.approx((101, 199.5), abs=0.5)


def test_a_map_of_regions_paints_each_with_its_own(tmp_path):
    maps = np.stack([np.full(SHAPE, value, dtype=np.uint8) for value in (10, 20, 30)], axis=-1)
    file = scan_at(tmp_path / "case_uncertainty.nii.gz", maps)
    assert Paint.of(file, labels(), "TC").values[0, 0, 0] == 20
    with pytest.raises(MeshError, match="has 3 channels, and none is that of RC"):
        Paint.of(file, labels(), "RC")


def test_a_scan_on_another_grid_is_refused(tmp_path):
    other = scan_at(tmp_path / "t1.nii.gz", slope()[:5])
    with pytest.raises(GridMismatchError, match="5 x 7 x 8 voxels, not 6 x 7 x 8"):
        Paint.of(other, labels(), "WT")


@pytest.mark.parametrize("faces", [1, 2, 7, 100])
def test_the_picture_shows_the_scan_at_the_places_of_the_surface(faces):
    generator = np.random.default_rng(faces)
    inside = generator.uniform(0.5, 4.5, (3 * faces, 3))
    mesh = TriangleMesh(inside * AFFINE.diagonal()[:3], np.arange(3 * faces).reshape(-1, 3))
    paint = Paint(slope(), AFFINE, window=(0, 50))
    texture = paint.texture(mesh)
    height, width = texture.picture.shape
    assert height % CELL == width % CELL == 0
    assert ((texture.places > 0) & (texture.places < 1)).all()
    # As a viewer does: a place in a face is interpolated between its corners' places, and its grey
    # between the four texels around it. The scan is linear, so that nothing is lost.
    shares = generator.dirichlet((1, 1, 1), faces)
    places = np.einsum("fk,fkc->fc", shares, texture.places) * (width, height) - 0.5
    seen = ndimage.map_coordinates(
        texture.picture.astype(float), places.T[::-1], order=1, mode="nearest"
    )
    x = np.einsum("fk,fk->f", shares, inside[:, 0].reshape(-1, 3))
    np.testing.assert_allclose(seen, x / 5 * 255, atol=1)
