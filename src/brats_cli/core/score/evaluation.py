"""The plain twin of `brats evaluate`: predictions against references, scored in parallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..compute.processes import in_processes
from ..data.labels import LabelScheme, label_scheme, scheme_named
from ..data.naming import schemes_by_name
from ..errors import BratsError, LabelError
from ..images.nifti import Volume, read_label_map, require_same_grid
from ..writing import require_writable
from .metrics import score
from .pairing import Matching, Pair, match
from .scores import CaseScore, Failure, Outcome, Report, Threshold


def evaluate(
    predictions: str | Path,
    references: str | Path,
    *,
    output: str | Path | None = None,
    labels: LabelScheme | str | None = None,
    reference_labels: LabelScheme | str | None = None,
    tolerance: float = 1.0,
    workers: int | None = None,
    fail_under: Sequence[Threshold | str] = (),
    overwrite: bool = False,
    on_progress: Callable[[Matching, int], None] = lambda matching, scored: None,
    on_report: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Score all predictions that have a reference.

    A case that cannot be scored is among the report's `failures` and stops no other.

    Args:
        predictions: A folder of label maps, or one file.
        references: A data set with labels, a folder of label maps, or one file.
        output: A CSV file to write every score to, at the end.
        labels: Label scheme of the predictions; by default each file's header, name or values
            decide.
        reference_labels: Label scheme of the references, likewise.
        tolerance: Of the surface Dice, in mm.
        workers: Processes to use, as `in_processes` has them.
        fail_under: Means that have to be reached, as `WT.dice=0.8`; the report has those `missed`.
        overwrite: Whether `output` may exist.
        on_progress: Called with what belongs together and the number of cases scored so far,
            first with 0.
        on_report: Called with the report before `output` is written, so that a full disk does not
            take the scores along.

    Raises:
        BratsError: If nothing belongs together, a setting is wrong or `output` cannot be written.
    """
    thresholds = [Threshold.parse(each) if isinstance(each, str) else each for each in fail_under]
    if output is not None:
        require_writable(Path(output), overwrite=overwrite)
    matching = match(Path(predictions), Path(references))
    on_progress(matching, 0)
    outcomes = []
    for outcome in score_pairs(
        matching.pairs,
        labels=labels,
        reference_labels=reference_labels,
        tolerance_mm=tolerance,
        workers=workers,
    ):
        outcomes.append(outcome)
        on_progress(matching, len(outcomes))
    report = Report.of(matching, outcomes, tolerance, thresholds)
    on_report(report)
    if output is not None and report.scores:
        report.to_csv(Path(output), overwrite=overwrite)
    return report


def score_pairs(
    pairs: Sequence[Pair],
    *,
    labels: LabelScheme | str | None = None,
    reference_labels: LabelScheme | str | None = None,
    tolerance_mm: float = 1.0,
    workers: int | None = None,
) -> Iterator[Outcome]:
    """Score each pair, in order; one that cannot be scored is a Failure and stops no other.

    Args:
        pairs: What to score.
        labels: Label scheme of the predictions.
        reference_labels: Label scheme of the references.
        tolerance_mm: How far off a surface may be for the surface Dice.
        workers: Processes to use, as `in_processes` has them.

    Raises:
        LabelError: If there is no label scheme of a name given.
        BratsError: If a process was killed.
    """
    task = partial(
        _outcome,
        labels=_scheme_given(labels),
        reference_labels=_scheme_given(reference_labels),
        tolerance_mm=tolerance_mm,
    )
    yield from in_processes(task, pairs, workers=workers, name=lambda pair: pair.case)


def _scheme_given(labels: LabelScheme | str | None) -> LabelScheme | None:
    return scheme_named(labels) if isinstance(labels, str) else labels


def _outcome(
    pair: Pair,
    *,
    labels: LabelScheme | None,
    reference_labels: LabelScheme | None,
    tolerance_mm: float,
) -> Outcome:
    try:
        return _score_pair(pair, labels, reference_labels, tolerance_mm)
    except BratsError as error:
        return Failure(pair.case, str(error), error.hint)


def _score_pair(
    pair: Pair,
    labels: LabelScheme | None,
    reference_labels: LabelScheme | None,
    tolerance_mm: float,
) -> tuple[CaseScore, ...]:
    reference, predicted = read_label_map(pair.reference), read_label_map(pair.predicted)
    require_same_grid([reference, predicted])
    named = schemes_by_name(pair.case, reference.shape)
    theirs = _scheme(reference, reference_labels, pair.allowed or named, "--reference-labels")
    ours = _scheme(predicted, labels, named, "--labels")
    available = {region.name for region in ours.regions}
    shared = [region.name for region in theirs.regions if region.name in available]
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
    volume: Volume, labels: LabelScheme | None, allowed: Sequence[LabelScheme], flag: str
) -> LabelScheme:
    """What a label map's values mean: by the user's word, its header, its name, its values."""
    values = np.flatnonzero(np.bincount(volume.data.ravel(order="K"))).tolist()
    source = str(volume.path)
    chosen = labels.name if labels else None
    return label_scheme(values, volume.scheme, source, chosen, allowed=allowed, flag=flag)
