"""Which prediction belongs to which reference: by case id, whatever the files are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..data.cases import find_label_maps, survey
from ..data.labels import LabelScheme
from ..errors import CaseError, NoCasesError
from ..wording import listing


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
            f"no prediction in {predictions} ({listing(list(predicted))}) has the case id of a "
            f"reference in {references} ({listing(list(expert))})",
            hint="the file name without modality or _seg is the case id: rename the predictions, "
            "or give two files",
        )
    without_reference = tuple(case for case in predicted if case not in expert)
    without_prediction = tuple(case for case in expert if case not in predicted)
    return Matching(pairs, without_reference, without_prediction)


def _allowed_by_data_set(root: Path) -> dict[str, tuple[LabelScheme, ...]]:
    """The label schemes that names, grids and layout of a data set leave open, by case id."""
    if not root.is_dir():
        return {}
    try:
        cases, _ = survey(root)
    except NoCasesError:
        return {}  # a folder of label maps alone
    return {case.id: (case.scheme,) if case.scheme else case.allowed for case in cases}
