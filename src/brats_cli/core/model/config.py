"""The shape of a network: a U-Net's values, or a class of others with its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from ..errors import ConfigError
from ..wording import brief, did_you_mean

MONAI = "monai/"
"""What the names of MONAI's networks start with."""

NNUNET = "nnunet/"
"""What the names of nnU-Net's networks start with."""


class Settings(BaseModel):
    """Values of a config, which are checked, and none but those that there are."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class UNetConfig(Settings):
    """The shape of a `UNet3D`; `CLASSIC` is the original's."""

    channels: int = Field(default=32, ge=1)
    """Channels of the first level; doubled on every level below."""
    most_channels: int | None = Field(default=None, ge=1)
    """Channels that no level goes beyond, as nnU-Net's 320; `null` doubles them down to the
    lowest level. No limit by default: with 32 channels only the lowest of five levels has more
    than 320, where a convolution costs a hundredth of what it does on the first."""
    levels: int = Field(default=5, ge=2, le=7)
    """Resolutions, the full one included: `levels - 1` max poolings."""
    norm: Literal["batch", "instance", "group", "none"] = "batch"
    """Between convolution and activation. Batch norm's statistics do not depend on the window at
    inference, so that one pass over a whole brain computes nearly the same as many windows."""
    activation: Literal["relu", "leaky_relu", "elu", "silu"] = "relu"
    """After the norm; the slope of `leaky_relu` is 0.01."""
    dropout: float = Field(default=0, ge=0, lt=1)
    """Share of the channels that training sets to 0 after each activation."""
    residual: bool = True
    """Add the input of each pair of convolutions to its output. In the trials of
    benchmarks/RESULTS.md that learns most from as many steps."""
    deep_supervision: bool = False
    """Add a loss at the lower resolutions of the decoder, except for the lowest."""
    upsampling: Literal["transposed", "trilinear"] = "transposed"
    """2x2x2 up-convolution, or a 1x1x1 convolution and interpolation."""
    padding: Literal["same", "valid"] = "same"
    """`valid` pads nothing and crops the skip connections, as in the original."""

    @model_validator(mode="after")
    def _lower_resolutions_must_exist(self) -> UNetConfig:
        if self.deep_supervision and self.levels < 4:
            raise ConfigError(
                f"a network of {self.levels} levels has no lower resolution for deep_supervision",
                hint="it leaves out the two lowest levels: use 4 or more, or deep_supervision: "
                "false",
            )
        return self

    @property
    def widths(self) -> list[int]:
        """Channels of each level, the full resolution first."""
        doubled = [self.channels * 2**level for level in range(self.levels)]
        most = self.most_channels or doubled[-1]
        return [min(width, most) for width in doubled]

    @property
    def depends_on_window(self) -> bool:
        """Whether the result at a voxel depends on the window that it is computed in."""
        return self.norm in ("instance", "group")

    @property
    def multiple(self) -> int:
        """Edges that the poolings halve without a remainder are multiples of this."""
        return int(2 ** (self.levels - 1))

    @property
    def margin(self) -> int:
        """Voxels that the output is smaller by on each side: 0 under `padding: same`."""
        # Each level loses `_lost_down` of its own voxels going down, and `_lost_up` going up but
        # for the lowest; a voxel of level l is 2^l voxels of the full resolution.
        down = self._lost_down * (2 * self.multiple - 1)
        return (down + self._lost_up * (self.multiple - 1)) // 2

    def output_size(self, edge: int) -> int:
        """Edge of the output for an input of `edge` voxels.

        Raises:
            ConfigError: If the poolings cannot halve it, or leave too little.
        """
        size = edge - 2 * self.margin
        if size < 1 or edge < self._least or self._remainder(edge):
            raise ConfigError(
                f"a patch of {edge} voxels does not fit a network of {self.levels} levels "
                f"with padding: {self.padding} and norm: {self.norm}",
                hint=f"try a patch_size of {self.input_size(size)}",
            )
        return size

    def input_size(self, output: int) -> int:
        """Smallest edge of an input that gives at least `output` voxels (and at least one)."""
        edge = max(output + 2 * self.margin, 1 + 2 * self.margin, self._least)
        return edge + (-self._remainder(edge)) % self.multiple

    @property
    def _least(self) -> int:
        """Smallest edge whose lowest level has a spread, by which these norms divide."""
        return 2 * self.multiple if self.depends_on_window else 1

    @property
    def _lost_down(self) -> int:
        return 4 if self.padding == "valid" else 0  # two 3x3x3 convolutions, a voxel on each side

    @property
    def _lost_up(self) -> int:
        # Interpolation has no neighbour for the outermost voxels, which would differ at a seam.
        interpolated = 2 if self.padding == "valid" and self.upsampling == "trilinear" else 0
        return self._lost_down + interpolated

    def _remainder(self, edge: int) -> int:
        """What keeps `edge` from being halved at every level: 0 if nothing does."""
        # Going up from n voxels at the lowest level, the output is n * 2^(levels-1) - this:
        cropped = self._lost_up * (self.multiple - 1)
        return (edge - 2 * self.margin + cropped) % self.multiple


CLASSIC = UNetConfig(
    channels=64,
    most_channels=None,
    levels=5,
    norm="none",
    activation="relu",
    dropout=0,
    residual=False,
    deep_supervision=False,
    upsampling="transposed",
    padding="valid",
)
"""The U-Net of 23 convolutional layers (Ronneberger et al. 2015, arXiv 1505.04597) in three
dimensions (Çiçek et al. 2016, arXiv 1606.06650): 64 to 1024 channels, no norm, no padding."""


PRESETS: Mapping[str, UNetConfig] = {"unet": UNetConfig(), "classic": CLASSIC}
"""Networks of brats by the names that `network` may have."""


# A file of a network may ask for layers without number, which would take all memory.
_MOST_CHANNELS, _MOST_ENTRIES = 4096, 64


class MonaiConfig(Settings):
    """A network of MONAI, by the name of its class in `monai.networks.nets`."""

    name: str = Field(pattern=f"^{MONAI}.+")
    """As `monai/SegResNet`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What the class is called with, beside what brats knows: channels and patch size."""

    @model_validator(mode="after")
    def _no_network_is_so_large(self) -> MonaiConfig:
        waiting: list[Any] = [self.options]
        while waiting:
            value = waiting.pop()
            if isinstance(value, Mapping):
                waiting.extend(value.values())
            elif isinstance(value, list | tuple):
                waiting.extend(value[:_MOST_ENTRIES])
            large = isinstance(value, int) and abs(value) > _MOST_CHANNELS
            if large or (isinstance(value, list | tuple) and len(value) > _MOST_ENTRIES):
                raise ConfigError(
                    f"no network of MONAI takes {brief(value)} among its options",
                    hint=f"numbers are at most {_MOST_CHANNELS}, lists have at most "
                    f"{_MOST_ENTRIES} entries",
                )
        return self


WELL_KNOWN = (
    "monai/AttentionUnet",
    "monai/BasicUNet",
    "monai/DynUNet",
    "monai/SegResNet",
    "monai/SwinUNETR",
    "monai/UNETR",
    "monai/UNet",
    "monai/VNet",
)
"""For hints only: the installed MONAI decides which networks there are."""


Channels = Annotated[int, Field(ge=1, le=_MOST_CHANNELS)]
Few = Annotated[int, Field(ge=0, le=_MOST_ENTRIES)]


class NnunetConfig(Settings):
    """A U-Net of nnU-Net v2, one entry per resolution, the full one first."""

    name: Literal["nnunet/PlainConvUNet", "nnunet/ResidualEncoderUNet"]
    """The class in `dynamic_network_architectures`."""
    features: tuple[Channels, ...] = Field(min_length=2, max_length=12)
    """Channels."""
    kernels: tuple[tuple[Few, Few, Few], ...]
    """Voxels of the convolutions' kernels along each axis."""
    strides: tuple[tuple[Few, Few, Few], ...]
    """How much coarser than the resolution before, along each axis."""
    blocks: tuple[Few, ...]
    """Convolutions, or residual blocks, of the encoder, per resolution."""
    decoder_blocks: tuple[Few, ...]
    """Convolutions of the decoder, per resolution except for the lowest."""
    bias: bool = True
    """Whether convolutions have a bias."""
    norm: Literal["instance", "batch"] = "instance"
    """Between convolution and activation."""
    eps: float = Field(default=1e-5, gt=0)
    """What the norm adds to the variance."""
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    """After the norm; the slope of `leaky_relu` is 0.01."""
    outputs: Literal["regions", "labels"] = "regions"
    """A logit per region, or one per label and one for the background, for a softmax."""

    @model_validator(mode="after")
    def _one_entry_per_resolution(self) -> NnunetConfig:
        lengths = {len(self.kernels), len(self.strides), len(self.blocks), len(self.features)}
        if lengths != {len(self.decoder_blocks) + 1}:
            raise ConfigError(
                f"the settings of {self.name} are for different numbers of resolutions",
                hint="each but decoder_blocks has one entry per resolution, that one less",
            )
        return self


NetworkConfig = UNetConfig | MonaiConfig | NnunetConfig


def network_config(value: object) -> NetworkConfig:
    """A network's config from its name, or from settings that may start from a `name`.

    `classic` and `{name: classic, padding: same}` are `CLASSIC` and a variant of it; without a
    name, settings start from the default. `monai/SegResNet` takes `options`.

    Raises:
        ConfigError: If no network has the name.
        ValidationError: If it does not have the settings.
    """
    if isinstance(value, UNetConfig | MonaiConfig | NnunetConfig):
        return value
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or "name" not in settings:
        return UNetConfig.model_validate(settings)
    name = settings["name"]
    if str(name).startswith(MONAI):
        return MonaiConfig.model_validate(settings)
    if str(name).startswith(NNUNET):
        return NnunetConfig.model_validate(settings)
    if name not in PRESETS:
        known = f"networks are {', '.join(PRESETS)} and MONAI's, as monai/SegResNet"
        raise ConfigError(
            f"there is no network '{name}'",
            hint=did_you_mean(str(name), [*PRESETS, *WELL_KNOWN], otherwise=known, cutoff=0.5),
        )
    others = {key: setting for key, setting in settings.items() if key != "name"}
    return UNetConfig.model_validate({**PRESETS[name].model_dump(), **others})


def stored_network_config(value: object) -> NetworkConfig:
    """A network's config as a checkpoint or a run has it."""
    return network_config(as_of_its_version(value))


def as_of_its_version(network: object) -> object:
    """Stored settings of a network, with the defaults of the version that stored them."""
    if isinstance(network, Mapping) and "name" not in network:
        return {"residual": False, **network}  # brats 0.1.0 had no such blocks
    return network
