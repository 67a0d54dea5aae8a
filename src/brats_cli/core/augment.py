"""How training patches are varied: torch operations on the training device, CPU and GPU alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .config import AugmentConfig

CONTROL_POINTS_MM = 32
"""Distance of the points whose random displacement makes an elastic deformation."""


def augment(
    images: torch.Tensor,
    labels: torch.Tensor,
    config: AugmentConfig,
    random: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vary every patch of a batch in its own way.

    One interpolation does everything spatial, and each change of intensity touches only the
    modalities that it was drawn for; what is not chosen keeps its values bit for bit.

    Args:
        images: (B, C, X, Y, Z) float16 or float32, z-scores with 0 outside the brain.
        labels: (B, X, Y, Z) uint8.
        config: Probabilities and strengths.
        random: A CPU generator, so that one seed varies alike on every device.

    Returns:
        New images (float32) and labels; labels are taken from the nearest voxel.
    """
    if not config.enabled:
        return images.float(), labels
    images, labels = _move(images, labels, config, random)
    for patch in images:
        for modality in patch:
            _vary(modality, config, random)
        _drop_modalities(patch, config, random)
    return images, labels


# --- where voxels are --------------------------------------------------------------------------


def _move(
    images: torch.Tensor, labels: torch.Tensor, config: AugmentConfig, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip, rotate, scale and deform."""
    moved = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    found = torch.empty_like(labels)
    for image, label, new_image, new_label in zip(images, labels, moved, found, strict=True):
        flips = (torch.rand(3, generator=random) < config.flip).tolist()
        matrix = _matrix(config, random)
        shift = _displacement(label.shape, config, random)
        if matrix is None and shift is None:
            axes = [axis - 3 for axis in range(3) if flips[axis]]
            new_image.copy_(image.flip(axes))
            new_label.copy_(label.flip(axes))
        else:
            signs = torch.tensor([-1.0 if flip else 1.0 for flip in flips])
            matrix = torch.diag(signs) @ (torch.eye(3) if matrix is None else matrix)
            pair = resample(image.float(), label, matrix, shift)
            new_image.copy_(pair[0])
            new_label.copy_(pair[1])
    return moved, found


def _matrix(config: AugmentConfig, random: torch.Generator) -> torch.Tensor | None:
    """A random rotation and scaling, from output to input voxels, or None for neither."""
    rotates = _happens(config.rotation, random)
    angles = _between(-1, 1, random, 3) * math.radians(config.rotation_degrees)
    scales = _happens(config.scaling, random)
    largest = math.log(1 + config.scaling_range)
    factor = math.exp(float(_between(-largest, largest, random)))
    if not rotates and not scales:
        return None
    turn = rotation_matrix(angles) if rotates else torch.eye(3)
    # A patch that is to look larger reads from a smaller place.
    return turn / factor if scales else turn


def _displacement(
    shape: torch.Size, config: AugmentConfig, random: torch.Generator
) -> torch.Tensor | None:
    """A smooth random displacement (3, X, Y, Z) in voxels, on the CPU, or None."""
    happens = _happens(config.elastic, random)
    points = [max(2, round(side / CONTROL_POINTS_MM) + 1) for side in shape]
    shifts = _between(-1, 1, random, 3, *points) * config.elastic_mm
    if not happens:
        return None
    return F.interpolate(shifts[None], tuple(shape), mode="trilinear", align_corners=True)[0]


def resample(
    image: torch.Tensor,
    label: torch.Tensor,
    matrix: torch.Tensor,
    displacement: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A patch read at other places: of voxel o, at `matrix @ o + displacement[o]` from its middle.

    Beyond the patch is background, 0. The image is interpolated linearly.

    Args:
        image: (C, X, Y, Z) float32.
        label: (X, Y, Z) uint8.
        matrix: (3, 3).
        displacement: (3, X, Y, Z) in voxels.
    """
    shape = label.shape
    offsets = [
        (torch.arange(side, device=image.device) - (side - 1) / 2).reshape(
            [-1 if axis == other else 1 for other in range(3)]
        )
        for axis, side in enumerate(shape)
    ]
    grid = torch.empty((*shape, 3), device=image.device)
    for axis, side in enumerate(shape):
        place = sum(float(matrix[axis, other]) * offsets[other] for other in range(3))
        if displacement is not None:
            place = place + displacement[axis].to(image.device)
        # grid_sample counts from the middle in half patches, the last axis first.
        grid[..., 2 - axis] = place * (2 / side)
    moved = _sample(image, grid, "bilinear")
    return moved, _sample(label[None].float(), grid, "nearest")[0].to(label.dtype)


def _sample(image: torch.Tensor, grid: torch.Tensor, mode: str) -> torch.Tensor:
    # On a CPU, torch works on the images of a batch side by side, and on one by one thread alone:
    # slabs of the output pass for a batch of images, each read from the same input.
    slabs = math.gcd(len(grid), torch.get_num_threads()) if image.device.type == "cpu" else 1
    parts = F.grid_sample(
        image[None].expand(slabs, -1, -1, -1, -1),
        grid.reshape(slabs, -1, *grid.shape[1:]),
        mode=mode,
        align_corners=False,
    )
    return parts.transpose(0, 1).reshape(image.shape)


def rotation_matrix(angles: torch.Tensor) -> torch.Tensor:
    """The rotation (3, 3) about the first, then the second, then the third axis; angles in rad."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(angles.tolist()):
        first, second = [other for other in range(3) if other != axis]
        turn = torch.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


# --- what they look like -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Changes:
    """What happens to one modality of one patch; None where nothing does."""

    noise_std: float | None
    blur_sigma: float | None
    brightness: float | None
    contrast: float | None
    resolution: float | None
    gamma: float | None

    @classmethod
    def draw(cls, config: AugmentConfig, random: torch.Generator) -> _Changes:
        def maybe(probability: float, low: float, high: float) -> float | None:
            happens = _happens(probability, random)
            value = float(_between(low, high, random))
            return value if happens else None

        return cls(
            noise_std=maybe(config.noise, 0, config.noise_std),
            blur_sigma=maybe(config.blur, 0.5, config.blur_sigma_mm),
            brightness=maybe(config.brightness, -config.brightness_shift, config.brightness_shift),
            contrast=maybe(config.contrast, 1 - config.contrast_range, 1 + config.contrast_range),
            resolution=maybe(config.low_resolution, config.lowest_resolution, 1),
            gamma=maybe(config.gamma, 1 - config.gamma_range, 1 + config.gamma_range),
        )


def _vary(image: torch.Tensor, config: AugmentConfig, random: torch.Generator) -> None:
    """Change the intensities of one modality (X, Y, Z) in place; background stays 0."""
    changes = _Changes.draw(config, random)
    seed = int(torch.randint(2**62, (), generator=random))
    if changes == _Changes(*[None] * 6):
        return
    background = image == 0
    if changes.noise_std is not None:
        grain = torch.Generator(image.device).manual_seed(seed)
        image.add_(torch.empty_like(image).normal_(0, changes.noise_std, generator=grain))
    if changes.blur_sigma is not None:
        image.copy_(blur(image, changes.blur_sigma))
    if changes.contrast is not None:
        image.mul_(changes.contrast)  # about 0, the mean of a z-score
    if changes.brightness is not None:
        image.add_(changes.brightness)
    if changes.resolution is not None:
        image.copy_(lower_resolution(image, changes.resolution))
    if changes.gamma is not None:
        _bend(image, changes.gamma)
    image.masked_fill_(background, 0)


def blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """`image` (X, Y, Z) under a Gaussian of `sigma` voxels, cut off at three of them.

    Sums of shifted copies: with one channel, torch's convolution takes four times as long.
    """
    radius = math.ceil(3 * sigma)
    taps = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(-radius, radius + 1)]
    for axis, side in enumerate(image.shape):
        padding = [0] * 6
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = radius
        padded = F.pad(image[None, None], padding, "replicate")[0, 0]
        image = torch.zeros_like(image)
        for step, tap in enumerate(taps):
            image.add_(padded.narrow(axis, step, side), alpha=tap / sum(taps))
    return image


def lower_resolution(image: torch.Tensor, share: float) -> torch.Tensor:
    """`image` (X, Y, Z) as if it had been scanned with `share` of the voxels along each axis."""
    coarse = [max(1, round(side * share)) for side in image.shape]
    few = F.interpolate(image[None, None], coarse, mode="nearest-exact")
    return F.interpolate(few, list(image.shape), mode="trilinear", align_corners=False)[0, 0]


def _bend(image: torch.Tensor, gamma: float) -> None:
    """Raise the intensities, brought to 0..1, to `gamma`, and bring them back to their range."""
    low, high = torch.aminmax(image)
    span = (high - low).clamp_min(1e-6)
    image.sub_(low).div_(span).clamp_(0, 1).pow_(gamma).mul_(span).add_(low)


def _drop_modalities(patch: torch.Tensor, config: AugmentConfig, random: torch.Generator) -> None:
    """Blank one to all but one of a patch's modalities (C, X, Y, Z), as if never scanned."""
    happens = _happens(config.modality_dropout, random)
    order = torch.randperm(len(patch), generator=random).tolist()
    count = int(torch.randint(1, max(2, len(patch)), (), generator=random))
    if happens and len(patch) > 1:
        patch[order[:count]] = 0


def _happens(probability: float, random: torch.Generator) -> bool:
    return float(torch.rand((), generator=random)) < probability


def _between(low: float, high: float, random: torch.Generator, *shape: int) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=random)
