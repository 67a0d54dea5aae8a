"""What a training step on the GPU waits for: `bench_feed.py --device cuda`."""

from __future__ import annotations

import time

import feeds
import torch

from brats_cli.core.compute.devices import describe
from brats_cli.core.train.augment import augment
from brats_cli.core.train.config import TrainConfig
from brats_cli.core.train.events import Epoch
from brats_cli.core.train.sampling import Patches, batches
from brats_cli.core.train.training import train

MOST_WAIT_PERCENT = 5.0
MOST_AUGMENTATION_PERCENT = 10.0
WORKERS = 8
STEPS = 200


def report(folders: feeds.Folders, device: torch.device, config: TrainConfig | None = None) -> None:
    """Train for two epochs, the first to warm up, and print where the second's time went.

    Args:
        folders: Where the cases are.
        device: The GPU.
        config: What to train; by default the network of `brats train`, in bfloat16.
    """
    config = config or TrainConfig(
        epochs=2, steps_per_epoch=STEPS, validate_every=2, precision="bfloat16", workers=WORKERS
    )
    epoch = _second_epoch(folders, device, config)
    step = epoch.seconds / config.steps_per_epoch
    varying = augmentation_seconds(folders, device, config)
    share = 100 * varying / step
    print(f"\n{describe(device)}, {config.workers} workers, torch {torch.__version__}")
    print(f"Patches of {config.patch_size}^3, batches of {config.batch_size}, {config.precision}\n")
    print("| | measured | target |")
    print("|---|---:|---|")
    print(f"| training, patches/s | {epoch.patches_per_second:.1f} | |")
    print(f"| step | {1000 * step:.1f} ms | |")
    wait = epoch.data_wait_percent
    print(f"| idle for data | {wait:.1f} % | {_verdict(wait, MOST_WAIT_PERCENT)} |")
    print(f"| augmentation of a batch | {1000 * varying:.1f} ms | |")
    print(
        f"| its share of the step | {share:.1f} % | {_verdict(share, MOST_AUGMENTATION_PERCENT)} |"
    )
    if device.type == "cuda":
        print(f"| GPU memory | {epoch.peak_memory_mb / 1000:.1f} GB | |")


def augmentation_seconds(
    folders: feeds.Folders, device: torch.device, config: TrainConfig
) -> float:
    """Mean seconds that `augment` takes for a batch on the device, with nothing beside it."""
    patches = Patches(feeds.stored_cases(folders), edge=config.patch_size, tumour_share=0.5, seed=0)
    count = 5 * config.batch_size
    size = config.batch_size
    feed = batches(patches, range(count), batch_size=size, workers=0, device=device)
    ready = [(batch.images, batch.labels) for batch in feed]
    random = torch.Generator().manual_seed(0)
    rounds = 20 if device.type == "cuda" else 1
    for timed in (False, True):
        _wait(device)
        started = time.perf_counter()
        for _ in range(rounds if timed else 1):
            for images, labels in ready:
                augment(images, labels, config.augmentation, random)
        _wait(device)
    return (time.perf_counter() - started) / (rounds * len(ready))


def _second_epoch(folders: feeds.Folders, device: torch.device, config: TrainConfig) -> Epoch:
    cases = feeds.stored_cases(folders)
    events = train(config, cases, cases[:1], feeds.stored_scheme(folders), device)
    _, epoch = (event for event in events if isinstance(event, Epoch))
    return epoch


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _verdict(value: float, most: float) -> str:
    return f"<= {most:.0f} %: {'reached' if value <= most else 'MISSED'}"
