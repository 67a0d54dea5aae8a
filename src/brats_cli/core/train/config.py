"""The settings of a training: flag > YAML file > default; unknown settings are refused."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from ..errors import ConfigError, UnreadableFileError
from ..model.config import (
    MONAI,
    NNUNET,
    MonaiConfig,
    NetworkConfig,
    NnunetConfig,
    Settings,
    UNetConfig,
    as_of_its_version,
    network_config,
)
from ..prepared.recipe import Recipe
from ..reading import parse_yaml, read_text, reason_of
from ..wording import brief, did_you_mean
from ..writing import whole_file

Modality = Literal["t1", "t1ce", "t2", "flair"]
Probability = Annotated[float, Field(ge=0, le=1)]


class AugmentConfig(Settings):
    """Augmentation of the training patches.

    Spatial transforms are drawn per patch, intensity transforms per modality of a patch. The
    probabilities are at least those of nnU-Net's default.
    """

    enabled: bool = True
    """Whether patches are augmented at all."""
    flip: Probability = 0.5
    """Mirror, drawn for each axis separately."""
    spatial: Probability = 0.25
    """Rotate, scale and deform, which together cost no more than one of them."""
    rotation_degrees: float = Field(default=30, ge=0, le=180)
    """Largest angle about each axis."""
    scaling_range: float = Field(default=0.3, ge=0)
    """Largest change of size: 0.3 is between 1/1.3 and 1.3."""
    elastic_mm: float = Field(default=6, ge=0, le=15)
    """Largest displacement; beyond 16 mm the deformation would fold."""
    noise: Probability = 0.1
    """Add Gaussian noise."""
    noise_std: float = Field(default=0.3, ge=0)
    """Largest standard deviation of the noise, in units of the z-score."""
    blur: Probability = 0.1
    """Smooth with a Gaussian."""
    blur_sigma_mm: float = Field(default=1.0, ge=0.5)
    """Largest standard deviation of that Gaussian; the smallest is 0.5."""
    brightness: Probability = 0.15
    """Shift all intensities."""
    brightness_shift: float = Field(default=0.25, ge=0)
    """Largest shift, in units of the z-score."""
    contrast: Probability = 0.15
    """Stretch intensities about their mean."""
    contrast_range: float = Field(default=0.25, ge=0, lt=1)
    """Largest change of contrast: 0.25 is between 75 % and 125 %."""
    low_resolution: Probability = 0.125
    """Simulate a lower resolution."""
    lowest_resolution: float = Field(default=0.5, gt=0, le=1)
    """Smallest share of voxels along each axis."""
    gamma: Probability = 0.4
    """Gamma transform of the intensities."""
    gamma_range: float = Field(default=0.3, ge=0, lt=1)
    """Largest change of the exponent: 0.3 is between 0.7 and 1.3."""
    modality_dropout: Probability = 0.0
    """Set one to all but one of the modalities to 0, so that the network can do without some."""


class TrainConfig(Settings):
    """All that decides what a run learns; saved in its folder and its checkpoints."""

    epochs: int = Field(default=100, ge=1)
    """Epochs to train; may be raised on `--resume`."""
    steps_per_epoch: int = Field(default=250, ge=1)
    """Optimiser steps per epoch, whatever the number of cases."""
    batch_size: int = Field(default=2, ge=1)
    """Patches per step."""
    patch_size: int = Field(default=128, ge=8)
    """Edge of the cubic training patch, in voxels of 1 mm."""
    tumour_share: Probability = 0.5
    """Share of patches centred on a voxel of WT, TC or ET, each as often as the others where a
    case has it; the rest are centred anywhere in the brain. At 0.75 the network sees too little of
    healthy brain, and finds tumour in it."""
    modalities: tuple[Modality, ...] = Field(default=("t1", "t1ce", "t2", "flair"), min_length=1)
    """MR sequences, the network's input channels in this order."""
    network: Annotated[NetworkConfig, BeforeValidator(network_config)] = UNetConfig()
    """The network: the shape of a U-Net, `classic`, or one of MONAI's, as `monai/SegResNet`."""
    augmentation: AugmentConfig = AugmentConfig()
    """Augmentation of the patches."""
    loss: Literal["dice", "dice_ce", "dice_focal", "jaccard"] = "dice_ce"
    """Dice loss, its sum with binary cross-entropy or focal loss, or Jaccard loss. The sum with
    cross-entropy scored best in the trials of benchmarks/RESULTS.md."""
    loss_per_sample: bool = False
    """Overlap of each patch on its own, not of all patches of a step together."""
    loss_squared: bool = False
    """Probabilities squared in the denominator of the overlap (Milletari et al. 2016)."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam, Adam with decoupled weight decay, or SGD with Nesterov's momentum of 0.99."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """The highest learning rate."""
    weight_decay: float = Field(default=0, ge=0)
    """L2 penalty; decoupled from the gradient for `adamw`."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of a step's gradient; `null` does not clip."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients make one step, as if the batch were that much larger."""
    ema_decay: float = Field(default=0, ge=0, lt=1)
    """Keep, validate and predict with an exponential moving average of the weights, which keeps
    this share of itself at every step: 0.999, say; 0 for the weights themselves."""
    warmup_epochs: int = Field(default=0, ge=0)
    """Epochs during which the learning rate rises from 0."""
    schedule: Literal["plateau", "poly", "cosine"] = "plateau"
    """Lower the learning rate when validation stops improving, by (1 - epoch/epochs)^0.9, or along
    half a cosine."""
    plateau_epochs: int = Field(default=10, ge=1)
    """Validations without a better score before the learning rate is lowered."""
    plateau_factor: float = Field(default=0.3, gt=0, lt=1)
    """Factor by which the learning rate is multiplied then."""
    patience: int | None = Field(default=30, ge=1)
    """Validations without a better score before training stops; `null` never stops early."""
    validate_every: int = Field(default=1, ge=1)
    """Epochs from one validation to the next; the last epoch is always validated."""
    validate_cases: int | None = Field(default=32, ge=1)
    """Cases that a validation takes, spread evenly over the validation cases, so that it does not
    take longer than an epoch; `null` takes all. All are scored once training has ended."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the network; `auto` is bfloat16 where the device computes it natively, float16
    on NVIDIA's Volta and Turing, else float32."""
    compile: bool = False
    """Compile the network before the first step, which takes a minute and a C++ compiler. Steps
    were 11 % shorter on two CPU cores."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that read patches; `null` takes what this process may use, less one."""
    seed: int = Field(default=0, ge=0)
    """Decides initial weights, patches and augmentation."""
    init: str | None = None
    """Checkpoint or run whose weights training starts from; its network, modalities and patch size
    are then the defaults."""
    init_partial: bool = False
    """Start although some layers of the network do not fit those of `init`, from random values."""
    freeze: Literal["none", "encoder"] = "none"
    """`encoder` keeps the encoder as it is in `init`, to overfit less with few cases."""
    preparation: Recipe | None = None
    """How images are prepared, if not as brats does; taken from `init`."""
    origin: dict[str, Any] | None = None
    """What `init` was when the run began; filled in by brats."""

    @model_validator(mode="after")
    def _frozen_weights_must_come_from_somewhere(self) -> TrainConfig:
        if self.freeze != "none" and not self.init:
            raise ConfigError(
                f"freeze: {self.freeze} would keep random weights",
                hint="add --init MODEL, whose weights it keeps",
            )
        return self

    @model_validator(mode="after")
    def _patch_must_fit(self) -> TrainConfig:
        network = self.network
        if not isinstance(network, UNetConfig):  # MONAI's are asked when they are made
            return self
        network.output_size(self.patch_size)
        if (network.norm, self.batch_size) == ("batch", 1) and self.patch_size == network.multiple:
            raise ConfigError(
                f"batch norm of one patch of {self.patch_size} voxels has a single value on the "
                f"lowest of {network.levels} levels, and no spread",
                hint=f"use a batch_size of 2, or a patch_size of {2 * network.multiple}",
            )
        return self

    def save(self, path: Path) -> None:
        """Write every setting as YAML; `load_config` reads it back."""
        with whole_file(path) as partial:
            partial.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


_LEFT_TO_INIT = ("preparation", "origin")


def load_config(
    path: Path | None = None,
    *,
    of_a_run: bool = False,
    defaults: Mapping[str, object] | None = None,
    **overrides: object,
) -> TrainConfig:
    """Defaults, then the YAML file, then `overrides`.

    Args:
        path: YAML file with any of the settings.
        of_a_run: The file is a run's own, with every setting of perhaps an older brats.
        defaults: Settings of the data set, or of the checkpoint that the training starts from.
        overrides: Settings by name; `{"network.channels": 16}` reaches into a section, after
            `{"network": "classic"}` has replaced it.

    Raises:
        ConfigError: If a setting is unknown (the hint suggests the nearest) or invalid.
    """
    settings = _read_yaml(path) if path else {}
    taken_over = copy.deepcopy(dict(defaults or {}))
    # `null` leaves these to `init`.
    given = {name: value for name, value in settings.items() if name not in _LEFT_TO_INIT or value}
    settings = {**taken_over, **given}
    if of_a_run:
        settings["network"] = as_of_its_version(settings.get("network", {}))
    for key, value in sorted(overrides.items(), key=lambda item: item[0].count(".")):
        _put(settings, key.split("."), value)
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        raise _as_config_error(error, settings, path) from error


def initial_model(path: Path | None, overrides: Mapping[str, object]) -> Path | None:
    """The checkpoint or run that a training starts from, by its YAML file and overrides."""
    found = overrides.get("init") or (_read_yaml(path).get("init") if path else None)
    return Path(str(found)) if found else None


def parse_setting(text: str) -> tuple[str, object]:
    """Read `key=value` as given to `--set`, the value as YAML reads it.

    Raises:
        ConfigError: If there is no `=`, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text} is not KEY=VALUE", hint="write --set network.channels=16")
    try:
        return key.strip(), parse_yaml(value)
    except ValueError as error:
        raise ConfigError(f"cannot read the value of --set {text}", hint="quote it") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(read_text(path))
    except (UnreadableFileError, ValueError) as error:
        reason = str(error).removeprefix(f"cannot read {path}: ")
        if isinstance(error, ValueError):
            reason = reason_of(error, "it is not a YAML file")
        elif reason == "it is not text":
            reason = "it is not a YAML file"
        raise ConfigError(
            f"cannot read settings from {path}: {reason}",
            hint="see examples/train.yaml for every setting",
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} holds no settings", hint="write lines like 'epochs: 100'; see examples/"
        )
    return content


def _put(settings: dict[str, Any], keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        inner = settings.setdefault(key, {})
        if key == "network" and isinstance(inner, str):
            inner = settings[key] = {"name": inner}
        if not isinstance(inner, dict):
            raise ConfigError(
                f"setting '{'.'.join(keys)}' is not within a section",
                hint=f"'{key}' has the value {brief(inner)}",
            )
        settings = inner
    settings[keys[-1]] = value


def _as_config_error(
    error: ValidationError, settings: Mapping[str, Any], path: Path | None
) -> ConfigError:
    first = error.errors()[0]
    keys = [str(part) for part in first["loc"]]
    where = f" in {path}" if path else ""
    if first["type"] == "extra_forbidden":
        known = _known_settings(keys[:-1], settings)
        return ConfigError(
            f"unknown setting '{'.'.join(keys)}'{where}",
            hint=did_you_mean(
                keys[-1], known, otherwise=f"the settings here are {', '.join(known)}"
            ),
        )
    return ConfigError(
        f"setting '{'.'.join(keys)}'{where} cannot be {brief(first['input'])}",
        hint=first["msg"][0].lower() + first["msg"][1:],
    )


def _known_settings(section: list[str], settings: Mapping[str, Any]) -> list[str]:
    if section == ["network"]:
        name = str(settings["network"].get("name"))
        if name.startswith(MONAI):
            return list(MonaiConfig.model_fields)
        return list((NnunetConfig if name.startswith(NNUNET) else UNetConfig).model_fields)
    model: Mapping[str, Any] = TrainConfig.model_fields
    for key in section:
        model = model[key].annotation.model_fields
    return list(model)
