"""How training patches are varied: batched torch operations on the training device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .config import AugmentConfig


def augment(
    images: torch.Tensor,
    labels: torch.Tensor,
    config: AugmentConfig,
    random: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vary every patch of a batch in its own way.

    One interpolation does everything spatial; patches that are not chosen for a change keep
    their values bit for bit.

    Args:
        images: (B, C, X, Y, Z) float, z-scores with 0 outside the brain.
        labels: (B, X, Y, Z) uint8.
        config: Probabilities and strengths.
        random: A CPU generator, so that one seed varies alike on every device.

    Returns:
        New images and labels; labels are resampled to nearest neighbours.
    """
    if not config.enabled:
        return images, labels
    images, labels = _flip(images, labels, config, random)
    images, labels = _rotate_and_scale(images, labels, config, random)
    return _vary_intensities(images, config, random), labels


def _flip(
    images: torch.Tensor, labels: torch.Tensor, config: AugmentConfig, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = torch.rand(len(images), 3, generator=random) < config.flip
    pairs = [
        (image.flip(axes), label.flip(axes))
        for image, label, axes in (
            (image, label, [axis - 3 for axis in range(3) if flips[axis]])
            for image, label, flips in zip(images, labels, chosen, strict=True)
        )
    ]
    return torch.stack([image for image, _ in pairs]), torch.stack([label for _, label in pairs])


def _rotate_and_scale(
    images: torch.Tensor, labels: torch.Tensor, config: AugmentConfig, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = torch.rand(len(images), generator=random) < config.spatial
    angles = _uniform(random, (len(images), 3)) * math.radians(config.rotation_degrees)
    scales = 1 + _uniform(random, (len(images), 1, 1)) * config.scaling
    # Output to input: a patch that is to look larger reads from a smaller place.
    matrices = rotation_matrices(angles) / scales
    rows = chosen.nonzero()[:, 0].to(images.device)
    if len(rows):
        images, labels = images.clone(), labels.clone()
        turned = resample(images[rows], labels[rows], matrices[chosen].to(images.device))
        images[rows], labels[rows] = turned
    return images, labels


def resample(
    images: torch.Tensor, labels: torch.Tensor, matrices: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply (B, 3, 3) matrices, from output to input voxels about the patches' centres.

    Beyond the patch is background: 0 in images and labels. Images are interpolated linearly.
    """
    size = torch.tensor(images.shape[2:], dtype=torch.float32, device=images.device)
    # grid_sample measures each axis in half patches, and names the last axis first.
    relative = matrices.float() * size[None, None, :] / size[None, :, None]
    theta = F.pad(relative.flip(1, 2), (0, 1))
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid.to(images.dtype), mode="bilinear", align_corners=False)
    found = F.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False)
    return moved, found[:, 0].to(labels.dtype)


def rotation_matrices(angles: torch.Tensor) -> torch.Tensor:
    """Rotations (B, 3, 3) about the first, second and third axis in turn, angles (B, 3) in rad."""
    cos, sin = torch.cos(angles), torch.sin(angles)
    matrices = torch.eye(3).repeat(len(angles), 1, 1)
    for axis in range(3):
        first, second = [other for other in range(3) if other != axis]
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        turn[:, first, first] = turn[:, second, second] = cos[:, axis]
        turn[:, first, second], turn[:, second, first] = -sin[:, axis], sin[:, axis]
        matrices = turn @ matrices
    return matrices


def _vary_intensities(
    images: torch.Tensor, config: AugmentConfig, random: torch.Generator
) -> torch.Tensor:
    """Contrast, brightness, gamma and noise of each modality; background stays 0."""
    shape = (*images.shape[:2], 1, 1, 1)

    def chosen(probability: float, change: torch.Tensor, neutral: float) -> torch.Tensor:
        pick = torch.rand(shape, generator=random) < probability
        return torch.where(pick, change, torch.tensor(neutral)).to(images)

    contrast = chosen(config.contrast, 1 + _uniform(random, shape) * config.contrast_range, 1)
    shift = chosen(config.brightness, _uniform(random, shape) * config.brightness_shift, 0)
    gamma = chosen(config.gamma, 1 + _uniform(random, shape) * config.gamma_range, 1)
    noise = chosen(config.noise, torch.rand(shape, generator=random) * config.noise_std, 0)

    varied = images
    if bool((gamma != 1).any()):
        varied = torch.where(gamma == 1, varied, _bend(varied, gamma))
    if bool((contrast != 1).any() or (shift != 0).any()):
        varied = varied * contrast + shift
    if bool((noise != 0).any()):
        seed = int(torch.randint(2**62, (), generator=random))
        local = torch.Generator(images.device).manual_seed(seed)
        grain = torch.empty_like(varied).normal_(generator=local)
        varied = varied + grain * noise
    return torch.where(images == 0, images, varied)


def _bend(images: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """Raise each modality, brought to 0..1, to `gamma`, and bring it back to its own range."""
    low = images.amin((2, 3, 4), keepdim=True)
    span = (images.amax((2, 3, 4), keepdim=True) - low).clamp_min(1e-6)
    return ((images - low) / span).clamp(0, 1).pow(gamma) * span + low


def _uniform(random: torch.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=random) * 2 - 1
