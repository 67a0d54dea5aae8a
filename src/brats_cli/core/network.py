"""The network: a 3D U-Net, its shape a value in the config."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .config import UNetConfig


class UNet3D(nn.Module):
    """Logits of every region from patches of every modality.

    Two 3x3x3 convolutions with ReLU on each level, 2x2x2 max pooling between levels, channels
    doubled going down and halved by 2x2x2 up-convolutions going up, skip connections, and a
    1x1x1 convolution at the end (Ronneberger et al. 2015, arXiv 1505.04597; in 3D Çiçek et al.
    2016, arXiv 1606.06650).

    Args:
        config: Channels, levels, norm and padding.
        in_channels: Modalities.
        out_channels: Regions.
    """

    def __init__(self, config: UNetConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths = [config.channels * 2**level for level in range(config.levels)]
        self.config = config
        self.down = nn.ModuleList(
            _double_convolution(before, after, config)
            for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(width * 2, width, kernel_size=2, stride=2) for width in widths[:-1]
        )
        self.merge = nn.ModuleList(
            _double_convolution(width * 2, width, config) for width in widths[:-1]
        )
        self.output = nn.Conv3d(widths[0], out_channels, kernel_size=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, R, X', Y', Z') of images (B, C, X, Y, Z).

        X' = X under `padding: same`, and X less twice `config.margin` under `valid`.
        """
        skips = []
        features = images
        for level, convolve in enumerate(self.down):
            features = convolve(F.max_pool3d(features, 2) if level else features)
            skips.append(features)
        for level in reversed(range(len(self.up))):
            features = self.up[level](features)
            skip = crop(skips[level], features.shape[2:])
            features = self.merge[level](torch.cat([skip, features], dim=1))
        logits: torch.Tensor = self.output(features)
        return logits


def crop(tensor: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """The middle of a tensor's last three axes."""
    for axis, wanted in zip((-3, -2, -1), size, strict=True):
        tensor = tensor.narrow(axis, (tensor.shape[axis] - wanted) // 2, wanted)
    return tensor


def _double_convolution(before: int, after: int, config: UNetConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        # A bias before a norm is subtracted again by it.
        layers.append(
            nn.Conv3d(
                channels,
                after,
                kernel_size=3,
                padding=1 if config.padding == "same" else 0,
                bias=config.norm == "none",
            )
        )
        if config.norm == "batch":
            layers.append(nn.BatchNorm3d(after))
        elif config.norm == "instance":
            layers.append(nn.InstanceNorm3d(after, affine=True))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
