"""Which prediction belongs to which reference: by case id, whatever the files are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..data.cases import Case, ImageFile, find_label_maps, survey
from ..data.labels import LabelScheme
from ..errors import CaseError, NoCasesError
from ..wording import listing


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
