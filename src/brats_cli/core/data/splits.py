"""The splits file: training, validation and test cases; a patient is in one part only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ..errors import SplitError, UnreadableFileError
from ..reading import parse_yaml, read_text, reason_of
from ..wording import brief, did_you_mean, listing
from ..writing import whole_file
from .cases import Case
from .finding import find_cases
from .labels import LabelScheme, scheme_named
from .naming import MODALITIES, patient_of

FORMAT = "brats-splits/1"


@dataclass(frozen=True)
class Fold:
    """Case ids for training and for validation."""

    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """A data set split into folds and a held-out test part.

    Attributes:
        data: Folder of the data set, absolute.
        labels: The label scheme of all cases, or of each case by id.
        seed: Random seed that the split was made with.
        folds: One with `--ratios`, K with `--folds K`.
        test: Ids of the test cases, which are in no fold.
        grouped: Whether all visits of a patient are in the same part.
        patients: The patient of each case by id, where the user said who that is.
        modalities: The MR sequences that every case has, if not all four.
        listing: The cases of the data set by id, if they have been listed already.
    """

    data: Path
    labels: LabelScheme | Mapping[str, LabelScheme]
    seed: int
    folds: tuple[Fold, ...]
    test: tuple[str, ...]
    grouped: bool = True
    patients: Mapping[str, str] = field(default_factory=dict)
    modalities: tuple[str, ...] = MODALITIES
    listing: Mapping[str, Case] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def load(cls, path: Path, *, like: Split | None = None) -> Split:
        """Read and check a splits file, also one written by hand.

        Args:
            path: The file.
            like: A split of the same data set, which is then not listed again.

        Raises:
            UnreadableFileError: If there is no such file, or it is not YAML.
            SplitError: If it is malformed, holds a case twice or one that is not in the data
                folder, or has the same patient in two parts.
        """
        split = _parse(_read(path), path)
        if like is not None and like.data == split.data:
            split = replace(split, listing=like._on_disk)
        _require_apart(split, path)
        split._require_found(path)
        return split

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write as YAML; the data folder is written relative to `path`.

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
        if self.patients:
            named = [case_id for case_id in self.ids() if case_id in self.patients]
            content["patients"] = {case_id: self.patients[case_id] for case_id in named}
        if self.modalities != MODALITIES:
            content["modalities"] = list(self.modalities)
        with whole_file(path, overwrite=overwrite) as partial:
            partial.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def ids(self) -> list[str]:
        """Every case id of the split, sorted."""
        in_folds = {case_id for fold in self.folds for case_id in (*fold.train, *fold.val)}
        return sorted(in_folds | set(self.test))

    def fold(self, number: int) -> Fold:
        """Fold `number`, from 0.

        Raises:
            SplitError: If there is no such fold, or it has no training case.
        """
        if not 0 <= number < len(self.folds):
            raise SplitError(
                f"there is no fold {number}: the split has {len(self.folds)}",
                hint=f"use --fold 0 to {len(self.folds) - 1}, or split again with --folds",
            )
        fold = self.folds[number]
        if not fold.train:
            raise SplitError(
                f"fold {number} has no training case",
                hint="split with other --ratios, or add cases",
            )
        return fold

    def only(self, number: int) -> Split:
        """The split with fold `number` alone; the data set is not listed again.

        Raises:
            SplitError: As `fold` does.
        """
        return replace(self, folds=(self.fold(number),), listing=self._on_disk)

    def cases(self) -> dict[str, Case]:
        """The split's cases as they lie on disk, by id, with their label schemes."""
        return {
            case_id: replace(
                self._on_disk[case_id],
                patient=self.patient_of(case_id),
                scheme=self._scheme_of(case_id),
                allowed=(),
            )
            for case_id in self.ids()
        }

    def patient_of(self, case_id: str) -> str:
        """The patient of a case: as the user said, else by the case id."""
        return self.patients.get(case_id) or patient_of(case_id)

    def _scheme_of(self, case_id: str) -> LabelScheme:
        return self.labels if isinstance(self.labels, LabelScheme) else self.labels[case_id]

    @cached_property
    def _on_disk(self) -> Mapping[str, Case]:
        return self.listing or {case.id: case for case in find_cases(self.data)}

    def _labels_by_name(self) -> str | dict[str, str]:
        if isinstance(self.labels, LabelScheme):
            return self.labels.name
        names = {case_id: self.labels[case_id].name for case_id in self.ids()}
        return names if len(set(names.values())) > 1 else next(iter(names.values()))

    def _require_found(self, path: Path) -> None:
        try:
            is_there = self.data.is_dir()
        except OSError:  # a name that is too long
            is_there = False
        if not is_there:
            raise SplitError(
                f"{path}: there is no data folder {self.data}",
                hint="'data' is relative to the splits file: was one of the two moved?",
            )
        missing = [case_id for case_id in self.ids() if case_id not in self._on_disk]
        if missing:
            raise SplitError(
                f"{path}: {_cases(missing)} not in {self.data}",
                hint="copy them there, or run brats split again",
            )


def _cases(ids: Sequence[str]) -> str:
    """Ids as the subject of a sentence: `case A is`, `cases A, B, C and 4 more are`."""
    return f"case {ids[0]} is" if len(ids) == 1 else f"cases {listing(ids)} are"


# --- reading the file --------------------------------------------------------------------------


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = parse_yaml(read_text(path, hint="create it with brats split DATA"))
    except ValueError as error:
        raise UnreadableFileError(
            path, reason_of(error, "it is not YAML"), hint="create it with brats split DATA"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise SplitError(f"{path} is not a splits file", hint="create one with brats split DATA")
    return content


def _parse(content: Mapping[str, Any], path: Path) -> Split:
    """The split in `content`; every entry is checked."""
    if content["format"] != FORMAT:
        raise SplitError(
            f"{path} has format {str(content['format'])[:60]}, not {FORMAT}",
            hint="another version of brats wrote it: create it again with brats split",
        )
    known = {
        "format",
        "data",
        "labels",
        "seed",
        "grouped",
        "folds",
        "test",
        "patients",
        "modalities",
    }
    for key in content:
        if key not in known:
            raise SplitError(
                f"{path}: unknown key {brief(key)}",
                hint=did_you_mean(
                    str(key), known, otherwise=f"the keys are {', '.join(sorted(known))}"
                ),
            )
    data = _entry(content, "data", str, path)
    folds = []
    for number, fold in enumerate(_entry(content, "folds", list, path)):
        if not isinstance(fold, dict) or set(fold) != {"train", "val"}:
            raise SplitError(
                f"{path}: fold {number} is malformed", hint="it must have train and val"
            )
        folds.append(Fold(_ids(fold["train"], path), _ids(fold["val"], path)))
    if not folds:
        raise SplitError(f"{path} has no fold", hint="create it again with brats split")
    return Split(
        Path(os.path.normpath(path.absolute().parent / data)),
        _labels(content.get("labels"), path),
        _entry(content, "seed", int, path),
        tuple(folds),
        _ids(content.get("test") or [], path),
        bool(content.get("grouped", True)),
        _patients(content.get("patients"), path),
        _modalities(content.get("modalities"), path),
    )


_KINDS = {str: "text", int: "a whole number", list: "a list"}


def _entry(content: Mapping[str, Any], key: str, kind: type, path: Path) -> Any:
    value = content.get(key)
    if not isinstance(value, kind):
        found = "nothing" if value is None else brief(value)
        raise SplitError(
            f"{path}: '{key}' must be {_KINDS[kind]}, found {found}",
            hint="create the file again with brats split, or correct the entry",
        )
    return value


def _ids(value: Any, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(case_id, str) for case_id in value):
        raise SplitError(
            f"{path}: {brief(value)} is not a list of case ids",
            hint="quote an id that looks like a number",
        )
    return tuple(value)


def _patients(value: Any, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(
        isinstance(text, str) for pair in value.items() for text in pair
    ):
        raise SplitError(
            f"{path}: 'patients' must give a patient per case id",
            hint="quote names that look like numbers, or run brats split again",
        )
    return value


def _modalities(value: Any, path: Path) -> tuple[str, ...]:
    if value is None:
        return MODALITIES
    if not isinstance(value, list) or not value or any(name not in MODALITIES for name in value):
        raise SplitError(
            f"{path}: 'modalities' must be a list of MR sequences, found {brief(value)}",
            hint=f"they are {', '.join(MODALITIES)}",
        )
    return tuple(value)


def _labels(value: Any, path: Path) -> LabelScheme | dict[str, LabelScheme]:
    if isinstance(value, str):
        return scheme_named(value)
    if isinstance(value, dict):
        return {str(case_id): scheme_named(str(name)) for case_id, name in value.items()}
    raise SplitError(
        f"{path}: 'labels' must be a label scheme, or one per case",
        hint="for example labels: brats2020",
    )


def _require_apart(split: Split, path: Path) -> None:
    """Check that no case is listed twice, no patient in two parts, and every case has a scheme."""
    for number, fold in enumerate(split.folds):
        parts = {"train": fold.train, "val": fold.val, "test": split.test}
        for case_id, times in Counter(i for ids in parts.values() for i in ids).items():
            if times > 1:
                raise SplitError(
                    f"{path}: case {case_id} is listed {times} times in fold {number}",
                    hint="a case belongs to one of train, val and test",
                )
        home: dict[str, tuple[str, str]] = {}
        for part, ids in parts.items():
            for case_id in ids if split.grouped else ():
                other_part, other = home.setdefault(split.patient_of(case_id), (part, case_id))
                if other_part != part:
                    raise SplitError(
                        f"{path}: patient {split.patient_of(case_id)} is in two parts: {other} in "
                        f"{other_part}, {case_id} in {part} (fold {number})",
                        hint="all visits of a patient belong in the same part: move one of them",
                    )
    without = set(split.ids()) - set(
        split.labels if isinstance(split.labels, dict) else split.ids()
    )
    if without:
        raise SplitError(
            f"{path}: {_cases(sorted(without))} without a label scheme",
            hint="add them under 'labels', or give one scheme for all cases",
        )
