"""Shared by commands over many cases: paths from standard input, plans, a list of what failed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import console
from ..core.errors import BratsError
from ..core.wording import size_text

if TYPE_CHECKING:
    from ..core.compute.plan import Plan


def paths_of(given: Sequence[Path]) -> list[Path]:
    """The paths given, without duplicates; `-` is replaced by the lines of standard input.

    Raises:
        BratsError: If only `-` was given and standard input is empty.
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


def show_plan(plan: Plan, *, as_json: bool = False) -> None:
    """What would be done and needed: outputs on stdout, the rest beside them."""
    if as_json:
        console.result_json(plan.to_json_dict())
        return
    count = len(plan.cases)
    skipped = f"; {len(plan.skipped)} would be skipped" if plan.skipped else ""
    console.message(f"{count} case{'s' * (count != 1)} would be processed{skipped}")
    for output in plan.outputs:
        console.result(output)
    content = plan.to_json_dict()
    for folder, disk in content["disk"].items():
        needed, free = size_text(disk["needed_bytes"]), size_text(disk["free_bytes"])
        console.message(f"disk: about {needed} in {folder}, where {free} are free")
    if plan.memory_bytes:
        memory = content["memory"]
        needed, free = size_text(memory["needed_bytes"]), size_text(memory["free_bytes"])
        console.message(f"memory: about {needed}; {free} are free")
    if plan.device:
        console.message(f"device: {plan.device}")
    console.message("dry run: nothing was written")
