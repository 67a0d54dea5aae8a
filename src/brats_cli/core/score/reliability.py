"""Reliability of probabilities: of voxels with a probability of 0.8, 80 % should be tumour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.labels import REGIONS
from ..data.naming import companion
from ..errors import CaseError, UnreadableFileError
from ..images.grid import Mask, Volume, require_same_grid
from ..images.nifti import as_float32, read_volume
from .pairing import Pair, Scoring, read_pair

BINS = 10
"""Of equal width, from 0 to 1."""

LEAST = 0.01
"""Probability below which voxels are not counted: nearly all of a head is certainly no tumour, and
an average over it would say so whatever happens in the tumour."""


@dataclass(frozen=True)
class Reliability:
    """The probabilities of a region, against the expert's label map.

    Attributes:
        voxels: Voxels in each bin, (BINS,).
        probability: Sum of their probabilities.
        inside: How many of them are inside the region.
    """

    voxels: npt.NDArray[Any]
    probability: npt.NDArray[Any]
    inside: npt.NDArray[Any]

    @classmethod
    def of(cls, probability: npt.NDArray[np.floating[Any]], truth: Mask) -> Reliability:
        """That of one case: a region's probabilities (X, Y, Z), and its mask."""
        counted = probability >= LEAST
        values, drawn = probability[counted], truth[counted]
        bins = np.minimum((values * BINS).astype(int), BINS - 1)
        return cls(
            np.bincount(bins, minlength=BINS).astype(float),
            np.bincount(bins, values, minlength=BINS),
            np.bincount(bins, drawn, minlength=BINS),
        )

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            self.voxels + other.voxels,
            self.probability + other.probability,
            self.inside + other.inside,
        )

    @property
    def ece(self) -> float:
        """Expected calibration error: mean gap of probability and frequency over voxels; or NaN.

        Naeini et al. 2015, with ten bins.
        """
        total = self.voxels.sum()
        return float(np.abs(self.probability - self.inside).sum() / total) if total else np.nan

    def content(self) -> dict[str, Any]:
        """As plain values; None where a bin is empty."""
        with np.errstate(invalid="ignore"):
            means = self.probability / self.voxels, self.inside / self.voxels
        probability, frequency = (
            [None if np.isnan(value) else round(float(value), 6) for value in mean]
            for mean in means
        )
        return {
            "ece": None if np.isnan(self.ece) else round(self.ece, 6),
            "voxels": [int(count) for count in self.voxels],
            "probability": probability,
            "frequency": frequency,
        }


def reliability_of(pairs: Sequence[Pair], scoring: Scoring) -> dict[str, Reliability]:
    """By region, the reliability over all voxels of all cases that have a prediction.

    Raises:
        BratsError: If a file cannot be read, or does not lie on the grid of the reference.
    """
    total: dict[str, Reliability] = {}
    for pair in pairs:
        if pair.predicted is None:
            continue
        reference, _ = read_pair(pair, scoring)
        maps = _probabilities(pair.predicted, reference.volume)
        for region, values in maps.items():
            found = Reliability.of(values, reference.region(region))
            total[region] = total[region] + found if region in total else found
    return total


def require_probabilities(pairs: Sequence[Pair]) -> None:
    """Check that every prediction has its probabilities beside it.

    Raises:
        CaseError: If one has none.
    """
    for pair in pairs:
        if pair.predicted is None:
            continue
        path = companion(pair.predicted, "probabilities")
        if not path.is_file():
            raise CaseError(
                f"case {pair.case} has no probabilities: there is no {path}",
                hint="brats predict --probabilities writes them beside the label maps",
            )


def _probabilities(predicted: Path, like: Volume) -> Mapping[str, npt.NDArray[np.float32]]:
    """The probabilities of a case by region, as `brats predict --probabilities` writes them."""
    path = companion(predicted, "probabilities")
    volume = read_volume(path)
    require_same_grid([like, volume])
    data = as_float32(volume.data)
    if data.ndim != 4 or data.shape[3] != len(REGIONS) or not (data.min() >= 0 <= data.max() <= 1):
        raise UnreadableFileError(
            path,
            f"it holds no probabilities of {', '.join(REGIONS)}",
            hint="it has to hold one map each, with values from 0 to 1",
        )
    return {region: data[..., number] for number, region in enumerate(REGIONS)}
