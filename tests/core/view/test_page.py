import base64
import gzip
import json
import re
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from viewcases import ENHANCING, SHAPE, TUMOUR, images, write, write_case

from brats_cli.core.data.finding import case_at
from brats_cli.core.errors import OutputExistsError
from brats_cli.core.view.page import as_json, asset, quantised, write_page
from brats_cli.core.view.scene import Scan, Wanted, load_scene

ROOT = Path(__file__).parents[3]


def scene_of(folder, **wanted):
    case = case_at(folder)
    return load_scene(case, Wanted(**({"reference": case.label} | wanted)))


def page_of(scene, tmp_path):
    write_page(scene, tmp_path / "view.html", summary={"case": scene.case}, overwrite=True)
    return (tmp_path / "view.html").read_text(encoding="utf-8")


def blobs(page):
    found = re.findall(r'<script type="text/plain" id="blob-([^"]*)">([^<]*)</script>', page)
    return {name: gzip.decompress(base64.b64decode(text)) for name, text in found}


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page)[1])


@pytest.fixture(scope="module")
def page(case_folder, prediction, tmp_path_factory):
    scene = scene_of(case_folder, prediction=prediction)
    return page_of(scene, tmp_path_factory.mktemp("page"))


def test_scans_are_nifti_on_the_place_where_they_were(page):
    image = nib.Nifti1Image.from_bytes(blobs(page)["t2"])
    assert image.get_data_dtype() == np.uint8
    found = np.asarray(image.dataobj)
    # The bright mark is 30..39, 40..45, 10..29 in the file: x = -i, y = 239 - j, z = k.
    bright = np.argwhere(found > 600)
    low, high = (
        nib.affines.apply_affine(image.affine, end) for end in (bright.min(0), bright.max(0))
    )
    assert np.allclose(low, [-39, 194, 10])
    assert np.allclose(high, [-30, 199, 29])


def test_values_are_true_to_half_a_grey_level(page, case_folder):
    scene = scene_of(case_folder)
    for name, scan in scene.scans.items():
        image = nib.Nifti1Image.from_bytes(blobs(page)[name])
        step = float(image.dataobj.slope)
        known = np.minimum(scan.voxels, 255 * step)
        assert np.abs(np.asarray(image.dataobj) - known).max() <= step / 2 + 1e-3
        assert step < 5  # 900 is the highest value


def test_masks_are_bits_by_region(page):
    bits = np.frombuffer(blobs(page)["masks-1"], dtype=np.uint8)
    data = data_of(page)
    assert [each["name"] for each in data["regions"]] == ["WT", "TC", "ET"]
    assert bits.size == np.prod(data["shape"])
    # 1,728 voxels of whole tumour, of which 512 are core, of which 64 enhance.
    assert np.bincount(bits).tolist()[1:] == [1728 - 512, 0, 512 - 64, 0, 0, 0, 64]


def test_meshes_are_mz3_in_millimetres(page):
    content = blobs(page)["mesh-1-2"]
    magic, attributes, faces, vertices, skip = struct.unpack("<2H3I", content[:16])
    assert (magic, attributes, skip) == (23117, 3, 0)  # as the format's description has it
    assert len(content) == 16 + 12 * (faces + vertices)
    points = np.frombuffer(content, "<f4", offset=16 + 12 * faces).reshape(-1, 3)
    # The enhancing voxels' centres reach from -35 to -32, and their surface half a voxel farther.
    assert np.allclose(points.min(axis=0), [-35.5, 219.5, 18.5], atol=0.2)
    assert np.allclose(points.max(axis=0), [-31.5, 223.5, 22.5], atol=0.2)


def test_volumes_and_scores_are_in_the_page(page):
    data = data_of(page)
    assert data["segmentations"][0]["volumes"]["WT"] == 1728 + 144
    assert data["scores"]["WT"]["dice"] == pytest.approx(3456 / 3600)


def test_a_score_that_is_undefined_is_null(case_folder, tmp_path):
    empty = write(tmp_path / "empty.nii.gz", np.zeros(SHAPE), dtype=np.uint8)
    page = page_of(scene_of(case_folder, prediction=empty), tmp_path)
    assert data_of(page)["scores"]["ET"] == {"dice": 0, "hausdorff95_mm": None}
    assert not any(each["segmentation"] == 0 for each in data_of(page)["meshes"])


def test_nothing_from_elsewhere_is_asked_for(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    assert not re.search(r"<(?:script|img|link)[^>]* (?:src|href)=", page)


def test_nothing_of_the_headers_or_paths_is_written(tmp_path):
    folder = write_case(
        tmp_path / "St.Elsewhere",
        description="St.Elsewhere",
        db_name=b"Doe^Jane",
        aux_file=b"Ward9",
    )
    page = page_of(scene_of(folder), tmp_path)
    everything = page.encode() + b"".join(blobs(page).values())
    assert not re.search(rb"Elsewhere|Doe.Jane|Ward9", everything)
    assert str(tmp_path).encode() not in everything


def test_the_licences_come_with_the_viewer(page):
    for name in ("NiiVue 0.69.0", "Redistributions in binary form must", "gl-matrix", "Roboto"):
        assert name in page


def test_the_same_case_gives_the_same_page(case_folder, tmp_path):
    scene = scene_of(case_folder)
    assert page_of(scene, tmp_path) == page_of(scene, tmp_path)


def test_an_existing_page_stays(case_folder, tmp_path):
    (tmp_path / "view.html").write_text("mine")
    with pytest.raises(OutputExistsError):
        write_page(scene_of(case_folder), tmp_path / "view.html", summary={})
    assert (tmp_path / "view.html").read_text() == "mine"


def test_json_ends_no_script():
    text = as_json({"case": "</script><script>&", "dice": float("nan"), "more": (float("inf"), 1)})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"case": "</script><script>&", "dice": None, "more": [None, 1]}


def test_levels_of_values_of_both_signs():
    voxels = np.array([[[0, -50, 200, -20]]], dtype=np.float32)
    outside = voxels == 0
    levels, step, least = quantised(Scan("T1", voxels, (-50.0, 200.0)), outside)
    assert levels[0, 0, 0] == 0  # black, whatever it was
    assert np.allclose(levels[~outside] * step + least, voxels[~outside], atol=step)


def test_an_empty_scan_has_levels():
    voxels = np.zeros((2, 2, 2), dtype=np.float32)
    levels, step, least = quantised(Scan("T1", voxels, (0.0, 1.0)), np.ones((2, 2, 2), dtype=bool))
    assert (levels.any(), step, least) == (False, 1.0, 0.0)


def test_a_missing_sequence_is_marked(tmp_path):
    scans = images()
    del scans["t1ce"]
    data = data_of(page_of(scene_of(write_case(tmp_path, scans)), tmp_path))
    assert [each["present"] for each in data["sequences"]] == [True, False, True, True]
    assert data["first"] == "t1"
    assert data["notes"] == ["The case has no T1ce."]


def test_maps_of_uncertainty_are_in_the_page(case_folder, tmp_path):
    maps = np.zeros((*SHAPE, 3))
    maps[(*TUMOUR, 0)] = 30
    maps[(*ENHANCING, 2)] = 100
    path = write(tmp_path / "u.nii.gz", maps, dtype=np.uint8)
    page = page_of(scene_of(case_folder, uncertainty=path), tmp_path)
    (heat,) = data_of(page)["heats"]
    assert [each["name"] for each in heat["maps"]] == ["WT", "TC", "ET"]
    found = np.asarray(nib.Nifti1Image.from_bytes(blobs(page)["heat-0-2"]).dataobj)
    assert (np.isclose(found, 100).sum(), (found == 0).sum()) == (64, found.size - 64)


def test_every_asset_is_part_of_the_package():
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    patterns = re.search(r'"brats_cli.core.view" = \[([^\]]*)\]', settings)[1]
    room = ROOT / "src/brats_cli/core/view"
    packed = {path for each in re.findall(r'"([^"]*)"', patterns) for path in room.glob(each)}
    assert {path for path in (room / "assets").rglob("*") if path.is_file()} <= packed


def test_the_viewers_recipe_names_the_version_in_the_licences():
    recipe = json.loads(asset("niivue/package.json"))
    assert recipe["dependencies"] == {"@niivue/niivue": "0.69.0"}
    assert '"0.69.0"' in asset("niivue/niivue.js")
    assert "NiiVue 0.69.0" in asset("niivue/LICENCES.txt")
