"""What training minimises: the overlap of regions, alone or with a loss of each voxel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compute.distributed import summed
from ..model.network import crop
from .config import TrainConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11

SMOOTH = 1.0
"""Voxels added to numerator and denominator: an empty region predicted empty then costs 0."""

FOCUS = 2.0
"""Exponent of the focal loss, as in its paper."""


Valid = Tensor | None
"""Where something is known, of a shape that broadcasts to that of targets; None for everywhere."""


class How(TypedDict, total=False):
    """How overlap is summed.

    Attributes:
        per_sample: For each patch; else all patches' voxels are pooled, over all processes that
            train together, so that a patch without a region does not swing the loss.
        squared: With squared probabilities in the denominator (Milletari et al. 2016, arXiv
            1606.04797).
    """

    per_sample: bool
    squared: bool


class Loss(Protocol):
    """A loss of logits and targets (B, R, X, Y, Z).

    Targets are 0 or 1. Where `valid` is False nothing is known, and nothing counts: (B, R, 1, 1, 1)
    for regions that a patch has no labels of, (B, 1, X, Y, Z) for voxels. A region without any
    valid voxel is left out of the mean, and where there is none the loss is 0.
    """

    def __call__(
        self, logits: Tensor, targets: Tensor, valid: Valid = None, **how: Unpack[How]
    ) -> Tensor:
        """The mean over regions, without dimensions, in float32."""
        ...


def dice_loss(logits: Tensor, targets: Tensor, valid: Valid = None, **how: Unpack[How]) -> Tensor:
    """One minus the soft Dice of the sigmoid probabilities, averaged over regions; see `Loss`.

    Dice = (2 * sum(p * t) + SMOOTH) / (sum(p) + sum(t) + SMOOTH), with p^2 if `squared`. MONAI's
    `DiceLoss` with `sigmoid=True, batch=not per_sample, smooth_nr=SMOOTH, smooth_dr=SMOOTH`.
    """
    overlap, total, known = _sums(logits, targets, valid, **how)
    return _mean(_unlike(overlap, total), known)


def jaccard_loss(
    logits: Tensor, targets: Tensor, valid: Valid = None, **how: Unpack[How]
) -> Tensor:
    """One minus the soft Jaccard index, intersection over union; see `Loss`.

    With U = sum(p) + sum(t) - sum(p * t), (2 * sum(p * t) + SMOOTH) / (2 * U + SMOOTH): MONAI's
    `DiceLoss` with `jaccard=True`, whose smooth term is half as large as Dice's here.
    """
    overlap, total, known = _sums(logits, targets, valid, **how)
    return _mean(_unlike(overlap, 2 * (total - overlap)), known)


def dice_ce_loss(
    logits: Tensor, targets: Tensor, valid: Valid = None, **how: Unpack[How]
) -> Tensor:
    """`dice_loss` plus the mean binary cross-entropy of the same logits; see `Loss`.

    Cross-entropy has a gradient where Dice's vanishes: early in training, and far from the tumour.
    MONAI's `DiceCELoss` does so for a single region; of several it takes them for classes that
    exclude each other.
    """
    dice = dice_loss(logits, targets, valid, **how)
    return dice + _voxel_mean(_cross_entropy(logits, targets), valid)


def dice_focal_loss(
    logits: Tensor, targets: Tensor, valid: Valid = None, **how: Unpack[How]
) -> Tensor:
    """`dice_loss` plus the mean focal loss of the same logits; see `Loss`.

    Focal loss is cross-entropy times (1 - probability of the truth)^FOCUS: voxels that are right
    already hardly count (Lin et al. 2017, arXiv 1708.02002, without alpha). MONAI's
    `DiceFocalLoss` with `sigmoid=True`.
    """
    dice = dice_loss(logits, targets, valid, **how)
    wrong = torch.sigmoid(torch.where(targets.bool(), -logits.float(), logits.float()))
    return dice + _voxel_mean(wrong**FOCUS * _cross_entropy(logits, targets), valid)


LOSSES: dict[str, Loss] = {
    "dice": dice_loss,
    "dice_ce": dice_ce_loss,
    "dice_focal": dice_focal_loss,
    "jaccard": jaccard_loss,
}


def training_loss(
    config: TrainConfig,
    outputs: Tensor | Sequence[Tensor],
    targets: Tensor,
    valid: Valid = None,
) -> Tensor:
    """The loss that `config` names, of what a network in training returns.

    With deep supervision that are logits of several resolutions, each half as fine as the one
    before. They weigh 1, 1/2, 1/4, ..., together 1, as in nnU-Net.

    Args:
        config: Its `loss`, `loss_per_sample` and `loss_squared`.
        outputs: Logits (B, R, X', Y', Z'), the full resolution first if there are several.
        targets: 0 or 1, (B, R, X, Y, Z) of the whole patch, also where the network has a margin.
        valid: See `Loss`.
    """
    loss = LOSSES[config.loss]
    several = [outputs] if isinstance(outputs, Tensor) else outputs
    weights = [2.0**-level for level in range(len(several))]
    total = torch.zeros((), device=targets.device)
    for level, (logits, weight) in enumerate(zip(several, weights, strict=True)):
        total = total + weight / sum(weights) * loss(
            logits,
            _coarser(targets, logits, level, F.max_pool3d),
            None if valid is None else _coarser(valid, logits, level, _all_of),
            per_sample=config.loss_per_sample,
            squared=config.loss_squared,
        )
    return total


Pooling = Callable[[Tensor, list[int]], Tensor]


def _coarser(masks: Tensor, logits: Tensor, level: int, pool: Pooling) -> Tensor:
    """Masks of the whole patch where `logits` lie, at their resolution.

    By the largest of each block: a small region is in every resolution, and where it lies. The
    nearest voxel would lose those that it misses, and there is none in the middle of a block.
    """
    across = [axis > 1 for axis in masks.shape[2:]]  # an axis of 1 is broadcast
    size = [
        side * 2**level if wide else 1 for side, wide in zip(logits.shape[2:], across, strict=True)
    ]
    masks = crop(masks, torch.Size(size))
    return pool(masks.float(), [2**level if wide else 1 for wide in across]) if level else masks


def _all_of(masks: Tensor, block: list[int]) -> Tensor:
    """Whether all voxels of a block are in a mask."""
    return -F.max_pool3d(-masks, block) > 0


def _unlike(overlap: Tensor, size: Tensor) -> Tensor:
    """One minus twice the overlap as a share of `size`; 0 where both are 0."""
    return 1 - (2 * overlap + SMOOTH) / (size + SMOOTH)


def _sums(
    logits: Tensor,
    targets: Tensor,
    valid: Valid,
    *,
    per_sample: bool = False,
    squared: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """sum(p * t), sum(p) + sum(t), and whether there was a voxel: (R,), or (B, R) a sample."""
    probabilities = torch.sigmoid(logits.float())
    targets = targets.float()
    over = (2, 3, 4) if per_sample else (0, 2, 3, 4)
    known = None
    if valid is not None:
        probabilities, targets = probabilities * valid, targets * valid
        known = valid.expand(targets.shape).sum(over) > 0
    overlap = (probabilities * targets).sum(over)
    predicted = probabilities.square() if squared else probabilities
    total = predicted.sum(over) + targets.sum(over)
    if not per_sample:
        overlap, total = summed(torch.stack([overlap, total]))
    return overlap, total, known


def _mean(losses: Tensor, known: Tensor | None) -> Tensor:
    """The mean of `losses`, of those that are known."""
    if known is None:
        return losses.mean()
    return (losses * known).sum() / known.sum().clamp_min(1)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")


def _voxel_mean(losses: Tensor, valid: Valid) -> Tensor:
    return _mean(losses, None if valid is None else valid.expand(losses.shape))
