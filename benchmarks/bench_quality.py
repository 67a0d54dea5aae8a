"""How well a network segments after minutes of training, beside nnU-Net after as many.

`make bench-quality` trains for 60 minutes on two CPU cores, on nine real cases, and scores the
other three. With `BENCH="--device cuda --peer"` it trains for 15 minutes on a GPU on eight of the
twelve, three times, so that each is scored once, and nnU-Net's `3d_fullres` likewise. The time is
shared by five networks, each of which validates on another fifth of the cases: `--fold all`,
whose mean predicts. What is trained, and for how many steps, is settled beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bench_feed
import feeds
import numpy as np
import torch
import yaml

from brats_cli.core.data.cases import Case
from brats_cli.core.data.finding import find_cases
from brats_cli.core.data.labels import REGIONS, LabelScheme, scheme_named
from brats_cli.core.data.schemes import with_schemes
from brats_cli.core.data.splits import Fold, Split
from brats_cli.core.images.nifti import count_labels, read_labels
from brats_cli.core.score.conventions import BRATS_2022
from brats_cli.core.score.metrics import MaskScore, score
from brats_cli.core.train.run_record import RunRecord

TEST = ("BraTS2021_00006", "BraTS2021_01481", "BraTS2021_01659")
PARTS = 3
"""Of the cases, each of which is the test part of a training on a GPU."""

FOLDS = 5
"""That share the time of a training: one network for all of it learns nine cases by heart, and nine
networks learn too little."""

VALIDATION = 0.05
"""Share of the time that is left for validation."""

AIMS = {"cpu": (0.89, 0.82, 0.80), "cuda": (0.90, 0.83, 0.80)}
"""Mean Dice of WT, TC and ET; on a GPU, ET's of the cases that have any."""

NNUNET_LABELS = "brats2023"
"""What `feeds.prepare_nnunet` converts to."""

CaseScores = Mapping[str, MaskScore]


def main() -> None:
    arguments = _arguments()
    if arguments.nnunet is not None:
        _nnunet(arguments, Split.load(arguments.nnunet))
        return
    cases = {case.id: case for case in find_cases(arguments.data)}
    counted = {case.id: count_labels(case.label) for case in cases.values()}
    cases = {case.id: case for case in with_schemes(list(cases.values()), counted)}
    schemes = {case_id: case.scheme for case_id, case in cases.items()}
    tests = [TEST]
    if arguments.device == "cuda":
        tests = [tuple(sorted(cases)[number::PARTS]) for number in range(PARTS)]
    found: dict[str, dict[str, CaseScores]] = {"brats": {}}
    for number, test in enumerate(tests):
        file = arguments.work / f"part_{number}.yaml"
        others = [case_id for case_id in sorted(cases) if case_id not in test]
        split = Split(arguments.data.resolve(), schemes, 0, _folds(others), test)
        split.save(file, overwrite=True)
        tested = [cases[case_id] for case_id in test]
        ours, theirs = (arguments.work / f"{name}_{number}" for name in ("brats", "nnunet"))
        labels = _brats(arguments, file, ours, tested)
        found["brats"] |= _scores(ours / "test", tested, scheme_named(labels))
        if arguments.peer:
            _peer(arguments, file, theirs)
            scores = _scores(theirs, tested, scheme_named(NNUNET_LABELS))
            found["nnU-Net"] = found.get("nnU-Net", {}) | scores
    for name, scored in found.items():
        _show(name, scored, arguments)


def _folds(cases: Sequence[str]) -> tuple[Fold, ...]:
    folds = [set(cases[number::FOLDS]) for number in range(FOLDS)]
    return tuple(
        Fold(tuple(case for case in cases if case not in fold), tuple(sorted(fold)))
        for fold in folds
    )


def _brats(arguments: argparse.Namespace, split: Path, run: Path, test: Sequence[Case]) -> str:
    """Train and predict with the commands that anybody types; the label scheme that is written."""
    settings = ["-c", arguments.config] if arguments.config else []
    common = [split, *settings, "--device", arguments.device, "--store", arguments.work / "store"]
    common += ["--set", "schedule=poly"]
    _command("train", *common, "--fold", "all", "--prepare-only")
    told = _command("train", *common, "--profile")
    rate = float(told.split("patches/s")[0].split()[-1])
    config = yaml.safe_load(Path(arguments.config).read_text()) if arguments.config else {}
    steps = config.get("steps_per_epoch", 250)
    # As many epochs as fit: a schedule that is cut short does not end low.
    seconds = 60 * arguments.minutes * (1 - VALIDATION) / FOLDS
    epochs = int(seconds * rate / config.get("batch_size", 2) / steps)
    _tell(f"{rate:.2f} patches/s: {epochs} epochs of {steps} steps in each of {FOLDS} folds")
    started = time.monotonic()
    _command("train", *common, "--fold", "all", "-o", run, "--epochs", epochs, "--overwrite")
    _tell(f"trained for {(time.monotonic() - started) / 60:.1f} minutes")
    folders = [case.folder for case in test]
    told = _command(
        *("predict", *folders, "-o", run / "test", "--model", run, "--device", arguments.device),
        *("--overwrite", "--json"),
    )
    rows = [row for number in range(FOLDS) for row in RunRecord(run).fold(number).rows()]
    memory = max(float(row["peak_memory_mb"]) for row in rows) / 1000
    seconds = sum(float(row["seconds"]) for row in rows)
    _tell(f"{len(rows)} epochs in {seconds / 60:.1f} minutes, {memory:.1f} GB")
    return str(json.loads(told)["cases"][0]["labels"])


def _command(*words: object) -> str:
    """The standard output of a command of brats; the rest goes where this one's goes."""
    command = [sys.executable, "-m", "brats_cli", *map(str, words)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


# --- nnU-Net, in a process of its own ----------------------------------------------------------


def _peer(arguments: argparse.Namespace, split: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    folders = _folders(arguments)
    if not feeds.prepared_by_nnunet(folders.nnunet).is_dir():
        folders.nnunet.mkdir(parents=True, exist_ok=True)
        feeds.prepare_nnunet(folders, len(os.sched_getaffinity(0)))
    command = [sys.executable, __file__, "--nnunet", split, "--out", out]
    for name in ("data", "work", "device", "minutes"):
        command += [f"--{name}", getattr(arguments, name)]
    done = subprocess.run(list(map(str, command)), check=False, start_new_session=True)
    if done.returncode != -signal.SIGKILL:  # that it sends to itself at the end
        sys.exit(f"nnU-Net ended with status {done.returncode}")


def _nnunet(arguments: argparse.Namespace, split: Split) -> None:
    """Train nnU-Net's `3d_fullres` on regions for as many minutes, and predict the test cases."""
    folders = _folders(arguments)
    feeds.nnunet_paths(folders.nnunet)
    prepared = feeds.prepared_by_nnunet(folders.nnunet).parent
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    fold = {"train": [*split.folds[0].train, *split.folds[0].val], "val": list(split.test)}
    (prepared / "splits_final.json").write_text(json.dumps([fold]))
    plans, dataset = feeds.nnunet_plans(folders.nnunet)
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, dataset, torch.device(arguments.device))
    trainer.initialize()
    feed, _ = trainer.get_dataloaders()
    trainer.network.train()
    for _ in range(5):  # compiles the network
        trainer.train_step(next(feed))
    # As many steps as fit into the time, over which its learning rate falls by its own rule.
    done, started = 0, time.monotonic()
    while (share := (time.monotonic() - started) / (60 * arguments.minutes)) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - share) ** 0.9
        trainer.train_step(next(feed))
        done += 1
    _tell(f"nnU-Net: {done} steps")
    predictor = nnUNetPredictor(device=trainer.device, verbose=False, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        dataset,
        "nnUNetTrainer",
        (0, 1, 2),
    )
    trainer.set_deep_supervision_enabled(False)
    raw = folders.nnunet / "raw" / "Dataset500_BraTS" / "imagesTr"
    files = [
        [str(raw / f"{name}_{number:04}.nii.gz") for number in range(4)] for name in split.test
    ]
    outs = [str(arguments.out / name) for name in split.test]
    predictor.predict_from_files_sequential(files, outs)
    sys.stdout.flush()
    bench_feed.end(os.getpid())  # its loaders do not end by themselves


def _folders(arguments: argparse.Namespace) -> feeds.Folders:
    work = arguments.work
    return feeds.Folders(arguments.data, work / "store", work / "bare", work / "nnunet")


# --- scores ------------------------------------------------------------------------------------


def _scores(
    folder: Path,
    cases: Sequence[Case],
    written: LabelScheme,
) -> dict[str, CaseScores]:
    """Scores of each case's label map in `folder`, which is in the scheme `written`."""
    found = {}
    for case in cases:
        assert case.label is not None
        truth = read_labels(case.label).data
        labels = read_labels(folder / f"{case.id}.nii.gz").data
        found[case.id] = {
            name: BRATS_2022.official(
                score(
                    case.scheme.region(name).mask(truth),
                    written.region(name).mask(labels),
                    (1.0, 1.0, 1.0),
                )
            )
            for name in REGIONS
        }
    return found


def _show(name: str, scored: Mapping[str, CaseScores], arguments: argparse.Namespace) -> None:
    print(f"\n{name}, {arguments.minutes:g} minutes on {arguments.device}:\n")
    print("| test case | WT | TC | ET | HD95 WT | TC | ET |\n|---|---:|---:|---:|---:|---:|---:|")
    for case_id, regions in sorted(scored.items()):
        cells = [f"{regions[region].dice:.3f}" for region in REGIONS]
        cells += [f"{regions[region].hausdorff95_mm:.1f}" for region in REGIONS]
        print(f"| {case_id} | {' | '.join(cells)} |")
    means: list[Any] = []
    for region in REGIONS:
        means.append(np.mean([regions[region].dice for regions in scored.values()]))
    for region in REGIONS:
        means.append(np.mean([regions[region].hausdorff95_mm for regions in scored.values()]))
    cells = [f"{mean:.3f}" for mean in means[:3]] + [f"{mean:.1f}" for mean in means[3:]]
    print(f"| mean | {' | '.join(cells)} |")
    if arguments.device == "cuda":
        with_et = [each for each in scored.values() if each["ET"].reference_mm3]
        means[2] = np.mean([each["ET"].dice for each in with_et])
        print(f"\nET of the {len(with_et)} cases that have any: {means[2]:.3f}")
    if name == "brats":
        for region, mean, aim in zip(REGIONS, means, AIMS[arguments.device], strict=False):
            print(f"{region}: aim {aim}: {'reached' if mean >= aim else 'MISSED'}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, default=bench_feed.REPOSITORY.parent / "shared" / "data" / "cases")
    add("--work", type=Path, default=bench_feed.REPOSITORY / "scratch" / "bench-quality")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--minutes", type=float, help="of training [60; 15 on a GPU]")
    add("--config", type=Path, help="settings [examples/cpu.yaml; the defaults on a GPU]")
    add("--peer", action="store_true", help="train nnU-Net as well")
    for name in ("--nnunet", "--out"):
        add(name, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.minutes is None:
        arguments.minutes = 15 if arguments.device == "cuda" else 60
    if arguments.config is None and arguments.device == "cpu":
        arguments.config = bench_feed.REPOSITORY / "examples" / "cpu.yaml"
    arguments.work.mkdir(parents=True, exist_ok=True)
    return arguments


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
