"""`brats train`: teach a network on a split."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console

if TYPE_CHECKING:
    import torch

    from ..core.config import TrainConfig
    from ..core.network import Network
    from ..core.runs import Run
    from ..core.splits import Split
    from ..core.store import Store, StoredCases
    from ..core.training import Epoch

HEADER = " epoch     loss     WT     TC     ET   mean       lr  patches/s  wait"


def train(
    splits: Annotated[Path, typer.Argument(help="The splits file.")] = Path("splits.yaml"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run [runs/DATE_TIME].")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs to train [100].")] = None,
    gpu: Annotated[int | None, typer.Option(help="Number of the CUDA GPU to use.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML file with settings.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, as network.channels=16.")
    ] = None,
    fold: Annotated[int, typer.Option(help="Fold of the split to train on.")] = 0,
    patience: Annotated[
        int | None, typer.Option(help="Validations without a better score before stopping [30].")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read patches.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder of prepared cases [brats-store beside SPLITS].")
    ] = None,
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Prepare the cases of the fold, and stop.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say whether data or network is slower, and stop.")
    ] = False,
    summary: Annotated[
        bool, typer.Option("--summary", help="Tell what the network costs, and stop.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in -o, or with the newest.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in -o.")] = False,
) -> None:
    """Train a 3D U-Net, or a network of MONAI; keep its best and its last checkpoint.

    Prints a row an epoch: loss, validation Dice of whole, core and enhancing tumour,
    learning rate, and how long the network waited for data. Settings come from flags,
    then the config file, then defaults. Ctrl-C loses at most the epoch in work. Cases are
    prepared once, and again when their files have changed.

    Example: brats train --epochs 100 --gpu 0

    Example: brats train splits.yaml -c examples/cpu.yaml --device cpu -o runs/first

    Example: brats train --summary --set network=monai/SegResNet
    """
    from ..core.config import load_config, parse_setting
    from ..core.devices import choose_device
    from ..core.runs import Run
    from ..core.splits import Split

    run = Run(output) if output else Run.newest() if resume else Run.named_by_time()
    overrides = dict(parse_setting(text) for text in settings or [])
    flags = {"epochs": epochs, "patience": patience, "workers": workers}
    overrides |= {key: value for key, value in flags.items() if value is not None}
    if summary:
        resolved = load_config(config or (run.config if resume else None), **overrides)
        _show_costs(resolved, choose_device(device, gpu))
        return
    if resume:
        run.require_present()
        resolved = load_config(config or run.config, **overrides)
        split, fold = Split.load(run.splits), 0  # the run's copy holds its own fold alone
    else:
        if not prepare_only and not profile:
            run.require_absent(overwrite=overwrite)
        resolved = load_config(config, **overrides)
        split = Split.load(splits)
    folder = store or splits.parent / "brats-store"
    if prepare_only:
        prepared = _prepare(split, fold, resolved, folder)
        console.message(f"{len(prepared.training) + len(prepared.validation)} cases in {folder}")
        return
    chosen = choose_device(device, gpu)
    _network(resolved)  # what cannot be made is told now, not when the cases are prepared
    prepared = _prepare(split, fold, resolved, folder)
    split = replace(split, folds=(split.fold(fold),))
    with prepared.store.in_use(), _told_how_to_resume(run):
        if profile:
            _profile(resolved, prepared, chosen)
        else:
            _train(run, resolved, split, prepared, chosen, resume=resume)


def _network(config: TrainConfig) -> Network:
    """The network of a config, not trained."""
    import torch

    from ..core.config import UNetConfig
    from ..core.labels import REGIONS
    from ..core.network import make_network

    with torch.device("meta" if isinstance(config.network, UNetConfig) else "cpu"):
        return make_network(
            config.network,
            in_channels=len(config.modalities),
            out_channels=len(REGIONS),
            patch_size=config.patch_size,
        )


def _show_costs(config: TrainConfig, device: torch.device) -> None:
    """A row for each part of the network: what it gives, and what it costs a patch."""
    from ..core.costs import Cost, costs
    from ..core.devices import arithmetic

    dtype = arithmetic(device, config.precision)
    parts = costs(
        _network(config),
        in_channels=len(config.modalities),
        patch_size=config.patch_size,
        dtype=dtype,
    )
    total = Cost(
        part="total",
        parameters=sum(part.parameters for part in parts),
        flops=sum(part.flops for part in parts),
        kept_bytes=sum(part.kept_bytes for part in parts),
    )
    console.table(
        ["part", "output", "parameters", "GFLOP", "MB kept"],
        [
            [
                part.part,
                " x ".join(map(str, part.output)),
                f"{part.parameters:,}",
                f"{part.flops / 1e9:,.1f}",
                f"{part.kept_bytes / 1e6:,.1f}",
            ]
            for part in [*parts, total]
        ],
    )
    fixed = 4 * 4 * total.parameters / 1e9  # weights, gradients and Adam's two moments, float32
    name = str(dtype).removeprefix("torch.")
    console.message(
        f"for one patch of {config.patch_size} voxels an edge, in {name}: forward, a "
        "multiplication and an addition being\ntwo operations, the backward pass takes twice as "
        f"many; MB kept for the backward pass.\nTraining with batch_size {config.batch_size} takes "
        f"about {fixed + config.batch_size * total.kept_bytes / 1e9:.1f} GB, besides what the "
        "convolutions work in."
    )


@contextmanager
def _told_how_to_resume(run: Run) -> Iterator[None]:
    """On Ctrl-C, say what is kept and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if run.last.exists():
            console.message(f"stopped; go on with: brats train -o {run.folder} --resume")
        raise


@dataclass(frozen=True)
class _Prepared:
    """The cases of a fold in their store."""

    store: Store
    training: StoredCases
    validation: StoredCases


def _prepare(split: Split, fold: int, config: TrainConfig, folder: Path) -> _Prepared:
    """Prepare the cases of a fold where they are not."""
    from ..core.parallel import available_cpus
    from ..core.store import Store, size_text, training_scheme

    names, cases = split.fold(fold), split.cases()
    training, validation = (
        [cases[case_id] for case_id in part] for part in (names.train, names.val)
    )
    used = [*training, *validation]
    schemes = {case.id: split.scheme_of(case.id) for case in used}
    store = Store(folder, training_scheme(schemes), config.modalities)
    work = [case for case, _ in store.missing(used, schemes)]
    if work:
        size = size_text(store.bytes_needed(work))
        console.message(f"preparing {len(work)} cases in {folder} (once, about {size})")
    workers = available_cpus() if config.workers is None else config.workers
    with console.progress() as bars:
        task = bars.add_task("preparing", total=len(work), visible=bool(work))
        for _ in store.prepare(used, schemes, workers=workers):
            bars.advance(task)
    return _Prepared(store, store.cases(training, schemes), store.cases(validation, schemes))


def _profile(config: TrainConfig, prepared: _Prepared, device: torch.device) -> None:
    """One line: whether the data or the network is the bottleneck, and what to change."""
    from ..core.parallel import available_cpus
    from ..core.training import WAIT_IS_LONG, profile, worker_count

    found = profile(config, prepared.training, prepared.store.scheme, device)
    workers, cpus = worker_count(config), available_cpus()
    if found.data_wait_percent < WAIT_IS_LONG:
        slower = "the network is"
        advice = "a GPU, bfloat16, fewer network.channels or a smaller patch_size"
    else:
        slower = "the data are"
        advice = (
            f"--workers {cpus} (now {workers})" if workers < cpus else "a --store on a faster disk"
        )
    console.result(
        f"{slower} the bottleneck: {found.data_wait_percent:.0f} % of the time is spent waiting "
        f"for patches, at {found.patches_per_second:.1f} patches/s; faster with {advice}"
    )


def _train(
    run: Run,
    config: TrainConfig,
    split: Split,
    prepared: _Prepared,
    device: torch.device,
    *,
    resume: bool,
) -> None:
    """Run the epochs, showing and saving each."""
    from ..core.devices import arithmetic, describe
    from ..core.training import train as epochs_of

    checkpoint = run.resume() if resume else None
    if not resume:
        run.start(config, split)
    arithmetic_name = str(arithmetic(device, config.precision)).removeprefix("torch.")
    console.message(
        f"training on {describe(device)} in {arithmetic_name}: {len(prepared.training)} cases, "
        f"{len(prepared.validation)} to validate\nrun: {run.folder}\n{HEADER}"
    )
    with console.progress() as bars:
        task = bars.add_task("steps", total=config.steps_per_epoch)
        for epoch in epochs_of(
            config,
            prepared.training,
            prepared.validation,
            prepared.store.scheme,
            device,
            resume=checkpoint,
            on_step=lambda step: bars.update(task, completed=step),
        ):
            if resume:
                run.note(config)  # not before: settings that do not fit the run are refused
            run.record(epoch)
            console.message(_row(epoch, config.epochs))
            if epoch.stops:
                console.message(f"stopped: no better score for {config.patience} validations")
    _summary(run)


def _row(epoch: Epoch, epochs: int) -> str:
    dice = [
        f"{epoch.dice[region]:6.3f}" if epoch.dice else "     -" for region in ("WT", "TC", "ET")
    ]
    number = f"{epoch.number}/{epochs}"
    return (
        f"{number:>7} {epoch.loss:8.4f} {' '.join(dice)} {console.number(epoch.mean_dice):>6} "
        f"{epoch.learning_rate:8.1e} {epoch.patches_per_second:10.1f} "
        f"{epoch.data_wait_percent:4.0f}%{' best' if epoch.is_best else ''}"
    )


def _summary(run: Run) -> None:
    """Where the run is, its best epoch, and the command that comes next."""
    scored = [row for row in run.rows() if row["val_dice_mean"]]
    if not scored:
        console.message(f"{run.folder} has no validated epoch yet: --resume it with more --epochs")
        return
    best = max(scored, key=lambda row: float(row["val_dice_mean"]))
    console.table(
        ["run", "best epoch", "WT", "TC", "ET", "mean Dice"],
        [
            [
                str(run.folder),
                f"{best['epoch']} of {run.rows()[-1]['epoch']}",
                *(f"{float(best[f'val_dice_{name}']):.3f}" for name in ("WT", "TC", "ET", "mean")),
            ]
        ],
    )
    console.message(f"next: brats predict CASE -o seg.nii.gz --model {run.folder}")
