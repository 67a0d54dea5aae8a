import math

import pytest
import torch

from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.network import UNet3D
from brats_cli.core.train.config import TrainConfig
from brats_cli.core.train.losses import (
    LOSSES,
    dice_ce_loss,
    dice_focal_loss,
    dice_loss,
    jaccard_loss,
    training_loss,
)

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


# --- per sample, squared, Jaccard, focal -------------------------------------------------------


def test_dice_of_each_patch_by_hand():
    # The pooled example of above, each patch on its own: 2.5 / 2.75 and 1 / 1.25.
    logits = torch.tensor([THREE_QUARTERS, QUARTER]).reshape(2, 1, 1, 1, 1)
    targets = torch.tensor([1.0, 0]).reshape(2, 1, 1, 1, 1)
    loss = dice_loss(logits, targets, per_sample=True)
    assert loss.item() == pytest.approx(1 - (2.5 / 2.75 + 1 / 1.25) / 2)


def test_squared_dice_by_hand():
    # p = 0.75 and 0.25, t = 1 and 0: (1.5 + 1) / (0.5625 + 0.0625 + 1 + 1).
    loss = dice_loss(regions([THREE_QUARTERS, QUARTER]), regions([1.0, 0]), squared=True)
    assert loss.item() == pytest.approx(1 - 2.5 / 2.625)


def test_jaccard_by_hand():
    # Intersection 0.75, union 1 + 1 - 0.75 = 1.25: (1.5 + 1) / (2.5 + 1).
    loss = jaccard_loss(regions([THREE_QUARTERS, QUARTER]), regions([1.0, 0]))
    assert loss.item() == pytest.approx(1 - 2.5 / 3.5)


def test_squared_jaccard_by_hand():
    # Union 0.625 + 1 - 0.75 = 0.875: (1.5 + 1) / (1.75 + 1).
    loss = jaccard_loss(regions([THREE_QUARTERS, QUARTER]), regions([1.0, 0]), squared=True)
    assert loss.item() == pytest.approx(1 - 2.5 / 2.75)


def test_focal_by_hand():
    # Probability of the truth 0.75 and 0.5: (1/4)^2 * -ln(0.75) and (1/2)^2 * -ln(0.5), and their
    # mean; Dice: (1.5 + 1) / (0.75 + 0.5 + 1 + 1).
    loss = dice_focal_loss(regions([THREE_QUARTERS, HALF]), regions([1.0, 0]))
    focal = (-math.log(0.75) / 16 - math.log(0.5) / 4) / 2
    assert loss.item() == pytest.approx(1 - 2.5 / 3.25 + focal)


# --- where nothing is known --------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_voxels_without_a_label_count_as_if_they_were_not_there(name, per_sample):
    logits, targets = regions([THREE_QUARTERS, QUARTER, 5.0]), regions([1.0, 0, 0])
    valid = torch.tensor([True, True, False]).reshape(1, 1, 3, 1, 1)
    found = LOSSES[name](logits, targets, valid, per_sample=per_sample)
    expected = LOSSES[name](logits[:, :, :2], targets[:, :, :2], per_sample=per_sample)
    assert found.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_a_region_without_labels_counts_as_if_it_were_not_there(name, per_sample):
    logits = regions([THREE_QUARTERS, QUARTER], [5.0, -3.0])
    targets = regions([1.0, 0], [0.0, 0])
    valid = torch.tensor([True, False]).reshape(1, 2, 1, 1, 1)
    found = LOSSES[name](logits, targets, valid, per_sample=per_sample)
    expected = LOSSES[name](logits[:, :1], targets[:, :1], per_sample=per_sample)
    assert found.item() == pytest.approx(expected.item())


def test_a_region_that_one_patch_lacks_is_learnt_from_the_other():
    logits = torch.tensor([THREE_QUARTERS, 5.0]).reshape(2, 1, 1, 1, 1)
    targets = torch.tensor([1.0, 0]).reshape(2, 1, 1, 1, 1)
    valid = torch.tensor([True, False]).reshape(2, 1, 1, 1, 1)
    # p = 0.75, t = 1 alone, pooled or not: (1.5 + 1) / (1.75 + 1).
    for per_sample in (False, True):
        loss = dice_loss(logits, targets, valid, per_sample=per_sample)
        assert loss.item() == pytest.approx(1 - 2.5 / 2.75)


@pytest.mark.parametrize("name", LOSSES)
def test_without_any_label_there_is_no_loss_and_no_gradient(name):
    logits = regions([THREE_QUARTERS, QUARTER]).requires_grad_()
    loss = LOSSES[name](logits, regions([1.0, 0]), torch.zeros(1, 1, 1, 1, 1, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def test_a_mask_that_is_true_everywhere_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, generator=generator)
    targets = torch.rand(2, 3, 4, 4, 4, generator=generator) > 0.5
    for loss in LOSSES.values():
        found = loss(logits, targets, torch.ones(2, 1, 4, 4, 4, dtype=torch.bool))
        torch.testing.assert_close(found, loss(logits, targets))


# --- of what a network returns -----------------------------------------------------------------


DICE = TrainConfig(loss="dice")


def test_the_config_names_loss_and_variant():
    logits = torch.tensor([THREE_QUARTERS, QUARTER]).reshape(2, 1, 1, 1, 1)
    targets = torch.tensor([1.0, 0]).reshape(2, 1, 1, 1, 1)
    found = training_loss(DICE, logits, targets)
    assert found.item() == pytest.approx(1 - 5 / 6)
    # Each patch on its own, squared: 2.5 / (0.5625 + 1 + 1) and 1 / (0.0625 + 1), and no
    # intersection for a union of 1.5625 - 0.75 and 0.0625.
    config = TrainConfig(loss="jaccard", loss_per_sample=True, loss_squared=True)
    expected = 1 - (2.5 / (2 * 0.8125 + 1) + 1 / (2 * 0.0625 + 1)) / 2
    assert training_loss(config, logits, targets).item() == pytest.approx(expected)


def test_the_targets_of_a_network_with_a_margin_are_those_of_its_middle():
    logits = regions([THREE_QUARTERS, QUARTER])[..., :1, :1]
    targets = torch.ones(1, 1, 4, 3, 3)
    targets[0, 0, :, 1, 1] = torch.tensor([0.0, 1, 0, 1])
    assert training_loss(DICE, logits, targets).item() == pytest.approx(1 - 5 / 6)


def test_lower_resolutions_weigh_half_as_much_each_and_all_together_1():
    # Logits of 0 everywhere: p = 1/2 of n voxels, t = 1: Dice (n + 1) / (1.5 n + 1), with n = 64,
    # 8 and 1 for edges of 4, 2 and 1 voxels; weights 4/7, 2/7 and 1/7.
    outputs = [torch.zeros(1, 1, edge, edge, edge) for edge in (4, 2, 1)]
    found = training_loss(DICE, outputs, torch.ones(1, 1, 4, 4, 4, dtype=torch.bool))
    losses = [1 - (n + 1) / (1.5 * n + 1) for n in (64, 8, 1)]
    assert found.item() == pytest.approx((4 * losses[0] + 2 * losses[1] + losses[2]) / 7)


def test_a_single_voxel_is_in_the_targets_of_every_resolution():
    targets = torch.zeros(1, 1, 4, 4, 4)
    targets[0, 0, 1, 2, 3] = 1
    outputs = [targets * 200 - 100]
    for edge, block in ((2, (0, 1, 1)), (1, (0, 0, 0))):
        logits = torch.full((1, 1, edge, edge, edge), -100.0)
        logits[(0, 0, *block)] = 100
        outputs.append(logits)
    assert training_loss(DICE, outputs, targets).item() == pytest.approx(0, abs=1e-6)


def test_a_block_is_known_where_all_of_it_is():
    # Along x, of eight voxels the fourth is unknown: of blocks of two, the second.
    valid = torch.ones(1, 1, 8, 2, 2, dtype=torch.bool)
    valid[0, 0, 3] = False
    targets = torch.zeros(1, 1, 8, 2, 2)
    coarse = torch.tensor([-100.0, 100, -100, -100]).reshape(1, 1, 4, 1, 1)
    outputs = [torch.full((1, 1, 8, 2, 2), -100.0), coarse]
    assert training_loss(DICE, outputs, targets, valid).item() == pytest.approx(0)
    # (1) / (1 + 1) of the invented voxel, weighted with 1/3.
    assert training_loss(DICE, outputs, targets).item() == pytest.approx(0.5 / 3)


def test_a_region_without_labels_is_without_them_in_every_resolution():
    valid = torch.tensor([True, False]).reshape(1, 2, 1, 1, 1)
    outputs = [torch.zeros(1, 2, edge, edge, edge) for edge in (4, 2)]
    targets = torch.ones(1, 2, 4, 4, 4)
    found = training_loss(DICE, outputs, targets, valid)
    alone = training_loss(DICE, [output[:, :1] for output in outputs], targets[:, :1])
    assert found.item() == pytest.approx(alone.item())


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("upsampling", ["transposed", "trilinear"])
def test_targets_lie_where_the_outputs_of_each_resolution_do(padding, upsampling):
    # A network whose outputs are the largest of each block of its input: what max pooling makes
    # on the way down, carried along the skip connections. Perfect, if targets lie where it does.
    config = UNetConfig(
        channels=1,
        most_channels=1,
        levels=4,
        norm="none",
        residual=False,
        padding=padding,
        upsampling=upsampling,
        deep_supervision=True,
    )
    net = UNet3D(config, in_channels=1, out_channels=1).train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        for block in (*net.down, *net.merge):
            for layer in (block[0], block[2]):
                layer.weight[0, 0, 1, 1, 1] = 1  # of what is joined, the skip connection
        for output in (net.output, *net.lower_outputs):
            output.weight.fill_(200)
            output.bias.fill_(-100)
        edge = config.input_size(9)
        images = (torch.rand(1, 1, edge, edge, edge) > 0.97).float()
        outputs = net(images)
        assert len(outputs) == 2
        assert 0 < (outputs[1] > 0).float().mean() < 1
        assert training_loss(DICE, outputs, images).item() == pytest.approx(0, abs=1e-6)


# --- MONAI's -----------------------------------------------------------------------------------


@pytest.fixture
def example():
    """Logits and targets of two patches and three regions, of which one patch lacks the last."""
    logits = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    targets = (logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))) > 0
    targets[1, 2] = False
    return logits, targets.float()


def monais(name, **options):
    losses = pytest.importorskip("monai.losses", reason="MONAI is not installed")
    smooth = {"smooth_nr": 1.0, "smooth_dr": 1.0}
    return getattr(losses, name)(sigmoid=True, **smooth, **options)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("jaccard", [False, True])
def test_overlap_is_monais(example, per_sample, squared, jaccard):
    monai = monais("DiceLoss", batch=not per_sample, squared_pred=squared, jaccard=jaccard)
    loss = jaccard_loss if jaccard else dice_loss
    found = loss(*example, per_sample=per_sample, squared=squared)
    torch.testing.assert_close(found, monai(*example))


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("squared", [False, True])
def test_dice_and_cross_entropy_are_monais_of_each_region(example, per_sample, squared):
    # MONAI takes several channels for classes that exclude each other; of one it takes what we do.
    monai = monais("DiceCELoss", batch=not per_sample, squared_pred=squared)
    logits, targets = example
    each = [monai(logits[:, [region]], targets[:, [region]]) for region in range(3)]
    found = dice_ce_loss(*example, per_sample=per_sample, squared=squared)
    torch.testing.assert_close(found, torch.stack(each).mean())


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("squared", [False, True])
def test_dice_and_focal_are_monais(example, per_sample, squared):
    monai = monais("DiceFocalLoss", batch=not per_sample, squared_pred=squared)
    found = dice_focal_loss(*example, per_sample=per_sample, squared=squared)
    torch.testing.assert_close(found, monai(*example))
