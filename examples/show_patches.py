"""Draw six augmented training patches, all four modalities, with the label's outlines.

    pip install matplotlib
    python examples/show_patches.py splits.yaml -c examples/cpu.yaml -o patches.png

What the network is shown, so that one can see whether augmentation is plausible.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import torch
import torchio as tio

from brats_cli.core.data.splits import Split
from brats_cli.core.prepared.store import Store, training_scheme
from brats_cli.core.train.augment import augment
from brats_cli.core.train.config import load_config
from brats_cli.core.train.sampling import Patches

mpl.use("Agg")
import matplotlib.pyplot as plt

PATCHES = 6
COLOURS = {"WT": "tab:green", "TC": "tab:red", "ET": "tab:blue"}


def main() -> None:
    """Prepare the training cases of the first fold, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("splits", type=Path)
    parser.add_argument("-c", "--config", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("patches.png"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    config = load_config(given.config)
    split = Split.load(given.splits)
    cases = split.cases()
    used = [cases[case_id] for case_id in split.fold(0).train]
    store = Store(given.splits.parent / "brats-store", training_scheme(used), config.modalities)
    plan = store.plan(used)
    list(plan.run(workers=1))
    patches = Patches(
        plan.cases(plan.places),
        edge=config.patch_size,
        tumour_share=1.0,
        seed=given.seed,
    )
    drawn = [patches[index] for index in range(PATCHES)]
    images, labels = augment(
        torch.stack([patch["images"][tio.DATA] for patch in drawn]),
        torch.stack([patch["labels"][tio.DATA][0] for patch in drawn]),
        config.augmentation,
        torch.Generator().manual_seed(given.seed),
    )
    rows = len(config.modalities)
    figure, axes = plt.subplots(rows, PATCHES, figsize=(2 * PATCHES, 2 * rows), squeeze=False)
    middle = config.patch_size // 2
    for column, (image, label) in enumerate(zip(images, labels, strict=True)):
        for row, name in enumerate(config.modalities):
            axis = axes[row, column]
            axis.imshow(image[row, :, :, middle].T, cmap="gray", origin="lower", vmin=-2, vmax=4)
            for region, colour in COLOURS.items():
                mask = store.scheme.region(region).mask(label[:, :, middle].numpy())
                if mask.any() and not mask.all():
                    axis.contour(mask.T, [0.5], colors=colour, linewidths=0.8)
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(name)
            if row == 0:
                axis.set_title(drawn[column]["case_id"], fontsize=6)
    figure.tight_layout(pad=0.3)
    figure.savefig(given.output, dpi=110)


if __name__ == "__main__":
    main()
