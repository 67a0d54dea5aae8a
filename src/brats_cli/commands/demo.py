"""`brats demo`: every step on synthetic cases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from .evaluate import show_report
from .mesh import show_meshes
from .options import Device, Overwrite
from .predict import follow, show_predictions
from .split import show_split
from .train_view import TrainView
from .view import show_views

if TYPE_CHECKING:
    from ..core.demo import DemoStep


def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that everything is written to.")
    ] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same cases.")] = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    small: Annotated[bool, typer.Option("--small", hidden=True, help="For tests.")] = False,
) -> None:
    """Generate synthetic cases with known tumours, and run every step on them.

    Takes a few minutes on two CPU cores. Each command is shown as you would type it.

    Example: brats demo
    """
    from ..core.demo import DemoFinished
    from ..core.demo import demo as steps

    for step in steps(folder, seed=seed, device=device, overwrite=overwrite, small=small):
        if isinstance(step, DemoFinished):
            console.table(
                ["step", "result", "where"],
                [[made.step, made.what, str(made.where)] for made in step.made],
                title="\nResults of the demo",
                left=["result", "where"],
            )
        else:
            _show(step)


def _show(step: DemoStep) -> None:
    """A step as its command shows it."""
    console.message(f"\n$ {step.command}")
    if step.name == "train":
        with TrainView(all_folds=False, report_prepared=False) as view:
            for event in step.events:
                view.show(event)
    elif step.name == "predict":
        show_predictions(follow(step.events)[1])
    else:
        show = {
            "split": show_split,
            "evaluate": show_report,
            "mesh": show_meshes,
            "view": show_views,
        }[step.name]
        _show_result(step.events, show)


def _show_result(events: Iterator[Any], show: Any) -> None:
    for result in events:
        show(result)
