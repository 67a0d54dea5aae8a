"""Every feed of `bench_feed.py`: an endless iterator of float32 batches, as a user would get them.

A feed is ready for a network on the CPU: images (2, 4, 128, 128, 128) float32.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brats_cli.core.data.finding import find_cases
from brats_cli.core.data.labels import LabelScheme, scheme_named
from brats_cli.core.data.schemes import with_schemes
from brats_cli.core.images.nifti import count_labels, read_labels
from brats_cli.core.prepared.store import Store, StoredCases, training_scheme
from brats_cli.core.train.config import AugmentConfig, TrainConfig

EDGE = 128
BATCH = 2
MODALITIES = ("t1", "t1ce", "t2", "flair")

SAMPLES, QUEUE = 10, 20
"""Patches of a volume, as TorchIO's documentation has it, and of its queue: of two volumes, because
a longer one takes as long a patch and only more memory."""

# Chances of each change of a patch, or of intensities for each modality of it, in nnU-Net 2.8.1:
# `nnUNetTrainer.get_training_transforms`. Blur (0.2) and low resolution (0.25) then pass over half
# of the modalities; gamma happens inverted (0.1) and plain (0.3).
NNUNET = {
    "flip": 0.5,
    "rotation": 0.2,
    "scaling": 0.2,
    "elastic": 0.0,
    "noise": 0.1,
    "blur": 0.2 * 0.5,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.25 * 0.5,
    "gamma": 0.1 + 0.3,
}
NNUNET_AFFINE = 1 - (1 - NNUNET["rotation"]) * (1 - NNUNET["scaling"])


@dataclass(frozen=True)
class Folders:
    """Where a benchmark reads and keeps its cases.

    Attributes:
        cases: The data set, as .nii.gz files.
        store: Cases prepared by brats.
        bare: The same images as plain float16 arrays.
        nnunet: Cases prepared by nnU-Net.
    """

    cases: Path
    store: Path
    bare: Path
    nnunet: Path


def chances() -> dict[str, float]:
    """How likely brats makes each change that nnU-Net knows.

    Raises:
        AssertionError: If one is less likely than there, and the comparison would not be fair.
    """
    ours = AugmentConfig().model_dump()
    # One chance for all that is spatial.
    ours |= dict.fromkeys(("rotation", "scaling", "elastic"), ours["spatial"])
    found = {name: ours[name] for name in NNUNET}
    assert all(found[name] >= chance for name, chance in NNUNET.items())
    return found


def prepare(folders: Folders, workers: int) -> int:
    """Let brats prepare the cases; their number."""
    cases = find_cases(folders.cases)
    cases = with_schemes(cases, {case.id: count_labels(case.label) for case in cases})
    store = Store(folders.store, training_scheme(cases))
    plan = store.plan(cases)
    list(plan.run(workers=workers))
    places = [(case_id, str(place)) for case_id, place in plan.places.items()]
    note = {"scheme": store.scheme.name, "places": places}
    _note(folders).write_text(json.dumps(note))
    return len(cases)


def stored_cases(folders: Folders) -> StoredCases:
    """What `prepare` made."""
    places = json.loads(_note(folders).read_text())["places"]
    return StoredCases([(case_id, Path(place)) for case_id, place in places])


def stored_scheme(folders: Folders) -> LabelScheme:
    """The label scheme of the cases that `prepare` stored."""
    return scheme_named(json.loads(_note(folders).read_text())["scheme"])


def _note(folders: Folders) -> Path:
    return folders.store / "benchmark.json"


def brats(folders: Folders, *, augmented: bool) -> Iterator[torch.Tensor]:
    """Our store, queue and augmentation, as `core/train/training.py` uses them."""
    from brats_cli.core.compute.distributed import ALONE
    from brats_cli.core.train.augment import augment
    from brats_cli.core.train.sampling import Patches, batches
    from brats_cli.core.train.training import worker_count

    config = TrainConfig()
    patches = Patches(stored_cases(folders), edge=EDGE, tumour_share=config.tumour_share, seed=0)
    workers = worker_count(config, ALONE)
    feed = batches(patches, range(100_000), batch_size=BATCH, workers=workers)
    settings = AugmentConfig(enabled=augmented)
    for number, batch in enumerate(feed):
        random = torch.Generator().manual_seed(number)
        yield augment(batch.images, batch.labels, settings, random)[0]


def versions(packages: Sequence[str]) -> str:
    """The versions of those packages that are there: a machine with a GPU may have no peers."""
    found = []
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(found)


def nnunet(folders: Folders, *, augmented: bool, workers: int) -> Iterator[torch.Tensor]:
    """nnU-Net's training loader over Blosc2 cases that it prepared itself."""
    nnunet_paths(folders.nnunet)
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import (
        NonDetMultiThreadedAugmenter,
    )
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    size, turn = (EDGE,) * 3, (-math.pi / 6, math.pi / 6)
    # Room for every rotation and scaling: 205 voxels are read for a patch of 128.
    crop = get_patch_size(size, turn, turn, turn, (0.85, 1.25)) if augmented else size
    transforms = None
    if augmented:
        transforms = nnUNetTrainer.get_training_transforms(
            size, turn, None, (0, 1, 2), False, use_mask_for_norm=[False] * 4
        )
    loader = nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(prepared_by_nnunet(folders.nnunet))),
        BATCH,
        tuple(int(edge) for edge in crop),
        size,
        LabelManager({"background": 0, "NCR": 1, "ED": 2, "ET": 3}, None),
        oversample_foreground_percent=0.33,
        transforms=transforms,
    )
    feed = NonDetMultiThreadedAugmenter(
        loader, None, workers, num_cached=6, seeds=None, pin_memory=False, wait_time=0.002
    )
    while True:
        yield next(feed)["data"]


def torchio(folders: Folders, *, chances: str, workers: int) -> Iterator[torch.Tensor]:
    """A plain TorchIO queue from the .nii.gz files, as its documentation has it.

    Args:
        folders: Where the cases are.
        chances: "none" for no augmentation, "default" for TorchIO's own chances (every image is
            changed), "equal" for nnU-Net's.
        workers: Processes that load and change volumes.
    """
    import torchio as tio

    subjects = [
        tio.Subject(
            **{name: tio.ScalarImage(case.images[name].path) for name in MODALITIES},
            label=tio.LabelMap(case.label),
        )
        for case in find_cases(folders.cases)
    ]
    normalise = tio.ZNormalization(masking_method=tio.ZNormalization.mean)
    changes = []
    if chances != "none":
        equal = chances == "equal"
        changes = [
            tio.RandomFlip(axes=(0, 1, 2), flip_probability=NNUNET["flip"] if equal else 0.5),
            tio.RandomAffine(p=NNUNET_AFFINE if equal else 1),
            tio.RandomNoise(p=NNUNET["noise"] if equal else 1),
            tio.RandomGamma(p=NNUNET["gamma"] if equal else 1),
        ]
    queue = tio.Queue(
        tio.SubjectsDataset(subjects, transform=tio.Compose([normalise, *changes])),
        max_length=QUEUE,
        samples_per_volume=SAMPLES,
        sampler=tio.UniformSampler(EDGE),
        num_workers=workers,
    )
    while True:
        for batch in tio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0):
            yield torch.cat([batch[name][tio.DATA] for name in MODALITIES], dim=1)


def bare(folders: Folders) -> Iterator[torch.Tensor]:
    """What the disk format allows: random crops of memory maps, copied as float32, no labels."""
    random = np.random.default_rng(0)
    maps = [np.load(file, mmap_mode="r") for file in sorted(folders.bare.glob("*.npy"))]
    while True:
        chosen = random.integers(len(maps), size=BATCH)
        yield torch.stack([_random_crop(maps[number], random) for number in chosen])


def write_bare(folders: Folders) -> None:
    """Write the prepared images as plain arrays, for `bare`."""
    folders.bare.mkdir(exist_ok=True)
    for case in stored_cases(folders):
        np.save(folders.bare / f"{case.id}.npy", case.images[:])


def _random_crop(images: np.ndarray[Any, Any], random: np.random.Generator) -> torch.Tensor:
    room = np.array(images.shape[1:]) - EDGE
    corner = random.integers(0, np.maximum(room, 0) + 1)
    crop = images[(slice(None), *(slice(start, start + EDGE) for start in corner))]
    copy = torch.from_numpy(np.ascontiguousarray(crop)).float()
    short = [EDGE - side for side in copy.shape[1:]]
    return torch.nn.functional.pad(copy, [0, short[2], 0, short[1], 0, short[0]])


def nnunet_paths(folder: Path) -> None:
    """Tell nnU-Net where its folders are; before its first import."""
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(folder / name)


def prepared_by_nnunet(folder: Path) -> Path:
    """Folder of the Blosc2 cases."""
    return folder / "preprocessed" / "Dataset500_BraTS" / "nnUNetPlans_3d_fullres"


def nnunet_plans(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plans and the description of the data set that nnU-Net's trainer wants, by regions."""
    prepared = prepared_by_nnunet(folder).parent
    plans = json.loads((prepared / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    dataset = json.loads((prepared / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "WT": [1, 2, 3], "TC": [1, 3], "ET": [3]}
    dataset["regions_class_order"] = [2, 1, 3]
    return plans, dataset


def prepare_nnunet(folders: Folders, workers: int) -> float:
    """Let nnU-Net convert, plan and preprocess the cases; seconds of its preprocessing alone."""
    nnunet_paths(folders.nnunet)
    _write_raw(folders)
    from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet_api

    nnunet_api.extract_fingerprints([500], num_processes=workers, verbose=False)
    nnunet_api.plan_experiments([500])
    plans_file = folders.nnunet / "preprocessed" / "Dataset500_BraTS" / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    # The block size on disk follows the patch size, which must be the one that is read.
    plans["configurations"]["3d_fullres"]["patch_size"] = [EDGE] * 3
    plans_file.write_text(json.dumps(plans))
    started = time.perf_counter()
    nnunet_api.preprocess([500], configurations=("3d_fullres",), num_processes=(workers,))
    return time.perf_counter() - started


def _write_raw(folders: Folders) -> None:
    """The cases as nnU-Net wants them: numbered channels, labels 0 to 3."""
    import nibabel as nib

    raw = folders.nnunet / "raw" / "Dataset500_BraTS"
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True, exist_ok=True)
    cases = find_cases(folders.cases)
    cases = with_schemes(cases, {case.id: count_labels(case.label) for case in cases})
    for case in cases:
        for number, name in enumerate(MODALITIES):
            link = raw / "imagesTr" / f"{case.id}_{number:04}.nii.gz"
            link.unlink(missing_ok=True)
            link.symlink_to(case.images[name].path.resolve())
        labels = case.scheme.convert(read_labels(case.label).data, scheme_named("brats2023"))
        header = nib.load(case.images["t1"].path).header
        image = nib.Nifti1Image(labels, header.get_best_affine(), header, dtype=np.uint8)
        nib.save(image, raw / "labelsTr" / f"{case.id}.nii.gz")
    (raw / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {str(number): name for number, name in enumerate(MODALITIES)},
                "labels": {"background": 0, "NCR": 1, "ED": 2, "ET": 3},
                "numTraining": len(cases),
                "file_ending": ".nii.gz",
            }
        )
    )
