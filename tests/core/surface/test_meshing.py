from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import trimesh

import brats_cli
from brats_cli.commands import mesh as command
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.errors import (
    ConfigError,
    GridMismatchError,
    LabelError,
    MeshError,
    OutputExistsError,
    UnreadableFileError,
)
from brats_cli.core.surface import meshing
from brats_cli.core.surface.triangles import TriangleMesh

AFFINE = np.diag([-1.0, -1, 2, 1])


def write_seg(path: Path, *, radius: float = 6) -> Path:
    """A tumour of three nested balls, in the labels of 2017 to 2022."""
    distance = np.linalg.norm(np.indices((18, 18, 18)).T - 8.5, axis=-1)
    data = np.zeros(distance.shape, dtype=np.uint8)
    for value, part in ((2, 1.0), (1, 0.7), (4, 0.4)):
        data[distance <= part * radius] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    return path


@pytest.fixture
def seg(tmp_path: Path) -> Path:
    return write_seg(tmp_path / "seg.nii.gz")


def test_the_function_takes_what_the_command_takes():
    twin = inspect.signature(brats_cli.mesh).parameters
    options = inspect.signature(command.mesh).parameters
    assert list(twin)[:-1] == [name for name in options if name != "as_json"]
    for name, parameter in list(twin.items())[1:-1]:
        assert parameter.kind == inspect.Parameter.KEYWORD_ONLY
        assert parameter.default == options[name].default


def test_one_line_of_python_writes_a_mesh_and_measures_it(seg, capfd):
    meshes = brats_cli.mesh(str(seg))
    (result,) = meshes.made
    assert result.file == seg.with_name("seg_WT.stl")
    assert (result.segmentation, result.region, result.space) == (seg, "WT", "RAS")
    voxels = np.count_nonzero(nib.load(seg).get_fdata())
    assert result.voxels_mm3 == voxels * 2
    assert abs(result.volume_error) < 1e-5
    assert (result.shells, result.voxel_shells, result.euler_number) == (1, 1, 2)
    assert result.faces == result.full_faces == 2 * result.vertices - 4  # Euler's formula
    assert 0.05 < result.mean_mm < result.p95_mm <= result.max_mm < 1
    read = trimesh.load(result.file)
    assert read.is_watertight
    assert read.volume == pytest.approx(result.voxels_mm3, rel=1e-5)
    assert read.area == pytest.approx(result.area_mm2, rel=1e-5)
    assert capfd.readouterr() == ("", "")


def test_json_is_plain(seg):
    content = brats_cli.mesh(seg, reduce=0.5).to_json_dict()
    assert json.loads(json.dumps(content)) == content
    assert content["format"] == "brats-meshes/1"


def test_a_scene_holds_all_regions(seg):
    meshes = brats_cli.mesh(seg, region="all", format="glb")
    assert {each.file for each in meshes.made} == {seg.with_name("seg_all.glb")}
    assert [each.region for each in meshes.made] == ["WT", "TC", "ET"]
    scene = trimesh.load(seg.with_name("seg_all.glb"))
    for each in meshes.made:
        assert scene.geometry[each.region].volume == pytest.approx(each.voxels_mm3, rel=1e-5)


def test_a_number_of_faces_and_less_smoothing_are_reported(seg):
    (result,) = brats_cli.mesh(seg, faces=200, smooth="none").made
    assert result.faces == pytest.approx(200, abs=4)
    assert result.wanted_faces == 200
    assert result.smooth == "none"
    assert result.notes == []


def test_what_is_special_is_noted(tmp_path):
    data = np.zeros((20, 20, 20), dtype=np.uint8)
    data[2:9, 2:9, 2:9] = data[15, 15, 15] = data[15, 15, 3] = 1
    nib.save(nib.Nifti1Image(data, np.diag([1.0, 1, 4, 1])), tmp_path / "thick.nii.gz")
    (result,) = brats_cli.mesh(tmp_path / "thick.nii.gz", region="1", reduce=0.001).made
    assert result.interpolated == (1, 1, 4)
    assert result.unsmoothed == 2
    assert result.notes == [
        "thick slices were interpolated (each voxel cut into 1 x 1 x 4)",
        "too small to be smoothed: 2 of its 3 parts (islands and cavities)",
        f"kept {result.faces} faces instead of {result.wanted_faces}, so that it stays closed and "
        "no part is lost",
    ]


@pytest.mark.parametrize("suffix", ["ply", "obj", "glb"])
def test_a_painted_surface_is_closed_and_shows_the_scan(seg, tmp_path, suffix):
    scan = np.zeros((18, 18, 18), dtype=np.float32)
    scan[:9], scan[9:] = 100, 200
    nib.save(nib.Nifti1Image(scan, AFFINE), tmp_path / "t1ce.nii.gz")
    brats_cli.mesh(seg, format=suffix, paint=tmp_path / "t1ce.nii.gz")
    file = seg.with_name(f"seg_WT.{suffix}")
    read = trimesh.load(file)
    if suffix == "glb":
        (read,) = read.geometry.values()
        greys = read.visual.vertex_attributes["color"][:, 0]
    elif suffix == "ply":
        greys = read.visual.vertex_colors[:, 0]
    else:
        assert seg.with_name("seg_WT.png").exists()
        greys = np.asarray(read.visual.to_color().vertex_colors)[:, 0]
        read.merge_vertices(merge_tex=True, merge_norm=True)
    # x is mirrored: the half of the higher indices lies at lower x, and is white.
    assert {0, 255} <= set(greys.tolist())
    assert read.is_watertight


def test_a_texture_goes_into_one_glb(seg, tmp_path):
    nib.save(nib.Nifti1Image(np.ones((18, 18, 18), np.float32), AFFINE), tmp_path / "t1.nii")
    brats_cli.mesh(seg, region="all", format="glb", paint=tmp_path / "t1.nii", texture=True)
    scene = trimesh.load(seg.with_name("seg_all.glb"))
    assert all(
        each.visual.material.baseColorTexture is not None for each in scene.geometry.values()
    )


def test_the_brain_of_a_scan(tmp_path):
    scan = np.zeros((12, 12, 12), dtype=np.float32)
    scan[2:10, 2:10, 2:10] = 7
    scan[5, 5, 5] = 0
    nib.save(nib.Nifti1Image(scan, AFFINE), tmp_path / "t1.nii.gz")
    (result,) = brats_cli.mesh(tmp_path / "t1.nii.gz", region="brain").made
    assert result.file.name == "t1_brain.stl"
    assert result.voxels_mm3 == 8**3 * 2


def test_parts_and_cavities(tmp_path):
    data = np.zeros((12, 12, 12), dtype=np.uint8)
    data[1:6, 1:6, 1:6] = data[8:10, 8, 8] = 1
    data[3, 3, 3] = 0
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "seg.nii")

    def voxels(**options) -> float:
        (result,) = brats_cli.mesh(tmp_path / "seg.nii", region="1", overwrite=True, **options).made
        return result.voxels_mm3

    assert voxels() == 124 + 2
    assert voxels(largest=True) == 124
    assert voxels(min_volume=3) == 124
    assert voxels(fill_holes=True) == 125 + 2


def test_replacing_all_removes_the_mesh_of_a_region_that_is_gone(tmp_path, seg):
    shutil.copy(seg, tmp_path / "x.nii.gz")
    brats_cli.mesh(tmp_path / "x.nii.gz", region="all", format="obj", output=tmp_path / "m")
    (tmp_path / "m/other_ET.obj").touch()
    assert (tmp_path / "m/x_ET.obj").exists()
    image = nib.load(seg)
    data = np.asarray(image.dataobj).copy()
    data[data == 4] = 2  # only edema and necrosis are left
    nib.save(nib.Nifti1Image(data, image.affine), tmp_path / "x.nii.gz")

    again = {"region": "all", "format": "obj", "output": tmp_path / "m", "labels": "brats2020"}
    brats_cli.mesh(tmp_path / "x.nii.gz", skip_existing=True, **again)
    assert (tmp_path / "m/x_ET.obj").exists()
    brats_cli.mesh(tmp_path / "x.nii.gz", overwrite=True, **again)
    left = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert left == ["other_ET.obj", "x_TC.mtl", "x_TC.obj", "x_WT.mtl", "x_WT.obj"]


def test_labels_may_be_a_name_or_a_scheme(seg):
    for labels in ("brats2020", SCHEMES["brats2020"]):
        (result,) = brats_cli.mesh(seg, region="TC", labels=labels, overwrite=True).made
        assert result.region == "TC"
    with pytest.raises(LabelError, match="there is no label scheme 'brats1999'"):
        brats_cli.mesh(seg, labels="brats1999")


def test_one_path_that_fails_raises_and_of_a_list_each_is_named(seg, tmp_path):
    missing = tmp_path / "missing.nii.gz"
    with pytest.raises(UnreadableFileError, match="missing"):
        brats_cli.mesh(missing)
    done = []
    meshes = brats_cli.mesh(
        [missing, seg], workers=1, on_progress=lambda *numbers: done.append(numbers)
    )
    assert [each.segmentation for each in meshes.failed] == [missing]
    assert [each.segmentation for each in meshes.made] == [seg]
    assert done == [(1, 2), (2, 2)]


@pytest.mark.slow
def test_several_processes_give_what_one_gives(tmp_path):
    segs = [write_seg(tmp_path / f"{name}.nii.gz", radius=6 + name) for name in range(4)]
    segs.insert(2, tmp_path / "missing.nii.gz")
    one, two = (brats_cli.mesh(segs, workers=count, overwrite=True) for count in (1, 2))
    assert one.made == two.made
    assert [str(each.error) for each in one.failed] == [str(each.error) for each in two.failed]
    assert [each.segmentation for each in two.made] == segs[:2] + segs[3:]


def test_meshes_that_exist_are_skipped_without_a_look(seg):
    brats_cli.mesh(seg)
    with pytest.raises(OutputExistsError, match=r"seg_WT\.stl exists already"):
        brats_cli.mesh(seg)
    seg.write_text("no longer an image")
    again = brats_cli.mesh(seg, skip_existing=True)
    assert again.skipped == [seg.with_name("seg_WT.stl")]
    assert again.made == again.failed == []


def test_a_mesh_whose_colours_are_missing_is_made_again(seg):
    brats_cli.mesh(seg, format="obj")
    seg.with_name("seg_WT.mtl").unlink()  # as a kill leaves it that comes before the last rename
    again = brats_cli.mesh(seg, format="obj", skip_existing=True)
    assert ([each.region for each in again.made], again.skipped) == (["WT"], [])
    assert seg.with_name("seg_WT.mtl").exists()


def test_of_all_regions_those_that_are_missing_are_made(seg):
    brats_cli.mesh(seg, region="TC")
    meshes = brats_cli.mesh(seg, region="all", skip_existing=True)
    assert [each.region for each in meshes.made] == ["WT", "ET"]
    assert meshes.skipped == [seg.with_name("seg_TC.stl")]


def test_a_scan_on_another_grid_is_refused(seg, tmp_path):
    nib.save(nib.Nifti1Image(np.ones((9, 9, 9), np.float32), AFFINE), tmp_path / "t1.nii")
    with pytest.raises(GridMismatchError, match=r"t1\.nii does not lie on the grid of .*seg"):
        brats_cli.mesh(seg, format="ply", paint=tmp_path / "t1.nii")
    assert not seg.with_name("seg_WT.ply").exists()


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"reduce": 0}, "cannot keep 0 of the faces", "above 0 and up to 1"),
        ({"format": "gltf"}, "there is no mesh format 'gltf'", "choose stl, ply, obj, glb"),
        ({"format": "ob"}, "there is no mesh format 'ob'", "did you mean 'obj'?"),
        ({"output": "a.off"}, "there is no mesh format 'off'", "choose stl, ply, obj, glb"),
        ({"output": "a.ply", "format": "stl"}, "ends in .ply, and the format is stl", "agree"),
        ({"scale": 0}, "cannot scale a mesh by 0", "above 0"),
        ({"space": "lpi"}, "there is no space 'lpi'", "ras or lps"),
        ({"texture": True}, "a texture needs a scan", "--paint"),
        ({"paint": "t1.nii"}, "STL holds no colours", "ply, obj or glb"),
        ({"paint": "t1.nii", "texture": True, "format": "ply"}, "no texture", "--format obj"),
        ({"min_volume": -1}, "a minimum volume of -1 mm3", "0 or more"),
    ],
)
def test_settings_that_make_no_sense(seg, options, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        brats_cli.mesh(seg, **options)
    assert hint in caught.value.hint
    assert list(seg.parent.iterdir()) == [seg]


def test_an_unclosed_surface_is_never_written(seg, monkeypatch):
    from brats_cli.core.surface import meshing
    from brats_cli.core.surface.triangles import TriangleMesh

    whole = meshing.surface_of

    def torn(*args):
        surface = whole(*args)
        broken = TriangleMesh(surface.mesh.vertices, surface.mesh.faces[1:])
        return type(surface)(**vars(surface) | {"mesh": broken})

    monkeypatch.setattr(meshing, "surface_of", torn)
    with pytest.raises(MeshError, match=r"the surface of WT in .*seg\.nii\.gz does not close"):
        brats_cli.mesh(seg)
    assert list(seg.parent.iterdir()) == [seg]


def test_a_folder_may_have_a_dot_in_its_name(tmp_path):
    segs = [write_seg(tmp_path / f"{name}.nii.gz") for name in "ab"]
    meshes = brats_cli.mesh(segs, output=tmp_path / "meshes.v2", workers=1)
    assert [each.file for each in meshes.made] == [
        tmp_path / "meshes.v2" / "a_WT.stl",
        tmp_path / "meshes.v2" / "b_WT.stl",
    ]


@pytest.mark.parametrize("setting", [{"labels": "brats2020"}, {"region": "4"}], ids=str)
def test_a_folder_is_not_read_first_where_its_other_label_maps_do_not_matter(
    tmp_path, monkeypatch, setting
):
    def fail(files):
        pytest.fail("the label maps were read before they were meshed")

    monkeypatch.setattr("brats_cli.core.surface.meshing.known_of", fail)
    both = [write_seg(tmp_path / name) for name in ("a.nii.gz", "b.nii.gz")]
    meshes = brats_cli.mesh(both, workers=1, **setting)
    assert [len(meshes.made), len(meshes.failed)] == [2, 0]


def test_a_face_and_the_same_face_turned_over_are_no_surface():
    assert not TriangleMesh(np.eye(3), np.array([[0, 1, 2], [0, 2, 1]])).is_closed


def test_maps_beside_label_maps_are_left_out_of_a_list_and_reported(tmp_path):
    first, second = (write_seg(tmp_path / f"{name}.nii.gz") for name in "AB")
    beside = [
        tmp_path / f"{name}.nii.gz" for name in ("A_probabilities", "B_uncertainty", "B_unc_core")
    ]
    for path in beside:
        nib.save(nib.Nifti1Image(np.full((4, 4, 4), 0.3, dtype=np.float32), AFFINE), path)
    given = [first, *beside, second]
    meshes = brats_cli.mesh(given, output=tmp_path / "out")
    assert [result.segmentation for result in meshes.made] == [first, second]
    assert (meshes.left_out, meshes.failed) == (beside, [])
    assert meshes.to_json_dict()["left_out"] == [str(path) for path in beside]
    planned = brats_cli.mesh(given, output=tmp_path / "other", dry_run=True)
    assert planned.left_out == beside
    assert planned.planned.cases == (str(first), str(second))
    # One label map is left: it may be written to one file.
    (result,) = brats_cli.mesh([beside[0], first], output=tmp_path / "one.stl").made
    assert result.file == tmp_path / "one.stl"


def test_a_probability_map_alone_is_refused_for_what_it_holds(tmp_path):
    path = tmp_path / "A_probabilities.nii.gz"
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 0.3, dtype=np.float32), AFFINE), path)
    with pytest.raises(LabelError, match=re.escape(f"{path} holds 0.3")) as caught:
        brats_cli.mesh(path)
    assert caught.value.hint == "is it an MR image or a probability map, not a label map?"
    meshes = brats_cli.mesh([path])
    assert meshes.left_out == []
    assert [failure.segmentation for failure in meshes.failed] == [path]


def test_a_label_map_that_memory_does_not_suffice_for_stops_no_other(tmp_path, monkeypatch):
    first, second = (write_seg(tmp_path / f"{name}.nii.gz") for name in "ab")
    read = meshing.read_labels

    def read_labels(path):
        if path == first:
            raise MemoryError("Unable to allocate 9 GiB")
        return read(path)

    monkeypatch.setattr(meshing, "read_labels", read_labels)
    meshes = brats_cli.mesh([first, second], region="WT", labels="brats2020", workers=0)
    assert [Path(each.segmentation) for each in meshes.made] == [second]
    (failure,) = meshes.failed
    assert failure.segmentation == first
    assert str(failure.error) == "not enough memory: Unable to allocate 9 GiB"
