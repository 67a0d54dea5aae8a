"""How fast patches reach a network: brats beside nnU-Net, TorchIO and a bare memory-mapped crop.

`make bench-feed` prints the table of RESULTS.md. Every feed runs in a process of its own, and the
feeds take turns (A B C A B C ...), so that a busy minute of the machine does not hit one alone.
With `--device cuda` it measures instead what a training step on the GPU waits for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import feeds
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
MIB = 2**20


@dataclass(frozen=True)
class Feed:
    """A feed to measure.

    Attributes:
        title: Its row in the table.
        start: Makes the iterator of batches.
        seconds: Duration of a run after warm-up, or None to measure one whole epoch: the patches of
            a volume come in one go, and others are prepared meanwhile, so that the rate of a part
            would be that of chance.
    """

    title: str
    start: Callable[..., Iterator[torch.Tensor]]
    seconds: float | None = 15


FEEDS = {
    "brats": Feed("brats", partial(feeds.brats, augmented=True)),
    "nnunet": Feed("nnU-Net, default", partial(feeds.nnunet, augmented=True, workers=2)),
    "torchio-equal": Feed(
        "TorchIO queue, nnU-Net's chances",
        partial(feeds.torchio, chances="equal", workers=2),
        seconds=None,
    ),
    "torchio-default": Feed(
        "TorchIO queue, its defaults",
        partial(feeds.torchio, chances="default", workers=2),
        seconds=None,
    ),
    "brats-plain": Feed("brats", partial(feeds.brats, augmented=False), seconds=10),
    "nnunet-plain": Feed(
        "nnU-Net, no transforms", partial(feeds.nnunet, augmented=False, workers=2), seconds=10
    ),
    "torchio-plain": Feed(
        "TorchIO queue",
        partial(feeds.torchio, chances="none", workers=2),
        seconds=None,
    ),
    "bare": Feed("bare memory-mapped crop", feeds.bare, seconds=10),
}

AUGMENTED = ["brats", "nnunet", "torchio-equal", "torchio-default"]
PLAIN = ["brats-plain", "nnunet-plain", "torchio-plain", "bare"]
TARGETS = {
    "nnunet": 3.5,
    "torchio-default": 4.0,
    "torchio-plain": 3.0,
    "bare": 0.85,
}
MOST_PSS_GIB = 2.0
MOST_SECONDS_A_CASE = 3.0
MOST_SIZE = 1.2


@dataclass(frozen=True)
class Run:
    """One measured run of a feed.

    Attributes:
        rate: Patches a second.
        cost: Milliseconds of CPU per patch, of all its processes; hardly moved by a busy machine.
        pss: Peak proportional set size in MiB of all its processes: in all, and of that what is
            not file pages, which the system takes back when it needs them.
        load: Load average when it started.
    """

    rate: float
    cost: float
    pss: float
    pss_without_files: float
    load: float


def main() -> None:
    arguments = _arguments()
    work = arguments.work
    folders = feeds.Folders(arguments.data, work / "store", work / "bare", work / "nnunet")
    if arguments.feed:
        rate, cost = measure(FEEDS[arguments.feed], folders, arguments.seconds)
        print(json.dumps({"rate": rate, "cost": cost}), flush=True)
        return
    if arguments.device == "cuda":
        import gpu

        from brats_cli.core.compute.devices import choose_device

        device = choose_device("cuda")
        feeds.prepare(folders, len(os.sched_getaffinity(0)))
        gpu.report(folders, device)
        return
    load = os.getloadavg()[0]
    if load > 0.5:
        _tell(f"something else keeps this machine busy (load {load:.1f}): do not trust the rates")
    names = arguments.only or [*AUGMENTED, *PLAIN]
    preparing = prepare(folders, with_nnunet=any(name.startswith("nnunet") for name in names))
    feeds.write_bare(folders)
    warm([arguments.data, folders.store, folders.bare, folders.nnunet])
    if os.getloadavg()[0] > 2.5:
        _tell(
            "something else keeps this machine busy: the rates will be too low, the ratios unsure"
        )
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        for name in names:
            run = run_apart(name, arguments)
            runs[name].append(run)
            _tell(
                f"round {number + 1}: {name:16} {run.rate:6.2f} patches/s,"
                f"{run.cost:.0f} ms of CPU per patch, {run.pss:.0f} MiB, load {run.load:.1f}"
            )
    show(runs, preparing, load)


def measure(feed: Feed, folders: feeds.Folders, seconds: float | None) -> tuple[float, float]:
    """Patches per second of one feed, and milliseconds of CPU per patch."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    import torchio  # noqa: F401  # so that no feed is charged for it

    batches = feed.start(folders)
    least, whole = seconds or feed.seconds, 0
    if feed.seconds is None:
        least, whole = 0, feeds.SAMPLES * len(feeds.stored_cases(folders))
    else:
        for _ in range(6):
            _require_good(next(batches))
    started, spent, patches = time.perf_counter(), cpu_seconds(os.getpid()), 0
    while time.perf_counter() - started < least or patches < whole:
        batch = next(batches)
        patches += len(batch)
    passed = time.perf_counter() - started
    _require_good(batch)
    return patches / passed, 1000 * (cpu_seconds(os.getpid()) - spent) / patches


def _require_good(batch: torch.Tensor) -> None:
    assert batch.shape == (feeds.BATCH, 4, *[feeds.EDGE] * 3), batch.shape
    assert batch.dtype == torch.float32, batch.dtype


def run_apart(name: str, arguments: argparse.Namespace) -> Run:
    """Measure a feed in a process of its own, watching the memory of all its processes."""
    # As `brats` sets it; the peers gain by it as well.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, "--feed", name]
    command += ["--data", str(arguments.data), "--work", str(arguments.work)]
    if arguments.seconds is not None:
        command += ["--seconds", str(arguments.seconds)]
    load = os.getloadavg()[0]
    said = arguments.work / f"{name}.log"
    with said.open("w") as log:
        # A session of its own, so that its workers can be ended with it.
        child = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    peak = without_files = 0.0
    results: list[str] = []
    while not results and child.poll() is None:
        time.sleep(1)
        found = memory(child.pid)
        peak, without_files = max(peak, found[0]), max(without_files, found[1])
        results = [line for line in said.read_text().splitlines() if line.startswith('{"rate"')]
    end(child.pid)
    child.wait()
    if not results:
        sys.exit(f"{name} failed:\n{said.read_text()[-3000:]}")
    found_rates = json.loads(results[0])
    return Run(found_rates["rate"], found_rates["cost"], peak, without_files, load)


def end(session: int) -> None:
    """Kill all processes of a session: some loaders' workers outlive who started them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


def memory(root: int) -> tuple[float, float]:
    """Proportional set size in MiB of a process and its descendants: all, and without files."""
    total = files = 0
    for process in processes(root):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            lines = (process / "smaps_rollup").read_text().splitlines()[1:]
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
            total += sizes["Pss"]
            files += sizes["Pss_File"]
    return total / 1024, (total - files) / 1024


def cpu_seconds(root: int) -> float:
    """CPU time of a process and its descendants, those that ended included."""
    ticks = 0
    for process in processes(root):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # utime, stime, cutime, cstime; the name before them may hold spaces.
            fields = (process / "stat").read_text().rpartition(")")[2].split()[11:15]
            ticks += sum(map(int, fields))
    return ticks / os.sysconf("SC_CLK_TCK")


def processes(root: int) -> Iterator[Path]:
    """Folders in /proc of a process and its descendants."""
    waiting = [root]
    while waiting:
        process = Path("/proc") / str(waiting.pop())
        yield process
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for children in process.glob("task/*/children"):
                waiting += [int(child) for child in children.read_text().split()]


def prepare(folders: feeds.Folders, *, with_nnunet: bool) -> dict[str, float]:
    """Prepare the cases afresh with brats, and once with nnU-Net; what it cost."""
    import shutil

    cores = len(os.sched_getaffinity(0))
    shutil.rmtree(folders.store, ignore_errors=True)
    warm([folders.cases])
    started = time.perf_counter()
    cases = feeds.prepare(folders, cores)
    seconds = time.perf_counter() - started
    found = {
        "cases": cases,
        "brats seconds": seconds * cores / cases,
        "source size": size(folders.cases),
        "brats size": size(folders.store),
    }
    if with_nnunet:
        note = folders.nnunet / "seconds.json"
        if not note.exists():
            _tell("nnU-Net prepares the cases (once)")
            folders.nnunet.mkdir(parents=True, exist_ok=True)
            with (
                (folders.nnunet / "log.txt").open("w") as log,
                contextlib.redirect_stdout(log),
                contextlib.redirect_stderr(log),
            ):
                spent = feeds.prepare_nnunet(folders, cores)
            note.write_text(json.dumps(spent * cores / cases))
        found["nnU-Net seconds"] = json.loads(note.read_text())
        found["nnU-Net size"] = size(feeds.prepared_by_nnunet(folders.nnunet))
    return found


def warm(places: list[Path]) -> None:
    """Read every file once, so that all runs find them in the page cache."""
    for place in places:
        for file in place.rglob("*"):
            if file.is_file():
                file.read_bytes()


def size(folder: Path) -> float:
    """Size of a folder's files, in MiB."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / MIB


def show(runs: dict[str, list[Run]], preparing: dict[str, float], load: float) -> None:
    """Print the tables, in Markdown."""
    _machine(runs, load)
    own, theirs = (
        ", ".join(f"{name} {chance:.3g}" for name, chance in chances.items())
        for chances in (feeds.chances(), feeds.NNUNET)
    )
    print("### With augmentation\n")
    _rates(runs, AUGMENTED)
    print(f"\nChances, brats: {own}.\nChances, nnU-Net: {theirs}.")
    print(f"TorchIO changes whole volumes, and takes {feeds.SAMPLES} patches of each.\n")
    print("### Without augmentation\n")
    _rates(runs, PLAIN)
    print("\n### Preparing\n")
    _preparing(preparing)


def _rates(runs: dict[str, list[Run]], names: list[str]) -> None:
    memory = "PSS, MiB | PSS without files"
    print(f"| feed | patches/s | runs | brats is | target | CPU ms per patch | {memory} |")
    print("|---|---:|---|---:|---|---:|---:|---:|")
    for name in names:
        if not runs.get(name):
            continue
        rates = [run.rate for run in runs[name]]
        cells = [FEEDS[name].title, f"{statistics.median(rates):.2f}"]
        cells += [f"{min(rates):.2f} to {max(rates):.2f}"]
        if name == names[0] or not runs.get(names[0]):
            cells += ["", ""]
        else:
            ours = statistics.median([run.rate for run in runs[names[0]]])
            cells += _verdict(ours / statistics.median(rates), TARGETS.get(name))
        cells += [f"{statistics.median([run.cost for run in runs[name]]):.0f}"]
        peak = max(run.pss for run in runs[name])
        cells += [_bold(f"{peak:.0f}", peak <= MOST_PSS_GIB * 1024)]
        cells += [f"{max(run.pss_without_files for run in runs[name]):.0f}"]
        print(f"| {' | '.join(cells)} |")


def _verdict(ratio: float, target: float | None) -> list[str]:
    if target is None:
        return [f"{ratio:.2f} x", ""]
    return [f"{ratio:.2f} x", f">= {target} x: {'reached' if ratio >= target else 'MISSED'}"]


def _bold(text: str, good: bool) -> str:
    return text if good else f"**{text}**"


def _preparing(found: dict[str, float]) -> None:
    print("| | seconds per case and core | size, MiB | of the .nii.gz |")
    print("|---|---:|---:|---:|")
    source = found["source size"]
    print(f"| .nii.gz, {found['cases']} cases | | {source:.0f} | 1 |")
    for name in ("brats", "nnU-Net"):
        if f"{name} size" in found:
            seconds, stored = found[f"{name} seconds"], found[f"{name} size"]
            print(f"| {name} | {seconds:.2f} | {stored:.0f} | {stored / source:.2f} |")
    print(f"\nTargets: {MOST_SECONDS_A_CASE:.0f} s, {MOST_SIZE} of the .nii.gz.")


def _machine(runs: dict[str, list[Run]], load: float) -> None:
    cpu = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "model name: unknown",
    ).split(":")[1]
    packages = ["torch", "torchio", "nnunetv2", "batchgeneratorsv2", "blosc2", "numpy"]
    versions = feeds.versions(packages)
    counts = {len(measured) for measured in runs.values()}
    print(f"\nMachine:{cpu}, {len(os.sched_getaffinity(0))} cores;")
    print(f"Python {platform.python_version()}, {versions}.")
    print(f"Patches of {feeds.EDGE}^3 voxels x 4 modalities, float32, batches of {feeds.BATCH};")
    print(f"medians of {'/'.join(map(str, sorted(counts)))} runs in turn;")
    print(f"load average when it started {load:.1f}.\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, default=REPOSITORY.parent / "shared" / "data" / "cases")
    add("--work", type=Path, default=REPOSITORY / "scratch" / "bench-feed", help="prepared cases")
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, help="duration of a run [10 or 15]")
    add("--only", nargs="*", choices=list(FEEDS), help="these feeds alone")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--feed", choices=list(FEEDS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    return arguments


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
