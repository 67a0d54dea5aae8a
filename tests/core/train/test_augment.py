import itertools
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from brats_cli.core.train.augment import (
    Resampling,
    augment,
    blur,
    lower_resolution,
    rotation_matrix,
)
from brats_cli.core.train.config import AugmentConfig

STILL = {"rotation_degrees": 0, "scaling_range": 0, "elastic_mm": 0}
"""Of a spatial change, nothing but what is given besides."""
INTENSITY = ("noise", "blur", "brightness", "contrast", "low_resolution", "gamma")
OFF = dict.fromkeys(("flip", "spatial", *INTENSITY, "modality_dropout"), 0)
EVERYTHING = dict.fromkeys(("spatial", *INTENSITY), 1)


def config(**settings):
    """Nothing is varied but what is given."""
    return AugmentConfig(**OFF | settings)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(*shape, size=4, channels=2, seed=0):
    """Images with signal on either side of 0, and labels 0 to 3."""
    shape = shape or (6, 6, 6)
    random = generator(seed)
    images = torch.randn(size, channels, *shape, generator=random)
    labels = torch.randint(0, 4, (size, *shape), generator=random, dtype=torch.uint8)
    return images, labels


def with_background(images, labels):
    """The same with a brain in the lower half of the first axis, and 0 in the upper."""
    images, labels = images.clone(), labels.clone()
    images[:, :, images.shape[2] // 2 :] = 0
    labels[:, labels.shape[1] // 2 :] = 0
    return images, labels


# --- nothing chosen ----------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [AugmentConfig(enabled=False), config()])
def test_patches_not_chosen_keep_their_values_bit_for_bit(nothing):
    images, labels = batch()
    found = augment(images, labels, nothing, generator())
    assert torch.equal(found[0], images)
    assert torch.equal(found[1], labels)


def test_only_the_chosen_patches_change():
    # With probability 1/2 some of 16 patches are turned; all others are as they were.
    images, labels = batch(size=16)
    found, _ = augment(images, labels, config(spatial=0.5), generator())
    same = [bool(torch.equal(a, b)) for a, b in zip(found, images, strict=True)]
    assert 0 < sum(same) < 16


def test_the_patches_given_are_left_as_they_are():
    images, labels = batch()
    copies = images.clone(), labels.clone()
    augment(images, labels, AugmentConfig(**EVERYTHING | {"modality_dropout": 1}), generator())
    assert torch.equal(images, copies[0])
    assert torch.equal(labels, copies[1])


# --- flips -------------------------------------------------------------------------------------


def test_a_certain_flip_mirrors_all_three_axes():
    images, labels = batch(4, 5, 6)
    found = augment(images, labels, config(flip=1), generator())
    assert torch.equal(found[0], images.flip(2, 3, 4))
    assert torch.equal(found[1], labels.flip(1, 2, 3))


def test_each_patch_is_one_of_the_eight_mirror_images_with_its_labels():
    images, labels = batch(4, 5, 6, size=32)
    found = augment(images, labels, config(flip=0.5), generator())
    met = set()
    for image, label, before, label_before in zip(*found, images, labels, strict=True):
        (axes,) = [
            axes
            for n in range(4)
            for axes in itertools.combinations((-3, -2, -1), n)
            if torch.equal(image, before.flip(axes))
        ]
        assert torch.equal(label, label_before.flip(axes))
        met.add(axes)
    assert len(met) >= 6  # of 8 kinds in 32 draws; each is missing with (7/8)^32 = 1.4 %


# --- rotation and scale ------------------------------------------------------------------------


def quarter_turn(axis):
    angles = torch.zeros(3)
    angles[axis] = math.pi / 2
    return rotation_matrix(angles)


def resample(image, label, matrix, points=None):
    """The new image and label of one patch, slab after slab."""
    moved, found = torch.full(image.shape, math.nan), torch.full_like(label, 99)
    work = Resampling(image, label, matrix, points, moved, found)
    for rows in work.slabs:
        work.read(rows)
    for rows in work.slabs:
        work.write(rows)
    return moved, found


def resample_all(images, labels, matrix):
    """`resample` of each patch of a batch."""
    pairs = [resample(image, label, matrix) for image, label in zip(images, labels, strict=True)]
    return torch.stack([image for image, _ in pairs]), torch.stack([label for _, label in pairs])


@pytest.mark.parametrize(
    ("axis", "rows"),
    [
        (0, [[1, 0, 0], [0, 0, -1], [0, 1, 0]]),
        (1, [[0, 0, -1], [0, 1, 0], [1, 0, 0]]),
        (2, [[0, -1, 0], [1, 0, 0], [0, 0, 1]]),
    ],
)
def test_quarter_turns_by_hand(axis, rows):
    torch.testing.assert_close(quarter_turn(axis), torch.tensor(rows).float(), atol=1e-6, rtol=0)


def test_rotations_are_rotations():
    angles = torch.randn(20, 3, generator=generator())
    matrices = torch.stack([rotation_matrix(three) for three in angles])
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(3).expand(20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(20))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_is_torchs_rot90(axis):
    # Output to input: out[i, j] = in[n - 1 - j, i], which rot90 calls a turn of -1.
    images, labels = batch(5, 5, 5)
    first, second = [other for other in range(3) if other != axis]
    found = resample_all(images, labels, quarter_turn(axis))
    expected = torch.rot90(images, -1, (first + 2, second + 2))
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)
    assert torch.equal(found[1], torch.rot90(labels, -1, (first + 1, second + 1)))


def test_a_quarter_turn_of_a_patch_that_is_no_cube():
    # 4 x 8 x 2 turned about its last axis: the middle 4 x 4 turns, the rest of the 8 comes from
    # beyond the patch and is background.
    images, labels = batch(4, 8, 2)
    found = resample_all(images, labels, quarter_turn(2))
    middle = torch.rot90(images[:, :, :, 2:6], -1, (2, 3))
    torch.testing.assert_close(found[0][:, :, :, 2:6], middle, atol=1e-5, rtol=0)
    assert not found[0][:, :, :, :2].any()
    assert not found[0][:, :, :, 6:].any()
    assert torch.equal(found[1][:, :, 2:6], torch.rot90(labels[:, :, 2:6], -1, (1, 2)))
    assert not found[1][:, :, :2].any()
    assert not found[1][:, :, 6:].any()


def test_a_shift_of_nothing_is_exact_for_labels_and_close_for_images():
    images, labels = batch(7, 6, 5)
    found = resample_all(images, labels, torch.eye(3))
    torch.testing.assert_close(found[0], images, atol=1e-5, rtol=0)
    assert torch.equal(found[1], labels)


@pytest.mark.parametrize(("scale", "edge"), [(2.0, 8), (1.0, 4), (0.5, 2)])
def test_a_cube_is_scaled_about_the_middle_of_the_patch(scale, edge):
    # A cube of 4 in the middle of 12 becomes one of 4 * scale in the middle of 12.
    labels = torch.zeros(1, 12, 12, 12, dtype=torch.uint8)
    labels[:, 4:8, 4:8, 4:8] = 3
    _, found = resample_all(labels[:, None].float(), labels, torch.eye(3) / scale)
    expected = torch.zeros_like(labels)
    inside = slice(6 - edge // 2, 6 + edge // 2)
    expected[:, inside, inside, inside] = 3
    assert torch.equal(found, expected)


def test_a_displacement_of_whole_voxels_shifts_the_patch():
    # Every voxel reads from one voxel further along the second axis; the last ones from beyond.
    images, labels = batch(4, 5, 6, size=1)
    displacement = torch.zeros(3, 4, 5, 6)
    displacement[1] = 1
    image, label = resample(images[0], labels[0], torch.eye(3), displacement)
    torch.testing.assert_close(image[:, :, :-1], images[0][:, :, 1:], atol=1e-5, rtol=0)
    assert torch.equal(label[:, :-1], labels[0][:, 1:])
    assert not image[:, :, -1].any()
    assert not label[:, -1].any()


def test_an_elastic_deformation_moves_no_voxel_further_than_asked_and_tears_nothing():
    # The image is each voxel's place along one axis, so that it tells where it was read.
    size, most = 32, 5.0
    place = torch.arange(size).float()[:, None, None].expand(size, size, size) + 100
    images, labels = place[None, None].contiguous(), torch.zeros(1, size, size, size).byte()
    found, _ = augment(
        images, labels, config(spatial=1, **STILL | {"elastic_mm": most}), generator()
    )
    inside = (slice(None), slice(None), *[slice(7, -7)] * 3)
    shift = (found - images)[inside]
    assert 1 < shift.abs().max() <= most
    assert ((found[inside].diff(dim=2)) > 0).all()  # order along the axis is kept


def test_a_flip_and_a_turn_are_one_resample():
    # Mirrored along all axes, voxel o is read where voxel -o of the turned patch is.
    images, labels = batch(8, 8, 8, size=1)
    turn = {"spatial": 1, **STILL, "rotation_degrees": 30}
    flipped, flipped_labels = augment(images, labels, config(flip=1, **turn), generator())
    turned, turned_labels = augment(images, labels, config(flip=0, **turn), generator())
    torch.testing.assert_close(flipped, turned.flip(2, 3, 4), atol=1e-5, rtol=0)
    assert torch.equal(flipped_labels, turned_labels.flip(1, 2, 3))


def test_labels_stay_labels_and_move_with_the_image():
    # Where the image is the label itself, both find the same place: the nearest label differs
    # from the interpolated one by what linear interpolation mixes in, at most half a voxel away.
    labels = torch.zeros(3, 16, 16, 16, dtype=torch.uint8)
    labels[:, 3:12, 4:13, 2:9] = 4
    images = labels[:, None].float()
    moved, found = augment(
        images,
        labels,
        config(spatial=1, rotation_degrees=40, scaling_range=0.3, elastic_mm=0),
        generator(),
    )
    assert set(found.unique().tolist()) == {0, 4}
    assert found.dtype == torch.uint8
    assert not torch.equal(found, labels)
    agree = (moved[:, 0] > 2) == (found == 4)
    assert agree.float().mean() > 0.99
    # Beyond 40 degrees and 30 %, nothing: volumes change by 1/1.3^3 to 1.3^3.
    volumes = (found == 4).sum((1, 2, 3)) / (labels == 4).sum((1, 2, 3))
    assert ((volumes > 0.3) & (volumes < 2.2)).all()


# --- intensities -------------------------------------------------------------------------------


@pytest.mark.parametrize("change", INTENSITY)
def test_background_stays_0_and_labels_are_not_touched(change):
    images, labels = with_background(*batch())
    found, after = augment(images, labels, config(**{change: 1}), generator())
    assert not found[:, :, 3:].any()
    assert not torch.equal(found, images)
    assert torch.equal(after, labels)
    assert torch.isfinite(found).all()


def test_brightness_shifts_each_modality_by_one_number_within_its_range():
    images, labels = batch(size=50)
    found, _ = augment(images, labels, config(brightness=1, brightness_shift=0.2), generator())
    shift = found - images
    torch.testing.assert_close(shift, shift[:, :, :1, :1, :1].expand_as(shift), atol=1e-5, rtol=0)
    shift = shift[:, :, 0, 0, 0]
    assert 0.15 < shift.max() <= 0.2
    assert -0.2 <= shift.min() < -0.15
    assert shift.unique().numel() > 90  # one for each modality of each patch


def test_contrast_stretches_each_modality_by_one_factor_within_its_range():
    # About 0, which is the mean of a z-score over the brain.
    images, labels = batch(size=50)
    found, _ = augment(images, labels, config(contrast=1, contrast_range=0.25), generator())
    factor = (found / images)[:, :, 0, 0, 0]
    torch.testing.assert_close(found, images * factor[:, :, None, None, None])
    assert 1.2 < factor.max() <= 1.25
    assert 0.75 <= factor.min() < 0.8


def test_gamma_keeps_the_range_and_the_order_of_each_modality():
    images, labels = batch()
    found, _ = augment(images, labels, config(gamma=1), generator())
    for before, after in zip(images.flatten(0, 1), found.flatten(0, 1), strict=True):
        assert after.min().item() == pytest.approx(before.min().item(), abs=1e-5)
        assert after.max().item() == pytest.approx(before.max().item(), abs=1e-5)
        assert torch.equal(after.flatten().argsort(), before.flatten().argsort())


def test_gamma_of_a_modality_without_contrast_leaves_it():
    images = torch.full((1, 1, 4, 4, 4), 2.0)
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    found, _ = augment(images, labels, config(gamma=1), generator())
    torch.testing.assert_close(found, images)


def test_noise_has_mean_0_and_at_most_the_standard_deviation_asked_for():
    # 24^3 voxels: the standard error of a mean is 0.15 / 118 = 0.0013.
    images, labels = batch(24, 24, 24, size=8)
    found, _ = augment(images, labels, config(noise=1, noise_std=0.15), generator())
    grain = found - images
    assert grain.mean((2, 3, 4)).abs().max() < 5 * 0.0013
    spread = grain.std((2, 3, 4)).flatten()
    assert spread.max() < 0.15 * 1.02
    assert spread.max() / spread.min() > 2  # every modality draws its own


def test_a_blur_is_scipys():
    image = batch(9, 8, 7)[0][0, 0]
    expected = gaussian_filter(image.numpy(), 0.8, mode="nearest", radius=3)
    np.testing.assert_allclose(blur(image, 0.8).numpy(), expected, atol=1e-5)


def test_a_low_resolution_of_a_half_by_hand():
    # 8 voxels become 4, of the places 0.5, 2.5, 4.5 and 6.5, which nearest takes from 1, 3, 5
    # and 7; back, each voxel lies a quarter of the way between two of them.
    line = torch.tensor([0.0, 8, 0, 0, 0, 4, 0, 0])
    image = line[:, None, None].expand(8, 8, 8)
    found = lower_resolution(image, 0.5)[:, 4, 4]
    torch.testing.assert_close(found, torch.tensor([8.0, 6, 2, 1, 3, 3, 1, 0]))


def test_a_full_resolution_leaves_an_image_as_it_is():
    image = batch(6, 5, 4)[0][0, 0]
    torch.testing.assert_close(lower_resolution(image, 1.0), image)


# --- missing modalities ------------------------------------------------------------------------


def test_dropout_blanks_one_to_all_but_one_of_the_modalities():
    images, labels = batch(size=64, channels=4)
    found, after = augment(images, labels, config(modality_dropout=1), generator())
    kept = found.abs().sum((2, 3, 4)) > 0
    assert set(kept.sum(1).tolist()) == {1, 2, 3}
    assert torch.equal(found[kept], images[kept])
    assert torch.equal(after, labels)
    assert kept.float().mean(0).min() > 0.25  # no modality is spared: each kept half the time


def test_the_only_modality_is_never_dropped():
    images, labels = batch(channels=1)
    found, _ = augment(images, labels, config(modality_dropout=1), generator())
    assert torch.equal(found, images)


# --- randomness --------------------------------------------------------------------------------


def test_the_same_seed_varies_alike_and_another_does_not():
    images, labels = batch(size=8)
    first, again, other = (
        augment(images, labels, AugmentConfig(), generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("threads", [2, 5])
def test_any_number_of_threads_varies_alike(threads):
    images, labels = batch(40, 24, 24, size=3)
    everything = AugmentConfig(**EVERYTHING)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = augment(images, labels, everything, generator())
        torch.set_num_threads(threads)
        together = augment(images, labels, everything, generator())
        assert torch.get_num_threads() == threads  # and not what its own threads compute with
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(together[0], alone[0])
    assert torch.equal(together[1], alone[1])


def test_global_randomness_is_neither_used_nor_changed():
    images, labels = batch()
    everything = config(flip=1, **EVERYTHING)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, _ = augment(images, labels, everything, generator())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(augment(images, labels, everything, generator())[0], first)


def test_equal_patches_of_a_batch_are_varied_each_in_its_own_way():
    images, labels = batch(size=1)
    everything = config(**EVERYTHING)
    found, _ = augment(
        images.repeat(4, 1, 1, 1, 1), labels.repeat(4, 1, 1, 1), everything, generator()
    )
    for first, second in itertools.combinations(found, 2):
        assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_varies_as_the_cpu_does():
    # Noise is drawn on the device itself and is another there; all else is the same.
    images, labels = batch(size=4)
    everything = config(flip=0.5, **EVERYTHING | {"noise": 0})
    here, labels_here = augment(images, labels, everything, generator())
    there, labels_there = augment(images.cuda(), labels.cuda(), everything, generator())
    # At a tie, of which there are few, either voxel is the nearest.
    assert there.cpu().isclose(here, atol=1e-4, rtol=1e-4).float().mean() > 0.999
    assert (labels_there.cpu() == labels_here).float().mean() > 0.999
