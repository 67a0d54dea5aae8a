"""How well a network segments whole cases: the validation of an epoch."""

from __future__ import annotations

from collections.abc import Sequence

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


def evenly(cases: Sequence[StoredCase], most: int | None) -> Sequence[StoredCase]:
    """At most so many of some cases, spread evenly over them: the same in every epoch."""
    if most is None or most >= len(cases):
        return cases
    return cases[:: -(-len(cases) // most)]


def _dice(found: torch.Tensor, truth: torch.Tensor) -> list[float]:
    """Dice of masks (R, X, Y, Z); the device counts, and is waited for once."""
    counts = torch.stack([masks.sum((1, 2, 3)) for masks in (found & truth, found, truth)])
    return [
        2 * both / (predicted + drawn) if predicted + drawn else 1.0
        for both, predicted, drawn in counts.T.tolist()
    ]
