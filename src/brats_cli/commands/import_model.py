"""`brats import`: make a checkpoint of a network that was trained elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import console
from .options import Json, Overwrite, output, scheme


def import_model(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help="The file or folder that was downloaded."),
    ],
    output: Annotated[
        Path, output("Checkpoint to write; for several folds of nnU-Net a folder.")
    ] = Path("model.pt"),
    fold: Annotated[
        str, typer.Option(metavar="K", help="Fold of nnU-Net to import, or all.")
    ] = "all",
    modalities: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Input channels in the order of the network, such as flair,t1ce,t1,t2, if its "
            "files do not state it.",
        ),
    ] = None,
    labels: Annotated[
        Any, scheme("Label scheme of predictions; default: that of the network's data.", "--labels")
    ] = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Import a network that was trained elsewhere, as a checkpoint for predict and train --init.

    SRC may be MONAI's bundle brats_mri_segmentation (its folder, or model.pt alone), a model.pt of
    Auto3DSeg's SegResNetDS, or a folder of nnU-Net v2 with dataset.json, plans.json and fold_0.
    brats recognises it by content, prepares images as it was trained, and runs no code that the
    files contain. Check the licence of what you download.

    Example: brats import brats_mri_segmentation/ -o model.pt

    Example: brats import nnUNetTrainer__nnUNetPlans__3d_fullres/ -o runs/nnunet
    """
    from ..core.model import imported

    found = imported.import_model(
        source,
        output=output,
        fold=fold,
        modalities=modalities,
        labels=labels,
        overwrite=overwrite,
    )
    if as_json:
        console.result_json([{**asdict(each), "file": str(each.file)} for each in found])
        return
    console.table(
        ["file", "origin", "channels", "labels", "window", "weights", "licence"],
        [
            [
                str(each.file),
                f"{each.kind}: {each.name}",
                " ".join(each.modalities),
                each.labels,
                "x".join(map(str, each.window)),
                f"{each.parameters / 1e6:.1f} million",
                each.licence,
            ]
            for each in found
        ],
        left=("origin", "channels", "labels", "licence"),
    )
