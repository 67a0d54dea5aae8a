"""What each way of keeping prepared cases costs: its size, and the time to read a random patch.

    python benchmarks/bench_store.py [DATA]

Every way reads the same patches, images and labels, in one process with the files in memory. The
ways take turns, and the shortest of all rounds counts, which other work disturbs least.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from brats_cli.core.data.finding import find_cases
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.prepared.store import Store

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "cases"
EDGES, ROUNDS, PATCHES = (128, 64), 12, 36

MAPPED = {"float16, mapped": np.float16, "float32, mapped": np.float32}
LAST = "float16, mapped, channels last"
PACKED = {
    "Blosc2, LZ4 5": (blosc2.Codec.LZ4, 5),
    "Blosc2, LZ4HC 3 (brats)": (blosc2.Codec.LZ4HC, 3),
    "Blosc2, LZ4HC 9": (blosc2.Codec.LZ4HC, 9),
    "Blosc2, Zstandard 3": (blosc2.Codec.ZSTD, 3),
}
WAYS = (*MAPPED, LAST, *PACKED)


def write(array: Any, path: Path, way: str) -> None:
    if way in PACKED:
        codec, level = PACKED[way]
        grid = {
            name: (*array.shape[:-3], *(min(edge, side) for side in array.shape[-3:]))
            for name, edge in (("chunks", 64), ("blocks", 32))
        }
        packing = {"codec": codec, "clevel": level, "nthreads": 1}
        path.write_bytes(blosc2.asarray(array, **grid, cparams=packing).to_cframe())
        return
    if array.ndim == 4:
        array = np.moveaxis(array, 0, -1) if way == LAST else array.astype(MAPPED[way])
    with path.open("wb") as file:
        np.save(file, np.ascontiguousarray(array))


def read(path: Path, way: str, box: tuple[slice, ...]) -> Any:
    if way in PACKED:
        return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})[(..., *box)]
    box = box if way == LAST else (..., *box)
    return np.ascontiguousarray(np.load(path, mmap_mode="r")[box])


def patches(shapes: list[tuple[int, ...]], edge: int) -> Iterator[tuple[int, tuple[slice, ...]]]:
    random = np.random.default_rng(edge)
    for number in range(PATCHES):
        case = number % len(shapes)
        starts = [int(random.integers(max(1, side - edge + 1))) for side in shapes[case]]
        yield case, tuple(slice(start, start + edge) for start in starts)


def seconds(folder: Path, way: str, shapes: list[tuple[int, ...]], edge: int) -> float:
    """Mean time to read a patch."""
    started = time.perf_counter()
    for case, box in patches(shapes, edge):
        for kind in ("images", "labels"):
            read(folder / f"{way} {case} {kind}", way, box)
    return (time.perf_counter() - started) / PATCHES


def size(files: Iterator[Path]) -> float:
    return sum(file.stat().st_size for file in files) / 1e6


def main() -> None:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    cases = find_cases(data)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Any one scheme will do where only sizes and times matter.
        scheme = SCHEMES["brats2015"]
        plan = Store(folder / "store", scheme).plan(
            [replace(case, scheme=scheme) for case in cases]
        )
        list(plan.run(workers=2))
        shapes = []
        for number, case in enumerate(plan.cases(plan.places)):
            shapes.append(case.labels.shape)
            for way in WAYS:
                write(case.images[:], folder / f"{way} {number} images", way)
                write(case.labels[:], folder / f"{way} {number} labels", way)
        shortest = {(way, edge): float("inf") for way in WAYS for edge in EDGES}
        for _ in range(ROUNDS):
            for way, edge in shortest:
                taken = seconds(folder, way, shapes, edge)
                shortest[way, edge] = min(shortest[way, edge], taken)
        sizes = {way: size(folder.glob(f"{way} *")) for way in WAYS}
    source = size(data.rglob("*.nii.gz"))
    print(f"{len(cases)} cases of {source:.0f} MB | size | of .nii.gz | patch of 128 | of 64")
    for way in WAYS:
        times = " | ".join(f"{shortest[way, edge] * 1e3:.1f} ms" for edge in EDGES)
        print(f"{way} | {sizes[way]:.0f} MB | {sizes[way] / source:.2f} | {times}")


if __name__ == "__main__":
    main()
