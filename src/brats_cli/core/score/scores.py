"""What an evaluation found: the scores of every case, their means, and files of both."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..data.labels import SCHEMES
from ..errors import ConfigError
from ..wording import did_you_mean
from ..writing import whole_file
from .conventions import BRATS_2022, Convention
from .metrics import MaskScore
from .pairing import Matching
from .statistics import Statistics, Summary, known

FORMAT = "brats-scores/1"

METRICS = tuple(field.name for field in fields(MaskScore))
"""The columns of `scores.csv` after case and region."""


@dataclass(frozen=True)
class CaseScore:
    """The metrics of one region of one case, NaN where an empty mask leaves none."""

    case: str
    region: str
    metrics: MaskScore


@dataclass(frozen=True)
class Failure:
    """A case that could not be scored, and why."""

    case: str
    message: str
    hint: str


Outcome = tuple[CaseScore, ...] | Failure


@dataclass(frozen=True)
class Threshold:
    """A mean that has to be reached; for distances, one that may not be exceeded."""

    region: str
    metric: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """A threshold as given on the command line, such as `WT.dice=0.8`.

        Raises:
            ConfigError: If it has another form, or no such region or metric can be scored.
        """
        key, _, number = text.partition("=")
        region, _, metric = key.partition(".")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise ConfigError(
                f"'{text}' is not a threshold", hint="write REGION.METRIC=NUMBER, as WT.dice=0.8"
            )
        regions = sorted({region.name for scheme in SCHEMES.values() for region in scheme.regions})
        _require_known(region, regions, what="region", text=text)
        thresholds = [name for name in METRICS if not name.endswith("_mm3")]
        _require_known(metric, thresholds, what="metric", text=text)
        return cls(region, metric, value)

    def missed_by(self, summary: Summary) -> str | None:
        """How the official mean misses this threshold, in words; None if it does not."""
        name = f"{self.region}.{self.metric}"
        mean = summary[self.region][self.metric].mean if self.region in summary else math.nan
        if math.isnan(mean):
            return f"{name} has no value in any case"
        is_distance = self.metric.endswith("_mm")
        if mean > self.value if is_distance else mean < self.value:
            return f"{name} is {mean:.4g}, {'over' if is_distance else 'under'} {self.value:g}"
        return None


def _require_known(name: str, names: Sequence[str], *, what: str, text: str) -> None:
    if name not in names:
        raise ConfigError(
            f"there is no {what} '{name}' to set a threshold on ('{text}')",
            hint=did_you_mean(name, names, otherwise=f"choose from {', '.join(names)}", cutoff=0.4),
        )


@dataclass(frozen=True)
class Report:
    """What came out of an evaluation.

    Attributes:
        scores: One per case and region, in order of the cases.
        failures: The cases that could not be scored.
        without_reference: Ids of predictions that had no reference to be scored by.
        without_prediction: Ids of references that had no prediction.
        tolerance_mm: How far off a surface may be for the surface Dice.
        convention: What an empty mask scores in the official values.
        missed: The thresholds that the official means miss, each in words.
    """

    scores: tuple[CaseScore, ...]
    failures: tuple[Failure, ...] = ()
    without_reference: tuple[str, ...] = ()
    without_prediction: tuple[str, ...] = ()
    tolerance_mm: float = 1.0
    convention: Convention = BRATS_2022
    missed: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        matching: Matching,
        outcomes: Iterable[Outcome],
        tolerance_mm: float,
        thresholds: Sequence[Threshold] = (),
    ) -> Report:
        """The report on what `score_pairs` made of `matching`."""
        scores: list[CaseScore] = []
        failures = []
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                scores.extend(outcome)
        summary = _summarize(scores_of(BRATS_2022, scores))
        missed = [words for each in thresholds if (words := each.missed_by(summary))]
        return cls(
            tuple(scores),
            tuple(failures),
            matching.without_reference,
            matching.without_prediction,
            tolerance_mm,
            missed=tuple(missed) if scores else (),
        )

    @property
    def official(self) -> tuple[CaseScore, ...]:
        """The scores with what the convention says for empty masks."""
        return scores_of(self.convention, self.scores)

    def summary(self) -> Summary:
        """Statistics of the official values."""
        return _summarize(self.official)

    def summary_of_defined(self) -> Summary:
        """Statistics of the cases in which a metric has a value without any convention."""
        return _summarize(self.scores)

    def to_csv(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the official values, a row per case and region; no value is an empty cell.

        Raises:
            OutputExistsError: If `path` exists and `overwrite` is false.
            OutputError: If it cannot be written.
        """
        with (
            whole_file(path, overwrite=overwrite) as partial_path,
            partial_path.open("w", newline="", encoding="utf-8") as file,
        ):
            rows = csv.DictWriter(file, ["case", "region", *METRICS], lineterminator="\n")
            rows.writeheader()
            rows.writerows(_plain(self.official))

    def to_json_dict(self) -> dict[str, Any]:
        """All of it, for `json.dump`; what has no value is None."""
        return {
            "format": FORMAT,
            "convention": self.convention.name,
            "missed_mm": self.convention.missed_mm,
            "tolerance_mm": self.tolerance_mm,
            "cases": _plain(self.official),
            "summary": _plain_summary(self.summary()),
            "summary_defined": _plain_summary(self.summary_of_defined()),
            "failed": [asdict(failure) for failure in self.failures],
            "without_reference": list(self.without_reference),
        }


def scores_of(convention: Convention, scores: Iterable[CaseScore]) -> tuple[CaseScore, ...]:
    """`scores` with what `convention` says for empty masks."""
    return tuple(
        CaseScore(each.case, each.region, convention.official(each.metrics)) for each in scores
    )


def _summarize(scores: Sequence[CaseScore]) -> Summary:
    regions = dict.fromkeys(each.region for each in scores)
    return {
        region: {
            metric: Statistics.of(
                getattr(each.metrics, metric) for each in scores if each.region == region
            )
            for metric in METRICS
        }
        for region in regions
    }


def _plain(scores: Sequence[CaseScore]) -> list[dict[str, Any]]:
    """Rows of builtins: case, region and metrics, None for what has no value."""
    return [
        {"case": each.case, "region": each.region}
        | {metric: known(value) for metric, value in asdict(each.metrics).items()}
        for each in scores
    ]


def _plain_summary(summary: Summary) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        region: {metric: found.to_json_dict() for metric, found in metrics.items()}
        for region, metrics in summary.items()
    }
