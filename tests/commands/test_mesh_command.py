from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import stl
from helpers import assert_refused, brats, save_nifti

AFFINE = np.diag([-1.0, -1, 2, 1])


run = partial(brats, "mesh")


def write_seg(path: Path, *values: int) -> Path:
    """A label map with one voxel of 1 x 1 x 2 mm for each value, none beside another."""
    data = np.zeros((9, 3, 3), dtype=np.uint8)
    data[1 : 2 * len(values) : 2, 1, 1] = values
    save_nifti(path, data, AFFINE)
    return path


@pytest.fixture
def seg(tmp_path: Path) -> Path:
    return write_seg(tmp_path / "seg.nii.gz", 1, 2, 4)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_missions_line_writes_seg_wt_beside_the_label_map(seg):
    result = run(seg, "--region", "WT")
    assert result.exit_code == 0
    assert names(seg.parent) == ["seg.nii.gz", "seg_WT.stl"]
    header, row = result.stdout.splitlines()
    assert " ".join(header.split()) == "file faces volume area mean mm closed"
    # Three voxels of 1 x 1 x 2 mm: 6 mm3 = 0.01 ml, as three octahedra of 6 vertices and 8 faces.
    # With h = (3/4)^(1/3): 3 * 8 * h * sqrt(2) * h * sqrt(2^2 + 1/2) / 2 = 29.7 mm2 = 0.3 cm2.
    assert re.fullmatch(r"seg_WT.stl 24 0.01 ml 0.3 cm2 0.\d\d yes", " ".join(row.split()))
    assert result.stderr.splitlines() == [
        f"written to {seg.parent}",
        "seg_WT.stl: too small to be smoothed: 3 of its 3 parts (islands and cavities)",
    ]


def test_json_holds_every_number_and_the_file_agrees_with_it(seg):
    result = run(seg, "--region", "tc", "--json")
    content = json.loads(result.stdout)
    assert content["format"] == "brats-meshes/1"
    assert content["failed"] == content["skipped"] == []
    (mesh,) = content["meshes"]
    distances = {mesh.pop(key) for key in ("mean_mm", "p95_mm", "max_mm")}
    assert 0 < min(distances) <= max(distances) < 1
    assert abs(mesh.pop("volume_error")) < 1e-6
    assert mesh == {
        "segmentation": str(seg),
        "region": "TC",
        "file": str(seg.with_name("seg_TC.stl")),
        "space": "RAS",
        "scale": 1.0,
        "vertices": 12,
        "faces": 16,
        "full_faces": 16,
        "volume_mm3": pytest.approx(2 * 2),
        "voxels_mm3": pytest.approx(2 * 2),
        "area_mm2": pytest.approx(2 * 8 * 0.75 ** (2 / 3) * np.sqrt(2 * 4.5) / 2),
        "euler_number": 4,
        "shells": 2,
        "voxel_shells": 2,
        "unsmoothed": 2,
        "smooth": "light",
        "wanted_smooth": "light",
        "wanted_faces": 16,
        "interpolated": None,
        "closed": True,
    }
    written = stl.Mesh.from_file(mesh["file"])
    assert written.is_closed(exact=True)
    assert written.get_mass_properties()[0] == pytest.approx(mesh["volume_mm3"])
    # Voxels 1 and 5 along x of an affine that turns x and y round: -1 and -5, with y -1 and z 2.
    np.testing.assert_allclose(written.vectors.reshape(-1, 3).mean(axis=0), [-3, -1, 2], atol=1e-5)


def test_lps_is_written_and_said(seg):
    result = run(seg, "--space", "lps", "--json")
    (mesh,) = json.loads(result.stdout)["meshes"]
    written = stl.Mesh.from_file(mesh["file"])
    assert mesh["space"] == "LPS"
    assert b"SPACE=LPS" in Path(mesh["file"]).read_bytes()[:80]
    np.testing.assert_allclose(written.vectors.reshape(-1, 3).mean(axis=0), [3, 1, 2], atol=1e-5)


def test_a_name_for_one_mesh(seg, tmp_path):
    assert run(seg, "-o", tmp_path / "new" / "tumour.stl").exit_code == 0
    assert names(tmp_path / "new") == ["tumour.stl"]


def test_all_regions_that_are_there_go_into_a_folder(tmp_path):
    seg = write_seg(tmp_path / "BraTS2021_01477_seg.nii.gz", 1, 2)
    assert run(seg, "--region", "all", "-o", tmp_path / "meshes").exit_code == 0
    assert names(tmp_path / "meshes") == [
        "BraTS2021_01477_seg_TC.stl",
        "BraTS2021_01477_seg_WT.stl",
    ]


def test_a_label_value_is_a_region(seg):
    assert run(seg, "--region", "2").exit_code == 0
    assert "seg_2.stl" in names(seg.parent)


def test_paths_come_from_stdin(tmp_path):
    first, second = (write_seg(tmp_path / f"{x}.nii.gz", 1, 2, 4) for x in "ab")
    result = run("-", "-o", tmp_path / "out", stdin=f"{first}\n\n{second}\n")
    assert result.exit_code == 0
    assert names(tmp_path / "out") == ["a_WT.stl", "b_WT.stl"]
    assert result.stderr.startswith(f"written to {tmp_path / 'out'}\n")


def test_the_table_fits_80_columns(tmp_path):
    seg = write_seg(tmp_path / "BraTS20_Training_001_seg.nii.gz", 1, 2, 4)
    lines = run(seg, "--region", "all").stdout.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80


def test_two_runs_give_the_same_bytes(seg, tmp_path):
    run(seg, "-o", tmp_path / "a.stl")
    run(seg, "-o", tmp_path / "b.stl")
    assert (tmp_path / "a.stl").read_bytes() == (tmp_path / "b.stl").read_bytes()


def test_an_empty_region_is_two_lines_and_no_file(tmp_path):
    seg = write_seg(tmp_path / "BraTS2021_01477_seg.nii.gz", 1, 2)
    assert_refused(
        run(seg, "--region", "ET"),
        f"{seg} has no ET: its voxels are 0, 1, 2, none is 4",
        "choose another --region, or all for those that are there",
    )
    assert names(tmp_path) == [seg.name]


def test_a_mesh_that_exists_is_kept_without_overwrite(seg):
    seg.with_name("seg_WT.stl").write_text("mine")
    assert_refused(
        run(seg),
        f"{seg.with_name('seg_WT.stl')} exists already",
        "choose another path with -o, or replace it with --overwrite",
    )
    assert seg.with_name("seg_WT.stl").read_text() == "mine"
    assert run(seg, "--overwrite").exit_code == 0
    assert seg.with_name("seg_WT.stl").read_bytes().startswith(b"brats ")


def test_a_region_that_two_schemes_see_differently_asks_for_labels(tmp_path):
    seg = write_seg(tmp_path / "seg.nii.gz", 1, 2, 3)
    assert_refused(
        run(seg, "--region", "TC"),
        f"{seg} holds labels 0, 1, 2, 3, which fit several schemes: brats2023, msd, nnunet",
        "choose one with --labels: brats2023, msd, nnunet",
    )
    assert run(seg, "--region", "WT").exit_code == 0
    assert run(seg, "--region", "TC", "--labels", "msd").exit_code == 0


def test_a_region_that_does_not_exist_is_told_before_anything_is_read(tmp_path):
    assert_refused(
        run(tmp_path / "missing.nii.gz", "--region", "tumour"),
        "there is no region 'tumour'",
        "the regions are ET, GTV, RC, TC, WT; a label value, all and brain work as well",
    )


def test_a_missing_label_map(tmp_path):
    missing = tmp_path / "missing.nii.gz"
    assert_refused(run(missing), f"cannot read {missing}: there is no such file", "check the path")


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        (
            ["--reduce", "0"],
            "cannot keep 0 of the faces",
            "give the part of the faces to keep, above 0 and up to 1, such as 0.25",
        ),
        (
            ["--reduce", "25"],
            "cannot keep 25 of the faces",
            "give the part of the faces to keep, above 0 and up to 1, such as 0.25",
        ),
        (
            ["--format", "off"],
            "there is no mesh format 'off'",
            "choose stl, ply, obj, glb",
        ),
        (["-o", "mesh.off"], "there is no mesh format 'off'", "choose stl, ply, obj, glb"),
        (
            ["--faces", "1000", "--reduce", "0.5"],
            "both a number of faces and a part of them are given",
            "give one of the two",
        ),
        (
            ["--paint", "t1ce.nii.gz"],
            "STL holds no colours",
            "write --format ply, obj or glb",
        ),
    ],
)
def test_a_wrong_setting_is_two_lines_before_anything_is_read(tmp_path, words, error, hint):
    assert_refused(run(tmp_path / "missing.nii.gz", *words), error, hint)


def test_a_scan_on_another_grid_is_two_lines(seg, tmp_path):
    scan = tmp_path / "t1ce.nii.gz"
    save_nifti(scan, np.ones((4, 4, 4), dtype=np.float32), AFFINE)
    assert_refused(
        run(seg, "--paint", scan, "--format", "ply"),
        f"{scan} does not lie on the grid of {seg}: 4 x 4 x 4 voxels, not 9 x 3 x 3",
        "all files of a case must have the same shape and affine: resample one to the grid of the "
        "other",
    )
    assert not seg.with_name("seg_WT.ply").exists()


@pytest.mark.parametrize("suffix", ["stl", "ply", "obj", "glb"])
def test_the_format_follows_the_name_or_the_flag(seg, tmp_path, suffix):
    assert run(seg, "-o", tmp_path / f"named.{suffix}").exit_code == 0
    assert (tmp_path / f"named.{suffix}").exists()
    assert run(seg, "--format", suffix).exit_code == 0
    assert seg.with_name(f"seg_WT.{suffix}").exists()


def test_a_glb_of_all_regions_is_one_file(seg, tmp_path):
    result = run(seg, "--region", "all", "-o", tmp_path / "scene.glb")
    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.stdout.splitlines()[1:]] == [
        ["scene.glb", "(WT)"],
        ["scene.glb", "(TC)"],
        ["scene.glb", "(ET)"],
    ]
    assert (tmp_path / "scene.glb").exists()


def test_meshes_that_exist_are_skipped(seg):
    run(seg)
    result = run(seg, "--skip-existing")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr == "skipped 1 mesh that existed\n"


@pytest.mark.parametrize("regions", [["--region", "all"], ["b.nii.gz"]], ids=["all", "two"])
def test_several_meshes_do_not_fit_into_one_file(seg, regions):
    assert_refused(
        run(seg, *regions, "-o", seg.with_name("all.stl")),
        f"{seg.with_name('all.stl')} is one file, and several meshes are to be written",
        "give a folder with -o, or leave it out to write beside each label map",
    )


def test_two_label_maps_of_one_name_do_not_overwrite_each_other(tmp_path):
    first, second = (write_seg(tmp_path / x / "seg.nii.gz", 1, 2, 4) for x in "ab")
    result = run(first, second, "-o", tmp_path / "out", "--overwrite")
    assert_refused(
        result,
        f"{first} and {second} would be written to the same mesh, seg_*.stl",
        "mesh them one by one with -o, or leave out -o to write beside each",
    )
    assert not (tmp_path / "out").exists()
    assert run(first, second).exit_code == 0
    assert (tmp_path / "b" / "seg_WT.stl").exists()


def test_nothing_on_stdin():
    assert_refused(
        run("-", stdin=""), "standard input is empty", "pipe paths into it, one per line"
    )


def test_the_maps_that_predict_writes_beside_label_maps_are_left_out_of_a_batch(tmp_path):
    cases = [write_seg(tmp_path / f"{name}.nii.gz", 1) for name in ("A", "B")]
    for name in ("A_probabilities", "A_uncertainty", "B_unc_whole", "B_unc_core"):
        save_nifti(tmp_path / f"{name}.nii.gz", np.zeros((9, 3, 3, 3)), AFFINE)
    result = run(*sorted(tmp_path.glob("*.nii.gz")), "-o", tmp_path / "meshes")
    assert result.exit_code == 0, result.stderr
    assert names(tmp_path / "meshes") == ["A_WT.stl", "B_WT.stl"]
    assert "left out 4 maps of probabilities or uncertainty" in result.stderr.splitlines()
    # Named alone, a map is what is asked for, and the error says what it is not.
    result = run(cases[0].with_name("A_probabilities.nii.gz"))
    assert result.exit_code == 3
    assert "it has 4 dimensions" in result.stderr


def test_where_meshes_are_is_not_said_of_the_current_folder(seg, monkeypatch):
    monkeypatch.chdir(seg.parent)
    result = run("seg.nii.gz")
    assert result.exit_code == 0
    assert "written" not in result.stderr


def test_in_a_batch_the_others_go_on_and_the_failures_come_last(tmp_path):
    good = [write_seg(tmp_path / f"{name}.nii.gz", 1, 2, 4) for name in "ad"]
    empty = write_seg(tmp_path / "b.nii.gz", 2)
    text = tmp_path / "c.nii.gz"
    text.write_text("not an image")
    result = run(good[0], empty, text, good[1], "--region", "TC", "--labels", "brats2020")
    assert result.exit_code == 3
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["a_TC.stl", "d_TC.stl"]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        f"error: {empty} has no TC: its voxels are 0, 2, none is 1 or 4",
        f"error: cannot read {text}: it is not a NIfTI file",
        "error: 2 of 4 label maps failed",
    ]
    again = run(good[0], empty, "--region", "TC", "--overwrite", "--json", "--labels", "brats2020")
    assert again.exit_code == 3
    content = json.loads(again.stdout)
    assert [mesh["region"] for mesh in content["meshes"]] == ["TC"]
    assert content["failed"] == [
        {
            "segmentation": str(empty),
            "error": f"{empty} has no TC: its voxels are 0, 2, none is 1 or 4",
            "hint": "choose another --region, or all for those that are there",
        }
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(seg):
    seg.parent.chmod(0o500)
    try:
        result = run(seg)
    finally:
        seg.parent.chmod(0o700)
    assert result.exit_code == 3
    assert "no permission to write" in result.stderr
