"""Channels and labels from dataset.json (Medical Decathlon, nnU-Net) and from BIDS' dseg.tsv."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..reading import read_json, read_table
from .labels import SCHEMES, LabelScheme
from .naming import MODALITIES, modality_named


def read_description(folder: Path) -> Mapping[str, Any]:
    """Content of the dataset.json in `folder`; empty if there is none.

    Raises:
        UnreadableFileError: If it is not JSON, or may not be read.
    """
    path = folder / "dataset.json"
    try:
        if not path.is_file():
            return {}
    except OSError:  # a folder that may not be entered is reported where it is listed
        return {}
    content = read_json(path)
    return content if isinstance(content, dict) else {}


_DSEG = "dseg.tsv"
_OF_A_SUBJECT = re.compile(r"(sub|ses)-.+|anat", re.IGNORECASE)


def read_dseg(folder: Path) -> Mapping[str, Any]:
    """What BIDS' tables `dseg.tsv` and `…_dseg.tsv` in `folder` name the labels; empty without any.

    Raises:
        UnreadableFileError: If one of them may not be read.
    """
    try:
        paths = sorted(path for path in folder.glob(f"*{_DSEG}") if path.is_file())
    except OSError:  # as in `read_description`
        return {}
    if not paths:
        return {}
    named: dict[str, list[str]] = {}
    for path in paths:
        rows = [{k.strip().lower(): v.strip() for k, v in row.items()} for row in read_table(path)]
        if not all(row.get("index") and row.get("name") for row in rows):
            return {_DSEG: "no columns index and name"}
        for row in rows:
            if row["index"] != "0" and row["index"] not in named.setdefault(row["name"], []):
                named[row["name"]].append(row["index"])
    return {_DSEG: {name: v if len(v) > 1 else v[0] for name, v in named.items() if v}}


def read_dseg_above(folder: Path) -> Mapping[str, Any]:
    """What `read_dseg` gives for `folder`, or else for the subject and the data set around it."""
    folder = folder.absolute()
    found = read_dseg(folder)
    if not found and _OF_A_SUBJECT.fullmatch(folder.name):
        return read_dseg_above(folder.parent)
    return found


def channel_order(description: Mapping[str, Any]) -> list[str]:
    """Modalities by channel from dataset.json; channels of anything else keep their names.

    Empty if it names none of the four, one of them twice, or does not count from 0.
    """
    names = described_channels(description)
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        return []
    by_number = {_whole_number(number): name for number, name in names.items()}
    if set(by_number) != set(range(len(names))):
        return []
    channels = [by_number[number] for number in range(len(names))]
    order = [modality_named(channel) or channel for channel in channels]
    ours = [role for role in order if role in MODALITIES]
    return order if ours and len(ours) == len(set(ours)) else []


def described_channels(description: Mapping[str, Any]) -> Any:
    """What dataset.json says of the channels, whatever it is; None or empty if nothing."""
    return description.get("channel_names") or description.get("modality")


# --- labels ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Declared:
    """What a dataset.json or dseg.tsv says that label values mean.

    Attributes:
        schemes: The label schemes that agree with it.
        words: What it says, such as `1 label_1, 2 label_2`; empty if it says nothing.
        source: Name of the file.
    """

    schemes: tuple[LabelScheme, ...] = ()
    words: str = ""
    source: str = "dataset.json"

    @property
    def unclear(self) -> str:
        """What it says, if no label scheme agrees with it: never a reason to guess."""
        return f"{self.source} says '{self.words}'" if self.words and not self.schemes else ""


def declared_schemes(description: Mapping[str, Any], layout: str = "") -> Declared:
    """The label schemes that agree with dataset.json, or dseg.tsv, in every label that it names.

    Every word has to be understood. A scheme with just the values named counts before those with
    more, and among those of the same tissues the one of the layout (`msd`, `nnunet`) alone.
    """
    source = "dataset.json" if description.get("labels") else _DSEG
    labels = description.get("labels") or description.get(_DSEG)
    if not labels:
        return Declared()
    if not isinstance(labels, dict):
        return Declared((), _short(labels), source)
    entries = list(_entries(labels))
    words = ", ".join(f"{_short(value)} {name}" for name, value in entries)
    try:
        meant = [(_concept(name), _values(value)) for name, value in entries]
    except ValueError:
        return Declared((), _short(words), source)
    named = {value for _, values in meant for value in values}
    fitting = [
        scheme
        for scheme in SCHEMES.values()
        if meant and all(values == _of(concept, scheme) for concept, values in meant)
    ]
    exact = [scheme for scheme in fitting if named == scheme.values - {0}] or fitting
    for chosen in [scheme for scheme in exact if scheme.name == layout]:
        exact = [each for each in exact if each is chosen or each.tissues != chosen.tissues]
    return Declared(tuple(exact), _short(words), source)


def _entries(labels: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values but the background's: the Decathlon has {"1": "edema"}, nnU-Net inverse."""
    by_value = all(_whole_number(key) is not None for key in labels)
    for key, value in labels.items():
        name, number = (str(value), key) if by_value and isinstance(value, str) else (key, value)
        if not (name.strip().lower() == "background" and _whole_number(number) == 0):
            yield name, number


def _values(value: Any) -> set[int]:
    """The label values of an entry, a number or a list of numbers.

    Raises:
        ValueError: If it is anything else.
    """
    numbers = [_whole_number(each) for each in (value if isinstance(value, list) else [value])]
    values = {number for number in numbers if number is not None and 0 < number < 256}
    if len(values) != len(numbers):
        raise ValueError(f"{value} is no label")
    return values


def _whole_number(value: Any) -> int | None:
    """A number as JSON or as text, or None."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,4}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


_CONCEPTS: Mapping[frozenset[str], set[str]] = {
    frozenset(words.split()): set(tissues.split())
    for words, tissues in {
        "ED": "ED", "ED NON": "ED",  # surrounding non-enhancing FLAIR hyperintensity
        "NCR": "NCR", "NCR CORE": "NCR", "NCR NON": "NCR", "NCR NON CORE": "NCR",
        "NON": "NON", "NON CORE": "NON",
        "ET": "ET", "ET CORE": "ET",
        "CC": "CC", "RC": "RC", "GTV": "GTV",
        "CORE": "NCR NET ET CC", "WT": "NCR NET ED ET CC",
    }.items()
}  # fmt: skip
"""Tissues by the kinds of words that a name holds; NON is non-enhancing tumour."""

_KINDS = {
    "ED": "edema|oedema|ed|snfh|hyperintensity",
    "NCR": "necrosis|necrotic|ncr",
    "NON": "nonenhancing|nonenhanced|nonenhancement|net|netc|ncet",
    "ET": "enhancing|enhanced|enhancement|et",
    "CC": "cyst|cystic|cc",
    "RC": "resection|cavity|rc",
    "GTV": "gross|gtv",
    "CORE": "core|tc",
    "WT": "whole|complete|wt",
    "": "tumor|tumoral|peritumoral|surrounding|component|tissue|region|volume|and|of|the|flair|gd"
    "|gadolinium|contrast|brain|glioma",
}
_KIND_OF_WORD = {word: kind for kind, words in _KINDS.items() for word in words.split("|")}


def _concept(name: str) -> set[str]:
    """The tissues that a label's name stands for.

    Raises:
        ValueError: If a word of it is not understood, or the words contradict each other.
    """
    plain = re.sub(r"[^a-z0-9]+", " ", name.lower().replace("tumour", "tumor"))
    plain = re.sub(r"\bnon (contrast )?(?=enhanc)", "non", plain)
    kinds = [_KIND_OF_WORD.get(word) for word in plain.split()]
    found = _CONCEPTS.get(frozenset(kind for kind in kinds if kind))
    if None in kinds or found is None:
        raise ValueError(f"{name} is not understood")
    return found


def _of(concept: set[str], scheme: LabelScheme) -> set[int]:
    """The values that a concept has in a scheme."""
    if concept == {"NON"}:  # from 2017 on one label with necrosis
        concept = {"NET"} if "NET" in scheme.tissues.values() else {"NCR"}
    return {value for value, tissue in scheme.tissues.items() if tissue in concept}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
