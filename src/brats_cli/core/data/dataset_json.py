"""Channels and labels from the dataset.json of the Medical Decathlon and of nnU-Net."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UnreadableFileError
from .labels import SCHEMES, LabelScheme
from .naming import MODALITIES, ROLES


def read_description(folder: Path) -> Mapping[str, Any]:
    """Content of the dataset.json in `folder`; empty if there is none.

    Raises:
        UnreadableFileError: If it is not JSON.
    """
    path = folder / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UnreadableFileError(path, "it is not JSON") from error
    return content if isinstance(content, dict) else {}


def channel_order(description: Mapping[str, Any]) -> list[str]:
    """Modalities by channel from dataset.json; empty if it names none of the four."""
    names = description.get("channel_names") or description.get("modality")
    if not isinstance(names, dict) or not all(str(number).isdigit() for number in names):
        return []
    ordered = sorted(names.items(), key=lambda item: int(item[0]))
    order = [ROLES.get(str(name).lower(), str(name)) for _, name in ordered]
    return order if set(order) & set(MODALITIES) else []


def declared_scheme(description: Mapping[str, Any], layout: str) -> LabelScheme | None:
    """The label scheme with the tissues named in dataset.json, or None."""
    labels = description.get("labels")
    if not isinstance(labels, dict):
        return None
    if any(isinstance(value, list) for value in labels.values()):
        tissues = _tissues_of_regions(labels)
    else:
        # The Decathlon writes {"1": "edema"}, nnU-Net {"edema": 1}.
        pairs = [(v, k) if str(v).isdigit() else (k, v) for k, v in labels.items()]
        tissues = {int(v): _tissue(str(n)) for v, n in pairs if str(v).isdigit() and int(v)}
    fitting = {s.name: s for s in SCHEMES.values() if s.tissues == tissues}
    return fitting.get(layout) or next(iter(fitting.values()), None)


# The order matters: "non-enhancing" is tested before "enhancing".
_TISSUE_WORDS = {
    r"edema|snfh|peritum|^ed$": "ED",
    r"resection|cavity|^rc$": "RC",
    r"cyst|^cc$": "CC",
    r"non.?enh|necro|ncr|net|core": "NCR",
    r"enh|^et$": "ET",
}


def _tissue(name: str) -> str:
    lower = name.lower()
    return next((t for words, t in _TISSUE_WORDS.items() if re.search(words, lower)), lower)


def _tissues_of_regions(labels: Mapping[str, Any]) -> dict[int, str]:
    """Tissues by value, if dataset.json gives nested regions as lists of values.

    A value in only one region is edema, in two necrosis, in all three enhancing tumour.
    """
    lists = [value if isinstance(value, list) else [value] for value in labels.values()]
    depth = Counter(value for values in lists for value in values if value)
    return {int(v): ("ED", "NCR", "ET")[min(n, 3) - 1] for v, n in sorted(depth.items())}
