from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import stl
import trimesh
from helpers import KilledError, kill_at_rename
from PIL import Image

from brats_cli import __version__
from brats_cli.core.errors import OutputError, OutputExistsError
from brats_cli.core.images.grid import Grid
from brats_cli.core.surface.files import Model, Placing, write_models
from brats_cli.core.surface.paint import Texture
from brats_cli.core.surface.surfaces import surface_of
from brats_cli.core.surface.triangles import TriangleMesh

TRIANGLE = TriangleMesh(np.array([[1.0, 2, 3], [3, 2, 3], [1, 5, 3]]), np.array([[0, 1, 2]]))
HEADER = f"brats {__version__} region=WT unit=mm SPACE=RAS"
FORMATS = ("stl", "ply", "obj", "glb")


def header_of(path: Path) -> bytes:
    return path.read_bytes()[:80]


def write(path: Path, mesh: TriangleMesh, *, overwrite: bool = False, **placing) -> None:
    write_models(path, [Model("WT", mesh)], Placing(**placing), overwrite=overwrite)


@pytest.fixture(scope="module")
def blob() -> TriangleMesh:
    """A ragged surface with cavities and islands, far from the origin."""
    mask = np.random.default_rng(0).random((9, 10, 11)) < 0.4
    affine = np.diag([-0.9, 1.1, 3, 1])
    affine[:3, 3] = [91.3, -126.7, -72.1]
    return surface_of(mask, Grid(mask.shape, affine)).mesh


def loaded(path: Path) -> trimesh.Trimesh:
    """What trimesh reads of a file, scenes' matrices applied."""
    found = trimesh.load(path)
    return found.to_geometry() if isinstance(found, trimesh.Scene) else found


def test_the_bytes_are_those_of_the_format(tmp_path):
    write(tmp_path / "one.stl", TRIANGLE)
    # 80 bytes of header, the number of triangles, then for each its normal, its three corners and
    # two bytes of nothing, all little-endian. (2, 0, 0) x (0, 3, 0) points along z.
    header = HEADER.encode().ljust(80)
    triangle = struct.pack("<12fH", 0, 0, 1, 1, 2, 3, 3, 2, 3, 1, 5, 3, 0)
    assert (tmp_path / "one.stl").read_bytes() == header + struct.pack("<I", 1) + triangle


def test_lps_turns_x_and_y_round_and_says_so(tmp_path):
    write(tmp_path / "one.stl", TRIANGLE, space="lps")
    written = stl.Mesh.from_file(str(tmp_path / "one.stl"), calculate_normals=False)
    assert b"SPACE=LPS" in header_of(tmp_path / "one.stl")
    np.testing.assert_array_equal(written.vectors[0], [[-1, -2, 3], [-3, -2, 3], [-1, -5, 3]])
    np.testing.assert_array_equal(written.normals[0], [0, 0, 1])


@pytest.mark.parametrize("space", ["ras", "lps"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_trimesh_finds_every_format_closed_and_of_the_same_volume(tmp_path, blob, suffix, space):
    file = tmp_path / f"mesh.{suffix}"
    write(file, blob, space=space)
    written = loaded(file)
    assert written.is_watertight
    assert written.is_winding_consistent
    millimetres = 1e9 if suffix == "glb" else 1  # glTF counts in metres
    assert written.volume * millimetres == pytest.approx(blob.volume_mm3, rel=1e-5)
    if suffix != "glb":
        to_ras = (1, 1, 1) if space == "ras" else (-1, -1, 1)
        for edge in ("min", "max"):
            ours = getattr(blob.vertices * to_ras, edge)(axis=0)
            theirs = getattr(written.vertices, edge)(axis=0)
            np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_stl_holds_the_normals_that_its_corners_give(tmp_path, blob):
    write(tmp_path / "mesh.stl", blob)
    written = stl.Mesh.from_file(str(tmp_path / "mesh.stl"))  # works out its own normals
    assert written.is_closed(exact=True)
    stored = stl.Mesh.from_file(str(tmp_path / "mesh.stl"), calculate_normals=False)
    np.testing.assert_allclose(stored.normals, written.get_unit_normals(), atol=2e-3)


@pytest.mark.parametrize("suffix", ["ply", "obj", "glb"])
def test_normals_of_vertices_are_written(tmp_path, suffix):
    ball = trimesh.creation.icosphere(2, radius=20)
    file = tmp_path / f"ball.{suffix}"
    write(file, TriangleMesh(ball.vertices, ball.faces))
    if suffix == "obj":
        rows = [line.split()[1:] for line in file.read_text().splitlines() if line[:3] == "vn "]
        normals, vertices = np.array(rows, dtype=float), ball.vertices
    else:
        read = trimesh.load(file)
        read = read if suffix == "ply" else next(iter(read.geometry.values()))
        normals, vertices = read.vertex_normals, read.vertices
    np.testing.assert_allclose(normals, vertices / 20, atol=0.03)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_scale_multiplies_coordinates_and_is_noted(tmp_path, blob, suffix):
    file = tmp_path / f"mesh.{suffix}"
    write(file, blob, scale=0.5)
    millimetres = 1e9 if suffix == "glb" else 1
    assert loaded(file).volume * millimetres == pytest.approx(blob.volume_mm3 / 8, rel=1e-5)
    assert b"scale=0.5" in file.read_bytes()
    assert b"SPACE=RAS" in file.read_bytes()


def test_glb_stands_upright_and_looks_at_the_viewer(tmp_path):
    # glTF: y up, the front along z; so the patient's right is at -x. In metres.
    write(tmp_path / "one.glb", TRIANGLE)
    for space in ("ras", "lps"):
        write(tmp_path / "one.glb", TRIANGLE, space=space, overwrite=True)
        corners = sorted(loaded(tmp_path / "one.glb").vertices.tolist())
        expected = [[-x / 1000, z / 1000, y / 1000] for x, y, z in TRIANGLE.vertices]
        np.testing.assert_allclose(corners, sorted(expected), atol=1e-9)


def glb_scene(path: Path) -> dict:
    content = path.read_bytes()
    magic, version, length = struct.unpack("<4sII", content[:12])
    assert (magic, version, length) == (b"glTF", 2, len(content))
    size, kind = struct.unpack("<I4s", content[12:20])
    assert kind == b"JSON"
    assert size % 4 == 0
    return json.loads(content[20 : 20 + size])


def test_a_glb_scene_draws_what_is_inside_first(tmp_path, blob):
    models = [
        Model("WT", blob, "#3FA7F0", opacity=0.3),
        Model("ET", blob, "#FF0000"),
    ]
    write_models(tmp_path / "all.glb", models)
    scene = glb_scene(tmp_path / "all.glb")
    assert [node["name"] for node in scene["nodes"][1:]] == ["ET", "WT"]
    inner, outer = scene["materials"]
    assert inner["pbrMetallicRoughness"]["baseColorFactor"] == [1, 0, 0, 1]
    assert "alphaMode" not in inner
    assert outer["alphaMode"] == "BLEND"
    red, green, blue, alpha = outer["pbrMetallicRoughness"]["baseColorFactor"]
    assert alpha == 0.3
    # sRGB's curve: 0x3F, 0xA7 and 0xF0 are 0.247, 0.655 and 0.941, in light 0.05, 0.39, 0.87.
    assert (red, green, blue) == pytest.approx((0.0497, 0.3864, 0.8714), abs=1e-3)
    both = trimesh.load(tmp_path / "all.glb")
    assert set(both.geometry) == {"WT", "ET"}
    assert all(each.is_watertight for each in both.geometry.values())


GREYS = np.array([0, 128, 255], dtype=np.uint8)


def test_ply_holds_colours(tmp_path):
    write_models(tmp_path / "red.ply", [Model("WT", TRIANGLE, "#FF8000")])
    colours = trimesh.load(tmp_path / "red.ply").visual.vertex_colors
    assert colours[:, :3].tolist() == [[255, 128, 0]] * 3
    write_models(tmp_path / "grey.ply", [Model("WT", TRIANGLE, greys=GREYS)])
    colours = trimesh.load(tmp_path / "grey.ply").visual.vertex_colors
    assert colours[:, 1].tolist() == [0, 128, 255]


def test_glb_holds_colours_in_linear_light_and_shares_vertices(tmp_path, blob):
    write_models(tmp_path / "grey.glb", [Model("WT", TRIANGLE, greys=GREYS)])
    (mesh,) = trimesh.load(tmp_path / "grey.glb").geometry.values()
    # (0.502 + 0.055) / 1.055 to the power of 2.4 is 0.216: 55 of 255.
    assert mesh.visual.vertex_attributes["color"][:, 0].tolist() == [0, 55, 255]
    grey = np.zeros(len(blob.vertices), dtype=np.uint8)
    write_models(tmp_path / "blob.glb", [Model("WT", blob, greys=grey)])
    (mesh,) = trimesh.load(tmp_path / "blob.glb", process=False).geometry.values()
    assert len(mesh.vertices) == len(blob.vertices)


def textured(mesh: TriangleMesh) -> Model:
    """A surface with a picture of 2 x 2 greys, the upper left of which is black."""
    picture = np.array([[0, 80], [160, 240]], dtype=np.uint8)
    places = np.zeros((len(mesh.faces), 3, 2), dtype=np.float32)
    places[:, 1, 0] = places[:, 2, 1] = 1  # from the upper left to the right, and down
    return Model("WT", mesh, texture=Texture(picture, places))


def test_obj_names_its_material_and_that_its_picture(tmp_path, blob):
    write_models(tmp_path / "seg_WT.obj", [textured(blob)])
    assert {path.name for path in tmp_path.iterdir()} == {"seg_WT.obj", "seg_WT.mtl", "seg_WT.png"}
    picture = np.asarray(Image.open(tmp_path / "seg_WT.png"))
    assert picture.tolist() == [[0, 80], [160, 240]]
    assert "map_Kd seg_WT.png" in (tmp_path / "seg_WT.mtl").read_text()
    text = (tmp_path / "seg_WT.obj").read_text()
    assert "\nmtllib seg_WT.mtl\n" in text
    # OBJ counts from the lower left.
    assert [line for line in text.splitlines() if line.startswith("vt")][:3] == [
        "vt 0.000000 1.000000",
        "vt 1.000000 1.000000",
        "vt 0.000000 0.000000",
    ]
    read = loaded(tmp_path / "seg_WT.obj")
    assert np.asarray(read.visual.material.image).shape[:2] == (2, 2)
    read.merge_vertices(merge_tex=True, merge_norm=True)
    assert read.is_watertight


def test_glb_holds_the_picture(tmp_path, blob):
    write_models(tmp_path / "seg_WT.glb", [textured(blob)])
    (read,) = trimesh.load(tmp_path / "seg_WT.glb").geometry.values()
    picture = np.asarray(read.visual.material.baseColorTexture)
    assert picture.reshape(2, 2, -1)[..., 0].tolist() == [[0, 80], [160, 240]]
    read.merge_vertices(merge_tex=True, merge_norm=True)
    assert read.is_watertight
    assert read.volume == pytest.approx(blob.volume_mm3, rel=1e-5)  # in its node's mm


def test_obj_of_a_name_that_is_not_utf_8_names_its_files(tmp_path, blob):
    path = tmp_path / os.fsdecode(b"caf\xe9.obj")
    write_models(path, [textured(blob)])
    assert b"\nmtllib caf\xe9.mtl\n" in path.read_bytes()
    assert b"\nmap_Kd caf\xe9.png\n" in path.with_suffix(".mtl").read_bytes()


def test_obj_without_a_picture_has_a_colour(tmp_path):
    write_models(tmp_path / "one.obj", [Model("WT", TRIANGLE, "#FF8000")])
    assert "Kd 1.0000 0.5020 0.0000" in (tmp_path / "one.mtl").read_text()
    assert not (tmp_path / "one.png").exists()


def test_a_hole_is_a_hole_to_both(tmp_path, blob):
    torn = TriangleMesh(blob.vertices, blob.faces[1:])
    write(tmp_path / "torn.stl", torn)
    assert not torn.is_closed
    assert not stl.Mesh.from_file(str(tmp_path / "torn.stl")).is_closed(exact=True)


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_mesh_gives_the_same_bytes_another_time(tmp_path, suffix):
    contents = []
    for folder in ("a", "b"):
        write(tmp_path / folder / f"mesh.{suffix}", TRIANGLE)
        time.sleep(0.01)  # numpy-stl's own header holds microseconds, and the name of the file
        contents.append([path.read_bytes() for path in sorted((tmp_path / folder).iterdir())])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("existing", ["one.obj", "one.mtl"])
def test_files_that_exist_are_kept_unless_told_otherwise(tmp_path, existing):
    (tmp_path / existing).write_text("mine")
    with pytest.raises(OutputExistsError, match=rf"{existing} exists already"):
        write(tmp_path / "one.obj", TRIANGLE)
    assert (tmp_path / existing).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1
    write(tmp_path / "one.obj", TRIANGLE, overwrite=True)
    assert (tmp_path / existing).read_text().startswith("# brats")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, suffix):
    def full(self, *args, **kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write(tmp_path / f"one.{suffix}", TRIANGLE)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_mesh_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="an empty mesh"):
        write(tmp_path / "none.stl", TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=int)))
    with pytest.raises(ValueError, match="ends in none of stl, ply, obj, glb"):
        write(tmp_path / "none.off", TRIANGLE)
    assert list(tmp_path.iterdir()) == []


# --- killed while a mesh is replaced -----------------------------------------------------------


@pytest.mark.parametrize(
    ("rename", "left"),
    [(1, {"obj": "old"}), (2, {"obj": "new"}), (3, {"obj": "new", "png": "new"})],
)
def test_a_kill_leaves_no_new_colours_beside_an_old_mesh(tmp_path, monkeypatch, blob, rename, left):
    path = tmp_path / "a.obj"
    kinds = ("obj", "mtl", "png")
    for kind in kinds:
        path.with_suffix(f".{kind}").write_text("old")
    kill_at_rename(monkeypatch, rename)
    with pytest.raises(KilledError):
        write_models(path, [textured(blob)], overwrite=True)
    files = {kind: path.with_suffix(f".{kind}") for kind in kinds}
    assert {
        kind: "old" if file.read_bytes() == b"old" else "new"
        for kind, file in files.items()
        if file.exists()
    } == left
