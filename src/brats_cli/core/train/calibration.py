"""Temperature scaling: divides a region's logits so that its probabilities are calibrated.

Guo et al. 2017 (arXiv 1706.04599). A temperature above 1 corrects an overconfident network; masks
at a threshold of 0.5 do not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import stdtrit  # quantiles of Student's t

from ..data.labels import REGIONS

TEMPERATURES = tuple(float(round(value, 3)) for value in np.geomspace(0.25, 8, 41))
"""Temperatures that are tried; 1 is one of them."""

SIGNIFICANCE = 0.01
"""Level of the one-sided t-test of the cases' gains; the best of many choices gains by chance.
Thresholds that were selected on two cases by mean gain alone cost 0.09 in Dice of TC on a third:
RESULTS.md."""

_EDGE = 16.0
_BINS = 640
_CENTRES = (np.arange(_BINS) + 0.5) * (2 * _EDGE / _BINS) - _EDGE


@dataclass(frozen=True)
class LogitCounts:
    """Voxels of a case by their logit, in bins of 0.05 from -16 to 16.

    Attributes:
        inside: (R, bins) of those inside a region as the expert drew it.
        outside: (R, bins) of the others.
    """

    inside: npt.NDArray[np.int64]
    outside: npt.NDArray[np.int64]

    @classmethod
    def of(cls, probability: torch.Tensor, truth: torch.Tensor) -> LogitCounts:
        """Counts from probabilities and reference masks, both (R, X, Y, Z)."""
        found = []
        for region, mask in zip(probability, truth, strict=True):
            logits = torch.logit(region.double()).clamp(-_EDGE, _EDGE - 1e-6)
            bins = ((logits + _EDGE) * (_BINS / (2 * _EDGE))).long()
            split = bins[mask], bins[~mask]
            found.append([voxels.bincount(minlength=_BINS).cpu().numpy() for voxels in split])
        inside, outside = np.stack(found, axis=1)
        return cls(inside, outside)

    def loss(self, region: int, temperature: float) -> float:
        """Mean negative log-likelihood of a region's voxels, by temperature."""
        logits = _CENTRES / temperature
        total = self.inside[region] @ np.logaddexp(0, -logits)
        total += self.outside[region] @ np.logaddexp(0, logits)
        return float(total / (self.inside[region].sum() + self.outside[region].sum()))


def is_significant(gains: npt.NDArray[np.float64]) -> bool:
    """Whether cases, two at least, gain more on average than by chance: (N,) -> yes or no."""
    chance = stdtrit(len(gains) - 1, 1 - SIGNIFICANCE) * gains.std(ddof=1) / np.sqrt(len(gains))
    return bool(gains.mean() > chance)


def fit_temperatures(cases: Sequence[LogitCounts]) -> dict[str, float]:
    """By region, the temperature with the lowest mean loss over cases.

    A region whose gain over a temperature of 1 is not significant is left out.
    """
    if len(cases) < 2:
        return {}
    usual = TEMPERATURES.index(1.0)
    found = {}
    for number, name in enumerate(REGIONS):
        losses = np.array([[case.loss(number, t) for case in cases] for t in TEMPERATURES])
        best = int(losses.mean(axis=1).argmin())
        if best != usual and is_significant(losses[usual] - losses[best]):
            found[name] = TEMPERATURES[best]
    return found
