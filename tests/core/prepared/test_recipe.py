import numpy as np
import pytest
from helpers import volume

from brats_cli.core.errors import CheckpointError, UnreadableFileError
from brats_cli.core.prepared.preparation import PREPARATION, to_native
from brats_cli.core.prepared.recipe import RECIPE, Recipe, prepare_by

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def image(values, shape=(4, 4, 4), affine=LPS):
    """An image that is 0 but for some voxels, by their place."""
    data = np.zeros(shape, np.float32)
    for place, value in values.items():
        data[place] = value
    return volume(data, affine)


def test_each_image_is_normalised_by_its_own_voxels_that_are_not_0():
    # 2, 4 and 6: mean 4, population variance 8/3. The 0 between them stays 0.
    first = image({(0, 0, 0): 2, (1, 0, 0): 4, (2, 0, 0): 6})
    second = image({(3, 3, 3): 5, (3, 3, 2): 7})  # mean 6, standard deviation 1
    found = Recipe(over="nonzero").prepare([first, second]).images
    spread = np.sqrt(8 / 3)
    np.testing.assert_allclose(found[0, :3, 0, 0], [-2 / spread, 0, 2 / spread], rtol=1e-6)
    assert found[1, 3, 3, 3] == -1
    assert found[1, 3, 3, 2] == 1
    assert np.count_nonzero(found) == 4
    assert found.dtype == np.float32


def test_a_mask_has_its_holes_filled_and_what_is_0_inside_is_normalised_too():
    shell = np.zeros((5, 5, 5), np.float32)
    shell[1:4, 1:4, 1:4] = 2
    shell[2, 2, 2] = 0  # a ventricle: 26 voxels of 2 and one of 0
    found = Recipe(over="mask").prepare([volume(shell, LPS)]).images[0]
    mean = 52 / 27
    spread = np.sqrt(4 * 26 / 27 - mean**2)
    assert found[2, 2, 2] == pytest.approx(-mean / spread, rel=1e-6)
    assert found[1, 1, 1] == pytest.approx((2 - mean) / spread, rel=1e-6)
    assert found[0, 0, 0] == 0


def test_all_voxels_may_be_normalised_together():
    found = Recipe(over="all").prepare([image({(0, 0, 0): 64})]).images[0]
    # One voxel of 64 among 64: mean 1, variance 64 - 1.
    assert found[0, 0, 0] == pytest.approx(63 / np.sqrt(63), rel=1e-6)
    assert found[1, 1, 1] == pytest.approx(-1 / np.sqrt(63), rel=1e-6)


def test_a_limit_bends_scores():
    first = image({(0, 0, 0): 2, (1, 0, 0): 4})  # scores -1 and 1
    found = Recipe(limit=3.0).prepare([first]).images[0]
    assert found[1, 0, 0] == pytest.approx(3 * np.tanh(1 / 3), rel=1e-6)


@pytest.mark.parametrize(("crop", "lowest"), [("nonzero", 1), ("positive", 2), ("none", 0)])
def test_the_box_is_that_of_voxels_that_are_not_0_or_above_it(crop, lowest):
    data = np.zeros((8, 8, 8), np.float32)
    data[1, 4, 4], data[2, 4, 4], data[5, 4, 4] = -1, 2, 3
    found = Recipe(crop=crop).prepare([volume(data, LPS)])
    last = 7 if crop == "none" else 5
    assert found.images.shape[1] == last - lowest + 1
    # Voxel 0 of the box is voxel `lowest` of the image, at -lowest mm.
    assert found.affine[0, 3] == -lowest


def test_a_margin_ends_with_the_image():
    data = np.zeros((8, 8, 8), np.float32)
    data[1:3, 4, 4] = (1, 2)
    assert Recipe(crop="nonzero", margin=2).prepare([volume(data, LPS)]).images.shape == (
        1, 5, 5, 5,
    )  # fmt: skip


def test_axes_run_as_the_recipe_says_and_results_come_back():
    # Of an image in RAS, LPS mirrors x and y, and SPL has z, y and x in turn.
    data = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)
    case = volume(data, np.eye(4))
    lps = Recipe(orientation="LPS", over="all").prepare([case])
    spl = Recipe(orientation="SPL", over="all").prepare([case])
    raw = (data - data.mean()) / data.std()
    np.testing.assert_allclose(lps.images[0], raw[::-1, ::-1], rtol=1e-5)
    np.testing.assert_allclose(spl.images[0], raw[::-1, ::-1].transpose(2, 1, 0), rtol=1e-5)
    for each in (lps, spl):
        np.testing.assert_allclose(
            to_native(each.images[0], each.affine, case.grid), raw, rtol=1e-5
        )


def test_voxels_of_another_size_are_resampled_between_the_same_edges():
    data = np.ones((4, 4, 2), np.float32)
    data[2:] = 3
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    recipe = Recipe(orientation="RAS", spacing_mm=(1.0, 1.0, 1.0))
    found = recipe.prepare([volume(data, affine)])
    assert found.images.shape == (1, 4, 4, 4)
    # Slices of 2 mm, centred on 0 and 2, reach from -1 to 3; those of 1 mm begin at -0.5.
    assert found.affine[2, 3] == pytest.approx(-0.5)
    assert found.affine[2, 2] == pytest.approx(1)
    same = Recipe(orientation="RAS", spacing_mm=(1.2, 1.0, 1.9), tolerance=0.25)
    assert same.prepare([volume(data, affine)]).images.shape == (1, 4, 4, 2)


def test_without_a_recipe_it_is_brats_own():
    data = np.random.default_rng(0).uniform(100, 200, (8, 8, 8)).astype(np.float32)
    own = prepare_by(None, [volume(data, np.eye(4))])
    assert own.images.min() < 0 < own.images.max()
    assert RECIPE != PREPARATION


def test_there_and_back():
    recipe = Recipe(orientation="SPL", crop="nonzero", over="mask", spacing_mm=(1.0, 1.0, 1.5))
    content = recipe.content()
    assert Recipe.of(content) == recipe
    assert Recipe.of({**content, "spacing_mm": [1.0, 1.0, 1.5]}) == recipe  # as YAML has it


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("orientation", "LLS"),
        ("orientation", "XYZ"),
        ("orientation", "LP"),
        ("orientation", 3),
        ("crop", "brain"),
        ("over", ["nonzero"]),
        ("margin", -1),
        ("margin", 1.5),
        ("limit", 0),
        ("spacing_mm", [1.0, 1.0]),
        ("spacing_mm", [1.0, 1.0, 0.0]),
        ("spacing_mm", [1.0, 1.0, 0.3]),  # a head of more than a thousand million voxels
        ("spacing_mm", ["1", "1", "1"]),
        ("tolerance", "much"),
        ("shell", "rm"),
    ],
)
def test_other_values_are_refused(name, value):
    with pytest.raises(CheckpointError, match=f"cannot have {name}") as caught:
        Recipe.of({**Recipe().content(), name: value})
    assert caught.value.hint.startswith("import the network again")


def test_an_image_of_zeros_is_refused_as_by_default():
    with pytest.raises(UnreadableFileError, match="every voxel is 0"):
        Recipe().prepare([image({})])
