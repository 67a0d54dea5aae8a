"""How well a network segments whole cases: the validation of an epoch."""

from __future__ import annotations

import numpy as np
import torch

from ..data.labels import REGIONS, LabelScheme
from ..model.decision import THRESHOLD
from ..model.segmenter import Segmenter
from ..prepared.store import StoredCase
from .events import CaseValidated


def validate(segmenter: Segmenter, case: StoredCase, scheme: LabelScheme) -> CaseValidated:
    """Segment a whole case, and score it by the Dice of WT, TC and ET.

    A region that is empty in both scores 1, in one of them 0 (the convention up to BraTS 2022).
    """
    predicted = segmenter.probabilities(case.images) >= THRESHOLD
    labels = torch.from_numpy(np.asarray(case.labels)).to(predicted.device)
    reference = torch.stack(scheme.masks(labels))
    dice = dict(zip(REGIONS, _dice(predicted, reference), strict=True))
    return CaseValidated(case.id, dice, reference, predicted)


def evenly(count: int, most: int | None) -> list[int]:
    """Places of `most` of so many cases, or of all, spread evenly: the same in every epoch."""
    chosen = count if most is None else min(most, count)
    return [place * count // chosen for place in range(chosen)]


def _dice(found: torch.Tensor, truth: torch.Tensor) -> list[float]:
    """Dice of masks (R, X, Y, Z); the device counts, and is waited for once."""
    counts = torch.stack([masks.sum((1, 2, 3)) for masks in (found & truth, found, truth)])
    return [
        2 * both / (predicted + drawn) if predicted + drawn else 1.0
        for both, predicted, drawn in counts.T.tolist()
    ]
