"""Networks of nnU-Net v2: the plain and the residual U-Net of `dynamic-network-architectures`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from .config import NNUNET, NnunetConfig
from .trial import Trial, first_line

_NORMS: dict[str, type[nn.Module]] = {"instance": nn.InstanceNorm3d, "batch": nn.BatchNorm3d}
_ACTIVATIONS: dict[str, type[nn.Module]] = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU}


class NnunetNetwork(nn.Module):
    """A network of nnU-Net that takes a patch to one map of logits per region.

    What nnU-Net has for training alone, the outputs of lower resolutions, is left out.

    Args:
        config: Its shape.
        in_channels: Modalities.
        out_channels: Regions.
        patch_size: Edge of the training patch.

    Raises:
        ConfigError: If the library is missing, or makes no network of the config.
    """

    def __init__(
        self, config: NnunetConfig, *, in_channels: int, out_channels: int, patch_size: int
    ) -> None:
        super().__init__()
        # The background, edema, necrosis, enhancing tumour; or the regions themselves.
        self.of_labels = config.outputs == "labels"
        classes = out_channels + 1 if self.of_labels else out_channels
        self.net = without_aliases(made(config, in_channels=in_channels, classes=classes))
        self.config = Trial(self, config.name, in_channels, out_channels).shape(patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, R, X, Y, Z) of images (B, C, X, Y, Z)."""
        return self.regions(self.outputs(images))

    def outputs(self, images: torch.Tensor) -> torch.Tensor:
        """What nnU-Net averages over windows and flips: logits of labels or of regions."""
        found: torch.Tensor = self.net(images)
        return found

    def regions(self, outputs: torch.Tensor) -> torch.Tensor:
        """Logits of WT, TC and ET of `outputs`.

        If those are of labels, a region's probability is the sum of its labels' in their softmax:
        the sigmoid of the log of what its labels weigh over what the others weigh.
        """
        if not self.of_labels:
            return outputs
        found = outputs.float()
        of_labels = [found[:, first:] for first in (1, 2, 3)]  # of WT, TC and ET
        of_others = [found[:, :first] for first in (1, 2, 3)]
        odds = [
            torch.logsumexp(inside, dim=1) - torch.logsumexp(outside, dim=1)
            for inside, outside in zip(of_labels, of_others, strict=True)
        ]
        return torch.stack(odds, dim=1)


def made(config: NnunetConfig, *, in_channels: int, classes: int) -> nn.Module:
    """The library's own network.

    Raises:
        ConfigError: If the library is missing, or makes no network of the config.
    """
    try:
        from dynamic_network_architectures.architectures import unet
    except ImportError as error:
        raise ConfigError(
            f"network {config.name} needs dynamic-network-architectures, which is not installed",
            hint="pip install 'brats-cli[nnunet]'",
        ) from error
    plain = config.name == f"{NNUNET}PlainConvUNet"
    blocks = "n_conv_per_stage" if plain else "n_blocks_per_stage"
    settings: dict[str, Any] = {
        "input_channels": in_channels,
        "num_classes": classes,
        "n_stages": len(config.features),
        "features_per_stage": list(config.features),
        "conv_op": nn.Conv3d,
        "kernel_sizes": [list(kernel) for kernel in config.kernels],
        "strides": [list(stride) for stride in config.strides],
        blocks: list(config.blocks),
        "n_conv_per_stage_decoder": list(config.decoder_blocks),
        "conv_bias": config.bias,
        "norm_op": _NORMS[config.norm],
        "norm_op_kwargs": {"eps": config.eps, "affine": True},
        "nonlin": _ACTIVATIONS[config.activation],
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": False,
    }
    try:
        kind = unet.PlainConvUNet if plain else unet.ResidualEncoderUNet
        network: nn.Module = kind(**settings)
    except Exception as error:  # whatever the library makes of numbers that do not fit
        raise ConfigError(
            f"dynamic-network-architectures does not make {config.name} of these settings: "
            f"{first_line(error)}",
            hint="see the plans.json that the network came with",
        ) from error
    return network


def without_aliases(network: nn.Module) -> nn.Module:
    """The same network with each weight under one name, and none that is not used.

    The library registers many modules twice: an average over weights would average them twice.
    Its decoder has outputs of lower resolutions, which have no gradient.
    """
    parts: Any = network
    _unregister(parts.decoder, "encoder")
    for module in network.modules():
        for name in ("conv", "norm", "nonlin", "dropout") if hasattr(module, "all_modules") else ():
            _unregister(module, name)
    heads = parts.decoder.seg_layers
    for number in range(len(heads) - 1):
        heads[number] = nn.Identity()
    return network


def _unregister(parent: nn.Module, name: str) -> None:
    """Keep a module as a plain attribute, whose weights are not those of its parent."""
    child = parent._modules.pop(name, None)
    if child is not None:
        parent.__dict__[name] = child
