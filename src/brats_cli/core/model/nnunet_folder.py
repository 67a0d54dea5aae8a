"""Networks of nnU-Net v2 as its trainings leave them, as checkpoints of brats.

A folder `nnUNetTrainer__nnUNetPlans__3d_fullres` holds `dataset.json` (channels and labels),
`plans.json` (network, patch, preparation) and a network per fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.dataset_json import declared_schemes
from ..errors import CheckpointError, ConfigError
from ..prepared.recipe import Recipe
from .checkpoint import Checkpoint
from .config import NnunetConfig
from .decision import Decision
from .foreign import (
    Source,
    by_inclusion,
    checkpoint_of,
    holds_tensors,
    modalities_of,
    read_object,
    reordered,
    require_fitting,
)
from .nnunet import made, without_aliases
from .sliding import SlidingWindow

NNUNET_FOLDER = "nnU-Net v2"

_CLASSES = ("PlainConvUNet", "ResidualEncoderUNet")

_AXES = "SPL"
"""Directions of z, y and x, in which nnU-Net reads BraTS's images (LPS)."""


def is_nnunet(content: object) -> bool:
    """Whether a file is a checkpoint of nnU-Net v2."""
    return (
        isinstance(content, Mapping)
        and isinstance(content.get("init_args"), Mapping)
        and holds_tensors(content.get("network_weights"))
    )


def from_nnunet(source: Source) -> Checkpoint:
    """The checkpoint of a fold of nnU-Net v2.

    Raises:
        CheckpointError: If it is of another task, or trained or prepared in a way that brats does
            not have.
    """
    folder = source.folder
    dataset = read_object(folder / "dataset.json") if folder else {}
    plans = read_object(folder / "plans.json") if folder else {}
    if not folder or not dataset or not plans:
        raise CheckpointError(
            f"{source.weights} is a fold of nnU-Net v2, without dataset.json and plans.json in the "
            "folder above it",
            hint="give the folder that holds them and fold_0, fold_1 and so on",
        )
    names = dataset.get("channel_names") or dataset.get("modality") or {}
    modalities = modalities_of(_by_number(names), folder)
    order, outputs = _outputs(dataset, folder)
    configuration = _configuration(plans, source)
    network = _network(configuration, outputs, source)
    weights = _weights(network, source, order)
    axes = _transposed(plans, source)
    mirror = source.content.get("inference_allowed_mirroring_axes")
    return checkpoint_of(
        network,
        weights,
        modalities=modalities,
        labels="brats2023",
        multiple=_multiple(network),
        recipe=Recipe.of(
            {
                "orientation": axes,
                "crop": "nonzero",
                "over": _over(configuration, len(modalities), source),
                "spacing_mm": configuration.get("spacing"),
            }
        ),
        sliding=SlidingWindow.of(
            {
                "rule": "nnunet",
                "window": configuration.get("patch_size"),
                "mirror_axes": mirror if isinstance(mirror, list | tuple) else (),
            }
        ),
        origin=source.origin(NNUNET_FOLDER, str(plans.get("dataset_name", folder.name))),
        epoch=source.content.get("current_epoch", 0),
        decision=Decision(rule="most likely") if outputs == "labels" else None,
    )


def _by_number(names: Any) -> list[object]:
    """The names of channels, in order."""
    try:
        return [names[key] for key in sorted(names, key=int)]
    except (TypeError, ValueError):
        return []


def _outputs(dataset: Mapping[str, Any], folder: Path) -> tuple[list[int], str]:
    """The places among the outputs of WT, TC and ET; or of background, ED, NCR and ET."""
    labels = dataset.get("labels")
    if not isinstance(labels, Mapping):
        raise CheckpointError(f"{folder}/dataset.json names no labels", hint="is it nnU-Net v2's?")
    named = {name: value for name, value in labels.items() if value not in (0, [0])}
    if any(isinstance(value, list) for value in named.values()):
        sets = [
            frozenset(value if isinstance(value, list) else [value]) for value in named.values()
        ]
        return by_inclusion(sets, folder), "regions"
    schemes = declared_schemes(dataset, "nnunet").schemes
    tissues = {tissue: value for value, tissue in schemes[0].tissues.items()} if schemes else {}
    if set(tissues) != {"ED", "NCR", "ET"} or len(named) != len(tissues):
        words = ", ".join(f"{value} {name}" for name, value in labels.items())
        raise CheckpointError(
            f"{folder} segments {words}, not edema, necrosis and enhancing tumour",
            hint="brats predicts whole tumour, tumour core and enhancing tumour",
        )
    # An output per label, in order of value.
    values = sorted(int(value) for value in tissues.values())
    return [0, *(1 + values.index(tissues[name]) for name in ("ED", "NCR", "ET"))], "labels"


def _configuration(plans: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """The configuration that was trained, with what it inherits."""
    name = source.content["init_args"].get("configuration")
    known = plans.get("configurations")
    known = known if isinstance(known, Mapping) else {}
    found: dict[str, Any] = {}
    wanted = name
    for _ in range(len(known)):
        settings = known.get(wanted)
        if not isinstance(settings, Mapping):
            break
        found = {**settings, **found}
        wanted = settings.get("inherits_from")
        if wanted is None:
            break
    if len(found.get("patch_size") or ()) != 3 or found.get("previous_stage"):
        raise CheckpointError(
            f"{source.weights} was trained in the configuration {name}",
            hint="brats imports 3d_fullres and 3d_lowres: 2d has no third dimension, and a "
            "cascade needs two networks",
        )
    return found


def _network(configuration: Mapping[str, Any], outputs: str, source: Source) -> NnunetConfig:
    architecture = configuration.get("architecture") or _old_architecture(configuration)
    name = str(architecture.get("network_class_name")).rpartition(".")[2]
    settings = architecture.get("arch_kwargs")
    settings = settings if isinstance(settings, Mapping) else {}
    if name not in _CLASSES or settings.get("nonlin_first") or settings.get("dropout_op"):
        raise CheckpointError(
            f"{source.weights} holds the network {name}, which brats does not import",
            hint=f"brats imports nnU-Net's {' and '.join(_CLASSES)} as its planner makes them",
        )

    def of(kind: str, known: Mapping[str, str]) -> str:
        return known.get(str(settings.get(kind)).rpartition(".")[2], "none")

    stages = settings.get("n_stages")
    try:
        return NnunetConfig.model_validate(
            {
                "name": f"nnunet/{name}",
                "features": settings.get("features_per_stage"),
                "kernels": settings.get("kernel_sizes"),
                "strides": _triples(settings.get("strides")),
                "blocks": _each(
                    settings.get("n_conv_per_stage", settings.get("n_blocks_per_stage")), stages
                ),
                "decoder_blocks": _each(
                    settings.get("n_conv_per_stage_decoder"), (stages or 0) - 1
                ),
                "bias": settings.get("conv_bias", False),
                "norm": of("norm_op", {"InstanceNorm3d": "instance", "BatchNorm3d": "batch"}),
                "eps": (settings.get("norm_op_kwargs") or {}).get("eps", 1e-5),
                "activation": of("nonlin", {"LeakyReLU": "leaky_relu", "ReLU": "relu"}),
                "outputs": outputs,
            }
        )
    except (TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"the network in {source.folder}/plans.json is none that brats knows",
            hint=f"brats imports nnU-Net's {' and '.join(_CLASSES)} as its planner makes them",
        ) from error


def _old_architecture(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The network in the form of newer plans; those of before 2024 spread it."""
    convolutions = configuration.get("n_conv_per_stage_encoder") or []
    levels = range(len(convolutions))
    first = configuration.get("UNet_base_num_features", 0)
    most = configuration.get("unet_max_num_features", 0)
    return {
        "network_class_name": configuration.get("UNet_class_name"),
        "arch_kwargs": {
            "n_stages": len(convolutions),
            "features_per_stage": [min(first * 2**level, most) for level in levels],
            "kernel_sizes": configuration.get("conv_kernel_sizes"),
            "strides": configuration.get("pool_op_kernel_sizes"),
            "n_conv_per_stage": convolutions,
            "n_conv_per_stage_decoder": configuration.get("n_conv_per_stage_decoder"),
            "conv_bias": True,
            "norm_op": "InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5},
            "nonlin": "LeakyReLU",
        },
    }


def _each(value: Any, count: Any) -> Any:
    """One number per stage, where one is given for all."""
    return [value] * int(count) if isinstance(value, int) else value


def _triples(strides: Any) -> Any:
    return [[side] * 3 if isinstance(side, int) else side for side in strides]


def _weights(network: NnunetConfig, source: Source, order: Sequence[int]) -> dict[str, Any]:
    """The weights without aliases, and with the outputs in the order of brats."""
    require_fitting(network, source.content["network_weights"], source.weights)
    net = made(network, in_channels=4, classes=len(order))
    try:
        net.load_state_dict(dict(source.content["network_weights"]))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CheckpointError(
            f"{source.weights} does not hold the weights of its network: {lines[-1][:200]}",
            hint="do dataset.json and plans.json belong to it?",
        ) from error
    weights = without_aliases(net).state_dict()
    last = f"decoder.seg_layers.{len(network.decoder_blocks) - 1}."
    return {
        name: reordered(value, order) if name.startswith(last) else value
        for name, value in weights.items()
    }


def _transposed(plans: Mapping[str, Any], source: Source) -> str:
    """The directions of the network's axes."""
    forward = plans.get("transpose_forward", [0, 1, 2])
    if sorted(forward) != [0, 1, 2]:
        raise CheckpointError(
            f"{source.folder}/plans.json transposes axes as {forward}", hint="is the file whole?"
        )
    return "".join(_AXES[axis] for axis in forward)


def _over(configuration: Mapping[str, Any], channels: int, source: Source) -> str:
    """The voxels that are normalised together."""
    schemes = configuration.get("normalization_schemes") or []
    masked = configuration.get("use_mask_for_norm") or []
    if set(schemes) != {"ZScoreNormalization"} or len(set(masked)) != 1 or channels != len(masked):
        raise CheckpointError(
            f"{source.folder} normalises images by {', '.join(map(str, schemes)) or 'nothing'}, "
            f"with use_mask_for_norm {masked}",
            hint="brats imports networks with ZScoreNormalization, alike for all images",
        )
    return "mask" if masked[0] else "all"


def _multiple(network: NnunetConfig) -> int:
    """Edges that cubic patches are multiples of."""
    along = [1, 1, 1]
    for stride in network.strides:
        along = [side * step for side, step in zip(along, stride, strict=True)]
    return max(along)
