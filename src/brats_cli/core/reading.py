"""How text, YAML, JSON and tables of others are read: regular files only, in any encoding."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from .errors import UnreadableFileError

# What follows keeps every reader below half a gigabyte and a minute, whatever a file holds: Python
# takes some 100 to 300 bytes for a value, PyYAML 650 bytes and up to 90 microseconds.

_MOST_BYTES = 1 << 26
"""No text is longer."""

_MOST_CHARACTERS_OF_YAML = 1 << 24
"""No settings and no split are longer: 10,000 cases in 20 folds take 5 million."""

_MOST_VALUES, _DEEPEST = 1_000_000, 50

_MOST_CELLS, _MOST_VALUES_OF_YAML = 1_500_000, 500_000

_LONGEST_LINE = 1 << 20
"""Characters in which the column names of a table are looked for."""

Value = TypeVar("Value")


class LimitError(ValueError):
    """Of a text that is longer, or holds more, than is read; the message says so."""


def reason_of(error: ValueError, otherwise: str) -> str:
    """What is wrong with a text that was not parsed: that it is too long, or `otherwise`."""
    return str(error) if isinstance(error, LimitError) else otherwise


def read_text(path: Path, *, hint: str = "check the path") -> str:
    """The text of a regular file in UTF-8, or UTF-16 with its mark, or else Windows' Latin-1.

    Excel writes all three.

    Raises:
        UnreadableFileError: If there is no such file, it is a folder, a pipe or a device, it may
            not be read, or it holds bytes that are in no text.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise UnreadableFileError(path, f"it is {kind}", hint=hint)
        if status.st_size > _MOST_BYTES:
            raise UnreadableFileError(path, f"it has {status.st_size:,} bytes", hint=hint)
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UnreadableFileError(path, "there is no such file", hint=hint) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableFileError(path, reason, hint=hint) from error
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ["utf-16"]
    else:
        encodings = ["utf-8-sig", "cp1252", "latin-1"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise UnreadableFileError(path, "it is not text", hint=hint)


def real_path(path: Path) -> Path:
    """`path` without links; unlike `Path.resolve`, also where links lead to each other."""
    return Path(os.path.realpath(path))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        UnreadableFileError: If it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise UnreadableFileError(path, error.strerror or str(error)) from error
    return digest.hexdigest()


def parse_yaml(text: str) -> Any:
    """What a text in YAML says.

    Raises:
        ValueError: If it is not YAML, or names a value that there cannot be, such as the date
            2001-99-99; or if it is very long.
    """
    import yaml  # not needed to read tables

    if len(text) > _MOST_CHARACTERS_OF_YAML:
        raise LimitError(f"it has {len(text):,} characters, too many")
    require_few(text, "\n\r\x85\u2028\u2029,:[{", _MOST_VALUES_OF_YAML)
    try:
        return require_small(yaml.safe_load(text))
    # PyYAML's constructors let through what they stumble on.
    except (
        yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def parse_json(text: str) -> Any:
    """What a text in JSON says.

    Raises:
        ValueError: If it is not JSON, or nested without end.
    """
    require_few(text, ",[{", 2 * _MOST_VALUES)
    try:
        return require_small(json.loads(text))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> Any:
    """What a file in JSON says.

    Raises:
        UnreadableFileError: If it is not JSON, or may not be read.
    """
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise UnreadableFileError(path, reason_of(error, "it is not JSON")) from error


def require_small(tree: Value) -> Value:
    """The dicts and lists of a file, if there are not too many of them when all are written out.

    A short file may name one list many times in another, that one many times in a third, and so on
    (aliases of YAML, memos of pickles): a message that shows such a value would take all memory.

    Raises:
        ValueError: If it holds more than a million values, or is nested more than 50 deep.
    """
    waiting: list[tuple[Any, int]] = [(tree, 0)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict):
            inside: list[Any] = [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            inside = list(value)
        else:
            continue
        count += len(inside)
        if count > _MOST_VALUES or depth >= _DEEPEST:
            raise ValueError("it holds too many values, one inside the other")
        waiting.extend((each, depth + 1) for each in inside)
    return tree


def require_few(text: str, marks: str, most: int) -> None:
    """Check, before a text is parsed, that it does not hold too many values.

    Args:
        text: The text.
        marks: The characters of which one stands before or behind every value.
        most: How many of them there may be.

    Raises:
        LimitError: If there are more.
    """
    if sum(text.count(mark) for mark in marks) > most:
        raise LimitError(f"it holds too many values, more than {most:,}")


def table_lines(path: Path, separator: str) -> list[str]:
    """The lines of a table in a text file, without their ends; `separator` stands between cells.

    Raises:
        UnreadableFileError: If it may not be read, or has more than 1,500,000 cells.
    """
    return _lines_of(path, read_text(path), separator)


def _lines_of(path: Path, text: str, separator: str) -> list[str]:
    try:
        require_few(text, f"\n\r{separator}", _MOST_CELLS)
    except LimitError as error:
        raise UnreadableFileError(
            path, str(error), hint="is it a table of cases? leave out columns that nobody needs"
        ) from error
    return re.split("\r\n|\n|\r", text)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a line of column names, separated by comma, semicolon or tab.

    Fields that a row has beyond the column names are left out, and those that it lacks are empty.

    Raises:
        UnreadableFileError: If it is no table.
    """
    text = read_text(path)
    first = next(filter(None, re.split("[\r\n]", text[:_LONGEST_LINE])), "")
    separator = max(",;\t", key=first.count)
    try:
        return list(_rows(_lines_of(path, text, separator), separator))
    except csv.Error as error:
        raise UnreadableFileError(
            path, f"it is not a readable table ({error})", hint="save it again as CSV"
        ) from error


def _rows(lines: list[str], separator: str) -> Iterator[dict[str, str]]:
    """The rows of a table, by column.

    Raises:
        csv.Error: If it is none, or would be far larger with its missing fields than without.
    """
    rows = csv.reader(lines, delimiter=separator)
    names = next((row for row in rows if row), [])
    columns: dict[str, int] = {}
    for number, name in enumerate(names):
        if name.strip():
            columns.setdefault(name.strip(), number)
    cells = 0
    for row in rows:
        if any(field.strip() for field in row):
            cells += len(columns)
            if cells > _MOST_CELLS:
                raise csv.Error("it holds too many values")
            yield {name: row[n] if n < len(row) else "" for name, n in columns.items()}
