"""Threshold selection: the decision of a finished run, selected and scored on validation cases."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from ..compute.devices import arithmetic, sent
from ..compute.distributed import ALONE, Group
from ..compute.processes import one_ahead
from ..data.labels import REGIONS
from ..model.checkpoint import Checkpoint
from ..model.decision import THRESHOLD, Decision
from ..model.network import on_device
from ..model.segmenter import Segmenter
from ..prepared.store import StoredCase
from ..score.conventions import BRATS_2022
from ..score.metrics import MaskScore, score
from .calibration import LogitCounts, fit_temperatures, is_significant

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(4, 17))
"""Thresholds that are tried: 0.2 to 0.8."""

SMALLEST_ET_MM3 = (0, 25, 50, 100, 200, 500)
"""Minimum volumes of enhancing tumour that are tried; below, it is relabelled as necrosis."""

WORTHWHILE = 0.005
"""Minimum gain in mean Dice, besides significance, to depart from the defaults."""


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
        """Counts from probabilities and reference masks, both (R, X, Y, Z)."""
        # How many of the thresholds a voxel reaches.
        limits = sent(torch.tensor(THRESHOLDS), probability.device)
        reached = torch.bucketize(probability.contiguous(), limits, right=True)
        found: list[npt.NDArray[np.int64]] = []
        common: list[npt.NDArray[np.int64]] = []
        for levels, mask in zip(reached, truth, strict=True):
            for counts, voxels in ((found, levels.flatten()), (common, levels[mask])):
                of_each = voxels.bincount(minlength=len(THRESHOLDS) + 1).cpu().numpy()
                counts.append(of_each[::-1].cumsum()[::-1][1:])
        return cls(truth.flatten(1).sum(1).cpu().numpy(), np.stack(found), np.stack(common))

    def dice(self) -> npt.NDArray[np.float64]:
        """(R, T); 1 where a region is empty in both."""
        total = self.true[:, None] + self.found
        return np.where(total == 0, 1, 2 * self.common / np.maximum(total, 1))


def select_decision(cases: Sequence[Counts]) -> Decision:
    """The thresholds and the minimum volume of ET with the highest mean Dice over cases.

    Cases have voxels of 1 mm. A value that gains little, or not significantly, keeps its
    default.
    """
    dice = np.stack([case.dice() for case in cases], axis=-1)  # (R, T, N)
    usual = THRESHOLDS.index(THRESHOLD)
    chosen = [_best(of_region, usual) for of_region in dice]
    et = REGIONS.index("ET")
    drawn = np.array([case.true[et] for case in cases])
    found = np.array([case.found[et, chosen[et]] for case in cases])
    kept = dice[et, chosen[et]]
    # Without predicted ET, a case scores 1 if it has none, else 0.
    scores = [np.where(found < size, drawn == 0, kept) for size in SMALLEST_ET_MM3]
    return Decision(
        {name: THRESHOLDS[place] for name, place in zip(REGIONS, chosen, strict=True)},
        float(SMALLEST_ET_MM3[_best(np.stack(scores), 0)]),
    )


def _best(scores: npt.NDArray[np.float64], usual: int) -> int:
    """The choice with the highest mean of `scores` (choices, N cases).

    The default choice, unless the gain over it is large enough and significant.
    """
    best = int(scores.mean(axis=1).argmax())
    gains = scores[best] - scores[usual]
    if len(gains) < 2 or gains.mean() < WORTHWHILE:
        return usual
    return best if is_significant(gains) else usual


@dataclass(frozen=True)
class FinalScore:
    """A validation case, segmented by the finished network.

    Attributes:
        case_id: Its id.
        scores: By region, as the challenges up to BraTS 2022 scored them.
    """

    case_id: str
    scores: dict[str, MaskScore]


@dataclass(frozen=True)
class SelectionPass:
    """A pass over a validation case, of which there are two: to select, and to score.

    Attributes:
        done: Passes done by this process.
        passes: Number of passes in all.
    """

    done: int
    passes: int


def select_thresholds(
    best: Checkpoint,
    validation: Sequence[StoredCase],
    device: torch.device,
    *,
    group: Group = ALONE,
) -> Generator[SelectionPass, None, tuple[Checkpoint, list[FinalScore]]]:
    """Select a run's thresholds and minimum volume of ET on validation cases, and score these.

    Args:
        best: The run's best checkpoint.
        validation: Cases as they were stored for the run.
        device: Where to compute.
        group: The processes that share the cases.

    Returns:
        The checkpoint with its decision and the Dice it has then, and the scores of each case.
    """
    segmenter = Segmenter(
        network=on_device(best.network(), device),
        device=device,
        dtype=arithmetic(device, best.precision),
        patch_size=best.patch_size,
    )
    mine = group.share(validation)
    counts, logits, scored = [], [], []
    yield SelectionPass(0, 2 * len(mine))
    for case in one_ahead(StoredCase.read, mine):
        found = segmenter.probabilities(case.images)
        labels = torch.from_numpy(np.asarray(case.labels)).to(found.device)
        truth = torch.stack(best.scheme.masks(labels))
        counts.append(Counts.of(found, truth))
        logits.append(LogitCounts.of(found, truth))
        yield SelectionPass(len(counts), 2 * len(mine))
    decision = select_decision(group.gathered(counts))
    decision = replace(decision, temperatures=fit_temperatures(group.gathered(logits)))
    for case in one_ahead(StoredCase.read, mine):
        scored.append(_scored(segmenter, case, best, decision))
        yield SelectionPass(len(mine) + len(scored), 2 * len(mine))
    scored = group.gathered(scored)
    dice = {name: float(np.mean([case.scores[name].dice for case in scored])) for name in REGIONS}
    return replace(best, scores=dice, decision=decision), scored


def _scored(
    segmenter: Segmenter, case: StoredCase, checkpoint: Checkpoint, decision: Decision
) -> FinalScore:
    found = segmenter.probabilities(case.images).cpu()
    labels = decision.label_map(found.numpy(), checkpoint.scheme)  # stored voxels are 1 mm3
    pairs = zip(case.masks(checkpoint.scheme), checkpoint.scheme.masks(labels), strict=True)
    scores = [BRATS_2022.official(score(drawn, mask, (1.0, 1.0, 1.0))) for drawn, mask in pairs]
    return FinalScore(case.id, dict(zip(REGIONS, scores, strict=True)))
