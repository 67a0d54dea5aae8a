"""Which prediction belongs to which reference, how the two are read, and how they are scored."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..data.cases import Case, ImageFile
from ..data.finding import find_label_maps, survey
from ..data.labels import LabelScheme, is_predicted
from ..data.meaning import Known, known_of, values_in
from ..errors import BratsWarning, CaseError, LabelError, NoCasesError
from ..images.grid import Box, Mask, Volume, on_one_grid
from ..images.nifti import read_labels
from ..wording import listing
from .conventions import BRATS_2022, Convention


@dataclass(frozen=True)
class Pair:
    """Two label maps of one case.

    Attributes:
        case: Case id.
        predicted: The label map to score; None if there is none and it counts as empty.
        reference: The expert's.
        theirs: What is known of the reference's labels.
        ours: What is known of the prediction's labels.
        images: The scans of the case by modality, where the references lie among them.
    """

    case: str
    predicted: Path | None
    reference: Path
    theirs: Known = field(default_factory=Known)
    ours: Known = field(default_factory=Known)
    images: Mapping[str, ImageFile] = field(default_factory=dict)


@dataclass(frozen=True)
class Matching:
    """The pairs, and the ids of predictions and references that have no counterpart."""

    pairs: tuple[Pair, ...]
    without_reference: tuple[str, ...] = ()
    without_prediction: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How each pair is scored.

    Attributes:
        labels: Label scheme of the predictions; by default each file's header, name or values
            decide.
        reference_labels: Label scheme of the references, likewise.
        tolerance_mm: Of the surface Dice.
        convention: Whose rules to follow for empty masks and HD95.
        within_brain: Whether the specificity counts only voxels inside the brain.
        lesion_wise: Year of the lesion-wise rules, if any.
        challenge: Whose rules; by default each case's id or labels decide.
        uncertainty: Folder of uncertainty maps, if they are to be scored.
        brain: Brain masks by case id; by default the brain is where T1 is not 0.
    """

    labels: LabelScheme | None = None
    reference_labels: LabelScheme | None = None
    tolerance_mm: float = 1.0
    convention: Convention = BRATS_2022
    within_brain: bool = False
    lesion_wise: str | None = None
    challenge: str | None = None
    uncertainty: Path | None = None
    brain: Mapping[str, Path] | None = None

    def rules(self) -> dict[str, str]:
        """What two scores must share to be compared, as columns of `scores.csv`."""
        rules = {"convention": self.convention.name}
        if self.tolerance_mm != 1:
            rules["tolerance_mm"] = f"{self.tolerance_mm:g}"
        if self.within_brain:
            rules["within_brain"] = "yes"
        if self.lesion_wise is not None:
            rules["lesion_wise"] = self.lesion_wise
            if self.challenge is not None:
                rules["challenge"] = self.challenge
        return rules


RULES: Mapping[str, str] = {
    "convention": "",
    "tolerance_mm": "surface_dice",
    "within_brain": "specificity",
    "lesion_wise": "lesion_",
    "challenge": "lesion_",
}
"""The columns of `Scoring.rules`, and with what the names of the metrics begin that each decides;
a file without one of them was scored by the default."""


def match(predictions: Path, references: Path, *, missing_as_empty: bool = False) -> Matching:
    """Pair label maps by case id, whatever their files are called.

    Args:
        predictions: A folder of label maps, or one file.
        references: A data set with labels, a folder of label maps, or one file. Two files belong
            together by being given together.
        missing_as_empty: Whether references without a prediction are paired with an empty one.

    Raises:
        NoCasesError: If there is no label map on either side.
        CaseError: If no prediction and reference belong together.
    """
    expert, predicted = find_label_maps(references), find_label_maps(predictions)
    if references.is_file() and predictions.is_file():
        predicted = dict.fromkeys(expert, predictions)
    cases = _cases_of_data_set(references)
    names = _names(predicted, expert)
    pairs = [
        Pair(names[case], path, expert[names[case]])
        for case, path in predicted.items()
        if case in names
    ]
    if not pairs:
        raise CaseError(
            f"no prediction in {predictions} ({listing(list(predicted))}) has the case id of a "
            f"reference in {references} ({listing(list(expert))})",
            hint="the file name without modality or _seg is the case id: rename the predictions, "
            "or give two files",
        )
    without_reference = tuple(case for case in predicted if case not in names)
    without_prediction = tuple(case for case in expert if case not in names.values())
    if missing_as_empty:
        pairs += [Pair(case, None, expert[case]) for case in without_prediction]
        pairs.sort(key=lambda pair: pair.case)
    theirs = known_of({pair.reference: pair.case for pair in pairs}, cases)
    ours = known_of({pair.predicted: pair.case for pair in pairs if pair.predicted})
    known = [
        replace(
            pair,
            theirs=theirs[pair.reference],
            ours=ours[pair.predicted] if pair.predicted else Known(),
            images=cases[pair.case].images if pair.case in cases else {},
        )
        for pair in pairs
    ]
    return Matching(tuple(known), without_reference, without_prediction)


def _names(predicted: Iterable[str], expert: Iterable[str]) -> dict[str, str]:
    """The reference's case id by the prediction's, which may differ in upper and lower case."""
    exact = set(expert)
    lower: dict[str, list[str]] = {}
    for case in exact:
        lower.setdefault(case.casefold(), []).append(case)
    names = {case: case for case in predicted if case in exact}
    for case in predicted:
        alike = lower.get(case.casefold(), [])
        if case not in names and len(alike) == 1 and alike[0] not in names.values():
            names[case] = alike[0]
    return names


def _cases_of_data_set(root: Path) -> dict[str, Case]:
    """The cases of a data set by id; none in a folder of label maps alone."""
    if not root.is_dir():
        return {}
    try:
        cases = survey(root).cases
    except NoCasesError:
        return {}
    return {case.id: case for case in cases}


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two label maps of a pair, and what its values mean."""

    volume: Volume
    scheme: LabelScheme

    def region(self, name: str) -> Mask:
        """Where the region is, (X, Y, Z)."""
        mask: Mask = self.scheme.region(name).mask(self.volume.data)
        return mask

    def tissue(self, name: str) -> Mask:
        """Where the tissue is, (X, Y, Z); nowhere if the scheme does not have it."""
        values = [value for value, tissue in self.scheme.tissues.items() if tissue == name]
        return np.isin(self.volume.data, values)

    def cut(self, box: Box) -> Side:
        """What lies inside `box`."""
        volume = self.volume
        # In array order, in which what follows looks at it; files hold the other order.
        data = np.ascontiguousarray(volume.data[box])
        cut = replace(volume, data=data, grid=volume.grid.crop(box))
        return replace(self, volume=cut)


def read_pair(pair: Pair, scoring: Scoring) -> tuple[Side, Side]:
    """The reference and the prediction, on one grid.

    Raises:
        BratsError: If a file cannot be read, the grids differ, or it is not known what the labels
            mean.
    """
    reference = read_labels(pair.reference)
    if is_predicted(reference.note):
        warnings.warn(
            f"the reference {pair.reference} was made by brats predict, not by an expert",
            BratsWarning,
            stacklevel=2,
        )
    theirs = _scheme(reference, pair.theirs, scoring.reference_labels, "--reference-labels")
    if pair.predicted is None:
        nothing = replace(reference, data=np.zeros_like(reference.data))
        return Side(reference, theirs), Side(nothing, theirs)
    predicted = read_labels(pair.predicted)
    ours = _scheme(predicted, pair.ours, scoring.labels, "--labels")
    reference, predicted = on_one_grid(reference, predicted)
    return Side(reference, theirs), Side(predicted, ours)


def _scheme(volume: Volume, known: Known, labels: LabelScheme | None, flag: str) -> LabelScheme:
    return known.scheme(values_in(volume), volume.path, labels, flag=flag)


def shared_regions(pair: Pair, theirs: LabelScheme, ours: LabelScheme) -> list[str]:
    """The regions that both label schemes have.

    Raises:
        LabelError: If there is none.
    """
    available = {region.name for region in ours.regions}
    shared = [region.name for region in theirs.regions if region.name in available]
    if not shared:
        raise LabelError(
            f"{pair.predicted} ({ours.name}) and {pair.reference} ({theirs.name}) "
            "have no region in common",
            hint="say what their labels are with --labels and --reference-labels",
        )
    return shared
