"""The manifest beside predicted label maps: written by `brats predict`, read by `brats view`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UnreadableFileError
from ..reading import parse_json, read_text, require_few

MANIFEST = "predictions.jsonl"
"""File in a folder of predictions with one line per prediction, in the order they were made; if a
case has several lines, the last one is valid. One without `finished` says that the case's files are
being replaced, so that no line is of others than those that lie there."""


_MOST_VALUES = 4_000_000  # a line has some forty


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """The lines of a manifest in order, without those that were cut off; none without a manifest.

    Raises:
        UnreadableFileError: If it is there and cannot be read.
    """
    text = read_text(path) if path.is_file() else ""
    try:
        require_few(text, "\n,[{", _MOST_VALUES)
    except ValueError as error:
        raise UnreadableFileError(path, str(error), hint="is it a list of predictions?") from error
    rows = []
    for line in text.split("\n"):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
