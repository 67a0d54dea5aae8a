"""How long it takes to find 10,000 cases, beside a bare walk over the same files.

    python benchmarks/bench_listing.py

Aim: at most 5 s. The bare walk (`Path.rglob`) only lists names; it knows no case.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from brats_cli.core.data.finding import find_cases

CASES, RUNS = 10_000, 5
SUFFIXES = ("t1n", "t1c", "t2w", "t2f", "seg")


def seconds(task: Callable[[], int], expected: int) -> float:
    started = time.perf_counter()
    assert task() == expected
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(CASES):
            case = root / f"BraTS-GLI-{number:05}-000"
            case.mkdir()
            for suffix in SUFFIXES:
                (case / f"{case.name}-{suffix}.nii.gz").touch()
        ours, walk = [], []
        for _ in range(RUNS):  # in turn, so that both meet the same machine
            ours.append(seconds(lambda: len(find_cases(root)), CASES))
            walk.append(
                seconds(lambda: sum(1 for _ in root.rglob("*.nii.gz")), CASES * len(SUFFIXES))
            )
    first, second = statistics.median(ours), statistics.median(walk)
    print(f"find_cases  {first:6.2f} s  ({min(ours):.2f}-{max(ours):.2f})  aim: 5 s")
    print(f"bare walk   {second:6.2f} s  ({min(walk):.2f}-{max(walk):.2f})")
    print(f"ratio       {first / second:6.2f}")


if __name__ == "__main__":
    main()
