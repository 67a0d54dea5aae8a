"""`brats demo`: the whole way on made-up cases."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from .. import console

CASES = 16
RATIOS = "60/15/25"  # of so few cases, the usual 15 % would leave one to test

# Small enough for two CPU cores and a minute or two, large enough to find the phantoms' tumours.
SETTINGS: dict[str, Any] = {
    "epochs": 10,
    "steps_per_epoch": 25,
    "patch_size": 48,
    "learning_rate": 3e-3,
    "schedule": "poly",
    "network": {"channels": 8, "levels": 3},
}


def demo(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where everything is written.")
    ] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Another seed, other cases.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier demo in DIR.")
    ] = False,
) -> None:
    """Make up cases with known tumours, and run every step on them.

    Takes a few minutes on two CPU cores. Each command is shown as you would type it.

    Example: brats demo
    """
    from ..core.data.phantom import write_phantoms
    from ..core.writing import whole_file

    written = write_phantoms(folder / "data", cases=CASES, seed=seed, overwrite=overwrite)
    with whole_file(folder / "config.yaml", overwrite=overwrite) as partial:
        partial.write_text(yaml.safe_dump(SETTINGS, sort_keys=False))
    again = ["--overwrite"] if overwrite else []
    splits, run, scores = folder / "splits.yaml", folder / "runs" / "demo", folder / "scores.csv"
    predictions, meshes = folder / "predictions", folder / "meshes"

    _run(ctx, "split", folder / "data", "-o", splits, "--ratios", RATIOS, "--seed", seed, *again)
    _run(ctx, "train", splits, "-c", folder / "config.yaml", "-o", run, "--device", device, *again)
    test = yaml.safe_load(splits.read_text())["test"]
    cases = [folder / "data" / case_id for case_id in test]
    _run(ctx, "predict", *cases, "-o", predictions, "--model", run, "--device", device, *again)
    _run(ctx, "evaluate", predictions, folder / "data", "-o", scores, *again)
    segmentations = [predictions / f"{case_id}.nii.gz" for case_id in test]
    _run(ctx, "mesh", *segmentations, "--region", "WT", "-o", meshes, *again)

    dice = _mean_dice(scores)
    console.table(
        ["step", "made", "where"],
        [
            ["phantoms", f"{len(written)} cases, four sequences and labels", str(folder / "data")],
            ["split", f"{len(written) - len(test)} cases to learn from, {len(test)} to test",
             str(splits)],
            ["train", f"a network, {SETTINGS['epochs']} epochs", str(run / "best.pt")],
            ["predict", f"{len(test)} label maps", str(predictions)],
            ["evaluate", f"whole-tumour Dice {dice:.3f} on the test cases", str(scores)],
            ["mesh", f"{len(list(meshes.glob('*.stl')))} surfaces", str(meshes)],
        ],
        title="\nWhat the demo made",
        left=["made", "where"],
    )  # fmt: skip


def _run(ctx: typer.Context, *words: object) -> None:
    """Run a brats command as if it had been typed, after showing it."""
    arguments = [str(word) for word in words]
    shown = arguments if len(arguments) < 14 else [*arguments[:2], "...", *arguments[-8:]]
    console.message(f"\n$ brats {' '.join(shown)}")
    assert ctx.parent is not None
    switches = {-1: ["--quiet"], 0: [], 1: ["--verbose"]}[console.verbosity]
    group: Any = ctx.parent.command
    status = group.main([*switches, *arguments], prog_name="brats", standalone_mode=False)
    if status:
        raise typer.Exit(status)


def _mean_dice(scores: Path) -> float:
    with scores.open(newline="") as file:
        dice = [float(row["dice"]) for row in csv.DictReader(file) if row["region"] == "WT"]
    return sum(dice) / len(dice)
