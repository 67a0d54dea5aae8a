"""`brats train`: parses, calls `core.train.run`, and says how to resume."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import console
from .batch import show_plan
from .options import Device, DryRun, Gpu, Overwrite, output
from .train_view import TrainView


def _seconds(text: str) -> float:
    """Seconds of a time like 2h, 90m or 1h30m."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", str(text))
    if not parts or not any(parts.groups()):
        raise typer.BadParameter(f"{text} is not a time: write 2h, 90m or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return float(3600 * hours + 60 * minutes + seconds)


def _option(help: str, *names: str, **kwargs: Any) -> Any:  # noqa: A002
    return typer.Option(*names, help=help, **kwargs)


Output = Annotated[Path | None, output("Folder of the run; default: runs/DATE_TIME.")]
Epochs = Annotated[int | None, _option("Number of epochs; default: 100.", metavar="N")]
Config = Annotated[
    Path | None, _option("YAML file with settings.", "--config", "-c", metavar="YAML")
]
Settings = Annotated[
    list[str] | None,
    _option("Any setting, such as network.channels=16; can be repeated.", "--set", metavar="K=V"),
]
Fold = Annotated[
    str, _option("Fold of the split to train on, or all, one after another.", metavar="K")
]
MaxTime = Annotated[
    float | None,
    _option("Stop after this time: 2h, 90m or 1h30m.", parser=_seconds, metavar="TIME"),
]
Patience = Annotated[
    int | None,
    _option("Validations without a better score before training stops; default: 30.", metavar="N"),
]
Workers = Annotated[
    int | None,
    _option("Processes that read patches; default: one per CPU, less one, at most 8.", metavar="N"),
]
StoreFolder = Annotated[
    Path | None,
    _option(
        "Folder for prepared cases; default: brats-store beside the splits file.", metavar="DIR"
    ),
]
Init = Annotated[
    Path | None,
    _option(
        "Run or checkpoint whose weights training starts from; its network, modalities and patch "
        "size become the defaults.",
        metavar="MODEL",
    ),
]
InitPartial = Annotated[
    bool,
    _option(
        "Start although some layers do not fit those of --init; they start from random values.",
        "--init-partial",
    ),
]
Freeze = Annotated[
    str | None,
    _option("encoder: keep that part of the network as it is in --init.", metavar="PART"),
]
PrepareOnly = Annotated[bool, _option("Prepare the cases of the fold, and stop.", "--prepare-only")]
WithProfile = Annotated[
    bool, _option("Report whether data or network is the bottleneck, and stop.", "--profile")
]
Summary = Annotated[bool, _option("Print the size and cost of the network, and stop.", "--summary")]
Resume = Annotated[bool, _option("Resume the run in -o; default: the newest run.", "--resume")]


def train(
    splits: Annotated[Path, typer.Argument(metavar="SPLITS", help="Splits file.")] = Path(
        "splits.yaml"
    ),
    output: Output = None,
    epochs: Epochs = None,
    gpu: Gpu = None,
    device: Device = "auto",
    config: Config = None,
    settings: Settings = None,
    fold: Fold = "0",
    max_time: MaxTime = None,
    patience: Patience = None,
    workers: Workers = None,
    store: StoreFolder = None,
    init: Init = None,
    init_partial: InitPartial = False,
    freeze: Freeze = None,
    prepare_only: PrepareOnly = False,
    profile: WithProfile = False,
    summary: Summary = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a 3D U-Net, or a network of MONAI; its best and its last checkpoint are saved.

    Prints one row per epoch: loss, validation Dice of whole tumour, tumour core and enhancing
    tumour, learning rate, and the share of time spent waiting for data. Options override the
    config file. After Ctrl-C, --resume continues with the epoch in progress. Cases are prepared
    once, and again if their files change.

    Example: brats train --epochs 100 --gpu 0

    Example: brats train splits.yaml -c examples/cpu.yaml --device cpu -o runs/first

    Example: brats train --init model.pt --freeze encoder --set learning_rate=1e-4

    Example: brats train --summary --set network=monai/SegResNet
    """
    from ..core.compute.distributed import Group
    from ..core.compute.plan import Plan
    from ..core.train import run

    if not Group.from_environment().leads:
        console.verbosity = -1
    events = run.train(
        splits,
        output=output,
        epochs=epochs,
        gpu=gpu,
        device=device,
        config=config,
        settings=settings,
        fold=fold,
        max_time=max_time,
        patience=patience,
        workers=workers,
        store=store,
        init=init,
        init_partial=init_partial,
        freeze=freeze,
        prepare_only=prepare_only,
        profile=profile,
        summary=summary,
        resume=resume,
        dry_run=dry_run,
        overwrite=overwrite,
    )
    view = TrainView(all_folds=fold == "all", report_prepared=prepare_only)
    words: list[object] = [] if str(splits) == "splits.yaml" else [splits]
    # Of what was typed, what the run's own files do not say.
    options = {"--store": store, "--gpu": gpu, "--device": None if device == "auto" else device}
    options["--fold"] = fold if fold == "all" else None
    with _in_several_processes(), _resume_hint(view, words, options), view, closing(events):
        for event in events:
            if isinstance(event, Plan):
                show_plan(event)
            else:
                view.show(event)


@contextmanager
def _in_several_processes() -> Iterator[None]:
    """Start this command again in one process per GPU, where there are several.

    End without a word where another process of the training has reported what is wrong.
    """
    from ..core.compute.distributed import PeerError, launch
    from ..core.train.run import ProcessesNeeded

    try:
        yield
    except ProcessesNeeded as needed:
        command = [sys.executable, "-m", "brats_cli", *sys.argv[1:]]
        raise typer.Exit(launch(command, needed.count)) from needed
    except PeerError as error:
        raise typer.Exit(3) from error


@contextmanager
def _resume_hint(
    view: TrainView, words: Sequence[object], options: Mapping[str, object]
) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, say what is saved and how to resume.

    `last.pt` is that of the last whole epoch. Resuming trains the one in progress again, on the
    same patches: the result is that of a run that was never stopped.
    """
    from ..core.model.run_folder import RunFolder

    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if view.folder is not None:
            run = RunFolder(view.folder)
            named = {"-o": run.folder.parent if view.all_folds else run.folder, **options}
            given = [part for pair in named.items() if pair[1] is not None for part in pair]
            command = f"brats train {shlex.join(map(str, [*words, *given]))} --resume"
            if run.last.exists():
                console.message(
                    f"stopped; the finished epochs are saved in last.pt\nresume with: {command}"
                )
            elif run.config.exists():
                console.message(
                    "stopped during the first epoch; nothing was saved\n"
                    f"start again with: {command}"
                )
        raise
