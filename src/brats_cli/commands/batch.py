"""What commands over many cases share: paths from stdin, and one bad case stops no other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .. import console
from ..core.errors import BratsError


def paths_of(given: Sequence[Path]) -> list[Path]:
    """The paths given, each once, with those on stdin, one a line, in the place of `-`.

    Raises:
        BratsError: If stdin was asked for and is empty.
    """
    piped = [Path(line.strip()) for line in sys.stdin if line.strip()] if Path("-") in given else []
    paths = [each for path in given for each in (piped if path == Path("-") else [path])]
    if not paths:
        raise BratsError("standard input is empty", hint="pipe paths into it, one a line")
    return list(dict.fromkeys(paths))


def raise_failures(failed: Sequence[BratsError], *, tried: int, of: str) -> None:
    """At the end of a batch: the one error there is, or after a list of all, their number."""
    if not failed:
        return
    if tried == 1:
        raise failed[0]
    for error in failed:
        console.error(str(error), error.hint)
    raise BratsError(
        f"{len(failed)} of {tried} {of} failed", hint="each is named above; all others are done"
    )
