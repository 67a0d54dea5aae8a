"""How a network's probabilities become labels: thresholds, and the smallest enhancing tumour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..data.labels import REGIONS, LabelScheme

Rule = Literal["thresholds", "most likely"]

THRESHOLD = 0.5
"""Default threshold of a region's probability."""


@dataclass(frozen=True)
class Decision:
    """The rule from probabilities to labels.

    Attributes:
        thresholds: Probability threshold by region; `THRESHOLD` for a region that is missing.
        smallest_et_mm3: Predicted enhancing tumour below this volume in total is relabelled as
            necrosis.
        rule: `thresholds`, or `most likely`: the tissue of the highest probability, as a network
            decides that was trained on labels which exclude each other.
        temperatures: By region, the divisor of the logit before a probability is written; 1 for a
            region that is missing.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    smallest_et_mm3: float = 0.0
    rule: Rule = "thresholds"
    temperatures: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Decision:
        """The decision that a checkpoint's file holds."""
        thresholds = {name: float(value) for name, value in content.get("thresholds", {}).items()}
        heat = {name: float(value) for name, value in content.get("temperatures", {}).items()}
        rule: Rule = "most likely" if content.get("rule") == "most likely" else "thresholds"
        return cls(thresholds, float(content.get("smallest_et_mm3", 0)), rule, heat)

    @classmethod
    def average(cls, decisions: Sequence[Decision]) -> Decision:
        """The decision of an ensemble: the mean of each number."""
        return cls(
            {name: fmean(each.threshold(name) for each in decisions) for name in REGIONS},
            fmean(each.smallest_et_mm3 for each in decisions),
            decisions[0].rule if len({each.rule for each in decisions}) == 1 else "thresholds",
            # It is not known whether the average of several calibrated networks is calibrated.
            decisions[0].temperatures if len(decisions) == 1 else {},
        )

    def content(self) -> dict[str, Any]:
        """As plain values, for a file; what brats 0.1.0 did not have is left out by default."""
        content = asdict(self)
        if self.rule == "thresholds":
            del content["rule"]
        if not self.temperatures:
            del content["temperatures"]
        return content

    def threshold(self, region: str) -> float:
        """The probability from which a voxel belongs to `region`."""
        return self.thresholds.get(region, THRESHOLD)

    def calibrated(
        self, region: str, probability: npt.NDArray[np.floating[Any]]
    ) -> npt.NDArray[np.floating[Any]]:
        """A region's probability, its logit divided by the region's temperature."""
        temperature = self.temperatures.get(region, 1.0)
        if temperature == 1:
            return probability
        with np.errstate(divide="ignore"):  # log 0: a probability of 0 or 1 stays that
            odds = np.log(probability) - np.log1p(-probability)
        calm: npt.NDArray[np.floating[Any]] = 1 / (1 + np.exp(-odds / temperature))
        return calm

    def label_map(
        self,
        probabilities: Iterable[npt.NDArray[np.floating[Any]]],
        scheme: LabelScheme,
        *,
        voxel_mm3: float = 1.0,
    ) -> npt.NDArray[np.uint8]:
        """The label map (X, Y, Z) of the probabilities of WT, TC and ET.

        Args:
            probabilities: (X, Y, Z) of each region, which may come one at a time.
            scheme: The scheme to write labels in.
            voxel_mm3: Volume of a voxel.
        """
        if self.rule == "most likely":
            masks = _most_likely(*probabilities)
        else:
            masks = [
                region >= self.threshold(name)
                for name, region in zip(REGIONS, probabilities, strict=True)
            ]
        return scheme.paint(np.stack(masks), smallest_et_voxels=self.smallest_et_mm3 / voxel_mm3)


def _most_likely(
    whole: npt.NDArray[np.floating[Any]],
    core: npt.NDArray[np.floating[Any]],
    enhancing: npt.NDArray[np.floating[Any]],
) -> list[npt.NDArray[np.bool_]]:
    """Masks of WT, TC and ET by the most likely of background, edema, necrosis and enhancement."""
    tissue = np.stack([1 - whole, whole - core, core - enhancing, enhancing]).argmax(axis=0)
    return [tissue >= 1, tissue >= 2, tissue == 3]
