"""Options that several commands share, each declared once, so that it reads the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _scheme(name: str) -> Any:
    from ..core.data.labels import scheme_named  # numpy loads here, not for --help

    return scheme_named(name)


def output(help: str) -> Any:  # noqa: A002
    """`-o`: where a command writes."""
    return typer.Option("--output", "-o", metavar="OUT", help=help)


def scheme(help: str, *names: str) -> Any:  # noqa: A002
    """An option for a label scheme, which the command gets as a `LabelScheme`."""
    return typer.Option(*names, parser=_scheme, metavar="SCHEME", help=help)


Cases = Annotated[
    list[Path],
    typer.Argument(
        metavar="CASE",
        help="Case folders, 4D files, modality files or data set folders, or a splits file for its "
        "test cases; - reads paths from standard input.",
    ),
]
Labels = Annotated[
    Any, scheme("Label scheme of the label maps, if names, headers and values leave it open.")
]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="Device to compute on: auto, cpu, cuda or mps.")
]
Gpu = Annotated[
    str | None,
    typer.Option(metavar="N", help="Number of the CUDA GPU to use; several as 0,1."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print what would be done, and the disk space and memory needed; write nothing.",
    ),
]
SkipExisting = Annotated[
    bool, typer.Option("--skip-existing", help="Skip cases whose outputs exist.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Let the workers of a Dask scheduler at tcp://HOST:PORT process the cases; all "
        "machines need the same paths.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="Number of processes; default: one per CPU."),
]
