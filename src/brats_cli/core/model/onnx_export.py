"""`export`: a checkpoint's network as ONNX, for programs that have no PyTorch."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, ConfigError
from ..writing import require_writable, whole_file
from .checkpoint import Checkpoint
from .network import Network
from .run_folder import checkpoint_path

OPSET = 18
"""Version of ONNX's operators that is written; onnxruntime has read it since 1.14 (2023)."""

TOLERANCE = 1e-3
"""Most that a logit of the exported network may differ from that of the checkpoint's."""


@dataclass(frozen=True)
class ExportedModel:
    """A network that was exported.

    Attributes:
        file: The ONNX file.
        opset: Version of its operators.
        inputs: Its input channels: z-scores of these modalities, (batch, C, X, Y, Z).
        outputs: Its output channels: logits of these regions, (batch, R, X, Y, Z).
        multiple: Sides of the input have to be multiples of this, in voxels.
        difference: Largest difference of a logit from PyTorch's, on a random image.
    """

    file: Path
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    multiple: int
    difference: float


def export(
    model: str | Path, *, output: str | Path = "model.onnx", overwrite: bool = False
) -> ExportedModel:
    """Write the network of a checkpoint as ONNX, with sizes that are free, and check it.

    Args:
        model: Run folder or checkpoint.
        output: The ONNX file, whose metadata hold modalities, regions, thresholds and
            preparation.
        overwrite: Replace an output that exists.

    Raises:
        ConfigError: If onnx or onnxruntime are missing, or another format is asked for.
        CheckpointError: If the network cannot be exported, or gives other values then.
        BratsError: If a file cannot be read or written.
    """
    target = Path(output)
    _require_onnx(target)
    require_writable(target, overwrite=overwrite)
    path = checkpoint_path(Path(model))
    checkpoint = Checkpoint.load(path)
    network = checkpoint.network()
    multiple = network.config.multiple
    with whole_file(target, overwrite=overwrite) as partial:
        _write(network, checkpoint, partial)
        difference = _difference(network, checkpoint, partial)
        if not difference <= TOLERANCE:  # NaN must fail too
            raise CheckpointError(
                f"the exported network differs from {path} by {difference:.2g} in a logit",
                hint="onnxruntime computes something else: use the checkpoint itself",
            )
    return ExportedModel(
        target, OPSET, checkpoint.modalities, checkpoint.regions, multiple, difference
    )


def _require_onnx(target: Path) -> None:
    if target.suffix in (".ts", ".pt", ".pth"):
        raise ConfigError(
            f"brats exports no TorchScript ({target.name}): PyTorch has deprecated it, and loading "
            "it runs code",
            hint="give a file whose name ends in .onnx",
        )
    if target.suffix != ".onnx":
        raise ConfigError(f"{target} is no ONNX file", hint="give a name that ends in .onnx")
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"exporting needs {error.name}, which is not installed",
            hint="pip install 'brats-cli[onnx]'",
        ) from error
    del onnx


def _write(network: Network, checkpoint: Checkpoint, path: Path) -> None:
    import onnx

    edge = _edge(network, checkpoint, 1)
    example = torch.zeros(1, len(checkpoint.modalities), *edge)
    axes = {0: "batch", 2: "x", 3: "y", 4: "z"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, on its inner workings
            torch.onnx.export(
                network,
                (example,),
                str(path),
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": axes, "logits": axes},
                opset_version=OPSET,
                dynamo=False,
                external_data=False,
            )
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"PyTorch cannot export this network: {str(error).splitlines()[0][:200]}",
            hint="use the checkpoint itself, with brats predict or brats_cli.predict",
        ) from error
    content = onnx.load(str(path))
    for name, value in _metadata(checkpoint).items():
        entry = content.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    onnx.checker.check_model(content)
    onnx.save(content, str(path))


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """All that whoever applies the network has to know."""
    recipe, sliding = checkpoint.recipe, checkpoint.sliding
    return {
        "format": "brats-onnx/1",
        "modalities": list(checkpoint.modalities),
        "regions": list(checkpoint.regions),
        "labels": checkpoint.labels,
        "decision": checkpoint.decision.content() if checkpoint.decision else {},
        "preparation": recipe.content() if recipe else checkpoint.preparation,
        "inference": sliding.content() if sliding else {},
        "patch_size": checkpoint.patch_size,
        "spacing_mm": checkpoint.spacing_mm,
        "origin": dict(checkpoint.origin),
        "version": checkpoint.version,
    }


def _difference(network: Network, checkpoint: Checkpoint, path: Path) -> float:
    """Largest difference of a logit between PyTorch and onnxruntime, on random z-scores.

    Of another size than the one that was traced, so that what was fixed by mistake shows.
    """
    import onnxruntime

    edge = _edge(network, checkpoint, 2)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, len(checkpoint.modalities), *edge, generator=generator)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    with torch.inference_mode():
        wanted = network(images)
    assert isinstance(wanted, torch.Tensor)  # in evaluation mode there is one output
    return float((found - wanted).abs().max())


def _edge(network: Network, checkpoint: Checkpoint, times: int) -> tuple[int, int, int]:
    """Sides of a small image that the network takes, larger for more `times`."""
    first = network.config.input_size(min(32, checkpoint.patch_size))
    longer = network.config.input_size(first + times * network.config.multiple)
    return (first, longer, first)
