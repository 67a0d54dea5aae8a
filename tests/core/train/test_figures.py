import os

import numpy as np
import pytest
from helpers import loaded_by
from PIL import Image

from brats_cli.core.data.labels import REGION_COLOURS, REGIONS
from brats_cli.core.errors import OutputError
from brats_cli.core.train.figures import Preview, draw_curves

INSIDE = slice(45, 285), slice(460, 785)
"""The panel of the Dice without its letters, whose edges are of every grey."""


def row(epoch, loss=0.5, dice=None, rate=1e-3):
    """A row of log.csv; `dice` is that of WT, TC and ET."""
    scores = dict(zip(("WT", "TC", "ET"), dice, strict=True)) if dice else {}
    mean = str(sum(dice) / 3) if dice else ""
    return {
        "epoch": str(epoch),
        "loss": str(loss),
        **{f"val_dice_{name}": str(scores.get(name, "")) for name in ("WT", "TC", "ET")},
        "val_dice_mean": mean,
        "learning_rate": str(rate),
    }


def picture(rows, tmp_path):
    draw_curves(rows, tmp_path / "curves.png")
    return np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)


def columns_of(pixels, colour):
    """Horizontal extent of what is drawn in a colour, as it is written: #RRGGBB."""
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    found = np.flatnonzero((np.abs(pixels - wanted).max(axis=2) < 3).any(axis=0))
    return (int(found.min()), int(found.max())) if len(found) else None


# --- curves ------------------------------------------------------------------------------------


def test_curves_are_three_panels_with_a_line_for_each_region(tmp_path):
    rows = [row(n, 1 / n, (0.3 + n / 10, 0.2 + n / 10, n / 10)) for n in range(1, 6)]
    pixels = picture(rows, tmp_path)
    assert pixels.shape == (380, 1200, 3)
    for colour in (REGION_COLOURS[region] for region in REGIONS):
        first, last = columns_of(pixels, colour)
        assert 400 < first < last < 800
    # Loss and learning rate, in the first and the last third.
    first, last = columns_of(pixels, "#333333")
    assert (first < 100, last > 1100) == (True, True)


def test_the_best_epoch_is_marked_where_it_is(tmp_path):
    # Of 1 to 5 the middle one has the best mean: the line is in the middle of the curves.
    dice = [0.2, 0.4, 0.9, 0.5, 0.5]
    pixels = picture([row(n, dice=[d] * 3) for n, d in enumerate(dice, 1)], tmp_path)[INSIDE]
    left, right = columns_of(pixels, REGION_COLOURS["ET"])  # on top of the others, which are equal
    first, last = columns_of(pixels, "#999999")
    assert last - first <= 2
    assert first == pytest.approx((left + right) / 2, abs=2)


@pytest.mark.parametrize("count", [1, 300])
def test_any_number_of_epochs_can_be_drawn(tmp_path, count):
    rows = [row(n, dice=[n / 400] * 3, rate=0.1 / n) for n in range(1, count + 1)]
    assert picture(rows, tmp_path).min() < 100


def test_epochs_without_validation_have_no_dice_and_no_best(tmp_path):
    pixels = picture([row(1), row(2)], tmp_path)
    assert columns_of(pixels[:300], REGION_COLOURS["WT"]) is None
    assert columns_of(pixels[INSIDE], "#999999") is None
    # With some that have, the line goes through: epochs 1 and 3 of 3.
    pixels = picture([row(1, dice=[0.5] * 3), row(2), row(3, dice=[0.5] * 3)], tmp_path)
    first, last = columns_of(pixels[:300], REGION_COLOURS["ET"])
    assert last - first > 200


def test_a_log_of_older_columns_is_drawn_as_far_as_it_goes(tmp_path):
    older = picture([{"epoch": "1", "loss": "0.5", "learning_rate": "0"}], tmp_path)
    assert (older == picture([row(1, loss=0.5, rate=0)], tmp_path)).all()


def test_curves_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*file/curves\.png"):
        draw_curves([row(1)], tmp_path / "file" / "curves.png")


def test_nothing_is_left_beside_the_curves(tmp_path):
    picture([row(1)], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


# --- previews ----------------------------------------------------------------------------------


def volumes():
    """A case of 6 x 8 x 5 voxels with most tumour at height 3, and nothing found."""
    truth, found = np.zeros((2, 3, 6, 8, 5), dtype=bool)
    truth[0, 1, 2, 1] = True
    truth[0, 4:6, 5:8, 3] = True
    return np.arange(6 * 8 * 5, dtype=np.float16).reshape(6, 8, 5), truth, found


def test_a_preview_is_the_slice_with_most_tumour_as_one_looks_at_it():
    image, truth, found = volumes()
    preview = Preview.of("case", image, truth, found)
    # Rows from front (largest y) to back, columns from the patient's right (largest x) to left.
    assert preview.image.shape == (8, 6)
    assert preview.image[0, 0] == image[5, 7, 3]
    assert preview.image[7, 0] == image[5, 0, 3]
    assert preview.image[0, 5] == image[0, 7, 3]
    # x 4 and 5, y 5 to 7: front and right are above and left.
    expected = np.zeros((8, 6), dtype=bool)
    expected[:3, :2] = True
    np.testing.assert_array_equal(preview.truth[0], expected)
    assert not preview.found.any()


def test_a_preview_without_tumour_is_the_middle_slice():
    image, truth, found = volumes()
    preview = Preview.of("case", image, np.zeros_like(truth), found)
    assert preview.image[0, 0] == image[5, 7, 2]


def test_a_drawn_preview_has_a_contour_of_each_where_it_is():
    truth, found = np.zeros((2, 3, 40, 40), dtype=bool)
    truth[0, 5:15, 5:15] = True  # WT by the expert, above on the left
    found[1, 25:35, 25:35] = True  # TC by the network, below on the right
    pixels = Preview("case", np.ones((40, 40), np.float32), truth, found).draw()
    assert pixels.dtype == np.uint8
    high, wide, _ = pixels.shape
    shown = pixels[: high - 45].astype(int)  # the legend below has both colours
    first, last = columns_of(shown, "#56B4E9")
    assert 0 < first < last < wide / 3 / 2
    first, last = columns_of(shown, "#FF7F0E")
    assert wide / 2 < first < last < wide * 2 / 3


@pytest.mark.parametrize("case_id", ["A$x^$", os.fsdecode(b"caf\xe9"), "\u75c5\u4eba"])
def test_any_case_id_can_be_drawn(case_id):
    masks = np.zeros((3, 8, 9), dtype=bool)
    plain, odd = (
        Preview(name, np.ones((8, 9), np.float32), masks, masks).draw() for name in ("", case_id)
    )
    assert (plain != odd).any()


@pytest.mark.parametrize("fill", [False, True], ids=["empty", "full"])
def test_masks_without_an_edge_and_an_empty_image_can_be_drawn(fill):
    masks = np.full((3, 8, 9), fill)
    assert Preview("case", np.zeros((8, 9), np.float32), masks, masks).draw().shape[2] == 3


@pytest.mark.slow
def test_matplotlib_waits_for_the_first_picture():
    code = "import brats_cli.core.predict.many, brats_cli.core.train.run_record"
    assert loaded_by(code, {"matplotlib", "tensorboard"}) == set()
