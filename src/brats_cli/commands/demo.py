"""`brats demo`: every step on synthetic cases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from .options import Device, Overwrite

if TYPE_CHECKING:
    from ..core.demo import DemoStep


def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Folder that everything is written to.")
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
            _follow(step)


def _follow(step: DemoStep) -> None:
    """Show the command of a step, and what happens while it is carried out."""
    from ..core.predict.many import Prediction
    from ..core.train.training import Epoch

    console.message(f"\n$ {step.command}")
    for event in step.events:
        if isinstance(event, Epoch):
            dice = console.number(event.mean_dice)
            console.message(f"epoch {event.number}: loss {event.loss:.3f}, mean Dice {dice}")
        elif isinstance(event, Prediction):
            console.message(f"{event.case}: {console.volume(event.volumes_mm3['WT'])} of tumour")
        else:
            for line in _lines(step.name, event):
                console.message(line)


def _lines(name: str, result: Any) -> list[str]:
    """The result of a step in a few lines."""
    if name == "split":
        split = result.split
        sizes = {"train": split.folds[0].train, "val": split.folds[0].val, "test": split.test}
        return [f"{part}: {len(ids)} cases" for part, ids in sizes.items()]
    if name == "evaluate":
        means = result.summary().items()
        return [f"{region}: mean Dice {each['dice'].mean:.3f}" for region, each in means]
    return []
