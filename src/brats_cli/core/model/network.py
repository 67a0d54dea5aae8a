"""The network: a 3D U-Net whose shape the config gives, or one of MONAI's or nnU-Net's."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from ..errors import ConfigError
from . import monai, nnunet
from .config import MonaiConfig, NetworkConfig, NnunetConfig, UNetConfig
from .monai import MonaiNetwork
from .nnunet import NnunetNetwork


class UNet3D(nn.Module):
    """Logits of every region from patches of every modality.

    Two 3x3x3 convolutions with ReLU on each level, 2x2x2 max pooling between levels, channels
    doubled going down and halved by 2x2x2 up-convolutions going up, skip connections, and a
    1x1x1 convolution at the end (Ronneberger et al. 2015, arXiv 1505.04597; in 3D Çiçek et al.
    2016, arXiv 1606.06650); and what the config changes of it.

    Args:
        config: Channels, levels, norm, padding and variants.
        in_channels: Modalities.
        out_channels: Regions.
    """

    def __init__(self, config: UNetConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths = config.widths
        self.config = config
        self.down = nn.ModuleList(
            _convolutions(before, after, config)
            for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            _upsampling(below, width, config)
            for below, width in zip(widths[1:], widths, strict=False)
        )
        self.merge = nn.ModuleList(_convolutions(width * 2, width, config) for width in widths[:-1])
        self.output = nn.Conv3d(widths[0], out_channels, kernel_size=1)
        # The two lowest levels have none: nnU-Net gives the lowest of the decoder a weight of 0.
        supervised = widths[1:-2] if config.deep_supervision else []
        self.lower_outputs = nn.ModuleList(
            nn.Conv3d(width, out_channels, kernel_size=1) for width in supervised
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits (B, R, X', Y', Z') of images (B, C, X, Y, Z).

        X' = X under `padding: same`, and X less twice `config.margin` under `valid`. With deep
        supervision, in training, a list of logits: these, and those of lower resolutions, each
        half as fine as the one before.
        """
        skips = []
        features = images
        for level, convolve in enumerate(self.down):
            features = convolve(F.max_pool3d(features, 2) if level else features)
            skips.append(features)
        lower = []
        for level in reversed(range(len(self.up))):
            features = self.up[level](features)
            skip = crop(skips[level], features.shape[2:])
            features = self.merge[level](torch.cat([skip, features], dim=1))
            if self.training and 0 < level <= len(self.lower_outputs):
                lower.append(self.lower_outputs[level - 1](features))
        logits: torch.Tensor = self.output(features)
        return [logits, *reversed(lower)] if lower else logits


Network = UNet3D | MonaiNetwork | NnunetNetwork

Foreign = TypeVar("Foreign", MonaiNetwork, NnunetNetwork)


def make_network(
    config: NetworkConfig, *, in_channels: int, out_channels: int, patch_size: int
) -> Network:
    """The network of a config, with random weights.

    Raises:
        ConfigError: If it is one of MONAI's and cannot be made, or does not take such patches.
    """
    if isinstance(config, UNetConfig):
        return UNet3D(config, in_channels=in_channels, out_channels=out_channels)
    sizes = {"in_channels": in_channels, "out_channels": out_channels, "patch_size": patch_size}
    if isinstance(config, NnunetConfig):
        return _avoiding_nan(NnunetNetwork(config, **sizes))
    return _avoiding_nan(MonaiNetwork(config, **sizes))


def _avoiding_nan(network: Foreign) -> Foreign:
    """`network` with `Conv3d` for PyTorch's own layer, which has the same weights and names."""
    for layer in network.modules():
        if type(layer) is nn.Conv3d:
            layer.__class__ = Conv3d
    return network


def network_without_weights(
    config: NetworkConfig, *, in_channels: int, out_channels: int, patch_size: int
) -> Network:
    """The network of a config whose weights are not needed, or are loaded into it later.

    A U-Net on the meta device, which takes no time; MONAI's networks need real tensors when made.

    Raises:
        ConfigError: As `make_network` does.
    """
    with torch.device("meta" if isinstance(config, UNetConfig) else "cpu"):
        return make_network(
            config, in_channels=in_channels, out_channels=out_channels, patch_size=patch_size
        )


def is_far_larger(
    config: MonaiConfig | NnunetConfig,
    weights: Mapping[str, torch.Tensor],
    *,
    in_channels: int,
    out_channels: int,
    patch_size: int,
) -> bool:
    """Whether a network would have far more weights than there are, found without making them.

    A file may name a network that takes all memory, or all day to make: its weights and buffers are
    counted as they are registered on the meta device, and those that are too many end it.

    Raises:
        ConfigError: If the library does not make a network of the config.
    """
    sizes = {"in_channels": in_channels, "out_channels": out_channels, "img_size": patch_size}
    # nnU-Net's have outputs of lower resolutions, which brats does not keep.
    most = 2 * sum(weight.numel() for weight in weights.values()) + 100_000
    try:
        with torch.device("meta"), _NumbersAsZero(), _registering_at_most(most):
            if isinstance(config, NnunetConfig):
                nnunet.made(config, in_channels=in_channels, classes=out_channels)
            else:
                monai.made(config, sizes)
    except ConfigError as error:
        if isinstance(error.__cause__, _TooManyError):
            return True
        # Without its library, or with options that it does not have, nothing is made.
        if error.__cause__ is None or isinstance(error.__cause__, ImportError):
            return False
        raise
    return False


class _TooManyError(Exception):
    """A network has more weights than it may have."""


class _NumbersAsZero(TorchFunctionMode):
    """Gives 0 where a network asks for a number that the meta device does not have.

    MONAI's SwinUNETR does so for the share of paths that each of its blocks drops.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func is torch.Tensor.item and args[0].is_meta:
            return 0.0
        return func(*args, **(kwargs or {}))


@contextmanager
def _registering_at_most(most: int) -> Iterator[None]:
    """Raise `_TooManyError` in a module that makes weights and buffers exceed `most` numbers."""
    thread, count = threading.get_ident(), 0

    def add(module: nn.Module, name: str, value: torch.Tensor | None) -> None:
        nonlocal count
        if value is not None and threading.get_ident() == thread:
            count += value.numel()
            if count > most:
                raise _TooManyError

    hooks = (
        register_module_parameter_registration_hook(add),
        register_module_buffer_registration_hook(add),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def in_two_parts(
    network: Network,
) -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    """A network as two functions: to outputs that may be averaged, and on to regions' logits.

    The second is the identity except for networks of nnU-Net that were trained on labels.
    """
    if isinstance(network, NnunetNetwork):
        return network.outputs, network.regions
    return network, lambda outputs: outputs


def encoder_of(network: Network) -> list[nn.Module]:
    """The encoder of a network: its parts down to the lowest resolution.

    Raises:
        ConfigError: If it is a network of MONAI whose parts are not known.
    """
    parts = network.net if isinstance(network, MonaiNetwork | NnunetNetwork) else network
    for names in (("down",), ("encoder",), ("convInit", "down_layers")):
        if all(name in parts._modules for name in names):
            return [parts.get_submodule(name) for name in names]
    name = getattr(network.config, "name", "unet")
    raise ConfigError(
        f"brats does not know which part of {name} is its encoder",
        hint="train without --freeze, or use brats' own network, SegResNet or nnU-Net's",
    )


def on_device(network: Network, device: torch.device) -> Network:
    """A network on a device, its weights in the memory layout of that device's convolutions.

    Otherwise a GPU would convert them for every convolution and each of its gradients.
    """
    if device.type == "cuda":
        # As mypy does not know, a layout may go with the device.
        return network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload,no-any-return]
    return network.to(device)


def crop(tensor: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """The centre of a tensor along its last three axes."""
    for axis, wanted in zip((-3, -2, -1), size, strict=True):
        surplus = tensor.shape[axis] - wanted
        if surplus:  # narrowing to the same size would still copy the gradient in the backward pass
            tensor = tensor.narrow(axis, surplus // 2, wanted)
    return tensor


class Conv3d(nn.Conv3d):
    """A convolution that avoids a bug of PyTorch on CPUs.

    In bfloat16 the gradient of 3x3x3 weights over maps of 2x2x2 voxels reads uninitialised memory
    (torch 2.13, oneDNN): where that held NaN, it was NaN in 15 to 35 of 100 tries. Maps of 1, 3 or
    4 voxels, 1x1x1 weights and float32 are not affected; for maps so small, float32 is as fast.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The convolution of maps (B, C, X, Y, Z)."""
        at_fault = self.training and features.device.type == "cpu" and 2 in features.shape[2:]
        if at_fault and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(features.float())
        return super().forward(features)


class _Residual(nn.Module):
    """Two convolutions with their input added before the last activation (He et al. 2016)."""

    def __init__(self, before: int, after: int, config: UNetConfig) -> None:
        super().__init__()
        *layers, self.activation, self.dropout = (
            *_layers(before, after, config),
            *_layers(after, after, config),
        )
        self.layers = nn.Sequential(*layers)
        self.shortcut = (
            nn.Identity()
            if before == after
            else nn.Sequential(
                nn.Conv3d(before, after, kernel_size=1, bias=config.norm == "none"),
                _norm(after, config),
            )
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        found = self.layers(features)
        found += self.shortcut(crop(features, found.shape[2:]))
        changed: torch.Tensor = self.dropout(self.activation(found))
        return changed


class _Interpolation(nn.Module):
    """Trilinear upsampling to twice the resolution, with a change of channels.

    The 1x1x1 convolution goes first: the result is the same, for an eighth of the voxels.
    """

    def __init__(self, before: int, after: int, config: UNetConfig) -> None:
        super().__init__()
        self.channels = nn.Conv3d(before, after, kernel_size=1)
        # The outermost voxels have neighbours on one side only.
        self.cut = 1 if config.padding == "valid" else 0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        finer = F.interpolate(self.channels(features), scale_factor=2, mode="trilinear")
        return crop(finer, torch.Size(side - 2 * self.cut for side in finer.shape[2:]))


def _upsampling(below: int, width: int, config: UNetConfig) -> nn.Module:
    if config.upsampling == "trilinear":
        return _Interpolation(below, width, config)
    return nn.ConvTranspose3d(below, width, kernel_size=2, stride=2)


def _convolutions(before: int, after: int, config: UNetConfig) -> nn.Module:
    """The two convolutions of a level."""
    if config.residual:
        return _Residual(before, after, config)
    layers = (*_layers(before, after, config), *_layers(after, after, config))
    return nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Identity)))


def _layers(before: int, after: int, config: UNetConfig) -> tuple[nn.Module, ...]:
    """A convolution, its norm, activation and dropout; an absent one is the identity."""
    return (
        Conv3d(
            before,
            after,
            kernel_size=3,
            padding=1 if config.padding == "same" else 0,
            bias=config.norm == "none",  # the norm would subtract a bias again
        ),
        _norm(after, config),
        _activation(config),
        nn.Dropout3d(config.dropout) if config.dropout else nn.Identity(),
    )


def _norm(channels: int, config: UNetConfig) -> nn.Module:
    if config.norm == "batch":
        return nn.BatchNorm3d(channels)
    if config.norm == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    if config.norm == "group":
        return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
    return nn.Identity()


GROUPS = 8
"""Groups of the channels under group norm, or as many as divide them."""


def _activation(config: UNetConfig) -> nn.Module:
    if config.activation == "leaky_relu":
        return nn.LeakyReLU(inplace=True)
    if config.activation == "elu":
        return nn.ELU(inplace=True)
    if config.activation == "silu":
        return nn.SiLU(inplace=True)
    return nn.ReLU(inplace=True)
