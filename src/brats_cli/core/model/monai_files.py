"""Networks of MONAI as its model zoo and its Auto3DSeg distribute them, as checkpoints of brats."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..data.labels import REGIONS, SCHEMES
from ..errors import CheckpointError
from ..prepared.recipe import Recipe
from .checkpoint import Checkpoint
from .config import MonaiConfig
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
from .monai import MonaiNetwork
from .sliding import SlidingWindow

BUNDLE = "MONAI bundle"
AUTO3DSEG = "Auto3DSeg SegResNetDS"

# The bundle brats_mri_segmentation, where its own files do not say it.
_BUNDLE_OPTIONS = {"blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1], "init_filters": 16}
_BUNDLE_MODALITIES = ("t1ce", "t1", "t2", "flair")
_BUNDLE_REGIONS = ("TC", "WT", "ET")
_BUNDLE_WINDOW = (240, 240, 160)

# The BraTS 2023 networks of Auto3DSeg; their files do not say it.
_AUTO3DSEG_MODALITIES = ("flair", "t1ce", "t1", "t2")

_HARMLESS = {"LoadImaged", "EnsureChannelFirstd", "EnsureTyped", "NormalizeIntensityd"}


# --- the bundle --------------------------------------------------------------------------------


def is_bundle(content: object) -> bool:
    """Whether a file holds the weights of a SegResNet, and nothing else."""
    due = {"convInit.conv.weight", "conv_final.2.conv.weight"}
    return isinstance(content, Mapping) and due <= set(content) and holds_tensors(content)


def from_bundle(source: Source) -> Checkpoint:
    """The checkpoint of a SegResNet of MONAI's model zoo.

    Of its files, `metadata.json` says what the channels are, and `inference.json` how the network
    is applied; nothing in them is evaluated.

    Raises:
        CheckpointError: If it is of another task, or prepares images in a way that brats cannot.
    """
    metadata, inference = {}, {}
    if source.folder:
        metadata = read_object(source.folder / "configs/metadata.json")
        inference = read_object(source.folder / "configs/inference.json")
    weights = source.content
    inputs = weights["convInit.conv.weight"].shape[1]
    outputs = weights["conv_final.2.conv.weight"].shape[0]
    if (inputs, outputs) != (4, len(REGIONS)):
        task = metadata.get("task") or metadata.get("name") or "another task"
        raise CheckpointError(
            f"{source.weights} is a network of {inputs} input and {outputs} output channels "
            f"({task}), not of 4 and 3",
            hint="brats imports the bundle brats_mri_segmentation",
        )
    options = _options_of(weights)
    if not metadata and options != _BUNDLE_OPTIONS:
        raise CheckpointError(
            f"{source.weights} is a SegResNet, but not that of brats_mri_segmentation, and no "
            "configs/metadata.json says what its channels are",
            hint="give the folder of the bundle",
        )
    modalities, regions = _channels(metadata, source)
    order = [regions.index(name) for name in REGIONS]
    changed = {
        name: reordered(value, order) if name.startswith("conv_final.2.conv.") else value
        for name, value in weights.items()
    }
    network = MonaiConfig(name="monai/SegResNet", options={**options, "dropout_prob": 0.2})
    sliding = _bundle_windows(inference, source)
    name = str(metadata.get("name", "brats_mri_segmentation"))
    version = f" {metadata['version']}" if isinstance(metadata.get("version"), str) else ""
    return checkpoint_of(
        network,
        changed,
        modalities=modalities,
        labels="brats2020",
        multiple=2 ** (len(options["blocks_down"]) - 1),
        recipe=Recipe(orientation="LPS", over="nonzero"),
        sliding=sliding,
        origin=source.origin(BUNDLE, f"{name}{version}"),
    )


def _options_of(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The options that make a SegResNet of these weights."""

    def count(pattern: str) -> list[int]:
        found: dict[int, set[str]] = {}
        for name in weights:
            if match := re.fullmatch(pattern, name):
                found.setdefault(int(match[1]), set()).add(match[2])
        return [len(found.get(level, ())) for level in range(len(found))]

    return {
        "blocks_down": count(r"down_layers\.(\d+)\.(\d+)\.conv1\.conv\.weight"),
        "blocks_up": count(r"up_layers\.(\d+)\.(\d+)\.conv1\.conv\.weight"),
        "init_filters": int(weights["convInit.conv.weight"].shape[0]),
    }


def _channels(
    metadata: Mapping[str, Any], source: Source
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The modalities and regions of a bundle's channels."""
    formats = metadata.get("network_data_format", {})
    try:
        inputs = formats["inputs"]["image"]["channel_def"]
        outputs = formats["outputs"]["pred"]["channel_def"]
        names = [str(inputs[key]) for key in sorted(inputs, key=int)]
        wanted = [str(outputs[key]) for key in sorted(outputs, key=int)]
    except (KeyError, TypeError, ValueError):
        return _BUNDLE_MODALITIES, _BUNDLE_REGIONS
    words = {"whole": "WT", "core": "TC", "enhanc": "ET"}
    regions = tuple(
        next((region for word, region in words.items() if word in name.lower()), name)
        for name in wanted
    )
    if set(regions) != set(REGIONS):
        raise CheckpointError(
            f"{source.folder} segments {', '.join(wanted)}, not WT, TC and ET",
            hint="brats imports the bundle brats_mri_segmentation",
        )
    return modalities_of(names, source.folder or source.weights), regions


def _bundle_windows(inference: Mapping[str, Any], source: Source) -> SlidingWindow:
    transforms = inference.get("preprocessing", {})
    steps = transforms.get("transforms", []) if isinstance(transforms, Mapping) else []
    for step in steps if isinstance(steps, list) else []:
        name = str(step.get("_target_")) if isinstance(step, Mapping) else str(step)
        plain = name != "NormalizeIntensityd" or (
            step.get("nonzero") is True and step.get("channel_wise") is True
        )
        if name not in _HARMLESS or not plain:
            raise CheckpointError(
                f"{source.folder} prepares images by {name} with settings that brats does not have",
                hint="brats imports bundles that normalise the voxels of each image that are not 0",
            )
    inferer = inference.get("inferer", {})
    return windows_of(inferer if isinstance(inferer, Mapping) else {}, source, _BUNDLE_WINDOW)


def windows_of(
    inferer: Mapping[str, Any],
    source: Source,
    window: Sequence[int],
    *,
    overlap: float = 0.5,
    mode: str = "constant",
) -> SlidingWindow:
    """The windows of an inferer of MONAI, whose settings may override the defaults given.

    Raises:
        CheckpointError: If it is another inferer, or has other settings.
    """
    name = str(inferer.get("_target_", "SlidingWindowInferer")).rpartition(".")[2]
    content = {
        "rule": "monai",
        "window": inferer.get("roi_size", list(window)),
        "overlap": inferer.get("overlap", overlap),
        "weights": inferer.get("mode", mode),
    }
    if name not in ("SlidingWindowInferer", "SlidingWindowInfererAdapt"):
        raise CheckpointError(
            f"{source.weights} is applied by {name}, which brats does not have",
            hint="brats goes over a case in windows, as MONAI's SlidingWindowInferer",
        )
    return SlidingWindow.of(content)


# --- Auto3DSeg ---------------------------------------------------------------------------------


def is_auto3dseg(content: object) -> bool:
    """Whether a file is one of Auto3DSeg's checkpoints."""
    return (
        isinstance(content, Mapping)
        and isinstance(content.get("config"), Mapping)
        and holds_tensors(content.get("state_dict"))
    )


def from_auto3dseg(source: Source, modalities: Sequence[str] | None = None) -> Checkpoint:
    """The checkpoint of a SegResNetDS of Auto3DSeg, by the settings that it carries along.

    Its outputs of lower resolutions, which only training uses, are left out.

    Raises:
        CheckpointError: If it is another network, of another task, or is prepared otherwise.
    """
    config, weights = source.content["config"], source.content["state_dict"]
    network = _segresnet_ds(config, source)
    order, labels = _auto3dseg_regions(config, source)
    require_fitting(network, weights, source.weights)
    made = MonaiNetwork(network, in_channels=4, out_channels=3, patch_size=64).net
    wanted = made.state_dict()
    extra = [name for name in weights if name not in wanted]
    if not all(re.fullmatch(r"up_layers\.\d+\.head\.(weight|bias)", name) for name in extra):
        raise CheckpointError(
            f"{source.weights} has weights that its network does not have: {extra[0]}",
            hint="brats imports networks of MONAI's class SegResNetDS as they are",
        )
    heads = [name for name in wanted if re.fullmatch(r"up_layers\.\d+\.head\.(weight|bias)", name)]
    changed = {
        name: reordered(value, order) if name in heads else value
        for name, value in weights.items()
        if name in wanted
    }
    return checkpoint_of(
        network,
        changed,
        modalities=modalities or _AUTO3DSEG_MODALITIES,
        labels=labels,
        multiple=2 ** (len(network.options.get("blocks_down", (1, 2, 2, 4))) - 1),
        recipe=_auto3dseg_recipe(config, source),
        sliding=windows_of(
            config.get("sliding_inferrer") or {},
            source,
            config.get("roi_size", ()),
            overlap=0.625,
            mode="gaussian",
        ),
        origin=source.origin(AUTO3DSEG, str(config.get("name", "segresnet"))),
        epoch=source.content.get("epoch", 0),
    )


_NETWORK_OPTIONS = {
    "init_filters", "blocks_down", "blocks_up", "norm", "act", "upsample_mode", "resolution",
}  # fmt: skip
_NETWORK_GIVEN = {"_target_", "spatial_dims", "in_channels", "out_channels", "dsdepth"}


def _segresnet_ds(config: Mapping[str, Any], source: Source) -> MonaiConfig:
    settings = config.get("network")
    settings = settings if isinstance(settings, Mapping) else {}
    name = str(settings.get("_target_")).rpartition(".")[2]
    inputs, outputs = settings.get("in_channels"), settings.get("out_channels")
    if name != "SegResNetDS" or settings.get("spatial_dims", 3) != 3:
        raise CheckpointError(
            f"{source.weights} holds the network {name}, which brats does not import",
            hint="of Auto3DSeg's networks brats imports SegResNetDS in three dimensions",
        )
    if (inputs, outputs) != (4, 3):
        names = config.get("class_names")
        raise CheckpointError(
            f"{source.weights} is a network of {inputs} input and {outputs} output channels"
            f"{f' for {names}' if names else ''}, not of 4 and 3",
            hint="brats imports networks for T1, T1ce, T2 and FLAIR, and WT, TC and ET",
        )
    strange = set(settings) - _NETWORK_OPTIONS - _NETWORK_GIVEN
    if strange:
        raise CheckpointError(
            f"the network of {source.weights} has settings that brats does not know: "
            f"{', '.join(sorted(map(str, strange)))}",
            hint="brats imports networks of MONAI's class SegResNetDS as they are",
        )
    options = {
        name: value
        for name, value in settings.items()
        if name in _NETWORK_OPTIONS and value is not None
    }
    if str(options.get("norm", "")).upper() == "INSTANCE_NVFUSER":
        options["norm"] = "INSTANCE"  # the same numbers, by another library
    if config.get("anisotropic_scales"):
        options["resolution"] = config.get("resample_resolution")
    return MonaiConfig(name="monai/SegResNetDS", options=options)


def _auto3dseg_regions(config: Mapping[str, Any], source: Source) -> tuple[list[int], str]:
    """The places of WT, TC and ET among the outputs, and the label scheme."""
    if config.get("sigmoid") is not True:
        raise CheckpointError(
            f"{source.weights} has outputs that exclude each other (softmax)",
            hint="brats imports networks of Auto3DSeg with one output per region (sigmoid: true)",
        )
    index = config.get("class_index")
    if not index:
        return [0, 1, 2], "brats2023"
    if not isinstance(index, list) or not all(isinstance(each, list) for each in index):
        raise CheckpointError(
            f"{source.weights} has no regions that brats understands: class_index is {index!r}",
            hint="it should list the label values of each region",
        )
    order = by_inclusion([frozenset(each) for each in index], source.weights)
    sets = [frozenset(index[place]) for place in order]
    fitting = [
        scheme.name
        for scheme in SCHEMES.values()
        if [frozenset(region.labels) for region in scheme.regions[:3]] == sets
    ]
    return order, "brats2023" if "brats2023" in fitting or not fitting else fitting[0]


def _auto3dseg_recipe(config: Mapping[str, Any], source: Source) -> Recipe:
    mode = config.get("normalize_mode", "meanstd")
    refused = {
        "normalize_mode": mode if mode not in ("meanstd", "mri", "meanstdtanh") else None,
        "extra_modalities": config.get("extra_modalities"),
        "custom_data_transforms": config.get("custom_data_transforms"),
    }
    for name, value in refused.items():
        if value:
            raise CheckpointError(
                f"{source.weights} prepares images by {name} {value}, which brats does not have",
                hint="brats imports networks that normalise the voxels of each image that are "
                "not 0",
            )
    resolution = config.get("resample_resolution") if config.get("resample") else None
    crops = bool(config.get("crop_foreground", True))
    content = {
        "orientation": "RAS" if config.get("orientation_ras") else "LPS",
        "crop": "positive" if crops else "none",
        "margin": 10 if crops else 0,
        "over": "nonzero",
        "limit": 3.0 if mode == "meanstdtanh" else None,
        "spacing_mm": resolution,
        "tolerance": 0.25,
    }
    return Recipe.of(content)
