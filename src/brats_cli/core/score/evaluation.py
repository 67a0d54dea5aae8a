"""Predictions against references: which files belong together, scored in parallel -> Report."""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from ..compute.processes import in_processes
from ..data.cases import find_label_maps, survey
from ..data.labels import SCHEMES, LabelScheme, label_scheme, noted_scheme, scheme_named
from ..data.naming import schemes_by_name
from ..errors import BratsError, CaseError, ConfigError, LabelError, NoCasesError
from ..images.grid import Volume, require_same_grid
from ..images.nifti import read_labels
from ..writing import whole_file
from .conventions import BRATS_2022, Convention
from .metrics import MaskScore, score

FORMAT = "brats-scores/1"

METRICS = tuple(field.name for field in fields(MaskScore))
"""The columns of `scores.csv` after case and region."""

# Starting a process takes as long as scoring about four cases.
_CASES_A_PROCESS = 8


@dataclass(frozen=True)
class Pair:
    """Two label maps of one case.

    Attributes:
        case: Case id.
        predicted: The label map to score.
        reference: The expert's.
        allowed: The label schemes that the references' data set leaves open; empty if it says
            nothing.
    """

    case: str
    predicted: Path
    reference: Path
    allowed: tuple[LabelScheme, ...] = ()


@dataclass(frozen=True)
class Matching:
    """What belongs together, and the ids of what was left over on either side."""

    pairs: tuple[Pair, ...]
    without_reference: tuple[str, ...] = ()
    without_prediction: tuple[str, ...] = ()


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


Summary = Mapping[str, Mapping[str, Statistics]]
"""Statistics by region and metric."""


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


def _require_known(name: str, known: Sequence[str], *, what: str, text: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        raise ConfigError(
            f"there is no {what} '{name}' to set a threshold on ('{text}')",
            hint=f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known)}",
        )


@dataclass(frozen=True)
class Report:
    """What came out of an evaluation.

    Attributes:
        scores: One per case and region, in order of the cases.
        failures: The cases that could not be scored.
        without_reference: Ids of predictions that had no reference to be scored by.
        tolerance_mm: How far off a surface may be for the surface Dice.
        convention: What an empty mask scores in the official values.
    """

    scores: tuple[CaseScore, ...]
    failures: tuple[Failure, ...] = ()
    without_reference: tuple[str, ...] = ()
    tolerance_mm: float = 1.0
    convention: Convention = BRATS_2022

    @classmethod
    def of(cls, matching: Matching, outcomes: Iterable[Outcome], tolerance_mm: float) -> Report:
        """The report on what `score_pairs` made of `matching`."""
        scores: list[CaseScore] = []
        failures = []
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                scores.extend(outcome)
        return cls(tuple(scores), tuple(failures), matching.without_reference, tolerance_mm)

    @property
    def official(self) -> tuple[CaseScore, ...]:
        """The scores with what the convention says for empty masks."""
        return tuple(
            CaseScore(each.case, each.region, self.convention.official(each.metrics))
            for each in self.scores
        )

    def summary(self) -> Summary:
        """Statistics of the official values."""
        return _summarize(self.official)

    def summary_of_defined(self) -> Summary:
        """Statistics of the cases in which a metric has a value without any convention."""
        return _summarize(self.scores)

    def to_csv(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the official values, a row a case and region; no value is an empty cell.

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


def evaluate(
    predictions: Path,
    references: Path,
    *,
    labels: str | None = None,
    reference_labels: str | None = None,
    tolerance_mm: float = 1.0,
    workers: int | None = None,
) -> Report:
    """Score all predictions that have a reference: `match`, then `score_pairs`."""
    matching = match(predictions, references)
    outcomes = score_pairs(
        matching.pairs,
        labels=labels,
        reference_labels=reference_labels,
        tolerance_mm=tolerance_mm,
        workers=workers,
    )
    return Report.of(matching, outcomes, tolerance_mm)


def match(predictions: Path, references: Path) -> Matching:
    """Pair label maps by case id, whatever their files are called.

    Args:
        predictions: A folder of label maps, or one file.
        references: A data set with labels, a folder of label maps, or one file. Two files belong
            together by being given together.

    Raises:
        NoCasesError: If there is no label map on either side.
        CaseError: If no two belong together.
    """
    expert, predicted = find_label_maps(references), find_label_maps(predictions)
    if references.is_file() and predictions.is_file():
        predicted = dict.fromkeys(expert, predictions)
    allowed = _allowed_by_data_set(references)
    pairs = tuple(
        Pair(case, path, expert[case], allowed.get(case, ()))
        for case, path in predicted.items()
        if case in expert
    )
    if not pairs:
        raise CaseError(
            f"no prediction in {predictions} ({_few(predicted)}) has the case id of a reference "
            f"in {references} ({_few(expert)})",
            hint="the file name without modality or _seg is the case id: rename the predictions, "
            "or give two files",
        )
    without_reference = tuple(case for case in predicted if case not in expert)
    without_prediction = tuple(case for case in expert if case not in predicted)
    return Matching(pairs, without_reference, without_prediction)


def score_pairs(
    pairs: Sequence[Pair],
    *,
    labels: str | None = None,
    reference_labels: str | None = None,
    tolerance_mm: float = 1.0,
    workers: int | None = None,
) -> Iterator[Outcome]:
    """Score each pair, in order; one that cannot be scored is a Failure and stops no other.

    Args:
        pairs: What to score.
        labels: Label scheme of the predictions; else each file's header, name or values tell.
        reference_labels: That of the references, likewise.
        tolerance_mm: How far off a surface may be for the surface Dice.
        workers: Processes to use, as `in_processes` has them.

    Raises:
        LabelError: If there is no label scheme of a name given.
        BratsError: If a process was killed.
    """
    for name in filter(None, (labels, reference_labels)):
        scheme_named(name)
    task = partial(
        _outcome,
        labels=labels,
        reference_labels=reference_labels,
        tolerance_mm=tolerance_mm,
    )
    yield from in_processes(task, pairs, workers=workers, name=lambda pair: pair.case)


def _outcome(
    pair: Pair, *, labels: str | None, reference_labels: str | None, tolerance_mm: float
) -> Outcome:
    try:
        return _score_pair(pair, labels, reference_labels, tolerance_mm)
    except BratsError as error:
        return Failure(pair.case, str(error), error.hint)


def _score_pair(
    pair: Pair, labels: str | None, reference_labels: str | None, tolerance_mm: float
) -> tuple[CaseScore, ...]:
    reference, predicted = read_labels(pair.reference), read_labels(pair.predicted)
    require_same_grid([reference, predicted])
    named = schemes_by_name(pair.case, reference.shape)
    theirs = _scheme(reference, reference_labels, pair.allowed or named, "--reference-labels")
    ours = _scheme(predicted, labels, named, "--labels")
    known = {region.name for region in ours.regions}
    shared = [region.name for region in theirs.regions if region.name in known]
    if not shared:
        raise LabelError(
            f"{pair.predicted} ({ours.name}) and {pair.reference} ({theirs.name}) "
            "have no region in common",
            hint="say what their labels are with --labels and --reference-labels",
        )
    scores = []
    for name in shared:
        masks = theirs.region(name).mask(reference.data), ours.region(name).mask(predicted.data)
        metrics = score(*masks, reference.spacing_mm, tolerance_mm=tolerance_mm)
        scores.append(CaseScore(pair.case, name, metrics))
    return tuple(scores)


def _scheme(
    volume: Volume, labels: str | None, allowed: Sequence[LabelScheme], flag: str
) -> LabelScheme:
    """What a label map's values mean: by the user's word, its header, its name, its values."""
    values = np.flatnonzero(np.bincount(volume.data.ravel(order="K"))).tolist()
    source = str(volume.path)
    return label_scheme(
        values, noted_scheme(volume.note), source, labels, allowed=allowed, flag=flag
    )


def _allowed_by_data_set(root: Path) -> dict[str, tuple[LabelScheme, ...]]:
    """The label schemes that names, grids and layout of a data set leave open, by case id."""
    if not root.is_dir():
        return {}
    try:
        cases = survey(root).cases
    except NoCasesError:
        return {}  # a folder of label maps alone
    return {case.id: (case.scheme,) if case.scheme else case.allowed for case in cases}


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
        | {metric: _known(value) for metric, value in asdict(each.metrics).items()}
        for each in scores
    ]


def _plain_summary(summary: Summary) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        region: {
            metric: {
                "mean": _known(found.mean),
                "std": _known(found.std),
                "median": _known(found.median),
                "ci95": list(found.ci95) if found.n > 1 else None,
                "n": found.n,
            }
            for metric, found in metrics.items()
        }
        for region, metrics in summary.items()
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _few(ids: Iterable[str]) -> str:
    """The first ids, and how many more there are."""
    known = list(ids)
    more = f" and {len(known) - 3} more" if len(known) > 3 else ""
    return ", ".join(known[:3]) + more
