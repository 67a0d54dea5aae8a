"""Statistics of a metric over many cases: mean, spread and confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

RESAMPLES = 2000
"""Of the bootstrap."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """One metric over the cases that have a value of it.

    Attributes:
        mean: NaN if no case has a value.
        std: Of the sample (n - 1); NaN for fewer than two cases.
        median: NaN if no case has a value.
        ci95: Where the mean of all such cases lies with 95 % confidence, by Student's t. It takes
            the mean as normally distributed, so that it may reach beyond 1 for few cases.
        ci95_bootstrap: The same from resampling the cases, which stays within what was seen.
        n: Cases with a value.
    """

    mean: float
    std: float
    median: float
    ci95: tuple[float, float]
    ci95_bootstrap: tuple[float, float]
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Statistics:
        """The statistics of those `values` that are not NaN."""
        found = np.array([value for value in values if not math.isnan(value)])
        n = len(found)
        mean = float(found.mean()) if n else math.nan
        std = float(found.std(ddof=1)) if n > 1 else math.nan
        margin = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n) if n > 1 else math.nan
        median = float(np.median(found)) if n else math.nan
        interval = (mean - margin, mean + margin)
        return cls(mean, std, median, interval, bootstrap_interval(found), n)

    def in_words(self, digits: int) -> str:
        """`mean ± std [interval]`, for papers; a dash if no case has a value."""
        if not self.n:
            return "-"
        text = f"{self.mean:.{digits}f}"
        if self.n > 1:
            low, high = self.ci95_bootstrap
            text += f" ± {self.std:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
        return text

    def to_json_dict(self) -> dict[str, Any]:
        """For `json.dump`; what has no value is None."""
        return {
            "mean": known(self.mean),
            "std": known(self.std),
            "median": known(self.median),
            "ci95": list(self.ci95) if self.n > 1 else None,
            "n": self.n,
            "ci95_bootstrap": list(self.ci95_bootstrap) if self.n > 1 else None,
        }


def bootstrap_interval(values: Values, *, seed: int = 0) -> tuple[float, float]:
    """Where the mean of `values` lies with 95 % confidence: percentiles of resampled means.

    Efron's percentile interval of `RESAMPLES` samples with replacement; NaN for fewer than two.
    """
    if len(values) < 2:
        return math.nan, math.nan
    means = _draws(len(values), seed) @ values / len(values)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


@lru_cache(maxsize=8)
def _draws(n: int, seed: int) -> Values:
    """How often each of `n` cases is drawn in each resample, (RESAMPLES, n)."""
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    drawn += n * np.arange(RESAMPLES)[:, None]
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n).astype(float)


Summary = Mapping[str, Mapping[str, Statistics]]
"""Statistics by region and metric."""


def known(value: float) -> float | None:
    """`value`, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value
