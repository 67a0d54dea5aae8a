"""The plain twin of `brats compare`: paired statistics of several models' scores, and a ranking."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CaseError, ConfigError, UnreadableFileError
from ..reading import read_text
from ..wording import did_you_mean, listing
from ..writing import require_writable
from .scores import is_ranked, lower_is_better
from .statistics import Values, bootstrap_interval, known

FORMAT = "brats-comparison/1"

DEFAULT_METRICS = ("dice", "hausdorff95_mm")
"""What is compared and ranked, as in the challenges, unless asked otherwise."""

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
    """What came out of a comparison.

    Attributes:
        differences: By pair of models, region and metric.
        ranking: The best model first.
        cases: Ids of the cases compared: those that all models have.
        missing: By model, the ids that others have and it does not.
        seed: Of the bootstrap and the permutations.
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


@dataclass(frozen=True)
class Scores:
    """A model's scores, as read from a CSV file of `brats evaluate`.

    Attributes:
        model: Its name.
        values: By case, then by region and metric; NaN where there is none.
    """

    model: str
    values: Mapping[str, Mapping[Key, float]]


def compare(
    scores: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    metric: Sequence[str] = DEFAULT_METRICS,
    seed: int = 0,
    overwrite: bool = False,
) -> Comparison:
    """Compare the scores of two models or more, case by case.

    Args:
        scores: CSV files of `brats evaluate`, one per model, named after their files.
        output: A PNG file to draw the differences and their intervals to.
        metric: The metrics to compare and to rank by.
        seed: Of the bootstrap and the permutations.
        overwrite: Whether `output` may exist.

    Raises:
        UnreadableFileError: If a file is not one of `brats evaluate`.
        CaseError: If the models have no case in common, or other regions.
        ConfigError: If there is no such metric.
    """
    if len(scores) < 2:
        raise ConfigError(
            "there is nothing to compare", hint="give the scores of two models or more"
        )
    if output is not None:
        require_writable(Path(output), overwrite=overwrite)
    paths = [Path(path) for path in scores]
    models = [read_scores(path, name) for path, name in zip(paths, model_names(paths), strict=True)]
    cases = _common_cases(models)
    keys = _common_keys(models, cases, list(metric) or list(DEFAULT_METRICS), paths)
    # (models, cases, keys), larger is better once signs are turned.
    table = np.array(
        [[[model.values[case][key] for key in keys] for case in cases] for model in models]
    )
    every = dict.fromkeys(case for model in models for case in model.values)
    found = Comparison(
        _differences([model.model for model in models], table, keys, seed),
        _ranking([model.model for model in models], table, keys, seed),
        tuple(cases),
        {
            model.model: missing
            for model in models
            if (missing := tuple(case for case in every if case not in model.values))
        },
        seed,
    )
    if output is not None:
        from .plots import save_comparison  # matplotlib takes half a second to load

        save_comparison(found, Path(output), overwrite=overwrite)
    return found


# --- reading -----------------------------------------------------------------------------------


def model_names(paths: Sequence[Path]) -> list[str]:
    """Names of files without ending, with as many folders before as tell them apart.

    >>> model_names([Path("a/scores.csv"), Path("b/scores.csv")])
    ['a/scores', 'b/scores']
    """
    for depth in range(1, 1 + max(len(path.parts) for path in paths)):
        names = ["/".join(path.with_suffix("").parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("the same file is given twice", hint="give each model's scores once")


def read_scores(path: Path, model: str) -> Scores:
    """Read the CSV file of `brats evaluate`.

    Raises:
        UnreadableFileError: If it has no columns `case` and `region`, or a cell is not a number.
    """
    values: dict[str, dict[Key, float]] = {}
    try:
        rows = csv.DictReader(read_text(path).splitlines())
        names = list(rows.fieldnames or ())
        if names[:2] != ["case", "region"]:
            raise UnreadableFileError(
                path,
                "it does not begin with the columns case and region",
                hint="give what brats evaluate -o FILE.csv wrote",
            )
        for number, row in enumerate(rows, 2):
            _add_row(values.setdefault(row["case"], {}), row, names[2:], path, number)
    except csv.Error as error:
        raise UnreadableFileError(path, "it is not a CSV file that can be read") from error
    if not values:
        raise UnreadableFileError(path, "it has no scores", hint="was any case scored?")
    return Scores(model, values)


def _add_row(
    case: dict[Key, float], row: Mapping[str, str | None], names: list[str], path: Path, line: int
) -> None:
    region = row["region"] or ""
    for name in names:
        cell = row[name]
        if cell is None or (region, name) in case:
            reason = "is cut short" if cell is None else f"has region {region} of a case again"
            raise UnreadableFileError(path, f"line {line} {reason}")
        try:
            case[region, name] = float(cell) if cell else math.nan
        except ValueError:
            raise UnreadableFileError(
                path,
                f"line {line} has '{cell}' for {name}, which is not a number",
                hint="give what brats evaluate -o FILE.csv wrote, unchanged",
            ) from None


def _common_cases(models: Sequence[Scores]) -> list[str]:
    common = [
        case for case in models[0].values if all(case in other.values for other in models[1:])
    ]
    if not common:
        some = "; ".join(f"{each.model}: {listing(list(each.values))}" for each in models)
        raise CaseError(
            f"the models have no case in common ({some})",
            hint="compare scores of predictions of the same cases",
        )
    return common


def _common_keys(
    models: Sequence[Scores], cases: Sequence[str], metrics: Sequence[str], paths: Sequence[Path]
) -> list[Key]:
    """The regions and metrics that every case of every model has."""
    first = models[0].values[cases[0]]
    for model, path in zip(models, paths, strict=True):
        columns = dict.fromkeys(metric for _, metric in model.values[cases[0]])
        for metric in metrics:
            if metric not in columns or not is_ranked(metric):
                ranked = [name for name in columns if is_ranked(name)]
                raise ConfigError(
                    f"{path} has no metric '{metric}' to compare",
                    hint=did_you_mean(metric, ranked, otherwise=f"it has {', '.join(ranked)}"),
                )
    regions = dict.fromkeys(region for region, _ in first)
    for model, path in zip(models, paths, strict=True):
        for case in cases:
            lacking = [r for r in regions if (r, metrics[0]) not in model.values[case]]
            extra = {region for region, _ in model.values[case]} - set(regions)
            if lacking or extra:
                raise CaseError(
                    f"{path} has other regions of case {case} than {paths[0]}: "
                    f"{listing(sorted({region for region, _ in model.values[case]}))} "
                    f"instead of {listing(list(regions))}",
                    hint="score all models against the same references",
                )
    return [(region, metric) for region in regions for metric in metrics]


# --- statistics --------------------------------------------------------------------------------


def _differences(
    models: Sequence[str], table: Values, keys: Sequence[Key], seed: int
) -> tuple[Difference, ...]:
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
    return tuple(
        Difference(**{**vars(each), "p_holm": p}) for each, p in zip(found, corrected, strict=True)
    )


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


def _ranking(
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
