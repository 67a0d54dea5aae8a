"""To come."""

from pathlib import Path

from .comparison import Comparison


def save_comparison(found: Comparison, path: Path, *, overwrite: bool = False) -> None:
    """To come."""
