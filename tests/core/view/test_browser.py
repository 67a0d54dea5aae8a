"""The page as a browser shows it: drawn in software by a headless Chromium."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from browser import Browser, chromium
from viewcases import BRAIN, CORE, ENHANCING, MARK, SHAPE, TUMOUR, images, write, write_case

from brats_cli.core.data.finding import case_at
from brats_cli.core.data.labels import REGION_COLOURS
from brats_cli.core.view.index import summarise, write_index
from brats_cli.core.view.page import write_page
from brats_cli.core.view.scene import Wanted, load_scene

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs Chromium (apt-get install chromium)"),
]

WIDTH, HEIGHT = 1000, 700
STAGE = WIDTH - 330, HEIGHT - 49  # beside the panel and below the header


@pytest.fixture(scope="module")
def browser():
    with Browser() as running:
        yield running


def scene_of(folder, **wanted):
    case = case_at(folder)
    return load_scene(case, Wanted(**({"reference": case.label} | wanted)))


def write_view(scene, path, **how):
    write_page(scene, path, summary={}, **how)
    return path


@pytest.fixture(scope="module")
def page_file(case_folder, prediction, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    maps = np.zeros((*SHAPE, 3))
    maps[(*TUMOUR, 0)] = 100
    uncertainty = write(folder / "u.nii.gz", maps, dtype=np.uint8)
    scene = scene_of(case_folder, prediction=prediction, uncertainty=uncertainty)
    return write_view(scene, folder / "view.html")


@pytest.fixture(scope="module")
def page(browser, page_file):
    opened = browser.open(page_file, WIDTH, HEIGHT)
    assert opened.ready() == "ready"
    opened.wait("document.documentElement.dataset.sequences === 'all'")
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def as_at_first(request):
    """Each test leaves the page as it was opened."""
    yield
    if "page" in request.fixturenames:
        page = request.getfixturevalue("page")
        page.run(
            "(() => { for (const box of document.querySelectorAll('aside input[type=checkbox]'))"
            "   if (box.checked !== !box.classList.contains('heat')) box.click();"
            " document.querySelector('#sequences [value=t1ce]').click();"
            " document.querySelector('#views button').click(); })()"
        )
        page.key("Home")
        page.settle()


def near(pixels, colour, tolerance=45):
    target = np.array(list(bytes.fromhex(colour.lstrip("#"))))
    return np.abs(pixels.astype(int) - target).max(axis=-1) <= tolerance


def axial(page):
    """The axial slice alone, on all of the stage: its pixels."""
    page.run("document.querySelectorAll('#views button')[1].click()")
    return page.pixels()[HEIGHT - STAGE[1] :, : STAGE[0]]


def brain_box(pixels):
    """Where the scan is: the rows and columns that are grey along most of the brain."""
    grey = (pixels.max(axis=-1) > 25) & (np.ptp(pixels.astype(int), axis=-1) < 60)
    rows = np.flatnonzero(grey.sum(axis=1) > 0.25 * pixels.shape[1])
    columns = np.flatnonzero(grey.sum(axis=0) > 0.25 * pixels.shape[0])
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def seen_at(pixels, box, left, front):
    """The pixel of a place in an axial slice, in the file's voxels.

    The file's axes run to the left and to the back, as those of the picture do.
    """
    top, bottom, first, last = box
    x = (left + 0.5 - BRAIN[0].start) / (BRAIN[0].stop - BRAIN[0].start)
    y = (front + 0.5 - BRAIN[1].start) / (BRAIN[1].stop - BRAIN[1].start)
    return pixels[round(top + y * (bottom - top)), round(first + x * (last - first))].astype(int)


def show_filled(page):
    """The prediction's regions filled, with nothing of the scan shining through."""
    page.run(
        "(() => { const fill = document.getElementById('fill-0');"
        " fill.value = 1; fill.dispatchEvent(new Event('input')); })()"
    )


def hide_drawing(page):
    page.run("document.getElementById('drawing').style.visibility = 'hidden'")


def test_the_page_is_ready_quiet_and_alone(page):
    # SwiftShader remarks on its own speed; that is not the page's.
    problems = [
        each for each in page.problems() if each.get("entry", {}).get("source") != "rendering"
    ]
    assert problems == []
    assert page.requests() == []


def test_the_name_and_the_numbers_are_shown(page):
    assert page.run("document.title") == "BraTS2021_00001"
    assert page.run("document.querySelector('h1').textContent") == "BraTS2021_00001"
    table = page.run("document.querySelector('#regions table').innerText")
    assert re.search(r"WT\s+1\.9\s+1\.7\s+0\.960", table)  # 1,872 and 1,728 mm3


def test_switching_a_sequence_changes_the_scan(page):
    box = brain_box(axial(page))
    before = axial(page)
    page.run("document.querySelector('#sequences [value=t2]').click()")
    page.wait("bratsView.state.sequence === 't2' && bratsView.niivue.volumes[0].cal_max > 400")
    after = axial(page)
    # Left and at the back, T2 has a mark that the other sequences do not have.
    middle = [(side.start + side.stop) / 2 for side in MARK[:2]]
    assert seen_at(after, box, *middle).min() > 200
    assert np.abs(before.astype(int) - after).mean() > 5


def test_left_is_left_and_front_is_above(page):
    box = brain_box(axial(page))
    page.key("3")
    page.wait("bratsView.niivue.volumes[0].cal_max > 400")
    pixels = axial(page)
    bright = np.argwhere(pixels.min(axis=-1) > 200)
    middle_y, middle_x = (box[0] + box[1]) / 2, (box[2] + box[3]) / 2
    inside = bright[(bright[:, 0] > box[0] + 20) & (bright[:, 0] < box[1] - 12)]
    inside = inside[(inside[:, 1] > box[2] + 12) & (inside[:, 1] < box[3] - 12)]
    mark = np.median(inside, axis=0)
    assert mark[1] > middle_x  # the patient's left
    assert mark[0] > middle_y  # posterior


def test_the_overlay_lies_on_the_tumour(page):
    box = brain_box(axial(page))
    show_filled(page)
    pixels = axial(page)
    # A voxel of each region in this slice, away from crosshair and contours.
    assert near(seen_at(pixels, box, ENHANCING[0].start + 0.5, ENHANCING[1].start + 0.5),
                REGION_COLOURS["ET"])  # fmt: skip
    assert near(seen_at(pixels, box, CORE[0].start + 1, CORE[1].stop - 1.5), REGION_COLOURS["TC"])
    assert near(seen_at(pixels, box, TUMOUR[0].start + 1, TUMOUR[1].stop - 1.5),
                REGION_COLOURS["WT"])  # fmt: skip
    # And the colours are nowhere else: all that is red, amber or blue is within the tumour.
    high, wide = pixels.shape[:2]
    for region, (side_x, side_y, _) in (("WT", TUMOUR), ("TC", CORE), ("ET", ENHANCING)):
        rows, columns = np.nonzero(near(pixels, REGION_COLOURS[region]))
        size_x, size_y = (box[3] - box[2]) / 40, (box[1] - box[0]) / 44  # pixels of a voxel
        assert columns.min() > box[2] + (side_x.start - 4 - 1) * size_x
        assert columns.max() < box[2] + (side_x.stop - 4 + 2.5) * size_x  # predicted 1 too large
        assert rows.min() > box[0] + (side_y.start - 6 - 1.5) * size_y
        assert rows.max() < box[0] + (side_y.stop - 6 + 1.5) * size_y
    assert (high, wide) == STAGE[::-1]


def test_switching_a_region_changes_the_overlay(page):
    show_filled(page)
    before = near(axial(page), REGION_COLOURS["ET"]).sum()
    page.key("e")
    without = near(axial(page), REGION_COLOURS["ET"]).sum()
    assert before > 500
    assert without < before / 50
    assert page.run("document.getElementById('region-ET').checked") is False
    page.run("document.getElementById('region-ET').click()")
    assert near(axial(page), REGION_COLOURS["ET"]).sum() == before


def test_a_region_takes_its_surface_along(page):
    page.run("document.querySelectorAll('#views button')[4].click()")
    before = page.pixels()[:, : STAGE[0]].astype(int)
    for key in "wte":
        page.key(key)
    without = page.pixels()[:, : STAGE[0]].astype(int)
    coloured = [(np.ptp(pixels, axis=-1) > 40).sum() for pixels in (before, without)]
    assert coloured[0] > coloured[1] + 300
    assert page.run("bratsView.data.meshes.filter((each) => each.drawn.visible).length") == 0


def test_the_reference_appears_alone_without_the_prediction(page):
    page.key("p")
    shown = "bratsView.data.meshes.filter((each) => each.drawn.visible).map((m) => m.segmentation)"
    assert page.run(shown) == [1, 1, 1]
    page.key("p")
    assert page.run(shown) == [0, 0, 0]


def test_keys_choose_sequences_views_and_slices(page):
    page.key("1")
    page.wait("bratsView.state.sequence === 't1'")
    page.key("v")
    assert page.run("bratsView.state.layout") == 1
    before = page.run("document.querySelector('#place').innerText")
    page.key("ArrowUp")
    after = page.run("document.querySelector('#place').innerText")
    height = [int(re.search(r"voxel\s+\d+\s+\d+\s+(\d+)", text)[1]) for text in (before, after)]
    assert height[1] == height[0] + 1
    page.key("Home")
    assert page.run("document.querySelector('#place').innerText") == before


def test_the_crosshair_starts_in_the_tumour_and_says_where(page):
    place = page.run("document.querySelector('#place').innerText")
    voxel = [int(text) for text in re.search(r"voxel\s+(\d+)\s+(\d+)\s+(\d+)", place).groups()]
    for index, side in zip(voxel, ENHANCING, strict=True):
        assert side.start <= index < side.stop
    x, y, z = voxel
    signs = re.search(r"mm \(R, A, S\)\s+(\S+)\s+(\S+)\s+(\S+)", place).groups()
    assert [int(text.replace("\u2212", "-")) for text in signs] == [-x, 239 - y, z]
    assert re.search(r"prediction\s+WT, TC, ET", place)
    scans = images()
    for name, title in (("t1", "T1"), ("flair", "FLAIR")):
        shown = float(re.search(rf"^{title}\s+([\d.]+)$", place, re.MULTILINE)[1])
        assert shown == pytest.approx(scans[name][x, y, z], abs=3)


def test_a_click_moves_the_crosshair(page):
    box = brain_box(axial(page))
    # A quarter from the brain's right side, and a quarter from its front.
    x = box[2] + (box[3] - box[2]) / 4
    y = HEIGHT - STAGE[1] + box[0] + (box[1] - box[0]) / 4
    page.click(x, y)
    place = page.run("document.querySelector('#place').innerText")
    voxel = [int(text) for text in re.search(r"voxel\s+(\d+)\s+(\d+)", place).groups()]
    assert voxel == [pytest.approx(4 + 10, abs=1), pytest.approx(6 + 11, abs=1)]


def test_window_and_level(page):
    box = brain_box(axial(page))
    before = axial(page)
    page.run(
        "(() => { const level = document.getElementById('level'); level.value = level.min;"
        " level.dispatchEvent(new Event('input')); })()"
    )
    bright = axial(page)
    assert seen_at(bright, box, 10, 45).min() == 255
    page.key("r")
    assert np.abs(axial(page).astype(int) - before).mean() < 0.5


def test_zooming_keeps_the_crosshair_in_the_middle(page):
    show_filled(page)
    before = near(axial(page), REGION_COLOURS["ET"]).sum()
    for _ in range(4):
        page.key("+")
    page.key("c")  # the crosshair itself
    pixels = axial(page)
    # The enhancing tumour is 4 voxels wide: half of them to each side.
    middle = pixels[STAGE[1] // 2 - 6 : STAGE[1] // 2 + 6, STAGE[0] // 2 - 6 : STAGE[0] // 2 + 6]
    assert near(middle, REGION_COLOURS["ET"]).all()
    assert near(pixels, REGION_COLOURS["ET"]).sum() > 3 * before  # 1.25^8 is 6
    page.key("c")


def test_the_right_button_changes_the_window(page):
    page.run("document.querySelectorAll('#views button')[1].click()")
    before = page.run(
        "document.getElementById('level').value + document.getElementById('width').value"
    )
    page.drag((300, 400), (360, 440), button="right")
    assert page.run(
        "document.getElementById('level').value + document.getElementById('width').value"
    ) != before  # fmt: skip
    page.key("r")


def test_the_wheel_goes_through_the_slices(page):
    page.run("document.querySelectorAll('#views button')[1].click()")
    before = page.run("document.querySelector('#place').innerText")
    page.send("Input.dispatchMouseEvent", type="mouseWheel", x=300, y=400, deltaX=0, deltaY=120)
    page.settle()
    after = page.run("document.querySelector('#place').innerText")
    height = [int(re.search(r"voxel\s+\d+\s+\d+\s+(\d+)", text)[1]) for text in (before, after)]
    assert abs(height[1] - height[0]) == 1


def test_a_touch_moves_the_crosshair(page):
    page.run("document.querySelectorAll('#views button')[1].click()")
    before = page.run("document.querySelector('#place').innerText")
    page.send("Emulation.setTouchEmulationEnabled", enabled=True)
    page.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": 250, "y": 300}])
    page.send("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": 260, "y": 310}])
    page.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.send("Emulation.setTouchEmulationEnabled", enabled=False)
    page.settle()
    assert page.run("document.querySelector('#place').innerText") != before


def test_uncertainty_is_laid_over(page):
    box = brain_box(axial(page))
    hide = "document.getElementById('drawing').style.visibility = '{}'"
    page.run(hide.format("hidden"))
    before = axial(page)
    page.key("u")
    page.wait("bratsView.state.heat !== null && bratsView.niivue.volumes.length === 2")
    after = axial(page)
    page.run(hide.format("visible"))
    middle = [(side.start + side.stop) / 2 for side in TUMOUR[:2]]
    assert np.abs(seen_at(after, box, *middle) - seen_at(before, box, *middle)).max() > 40
    assert np.abs(seen_at(after, box, 10, 45) - seen_at(before, box, 10, 45)).max() < 12


def test_opacity_zero_shows_the_scan(page):
    page.run(
        "(() => { for (const id of ['segmentation-0', 'segmentation-1'])"
        " document.getElementById(id).click(); })()"
    )
    pixels = axial(page)
    for colour in REGION_COLOURS.values():
        assert near(pixels, colour, 25).sum() == 0


def test_an_oblique_scan(browser, tmp_path):
    angle = math.radians(25)
    turn = np.array([[math.cos(angle), 0, math.sin(angle), -40], [0, 1, 0, 10],
                     [-math.sin(angle), 0, math.cos(angle), -30], [0, 0, 0, 1]])  # fmt: skip
    scene = scene_of(write_case(tmp_path, affine=turn))
    page = browser.open(write_view(scene, tmp_path / "view.html"), WIDTH, HEIGHT)
    assert page.ready() == "ready"
    assert "25 degrees" in page.run("document.querySelector('#notes').innerText")
    place = page.run("document.querySelector('#place').innerText")
    voxel = [int(text) for text in re.search(r"voxel\s+(\d+)\s+(\d+)\s+(\d+)", place).groups()]
    signs = re.search(r"mm \(R, A, S\)\s+(\S+)\s+(\S+)\s+(\S+)", place).groups()
    expected = (turn @ [*voxel, 1])[:3]
    assert [int(text.replace("\u2212", "-")) for text in signs] == pytest.approx(expected, abs=0.51)
    show_filled(page)
    assert near(axial(page), REGION_COLOURS["ET"]).sum() > 300
    page.close()


def test_voxels_that_are_not_cubes(browser, tmp_path):
    scene = scene_of(write_case(tmp_path, affine=np.diag([1.0, 1, 3, 1])))
    page = browser.open(write_view(scene, tmp_path / "view.html"), WIDTH, HEIGHT)
    assert page.ready() == "ready"
    page.run("document.querySelectorAll('#views button')[2].click()")  # coronal
    page.run("document.getElementById('drawing').style.visibility = 'hidden'")
    pixels = page.pixels()[HEIGHT - STAGE[1] :, : STAGE[0]]
    grey = pixels.max(axis=-1) > 25
    high, wide = (np.count_nonzero(grey.sum(axis=axis) > 50) for axis in (1, 0))
    assert high / wide == pytest.approx(30 * 3 / 40, rel=0.05)
    page.close()


def test_without_segmentation_and_sequences(browser, tmp_path):
    scans = images()
    del scans["t1ce"]
    scans["flair"][:] = 0
    scene = scene_of(write_case(tmp_path, scans, labels=None), reference=None)
    page = browser.open(write_view(scene, tmp_path / "view.html"), WIDTH, HEIGHT)
    assert page.ready() == "ready"
    assert page.run("document.querySelector('#sequences [value=t1ce]').disabled") is True
    assert "No segmentation" in page.run("document.querySelector('#regions').innerText")
    page.key("2")  # does nothing
    page.key("e")
    page.key("4")
    page.wait("bratsView.state.sequence === 'flair'")
    assert page.run("document.documentElement.dataset.state") == "ready"
    page.close()


@pytest.mark.parametrize(
    "case",
    [
        "<img src=x onerror=document.title='hacked'>",
        "</script><script>document.title='hacked'</script>",
    ],
)
def test_html_in_a_case_id_does_nothing(browser, case_folder, tmp_path, case):
    scene = replace(scene_of(case_folder), case=case)
    page = browser.open(write_view(scene, tmp_path / "view.html"), WIDTH, HEIGHT)
    assert page.ready() == "ready"
    assert page.run("document.title") == case
    assert page.run("document.querySelector('h1').textContent") == case
    assert page.run("document.images.length") == 0
    page.close()


def test_a_browser_without_webgl_2_is_told(browser, page_file):
    no_webgl = (
        "const real = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
        " return kind === 'webgl2' ? null : real.call(this, kind, ...rest); };"
    )
    page = browser.open(page_file, WIDTH, HEIGHT, before=no_webgl)
    assert page.ready() == "error"
    assert "WebGL 2" in page.run("document.getElementById('message').innerText")
    page.close()


def test_a_page_that_was_damaged_says_so(browser, page_file, tmp_path):
    text = page_file.read_text(encoding="utf-8")
    damaged = re.sub(r'(id="blob-masks-0">)[^<]{20}', r"\1AAAAAAAAAAAAAAAAAAAA", text)
    assert damaged != text
    (tmp_path / "damaged.html").write_text(damaged, encoding="utf-8")
    page = browser.open(tmp_path / "damaged.html", WIDTH, HEIGHT)
    assert page.ready() == "error"
    assert "failed" in page.run("document.getElementById('message').innerText")
    page.close()


def test_on_a_narrow_screen_the_panel_is_below(browser, page_file):
    page = browser.open(page_file, 400, 800)
    assert page.ready() == "ready"
    panel, stage = (
        page.run(f"document.querySelector('{name}').getBoundingClientRect().toJSON()")
        for name in ("aside", "#stage")
    )
    assert panel["top"] >= stage["bottom"]
    assert page.run("document.documentElement.scrollWidth") <= 400
    page.close()


def test_the_index_is_sorted_by_the_column_chosen(browser, case_folder, tmp_path):
    scene = scene_of(case_folder)
    for case, dice in (("case10", 0.5), ("case2", 0.9), ("<b>case3</b>", None)):
        row = {
            "case": case, "file": "x", "review": None, "notes": (),
            "volumes_mm3": {"prediction": {"WT": 1000}},
            "scores": {"WT": {"dice": dice, "hausdorff95_mm": None}},
        }  # fmt: skip
        name = re.sub(r"\W", "", case)
        write_page(scene, tmp_path / f"{name}.html", summary=summarise(row, scene))
    write_index(tmp_path / "index.html")
    page = browser.open(tmp_path / "index.html", WIDTH, HEIGHT)
    cases = "[...document.querySelectorAll('tbody th a')].map((each) => each.textContent)"
    page.wait("document.readyState === 'complete'")
    choose = (
        "[...document.querySelectorAll('thead button')].find((b) => b.textContent === '{}').click()"
    )
    page.run(choose.format("case"))
    assert page.run(cases) == ["<b>case3</b>", "case2", "case10"]
    page.run(choose.format("WT Dice"))
    assert page.run(cases) == ["case2", "case10", "<b>case3</b>"]
    page.run(choose.format("WT Dice"))
    assert page.run(cases) == ["case10", "case2", "<b>case3</b>"]  # without a value: last
    assert page.problems() == []
    assert page.requests() == []
    page.close()
