"""Interrupts every command that writes, in many ways, and looks at what is left on disk.

    python tests/interruptions.py [--tries N] [--points N] [--only FAULT...] [COMMAND...]

After each fault, every output must hold its old content or the whole new one; the next run must
leave what an undisturbed run leaves, byte for byte, and nothing else. The faults:

- `kill at a step`: SIGKILL just before the k-th time that a file is opened for writing, renamed,
  removed, or a folder made (Python tells an audit hook of each);
- `kill in a file`: SIGKILL when a file reaches n bytes (the system's limit of a file's size);
- `kill of the first process`, `Ctrl-C to all processes`: of the command as a user starts it;
- `kill at random`, `Ctrl-C at random`: SIGKILL or SIGINT after a random part of the duration;
- `Ctrl-C at a step`, `SIGTERM at a step`: as above, by the signals that may be answered;
- `no space at a step`, `no space in a file`: the system refuses from there on;
- `full disk`: a real one, a tmpfs of a few kilobytes;
- `read-only`, `no permission`: the folder, mounted or owned by somebody else;
- `file vanishes`, `file is cut`: an image or checkpoint, before it is opened or right after.

One process imports everything and forks a child for each fault, which then costs what the command
itself does. Torch starts its threads in the children alone.
"""

import argparse
import builtins
import contextlib
import csv
import errno
import gzip
import importlib.util
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # read by libraries as they load
    os.environ.setdefault(_name, "1")
os.environ["NO_COLOR"] = "1"

PARTIAL = ".partial."
NOBODY = 65534
OLD = b"old\n"
"""What every output holds before a run that replaces it."""

TINY = {
    "epochs": 2,
    "steps_per_epoch": 1,
    "patch_size": 16,
    "workers": 0,
    "network": {"channels": 2, "levels": 2},
}


@dataclass(frozen=True)
class Scenario:
    """A command that writes, run in the folder `work` beside `given`, which holds its inputs.

    Attributes:
        name: What the table calls it.
        words: The command.
        outputs: Patterns of the files that hold old content before a run that replaces it; none
            where the command has no `--overwrite`.
        again: What is added to finish a run that had nothing to replace: `--skip-existing`, or
            nothing if such a run leaves all or nothing.
        inputs: Pattern of the inputs that vanish or are cut, below `given`.
        summaries: Outputs that are whole without a case that failed.
        clears: Whether the outputs of an earlier run are removed when the next one starts.
        together: Pattern of the names of files that belong together if what stands before it is the
            same: some may be missing after a fault, but none is new beside an old one.
        stale: Outputs of an earlier, larger run: they go when others replace those beside them.
        needs: A module that is not always installed.
    """

    name: str
    words: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    inputs: str = "data/**/*.nii.gz"
    summaries: tuple[str, ...] = ()
    clears: bool = False
    together: str = ""
    stale: tuple[str, ...] = ()
    needs: str | None = None


def _scenarios() -> list[Scenario]:
    data, case = "../given/data", "../given/data/BraTS-GLI-00000-000"
    alone = ("--workers", "0")
    maps = [
        f"../given/predictions/BraTS-GLI-{visit}.nii.gz" for visit in ("00000-000", "00001-000")
    ]
    segmented = ("../given/predictions", "../given/data")
    return [
        Scenario("split", ("split", data), ("splits.yaml",)),
        Scenario(
            "evaluate",
            (
                *("evaluate", *segmented, "-o", "scores.csv", "--markdown", "table.md", "--json"),
                *("--lesion-wise", "2023", "--lesions", "lesions.csv", *alone),
            ),
            ("*.csv", "table.md"),
            inputs="predictions/*.nii.gz",
            summaries=("scores.csv", "lesions.csv", "table.md"),
            together=r"(scores.csv|lesions.csv|table.md)$",
        ),
        Scenario(
            "evaluate--report",
            (
                *("evaluate", "../given/one", data, *alone),  # drawing takes seconds a case
                *("--report", "report.html", "--plots", "plots"),
            ),
            ("report.html", "plots/*"),
            inputs="one/*.nii.gz",
            summaries=("report.html", "plots/"),
            together=r"(report.html|plots/.*)$",
            stale=("plots/worst_5.png",),
        ),
        Scenario(
            "compare",
            ("compare", "../given/a.csv", "../given/b.csv", "-o", "compare.png"),
            ("compare.png",),
            inputs="",
        ),
        Scenario(
            "mesh",
            (
                *("mesh", *maps, "--region", "all", "-o", "meshes"),
                *("--format", "obj", *alone),
            ),
            ("meshes/*",),
            ("--skip-existing",),
            inputs="predictions/*.nii.gz",
            together=r"\.(obj|mtl)$",
        ),
        Scenario(
            "view",
            ("view", data, "--seg", "../given/predictions", "-o", "views", *alone),
            ("views/*",),
            ("--skip-existing",),
            summaries=("views/index.html",),
        ),
        Scenario(
            "view--png",
            ("view", case, "-o", "view.png"),
            ("view.png",),
            inputs="data/BraTS-GLI-00000-000/*.nii.gz",
        ),
        Scenario(
            "check--fix",
            ("check", "../given/broken", "--fix", "fixed", *alone),
            inputs="broken/**/*.nii.gz",
            summaries=("fixed/",),
        ),
        Scenario(
            "train",
            (
                *("train", "../given/splits.yaml", "-c", "../given/tiny.yaml", "-o", "runs/a"),
                *("--store", "store", "--device", "cpu"),
            ),
            ("runs/**/*",),
            clears=True,
        ),
        Scenario(
            "store",
            (
                *("train", "../given/splits.yaml", "-c", "../given/tiny.yaml", "--prepare-only"),
                *("--store", "store"),
            ),
        ),
        Scenario(
            "predict",
            (
                *("predict", data, "--model", "../given/model.pt", "-o", "out", "--device", "cpu"),
                *("--probabilities", "--uncertainty"),
            ),
            ("out/*",),
            ("--skip-existing",),
            inputs="data/*0000-00*/*.nii.gz",
            together=r"(_probabilities|_uncertainty)?\.nii\.gz$",
        ),
        Scenario(
            "import",
            ("import", "../given/theirs.pt", "-o", "ours.pt"),
            ("ours.pt",),
            inputs="theirs.pt",
            needs="monai",
        ),
        Scenario(
            "export",
            ("export", "../given/model.pt", "-o", "model.onnx"),
            ("model.onnx",),
            inputs="model.pt",
            needs="onnxruntime",
        ),
        Scenario(
            "demo",
            ("demo", "demo", "--small", "--device", "cpu"),
            ("demo/**/*",),
            inputs="",
            clears=True,
        ),
    ]


SCENARIOS = {each.name: each for each in _scenarios()}


# --- a command in a child ----------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit status, or minus the signal that killed it."""

    status: int
    stderr: str
    seconds: float


def in_child(
    words: tuple[str, ...],
    folder: Path,
    arm: Callable[[], None] = lambda: None,
    *,
    send: tuple[float, int] | None = None,
) -> Ended:
    """Run a command in a forked child.

    Args:
        words: The command.
        folder: Its working folder.
        arm: Called in the child before the command.
        send: A signal, and the seconds after which it is sent.
    """
    here, there = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.perf_counter()
    # Interrupted in Python's own work after a fork, a child may never get past a lock.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    child = os.fork()
    if not child:
        os.close(here)
        _be_brats(words, folder, there, arm)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.close(there)
    said, sent = b"", send is None
    while True:
        left = 120 - (time.perf_counter() - began)
        if send is not None and not sent:
            left = send[0] - (time.perf_counter() - began)
        ready, _, _ = select.select([here], [], [], max(left, 0))
        if ready:
            read = os.read(here, 1 << 16)
            said += read
            if not read:
                break
        elif send is not None and not sent:
            os.kill(child, send[1])
            sent = True
        else:
            os.kill(child, signal.SIGKILL)
            said += b"\nTraceback: it hung\n"
            break
    os.close(here)
    _, how = os.waitpid(child, 0)
    seconds = time.perf_counter() - began
    return Ended(os.waitstatus_to_exitcode(how), said.decode(errors="replace"), seconds)


def as_process(words: tuple[str, ...], folder: Path, seconds: float, stop: int) -> Ended:
    """Run a command as a user does, several processes where it has `--workers`, and stop it.

    Ctrl-C goes to all of its processes, as a terminal sends it; SIGKILL to the first alone.
    """
    words = tuple("2" if before == "--workers" else word for before, word in pairwise(("", *words)))
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "brats_cli", *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        if stop == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, stop)
    # Until the last process has closed it: those that it started end as well.
    _, said = process.communicate(timeout=120)
    # As a shell has it: 130 for a process that ended by SIGINT. SIGKILL stays what it is.
    status = INTERRUPTED if process.returncode == -signal.SIGINT else process.returncode
    return Ended(status, said, time.perf_counter() - began)


def _be_brats(words: tuple[str, ...], folder: Path, said: int, arm: Callable[[], None]) -> None:
    """Be the process of a command; never returns."""
    status = 1
    try:
        os.chdir(folder)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number, target in ((0, nothing), (1, nothing), (2, said)):
            os.dup2(target, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        sys.argv = ["brats", *words]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        arm()
        from brats_cli.__main__ import main

        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        main()
        status = 0
    except KeyboardInterrupt:  # between the unblocking and `main`
        status = 130
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def preload(words: tuple[str, ...], folder: Path) -> None:
    """Import what a command imports, so that its children do not: it says so in one of them."""

    def tell() -> None:
        before, leave = set(sys.modules), os._exit

        def leave_word(status: int) -> None:
            (folder / "modules").write_text("\n".join(set(sys.modules) - before))
            leave(status)

        os._exit = leave_word

    in_child(words, folder, tell)
    # Of text of others; nobody may find it where Python is root's.
    more = ["encodings.utf_8_sig", "encodings.cp1252"]
    for name in sorted([*(folder / "modules").read_text().split(), *more]):
        with contextlib.suppress(Exception):
            importlib.import_module(name)


# --- steps: each time that something on disk is about to change --------------------------------

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _on_steps(folder: Path, act: Callable[[int, str], None]) -> None:
    """Call `act` with the number and the name of every step below a folder, before it is made."""
    inside, count = f"{folder}{os.sep}", 0

    def hear(event: str, args: tuple) -> None:
        nonlocal count
        if event not in _CHANGES and not (event == "open" and args[2] & _WRITING):
            return
        if not isinstance(args[0], str | bytes | os.PathLike):
            return
        if os.path.abspath(os.fsdecode(args[0])).startswith(inside):  # noqa: PTH100
            count += 1
            act(count, event)

    sys.addaudithook(hear)


def send_at_step(folder: Path, step: int, stop: int) -> None:
    def act(count: int, _: str) -> None:
        if count == step:
            os.kill(os.getpid(), stop)

    _on_steps(folder, act)


def refuse_from_step(folder: Path, step: int, number: int) -> None:
    def act(count: int, event: str) -> None:
        if count >= step and event not in ("os.remove", "os.rmdir"):
            raise OSError(number, os.strerror(number))

    _on_steps(folder, act)


def limit_files(size: int, *, kill: bool) -> None:
    """No file may be longer than `size` bytes: who tries is killed, or refused."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def _on_reads(
    paths: set[str], before: Callable[[int, str], None], after: Callable[[int, str], None]
) -> None:
    """Call functions with the number and the path, before and after one of `paths` is opened."""
    opened, count = io.open, 0

    def open_(file, mode="r", *args, **more):
        nonlocal count
        reads = isinstance(file, str | os.PathLike) and os.path.realpath(file) in paths
        count += reads
        if reads:
            before(count, file)
        found = opened(file, mode, *args, **more)
        if reads:
            after(count, file)
        return found

    io.open = builtins.open = open_


def damage_at_reading(paths: set[str], step: int, how: str) -> None:
    """Remove an input before it is opened for the k-th time, or halve it when that was done."""

    def vanish(count: int, path: str) -> None:
        if count == step and how == "vanishes":
            os.unlink(path)  # noqa: PTH108

    def cut(count: int, path: str) -> None:
        if count == step and how == "is cut":
            os.truncate(path, os.path.getsize(path) // 2)  # noqa: PTH202

    _on_reads(paths, vanish, cut)


# --- what lies on disk -------------------------------------------------------------------------

_CLOCK = (
    "seconds",
    "validation_seconds",
    "data_wait_percent",
    "patches_per_second",
    "peak_memory_mb",
)


def content_of(path: Path) -> object:
    """What a file holds, without times and without what depends on where it lies."""
    if path.stat().st_size <= len(OLD) and path.read_bytes() == OLD:
        return OLD
    try:
        if path.name.startswith("events.out.tfevents"):
            return "events"
        if path.suffix == ".gz":
            return gzip.decompress(path.read_bytes())
        if path.suffix == ".pt":
            return _of_checkpoint(path)
        if path.name == "predictions.jsonl":
            return _of_manifest(path)
        if path.name == "log.csv":
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            return [{key: v for key, v in row.items() if key not in _CLOCK} for row in rows]
        if path.name == "curves.png":
            return path.read_bytes()[-12:]  # the end of a whole PNG; it draws seconds
    except (OSError, EOFError, ValueError, KeyError) as error:
        return f"damaged: {error!r}"
    return path.read_bytes()


def _of_checkpoint(path: Path) -> object:
    """The records of the archive, but for the times that a training measures."""
    with zipfile.ZipFile(path) as archive:
        if archive.testzip():
            raise ValueError("a record is damaged")
        return {
            name.partition("/")[2]: archive.read(name)
            for name in archive.namelist()
            if "/data/" in name
        }


def _of_manifest(path: Path) -> object:
    """The cases of the last line of each; a line that is no JSON is an error."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line != "old"]
    return {row["case"]: row.get("volumes_mm3") for row in rows}


def tree(folder: Path) -> dict[str, object]:
    """The content of every file below a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        _name(path, folder): content_of(path)
        for path in files
        if PARTIAL not in str(path.relative_to(folder))
    }


def _name(path: Path, folder: Path) -> str:
    name = str(path.relative_to(folder))
    if "events.out.tfevents" in name:  # has the time in its name
        return str(Path(name).with_name("events"))
    # Of a prepared case, the folder's name has the time of its files.
    return re.sub(r"(brats-store/.*)-\w{8}-\w{8}/", r"\1/", name)


def leftovers(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if PARTIAL in path.name]


# --- trials ------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A folder with inputs and the outputs of an undisturbed run.

    Attributes:
        root: Holds `given` (inputs), `pristine` (a copy of them) and `work` (outputs).
        scenario: The command.
        new: What an undisturbed run leaves, by path.
        steps: Steps of an undisturbed run, without and with old outputs.
        reads: How often it opens one of its inputs.
        seconds: Its duration.
        found: By fault, how many were tried, struck, and lost something.
        lost: What was lost, in words.
    """

    root: Path
    scenario: Scenario
    new: dict[str, object] = field(default_factory=dict)
    steps: dict[bool, int] = field(default_factory=dict)
    reads: int = 0
    seconds: float = 0
    found: dict[str, Counter] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    @property
    def work(self) -> Path:
        return self.root / "work"

    def measure(self) -> None:
        """Run the command undisturbed, without and with old outputs."""
        for replacing in (False, True) if self.scenario.outputs else (False,):
            self.lay_out(replacing=replacing)
            ended = in_child(self.words(replacing=replacing), self.work, self._count)
            assert ended.status == 0, ended.stderr
            counted = ended.stderr.rpartition("counted: ")[2].split()
            self.steps[replacing], self.reads = map(int, counted)
            if not replacing:
                self.new, self.seconds = tree(self.work), ended.seconds
                self.kept = self.root / "kept"
                shutil.rmtree(self.kept, ignore_errors=True)
                shutil.copytree(self.work, self.kept)
            else:
                assert tree(self.work) == self.new, self._differences(tree(self.work))

    def inputs(self) -> set[str]:
        """The images and checkpoints that it reads."""
        found = (self.root / "given").glob(self.scenario.inputs) if self.scenario.inputs else ()
        return {os.path.realpath(path) for path in found}

    def _count(self) -> None:
        steps = reads = 0

        def step(number: int, _: str) -> None:
            nonlocal steps
            steps = number

        def read(number: int) -> None:
            nonlocal reads
            reads = number

        _on_steps(self.work, step)
        _on_reads(self.inputs(), lambda number, _: read(number), lambda number, _: None)
        original = os._exit

        def leave(status: int) -> None:
            os.write(2, f"counted: {steps} {reads}".encode())
            original(status)

        os._exit = leave

    def lay_out(self, *, replacing: bool) -> None:
        """Empty the folder for outputs; `replacing`: then write old ones."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        if not replacing:
            return
        write_old(self)

    def words(self, *, replacing: bool) -> tuple[str, ...]:
        return (*self.scenario.words, *(("--overwrite",) if replacing else self.scenario.again))

    def finishing(self, *, replacing: bool) -> tuple[str, ...]:
        """The command that finishes an interrupted run."""
        if self.scenario.name == "train" and not replacing:
            run = self.work / "runs/a"
            begun = (run / "config.yaml").is_file() and (run / "splits.yaml").is_file()
            return (*self.scenario.words, *(("--resume",) if begun else ()))
        if self.scenario.outputs and not self.scenario.again:
            return self.words(replacing=True)
        return self.words(replacing=replacing)

    def try_(
        self,
        fault: str,
        arm: Callable[[], None] = lambda: None,
        *,
        replacing: bool,
        send: tuple[float, int] | None = None,
        statuses: tuple[int, ...],
        partial_failure: bool = False,
        prepared: bool = False,
        process: bool = False,
        mend: Callable[[], None] = lambda: None,
    ) -> None:
        """One fault: `statuses` are those that the command may end with besides 0."""
        if not prepared:
            self.lay_out(replacing=replacing)
        words = self.words(replacing=replacing)
        if process:
            assert send is not None
            ended = as_process(words, self.work, *send)
        else:
            ended = in_child(words, self.work, arm, send=send)
        wrong = self._after_fault(ended, (*statuses, 0), replacing, partial_failure)
        mend()
        again = in_child(self.finishing(replacing=replacing), self.work)
        if again.status and not (
            # All was done, and one was not told.
            "exists already" in again.stderr and tree(self.work) == self.new
        ):
            wrong.append(f"the next run ended with {again.status}: {again.stderr[-300:]}")
        wrong += [f"left after the next run: {name}" for name in leftovers(self.work)]
        if tree(self.work) != self.new:
            wrong.append(f"after the next run: {self._differences(tree(self.work))}")
        tally = self.found.setdefault(fault, Counter())
        tally["tried"] += 1
        tally["struck"] += ended.status in statuses
        tally["lost"] += bool(wrong)
        self.lost += [f"{self.scenario.name}, {fault}: {each}" for each in wrong]

    def _after_fault(
        self, ended: Ended, statuses: tuple[int, ...], replacing: bool, partial_failure: bool
    ) -> list[str]:
        wrong = []
        if ended.status not in statuses:
            wrong.append(f"ended with {ended.status}: {ended.stderr[-1500:]}")
        if "Traceback" in ended.stderr:
            wrong.append(f"a traceback: {ended.stderr[-1500:]}")
        worded = "error: " in ended.stderr and " hint: " in ended.stderr
        if ended.status == 3 and not worded:
            wrong.append(f"no error with a hint: {ended.stderr[-300:]}")
        if ended.status > 0:
            wrong += [f"a temporary file: {name}" for name in leftovers(self.work)]
        found = tree(self.work)
        for name, content in found.items():
            if content == self.new.get(name) or (replacing and content == OLD):
                continue
            if partial_failure and name.startswith(self.scenario.summaries):
                continue
            if name.endswith(_GROWING) and name in self.new and "damaged" not in str(content):
                continue
            wrong.append(f"neither old nor new: {name}")
        if replacing and not self.scenario.clears:
            old = {name for name in self.new if self._is_replaced(name)}
            kept = {self._group(name) for name in found} - {None}
            gone = [name for name in sorted(old - set(found)) if self._group(name) not in kept]
            wrong += [f"gone: {name}" for name in gone]
        if not partial_failure:
            wrong += self._mixed(found)
        return wrong

    def _group(self, name: str) -> str | None:
        """What files that belong together have in common; None for a file that is alone."""
        match = self.scenario.together and re.search(self.scenario.together, name)
        return name[: match.start()] if match else None

    def _mixed(self, found: dict[str, object]) -> list[str]:
        """The files that belong together, some of them new beside old ones."""
        versions: dict[str, set[bool]] = {}
        for name, content in found.items():
            if (group := self._group(name)) is not None:
                versions.setdefault(group, set()).add(content == OLD)
        return [f"new beside old: {group}" for group, both in versions.items() if len(both) > 1]

    def _is_replaced(self, name: str) -> bool:
        return any(Path(name).match(pattern) for pattern in self.scenario.outputs)

    def _differences(self, found: dict[str, object]) -> str:
        parts = [f"missing {name}" for name in self.new if name not in found]
        parts += [f"stray {name}" for name in found if name not in self.new]
        parts += [
            f"other {name}" for name in found if found[name] != self.new.get(name, found[name])
        ]
        return ", ".join(parts[:5])


def write_old(bench: Bench) -> None:
    """Write old content into every output that a run replaces."""
    for pattern in bench.scenario.outputs:
        for path in bench.kept.glob(pattern):
            inside = path.relative_to(bench.kept)
            target = bench.work / inside
            kept = (
                "events.out" in path.name or path.name == "latest" or "brats-store" in str(inside)
            )
            if path.is_file() and not kept:
                target.parent.mkdir(parents=True, exist_ok=True)
                # The lines of a manifest are of the old files, and are to be withdrawn.
                is_manifest = path.name == "predictions.jsonl"
                target.write_bytes(path.read_bytes() if is_manifest else OLD)
    for name in bench.scenario.stale:
        (bench.work / name).write_bytes(OLD)


_GROWING = ("log.csv", "last.pt", "best.pt", "predictions.jsonl", "index.html")
"""Outputs that hold, half way, what an earlier epoch or the cases so far left there, whole."""


# --- the faults --------------------------------------------------------------------------------


def spread(last: int, points: int) -> list[int]:
    """At most `points` of the numbers 1 to `last`, evenly."""
    if last <= points:
        return list(range(1, last + 1))
    if points <= 1:
        return [(last + 1) // 2]
    return sorted({round(1 + place * (last - 1) / (points - 1)) for place in range(points)})


KILLED, INTERRUPTED, TERMINATED, REFUSED = -signal.SIGKILL, 130, 143, 3


def modes(bench: Bench) -> tuple[bool, ...]:
    return tuple(bench.steps)


def kill_at_steps(bench: Bench, tries: int, points: int) -> None:
    for replacing in modes(bench):
        for step in spread(bench.steps[replacing], points):
            arm = partial(send_at_step, bench.work, step, signal.SIGKILL)
            bench.try_("kill at a step", arm, replacing=replacing, statuses=(KILLED,))


def kill_in_files(bench: Bench, tries: int, points: int) -> None:
    for size in _sizes(bench, points // 2):
        arm = partial(limit_files, size, kill=True)
        for replacing in modes(bench):
            killed = (-signal.SIGXFSZ,)
            bench.try_("kill in a file", arm, replacing=replacing, statuses=killed)


def _sizes(bench: Bench, points: int) -> list[int]:
    """Lengths that files of the command pass: halves of theirs, and the very first byte."""
    sizes = {path.stat().st_size for path in bench.kept.rglob("*") if path.is_file()}
    wanted = sorted({1, *(size // 2 for size in sizes), *(size - 1 for size in sizes)} - {0, -1})
    return [wanted[number - 1] for number in spread(len(wanted), max(points, 2))]


def kill_at_random(bench: Bench, tries: int, points: int) -> None:
    chance = random.Random(f"kill {bench.scenario.name}")
    for number in range(tries):
        replacing = modes(bench)[number % len(modes(bench))]
        send = (chance.uniform(0, bench.seconds), signal.SIGKILL)
        bench.try_("kill at random", replacing=replacing, send=send, statuses=(KILLED,))


def stops_at_random(bench: Bench, tries: int, points: int) -> None:
    chance = random.Random(f"stop {bench.scenario.name}")
    # Those at steps are the more telling ones; of a slow command these are fewer.
    for number in range(min(tries, max(8, int(15 / bench.seconds)))):
        replacing = modes(bench)[number % len(modes(bench))]
        # Not in the first moments, in which the fork becomes a command.
        send = (chance.uniform(0.02, bench.seconds), signal.SIGINT)
        bench.try_("Ctrl-C at random", replacing=replacing, send=send, statuses=(INTERRUPTED,))


_TRIES_PER_PROCESS = 5
"""A command takes seconds to start: it is started once for so many forks."""


def stops_of_processes(bench: Bench, tries: int, points: int) -> None:
    """From its first import on, and with the processes that share the work."""
    if tries < _TRIES_PER_PROCESS:
        return
    began = time.perf_counter()
    bench.lay_out(replacing=False)
    as_process(bench.words(replacing=False), bench.work, 0, 0)
    seconds = time.perf_counter() - began
    chance = random.Random(f"processes {bench.scenario.name}")
    for _ in range(tries // _TRIES_PER_PROCESS):
        for fault, stop, statuses in (
            ("kill of the first process", signal.SIGKILL, (KILLED,)),
            # Python itself, as it starts and as it ends, is killed by it; to a shell that is 130.
            ("Ctrl-C to all processes", signal.SIGINT, (INTERRUPTED, -signal.SIGINT)),
        ):
            send = (chance.uniform(0.4, seconds), stop)
            bench.try_(fault, replacing=False, process=True, send=send, statuses=statuses)


def stops_at_steps(bench: Bench, tries: int, points: int) -> None:
    for fault, stop, status in (
        ("Ctrl-C at a step", signal.SIGINT, INTERRUPTED),
        ("SIGTERM at a step", signal.SIGTERM, TERMINATED),
    ):
        replacing = modes(bench)[-1]
        for step in spread(bench.steps[replacing], points // 2):
            arm = partial(send_at_step, bench.work, step, stop)
            bench.try_(fault, arm, replacing=replacing, statuses=(status,))


def no_space(bench: Bench, tries: int, points: int) -> None:
    for replacing in modes(bench):
        for step in spread(bench.steps[replacing], points // 2):
            arm = partial(refuse_from_step, bench.work, step, errno.ENOSPC)
            bench.try_("no space at a step", arm, replacing=replacing, statuses=(REFUSED,))
        for size in _sizes(bench, points // 2):
            arm = partial(limit_files, size, kill=False)
            bench.try_("no space in a file", arm, replacing=replacing, statuses=(REFUSED,))


def full_disk(bench: Bench, tries: int, points: int) -> None:
    """A tmpfs as small as a part of what the command writes."""
    needed = sum(path.stat().st_size for path in bench.kept.rglob("*") if path.is_file())
    count = max(2, points // 4)
    for number in range(count):
        size = max(4096, int(needed * (number + 0.5) / count) // 4096 * 4096)
        with mounted(bench, f"size={size},nr_inodes=2000") as grow:
            bench.try_("full disk", replacing=False, statuses=(REFUSED,), prepared=True, mend=grow)


@contextlib.contextmanager
def mounted(bench: Bench, options: str):
    """A tmpfs in place of the folder for outputs; yields what gives it room again."""
    shutil.rmtree(bench.work, ignore_errors=True)
    bench.work.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", bench.work], check=True)

    def grow() -> None:
        again = ["mount", "-o", "remount,rw,size=1g", bench.work]
        subprocess.run(again, check=True)

    try:
        yield grow
    finally:
        subprocess.run(["umount", "-l", bench.work], check=True)


def read_only(bench: Bench, tries: int, points: int) -> None:
    for replacing in modes(bench):
        with mounted(bench, "size=1g") as grow:
            if replacing:
                write_old(bench)
            subprocess.run(["mount", "-o", "remount,ro", bench.work], check=True)
            bench.try_(
                "read-only", replacing=replacing, statuses=(REFUSED,), prepared=True, mend=grow
            )


def no_permission(bench: Bench, tries: int, points: int) -> None:
    for replacing in modes(bench):
        bench.try_("no permission", become_nobody, replacing=replacing, statuses=(REFUSED,))


def damaged_inputs(bench: Bench, tries: int, points: int) -> None:
    for how in ("vanishes", "is cut"):
        for step in spread(bench.reads, max(2, points // 2)):
            bench.try_(
                f"file {how}",
                partial(damage_at_reading, bench.inputs(), step, how),
                replacing=modes(bench)[-1],
                statuses=(REFUSED,),
                partial_failure=True,
                mend=partial(_restore, bench),
            )


def _restore(bench: Bench) -> None:
    root = bench.root
    if bench.scenario.name == "check--fix":  # done without the case, and never done again
        shutil.rmtree(bench.work / "fixed", ignore_errors=True)
    for path in (root / "pristine").rglob("*"):
        target = root / "given" / path.relative_to(root / "pristine")
        if path.is_file() and (not target.exists() or target.stat().st_size != path.stat().st_size):
            shutil.copy2(path, target)


def can_mount(folder: Path) -> bool:
    place = folder / "mount"
    place.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", place], capture_output=True
    )
    if made.returncode == 0:
        subprocess.run(["umount", place], check=True)
    return made.returncode == 0


FAULTS = (
    kill_at_steps,
    kill_in_files,
    kill_at_random,
    stops_at_steps,
    stops_at_random,
    stops_of_processes,
    no_space,
)
FAULTS_OF_INPUTS = (damaged_inputs,)
FAULTS_OF_ROOT = (full_disk, read_only, no_permission)


# --- inputs ------------------------------------------------------------------------------------


def make_inputs(root: Path, *, needed: str) -> None:
    """Phantoms, label maps like predictions, a broken data set, scores, a split, and networks."""
    import nibabel as nib
    import numpy as np
    import yaml

    from brats_cli.core.data.phantom import write_phantoms

    given = root / "given"
    write_phantoms(given / "data", cases=4, shape=(32, 32, 32))
    (given / "predictions").mkdir()
    for folder in sorted((given / "data").iterdir()):
        [label] = folder.glob("*-seg.nii.gz")
        image = nib.load(label)
        voxels = np.roll(np.asarray(image.dataobj), 1, axis=0)
        nib.save(nib.Nifti1Image(voxels, image.affine), given / f"predictions/{folder.name}.nii.gz")
    (given / "one").mkdir()
    shutil.copy(next((given / "predictions").iterdir()), given / "one")
    shutil.copytree(given / "data", given / "broken")
    for path in sorted((given / "broken").rglob("*-t1n.nii.gz"))[:2]:
        image = nib.load(path)
        values = np.asarray(image.dataobj).astype(np.float32)
        values[0, 0, 0] = np.nan
        nib.save(nib.Nifti1Image(values, image.affine), path)
    for name, more in (("a", 0.0), ("b", 0.05)):
        lines = [f"C{case},WT,{0.5 + case / 100 + more:.3f},{2 + case}" for case in range(8)]
        text = "\n".join(["case,region,dice,hausdorff95_mm", *lines, ""])
        (given / f"{name}.csv").write_text(text)
    (given / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    ended = in_child(("split", "data", "--ratios", "50/25/25"), given)
    assert ended.status == 0, ended.stderr
    if "model.pt" in needed:
        _make_network(given)
    if "theirs.pt" in needed:
        import peers  # monai, which takes long to load

        peers.save_auto3dseg(given / "theirs.pt", roi=(32, 32, 32))
    shutil.copytree(given, root / "pristine")


def _make_network(given: Path) -> None:
    import torch

    from brats_cli.core.model.checkpoint import Checkpoint
    from brats_cli.core.model.network import make_network
    from brats_cli.core.train.config import TrainConfig

    torch.manual_seed(0)
    config = TrainConfig(patch_size=16, precision="float32", network=TINY["network"])
    network = make_network(config.network, in_channels=4, out_channels=3, patch_size=16)
    settings = config.model_dump(mode="json")
    Checkpoint(network.state_dict(), settings, "brats2023", 1, {}).save(given / "model.pt")


# --- a run -------------------------------------------------------------------------------------


def inject(
    names: list[str], *, tries: int, points: int, root: Path, only: list[str] | None = None
) -> list[Bench]:
    """Inject all faults, or `only` some, into some commands; prints as it goes."""
    wanted = [SCENARIOS[name] for name in names]
    ready = [each for each in wanted if not each.needs or importlib.util.find_spec(each.needs)]
    for each in wanted:
        if each not in ready:
            print(f"{each.name}: skipped, {each.needs} is not installed")
    make_inputs(root, needed=" ".join(word for each in ready for word in each.words))
    faults = [*FAULTS, *FAULTS_OF_INPUTS]
    if os.getuid() == 0 and can_mount(root):
        faults += FAULTS_OF_ROOT
    else:
        print("skipped, as they need root and mount: full disk, read-only, no permission")
    benches = []
    for scenario in ready:
        bench = Bench(root, scenario)
        benches.append(bench)
        began = time.perf_counter()
        bench.lay_out(replacing=False)
        preload(bench.words(replacing=False), bench.work)
        bench.measure()
        # Of a command that takes seconds, fewer points; the random instants are as many.
        few = min(points, max(6, int(20 / bench.seconds)))
        try:
            for each in faults:
                if not only or each.__name__ in only:
                    each(bench, tries, few)
        except KeyboardInterrupt:  # a machine's patience is over: what was found is still shown
            bench.lost.append(f"{scenario.name}: stopped before all faults were tried")
        steps = ", ".join(map(str, bench.steps.values()))
        print(
            f"{scenario.name}: {sum(t['tried'] for t in bench.found.values())} faults in "
            f"{time.perf_counter() - began:.0f} s; a run takes {bench.seconds:.2f} s and {steps} "
            "steps",
            flush=True,
        )
        for line in bench.lost:
            print(f"  LOST {line}", flush=True)
    return benches


def table(benches: list[Bench]) -> str:
    """Markdown: a row per command and fault."""
    lines = [
        "| command | fault | tried | struck | survived | lost |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for bench in benches:
        for fault, found in bench.found.items():
            survived = found["tried"] - found["lost"]
            numbers = (found["tried"], found["struck"], survived, found["lost"])
            cells = " | ".join(map(str, (bench.scenario.name, fault, *numbers)))
            lines.append(f"| {cells} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=", ".join(SCENARIOS))
    parser.add_argument("--tries", type=int, default=30, help="random instants of each kind")
    parser.add_argument("--points", type=int, default=24, help="steps and lengths of each kind")
    every = [each.__name__ for each in (*FAULTS, *FAULTS_OF_INPUTS, *FAULTS_OF_ROOT)]
    parser.add_argument("--only", action="append", choices=every, help="of the faults; repeat it")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="brats-faults-") as folder:
        root = Path(folder).resolve()
        root.chmod(0o755)  # so that nobody may read
        names = given.commands or list(SCENARIOS)
        benches = inject(names, tries=given.tries, points=given.points, root=root, only=given.only)
    print(table(benches))
    if given.json:
        found = {each.scenario.name: each.found for each in benches}
        given.json.write_text(json.dumps(found))
    return int(any(each.lost for each in benches))


if __name__ == "__main__":
    sys.exit(main())
