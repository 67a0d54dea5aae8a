"""How a network's probabilities become labels: thresholds, and the smallest enhancing tumour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.labels import REGIONS, LabelScheme

THRESHOLD = 0.5
"""Probability from which a voxel belongs to a region, where no other was selected."""


@dataclass(frozen=True)
class Decision:
    """The rule from probabilities to labels.

    Attributes:
        thresholds: By region, the probability from which a voxel belongs to it; `THRESHOLD` for a
            region that is not in here.
        smallest_et_mm3: Predicted enhancing tumour below this volume in total is relabelled as
            necrosis.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    smallest_et_mm3: float = 0.0

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Decision:
        """The decision that a checkpoint's file holds."""
        thresholds = {name: float(value) for name, value in content.get("thresholds", {}).items()}
        return cls(thresholds, float(content.get("smallest_et_mm3", 0)))

    @classmethod
    def average(cls, decisions: Sequence[Decision]) -> Decision:
        """The decision of an ensemble: the mean of each number."""
        return cls(
            {name: fmean(each.threshold(name) for each in decisions) for name in REGIONS},
            fmean(each.smallest_et_mm3 for each in decisions),
        )

    def content(self) -> dict[str, Any]:
        """As plain values, for a file."""
        return asdict(self)

    def threshold(self, region: str) -> float:
        """The probability from which a voxel belongs to `region`."""
        return self.thresholds.get(region, THRESHOLD)

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
        masks = [
            region >= self.threshold(name)
            for name, region in zip(REGIONS, probabilities, strict=True)
        ]
        return scheme.paint(np.stack(masks), smallest_et_voxels=self.smallest_et_mm3 / voxel_mm3)
