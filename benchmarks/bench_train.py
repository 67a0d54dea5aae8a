"""How fast a network learns: steps a second of brats, nnU-Net's trainer and a plain MONAI loop.

`make bench-train` prints the tables of RESULTS.md: the same network, patch and batch, each fed as
its own documentation has it, with its own loss and optimiser. Every measurement runs in a process
of its own, and they take turns. `BENCH="--device cuda"` measures on a GPU, in half precision, with
the default network.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench_feed
import feeds
import torch

from brats_cli.core.compute.devices import arithmetic, choose_device, describe
from brats_cli.core.data.finding import find_cases
from brats_cli.core.data.labels import REGIONS
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.network import UNet3D
from brats_cli.core.train.config import TrainConfig
from brats_cli.core.train.events import Epoch
from brats_cli.core.train.training import train

BATCH = 2
WORKERS = 1
"""Processes that read and vary patches, beside the training on two cores."""

Step = Callable[[], object]


def network(arguments: argparse.Namespace) -> UNet3D:
    """The network that all train."""
    torch.manual_seed(0)
    return UNet3D(settings(arguments), in_channels=4, out_channels=len(REGIONS))


def settings(arguments: argparse.Namespace) -> UNetConfig:
    return UNetConfig(channels=arguments.channels, levels=arguments.levels)


# --- each trainer: a function that trains one step, feed included ---------------------------------


def nnunet(arguments: argparse.Namespace, folders: feeds.Folders, dtype: torch.dtype) -> Step:
    """nnU-Net's own trainer, on regions, without deep supervision, which our network has not."""
    os.environ["nnUNet_n_proc_DA"] = str(arguments.workers)  # noqa: SIM112
    feeds.nnunet_paths(folders.nnunet)
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class Trainer(nnUNetTrainer):  # type: ignore[misc]
        """nnU-Net's trainer of another network."""

        @staticmethod
        def build_network_architecture(plans_manager: Any, *_: Any) -> UNet3D:
            return network(arguments)

    plans, dataset = feeds.nnunet_plans(folders.nnunet)
    plans["configurations"]["3d_fullres"] |= {
        "patch_size": [arguments.patch] * 3,
        "batch_size": BATCH,
    }
    trainer = Trainer(plans, "3d_fullres", 0, dataset, torch.device(arguments.device))
    trainer.enable_deep_supervision = False
    trainer.initialize()
    feed, _ = trainer.get_dataloaders()
    trainer.network.train()
    return lambda: trainer.train_step(next(feed))["loss"]


def monai(arguments: argparse.Namespace, folders: feeds.Folders, dtype: torch.dtype) -> Step:
    """A loop as MONAI's BraTS tutorial has it, its cases cached, cropped where tumour is or not."""
    from monai.data import CacheDataset, DataLoader
    from monai.losses import DiceLoss
    from monai.transforms import (
        Compose,
        ConvertToMultiChannelBasedOnBratsClassesd,
        EnsureChannelFirstd,
        EnsureTyped,
        LoadImaged,
        NormalizeIntensityd,
        RandCropByPosNegLabeld,
        RandFlipd,
        RandScaleIntensityd,
        RandShiftIntensityd,
    )

    keys = ["image", "label"]
    transforms = [
        LoadImaged(keys=keys),
        EnsureChannelFirstd(keys=keys),
        EnsureTyped(keys=keys),
        ConvertToMultiChannelBasedOnBratsClassesd(keys="label"),
        NormalizeIntensityd(keys="image", nonzero=True, channel_wise=True),
        RandCropByPosNegLabeld(
            keys=keys, label_key="label", spatial_size=[arguments.patch] * 3, num_samples=1
        ),
        *(RandFlipd(keys=keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
        RandScaleIntensityd(keys="image", factors=0.1, prob=1.0),
        RandShiftIntensityd(keys="image", offsets=0.1, prob=1.0),
        EnsureTyped(keys="label", dtype=torch.float32),  # its loss refuses truth values
    ]
    cases = [
        {
            "image": [str(case.images[name].path) for name in feeds.MODALITIES],
            "label": str(case.label),
        }
        for case in find_cases(folders.cases)
    ]
    cached = CacheDataset(cases, Compose(transforms), num_workers=arguments.workers, progress=False)
    loader = DataLoader(
        cached,
        batch_size=BATCH,
        shuffle=True,
        num_workers=arguments.workers,
        persistent_workers=arguments.workers > 0,
        pin_memory=arguments.device == "cuda",
    )
    device = torch.device(arguments.device)
    net = network(arguments).to(device)
    loss_of = DiceLoss(smooth_nr=0, smooth_dr=1e-5, squared_pred=True, sigmoid=True)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, weight_decay=1e-5)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    feed = _endless(loader)

    def step() -> float:
        batch = next(feed)
        images, labels = batch["image"].to(device), batch["label"].to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = loss_of(net(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return float(loss.item())

    return step


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


# --- one measurement ---------------------------------------------------------------------------


def measure(arguments: argparse.Namespace, folders: feeds.Folders) -> dict[str, float]:
    """Steps per second, CPU seconds per step and the most memory, in GiB, of one trainer."""
    name, precision = arguments.measure.split()
    if arguments.device == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    if name == "brats":
        return measure_brats(arguments, folders, precision)
    step = {"nnU-Net": nnunet, "MONAI": monai}[name](arguments, folders, getattr(torch, precision))
    for _ in range(arguments.warm_up):
        step()
    _settle(arguments.device)
    spent, started = bench_feed.cpu_seconds(os.getpid()), time.perf_counter()
    for _ in range(arguments.steps):
        step()
    _settle(arguments.device)
    passed = time.perf_counter() - started
    spent = bench_feed.cpu_seconds(os.getpid()) - spent
    return {"rate": arguments.steps / passed, "cpu": spent / arguments.steps}


def measure_brats(
    arguments: argparse.Namespace, folders: feeds.Folders, precision: str
) -> dict[str, float]:
    """The second epoch of a training by brats, validation left out; the first is to warm up."""
    config = TrainConfig(
        epochs=2,
        steps_per_epoch=arguments.steps,
        patch_size=arguments.patch,
        batch_size=BATCH,
        network=settings(arguments),
        precision=precision,
        workers=arguments.workers,
    )
    scheme, device = feeds.stored_scheme(folders), choose_device(arguments.device)
    events = train(config, feeds.stored_cases(folders), [], scheme, device)
    epochs = (event for event in events if isinstance(event, Epoch))
    next(epochs)
    spent = bench_feed.cpu_seconds(os.getpid())
    epoch = next(epochs)
    spent = bench_feed.cpu_seconds(os.getpid()) - spent
    return {"rate": arguments.steps / epoch.seconds, "cpu": spent / arguments.steps}


def _settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# --- all of them, in turn ----------------------------------------------------------------------


def main() -> None:
    arguments = _arguments()
    work = arguments.work
    folders = feeds.Folders(arguments.data, work / "store", work / "bare", work / "nnunet")
    if arguments.measure:
        print(f"RESULT {json.dumps(measure(arguments, folders))}", flush=True)
        os._exit(0)  # nnU-Net's loaders do not end by themselves
    methods = arguments.only or _methods(arguments.device)
    bench_feed.prepare(folders, with_nnunet=any(name.startswith("nnU-Net") for name in methods))
    runs: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for _, method in itertools.product(range(arguments.rounds), methods):
        bench_feed.warm([arguments.data, folders.store, folders.nnunet])
        run = _apart(arguments, method)
        runs[method].append(run)
        print(f"{method}: {run['rate']:.3f} steps/s", file=sys.stderr, flush=True)
    _show(arguments, runs)


def _methods(device: str) -> list[str]:
    """What is compared: each in the arithmetic that it has there, and MONAI in that of brats."""
    native = str(arithmetic(choose_device(device), "auto")).removeprefix("torch.")
    if device == "cuda":  # nnU-Net's autocast is float16 there
        return [f"brats {native}", "nnU-Net float16", f"MONAI {native}"]
    methods = ["brats float32", "nnU-Net float32", "MONAI float32"]
    return methods if native == "float32" else [*methods, f"brats {native}", f"MONAI {native}"]


def _apart(arguments: argparse.Namespace, method: str) -> dict[str, float]:
    # As `brats` sets it; the peers gain by it as well.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, "--measure", method]
    for name in ("data", "work", "device", "patch", "channels", "levels", "steps", "workers"):
        command += [f"--{name}", str(getattr(arguments, name))]
    log = arguments.work / "train.log"
    with log.open("w") as file:
        done = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )
        peak = 0.0
        while done.poll() is None:
            time.sleep(1)
            peak = max(peak, bench_feed.memory(done.pid)[0])
    bench_feed.end(done.pid)
    results = [line for line in log.read_text().splitlines() if line.startswith("RESULT ")]
    if not results:
        sys.exit(f"{method} failed:\n{log.read_text()[-3000:]}")
    return {**json.loads(results[0].removeprefix("RESULT ")), "peak": peak / 1024}


def _show(arguments: argparse.Namespace, runs: dict[str, list[dict[str, float]]]) -> None:
    packages = ("torch", "monai", "nnunetv2", "torchio")
    versions = feeds.versions(packages)
    print(f"\n{describe(choose_device(arguments.device))}; Python {platform.python_version()},")
    print(f"{versions}. Network: {arguments.channels} channels, {arguments.levels} levels, batch")
    print(
        f"norm; {BATCH} patches of {arguments.patch}^3; processes that feed: {arguments.workers};"
    )
    print(f"medians of {arguments.rounds} runs of {arguments.steps} steps in turn.\n")
    print("| | steps/s | runs | brats is | target | CPU seconds per step | memory, GiB |")
    print("|---|---:|---|---:|---|---:|---:|")
    ours = {
        method.split()[1]: _median(measured, "rate")
        for method, measured in runs.items()
        if method.startswith("brats")
    }
    for method, measured in runs.items():
        name, precision = method.split()
        rates = [run["rate"] for run in measured]
        cells = [method, f"{statistics.median(rates):.3f}", f"{min(rates):.3f} to {max(rates):.3f}"]
        if name == "brats" or not ours:
            cells += ["", ""]
        else:
            # On a GPU, all run in half precision, whichever it is.
            ratio = ours.get(precision, max(ours.values())) / statistics.median(rates)
            cells += [f"{ratio:.2f} x", f">= 1 x: {'reached' if ratio >= 1 else 'MISSED'}"]
        cells += [f"{_median(measured, 'cpu'):.2f}", f"{max(run['peak'] for run in measured):.1f}"]
        print(f"| {' | '.join(cells)} |")


def _median(runs: list[dict[str, float]], what: str) -> float:
    return statistics.median(run[what] for run in runs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, default=bench_feed.REPOSITORY.parent / "shared" / "data" / "cases")
    add("--work", type=Path, default=bench_feed.REPOSITORY / "scratch" / "bench-feed")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--patch", type=int, help="edge of the patch [64; 128 on a GPU]")
    add("--channels", type=int, help="of the first level [16; 32 on a GPU]")
    add("--levels", type=int, help="resolutions [4; 5 on a GPU]")
    add("--steps", type=int, help="of a run [20; 200 on a GPU]")
    add("--workers", type=int, help="that feed each [1; 8 on a GPU]")
    add("--rounds", type=int, default=3)
    add("--only", nargs="*", help="these alone, as 'brats float32'")
    add("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = {"patch": (64, 128), "channels": (16, 32), "levels": (4, 5)}
    sizes |= {"steps": (20, 200), "workers": (WORKERS, 8)}
    for name, (small, large) in sizes.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, large if arguments.device == "cuda" else small)
    arguments.warm_up = max(3, arguments.steps // 4)
    arguments.work.mkdir(parents=True, exist_ok=True)
    return arguments


if __name__ == "__main__":
    main()
