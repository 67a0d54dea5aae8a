"""Which prediction belongs to which reference, how the two are read, and how they are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..data.cases import Case, ImageFile, find_label_maps, survey
from ..data.labels import LabelScheme, label_scheme, noted_scheme
from ..data.naming import schemes_by_name
from ..errors import CaseError, LabelError, NoCasesError
from ..images.grid import Box, Mask, Volume, require_same_grid
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
        allowed: The label schemes that the references' data set leaves open; empty if it says
            nothing.
        images: The scans of the case by modality, where the references lie among them.
    """

    case: str
    predicted: Path | None
    reference: Path
    allowed: tuple[LabelScheme, ...] = ()
    images: Mapping[str, ImageFile] = field(default_factory=dict)


@dataclass(frozen=True)
class Matching:
    """What belongs together, and the ids of what was left over on either side."""

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


def match(predictions: Path, references: Path, *, missing_as_empty: bool = False) -> Matching:
    """Pair label maps by case id, whatever their files are called.

    Args:
        predictions: A folder of label maps, or one file.
        references: A data set with labels, a folder of label maps, or one file. Two files belong
            together by being given together.
        missing_as_empty: Whether references without a prediction belong to an empty one.

    Raises:
        NoCasesError: If there is no label map on either side.
        CaseError: If no two belong together.
    """
    expert, predicted = find_label_maps(references), find_label_maps(predictions)
    if references.is_file() and predictions.is_file():
        predicted = dict.fromkeys(expert, predictions)
    cases = _cases_of_data_set(references)
    pairs = [
        _pair(case, path, expert[case], cases.get(case))
        for case, path in predicted.items()
        if case in expert
    ]
    if not pairs:
        raise CaseError(
            f"no prediction in {predictions} ({listing(list(predicted))}) has the case id of a "
            f"reference in {references} ({listing(list(expert))})",
            hint="the file name without modality or _seg is the case id: rename the predictions, "
            "or give two files",
        )
    without_reference = tuple(case for case in predicted if case not in expert)
    without_prediction = tuple(case for case in expert if case not in predicted)
    if missing_as_empty:
        pairs += [_pair(case, None, expert[case], cases.get(case)) for case in without_prediction]
        pairs.sort(key=lambda pair: pair.case)
    return Matching(tuple(pairs), without_reference, without_prediction)


def _pair(case_id: str, predicted: Path | None, reference: Path, case: Case | None) -> Pair:
    if case is None:
        return Pair(case_id, predicted, reference)
    allowed = (case.scheme,) if case.scheme else case.allowed
    return Pair(case_id, predicted, reference, allowed, case.images)


def _cases_of_data_set(root: Path) -> dict[str, Case]:
    """The cases of a data set by id; none in a folder of label maps alone."""
    if not root.is_dir():
        return {}
    try:
        cases, _ = survey(root)
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
        cut = replace(volume, data=volume.data[box], grid=volume.grid.crop(box))
        return replace(self, volume=cut)


def read_pair(pair: Pair, scoring: Scoring) -> tuple[Side, Side]:
    """The reference and the prediction, on one grid.

    Raises:
        BratsError: If a file cannot be read, the grids differ, or it is not known what the labels
            mean.
    """
    reference = read_labels(pair.reference)
    named = schemes_by_name(pair.case, reference.shape)
    allowed = pair.allowed or named
    if pair.predicted is None:
        theirs = _scheme(reference, scoring.reference_labels, allowed, "--reference-labels")
        nothing = replace(reference, data=np.zeros_like(reference.data))
        return Side(reference, theirs), Side(nothing, theirs)
    predicted = read_labels(pair.predicted)
    require_same_grid([reference, predicted])
    theirs = _scheme(reference, scoring.reference_labels, allowed, "--reference-labels")
    ours = _scheme(predicted, scoring.labels, named, "--labels")
    return Side(reference, theirs), Side(predicted, ours)


def _scheme(
    volume: Volume, labels: LabelScheme | None, allowed: Sequence[LabelScheme], flag: str
) -> LabelScheme:
    """What a label map's values mean: by the user's word, its header, its name, its values."""
    values = np.flatnonzero(np.bincount(volume.values)).tolist()
    declared = noted_scheme(volume.note)
    return label_scheme(values, declared, str(volume.path), labels, allowed=allowed, flag=flag)


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
