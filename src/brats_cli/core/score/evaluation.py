"""The function behind `brats evaluate`: predictions against references, scored in parallel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compute.cluster import paths_for
from ..compute.executors import in_order
from ..compute.machine import keep_freed_memory
from ..compute.processes import outcome_of
from ..data.folders import nifti_files
from ..data.labels import LabelScheme, as_scheme
from ..data.naming import case_id_of
from ..errors import BratsError, CaseError, ConfigError, UnreadableFileError
from ..images.grid import Box, Mask, Volume, bounding_box, require_same_grid
from ..images.nifti import read_image, stem
from ..writing import require_ending, require_writable, together
from .conventions import Convention, challenge_named, challenge_of, convention_named
from .lesions import YEARS, LesionRules, LesionScore, lesion_rules, require_challenge, score_lesions
from .metrics import score
from .pairing import Matching, Pair, Scoring, Side, match, read_pair, shared_regions
from .reliability import reliability_of, require_probabilities
from .scores import CaseScore, Failure, Outcome, Report, Threshold, plot_files
from .surfaces import weighted_hausdorff95_mm
from .uncertainty import UncertaintyScore, read_uncertainty, score_uncertainty


def evaluate(
    predictions: str | Path,
    references: str | Path,
    *,
    output: str | Path | None = None,
    labels: LabelScheme | str | None = None,
    reference_labels: LabelScheme | str | None = None,
    convention: Convention | str = "brats2020",
    tolerance: float = 1.0,
    within_brain: bool = False,
    lesion_wise: str | int | None = None,
    challenge: str | None = None,
    lesions: str | Path | None = None,
    uncertainty: str | Path | None = None,
    brain: str | Path | None = None,
    missing_as_empty: bool = False,
    report: str | Path | None = None,
    plots: str | Path | None = None,
    reliability: str | Path | None = None,
    markdown: str | Path | None = None,
    workers: int | None = None,
    executor: Executor | str | None = None,
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
        reference_labels: Label scheme of the references; by default as for the predictions.
        convention: Rules for empty masks and HD95, one of `CONVENTIONS`.
        tolerance: Tolerance of the surface Dice, in mm.
        within_brain: Whether the specificity counts only voxels inside the brain.
        lesion_wise: 2023 or 2024, to score lesion by lesion by that year's rules as well.
        challenge: Challenge whose lesion-wise rules apply, one of `CHALLENGES`; by default each
            case's id or labels decide.
        lesions: A CSV file to write one row per lesion to.
        uncertainty: Folder of uncertainty maps, to score as BraTS 2020's task 3 did.
        brain: Folder of brain masks; by default the brain is where the case's T1 is not 0.
        missing_as_empty: Whether references without a prediction are scored as missed.
        report: An HTML file to write a page with tables, plots and the worst cases to.
        plots: A folder to write the page's plots to, as PNG.
        reliability: A PNG file to draw the reliability of the probabilities to, which
            `predict(probabilities=True)` writes beside the label maps.
        markdown: A file to write the table of means to, for papers.
        workers: Processes to use; None is one per CPU, where that pays.
        executor: Where to score the cases instead, or the address of a Dask scheduler.
        fail_under: Means that have to be reached, such as `WT.dice=0.8`; the report lists those
            `missed`.
        overwrite: Whether outputs may exist.
        on_progress: Called with the pairs and the number of cases scored so far, first with 0.
        on_report: Called with the report before files are written, so that the scores are not
            lost if the disk is full.

    Raises:
        BratsError: If no prediction has a reference, a setting is wrong or writing fails.
    """
    thresholds = [Threshold.parse(each) if isinstance(each, str) else each for each in fail_under]
    if lesions is not None and lesion_wise is None:
        raise ConfigError(
            "a table of lesions needs the rules of a year", hint="add --lesion-wise 2023 or 2024"
        )
    path = paths_for(executor)
    scoring = Scoring(
        labels=as_scheme(labels),
        reference_labels=as_scheme(reference_labels),
        tolerance_mm=tolerance,
        convention=convention_named(convention) if isinstance(convention, str) else convention,
        within_brain=within_brain,
        lesion_wise=_year(lesion_wise),
        challenge=challenge_named(challenge) if challenge else None,
        uncertainty=None if uncertainty is None else _folder(path(uncertainty)),
        brain=None if brain is None else _brain_masks(path(brain)),
    )
    if scoring.lesion_wise and scoring.challenge:
        require_challenge(scoring.lesion_wise, scoring.challenge)
    drawn = () if plots is None else plot_files(Path(plots)).values()
    for file, *endings in (
        (output, ".csv", ".txt"),
        (lesions, ".csv", ".txt"),
        (report, ".html", ".htm"),
        (reliability, ".png"),
        (markdown, ".md", ".txt"),
        *((plot, ".png") for plot in drawn),
    ):
        if file is not None:
            require_ending(Path(file), *map(str, endings))
            require_writable(Path(file), overwrite=overwrite)
    matching = match(path(predictions), path(references), missing_as_empty=missing_as_empty)
    if reliability is not None:
        require_probabilities(matching.pairs)
    on_progress(matching, 0)
    outcomes = []
    for outcome in score_pairs(matching.pairs, scoring, workers=workers, executor=executor):
        outcomes.append(outcome)
        on_progress(matching, len(outcomes))
    found = Report.of(matching, outcomes, scoring).with_missed(thresholds)
    if reliability is not None:
        scored = [pair for pair in matching.pairs if pair.case in set(found.cases)]
        found = replace(found, reliability=reliability_of(scored, scoring))
    on_report(found)
    if found.scores:
        with together(drawn if overwrite else ()):
            _write(
                found, output, lesions, report, plots, markdown, reliability, overwrite=overwrite
            )
    return found


def _write(
    found: Report,
    output: str | Path | None,
    lesions: str | Path | None,
    report: str | Path | None,
    plots: str | Path | None,
    markdown: str | Path | None,
    reliability: str | Path | None,
    *,
    overwrite: bool,
) -> None:
    if reliability is not None:
        from .plots import save_reliability  # matplotlib takes half a second to load

        save_reliability(found.reliability, Path(reliability), overwrite=overwrite)
    if output is not None:
        found.to_csv(Path(output), overwrite=overwrite)
    if lesions is not None:
        found.lesions_to_csv(Path(lesions), overwrite=overwrite)
    if markdown is not None:
        found.to_markdown(Path(markdown), overwrite=overwrite)
    if plots is not None or report is not None:
        from .report import write_page, write_plots  # matplotlib takes half a second to load

        if plots is not None:
            write_plots(found, Path(plots), overwrite=overwrite)
        if report is not None:
            write_page(found, Path(report), overwrite=overwrite)


def score_pairs(
    pairs: Sequence[Pair],
    scoring: Scoring | None = None,
    *,
    workers: int | None = None,
    executor: Executor | str | None = None,
) -> Iterator[Outcome]:
    """Score each pair, in order; one that cannot be scored is a Failure and stops no other.

    Args:
        pairs: What to score.
        scoring: How.
        workers: Processes to use, as `in_order` has them.
        executor: Or where to score, likewise.

    Raises:
        BratsError: If the processes or the scheduler cannot be used, or are gone.
    """
    return in_order(
        partial(_outcome, scoring=scoring or Scoring()),
        pairs,
        executor=executor,
        workers=workers,
        name=lambda pair: f"case {pair.case}",
        lost=lambda pair, error: Failure(pair.case, str(error), error.hint),
    )


def _year(lesion_wise: str | int | None) -> str | None:
    if lesion_wise is not None and str(lesion_wise) not in YEARS:
        raise ConfigError(
            f"there are no lesion-wise rules of {lesion_wise}", hint=f"choose {' or '.join(YEARS)}"
        )
    return None if lesion_wise is None else str(lesion_wise)


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UnreadableFileError(path, "it is not a folder", hint="check the path")
    return path


def _brain_masks(folder: Path) -> dict[str, Path]:
    """Brain masks by case id: files `CASE.nii.gz`, `CASE_brain.nii.gz` or `CASE_mask.nii.gz`."""
    masks = {}
    for path in nifti_files(_folder(folder)):
        name = stem(path)
        for ending in ("_mask", "_brainmask", "_brain"):
            name = name.removesuffix(ending)
        masks[case_id_of(path.with_name(f"{name}.nii.gz"))] = path
    return masks


# --- one case ----------------------------------------------------------------------------------


def _outcome(pair: Pair, *, scoring: Scoring) -> Outcome:
    keep_freed_memory()  # else a tenth of the time is page faults
    found = outcome_of(partial(_score_pair, pair, scoring))
    if isinstance(found, BratsError):
        return Failure(pair.case, str(found), found.hint)
    return found


def _score_pair(pair: Pair, scoring: Scoring) -> tuple[CaseScore, ...]:
    expert, guess = read_pair(pair, scoring)
    whole = expert.volume
    shared = shared_regions(pair, expert.scheme, guess.scheme)
    brain, maps = _brain_and_uncertainty(pair, scoring, whole)
    challenge = scoring.challenge or challenge_of(pair.case, expert.scheme)
    tumours = (whole.data | guess.volume.data) != 0
    box = bounding_box(tumours)
    expert, guess = expert.cut(box), guess.cut(box)
    scores = []
    for name in shared:
        masks = expert.region(name), guess.region(name)
        metrics = score(
            *masks,
            whole.spacing_mm,
            tolerance_mm=scoring.tolerance_mm,
            outside=whole.data.size - masks[0].size,
        )
        if scoring.convention.weighted:
            weighted = weighted_hausdorff95_mm(*masks, whole.spacing_mm)
            metrics = replace(metrics, hausdorff95_mm=weighted)
        if brain is not None and scoring.within_brain:
            within = _specificity_within(brain, box, *masks)
            metrics = replace(metrics, specificity=within)
        lesions = None
        if scoring.lesion_wise is not None:
            rules = lesion_rules(scoring.lesion_wise, challenge, name, whole.grid)
            lesions = _lesions(rules, name, expert, guess)
        scores.append(
            CaseScore(
                pair.case,
                name,
                metrics,
                scoring.convention.penalty_mm(challenge, whole.shape),
                lesions,
                _uncertainty(name, maps, brain, box, *masks),
            )
        )
    return tuple(scores)


def _lesions(rules: LesionRules, region: str, expert: Side, guess: Side) -> LesionScore:
    tissues = [each.tissue for each in rules.united_by]
    return score_lesions(
        expert.region(region),
        guess.region(region),
        rules,
        expert.volume.grid,
        reference_tissues={tissue: expert.tissue(tissue) for tissue in tissues},
        predicted_tissues={tissue: guess.tissue(tissue) for tissue in tissues},
    )


# --- inside the brain --------------------------------------------------------------------------


def _brain_and_uncertainty(
    pair: Pair, scoring: Scoring, reference: Volume
) -> tuple[Mask | None, Mapping[str, npt.NDArray[Any]]]:
    """The brain mask, if it is needed, and the uncertainty maps by region, if there are any."""
    if not scoring.within_brain and scoring.uncertainty is None:
        return None, {}
    brain = _brain(pair, scoring.brain, reference)
    if scoring.uncertainty is None:
        return brain, {}
    return brain, read_uncertainty(scoring.uncertainty, pair.case, reference)


def _brain(pair: Pair, masks: Mapping[str, Path] | None, reference: Volume) -> Mask:
    """Where the brain is.

    Raises:
        CaseError: If there is neither a mask nor a T1 scan of the case.
    """
    if masks is not None:
        if pair.case not in masks:
            raise CaseError(
                f"case {pair.case} has no brain mask in the folder given with --brain",
                hint=f"name it {pair.case}.nii.gz or {pair.case}_brain.nii.gz",
            )
        volume = read_image(masks[pair.case])
    elif "t1" in pair.images:
        volume = read_image(pair.images["t1"].path, pair.images["t1"].channel)
    else:
        raise CaseError(
            f"case {pair.case} has no T1 scan beside {pair.reference}, from which to know the "
            "brain",
            hint="give the data set with its scans as REFERENCES, or brain masks with --brain",
        )
    require_same_grid([reference, volume])
    brain: Mask = volume.data != 0
    return brain


def _specificity_within(brain: Mask, box: Box, reference: Mask, predicted: Mask) -> float:
    """Share of the brain outside the reference that the prediction leaves out too."""
    inside = brain[box]
    outside = np.count_nonzero(brain) - np.count_nonzero(inside)
    negative = outside + np.count_nonzero(inside & ~reference)
    right = outside + np.count_nonzero(inside & ~(reference | predicted))
    return right / negative if negative else math.nan


def _uncertainty(
    region: str,
    maps: Mapping[str, npt.NDArray[Any]],
    brain: Mask | None,
    box: Box,
    reference: Mask,
    predicted: Mask,
) -> UncertaintyScore | None:
    if region not in maps or brain is None:
        return None
    # Voxels outside the brain and both masks count nowhere.
    there, found = np.zeros((2, *brain.shape), dtype=bool)
    there[box], found[box] = reference, predicted
    counted = brain | there | found
    return score_uncertainty(there[counted], found[counted], maps[region][counted], brain[counted])
