"""How text, YAML, JSON and tables of others are read: regular files only, in any encoding."""

from __future__ import annotations

import csv
import hashlib
import json
import stat
from pathlib import Path
from typing import Any, TypeVar

from .errors import UnreadableFileError

_MOST_BYTES = 1 << 28
"""No settings, split or table is longer."""

_MOST_VALUES, _DEEPEST = 1_000_000, 50

Value = TypeVar("Value")


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
            2001-99-99.
    """
    import yaml  # not needed to read tables

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
        raise UnreadableFileError(path, "it is not JSON") from error


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


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a line of column names, separated by comma, semicolon or tab.

    Fields that a row has beyond the column names are left out, and those that it lacks are empty.

    Raises:
        UnreadableFileError: If it is no table.
    """
    text = read_text(path).lstrip("\r\n")
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        names, *lines = list(csv.reader(text.splitlines(), delimiter=separator)) or [[]]
    except csv.Error as error:
        raise UnreadableFileError(
            path, f"it is not a readable table ({error})", hint="save it again as CSV"
        ) from error
    columns: dict[str, int] = {}
    for number, name in enumerate(names):
        if name.strip():
            columns.setdefault(name.strip(), number)
    return [
        {name: line[number] if number < len(line) else "" for name, number in columns.items()}
        for line in lines
        if any(field.strip() for field in line)
    ]
