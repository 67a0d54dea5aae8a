import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from viewcases import SHAPE, TUMOUR, brain, images, write, write_case

from brats_cli.core.data.finding import case_at
from brats_cli.core.data.labels import REGION_COLOURS
from brats_cli.core.errors import ConfigError, OutputExistsError
from brats_cli.core.view.scene import Wanted, load_scene
from brats_cli.core.view.slices import Cut, choose_cuts, draw_slices


def scene_of(folder, **wanted):
    case = case_at(folder)
    return load_scene(case, Wanted(**({"reference": case.label} | wanted)))


@pytest.fixture(scope="module")
def scene(case_folder):
    return scene_of(case_folder)


def picture(scene, tmp_path, **how):
    draw_slices(scene, tmp_path / "view.png", **how)
    return np.asarray(Image.open(tmp_path / "view.png").convert("RGB")).astype(int)


def near(pixels, colour, tolerance=40):
    target = np.array(list(bytes.fromhex(colour.lstrip("#"))))
    return np.abs(pixels - target).max(axis=-1) <= tolerance


def grey_of(pixels):
    """Where scans are: grey and not black."""
    return (pixels.max(axis=-1) > 8) & (np.ptp(pixels, axis=-1) < 12)


def test_a_slice_shows_right_on_the_left_and_front_above():
    volume = np.zeros((3, 4, 5))
    volume[2, 3, 1] = 7  # right, anterior, low
    axial = Cut("axial", 1).of(volume)
    assert axial.shape == (4, 3)
    assert axial[0, 0] == 7  # above, and to the left
    coronal = Cut("coronal", 3).of(volume)
    assert coronal.shape == (5, 3)
    assert coronal[3, 0] == 7  # low, and to the left
    sagittal = Cut("sagittal", 2).of(volume)
    assert sagittal.shape == (5, 4)
    assert sagittal[3, 0] == 7  # low, the front to the left


def test_cuts_are_those_with_most_tumour(scene):
    cuts = choose_cuts(scene)
    assert [cut.plane for cut in cuts] == ["axial", "coronal", "sagittal"]
    for cut in cuts:
        side = TUMOUR[cut.axis]
        assert side.start <= scene.file_index(cut.axis, cut.index) < side.stop


def test_a_slice_is_chosen_by_the_index_in_the_file(scene):
    cuts = choose_cuts(scene, slices=["sagittal=30", "axial=7"])
    chosen = {cut.plane: scene.file_index(cut.axis, cut.index) for cut in cuts}
    assert (chosen["sagittal"], chosen["axial"]) == (30, 7)


@pytest.mark.parametrize("text", ["axial", "axial=x", "up=3", "axial=-1", ""])
def test_what_is_not_a_slice(scene, text):
    with pytest.raises(ConfigError, match="is not a slice") as caught:
        choose_cuts(scene, slices=[text])
    assert "axial=77" in caught.value.hint


def test_a_slice_outside_the_brain(scene):
    with pytest.raises(ConfigError, match="axial slice 39 of case BraTS2021_00001") as caught:
        choose_cuts(scene, slices=["axial=39"])
    # The brain is 5..34, and two voxels are kept around it.
    assert caught.value.hint == "its axial slices with brain are 3 to 36"


def test_a_montage_is_spread_over_the_tumour(scene):
    cuts = choose_cuts(scene, montage=5)
    heights = [scene.file_index(2, cut.index) for cut in cuts]
    assert {cut.plane for cut in cuts} == {"axial"}
    assert heights == sorted(heights)
    assert min(heights) > 15
    assert max(heights) < 26


def test_a_montage_has_no_slice_twice(scene):
    cuts = choose_cuts(scene, montage=40)
    assert len(cuts) == len(set(cuts)) <= 12


def test_contours_have_the_colours_of_their_regions(scene, tmp_path):
    pixels = picture(scene, tmp_path)
    slices = pixels[:, : int(pixels.shape[1] * 0.6)]  # the legend has the colours, too
    for region in ("WT", "TC", "ET"):
        assert near(slices, REGION_COLOURS[region]).sum() > 100


def test_left_is_left_and_front_is_above(scene, tmp_path):
    pixels = picture(scene, tmp_path)
    first = pixels[80:226, 93:243]  # the axial slice of T1, 60 mm at 2.5 dots
    brain = np.argwhere(grey_of(first))
    middle_y, middle_x = (brain.min(axis=0) + brain.max(axis=0)) / 2
    contours = np.argwhere(near(first, REGION_COLOURS["WT"]))
    assert (contours[:, 1] > middle_x).all()  # the tumour is on the patient's left
    assert (contours[:, 0] < middle_y).all()  # and in the anterior half


def test_proportions_are_true(tmp_path):
    # Voxels three times as high as wide: 30 of them are 90 mm, more than the 44 mm from front to
    # back.
    flat = {name: brain(100) for name in ("t1", "t1ce", "t2", "flair")}
    folder = write_case(tmp_path, flat, labels=None, affine=np.diag([1.0, 1, 3, 1]))
    pixels = picture(scene_of(folder), tmp_path)
    # The sagittal slice of T1: the last of three rows, the first of four columns.
    corner = grey_of(pixels)[int(pixels.shape[0] * 0.65) :, : pixels.shape[1] // 5]
    high = np.count_nonzero(corner.sum(axis=1) > 60)
    wide = np.count_nonzero(corner.sum(axis=0) > 60)
    assert high / wide == pytest.approx(90 / 44, rel=0.05)


@pytest.mark.slow
def test_the_same_case_gives_the_same_bytes(scene, tmp_path):
    for name in ("a.png", "b.png", "a.svg", "b.svg", "a.pdf", "b.pdf"):
        draw_slices(scene, tmp_path / name)
    for suffix in ("png", "svg", "pdf"):
        first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
        assert first == second


def test_pdf_and_svg_are_what_they_say(scene, tmp_path):
    draw_slices(scene, tmp_path / "v.pdf")
    draw_slices(scene, tmp_path / "v.SVG")
    assert (tmp_path / "v.pdf").read_bytes().startswith(b"%PDF")
    assert "<svg" in (tmp_path / "v.SVG").read_text()


def test_an_existing_picture_stays(scene, tmp_path):
    (tmp_path / "view.png").write_text("mine")
    with pytest.raises(OutputExistsError):
        draw_slices(scene, tmp_path / "view.png")
    draw_slices(scene, tmp_path / "view.png", overwrite=True)
    assert (tmp_path / "view.png").read_bytes().startswith(b"\x89PNG")


def test_maps_get_a_row_of_their_own(scene, case_folder, tmp_path):
    maps = np.zeros((*SHAPE, 3))
    maps[TUMOUR] = 90
    with_map = scene_of(case_folder, uncertainty=write(tmp_path / "u.nii.gz", maps, dtype=np.uint8))
    plain, heated = picture(scene, tmp_path), picture(with_map, tmp_path, overwrite=True)
    assert heated.shape[0] > plain.shape[0] + 50
    # inferno at 0.9 is yellow (matplotlib: #f6d746)
    assert near(heated[plain.shape[0] - 100 :], "#f6d746").sum() > 500
    assert near(plain, "#f6d746").sum() < 50


@pytest.mark.parametrize("case", ["$x_1$", "a&b<c>", "Größe 2"])
def test_case_ids_of_any_letters(tmp_path, case):
    scene = scene_of(write_case(tmp_path, labels=None, case=case))
    draw_slices(scene, tmp_path / "v.svg")
    draw_slices(scene, tmp_path / "v.png")
    # An SVG without text is drawn as paths: what it says of the case must be valid XML.
    assert ElementTree.parse(tmp_path / "v.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "v.png").read_bytes()[:4] == b"\x89PNG"


def test_odd_cases_are_drawn(tmp_path):
    scans = images()
    del scans["t1"]
    scans["flair"][:] = 0
    scene = scene_of(write_case(tmp_path, scans, labels=None))
    assert picture(scene, tmp_path).max() == 255


def test_nothing_of_the_header_is_written(tmp_path):
    folder = write_case(tmp_path / "St.Elsewhere", description="St.Elsewhere", db_name=b"Doe^Jane")
    scene = scene_of(folder)
    for suffix in ("png", "pdf", "svg"):
        path = tmp_path / f"v.{suffix}"
        draw_slices(scene, path)
        assert not re.search(rb"Elsewhere|Doe.Jane", path.read_bytes())
