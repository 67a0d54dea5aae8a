"""The first ten minutes on a GPU: what works, where a step's time goes, what a case takes.

One call, tables last; a stage that fails does not stop the next, and all of it ends within eight
minutes by itself. `make gpu-check` gathers what a machine without network needs for it:

    python benchmarks/gpu_check.py --cases CASES --out OUT
    python benchmarks/gpu_check.py --cases CASES --out OUT --device cpu --small    # a dry run
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import feeds
import torch

from brats_cli.core.compute.devices import choose_device, memory_for_network, searching_kernels
from brats_cli.core.compute.distributed import ALONE
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.network import on_device
from brats_cli.core.model.segmenter import Segmenter
from brats_cli.core.train import training
from brats_cli.core.train.config import TrainConfig
from brats_cli.core.train.events import Epoch
from brats_cli.core.train.learner import Learner
from brats_cli.core.train.transfer import Batch

REPOSITORY = Path(__file__).resolve().parents[1]

TIME = 465
"""Seconds after which the check ends, whatever it is at."""

GRACE = 10
"""Seconds more, after which a stage is ended that does not heed that, as one that waits in C++."""

LEAST = 30
"""Seconds without which no further stage begins."""


@dataclass(frozen=True)
class Check:
    """What is checked, where, and what was found so far.

    Attributes:
        cases: Folder of the cases.
        out: Folder of the results, which should be few files.
        work: Folder of everything else.
        device: What computes.
        small: Whether this is a dry run.
        most_seconds: How long it may take.
        lines: What was reported.
        begun: When it began.
    """

    cases: Path
    out: Path
    work: Path
    device: torch.device
    small: bool
    most_seconds: float = TIME
    lines: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the check ends."""
        return max(0.1, self.most_seconds - (time.monotonic() - self.begun))

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU computes."""
        return self.device.type == "cuda"

    @property
    def folders(self) -> feeds.Folders:
        """Where the cases are prepared."""
        return feeds.Folders(
            self.cases, self.work / "store", self.work / "bare", self.work / "nnunet"
        )

    @property
    def steps(self) -> int:
        """Steps that are timed."""
        return 4 if self.small else 60

    def config(self, **settings: object) -> TrainConfig:
        """The training that is checked: the network of `brats train` in bfloat16."""
        size = {"patch_size": 32, "network": UNetConfig(channels=4, levels=3)} if self.small else {}
        usual = {"epochs": 1, "precision": "bfloat16", "workers": 1 if self.small else 8}
        return TrainConfig.model_validate(usual | size | settings)

    def report(self, text: str) -> None:
        """Print a line, and keep it."""
        print(text, flush=True)
        self.lines.append(text)

    def write(self) -> None:
        """Write what was reported until now."""
        (self.out / "check.txt").write_text("\n".join(self.lines))

    def end(self) -> None:
        """Write what was found, and end the process, whatever it waits for."""
        self.report("ENDED: the time is up, and the stage goes on")
        self.write()
        os._exit(1)

    def settle(self) -> None:
        """Wait for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], *, times: int = 10) -> float:
        """Mean seconds that `work` takes, after once to warm up."""
        work()
        self.settle()
        started = time.perf_counter()
        for _ in range(times):
            work()
        self.settle()
        return (time.perf_counter() - started) / times

    def run(self, *words: object, seconds: float = 150, cwd: Path = REPOSITORY) -> Any:
        """A Python program that imports brats from this repository; what it printed until then."""
        path = os.pathsep.join([str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")])
        try:
            return subprocess.run(
                [sys.executable, *map(str, words)],
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
                capture_output=True,
                text=True,
                timeout=min(seconds, self.left),
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            out = (late.stdout or b"").decode()
            return subprocess.CompletedProcess(late.cmd, 124, out + "(ended: too long)", "")


# --- stages --------------------------------------------------------------------------------------


def machine(check: Check) -> None:
    """What the machine is, and the speeds that bound everything else."""
    cpus = len(os.sched_getaffinity(0))
    check.report(f"torch {torch.__version__}, {check.device}, CPUs {cpus}")
    if not check.on_gpu:
        return
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    check.report(listed.stdout.strip())
    data = torch.empty(2**30, dtype=torch.uint8, device=check.device)
    copy = torch.empty_like(data)
    taken = check.seconds(lambda: copy.copy_(data))
    check.report(f"copy: {2 * 2**30 / 1e12 / taken:.2f} TB/s")
    matrix = torch.randn(8192, 8192, device=check.device, dtype=torch.bfloat16)
    taken = check.seconds(lambda: matrix @ matrix)
    check.report(f"product in bfloat16: {2 * 8192**3 / 1e12 / taken:.2f} TFLOP/s")
    pageable = torch.empty(2**25, dtype=torch.uint8)
    for kind, host in (("pageable", pageable), ("pinned", pageable.pin_memory())):
        taken = check.seconds(lambda host=host: host.to(check.device, non_blocking=True))  # type: ignore[misc]
        check.report(f"34 MB to the GPU, {kind}: {1000 * taken:.2f} ms")


def tests(check: Check) -> None:
    """The project's own GPU tests; its warnings-are-errors is for its own torch."""
    options = ("-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider")
    # These files alone: others may import what that machine lacks.
    core = REPOSITORY / "tests/core"
    files = [path for path in sorted(core.rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    done = check.run("-m", "pytest", *options, *files)
    (check.out / "pytest.txt").write_text(done.stdout + done.stderr)
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]
    check.report(f"pytest -m gpu: {done.returncode}: {last}")


def prepare(check: Check) -> None:
    """Fill the store, with one process per CPU."""
    started = time.perf_counter()
    count = feeds.prepare(check.folders, len(os.sched_getaffinity(0)))
    check.report(f"{count} cases prepared in {time.perf_counter() - started:.1f} s")


def anatomy(check: Check) -> None:
    """A step with nothing to wait for: as it is, and without each of what makes it fast."""
    check.report("| set-up | ms per step | ms the host is held | GiB | GiB reserved |")
    check.report("|---|---:|---:|---:|---:|")
    ready = _ready_batches(check, 4)
    _time_steps(check, "as it is", ready)
    _time_steps(check, "without cudnn.benchmark", ready, search=False)
    _time_steps(check, "weights as PyTorch lays them out", ready, relaid=False)
    _time_steps(check, "without augmentation", ready, augmentation={"enabled": False})
    _time_steps(check, "ema_decay 0.999", ready, ema_decay=0.999)
    if check.on_gpu:  # a CPU takes seconds per step
        _time_steps(check, "float16", ready, precision="float16")
        _time_steps(check, "compile", ready, compile=True)


def _time_steps(
    check: Check,
    name: str,
    batches: list[Batch],
    *,
    search: bool = True,
    relaid: bool = True,
    **settings: object,
) -> None:
    """Report a row: time between steps, time to launch one, and memory."""
    learner = _learner(check, **settings)
    if not relaid:
        learner.network.to(memory_format=torch.contiguous_format)
    with searching_kernels(check.device) if search else nullcontext():
        _report_steps(check, name, batches, learner)
    del learner
    if check.on_gpu:
        torch.cuda.empty_cache()


def _report_steps(check: Check, name: str, batches: list[Batch], learner: Any) -> None:
    for number in range(8):
        learner._learn(batches[number % 4], number)
    check.settle()
    if check.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    launches = []
    started = time.perf_counter()
    for number in range(check.steps):
        before = time.perf_counter()
        learner._learn(batches[number % 4], number)
        launches.append(time.perf_counter() - before)
    check.settle()
    step = (time.perf_counter() - started) / check.steps
    held = reserved = 0.0
    if check.on_gpu:
        held, reserved = torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()
    check.report(
        f"| {name} | {1000 * step:.1f} | {1000 * statistics.median(launches):.1f} | "
        f"{held / 2**30:.1f} | {reserved / 2**30:.1f} |"
    )


def syncs(check: Check) -> None:
    """What the host waits for in five steps, by the profiler."""
    batches, learner = _ready_batches(check, 4), _learner(check)
    for number in range(4):
        learner._learn(batches[number % 4], number)
    check.settle()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if check.on_gpu else []
    with torch.profiler.profile(activities=kinds) as found:
        for number in range(5):
            learner._learn(batches[number % 4], number)
        check.settle()
    rows = found.key_averages()
    order = "self_cuda_time_total" if check.on_gpu else "self_cpu_time_total"
    (check.out / "profile.txt").write_text(rows.table(sort_by=order, row_limit=60))
    waits = ("Synchronize", "Memcpy", "memcpy", "cudaLaunchKernel", "nonzero")
    for row in rows:
        if any(word in row.key for word in waits):
            held = row.self_cpu_time_total / 5000
            check.report(f"5 steps: {row.key} x{row.count}, host {held:.2f} ms per step")


def epochs(check: Check) -> None:
    """An epoch as `brats train` runs it, of which the second counts."""
    cases, scheme = feeds.stored_cases(check.folders), feeds.stored_scheme(check.folders)
    config = check.config(epochs=2, steps_per_epoch=check.steps * 2, validate_every=2)
    events = training.train(config, cases, cases[:2], scheme, check.device)
    epoch = [event for event in events if isinstance(event, Epoch)][-1]
    step = 1000 * epoch.seconds / config.steps_per_epoch
    check.report(
        f"epoch: {step:.1f} ms per step, {epoch.patches_per_second:.1f} patches/s; idle for "
        f"patches {epoch.data_wait_percent:.1f} %; validation {epoch.validation_seconds / 2:.2f} s "
        f"per case; memory {epoch.peak_memory_mb / 1000:.1f} GB"
    )
    replace(epoch.checkpoint, state=None).save(check.work / "model.pt")


def memory(check: Check) -> None:
    """What a card of a tenth of the memory does: windows of a case, and a step."""
    if not check.on_gpu:
        return
    free = memory_for_network(check.device) / 2**30
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.1)
    try:
        checkpoint = Checkpoint.load(check.work / "model.pt")
        shares: list[float] = []
        segmenter = Segmenter(
            network=on_device(checkpoint.network(), check.device),
            device=check.device,
            dtype=torch.float32,
            patch_size=checkpoint.patch_size,
        )
        case = feeds.stored_cases(check.folders)[0]
        segmenter.probabilities(case.images, on_share=shares.append)
        check.report(f"free for a network {free:.1f} GiB; with a tenth: {len(shares)} windows")
        _time_steps(
            check, "a tenth of the memory, float32", _ready_batches(check, 4), precision="float32"
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def prediction(check: Check) -> None:
    """The benchmark of prediction on two cases, with the network of the stage before."""
    model, cases = check.work / "model.pt", sorted(check.cases.iterdir())[: 1 if check.small else 2]
    options = ("--only", "disk", "--device", check.device, "--model", model, "--cases", *cases)
    done = check.run("benchmarks/bench_predict.py", *options)
    if done.returncode:
        raise RuntimeError(f"{done.stdout[-600:]} {done.stderr[-600:]} (status {done.returncode})")
    check.report(done.stdout.strip())


def commands(check: Check) -> None:
    """The command line: a stop and a resume, predictions, and too little memory."""
    some = ["--set", "steps_per_epoch=10", "--set", "patience=null"]
    if check.small:
        for setting in ("patch_size=32", "network.channels=4", "network.levels=3"):
            some += ["--set", setting]
    stored, on = ["--store", "store"], ["--device", check.device]
    run = ["train", "splits.yaml", "-o", "runs/a", *stored]
    _brats(check, "split", check.cases, "-o", "splits.yaml", "--overwrite")
    _brats(check, *run, "--prepare-only")
    again = ["--overwrite", "--epochs", 400, *some]
    _brats(check, *run, *on, *again, stop_after=40 if check.small else 25, expected=-2)  # by Ctrl-C
    resumed = ["--resume", "--epochs", 3 if check.small else 20]
    _brats(check, "train", "-o", "runs/a", *stored, *on, *resumed)
    case, model = sorted(check.cases.iterdir())[0], check.work / "model.pt"
    maps = ["--tta", "--uncertainty", "--overwrite"]
    _brats(check, "predict", case, "-o", "out/", *on, *maps, "--model", model)
    if check.on_gpu:
        large = ["--gpu", 0, "--epochs", 1, *stored, "--set", "batch_size=96", *some]
        _brats(check, "train", "splits.yaml", "-o", "runs/big", *large, expected=3)
        _brats(check, "train", "splits.yaml", "-o", "runs/none", "--gpu", 1, *some, expected=3)


def _brats(
    check: Check, *words: object, stop_after: float | None = None, expected: int = 0
) -> None:
    """Run a command, by Ctrl-C no longer than `stop_after` seconds, and report how it ended."""
    path = os.pathsep.join([str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")])
    typed = [str(word) for word in words]
    started = time.perf_counter()
    running = subprocess.Popen(
        [sys.executable, "-m", "brats_cli", *typed],
        cwd=check.work,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        if stop_after is not None:
            time.sleep(stop_after)
            running.send_signal(signal.SIGINT)
        text = running.communicate(timeout=min(120, check.left))[0]
    except subprocess.TimeoutExpired:
        running.kill()
        text = running.communicate()[0] + " (killed: too long)"
    finally:  # also where the check's own time is up
        running.kill()
    failed = "" if running.returncode == expected else f" (FAILED: {expected} was expected)"
    check.report(
        f"brats {' '.join(typed)[:110]} -> {running.returncode}{failed} in "
        f"{time.perf_counter() - started:.0f} s: ... {text.strip()[-230:]!r}"
    )


# --- shared --------------------------------------------------------------------------------------


def _learner(check: Check, **settings: object) -> Any:
    """A network in training."""
    config = check.config(steps_per_epoch=1000, **settings)
    scheme = feeds.stored_scheme(check.folders)
    learner = Learner(config, scheme, check.device, None, ALONE)
    learner.network.train()
    return learner


def _ready_batches(check: Check, count: int) -> list[Batch]:
    """Batches that are on the device already."""
    config = check.config(steps_per_epoch=count, workers=0)
    cases = feeds.stored_cases(check.folders)
    feed = training._feed(config, cases, 0, ALONE, check.device)
    return [next(feed) for _ in range(count)]


def _out_of_time(*_: object) -> None:
    raise TimeoutError("the time is up")


STAGES = (machine, tests, prepare, anatomy, syncs, epochs, prediction, commands, memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("gpu-check"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="A dry run with a tiny network.")
    parser.add_argument("--only", nargs="*", choices=[stage.__name__ for stage in STAGES])
    parser.add_argument("--seconds", type=float, default=TIME, help="After which it ends.")
    given = parser.parse_args()
    check = Check(
        given.cases.resolve(),
        given.out.resolve(),
        given.work.resolve(),
        choose_device(given.device),
        given.small,
        given.seconds,
    )
    for folder in (check.work, check.out):
        folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGALRM, _out_of_time)
    ending = threading.Timer(check.most_seconds + GRACE, check.end)
    ending.daemon = True
    ending.start()
    for stage in STAGES:
        if not given.only or stage.__name__ in given.only:
            _run(check, stage)
            check.write()
    ending.cancel()
    print("\n".join(["", "=" * 20, *check.lines]))


def _run(check: Check, stage: Callable[[Check], None]) -> None:
    """Run a stage, if there is time, and report how it failed or what it took."""
    name = stage.__name__
    if check.left < LEAST:
        check.report(f"{name}: left out, the time is up")
        return
    started = time.perf_counter()
    try:
        signal.setitimer(signal.ITIMER_REAL, check.left)
        stage(check)
    except Exception:
        check.report(f"{name} FAILED: {traceback.format_exc()[-1200:]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    check.report(f"({name}: {time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
