"""`brats export`: write the network of a checkpoint as ONNX."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .. import console
from .options import Json, Overwrite, output


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Run folder or checkpoint.")],
    output: Annotated[Path, output("ONNX file to write.")] = Path("model.onnx"),
    as_json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Export the network of a checkpoint as ONNX, for programs without PyTorch.

    The file takes z-scores (batch, modality, x, y, z) of any size whose sides are multiples of
    the number printed, and gives the logits of whole tumour, tumour core and enhancing tumour.
    Preparation, windows and thresholds are up to the program; they are recorded in the file's
    metadata. onnxruntime checks the result against PyTorch. TorchScript is not written: PyTorch
    has deprecated it, and loading it runs code.

    Example: brats export runs/first -o model.onnx
    """
    from ..core.model import onnx_export

    made = onnx_export.export(model, output=output, overwrite=overwrite)
    if as_json:
        console.result_json({**asdict(made), "file": str(made.file)})
        return
    console.table(
        ["file", "opset", "inputs", "outputs", "multiple of", "largest difference"],
        [
            [
                str(made.file),
                str(made.opset),
                " ".join(made.inputs),
                " ".join(made.outputs),
                str(made.multiple),
                f"{made.difference:.1e}",
            ]
        ],
        left=("inputs", "outputs"),
    )
