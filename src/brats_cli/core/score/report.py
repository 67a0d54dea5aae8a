"""To come."""

from pathlib import Path

from .scores import Report


def write_plots(report: Report, folder: Path, *, overwrite: bool = False) -> None:
    """To come."""


def write_page(report: Report, path: Path, *, overwrite: bool = False) -> None:
    """To come."""
