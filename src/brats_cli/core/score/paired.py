"""Paired statistics of models on the same cases, and the ranking of BraTS."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .scores import lower_is_better
from .statistics import Values, bootstrap_interval, known

FORMAT = "brats-comparison/1"

PERMUTATIONS = 10_000

Key = tuple[str, str]
"""Region and metric."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One metric of one region, model `a` minus model `b` over the cases that both have.

    Attributes:
        a: Name of the first model.
        b: Name of the second.
        region: The region.
        metric: The metric.
        n: Cases with a value by both.
        mean_difference: NaN if there is no such case.
        ci95: Bootstrap interval of the mean difference, of resampled cases.
        p: Of the Wilcoxon signed-rank test, two-sided; 1 if all differences are 0.
        p_holm: The same, corrected by Holm for all comparisons made.
        wins: Cases in which `a` is better.
        ties: Cases without a difference.
        losses: Cases in which `b` is better.
    """

    a: str
    b: str
    region: str
    metric: str
    n: int
    mean_difference: float
    ci95: tuple[float, float]
    p: float
    p_holm: float
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Ranked:
    """A model's place, as BraTS ranks.

    Attributes:
        model: Its name.
        rank: 1 is the best.
        score: Its mean rank over all cases, regions and metrics.
        p_next: Of the permutation test against the next model in the ranking; NaN for the last.
    """

    model: str
    rank: int
    score: float
    p_next: float


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        differences: By pair of models, region and metric.
        ranking: The best model first.
        cases: Ids of the cases compared: those that all models have.
        missing: By model, the ids that others have and it does not.
        seed: Random seed of the bootstrap and the permutations.
    """

    differences: tuple[Difference, ...]
    ranking: tuple[Ranked, ...]
    cases: tuple[str, ...]
    missing: Mapping[str, tuple[str, ...]]
    seed: int

    def to_json_dict(self) -> dict[str, Any]:
        """All of it, for `json.dump`; what has no value is None."""
        return {
            "format": FORMAT,
            "cases": len(self.cases),
            "missing": {model: list(ids) for model, ids in self.missing.items()},
            "seed": self.seed,
            "pairs": [
                {
                    "a": each.a,
                    "b": each.b,
                    "region": each.region,
                    "metric": each.metric,
                    "n": each.n,
                    "mean_difference": known(each.mean_difference),
                    "ci95": None if math.isnan(each.ci95[0]) else list(each.ci95),
                    "p": known(each.p),
                    "p_holm": known(each.p_holm),
                    "wins": each.wins,
                    "ties": each.ties,
                    "losses": each.losses,
                }
                for each in self.differences
            ],
            "ranking": [
                {
                    "model": each.model,
                    "rank": each.rank,
                    "score": each.score,
                    "p_next": known(each.p_next),
                }
                for each in self.ranking
            ],
        }


def differences(
    models: Sequence[str], table: Values, keys: Sequence[Key], seed: int
) -> tuple[Difference, ...]:
    """Each pair of models by region and metric.

    Args:
        models: Their names.
        table: (models, cases, keys); NaN where there is no value.
        keys: Region and metric of each column.
        seed: Of the bootstrap.
    """
    from scipy.stats import wilcoxon  # takes most of a second to load

    found = []
    for first, second in itertools.combinations(range(len(models)), 2):
        for number, (region, metric) in enumerate(keys):
            off = table[first, :, number] - table[second, :, number]
            off = off[~np.isnan(off)]
            gain = -off if lower_is_better(metric) else off
            # zsplit would count the ties for both; Wilcoxon's own rule is to leave them out.
            p = float(wilcoxon(off).pvalue) if off.any() else (1.0 if len(off) else math.nan)
            found.append(
                Difference(
                    a=models[first],
                    b=models[second],
                    region=region,
                    metric=metric,
                    n=len(off),
                    mean_difference=float(off.mean()) if len(off) else math.nan,
                    ci95=bootstrap_interval(off, seed=seed),
                    p=p,
                    p_holm=p,
                    wins=int((gain > 0).sum()),
                    ties=int((gain == 0).sum()),
                    losses=int((gain < 0).sum()),
                )
            )
    corrected = holm([each.p for each in found])
    return tuple(replace(each, p_holm=p) for each, p in zip(found, corrected, strict=True))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the smallest p times their number, the next times one less, and so on.

    Never less than that of a smaller p, never above 1; NaN is not counted.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(
        (place for place, p in enumerate(p_values) if not math.isnan(p)),
        key=lambda place: p_values[place],
    )
    corrected = list(p_values)
    so_far = 0.0
    for done, place in enumerate(order):
        so_far = max(so_far, min(1.0, p_values[place] * (len(order) - done)))
        corrected[place] = so_far
    return corrected


def ranking(
    models: Sequence[str], table: Values, keys: Sequence[Key], seed: int
) -> tuple[Ranked, ...]:
    """As BraTS ranks: by case, region and metric, then averaged.

    Equal values share the mean of their ranks; what is undefined is the worst.
    """
    from scipy.stats import rankdata

    worst_first = np.array([1.0 if lower_is_better(metric) else -1.0 for _, metric in keys])
    costs = np.where(np.isnan(table), np.inf, table * worst_first)
    ranks = rankdata(costs, axis=0).mean(axis=2)  # (models, cases)
    scores = ranks.mean(axis=1)
    order = np.argsort(scores, kind="stable")
    found = []
    for place, model in enumerate(order):
        p = math.nan
        if place + 1 < len(order):
            p = permutation_p(ranks[order[place + 1]] - ranks[model], seed=seed)
        rank = 1 + int((scores < scores[model]).sum())
        found.append(Ranked(models[model], rank, float(scores[model]), p))
    return tuple(found)


def permutation_p(differences: Values, *, seed: int) -> float:
    """How often the mean is at least as large when the signs are drawn at random (one-sided).

    As BraTS tests neighbours in its ranking: each case's ranks of the two models are exchanged
    with probability 1/2. All ways are tried where they are fewer than `PERMUTATIONS`.
    """
    n = len(differences)
    if 2**n <= PERMUTATIONS:
        signs: npt.NDArray[Any] = np.array(list(itertools.product((1, -1), repeat=n)))
    else:
        signs = np.random.default_rng(seed).choice((1, -1), size=(PERMUTATIONS, n))
    # Sums of the same numbers in another order differ in the last place.
    reached = signs @ differences >= differences.sum() - 1e-9
    if 2**n <= PERMUTATIONS:
        return float(reached.mean())
    return float((reached.sum() + 1) / (PERMUTATIONS + 1))
