"""What training minimises: Dice loss on regions, alone or with binary cross-entropy."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

SMOOTH = 1.0
"""Voxels added to numerator and denominator: an empty region predicted empty then costs 0."""


def dice_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One minus the soft Dice of the sigmoid probabilities, averaged over regions.

    Dice = (2 * sum(p * t) + SMOOTH) / (sum(p) + sum(t) + SMOOTH), the sums over the whole batch,
    so that a patch without a region does not swing the loss by itself (MONAI's `DiceLoss` with
    `sigmoid=True, batch=True, smooth_nr=1, smooth_dr=1`; Milletari et al. 2016 without squares).

    Args:
        logits: (B, R, X, Y, Z).
        targets: 0 or 1, same shape.
    """
    probabilities = torch.sigmoid(logits.float())
    targets = targets.float()
    over = (0, 2, 3, 4)
    overlap = (probabilities * targets).sum(over)
    total = probabilities.sum(over) + targets.sum(over)
    return 1 - ((2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


def dice_ce_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`dice_loss` plus the mean binary cross-entropy of the same logits.

    Cross-entropy has a gradient where Dice's vanishes: early in training, and far from the tumour.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits.float(), targets.float())
    return dice_loss(logits, targets) + cross_entropy


LOSSES: dict[str, Loss] = {"dice": dice_loss, "dice_ce": dice_ce_loss}
