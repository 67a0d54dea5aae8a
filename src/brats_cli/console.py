"""Everything that is printed: results on stdout, progress and messages on stderr; uses rich."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from .core.wording import printable

# A single one, so that messages and progress bars do not mix. `:name:` in a path is no picture.
_stderr = Console(stderr=True, emoji=False)

_PIPED_WIDTH = 1000


class PrintError(Exception):
    """Results that cannot be printed."""


class NobodyReadsError(PrintError):
    """Results that nobody reads any more, as of `brats ... | head`."""


verbosity = 0
"""-1 for -q, 0, or 1 for -v; set once by the app."""


def message(text: str, *, style: str = "") -> None:
    """Print a message on stderr, in rich's `style` on a terminal; nothing with -q."""
    if verbosity >= 0:
        _stderr.print(escape(printable(text)), highlight=False, soft_wrap=True, style=style)


def detail(text: str) -> None:
    """Print a message on stderr, only with -v."""
    if verbosity > 0:
        message(text)


def result(text: str) -> None:
    """Print one line of results on stdout, never wrapped."""
    with _stdout() as stdout:
        stdout.write(printable(text) + "\n")


def result_json(content: Any) -> None:
    """Print results as JSON on stdout; a number that is not finite becomes null."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    with _stdout() as stdout:
        stdout.write(text + "\n")


def _finite(content: Any) -> Any:
    """`content` with None for every number that is not finite, which JSON does not have."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def error(text: str, hint: str) -> None:
    """Print the two lines of a `BratsError` on stderr."""
    _stderr.print(f"[red]error:[/red] {escape(printable(text))}", highlight=False, soft_wrap=True)
    _stderr.print(f" [bold]hint:[/bold] {escape(printable(hint))}", highlight=False, soft_wrap=True)


def warning(text: str) -> None:
    """Print a warning on stderr; nothing with -q."""
    message(f"warning: {text}")


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    left: Sequence[str] = (),
) -> None:
    """Print a table on stdout; columns are right-aligned except the first and those in `left`."""
    rows = list(rows)
    # Case ids are never folded; longer names, such as paths, may be.
    name = min(24, max((len(row[0]) for row in rows), default=0))
    shown = None if title is None else escape(printable(title))
    view = Table(title=shown, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        to_left = index == 0 or column in left
        view.add_column(
            escape(printable(column)),
            justify="left" if to_left else "right",
            overflow="fold",
            min_width=None if index else name,
        )
    for row in rows:
        view.add_row(*(escape(printable(cell)) for cell in row))
    # In a file or a pipe, where the width of a line is not limited, each row is one line.
    with _stdout() as stdout:
        width = None if stdout.isatty() else _PIPED_WIDTH
        console = Console(highlight=False, width=width, emoji=False)
        with console.capture() as drawn:  # rich answers a pipe that is closed in a way of its own
            console.print(view)
        stdout.write(drawn.get())


@contextmanager
def _stdout() -> Iterator[TextIO]:
    """Give stdout, with no progress bar on the terminal, to print results on.

    Raises:
        NobodyReadsError: If it is a pipe whose reader has ended.
        PrintError: If it cannot be written, as a file on a full disk.
    """
    _end_bars()
    try:
        yield sys.stdout
        sys.stdout.flush()
    except OSError as error:
        # Python would try again at its end, and print what it thinks of it.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        kind = NobodyReadsError if isinstance(error, BrokenPipeError) else PrintError
        raise kind(error.strerror or str(error)) from error


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table: fixed digits, or a dash for None and NaN."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def volume(mm3: float) -> str:
    """A volume for a table, in millilitres: 1 ml is 1,000 mm3."""
    return f"{mm3 / 1000:.2f} ml"


def duration(seconds: float) -> str:
    """A time for a table: 0:09, 12:30 or 1:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def is_live() -> bool:
    """Whether progress may be shown: stderr is a terminal, and -q is not given."""
    return _stderr.is_terminal and verbosity >= 0


_shown: list[Progress] = []


@contextmanager
def _bars(*columns: ProgressColumn, refresh_per_second: float = 10) -> Iterator[Progress]:
    """Bars on stderr while the block runs, or until a result is printed."""
    bars = Progress(
        *columns,
        console=_stderr,
        transient=True,
        disable=not is_live(),
        refresh_per_second=refresh_per_second,
        redirect_stdout=False,  # it would send results to stderr, also those meant for a file
    )
    _shown.append(bars)
    try:
        bars.start()
        yield bars
    finally:
        _end_bars()


def _end_bars() -> None:
    """Remove the bars: stdout may be the same terminal, where they would mix with the results."""
    while _shown:
        _shown.pop().stop()


@contextmanager
def progress() -> Iterator[Progress]:
    """Progress bars on stderr; none if stderr is not a terminal, or with -q."""
    with _bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ) as bars:
        yield bars


@contextmanager
def counted(what: str) -> Iterator[Callable[[float, int], None]]:
    """A progress bar, as `progress` has them; call it with how much is done, and the total."""
    with progress() as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


ShowLine = Callable[[str, float, str], None]


@contextmanager
def last_line() -> Iterator[ShowLine]:
    """A line that stays below all messages on stderr: a text, a bar for a fraction, a text.

    It is not shown if `is_live` is false.
    """
    with _bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[behind]}"),
        refresh_per_second=4,
    ) as bars:
        task = bars.add_task("", total=1, behind="")
        yield lambda before, share, behind: bars.update(
            task,
            description=escape(printable(before)),
            completed=share,
            behind=escape(printable(behind)),
        )
