import nibabel as nib
import numpy as np
import pytest
from helpers import REAL, needs_real, volume

from brats_cli.core.images.background import odd_background, on_zero, signs_of_skull

SHAPE = (40, 44, 36)


def ellipsoid(share):
    """Voxels within `share` of the way from the centre to each face, (40, 44, 36)."""
    half = (np.array(SHAPE) - 1) / 2
    steps = (np.indices(SHAPE) - half[:, None, None, None]) / half[:, None, None, None]
    return (steps**2).sum(axis=0) < share**2


def brain(value=500, share=0.84):
    """A brain of a value, and some noise."""
    noise = np.random.default_rng(0).normal(0, 20, SHAPE)
    return np.where(ellipsoid(share), value + noise, 0)


@pytest.mark.parametrize("background", [-1000, -1024, 1, 32767, -0.5])
def test_a_background_is_the_value_of_corners_and_faces(background):
    image = np.where(ellipsoid(0.84), brain(), background)
    assert odd_background(image) == background
    assert np.array_equal(on_zero(volume(image)).data, np.where(ellipsoid(0.84), image, 0))


@pytest.mark.parametrize(("corners", "found"), [(6, -1), (5, None)])
def test_a_background_is_the_value_of_six_corners_at_least(corners, found):
    image = np.where(ellipsoid(0.84), brain(), -1)
    for place in [(0, 0, 0), (0, 0, -1), (0, -1, 0)][: 8 - corners]:
        image[place] = 9
    assert odd_background(image) == found


@pytest.mark.parametrize(("rows", "found"), [(12, -1), (13, None)])
def test_a_background_takes_half_of_the_faces(rows, found):
    # Of 2 * 10 * 10 + 4 * 10 * 20 voxels on the faces, each row along z takes 40: 520 or 480 stay.
    image = np.full((10, 10, 20), -1.0)
    image[:, :, 3 : 3 + rows] = 5
    assert odd_background(image) == found


@pytest.mark.parametrize(
    "image",
    [
        brain(),  # 0 is what it should be
        np.full(SHAPE, 7),  # no head
        np.random.default_rng(0).normal(0, 1, SHAPE),  # noise
        np.where(ellipsoid(0.84), 1, np.nan),  # NaN is another finding
    ],
)
def test_other_images_have_no_odd_background(image):
    assert odd_background(image) is None
    assert on_zero(volume(image)).data is not None


def test_a_brain_shows_no_skull():
    assert signs_of_skull(brain(), 1, is_t1=True) == ""
    assert signs_of_skull(np.zeros(SHAPE), 1, is_t1=True) == ""


@pytest.mark.parametrize("scalp", [700, 900, 1500])
def test_a_shell_brighter_than_the_brain_is_a_scalp_in_t1(scalp):
    head = np.where(ellipsoid(0.84), brain(), np.where(ellipsoid(0.96), scalp, 0))
    assert "as bright outside as inside, like a scalp" in signs_of_skull(head, 1, is_t1=True)
    assert signs_of_skull(head, 1, is_t1=False) == ""  # CSF is as bright in T2


def test_a_head_has_more_litres_than_a_brain():
    # 4/3 pi * 19.5 * 21.5 * 17.5 * 0.84^3 are 18,216 voxels: of 64 mm3 1.2, of 216 mm3 3.9 litres.
    assert signs_of_skull(brain(), 64, is_t1=True) == ""
    assert signs_of_skull(brain(), 125, is_t1=True) == ""  # 2.28
    assert signs_of_skull(brain(), 130, is_t1=True).startswith("2.4 litres")
    assert signs_of_skull(brain(), 216, is_t1=True) == (
        "3.9 litres are not 0, and a brain has 1 to 2"
    )


def test_a_head_fills_more_of_a_scan_than_a_brain():
    dim_shell = np.pad(brain(share=1.0), 2)  # 52 % of its box, as a brain does
    assert signs_of_skull(dim_shell, 1, is_t1=False) == ""
    block = np.zeros(SHAPE)
    block[4:-4, 4:-4, 4:-4] = 5  # 32 * 36 * 28 of 40 * 44 * 36 voxels
    assert signs_of_skull(block, 1, is_t1=False) == "51 % of all voxels are not 0"


def test_noise_everywhere_is_no_skull_stripped_scan():
    noise = np.random.default_rng(0).normal(50, 5, SHAPE)
    assert signs_of_skull(noise, 1, is_t1=True) == "almost no voxel is 0"


@pytest.mark.real
@needs_real
def test_no_real_case_shows_a_skull_or_an_odd_background():
    images = sorted(REAL.glob("cases/*/*[_-]t1*.nii.gz"))
    assert len(images) == 24
    for path in images:
        image = np.asarray(nib.load(path).dataobj)
        assert odd_background(image) is None
        assert signs_of_skull(image, 1, is_t1=True) == ""
