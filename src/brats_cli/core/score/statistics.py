"""How the values of many cases become one line: mean, spread and what is certain of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Statistics:
    """One metric over the cases that have a value of it.

    Attributes:
        mean: NaN if no case has a value.
        std: Of the sample (n - 1); NaN for fewer than two cases.
        median: NaN if no case has a value.
        ci95: Where the mean of all such cases lies with 95 % confidence, by Student's t. It takes
            the mean as normally distributed, so that it may reach beyond 1 for few cases.
        n: Cases with a value.
    """

    mean: float
    std: float
    median: float
    ci95: tuple[float, float]
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Statistics:
        """The statistics of those `values` that are not NaN."""
        known = np.array([value for value in values if not math.isnan(value)])
        n = len(known)
        mean = float(known.mean()) if n else math.nan
        std = float(known.std(ddof=1)) if n > 1 else math.nan
        margin = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n) if n > 1 else math.nan
        median = float(np.median(known)) if n else math.nan
        return cls(mean, std, median, (mean - margin, mean + margin), n)

    def to_json_dict(self) -> dict[str, Any]:
        """For `json.dump`; what has no value is None."""
        return {
            "mean": known(self.mean),
            "std": known(self.std),
            "median": known(self.median),
            "ci95": list(self.ci95) if self.n > 1 else None,
            "n": self.n,
        }


Summary = Mapping[str, Mapping[str, Statistics]]
"""Statistics by region and metric."""


def known(value: float) -> float | None:
    """`value`, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value
