"""Networks of MONAI, made, tried and asked for what patches they take."""

from __future__ import annotations

import copy
import difflib
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..wording import did_you_mean
from .config import MONAI, MonaiConfig

# What these cannot be made without, like brats' own network: five levels from 32 channels.
_NEEDED: Mapping[str, Mapping[str, Any]] = {
    "attentionunet": {"channels": (32, 64, 128, 256, 512), "strides": (2, 2, 2, 2)},
    "dynunet": {
        "kernel_size": (3, 3, 3, 3, 3),
        "strides": (1, 2, 2, 2, 2),
        "upsample_kernel_size": (2, 2, 2, 2),
    },
    "unet": {"channels": (32, 64, 128, 256, 512), "strides": (2, 2, 2, 2)},
}

_WINDOW_NORMS = (nn.InstanceNorm3d, nn.GroupNorm)


class MonaiNetwork(nn.Module):
    """A network of MONAI that takes a patch to one map of logits per region.

    Args:
        config: Its name and options.
        in_channels: Modalities.
        out_channels: Regions.
        patch_size: Edge of the training patch; some networks take patches of one size only.

    Raises:
        ConfigError: If MONAI is missing, has no such network or refuses the options, or if the
            network cannot be trained on such patches: with several outputs, say.
    """

    def __init__(
        self, config: MonaiConfig, *, in_channels: int, out_channels: int, patch_size: int
    ) -> None:
        super().__init__()
        given = {
            "spatial_dims": 3,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "img_size": patch_size,
        }
        self.net = _make(config, given)
        trial = _Trial(self.net, config.name, in_channels, out_channels)
        self.config = trial.shape(patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, R, X, Y, Z) of images (B, C, X, Y, Z)."""
        logits: torch.Tensor = self.net(images)
        return logits


class MonaiShape:
    """What a network of MONAI makes of an edge; the counterpart of `UNetConfig`'s.

    Attributes:
        name: As `monai/SegResNet`.
        multiple: Edges that it takes are multiples of this.
        channels: Of its widest map at the full resolution.
        depends_on_window: Whether the size of the window decides what is computed at a voxel.
        margin: Voxels that the output is smaller by: none.
    """

    margin = 0

    def __init__(self, name: str, multiple: int, channels: int, *, depends_on_window: bool) -> None:
        self.name, self.multiple, self.channels = name, multiple, channels
        self.depends_on_window = depends_on_window

    def output_size(self, edge: int) -> int:
        """Edge of the output for an input of `edge` voxels: the same.

        Raises:
            ConfigError: If the network does not take it.
        """
        if edge % self.multiple:
            raise ConfigError(
                f"a patch of {edge} voxels does not fit {self.name}",
                hint=f"try a patch_size of {self.input_size(edge)}",
            )
        return edge

    def input_size(self, output: int) -> int:
        """Smallest edge that the network takes of at least `output` voxels."""
        return math.ceil(max(output, 1) / self.multiple) * self.multiple


def _make(config: MonaiConfig, given: Mapping[str, Any]) -> nn.Module:
    """The network of a config; of `given`, what its signature asks for."""
    kind = _class(config.name)
    parameters = inspect.signature(kind).parameters
    for option in config.options:
        if option in given:
            raise ConfigError(
                f"option '{option}' of {config.name} is not to be set",
                hint="brats sets it, by modalities, regions and patch_size",
            )
        if option not in parameters:
            known = [name for name in parameters if name not in given]
            raise ConfigError(
                f"{config.name} has no option '{option}'",
                hint=did_you_mean(option, known, otherwise=f"it has {', '.join(known)}"),
            )
    needed = _NEEDED.get(kind.__name__.lower(), {})
    arguments = {
        **{name: value for name, value in given.items() if name in parameters},
        **{name: value for name, value in needed.items() if name in parameters},
        **config.options,
    }
    try:
        network: nn.Module = kind(**arguments)
    except Exception as error:  # whatever MONAI makes of options that are the user's
        raise ConfigError(
            f"MONAI does not make {config.name} with options {config.options}: "
            f"{_first_line(error)}",
            hint=f"see monai.networks.nets.{kind.__name__} in MONAI's documentation",
        ) from error
    return network


def _class(name: str) -> type[nn.Module]:
    try:
        from monai.networks import nets
    except ImportError as error:
        raise ConfigError(
            f"network {name} needs MONAI, which is not installed",
            hint="pip install 'brats-cli[monai]'",
        ) from error
    wanted = name.removeprefix(MONAI)
    known: dict[str, type[nn.Module]] = {
        key: kind for key, kind in vars(nets).items() if _segments(kind)
    }
    if wanted in known:
        return known[wanted]
    # Once a class: some have other spellings beside.
    spelt = {kind.__name__.lower(): kind.__name__ for kind in known.values()}
    near = difflib.get_close_matches(wanted.lower(), spelt, n=3)
    options = " or ".join(f"'{MONAI}{spelt[match]}'" for match in near)
    raise ConfigError(
        f"MONAI has no segmentation network '{wanted}'",
        hint=f"did you mean {options}?" if near else f"try {MONAI}SegResNet or {MONAI}UNet",
    )


def _segments(kind: object) -> bool:
    """Whether a member of `monai.networks.nets` may take images to maps."""
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        return False
    return {"in_channels", "out_channels"} <= set(inspect.signature(kind).parameters)


class _Trial:
    """A copy of a network on the meta device, where a run takes neither memory nor arithmetic."""

    def __init__(self, network: nn.Module, name: str, in_channels: int, out_channels: int) -> None:
        self.network = copy.deepcopy(network).to("meta")
        self.name, self.in_channels, self.out_channels = name, in_channels, out_channels

    def shape(self, patch_size: int) -> MonaiShape:
        """What the network takes, found by trying the divisors of `patch_size`.

        Raises:
            ConfigError: If it does not take a patch to one map per region.
        """
        self._require_maps(patch_size)
        self.network.eval()
        # A network that takes a patch takes multiples of one of its divisors.
        divisors = [edge for edge in range(1, patch_size) if patch_size % edge == 0]
        fitting = (edge for edge in divisors if self._fits(patch_size + edge))
        multiple = next(fitting, patch_size)
        of_window = any(
            isinstance(module, _WINDOW_NORMS) and getattr(module, "running_mean", None) is None
            for module in self.network.modules()
        )
        return MonaiShape(
            self.name,
            multiple,
            channels=self._widest(patch_size),
            depends_on_window=of_window or multiple == patch_size,
        )

    def _run(self, edge: int) -> object:
        images = torch.zeros(2, self.in_channels, edge, edge, edge, device="meta")
        images = images.contiguous(memory_format=torch.channels_last_3d)  # as they come later
        with torch.no_grad():
            found: object = self.network(images)
        return found

    def _require_maps(self, edge: int) -> None:
        try:
            found = self._run(edge)
        except Exception as error:  # each network has its own for a size that it does not take
            raise ConfigError(
                f"{self.name} cannot be trained on patches of {edge} voxels: {_first_line(error)}",
                hint="try a patch_size that is a multiple of 32, or other network.options",
            ) from error
        if not self._are_maps(found, edge):
            raise ConfigError(
                f"{self.name} does not return one map per region in training, but "
                f"{_described(found)}",
                hint="leave deep supervision off, which brats has for its own network only, or "
                "choose another network",
            )

    def _are_maps(self, found: object, edge: int) -> bool:
        wanted = (2, self.out_channels, edge, edge, edge)
        return isinstance(found, torch.Tensor) and tuple(found.shape) == wanted

    def _fits(self, edge: int) -> bool:
        try:
            return self._are_maps(self._run(edge), edge)
        except Exception:  # as above
            return False

    def _widest(self, edge: int) -> int:
        """Channels of the widest map at the full resolution."""
        widths = [self.in_channels]

        def note(_module: nn.Module, _inputs: object, found: object) -> None:
            if isinstance(found, torch.Tensor) and found.shape[2:] == (edge, edge, edge):
                widths.append(found.shape[1])

        for module in self.network.modules():
            module.register_forward_hook(note)
        self._run(edge)
        return max(widths)


def _described(found: object) -> str:
    if isinstance(found, torch.Tensor):
        return "a tensor of " + " x ".join(map(str, found.shape))
    return f"{len(found)} outputs" if isinstance(found, list | tuple) else type(found).__name__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
