"""How a trained network's probabilities become labels, chosen and scored on validation cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import stdtrit  # quantiles of Student's t

from ..compute.devices import arithmetic
from ..compute.distributed import ALONE, Group
from ..data.labels import REGIONS
from ..model.checkpoint import THRESHOLD, Checkpoint
from ..model.windows import probabilities
from ..predict.predictor import paint
from ..prepared.store import StoredCase
from ..score.conventions import BRATS_2022
from ..score.metrics import MaskScore, score
from .training import region_targets

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(4, 17))
"""Probabilities that are tried: 0.2 to 0.8."""

SMALLEST_ET_VOXELS = (0, 25, 50, 100, 200, 500)
"""Sizes that are tried, under which enhancing tumour is taken for necrosis."""

WORTHWHILE = 0.005
"""Gain in mean Dice from which the defaults are left, if it is significant as well."""

SIGNIFICANCE = 0.01
"""Of a one-sided t-test of the cases' gains; the best of so many thresholds gains by chance. Chosen
on two cases by mean gain alone, they lost 0.09 of the core's Dice in a third; see RESULTS.md."""


@dataclass(frozen=True)
class Counts:
    """Voxels of one case, from which Dice at any of the `THRESHOLDS` follows.

    Attributes:
        true: (R,) of each region as the expert drew it.
        found: (R, T) of each region at each threshold.
        common: (R, T) of both.
    """

    true: npt.NDArray[np.int64]
    found: npt.NDArray[np.int64]
    common: npt.NDArray[np.int64]

    @classmethod
    def of(cls, probability: torch.Tensor, truth: torch.Tensor) -> Counts:
        """Counts of probabilities (R, X, Y, Z) and the masks (R, X, Y, Z) they should be."""
        # Thresholds that a voxel reaches, from 0 to all of them.
        limits = torch.tensor(THRESHOLDS)
        reached = torch.bucketize(probability.contiguous(), limits, right=True)
        found: list[npt.NDArray[np.int64]] = []
        common: list[npt.NDArray[np.int64]] = []
        for levels, mask in zip(reached, truth, strict=True):
            for counts, voxels in ((found, levels.flatten()), (common, levels[mask])):
                of_each = voxels.bincount(minlength=len(THRESHOLDS) + 1).numpy()
                counts.append(of_each[::-1].cumsum()[::-1][1:])
        return cls(truth.flatten(1).sum(1).numpy(), np.stack(found), np.stack(common))

    def dice(self) -> npt.NDArray[np.float64]:
        """(R, T); 1 where a region is empty in both."""
        total = self.true[:, None] + self.found
        return np.where(total == 0, 1, 2 * self.common / np.maximum(total, 1))


@dataclass(frozen=True)
class Decision:
    """From which probability a voxel belongs to a region, and how little ET is none.

    Attributes:
        thresholds: By region.
        smallest_et_mm3: Enhancing tumour of less than this in all is taken for necrosis.
    """

    thresholds: dict[str, float]
    smallest_et_mm3: float

    @classmethod
    def best_for(cls, cases: Sequence[Counts]) -> Decision:
        """What gives the highest mean Dice over cases of 1 mm voxels."""
        dice = np.stack([case.dice() for case in cases], axis=-1)  # (R, T, N)
        usual = THRESHOLDS.index(THRESHOLD)
        chosen = [_best(of_region, usual) for of_region in dice]
        et = REGIONS.index("ET")
        drawn = np.array([case.true[et] for case in cases])
        found = np.array([case.found[et, chosen[et]] for case in cases])
        kept = dice[et, chosen[et]]
        # Without any found, a case scores 1 or 0, as there is any or not.
        scores = [np.where(found < size, drawn == 0, kept) for size in SMALLEST_ET_VOXELS]
        return cls(
            {name: THRESHOLDS[place] for name, place in zip(REGIONS, chosen, strict=True)},
            float(SMALLEST_ET_VOXELS[_best(np.stack(scores), 0)]),
        )


def _best(scores: npt.NDArray[np.float64], usual: int) -> int:
    """Which of several choices has the highest mean of `scores` (choices, N cases).

    The usual one, unless the gain over it is worthwhile and significant.
    """
    best = int(scores.mean(axis=1).argmax())
    gains = scores[best] - scores[usual]
    if len(gains) < 2 or gains.mean() < WORTHWHILE:
        return usual
    chance = stdtrit(len(gains) - 1, 1 - SIGNIFICANCE) * gains.std(ddof=1) / np.sqrt(len(gains))
    return best if gains.mean() > chance else usual


@dataclass(frozen=True)
class CaseValidation:
    """A validation case, segmented by the finished network.

    Attributes:
        case_id: Its id.
        scores: By region, as the challenges up to BraTS 2022 scored them.
    """

    case_id: str
    scores: dict[str, MaskScore]


def finish(
    best: Checkpoint,
    validation: Sequence[StoredCase],
    device: torch.device,
    *,
    group: Group = ALONE,
    on_pass: Callable[[], None] = lambda: None,
) -> tuple[Checkpoint, list[CaseValidation]]:
    """Choose a run's thresholds and its ET rule on validation cases, and score these with them.

    Args:
        best: The run's best checkpoint.
        validation: Cases as they were stored for the run.
        device: Where to compute.
        group: The processes that share the cases.
        on_pass: Called after each pass over one of this process's cases, of which there are two.

    Returns:
        The checkpoint with its decision and the Dice it has then, and the scores of each case.
    """
    mine = group.share(validation)
    counts, scored = [], []
    for case in mine:
        counts.append(Counts.of(*_answer(best, case, device)))
        on_pass()
    decision = Decision.best_for(group.gathered(counts))
    for case in mine:
        scored.append(_scored(best, case, decision, device))
        on_pass()
    scored = group.gathered(scored)
    dice = {name: float(np.mean([case.scores[name].dice for case in scored])) for name in REGIONS}
    content = {"thresholds": decision.thresholds, "smallest_et_mm3": decision.smallest_et_mm3}
    return replace(best, scores=dice, decision=content), scored


def _answer(
    checkpoint: Checkpoint, case: StoredCase, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and masks of WT, TC and ET of a case, each (3, X, Y, Z)."""
    found = probabilities(
        checkpoint.network().to(device),
        torch.from_numpy(np.array(case.images)),
        patch_size=checkpoint.patch_size,
        device=device,
        dtype=arithmetic(device, checkpoint.precision),
    )
    labels = torch.from_numpy(np.array(case.labels))
    return found, region_targets(labels[None], checkpoint.scheme)[0]


def _scored(
    checkpoint: Checkpoint, case: StoredCase, decision: Decision, device: torch.device
) -> CaseValidation:
    found, truth = _answer(checkpoint, case, device)
    limits = torch.tensor([decision.thresholds[name] for name in REGIONS]).view(-1, 1, 1, 1)
    scheme, smallest = checkpoint.scheme, decision.smallest_et_mm3  # stored voxels are 1 mm3
    labels = paint((found >= limits).numpy(), scheme, smallest_et_voxels=smallest)
    scores = {}
    for name, drawn in zip(REGIONS, truth.numpy(), strict=True):
        mask = scheme.region(name).mask(labels)
        scores[name] = BRATS_2022.official(score(drawn, mask, (1.0, 1.0, 1.0)))
    return CaseValidation(case.id, scores)
