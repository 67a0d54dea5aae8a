"""What the values of label maps mean that belong to no data set: predictions, or files by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from ..compute.machine import keep_freed_memory
from ..compute.processes import in_threads
from ..errors import BratsError
from ..images.grid import Volume
from ..images.nifti import count_labels, note_on_disk, shape_on_disk
from .cases import Case
from .dataset_json import Declared, declared_schemes, read_description, read_dseg_above
from .folders import LABELS
from .labels import LabelScheme, fitting_schemes, label_scheme, noted_scheme, tightest_schemes
from .naming import naming_of, schemes_by_name
from .schemes import unclear_labels


@dataclass(frozen=True)
class Known:
    """What is known of the values of a label map beside those that it holds.

    Attributes:
        declared: The label scheme that its header names.
        allowed: The schemes that a dataset.json or dseg.tsv beside it, its data set or its name
            leave open; empty if they leave all open.
        unclear: What that file says, if no label scheme agrees with it.
        together: Values of all label maps that share its scheme: those of one folder, of which
            nothing else is known.
    """

    declared: LabelScheme | None = None
    allowed: tuple[LabelScheme, ...] = ()
    unclear: str = ""
    together: frozenset[int] = frozenset()

    def scheme(
        self,
        present: Iterable[int],
        source: Path,
        labels: LabelScheme | None,
        *,
        flag: str = "--labels",
    ) -> LabelScheme:
        """The label scheme of the file `source`, which holds the values `present`.

        Args:
            present: Its values.
            source: The file, for messages.
            labels: The scheme that the user gave; overrides all else.
            flag: The option for it, for hints.

        Raises:
            LabelError: If no scheme fits, or two that give the values different meanings.
        """
        values = set(present)
        if labels is None and self.declared is None:
            if fitting_schemes(values):  # else it is wrong by itself, and named alone
                values |= self.together
            if self.unclear:
                raise unclear_labels(str(source), values, self.unclear, flag=flag)
        shown = str(source)
        if values > set(present):
            shown = f"{source.parent} (all label maps in it)"
        return label_scheme(values, self.declared, shown, labels, allowed=self.allowed, flag=flag)

    def fitting(self, present: Iterable[int]) -> list[LabelScheme]:
        """The schemes that are left for a label map of these values, none if nothing is clear."""
        values = set(present) | self.together
        if self.unclear:
            return []
        return [scheme for scheme in self.allowed if values <= scheme.values] or tightest_schemes(
            values
        )


def known_of(
    files: Mapping[Path, str], cases: Mapping[str, Case] | None = None
) -> dict[Path, Known]:
    """What is known of each label map before it is read.

    Its header counts first, then a dataset.json beside it, then its data set or its name. Where
    only a name is known, all label maps of its folder that are named alike share one scheme, as one
    network or one person made them; and if their values do not fit what their names say, all label
    maps of the folder do. A dataset.json further up may be about them or about other files: it is
    one more way to read them.

    Args:
        files: Label maps, and their case ids.
        cases: The cases of the data set that they belong to, by id.
    """
    beside = cache(lambda folder: declared_beside(folder / "x.nii.gz"))
    above = cache(_declared_above)
    found: dict[Path, Known] = {}
    kin: dict[object, dict[object, list[Path]]] = {}
    for path, case_id in files.items():
        declared, case = noted_scheme(note_on_disk(path)), (cases or {}).get(case_id)
        if declared is not None:
            found[path] = Known(declared)
        elif case is not None:
            allowed = (case.scheme,) if case.scheme else case.allowed
            found[path] = Known(None, allowed, case.unclear)
            if case.scheme is None and not case.unclear:
                names = tuple(scheme.name for scheme in allowed)
                alike = kin.setdefault((naming_of(case_id).name, names), {})
                alike.setdefault("", []).append(path)
        elif (said := beside(path.absolute().parent)).words:
            found[path] = Known(None, said.schemes, said.unclear)
        else:
            allowed = schemes_by_name(case_id, shape_on_disk(path))
            if allowed:  # else its values alone decide, or the user
                more = above(path.absolute().parent)
                allowed += tuple(scheme for scheme in more if scheme not in allowed)
            found[path] = Known(None, allowed)
            folder = kin.setdefault(path.absolute().parent, {})
            folder.setdefault(naming_of(case_id).name, []).append(path)
    for groups in kin.values():
        found |= _together(groups, found)
    return found


def declared_beside(label_map: Path) -> Declared:
    """What a dataset.json beside a label map, or above its `labelsTr`, says of its values.

    nnU-Net copies the one of the data set that it was trained on into the folder of predictions,
    and has one in the folder of a training, above `fold_0/validation`.
    BIDS has a dseg.tsv beside the label map, or above the folder of the subject.
    """
    folder = label_map.absolute().parent
    description = read_description(folder)
    if not description and LABELS.fullmatch(folder.name):
        description = read_description(folder.parent)
    if not description and _OF_A_FOLD.search(folder.as_posix()):
        description = read_description(folder.parents[1])
    return declared_schemes(description or read_dseg_above(folder))


_OF_A_FOLD = re.compile(r"/fold_(\d+|all)/validation$")
_LEVELS_ABOVE = 3


def _declared_above(folder: Path) -> tuple[LabelScheme, ...]:
    """The schemes that the next dataset.json above a folder agrees with, if there is one near."""
    for parent in folder.parents[:_LEVELS_ABOVE]:
        with suppress(BratsError):  # it may be of anything
            if description := read_description(parent):
                return declared_schemes(description).schemes
    return ()


def _together(
    groups: Mapping[object, list[Path]], known: Mapping[Path, Known]
) -> dict[Path, Known]:
    """The label maps of one folder, by name, with the values of those that share their scheme."""
    paths = [path for alike in groups.values() for path in alike]
    if len(paths) < 2:
        return {}
    keep_freed_memory()  # else half of the time is page faults
    values = dict(zip(paths, in_threads(_values, paths), strict=True))
    unions = {name: _union(values[path] for path in alike) for name, alike in groups.items()}
    fit = all(
        not known[path].allowed or any(unions[name] <= s.values for s in known[path].allowed)
        for name, alike in groups.items()
        for path in alike
    )
    return {
        path: replace(known[path], together=unions[name] if fit else _union(values.values()))
        for name, alike in groups.items()
        for path in alike
    }


def values_in(label_map: Volume) -> frozenset[int]:
    """The values that a label map holds."""
    foreground = label_map.foreground  # a hundredth of the voxels
    found = np.flatnonzero(np.bincount(foreground)).tolist()
    return frozenset(found if foreground.size == label_map.values.size else [0, *found])


def _union(sets: Iterable[frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*sets)


def _values(path: Path) -> frozenset[int]:
    """The values of a label map; none if it cannot be read or no label scheme has them all.

    Such a file says nothing of the others, and is reported where it is read itself.
    """
    try:
        values = frozenset(count_labels(path).voxels)
    except BratsError:
        return frozenset()
    return values if fitting_schemes(values) else frozenset()
