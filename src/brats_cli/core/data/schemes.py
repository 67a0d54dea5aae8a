"""Which label scheme the cases of a data set have, judged by the values of all named alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ..errors import LabelError
from ..images.nifti import LabelCount
from .cases import Case
from .labels import SCHEMES, LabelScheme, fitting_schemes, label_scheme, noted_scheme
from .naming import naming_of


def with_schemes(
    cases: Sequence[Case], counts: Mapping[str, LabelCount], labels: LabelScheme | None = None
) -> list[Case]:
    """The cases with their label schemes, judged by the values of all cases that are named alike.

    Args:
        cases: Cases whose label maps were counted.
        counts: Label voxels by case id.
        labels: The scheme that the user gave.

    Raises:
        LabelError: If values fit no scheme, or several that give them different meanings.
    """
    schemes = {}
    for alike in alike_in_labels(cases, counts):
        scheme = scheme_of_all(alike, counts, labels)
        schemes.update({case.id: scheme for case in alike})
    return [replace(case, scheme=schemes[case.id], allowed=()) for case in cases]


def alike_in_labels(
    cases: Iterable[Case], counts: Mapping[str, LabelCount]
) -> Iterator[list[Case]]:
    """Groups of cases whose name, layout and header declare the same label schemes.

    A case whose values do not fit what is declared is a group of its own.
    """
    kin: dict[object, list[Case]] = {}
    for case in cases:
        count = counts[case.id]
        scheme = noted_scheme(count.note) or case.scheme
        if scheme and not scheme.values >= set(count.voxels):
            yield [case]
        else:
            known = [each.name for each in ((scheme,) if scheme else case.allowed)]
            kin.setdefault((naming_of(case.id).name, case.unclear, *known), []).append(case)
    yield from kin.values()


def scheme_of_all(
    cases: Sequence[Case], counts: Mapping[str, LabelCount], labels: LabelScheme | None = None
) -> LabelScheme:
    """The one label scheme of a group of cases, judged by all the values they hold.

    Raises:
        LabelError: If values fit no scheme, or several that give them different meanings.
    """
    first = cases[0]
    present = {value for case in cases for value in counts[case.id].voxels}
    declared = noted_scheme(counts[first.id].note) or first.scheme
    if first.unclear and labels is None and declared is None:
        raise unclear_labels(_labels_of(cases), present, first.unclear)
    return label_scheme(present, declared, _labels_of(cases), labels, allowed=first.allowed)


def unclear_labels(
    source: str, present: Iterable[int], words: str, *, flag: str = "--labels"
) -> LabelError:
    """What to say of label values whose names in a file beside them no label scheme agrees with."""
    values = sorted(set(present))
    fitting = [scheme.name for scheme in fitting_schemes(values)]
    return LabelError(
        f"{source} holds labels {', '.join(map(str, values))}, and its {words}, "
        "which no label scheme agrees with",
        hint=f"choose one with {flag}: {', '.join(fitting) or ', '.join(SCHEMES)}",
    )


def _labels_of(cases: Sequence[Case]) -> str:
    """The label maps of `cases`, for the start of a message."""
    if len(cases) == 1:
        return str(cases[0].label)
    return f"{cases[0].label} (and {len(cases) - 1} more with such a name)"
