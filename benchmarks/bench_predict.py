"""How fast a brain is segmented: brats beside MONAI, TorchIO and nnU-Net, with the same weights.

`make bench-predict BENCH="--model RUN"` prints the tables of RESULTS.md for the test cases of a
run. Every measurement runs in a process of its own; those that are compared take turns. With
`BENCH="--device cuda"` it times brats alone, from disk to disk, on a GPU; without `--model` with
random weights of the default network.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import feeds
import numpy as np
import torch

from brats_cli.core.compute.devices import arithmetic, choose_device, describe
from brats_cli.core.data.cases import Case
from brats_cli.core.data.finding import case_at, find_cases
from brats_cli.core.data.labels import REGIONS, scheme_named
from brats_cli.core.data.splits import Split
from brats_cli.core.images.nifti import read_labels
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.network import UNet3D, make_network
from brats_cli.core.model.run_folder import checkpoint_paths
from brats_cli.core.predict.batch import Batch
from brats_cli.core.predict.outputs import Job, Prediction
from brats_cli.core.predict.predictor import PredictConfig, Predictor
from brats_cli.core.prepared.preparation import from_grid
from brats_cli.core.train.config import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[1]
EDGE = 128
CPU = torch.device("cpu")

Image = torch.Tensor
Segmenter = Callable[[UNet3D, Image], torch.Tensor]


# --- the peers: network and image (4, X, Y, Z) -> logits (3, X, Y, Z) ----------------------------


def monai(network: UNet3D, image: Image) -> torch.Tensor:
    from monai.inferers import sliding_window_inference

    edges = (EDGE,) * 3
    found = sliding_window_inference(image[None], edges, 1, network, overlap=0.5, mode="gaussian")
    return found[0]


def torchio(network: UNet3D, image: Image) -> torch.Tensor:
    import torchio as tio

    sampler = tio.GridSampler(tio.Subject(im=tio.ScalarImage(tensor=image)), EDGE, EDGE // 2)
    aggregator = tio.GridAggregator(sampler, overlap_mode="hann")
    for batch in tio.SubjectsLoader(sampler, batch_size=1):
        aggregator.add_batch(network(batch["im"][tio.DATA]), batch[tio.LOCATION])
    return aggregator.get_output_tensor()


def nnunet(network: UNet3D, image: Image) -> torch.Tensor:
    for name in ("raw", "preprocessed", "results"):
        os.environ.setdefault(f"nnUNet_{name}", tempfile.gettempdir())
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=CPU, use_mirroring=False, allow_tqdm=False)
    predictor.network, predictor.allowed_mirroring_axes = network, None
    predictor.configuration_manager = SimpleNamespace(patch_size=(EDGE,) * 3)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=len(REGIONS))
    return predictor.predict_sliding_window_return_logits(image)


PEERS: dict[str, Segmenter] = {"MONAI": monai, "TorchIO": torchio, "nnU-Net": nnunet}
NATIVE = str(arithmetic(CPU, "auto")).removeprefix("torch.")
ARITHMETIC = ("float32",) if NATIVE == "float32" else ("float32", NATIVE)
"""Where the processor has no bfloat16, that takes many times as long: nobody would ask for it."""


# --- one measurement, in a process of its own --------------------------------------------------


def measure_brats(model: Path, case: Case, arithmetic: str) -> dict[str, Any]:
    """Seconds of each stage, and Dice, of a case from disk to disk."""
    checkpoint = Checkpoint.load(model)
    checkpoint.config["precision"] = arithmetic  # type: ignore[index]
    predictor = Predictor([checkpoint], CPU)
    with tempfile.TemporaryDirectory() as folder:
        times = [clocks()]
        loaded = predictor.load(case)
        times.append(clocks())
        samples = predictor.compute(loaded)
        times.append(clocks())
        found = predictor.decode(loaded, samples)
        found.write(Path(folder) / "seg.nii.gz")
        times.append(clocks())
    masks = [found.scheme.region(name).mask(found.labels) for name in REGIONS]
    read, computed, written = np.diff(times, axis=0)
    return {
        "seconds": computed[0],
        "cpu": computed[1],
        "rest": read[0] + written[0],
        "dice": dice(np.stack(masks), case, found.scheme.name),
    }


def measure_peer(name: str, model: Path, case: Case, arithmetic: str) -> dict[str, Any]:
    """Seconds and Dice of a peer on the whole image, prepared by brats."""
    checkpoint = Checkpoint.load(model)
    network = checkpoint.network()
    image, to_case = whole_image(Predictor([checkpoint], CPU), case)
    half = torch.autocast("cpu", torch.bfloat16, enabled=arithmetic == "bfloat16")
    started = clocks()
    with torch.no_grad(), half:
        logits = PEERS[name](network, image)
    seconds, cpu = clocks() - started
    masks = np.stack([to_case(region) for region in (logits >= 0).numpy()])
    return {"seconds": seconds, "cpu": cpu, "dice": dice(masks, case, checkpoint.labels)}


def clocks() -> Any:
    """Seconds on the wall's clock, and of this process on all cores."""
    return np.array([time.perf_counter(), time.process_time()])


def whole_image(predictor: Predictor, case: Case) -> tuple[Image, Callable[[Any], Any]]:
    """All of a case's voxels, z-scores in the orientation that the network knows."""
    loaded = predictor.load(case)
    # The case's own grid with its axes turned as those of the prepared one.
    steps = np.rint(np.linalg.inv(loaded.affine) @ loaded.grid.affine)
    turned = np.array(loaded.affine)
    axes = np.abs(steps[:3, :3]).argmax(axis=1)
    shape = tuple(loaded.grid.shape[axis] for axis in axes)
    ends = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners = (ends * [*(np.array(loaded.grid.shape) - 1), 1]) @ loaded.grid.affine.T
    turned[:3, 3] = corners[:, :3].min(axis=0)
    whole = [from_grid(each, loaded.affine, turned, shape, order=0) for each in loaded.images]

    def to_case(values: Any) -> Any:
        return from_grid(values, turned, loaded.grid.affine, loaded.grid.shape, order=0)

    return torch.from_numpy(np.stack(whole)), to_case


def dice(masks: Any, case: Case, labels: str) -> list[float]:
    """Dice of masks of WT, TC and ET with the expert's."""
    assert case.label is not None
    scheme = case.scheme or scheme_named(labels)
    truth = read_labels(case.label).data
    scores = []
    for mask, name in zip(masks, REGIONS, strict=True):
        expert = scheme.region(name).mask(truth)
        scores.append(float(2 * (mask & expert).sum() / max(1, mask.sum() + expert.sum())))
    return scores


def measure_batch(model: Path, cases: list[Case]) -> dict[str, Any]:
    """Seconds of several cases in one call, without the start."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [Job(case, Path(folder) / f"{case.id}.nii.gz") for case in cases]
        outcomes = Batch((model,), PredictConfig()).run(jobs, [CPU])  # reads the model
        started = time.perf_counter()
        done = list(outcomes)
        assert len(done) == len(cases)
        return {"seconds": time.perf_counter() - started}


def report(arguments: argparse.Namespace, device: torch.device) -> None:
    """Print the seconds that a case takes on a device, among others and from disk to disk."""
    cases = arguments.cases or [case.folder for case in find_cases(arguments.data)]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random.pt"
        if arguments.model:
            model = checkpoint_paths(arguments.model)[0]
        else:
            untrained(TrainConfig()).save(model)
        print(f"{describe(device)}, torch {torch.__version__}; {len(cases)} cases one by one\n")
        print("| | seconds per case | runs | of the network | in one call | target |")
        print("|---|---:|---|---:|---:|---|")
        for tta, most in ((False, 1.0), (True, 3.0)):
            batch = Batch((model,), PredictConfig(tta=tta))
            jobs = [
                Job(case_at(case), Path(folder) / f"{tta} {case.name}.nii.gz") for case in cases
            ]
            list(batch.run(jobs[:1], [device]))  # to warm up
            jobs[0].file.unlink()
            alone = [_timed(batch, [job], device) for job in jobs]
            for job in jobs:
                job.file.unlink()
            _, together = _timed(batch, jobs, device)
            seconds = [passed for _, passed in alone]
            network = [found.network_seconds for (found,), _ in alone]
            median = statistics.median(seconds)
            cells = ["eight flips" if tta else "no flips", f"{median:.2f}"]
            cells += [f"{min(seconds):.2f} to {max(seconds):.2f}"]
            cells += [f"{statistics.median(network):.2f}", f"{together / len(jobs):.2f}"]
            cells += [f"<= {most:.0f} s: {'reached' if median <= most else 'MISSED'}"]
            print(f"| {' | '.join(cells)} |")
    if device.type == "cuda":
        print(f"\nGPU memory: {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")


def _timed(batch: Batch, jobs: list[Job], device: torch.device) -> tuple[list[Prediction], float]:
    """What was made of some cases, and the seconds from disk to disk, the model's reading apart."""
    outcomes = batch.run(jobs, [device])
    started = time.perf_counter()
    done = [outcome for outcome in outcomes if isinstance(outcome, Prediction)]
    passed = time.perf_counter() - started
    assert len(done) == len(jobs)
    return done, passed


def untrained(config: TrainConfig) -> Checkpoint:
    """A checkpoint of random weights."""
    torch.manual_seed(0)
    network = make_network(
        config.network, in_channels=4, out_channels=len(REGIONS), patch_size=config.patch_size
    )
    return Checkpoint(network.state_dict(), config.model_dump(mode="json"), "brats2020", 0, {})


# --- all of them, in turn ----------------------------------------------------------------------


def main() -> None:
    arguments = _arguments()
    if arguments.measure:
        _measure(arguments)
        return
    if arguments.device != "cpu" or arguments.only == ["disk"]:
        report(arguments, choose_device(arguments.device))
        return
    model = checkpoint_paths(arguments.model)[0]
    cases = arguments.cases or _test_cases(model, arguments.data)
    _machine(model)
    if not arguments.only or "peers" in arguments.only:
        _compare(arguments, model, cases)
    if not arguments.only or "batch" in arguments.only:
        _batch(arguments, model)


def _compare(arguments: argparse.Namespace, model: Path, cases: list[Path]) -> None:
    methods = [f"{name} {arithmetic}" for name in ("brats", *PEERS) for arithmetic in ARITHMETIC]
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for case in cases * arguments.rounds:
        for method in methods:
            # A run of brats is so short that a busy second changes it: three, and their median.
            several = 3 if method.startswith("brats") else 1
            for _ in range(several):
                run = _apart(arguments, method, model, [case])
                runs[method].append(run)
                _tell(
                    f"{case.name} {method}: {run['seconds']:.1f} s, {run['cpu']:.1f} of CPU, "
                    f"{run['peak']:.2f} GiB, load {run['load']:.1f}"
                )
    print(f"### One case at a time: {', '.join(case.name for case in cases)}\n")
    print(
        "| | seconds | runs | brats is | CPU seconds | brats is | peak, GiB | Dice WT | TC | ET |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    ours = {clock: _median(runs[f"brats {NATIVE}"], clock) for clock in ("seconds", "cpu")}
    for method, measured in runs.items():
        seconds = [run["seconds"] for run in measured]
        ratios = [f"{_median(measured, clock) / ours[clock]:.1f} x" for clock in ours]
        scores = np.mean([run["dice"] for run in measured], axis=0)
        cells = [method, f"{_median(measured, 'seconds'):.2f}"]
        cells += [f"{min(seconds):.2f} to {max(seconds):.2f}", ratios[0]]
        cells += [f"{_median(measured, 'cpu'):.2f}", ratios[1]]
        cells += [f"{max(run['peak'] for run in measured):.2f}"]
        print(f"| {' | '.join([*cells, *(f'{score:.4f}' for score in scores)])} |")
    brats = [method for method in methods if method.startswith("brats")]
    rest = [run["rest"] for method in brats for run in runs[method]]
    loads = [run["load"] for measured in runs.values() for run in measured]
    print(
        f"\nReading, preparing and writing take brats {statistics.median(rest):.2f} s more "
        f"({min(rest):.2f} to {max(rest):.2f}).\nLoad average before a run: {min(loads):.1f} to "
        f"{max(loads):.1f}, median {statistics.median(loads):.1f}.\n"
    )


def _median(runs: list[dict[str, Any]], what: str) -> float:
    return statistics.median(run[what] for run in runs)


def _batch(arguments: argparse.Namespace, model: Path) -> None:
    cases = [case.folder for case in find_cases(arguments.data)]
    together, alone, loads = [], [], []
    for _ in range(arguments.rounds):
        singles = [_apart(arguments, "batch", model, [case]) for case in cases]
        run = _apart(arguments, "batch", model, cases)
        alone.append(sum(single["seconds"] for single in singles))
        together.append(run["seconds"])
        loads += [each["load"] for each in (run, *singles)]
        _tell(f"{len(cases)} cases: {together[-1]:.1f} s in one call, {alone[-1]:.1f} s alone")
    ratios = [one / many for one, many in zip(together, alone, strict=True)]
    print(f"### {len(cases)} cases in one call\n")
    print("| | seconds | runs |\n|---|---:|---|")
    for name, seconds in (("in one call", together), ("each in its own call", alone)):
        shown = ", ".join(f"{each:.1f}" for each in seconds)
        print(f"| {name} | {statistics.median(seconds):.1f} | {shown} |")
    print(
        f"\nWithout the calls' starts; {statistics.median(ratios):.2f} of the time, run by run. "
        f"Load average before a run: {min(loads):.1f} to {max(loads):.1f}.\n"
    )


def _apart(
    arguments: argparse.Namespace, method: str, model: Path, cases: list[Path]
) -> dict[str, Any]:
    """Measure in a process of its own, after a wait for the machine to be free."""
    _wait(arguments)
    load = os.getloadavg()[0]
    command = [sys.executable, __file__, "--measure", method, "--model", str(model), "--cases"]
    done = subprocess.run([*command, *map(str, cases)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{method} failed:\n{done.stderr[-3000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "load": load}


def _wait(arguments: argparse.Namespace) -> None:
    until = time.monotonic() + arguments.patience
    while os.getloadavg()[0] > arguments.load and time.monotonic() < until:
        time.sleep(5)


def _measure(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    cases = [case_at(path) for path in arguments.cases]
    name, _, arithmetic = arguments.measure.rpartition(" ")
    for case in cases:  # into the page cache
        for image in case.images.values():
            image.path.read_bytes()
    if arguments.measure == "batch":
        result = measure_batch(arguments.model, cases)
    elif name == "brats":
        result = measure_brats(arguments.model, cases[0], arithmetic)
    else:
        result = measure_peer(name, arguments.model, cases[0], arithmetic)
    result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(result))


def _test_cases(model: Path, data: Path) -> list[Path]:
    """The cases that the run of a checkpoint set apart."""
    return [data / case_id for case_id in Split.load(model.parent / "splits.yaml").test]


def _machine(model: Path) -> None:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line for line in info if "model name" in line), "model name: unknown")
    packages = ("torch", "monai", "torchio", "nnunetv2")
    versions = feeds.versions(packages)
    config = Checkpoint.load(model).config["network"]
    print(f"\nMachine: {cpu.split(':')[1].strip()}, {len(os.sched_getaffinity(0))} cores;", end=" ")
    print(f"Python {platform.python_version()}, {versions}.")
    print(f"Network: {config}. Windows of {EDGE}^3.\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", type=Path, help="run or checkpoint [the newest run's best]")
    add("--data", type=Path, default=REPOSITORY.parent / "shared" / "data" / "cases")
    add("--cases", type=Path, nargs="*", help="to compare on [the test cases of the run]")
    add("--rounds", type=int, default=1, help="how often each case is run")
    add("--only", nargs="*", choices=["peers", "batch", "disk"])
    add("--load", type=float, default=1.5, help="wait until the load average is below this")
    add("--patience", type=float, default=0, help="wait no longer than this, in seconds")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
