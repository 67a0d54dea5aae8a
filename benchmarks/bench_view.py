"""How long `brats view` takes from the command line, and how soon its page is drawn.

    python benchmarks/bench_view.py CASE [SEG]

With SEG, the prediction is compared with the case's own label map. Wall time, CPU time and memory
are those of the whole command. The page is opened in a headless Chromium that draws in software,
if there is one; a browser with a GPU is faster.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browser import Browser, chromium

TRIES = 3


def run(words: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak memory in MB of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "brats_cli", *words], check=True, capture_output=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, after.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", type=Path)
    parser.add_argument("seg", type=Path, nargs="?")
    arguments = parser.parse_args()
    words = ["view", str(arguments.case), *(["--seg", str(arguments.seg)] if arguments.seg else [])]
    print(f"{len(os.sched_getaffinity(0))} CPUs, load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("view.png", "view.html"):
            path = Path(folder) / name
            tries = [run([*words, "-o", str(path), "--overwrite"]) for _ in range(TRIES)]
            wall, cpu, memory = min(tries)
            print(
                f"{name:9}  {wall:5.2f} s  {cpu:5.2f} CPU s  {memory:5.0f} MB  "
                f"{path.stat().st_size / 1e6:5.2f} MB on disk"
            )
        if chromium() is None:
            print("no Chromium, so that the page is not opened")
            return
        with Browser() as browser:
            for _ in range(TRIES):
                start = time.perf_counter()
                page = browser.open(Path(folder) / "view.html", 1500, 950)
                state = page.ready()
                print(f"page {state} after {time.perf_counter() - start:.2f} s")
                page.close()


if __name__ == "__main__":
    main()
