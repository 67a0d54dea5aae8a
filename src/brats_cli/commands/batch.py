"""Shared by commands over many cases: paths from standard input, and a list of what failed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .. import console
from ..core.errors import BratsError


def paths_of(given: Sequence[Path]) -> list[Path]:
    """The paths given, without duplicates; `-` is replaced by the lines of standard input.

    Raises:
        BratsError: If there is a `-` and standard input is empty.
    """
    piped = [Path(line.strip()) for line in sys.stdin if line.strip()] if Path("-") in given else []
    paths = [each for path in given for each in (piped if path == Path("-") else [path])]
    if not paths:
        raise BratsError("standard input is empty", hint="pipe paths into it, one per line")
    return list(dict.fromkeys(paths))


def raise_failures(failed: Sequence[BratsError], *, tried: int, of: str) -> None:
    """Raise the error of a single case; of a batch, print all errors and raise a summary."""
    if not failed:
        return
    if tried == 1:
        raise failed[0]
    for error in failed:
        console.error(str(error), error.hint)
    raise BratsError(
        f"{len(failed)} of {tried} {of} failed",
        hint="their errors are listed above; all others are done",
    )
