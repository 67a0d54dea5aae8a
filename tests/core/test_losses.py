import math

import pytest
import torch

from brats_cli.core.losses import dice_ce_loss, dice_loss

# Logits whose sigmoid is 0.5, 0.75 and 0.25.
HALF, THREE_QUARTERS, QUARTER = 0.0, math.log(3), -math.log(3)


def regions(*rows):
    """A batch of one with a row of voxels a region: (1, R, X, 1, 1)."""
    return torch.tensor([[[[[value]] for value in row] for row in rows]])


def test_dice_of_two_voxels_by_hand():
    # p = 0.75 and 0.25, t = 1 and 0: (2 * 0.75 + 1) / (1 + 1 + 1) = 5/6.
    loss = dice_loss(regions([THREE_QUARTERS, QUARTER]), regions([1.0, 0]))
    assert loss.item() == pytest.approx(1 - 5 / 6)


def test_dice_of_an_empty_region_costs_what_is_invented():
    # p = 0.5 and 0.25, t = 0: 1 / (0.75 + 1) = 4/7.
    loss = dice_loss(regions([HALF, QUARTER]), regions([0.0, 0]))
    assert loss.item() == pytest.approx(1 - 4 / 7)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_a_perfect_prediction_costs_nothing(target):
    # Sigmoid(+-100) is 1 and 0 to float32.
    loss = dice_loss(regions([200 * target - 100] * 2), regions([target] * 2))
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_a_prediction_all_wrong():
    # p = 0 and 1, t = 1 and 0: (0 + 1) / (2 + 1).
    loss = dice_loss(regions([-100.0, 100]), regions([1.0, 0]))
    assert loss.item() == pytest.approx(2 / 3)


def test_regions_count_alike_whatever_their_size():
    # 5/6 from the first row as above; 4/7 from the second.
    loss = dice_loss(regions([THREE_QUARTERS, QUARTER], [HALF, QUARTER]), regions([1.0, 0], [0, 0]))
    assert loss.item() == pytest.approx(1 - (5 / 6 + 4 / 7) / 2)


def test_patches_of_a_batch_are_pooled_before_the_ratio():
    # Two patches of one voxel: p = 0.75, t = 1 and p = 0.25, t = 0 are the example above. Each
    # on its own would be (1.5 + 1) / (1.75 + 1) and 1 / 1.25, mean 0.8545 and not 0.8333.
    logits = torch.tensor([THREE_QUARTERS, QUARTER]).reshape(2, 1, 1, 1, 1)
    targets = torch.tensor([1.0, 0]).reshape(2, 1, 1, 1, 1)
    assert dice_loss(logits, targets).item() == pytest.approx(1 - 5 / 6)


def test_cross_entropy_by_hand():
    # -ln(0.75) for both voxels, whose mean it is, beside Dice's 1/6.
    loss = dice_ce_loss(regions([THREE_QUARTERS, QUARTER]), regions([1.0, 0]))
    assert loss.item() == pytest.approx(1 / 6 - math.log(0.75))


def test_cross_entropy_has_a_gradient_where_dices_vanishes():
    targets = regions([1.0, 1])
    gradients = []
    for loss in (dice_loss, dice_ce_loss):
        logits = regions([-30.0, -30]).requires_grad_()
        loss(logits, targets).backward()
        gradients.append(logits.grad.abs().max().item())
    # -(1 - p) / 2 voxels from the cross-entropy; p (1 - p) is 1e-13 in the other.
    assert gradients[0] < 1e-12
    assert gradients[1] == pytest.approx(0.5)


def test_the_gradient_of_dice_by_hand():
    # D = (2 p t + 1) / (p + t + 1) with p = 0.5, t = 1: dD/dp = 2/2.5 - 2/2.5^2 = 0.48, and
    # dp/dlogit = 0.25.
    logits = regions([HALF]).requires_grad_()
    dice_loss(logits, regions([1.0])).backward()
    assert logits.grad.item() == pytest.approx(-0.12)


def test_half_precision_logits_and_boolean_targets_give_the_same_float32_loss():
    # Sums of many voxels overflow float16: 2^17 voxels of probability 1/2 are beyond 65504.
    logits = torch.zeros(1, 1, 2**17, 1, 1)
    targets = torch.ones(1, 1, 2**17, 1, 1, dtype=torch.bool)
    expected = 1 - (2**17 + 1) / (1.5 * 2**17 + 1)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        loss = dice_loss(logits.to(dtype), targets)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_dice_is_monais():
    losses = pytest.importorskip("monai.losses", reason="MONAI is not installed")
    monai = losses.DiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)
    logits = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    targets = (logits + 0.3 > 0).float()
    torch.testing.assert_close(dice_loss(logits, targets), monai(logits, targets))
