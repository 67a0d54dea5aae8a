"""The `brats` command: gathers the subcommands and draws the line between user errors and bugs."""

from __future__ import annotations

import gc
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from . import __version__, console
from .commands.check import check
from .commands.compare import compare
from .commands.demo import demo
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.import_model import import_model
from .commands.mesh import mesh
from .commands.predict import predict
from .commands.split import split
from .commands.train import train
from .commands.view import view
from .core.compute.signals import (
    end_at_once_on_stops,
    program,
    raise_on_stops,
    repeat_dropped_stops,
)
from .core.errors import BratsError, BratsWarning

# OpenMP's threads spin while they wait for each other. Beside patch workers, or any other load,
# that took five times as long as waiting quietly. Read once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

DATA_ERROR = 3  # 1 is Python's for a bug, 2 is Typer's for wrong usage
NOBODY_READS = 128 + 13  # as a shell reports SIGPIPE, which ends other programs then


class _Command(TyperCommand):
    """A command in whose help a flag does not look as if it took a value (`--json <bool>`)."""

    def get_params(self, ctx: Any) -> Any:
        return _without_flag_values(super().get_params(ctx))


class _Brats(TyperGroup):
    """The one place where a `BratsError` becomes two lines on stderr and an exit status.

    Here and not around `app()`, so that `CliRunner` gets the same.
    """

    def get_params(self, ctx: Any) -> Any:
        return _without_flag_values(super().get_params(ctx))

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _errors_reported():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _errors_reported(), warnings.catch_warnings():
            # A warning about the user's data is a message like any other.
            warnings.filterwarnings("always", category=BratsWarning)
            warnings.showwarning = lambda text, *_: console.warning(str(text))
            return super().invoke(ctx)


@contextmanager
def _errors_reported() -> Iterator[None]:
    """Report an error that the user can do something about, and exit."""
    try:
        yield
    except BratsError as error:
        raise _reported(error) from error
    except console.NobodyReadsError as error:
        raise typer.Exit(NOBODY_READS) from error
    except console.PrintError as error:
        console.error(f"cannot write standard output: {error}", "is the disk full?")
        raise typer.Exit(DATA_ERROR) from error
    except OSError as error:
        if error.filename is None:  # of no path that was given
            raise
        raise _reported(BratsError.of_system(error)) from error


def _reported(error: BratsError) -> typer.Exit:
    console.error(str(error), error.hint)
    if error.__cause__ is not None:
        console.detail(f"cause: {error.__cause__!r}")
    return typer.Exit(DATA_ERROR)


def _without_flag_values(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


app = typer.Typer(
    cls=_Brats,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        console.result(f"brats {__version__}")
        raise typer.Exit


@app.callback()
def brats(
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only errors on stderr.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print more details on stderr.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From a folder of BraTS scans to scored segmentations and printable meshes.

    brats split data/ → brats train → brats predict CASE → brats evaluate → brats view → brats mesh
    """
    console.verbosity = -1 if quiet else int(verbose)


_command = partial(app.command, cls=_Command)
_command()(check)
_command()(split)
_command()(train)
_command("import")(import_model)
_command()(predict)
_command()(evaluate)
_command()(compare)
_command()(mesh)
_command()(view)
_command()(export)
_command()(demo)


def _open_closed_streams() -> None:
    """Let a standard stream that is closed, as by `>&-`, be empty: a file would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def main() -> None:
    """Entry point of the `brats` command."""
    raise_on_stops()
    repeat_dropped_stops()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not have every letter
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):  # of any bytes, as paths are
        sys.stdin.reconfigure(errors="surrogateescape")
    try:
        with program():
            app(prog_name="brats")
    finally:
        end_at_once_on_stops()
        # Else Python, as it exits, looks for cycles in all that torch has loaded: a second or more.
        gc.freeze()
