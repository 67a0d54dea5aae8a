"""Does the rehearsal on a pretended GPU catch what it should? Known faults, planted one by one.

    python benchmarks/planted_faults.py [NUMBER...]

Each row is a fault that a GPU would raise, wait for or compute wrongly, in a copy of the code that
the tests named there are run on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
REHEARSAL = "tests/test_on_a_pretended_gpu.py"


class Fault(NamedTuple):
    """A line to change, and the tests (`-k`) that should fail then."""

    name: str
    module: str
    old: str
    new: str
    tests: str
    file: str = REHEARSAL


STEP, WHOLE, WINDOW = "step_never_waits and as", "those_of_the_cpu", "window_waits"

FAULTS = (
    Fault("none", "errors", "", "", f"{STEP} or {WHOLE} or {WINDOW}"),
    # Tensors of two devices.
    Fault(
        "noise from a generator of the CPU",
        "train/augment",
        "torch.Generator(image.device)",
        "torch.Generator()",
        STEP,
    ),
    Fault(
        "grid of voxels on the CPU",
        "train/augment",
        "torch.arange(side, device=device) - (side",
        "torch.arange(side) - (side",
        STEP,
    ),
    Fault(
        "displacements on the CPU",
        "train/augment",
        "_planes(sent(points, device)",
        "_planes(points",
        STEP,
    ),
    Fault(
        "frame of a patch on the CPU",
        "train/augment",
        "torch.zeros(framed, dtype=label.dtype, device=device)",
        "torch.zeros(framed, dtype=label.dtype)",
        STEP,
    ),
    Fault(
        "labels on the CPU",
        "train/transfer",
        "            labels = batch.labels.to(self._device, non_blocking=True)",
        "            labels = batch.labels",
        STEP,
    ),
    Fault(
        "the loss's zero on the CPU",
        "train/losses",
        "torch.zeros((), device=targets.device)",
        "torch.zeros(1)",
        STEP,
    ),
    Fault(
        "weights of windows on the CPU",
        "model/windows",
        "sent(weights, self.home)",
        "weights",
        WINDOW,
    ),
    Fault(
        "network of a prediction on the CPU",
        "predict/predictor",
        "on_device(fused(checkpoint.network()), self.device)",
        "fused(checkpoint.network())",
        "commands_run",
    ),
    Fault(
        "network of the thresholds on the CPU",
        "train/thresholds",
        "on_device(best.network(), device)",
        "best.network()",
        WHOLE,
    ),
    Fault(
        "checkpoint read onto the GPU",
        "model/archive",
        'map_location="cpu"',
        'map_location="cuda:0"',
        WHOLE,
    ),
    # Waits.
    Fault(
        ".item() of each loss",
        "train/learner",
        "losses.append(self._learn(batch, number))",
        "losses.append(self._learn(batch, number)); losses[-1].item()",
        STEP,
    ),
    Fault(
        "voxels of the brain looked for",
        "train/augment",
        'if there.device.type == "cuda":',
        "if False:",
        STEP,
    ),
    Fault(
        "displacements out of pageable memory",
        "train/augment",
        "sent(points, device)",
        "points.to(device)",
        STEP,
    ),
    Fault(
        "patches out of pageable memory",
        "train/transfer",
        "dtype=torch.float16, pin_memory=True",
        "dtype=torch.float16",
        STEP,
    ),
    Fault(
        "patches sent blocking",
        "train/transfer",
        "batch.images.to(self._device, non_blocking=True)",
        "batch.images.to(self._device)",
        STEP,
    ),
    Fault(
        "optimiser that asks whether float16 overflowed",
        "train/optimizer",
        'settings["fused"] = True',
        'settings["foreach"] = True',
        "step_never_waits and float16",
    ),
    Fault(
        "a case sent window by window",
        "model/windows",
        "images = images.to(self.home)",
        "images = images.to(CPU)",
        WINDOW,
    ),
    # Races, and memory.
    Fault(
        "copy of patches not waited for",
        "train/transfer",
        "        computing.wait_stream(self._stream)\n",
        "",
        STEP,
    ),
    Fault(
        "page-locked memory filled too early",
        "train/transfer",
        "        buffer.copied.synchronize()\n",
        "",
        "batches_arrive",
    ),
    Fault(
        "memory given back while the failed pass is held",
        "model/windows",
        "                raise\n        # Not",
        "                raise\n            release_cached_memory(device)\n        # Not",
        "failed_pass",
    ),
    Fault(
        "scaler of another precision loaded",
        "train/learner",
        "if scaler and self.scaler.is_enabled():",
        "if scaler is not None:",
        "another_precision",
    ),
    Fault(
        "out of memory in a step not caught",
        "train/learner",
        "if not is_out_of_memory(error):",
        "if True:",
        "does_not_fit",
    ),
    # Several processes.
    Fault(
        "statistics of each process its own",
        "train/learner",
        "        self.group.share_buffers(self.kept)\n",
        "",
        "two_processes_validate",
        "tests/core/train/test_learner.py",
    ),
    Fault(
        "disconnecting waits for the others after an error",
        "compute/distributed",
        "            _abort(device)\n            raise\n",
        "            dist.destroy_process_group()\n            raise\n",
        "error_in_one_process",
        "tests/core/compute/test_distributed.py",
    ),
)


def main() -> None:
    numbers = [int(number) for number in sys.argv[1:]] or range(len(FAULTS))
    print("| planted fault | the tests |\n|---|---|")
    for number in numbers:
        print(f"| {FAULTS[number].name} | {_outcome(FAULTS[number])} |", flush=True)


def _outcome(fault: Fault) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(REPOSITORY / "src", source)
        module = source / "brats_cli/core" / f"{fault.module}.py"
        text = module.read_text()
        assert fault.old in text, f"{fault.name}: {fault.module} has changed"
        module.write_text(text.replace(fault.old, fault.new) if fault.old else text)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-k", fault.tests, fault.file],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(source)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 0:
        return "pass"
    if done.returncode != 1:
        return f"do not run: {done.stdout[-300:]}"
    told = [line[4:] for line in done.stdout.splitlines() if line.startswith("E   ")]
    return "caught: " + " ".join(told[0].split())[:120].replace("|", "/")


if __name__ == "__main__":
    main()
