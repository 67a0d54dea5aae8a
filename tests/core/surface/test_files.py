from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import stl

from brats_cli.core.errors import OutputError, OutputExistsError
from brats_cli.core.surface.files import write_stl
from brats_cli.core.surface.regions import surface
from brats_cli.core.surface.triangles import TriangleMesh

TRIANGLE = TriangleMesh(np.array([[1.0, 2, 3], [3, 2, 3], [1, 5, 3]]), np.array([[0, 1, 2]]))


def header_of(path: Path) -> bytes:
    return path.read_bytes()[:80]


def random_surface() -> TriangleMesh:
    mask = np.random.default_rng(0).random((9, 10, 11)) < 0.4
    affine = np.diag([-0.9, 1.1, 3, 1])
    affine[:3, 3] = [91.3, -126.7, -72.1]
    return surface(mask, affine)


def test_the_bytes_are_those_of_the_format(tmp_path):
    write_stl(tmp_path / "one.stl", TRIANGLE)
    # 80 bytes of header, the number of triangles, then for each its normal, its three corners and
    # two bytes of nothing, all little-endian. (2, 0, 0) x (0, 3, 0) points along z.
    header = b"brats SPACE=RAS".ljust(80)
    triangle = struct.pack("<12fH", 0, 0, 1, 1, 2, 3, 3, 2, 3, 1, 5, 3, 0)
    assert (tmp_path / "one.stl").read_bytes() == header + struct.pack("<I", 1) + triangle


def test_lps_turns_x_and_y_round_and_says_so(tmp_path):
    write_stl(tmp_path / "one.stl", TRIANGLE, space="lps")
    written = stl.Mesh.from_file(str(tmp_path / "one.stl"), calculate_normals=False)
    assert header_of(tmp_path / "one.stl") == b"brats SPACE=LPS".ljust(80)
    np.testing.assert_array_equal(written.vectors[0], [[-1, -2, 3], [-3, -2, 3], [-1, -5, 3]])
    np.testing.assert_array_equal(written.normals[0], [0, 0, 1])


@pytest.mark.parametrize("space", ["ras", "lps"])
def test_what_another_reader_finds_is_closed_outward_and_of_the_same_volume(tmp_path, space):
    mesh = random_surface()
    write_stl(tmp_path / "mesh.stl", mesh, space=space)
    written = stl.Mesh.from_file(str(tmp_path / "mesh.stl"))  # works out its own normals
    assert written.is_closed(exact=True)
    volume, _, _ = written.get_mass_properties()
    assert volume == pytest.approx(mesh.volume_mm3, rel=1e-4)
    assert written.areas.sum() == pytest.approx(mesh.area_mm2, rel=1e-4)
    stored = stl.Mesh.from_file(str(tmp_path / "mesh.stl"), calculate_normals=False)
    np.testing.assert_allclose(stored.normals, written.get_unit_normals(), atol=1e-4)


def test_a_hole_is_a_hole_to_both(tmp_path):
    mesh = random_surface()
    torn = TriangleMesh(mesh.vertices, mesh.faces[1:])
    write_stl(tmp_path / "torn.stl", torn)
    assert not torn.is_closed
    assert not stl.Mesh.from_file(str(tmp_path / "torn.stl")).is_closed(exact=True)


def test_the_same_mesh_gives_the_same_bytes_another_time(tmp_path):
    write_stl(tmp_path / "a.stl", TRIANGLE)
    time.sleep(0.01)  # numpy-stl's own header holds microseconds, and the name of the file
    write_stl(tmp_path / "b.stl", TRIANGLE)
    assert (tmp_path / "a.stl").read_bytes() == (tmp_path / "b.stl").read_bytes()


def test_a_mesh_that_exists_is_kept_unless_told_otherwise(tmp_path):
    (tmp_path / "one.stl").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"one\.stl exists already"):
        write_stl(tmp_path / "one.stl", TRIANGLE)
    assert (tmp_path / "one.stl").read_text() == "mine"
    write_stl(tmp_path / "one.stl", TRIANGLE, overwrite=True)
    assert header_of(tmp_path / "one.stl").startswith(b"brats")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(stl.Mesh, "save", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_stl(tmp_path / "one.stl", TRIANGLE)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_mesh_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="an empty mesh"):
        write_stl(tmp_path / "none.stl", surface(np.zeros((2, 2, 2), dtype=bool), np.eye(4)))
    assert list(tmp_path.iterdir()) == []
