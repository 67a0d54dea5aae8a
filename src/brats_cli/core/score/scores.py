"""The result of an evaluation: the scores of every case, their means, and the files of both."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.labels import SCHEMES
from ..errors import ConfigError
from ..wording import did_you_mean
from ..writing import whole_file
from .conventions import Convention
from .lesions import Lesion, LesionScore
from .metrics import MaskScore
from .pairing import Matching, Pair, Scoring
from .reliability import Reliability
from .statistics import Statistics, Summary, known
from .uncertainty import UncertaintyScore

FORMAT = "brats-scores/1"

METRICS = tuple(each.name for each in fields(MaskScore))
"""The columns of `scores.csv` after case and region."""

LESION_METRICS = tuple(each.name for each in fields(LesionScore) if each.name != "table")
UNCERTAINTY_METRICS = tuple(each.name for each in fields(UncertaintyScore))
"""Further columns, where they were asked for."""

SURFACE_DICE_OF_LESIONS = ("lesion_surface_dice_05", "lesion_surface_dice_1")
"""Those of them that only the rules of 2024 give."""

WORST = 5
"""Cases that a report shows in slices."""


@dataclass(frozen=True)
class CaseScore:
    """The scores of one region of one case.

    Attributes:
        case: Case id.
        region: Name of the region.
        metrics: NaN where an empty mask leaves one undefined.
        penalty_mm: What the convention charges for a missed or invented tumour of this case.
        lesions: Scores lesion by lesion, if asked for.
        uncertainty: Scores of the uncertainty, if asked for.
    """

    case: str
    region: str
    metrics: MaskScore
    penalty_mm: float | None = None
    lesions: LesionScore | None = None
    uncertainty: UncertaintyScore | None = None

    @property
    def empty(self) -> str:
        """How an empty mask decides this score: `both empty`, `missed`, `invented`, or not."""
        drawn, found = self.metrics.reference_mm3 > 0, self.metrics.predicted_mm3 > 0
        return {(0, 0): "both empty", (1, 0): "missed", (0, 1): "invented"}.get((drawn, found), "")

    def values(self) -> dict[str, float]:
        """Every number by column."""
        found: dict[str, float] = {name: getattr(self.metrics, name) for name in METRICS}
        for names, part in (
            (LESION_METRICS, self.lesions),
            (UNCERTAINTY_METRICS, self.uncertainty),
        ):
            if part is not None:
                found |= {name: getattr(part, name) for name in names}
        return found


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
        every = (*METRICS, *LESION_METRICS, *UNCERTAINTY_METRICS)
        _require_known(metric, [m for m in every if is_ranked(m)], what="metric", text=text)
        return cls(region, metric, value)

    def missed_by(self, summary: Summary) -> str | None:
        """How the official mean misses this threshold, in words; None if it does not."""
        name = f"{self.region}.{self.metric}"
        found = summary.get(self.region, {}).get(self.metric)
        if found is None or math.isnan(found.mean):
            return f"{name} has no value in any case"
        over = lower_is_better(self.metric)
        if found.mean > self.value if over else found.mean < self.value:
            return f"{name} is {found.mean:.4g}, {'over' if over else 'under'} {self.value:g}"
        return None


HEADINGS: Mapping[str, str] = {
    "dice": "Dice",
    "hausdorff95_mm": "HD95 (mm)",
    "surface_dice": "surface Dice",
    "sensitivity": "sensitivity",
    "precision": "precision",
    "lesion_dice": "lesion Dice",
    "lesion_hausdorff95_mm": "lesion HD95 (mm)",
    "uncertainty_score": "uncertainty score",
}
"""The metrics that papers report, with their usual names."""


def digits_of(metric: str) -> int:
    """Decimals worth showing."""
    return 2 if metric.endswith("_mm") or metric.startswith("lesions") else 3


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a distance, a number of mistakes or a share that should be small."""
    return metric.endswith(("_mm", "_missed", "_invented", "_ftp_auc", "_ftn_auc"))


def is_ranked(metric: str) -> bool:
    """Whether a metric has a better and a worse end; volumes and numbers of lesions have none."""
    return not metric.endswith("_mm3") and metric not in ("lesions", "lesions_found")


def _require_known(name: str, names: Sequence[str], *, what: str, text: str) -> None:
    if name not in names:
        raise ConfigError(
            f"there is no {what} '{name}' to set a threshold on ('{text}')",
            hint=did_you_mean(name, names, otherwise=f"choose from {', '.join(names)}", cutoff=0.4),
        )


@dataclass(frozen=True)
class Report:
    """The result of an evaluation.

    Attributes:
        scores: One per case and region, in order of the cases.
        failures: The cases that could not be scored.
        without_reference: Ids of predictions that had no reference to be scored by.
        without_prediction: Ids of references that had no prediction.
        scoring: How they were scored.
        missed: The thresholds that the official means miss, each in words.
        pairs: The files.
        reliability: Of the probabilities by region, if asked for.
    """

    scores: tuple[CaseScore, ...]
    failures: tuple[Failure, ...] = ()
    without_reference: tuple[str, ...] = ()
    without_prediction: tuple[str, ...] = ()
    scoring: Scoring = field(default_factory=Scoring)
    missed: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()
    reliability: Mapping[str, Reliability] = field(default_factory=dict)

    @classmethod
    def of(cls, matching: Matching, outcomes: Iterable[Outcome], scoring: Scoring) -> Report:
        """The report on what `score_pairs` made of `matching`."""
        scores: list[CaseScore] = []
        failures = []
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                scores.extend(outcome)
        return cls(
            tuple(scores),
            tuple(failures),
            matching.without_reference,
            matching.without_prediction,
            scoring,
            pairs=matching.pairs,
        )

    @property
    def convention(self) -> Convention:
        """The convention of the official values."""
        return self.scoring.convention

    @property
    def lesion_wise(self) -> str | None:
        """The year whose lesion-wise rules were followed, if any."""
        return self.scoring.lesion_wise

    def with_missed(self, thresholds: Sequence[Threshold]) -> Report:
        """This report with the `thresholds` that the means miss; none if no case was scored."""
        summary = self.summary() if thresholds and self.scores else {}
        missed = [words for each in thresholds if (words := each.missed_by(summary))]
        return replace(self, missed=tuple(missed) if self.scores else ())

    @property
    def columns(self) -> tuple[str, ...]:
        """The metrics that the cases have."""
        names = dict.fromkeys(name for each in self.scores for name in each.values())
        if self.lesion_wise != "2024":
            names = {name: None for name in names if name not in SURFACE_DICE_OF_LESIONS}
        return tuple(names) or METRICS

    @property
    def cases(self) -> tuple[str, ...]:
        """Ids of the cases that were scored."""
        return tuple(dict.fromkeys(each.case for each in self.scores))

    @cached_property
    def official(self) -> tuple[CaseScore, ...]:
        """The scores with the convention's values for empty masks."""
        return tuple(
            replace(each, metrics=self.convention.official(each.metrics, each.penalty_mm))
            for each in self.scores
        )

    def decided_by_rule(self) -> dict[str, list[tuple[str, str]]]:
        """By region, the cases whose score an empty mask decides, and how; the means hide them."""
        decided: dict[str, list[tuple[str, str]]] = {}
        for each in self.scores:
            if each.empty:
                decided.setdefault(each.region, []).append((each.case, each.empty))
        return decided

    def summary(self) -> Summary:
        """Statistics of the official values."""
        return _summarize(self.official, self.columns)

    def summary_of_defined(self) -> Summary:
        """Statistics of the cases in which a metric has a value without any convention."""
        return _summarize(self.scores, self.columns)

    def to_csv(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the official values, a row per case and region; no value is an empty cell.

        The last columns say by which rules: the convention, and what differs from the defaults.

        Raises:
            OutputExistsError: If `path` exists and `overwrite` is false.
            OutputError: If it cannot be written.
        """
        rules = self.scoring.rules()
        rows = [row | rules for row in _plain(self.official, self.columns)]
        columns = ["case", "region", *self.columns, *rules]
        write_csv(path, columns, rows, overwrite=overwrite)

    def lesions_to_csv(self, path: Path, *, overwrite: bool = False) -> None:
        """Write a row per reference lesion and invented lesion.

        Raises:
            OutputExistsError: If `path` exists and `overwrite` is false.
            OutputError: If it cannot be written.
        """
        names = [each.name for each in fields(Lesion)]
        if self.lesion_wise != "2024":
            names = [name for name in names if not name.startswith("surface_dice")]
        rows = [
            {"case": each.case, "region": each.region, "lesion": number}
            | {name: _cell(getattr(lesion, name)) for name in names}
            for each in self.scores
            if each.lesions
            for number, lesion in enumerate(each.lesions.table, 1)
        ]
        write_csv(path, ["case", "region", "lesion", *names], rows, overwrite=overwrite)

    def to_markdown(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the means as a Markdown table: mean, standard deviation and bootstrap interval.

        Raises:
            OutputExistsError: If `path` exists and `overwrite` is false.
            OutputError: If it cannot be written.
        """
        names = [name for name in HEADINGS if name in self.columns]
        lines = [
            f"| region | n | {' | '.join(HEADINGS[name] for name in names)} |",
            f"| --- | ---: | {' | '.join('---:' for _ in names)} |",
        ]
        for region, found in self.summary().items():
            cells = [found[name].in_words(digits_of(name)) for name in names]
            lines.append(f"| {region} | {found['dice'].n} | {' | '.join(cells)} |")
        note = (
            f"Mean ± standard deviation [95 % bootstrap interval of the mean] of {len(self.cases)} "
            f"cases; convention {self.convention.name}: {self.convention.about}."
        )
        with whole_file(path, overwrite=overwrite) as partial_path:
            text = "\n".join([*lines, "", note, ""])
            partial_path.write_bytes(text.encode("utf-8", "backslashreplace"))

    def to_json_dict(self) -> dict[str, Any]:
        """All of it, for `json.dump`; what has no value is None."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "convention": self.convention.name,
            "convention_about": self.convention.about,
            "missed_mm": known(self.convention.missed_mm),
            "tolerance_mm": self.scoring.tolerance_mm,
            "cases": _plain(self.official, self.columns),
            "summary": _plain_summary(self.summary()),
            "summary_defined": _plain_summary(self.summary_of_defined()),
            "decided_by_rule": {
                region: [{"case": case, "empty": how} for case, how in cases]
                for region, cases in self.decided_by_rule().items()
            },
            "failed": [asdict(failure) for failure in self.failures],
            "without_reference": list(self.without_reference),
            "without_prediction": list(self.without_prediction),
        }
        if self.lesion_wise:
            content["lesion_wise"] = self.lesion_wise
        if self.reliability:
            found = {region: each.content() for region, each in self.reliability.items()}
            content["reliability"] = found
        return content


def write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, overwrite: bool
) -> None:
    """Write rows; text that a spreadsheet would run as a formula gets a `'` before it.

    Raises:
        OutputExistsError: If `path` exists and `overwrite` is false.
        OutputError: If it cannot be written.
    """
    with (
        whole_file(path, overwrite=overwrite) as partial_path,
        # A case id may hold bytes of a file name that is not UTF-8.
        partial_path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _text(value) for key, value in row.items()})


def _text(value: Any) -> Any:
    """A value without what would begin a formula, or a line in which something may begin one."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r", "\\r")  # the csv module quotes it from Python 3.13 on
    return f"'{value}" if value[:1] in _FORMULA else value


_FORMULA = ("=", "+", "-", "@", "\t")


def plot_files(folder: Path) -> dict[str, Path]:
    """The plots that an evaluation may write into a folder, by name; which, its scores decide."""
    worst = (f"worst_{number}" for number in range(1, WORST + 1))
    names = ("distributions", "dice_by_volume", "volumes", *worst)
    return {name: folder / f"{name}.png" for name in names}


def _cell(value: Any) -> Any:
    return known(value) if isinstance(value, float) else value


def _summarize(scores: Sequence[CaseScore], columns: Sequence[str]) -> Summary:
    regions: dict[str, list[dict[str, float]]] = {}
    for each in scores:
        regions.setdefault(each.region, []).append(each.values())
    return {
        region: {
            metric: Statistics.of(row.get(metric, math.nan) for row in rows) for metric in columns
        }
        for region, rows in regions.items()
    }


def _plain(scores: Sequence[CaseScore], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of builtins: case, region and metrics, None for what has no value."""
    rows = []
    for each in scores:
        values = each.values()
        rows.append(
            {"case": each.case, "region": each.region}
            | {metric: known(values.get(metric, math.nan)) for metric in columns}
        )
    return rows


def _plain_summary(summary: Summary) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        region: {metric: found.to_json_dict() for metric, found in metrics.items()}
        for region, metrics in summary.items()
    }
