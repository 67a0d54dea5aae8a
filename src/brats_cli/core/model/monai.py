"""Networks of MONAI, made, tried and asked for what patches they take."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..wording import did_you_mean
from .config import MONAI, MonaiConfig
from .trial import Trial, first_line

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
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "img_size": patch_size}
        self.net = made(config, sizes)
        trial = Trial(self.net, config.name, in_channels, out_channels)
        self.config = trial.shape(patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, R, X, Y, Z) of images (B, C, X, Y, Z)."""
        logits: torch.Tensor = self.net(images)
        return logits


def made(config: MonaiConfig, given: Mapping[str, Any]) -> nn.Module:
    """MONAI's own network of a config; of `given` and the dimensions, what its signature asks for.

    Raises:
        ConfigError: If MONAI is missing, has no such network or refuses the options.
    """
    given = {"spatial_dims": 3, **given}
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
            f"MONAI does not make {config.name} with options {config.options}: {first_line(error)}",
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
