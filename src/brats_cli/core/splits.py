"""Who trains, who validates, who tests: a patient is on one side only, and the file says it all."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .cases import Case, find_cases, label_scheme
from .errors import SplitError, UnreadableFileError
from .files import whole_file
from .labels import LabelScheme, scheme_named
from .naming import naming_of, patient_of
from .parallel import available_cpus
from .volumes import LabelCount, count_labels

FORMAT = "brats-splits/1"

DEFAULT_RATIOS = (70.0, 15.0, 15.0)
"""Train, validation and test, in percent of the patients."""


@dataclass(frozen=True)
class Fold:
    """Case ids to train on and to validate with."""

    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """A data set dealt into folds and a held-out test part.

    Attributes:
        data: The data set's folder, absolute.
        labels: The label scheme of all cases, or of each.
        seed: What it was dealt with.
        folds: One for `--ratios`, K for `--folds K`.
        test: Case ids that no fold holds.
        grouped: Whether all visits of a patient are on one side.
    """

    data: Path
    labels: LabelScheme | Mapping[str, LabelScheme]
    seed: int
    folds: tuple[Fold, ...]
    test: tuple[str, ...]
    grouped: bool = True

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read and check a `splits.yaml`, whoever wrote it.

        Raises:
            UnreadableFileError: If there is no such file, or it is not YAML.
            SplitError: If it is malformed, holds a case twice or one that is not in the data
                folder, or has a patient on two sides.
        """
        split = _parse(_read(path), path)
        _require_apart(split, path)
        split._require_found(path)
        return split

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write as YAML with the data folder relative to `path`.

        Raises:
            OutputExistsError: If `path` exists and `overwrite` is false.
            OutputError: If it cannot be written.
        """
        content = {
            "format": FORMAT,
            "data": os.path.relpath(self.data, path.absolute().parent),
            "labels": self._labels_by_name(),
            "seed": self.seed,
            "grouped": self.grouped,
            "folds": [{"train": list(fold.train), "val": list(fold.val)} for fold in self.folds],
            "test": list(self.test),
        }
        with whole_file(path, overwrite=overwrite) as partial:
            partial.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def ids(self) -> list[str]:
        """Every case id of the split, sorted."""
        fold = self.folds[0]
        return sorted((*fold.train, *fold.val, *self.test))

    def fold(self, number: int) -> Fold:
        """Fold `number`, from 0.

        Raises:
            SplitError: If there is no such fold, or it has no case to train on or to validate with.
        """
        if not 0 <= number < len(self.folds):
            raise SplitError(
                f"there is no fold {number}: the split has {len(self.folds)}",
                hint=f"give --fold 0 to {len(self.folds) - 1}, or split again with --folds",
            )
        fold = self.folds[number]
        if not fold.train or not fold.val:
            empty = "val" if fold.train else "train"
            raise SplitError(
                f"fold {number} has no {empty} case",
                hint="training needs at least one of each: split with other --ratios",
            )
        return fold

    def cases(self) -> dict[str, Case]:
        """The split's cases as they lie on disk, by id."""
        return {case_id: self._on_disk[case_id] for case_id in self.ids()}

    def scheme_of(self, case_id: str) -> LabelScheme:
        """The label scheme of a case."""
        return self.labels if isinstance(self.labels, LabelScheme) else self.labels[case_id]

    @cached_property
    def _on_disk(self) -> dict[str, Case]:
        return {case.id: case for case in find_cases(self.data)}

    def _labels_by_name(self) -> str | dict[str, str]:
        if isinstance(self.labels, LabelScheme):
            return self.labels.name
        names = {case_id: self.labels[case_id].name for case_id in self.ids()}
        return names if len(set(names.values())) > 1 else next(iter(names.values()))

    def _require_found(self, path: Path) -> None:
        if not self.data.is_dir():
            raise SplitError(
                f"{path}: there is no data folder {self.data}",
                hint="'data' is relative to the file: did one of the two move?",
            )
        missing = [case_id for case_id in self.ids() if case_id not in self._on_disk]
        if missing:
            raise SplitError(
                f"{path}: {_some(missing)} not in {self.data}",
                hint="copy them there, or run brats split again",
            )


def _some(ids: Sequence[str]) -> str:
    """Up to three ids as the subject of a sentence: `case A is`, `cases A, B, C and 4 more are`."""
    names = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    return f"case {names} is" if len(ids) == 1 else f"cases {names} are"


# --- reading the file --------------------------------------------------------------------------


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnreadableFileError(
            path, "there is no such file", hint="make it with brats split DATA"
        ) from error
    except OSError as error:
        raise UnreadableFileError(path, error.strerror or str(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UnreadableFileError(
            path, "it is not YAML", hint="make it with brats split"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise SplitError(f"{path} is not a splits file", hint="make one with brats split DATA")
    return content


def _parse(content: Mapping[str, Any], path: Path) -> Split:
    """The split in `content`, every entry of which is checked."""
    if content["format"] != FORMAT:
        raise SplitError(
            f"{path} is of format {content['format']}, not {FORMAT}",
            hint="it is from another version of brats: make it again with brats split",
        )
    known = {"format", "data", "labels", "seed", "grouped", "folds", "test"}
    for key in content:
        if key not in known:
            raise SplitError(
                f"{path}: unknown key '{key}'", hint=f"the keys are {', '.join(sorted(known))}"
            )
    data = _entry(content, "data", str, path)
    folds = []
    for number, fold in enumerate(_entry(content, "folds", list, path)):
        if not isinstance(fold, dict) or set(fold) != {"train", "val"}:
            raise SplitError(f"{path}: fold {number} is malformed", hint="it needs train and val")
        folds.append(Fold(_ids(fold["train"], path), _ids(fold["val"], path)))
    if not folds:
        raise SplitError(f"{path} holds no fold", hint="make it again with brats split")
    return Split(
        Path(os.path.normpath(path.absolute().parent / data)),
        _labels(content.get("labels"), path),
        _entry(content, "seed", int, path),
        tuple(folds),
        _ids(content.get("test") or [], path),
        bool(content.get("grouped", True)),
    )


def _entry(content: Mapping[str, Any], key: str, kind: type, path: Path) -> Any:
    value = content.get(key)
    if not isinstance(value, kind):
        found = "nothing" if value is None else repr(value)
        raise SplitError(
            f"{path}: '{key}' must be a {kind.__name__}, found {found}",
            hint="make the file again with brats split, or mend the entry",
        )
    return value


def _ids(value: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(case_id, str) for case_id in value):
        raise SplitError(
            f"{path}: {str(value)[:60]} is not a list of case ids",
            hint="put an id that looks like a number into quotes",
        )
    return tuple(value)


def _labels(value: Any, path: Path) -> LabelScheme | dict[str, LabelScheme]:
    if isinstance(value, str):
        return scheme_named(value)
    if isinstance(value, dict):
        return {str(case_id): scheme_named(str(name)) for case_id, name in value.items()}
    raise SplitError(
        f"{path}: 'labels' must be a label scheme, or one for each case",
        hint="for example labels: brats2020",
    )


def _require_apart(split: Split, path: Path) -> None:
    """Check that no case stands twice, no patient on two sides, and every case has a scheme."""
    for number, fold in enumerate(split.folds):
        sides = {"train": fold.train, "val": fold.val, "test": split.test}
        for case_id, times in Counter(i for ids in sides.values() for i in ids).items():
            if times > 1:
                raise SplitError(
                    f"{path}: case {case_id} is there {times} times in fold {number}",
                    hint="a case belongs to one of train, val and test",
                )
        home: dict[str, tuple[str, str]] = {}
        for side, ids in sides.items():
            for case_id in ids if split.grouped else ():
                other_side, other = home.setdefault(patient_of(case_id), (side, case_id))
                if other_side != side:
                    raise SplitError(
                        f"{path}: patient {patient_of(case_id)} is on two sides: {other} in "
                        f"{other_side}, {case_id} in {side} (fold {number})",
                        hint="all visits of a patient belong on one side: move one of them",
                    )
    without = set(split.ids()) - set(
        split.labels if isinstance(split.labels, dict) else split.ids()
    )
    if without:
        raise SplitError(
            f"{path}: {_some(sorted(without))} without a label scheme",
            hint="add them under labels, or give one scheme for all",
        )


# --- dealing -----------------------------------------------------------------------------------


def parse_ratios(text: str) -> tuple[float, float, float]:
    """`70/15/15` as numbers: train, validation, test.

    Raises:
        SplitError: If they are not three numbers, or train or validation would be empty.
    """
    try:
        train, val, test = map(float, text.split("/"))
    except ValueError:
        train = val = test = -1.0
    if not (train > 0 and val > 0 and 0 <= test < float("inf")):
        raise SplitError(
            f"--ratios {text} is not train/validation/test, such as 70/15/15",
            hint="three numbers, of which only the last may be 0",
        )
    return train, val, test


def split_data_set(
    data: Path,
    *,
    ratios: tuple[float, float, float] = DEFAULT_RATIOS,
    folds: int | None = None,
    seed: int = 0,
    grouped: bool = True,
    labels: str | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Split:
    """Find the cases in `data`, read their labels once, and deal them; see `make_split`."""
    cases = [case for case in find_cases(data) if case.label]
    if not cases:
        raise SplitError(f"no case in {data} has a label map", hint="give the training data")
    for case in cases:
        case.require()
    counts = count_all(cases, on_progress)
    values = {case_id: count.voxels for case_id, count in counts.items()}
    schemes = schemes_of(cases, values, labels)
    return make_split(
        cases,
        data=data,
        labels=schemes,
        strata=tumour_strata(counts, schemes),
        ratios=ratios,
        folds=folds,
        seed=seed,
        grouped=grouped,
    )


def make_split(
    cases: Sequence[Case],
    *,
    data: Path,
    labels: Mapping[str, LabelScheme],
    strata: Mapping[str, str],
    ratios: tuple[float, float, float] = DEFAULT_RATIOS,
    folds: int | None = None,
    seed: int = 0,
    grouped: bool = True,
) -> Split:
    """Deal cases into one fold by `ratios`, or into `folds` folds, and a test part.

    Whether a patient is in the test part follows from seed and patient id alone, so that cases
    added later move nobody out of it; its size is therefore near the ratio, not exactly it.
    The others are dealt so that every fold has its share of each stratum.

    Args:
        cases: Cases with labels, each id once.
        data: The data set's folder.
        labels: Label scheme by case id.
        strata: Stratum by case id.
        ratios: Train, validation and test; only the last counts where `folds` is given.
        folds: Number of folds; every case outside the test part validates in one of them.
        seed: Another seed, another split.
        grouped: Keep all visits of a patient on one side.

    Raises:
        SplitError: If there are too few patients.
    """
    train, val, test = np.array(ratios) / sum(ratios)
    groups = {case.id: case.patient if grouped else case.id for case in cases}
    held_out = _test_groups(set(groups.values()), test, seed, leave=folds or 2)
    rest = sorted(case_id for case_id, group in groups.items() if group not in held_out)
    parts = _deal(rest, groups, strata, seed, folds or val / (train + val))
    return Split(
        data.absolute(),
        dict(labels),
        seed,
        tuple(Fold(tuple(i for i in rest if i not in part), tuple(sorted(part))) for part in parts),
        tuple(sorted(case_id for case_id, group in groups.items() if group in held_out)),
        grouped,
    )


def _test_groups(groups: set[str], share: float, seed: int, *, leave: int) -> set[str]:
    """The groups whose hash lies below `share`: at least one if any, and `leave` are left over."""
    if len(groups) < leave + bool(share):
        parts = f"{leave} parts" + " and a test part" * bool(share)
        raise SplitError(
            f"{len(groups)} patients are too few for {parts}",
            hint="give more cases, fewer folds or --ratios with 0 for the test part",
        )
    place = {group: _hash(seed, group) for group in groups}
    ordered = sorted(groups, key=lambda group: place[group])
    below = sum(place[group] < share for group in ordered)
    return set(ordered[: min(max(below, bool(share)), len(groups) - leave)])


def _hash(seed: int, group: str) -> float:
    """A number in [0, 1) that depends on nothing but seed and group, on any machine."""
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _deal(
    ids: Sequence[str],
    groups: Mapping[str, str],
    strata: Mapping[str, str],
    seed: int,
    wanted: int | float,
) -> list[set[str]]:
    """Validation parts: `wanted` of them that cover all ids, or one with that share of them."""
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import

    members = len({groups[case_id] for case_id in ids})
    pieces, parts = (wanted, wanted) if isinstance(wanted, int) else _pieces(wanted, members)
    splitter = StratifiedGroupKFold(n_splits=parts, shuffle=True, random_state=seed)
    dealt = [
        {ids[index] for index in chosen}
        for _, chosen in splitter.split(
            ids, _without_rare([strata[i] for i in ids], parts), [groups[i] for i in ids]
        )
    ]
    return dealt if isinstance(wanted, int) else [set().union(*dealt[:pieces])]


def _pieces(share: float, members: int) -> tuple[int, int]:
    """The fraction m/k nearest enough to `share` of `members`: off by half a member at most.

    Of those the one with the smallest k, so that every stratum can be dealt k ways.
    """
    most = min(20, members)
    fractions = [
        (min(max(round(share * parts), 1), parts - 1), parts) for parts in range(2, most + 1)
    ]
    off = [abs(pieces / parts - share) * members for pieces, parts in fractions]
    near = [index for index, distance in enumerate(off) if distance <= 0.5]
    return fractions[near[0] if near else int(np.argmin(off))]


def _without_rare(strata: Sequence[str], parts: int) -> list[str]:
    """Strata with fewer cases than `parts` put together, as they cannot be dealt evenly."""
    sizes = Counter(strata)
    merged = [name if sizes[name] >= parts else "" for name in strata]
    return merged if merged.count("") in (0, *range(parts, len(merged))) else [""] * len(merged)


# --- what the labels say -----------------------------------------------------------------------


def count_all(
    cases: Sequence[Case], on_progress: Callable[[int, int], object] = lambda done, total: None
) -> dict[str, LabelCount]:
    """The label voxels of every case, each file read once, several at a time."""
    labels = {case.id: case.label for case in cases if case.label}
    counts = {}
    # Threads do, as unzipping leaves Python's lock to the others.
    with ThreadPoolExecutor(available_cpus()) as pool:
        for case_id, count in zip(labels, pool.map(count_labels, labels.values()), strict=True):
            counts[case_id] = count
            on_progress(len(counts), len(labels))
    return counts


def schemes_of(
    cases: Iterable[Case], values: Mapping[str, Iterable[int]], labels: str | None = None
) -> dict[str, LabelScheme]:
    """The label scheme of every case, judged over all cases of one naming.

    Raises:
        LabelError: If values fit no scheme, or several that differ in meaning.
    """
    kin: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases:
        key = (
            naming_of(case.id).name,
            case.scheme and case.scheme.name,
            *(s.name for s in case.allowed),
        )
        kin.setdefault(key, []).append(case)
    schemes = {}
    for alike in kin.values():
        present = {value for case in alike for value in values[case.id]}
        first = alike[0]
        source = str(first.label) if len(alike) == 1 else f"{_some([c.id for c in alike])[:-4]}"
        scheme = label_scheme(present, first.scheme, source, labels, allowed=first.allowed)
        schemes.update({case.id: scheme for case in alike})
    return schemes


def tumour_strata(
    counts: Mapping[str, LabelCount], schemes: Mapping[str, LabelScheme]
) -> dict[str, str]:
    """Stratum by case id: tercile of whole-tumour volume, and whether there is enhancing tumour."""
    volume = {
        case_id: _voxels(count, schemes[case_id], "WT") * count.voxel_mm3
        for case_id, count in counts.items()
    }
    thirds = np.quantile(list(volume.values()), [1 / 3, 2 / 3])
    size = {case_id: int(np.searchsorted(thirds, mm3)) for case_id, mm3 in volume.items()}
    return {
        case_id: f"{('small', 'medium', 'large')[size[case_id]]}, "
        + ("ET" if _voxels(count, schemes[case_id], "ET") else "no ET")
        for case_id, count in counts.items()
    }


def _voxels(count: LabelCount, scheme: LabelScheme, region: str) -> int:
    return sum(count.voxels.get(value, 0) for value in scheme.region(region).labels)
