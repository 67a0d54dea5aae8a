"""What scores cost: brats beside medpy, MONAI, surface-distance and panoptica, in one run.

    python benchmarks/bench_evaluate.py [--pairs N] [--copies N] [DATA]

In process, on one core, everybody scores WT, TC and ET of the same label maps and computes all the
metrics they have; the medians over the pairs count. Then the lesion-wise scores of 2023 from files
with all that the challenge's code reports beside them, against its steps written down again here
with the libraries it calls, because the code itself is not on the package index. Then whole cases
from files, in two processes.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import cc3d
import nibabel as nib
import numpy as np
import scipy.ndimage
from medpy.metric import binary

from brats_cli.core.data.labels import REGIONS, SCHEMES
from brats_cli.core.images.grid import bounding_box
from brats_cli.core.images.nifti import read_labels
from brats_cli.core.score.lesions import lesion_rules, score_lesions
from brats_cli.core.score.metrics import score
from brats_cli.core.score.pairing import Pair, Scoring, read_pair
from brats_cli.core.score.surfaces import weighted_hausdorff95_mm

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "pairs"
SPACING = (1.0, 1.0, 1.0)
TARGETS = {"medpy": 60, "MONAI": 5, "surface-distance": 2, "panoptica": 2, "BraTS 2023 code": 20}
Masks = dict[str, tuple[Any, Any]]


def prepare_peers() -> Any:
    """surface-distance 0.1 was written for NumPy 1 and an older scipy."""
    np.Inf = np.inf  # type: ignore[attr-defined]
    for name in ("filters", "morphology"):
        if not hasattr(scipy.ndimage, name):
            setattr(scipy.ndimage, name, scipy.ndimage)
    import surface_distance
    import torch

    torch.set_num_threads(1)
    return surface_distance


surface_distance = prepare_peers()


def by_brats(reference: Any, predicted: Any) -> None:
    """From label maps, as `brats evaluate` does: cut to the tumours, then by region."""
    box = bounding_box((reference | predicted) != 0)
    outside = reference.size - reference[box].size
    for region in SCHEMES["brats2020"].regions:
        masks = region.mask(reference[box]), region.mask(predicted[box])
        score(*masks, SPACING, outside=outside)


def by_medpy(masks: Masks) -> None:
    for reference, predicted in masks.values():
        for overlap in ("dc", "jc", "sensitivity", "specificity", "precision"):
            getattr(binary, overlap)(predicted, reference)
        for distance in ("hd", "hd95", "assd"):
            getattr(binary, distance)(predicted, reference, voxelspacing=SPACING)


def by_monai(masks: Masks) -> None:
    import torch
    from monai import metrics

    there, found = (
        torch.from_numpy(np.stack([pair[side] for pair in masks.values()])[None]) for side in (0, 1)
    )
    metrics.compute_dice(found, there)
    metrics.compute_iou(found, there)
    metrics.get_confusion_matrix(found, there)
    for percentile in (None, 95):
        metrics.compute_hausdorff_distance(
            found, there, include_background=True, percentile=percentile, spacing=SPACING
        )
    metrics.compute_average_surface_distance(
        found, there, include_background=True, symmetric=True, spacing=SPACING
    )
    metrics.compute_surface_dice(
        found, there, [1.0] * len(masks), include_background=True, spacing=SPACING
    )


def by_surface_distance(masks: Masks) -> None:
    for reference, predicted in masks.values():
        surface_distance.compute_dice_coefficient(reference, predicted)
        found = surface_distance.compute_surface_distances(reference, predicted, SPACING)
        for percentile in (95, 100):
            surface_distance.compute_robust_hausdorff(found, percentile)
        surface_distance.compute_average_surface_distance(found)
        surface_distance.compute_surface_dice_at_tolerance(found, 1.0)


def panoptica_evaluator() -> Any:
    import panoptica

    panoptica.disable_citation_reminder()
    metric = panoptica.Metric
    return panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.MATCHED_INSTANCE,
        instance_metrics=[
            *(metric.DSC, metric.IOU, metric.ASSD, metric.HD, metric.HD95, metric.NSD)
        ],
        global_metrics=[],
        verbose=False,
    )


def by_panoptica(masks: Masks, evaluator: Any) -> None:
    for reference, predicted in masks.values():
        evaluator.evaluate(predicted.astype(np.uint8), reference.astype(np.uint8), verbose=False)


# --- lesions -----------------------------------------------------------------------------------


def lesions_by_brats(reference: Path, predicted: Path) -> dict[str, float]:
    """What the challenge's code reports: of regions Dice, HD95 and specificity, and of lesions."""
    expert, guess = read_pair(Pair("case", predicted, reference), Scoring())
    grid = expert.volume.grid
    box = bounding_box((expert.volume.data | guess.volume.data) != 0, margin=6)
    expert, guess = expert.cut(box), guess.cut(box)
    found = {}
    for region in REGIONS:
        masks = expert.region(region), guess.region(region)
        for metric in (binary.dc, binary.sensitivity, binary.specificity):
            metric(masks[1], masks[0])
        weighted_hausdorff95_mm(*masks, SPACING)
        rules = lesion_rules("2023", "GLI", region, grid)
        found[region] = score_lesions(*masks, rules, expert.volume.grid).lesion_dice
    return found


def lesions_by_challenge(reference: Path, predicted: Path) -> dict[str, float]:
    """What the BraTS 2023 code does for GLI, step by step, with the labels of these files."""
    shape = scipy.ndimage.generate_binary_structure(3, 2)
    found = {}
    for region in SCHEMES["brats2020"].regions:
        masks = []
        for path in (predicted, reference):
            values = nib.load(path).get_fdata()
            for label in region.labels:
                np.place(values, values == label, -1)
            np.place(values, values > 0, 0)
            np.place(values, values < 0, 1)
            masks.append(values)
        guess, expert = masks
        dice_of(guess, expert)
        hd95_of(expert.astype(int), guess.astype(int))
        overlap = np.where(guess == expert, 1, 0)
        overlap[guess == 1].sum()
        np.count_nonzero((guess != 1) & (expert != 1))
        lesions_cc = cc3d.connected_components(expert, connectivity=26)
        parts = cc3d.connected_components(guess, connectivity=26)
        grown = scipy.ndimage.binary_dilation(expert, structure=shape, iterations=3)
        grown_cc = cc3d.connected_components(grown, connectivity=26)
        lesions = np.zeros_like(grown_cc)
        for number in range(1, int(grown_cc.max()) + 1):
            one = np.zeros_like(grown_cc)
            one[grown_cc == number] = 1
            one = lesions_cc * one
            np.place(one, one > 0, number)
            lesions += one.astype(lesions.dtype)
        hits: list[int] = []
        dice = []
        for number in range(1, int(lesions.max()) + 1):
            lesion = np.zeros_like(lesions)
            lesion[lesions == number] = 1
            near = scipy.ndimage.binary_dilation(lesion, structure=shape, iterations=3)
            hit = np.unique(np.copy(parts) * near)
            hit = hit[hit != 0]
            hits += hit.tolist()
            united = np.copy(parts)
            united[np.isin(united, hit, invert=True)] = 0
            united[np.isin(united, hit)] = 1
            common = dice_of(united, lesion)
            hd95_of(lesion, united)
            if lesion.sum() > 50:
                dice.append(common)
        invented = np.unique(parts[np.isin(parts, [*hits, 0], invert=True)])
        found[region.name] = sum(dice) / (len(dice) + len(invented))
    return found


def dice_of(first: Any, second: Any) -> float:
    first, second = first.astype(bool), second.astype(bool)
    return 2.0 * np.logical_and(first, second).sum() / (first.sum() + second.sum())


def hd95_of(reference: Any, predicted: Any) -> float:
    masks = reference.astype(bool), predicted.astype(bool)
    if not masks[1].any():
        return np.inf
    found = surface_distance.compute_surface_distances(*masks, SPACING)
    return surface_distance.compute_robust_hausdorff(found, 95)


# --- runs --------------------------------------------------------------------------------------


def seconds(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    started = time.process_time()
    found = work(*arguments)
    return time.process_time() - started, found


def in_process(pairs: list[tuple[Path, Path]]) -> dict[str, list[float]]:
    """CPU seconds of everybody for each pair, in turn."""
    evaluator = panoptica_evaluator()
    taken: dict[str, list[float]] = {}
    lesion_dice: list[dict[str, float]] = []
    for reference_path, predicted_path in pairs:
        reference, predicted = (read_labels(path).data for path in (reference_path, predicted_path))
        regions = SCHEMES["brats2020"].regions
        masks = {each.name: (each.mask(reference), each.mask(predicted)) for each in regions}
        assert list(masks) == list(REGIONS)
        works: dict[str, Callable[[], Any]] = {
            "brats": lambda r=reference, p=predicted: by_brats(r, p),
            "medpy": lambda m=masks: by_medpy(m),
            "MONAI": lambda m=masks: by_monai(m),
            "surface-distance": lambda m=masks: by_surface_distance(m),
            "panoptica": lambda m=masks: by_panoptica(m, evaluator),
        }
        for name, work in works.items():
            taken.setdefault(name, []).append(seconds(work)[0])
        paths = (reference_path, predicted_path)
        for name, lesions in (
            ("brats, lesions", lesions_by_brats),
            ("BraTS 2023 code", lesions_by_challenge),
        ):
            time_taken, found = seconds(lesions, *paths)
            taken.setdefault(name, []).append(time_taken)
            lesion_dice.append(found)
        ours, theirs = lesion_dice[-2:]
        assert all(abs(ours[region] - theirs[region]) < 1e-9 for region in theirs)
    return taken


FROM_FILES = """
import sys, time, resource
started = time.perf_counter()
import brats_cli
from pathlib import Path
marks = []
def note(matching, done):
    marks.append(time.perf_counter() - started)
if __name__ == "__main__":
    brats_cli.evaluate(sys.argv[1], sys.argv[2], workers=2, on_progress=note)
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(marks[0], marks[1], marks[-1], len(marks) - 1, most)
"""


def from_files(pairs: list[tuple[Path, Path]], copies: int) -> tuple[float, ...]:
    """Seconds to the first pair, to its scores and to the last ones, cases, and MiB of a worker."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for copy in range(copies):
            for number, paths in enumerate(pairs):
                for side, path in zip(("ref", "pred"), paths, strict=True):
                    name = f"BraTS20_Training_{copy * len(pairs) + number:03}.nii.gz"
                    (folder / side).mkdir(exist_ok=True)
                    (folder / side / name).symlink_to(path.resolve())
        script = folder / "run.py"
        script.write_text(FROM_FILES)
        command = [sys.executable, str(script), str(folder / "pred"), str(folder / "ref")]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(map(float, made.stdout.split()))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("data", nargs="?", type=Path, default=DATA)
    options.add_argument("--pairs", type=int, default=10, help="pairs scored in process")
    options.add_argument("--copies", type=int, default=6, help="copies of all, from files")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    pairs = [
        (given.data / "truth" / f"{path.name.removesuffix('.nii.gz')}_seg.nii.gz", path)
        for model in ("model_a", "model_b")
        for path in sorted((given.data / model).glob("*.nii.gz"))
    ]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}\n")
    taken = in_process(pairs[:: max(1, len(pairs) // given.pairs)][: given.pairs])
    print("| | CPU seconds per case, median | least | most | brats is | target |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, times in taken.items():
        ours = taken["brats, lesions" if name == "BraTS 2023 code" else "brats"]
        ratio = f"{statistics.median(times) / statistics.median(ours):.1f} x"
        target = f"{TARGETS[name]} x" if name in TARGETS else ""
        print(
            f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} | {max(times):.2f} | "
            f"{ratio if name in TARGETS else ''} | {target} |"
        )
    ready, first, last, cases, memory = from_files(pairs, given.copies)
    print(
        f"\nFrom files, 2 processes: pairs known after {ready:.2f} s, first scores after ", end=""
    )
    print(
        f"{first:.2f} s, then {(cases - 1) / (last - first):.1f} cases/s of {cases:.0f}, ", end=""
    )
    print(f"a worker takes {memory:.0f} MiB at most.")
    print(f"This process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB.")


if __name__ == "__main__":
    main()
