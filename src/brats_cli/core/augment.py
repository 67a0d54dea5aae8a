"""How training patches are varied: torch operations on the training device, CPU and GPU alike."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .config import AugmentConfig

CONTROL_POINTS_MM = 32
"""Distance of the points whose random displacement makes an elastic deformation."""

_BRAIN = 128
"""Added to the labels of the brain's voxels while a patch is resampled."""

_SLAB = 16
"""Slices resampled at once on a CPU: few, so that what is computed of them stays in its cache."""


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
        return _empty(tuple(images.shape), images.device).copy_(images), labels
    moved, found = _move(images, labels, config, random)
    for patch in moved:
        for modality in patch:
            _vary(modality, config, random)
        _drop_modalities(patch, config, random)
    return moved, found


# --- where voxels are --------------------------------------------------------------------------


def _move(
    images: torch.Tensor,
    labels: torch.Tensor,
    config: AugmentConfig,
    random: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip, rotate, scale and deform."""
    moved = _empty(tuple(images.shape), images.device)
    found = torch.empty_like(labels)
    for image, label, new_image, new_label in zip(images, labels, moved, found, strict=True):
        flips = (torch.rand(3, generator=random) < config.flip).tolist()
        matrix = _matrix(config, random)
        points = _control_points(label.shape, config, random)
        if matrix is None and points is None:
            axes = [axis for axis in range(3) if flips[axis]]
            for modality, new_modality in zip(image, new_image, strict=True):
                new_modality.copy_(modality.flip(axes) if axes else modality)
            new_label.copy_(label.flip(axes))
        else:
            signs = torch.tensor([-1.0 if flip else 1.0 for flip in flips])
            matrix = torch.diag(signs) @ (torch.eye(3) if matrix is None else matrix)
            resample(image, label, matrix, points, out=(new_image, new_label))
    return moved, found


def _empty(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """A new float32 tensor; on a CPU in huge pages, which numpy asks for and torch does not.

    The system clears a new tensor page by page, which for a patch takes longer than filling it.
    """
    if device.type == "cpu":
        return torch.from_numpy(np.empty(shape, np.float32))
    return torch.empty(shape, device=device)


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


def _control_points(
    shape: torch.Size, config: AugmentConfig, random: torch.Generator
) -> torch.Tensor | None:
    """Random displacements (3, I, J, K) in voxels of a coarse grid of points, or None."""
    happens = _happens(config.elastic, random)
    points = [max(2, round(side / CONTROL_POINTS_MM) + 1) for side in shape]
    shifts = _between(-1, 1, random, 3, *points) * config.elastic_mm
    return shifts if happens else None


def resample(
    image: torch.Tensor,
    label: torch.Tensor,
    matrix: torch.Tensor,
    points: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A patch read at other places: of voxel o, at `matrix @ o + displacement(o)` from its middle.

    Images are interpolated linearly, where the nearest voxel is brain: half of a patch is not.
    Everything else, and what lies beyond the patch, is background, 0.

    Args:
        image: (C, X, Y, Z) float16 or float32.
        label: (X, Y, Z) uint8.
        matrix: (3, 3).
        points: (3, I, J, K) displacements in voxels, of points spread evenly over the patch.
        out: Where to put the new image (float32) and label.
    """
    device, shape = image.device, label.shape
    moved, found = out or (_empty(tuple(image.shape), device), torch.empty_like(label))
    # The modalities of a voxel lie side by side here, which a CPU reads a fifth faster.
    source = _empty((*shape, len(image)), device).permute(3, 0, 1, 2)
    for modality, values in zip(image, source, strict=True):
        values.copy_(modality)
    tissue = _tissue(image, label)
    planes = None if points is None else _planes(points.to(device), shape)
    step = _SLAB if device.type == "cpu" else len(label)
    for start in range(0, len(label), step):
        rows = slice(start, start + step)
        places = _places(matrix, shape, rows, planes, device)
        there = tissue.index_select(0, _nearest(places, shape))
        torch.bitwise_and(there, _BRAIN - 1, out=found[rows].view(-1))
        brain = (there >= _BRAIN).nonzero()[:, 0]
        values = _sample(source, [place.view(-1).index_select(0, brain) for place in places])
        for modality, value in zip(moved, values, strict=True):
            modality[rows].zero_().view(-1).scatter_(0, brain, value)
    return moved, found


def _tissue(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Labels, with `_BRAIN` added in the brain, in a frame of one voxel of background; flat."""
    tissue, filled = torch.zeros_like(label), torch.empty_like(label)
    for modality in image:
        tissue |= torch.ne(modality, 0, out=filled)
    tissue.mul_(_BRAIN).bitwise_or_(label)
    framed = torch.zeros([side + 2 for side in label.shape], dtype=label.dtype, device=label.device)
    framed[1:-1, 1:-1, 1:-1] = tissue
    return framed.view(-1)


def _places(
    matrix: torch.Tensor,
    shape: torch.Size,
    rows: slice,
    planes: torch.Tensor | None,
    device: torch.device,
) -> list[torch.Tensor]:
    """Where the voxels of some slices are read, from the middle of the patch, an axis each."""
    x, y, z = (torch.arange(side, device=device) - (side - 1) / 2 for side in shape)
    x = x[rows]
    places = []
    for axis, (of_x, of_y, of_z) in enumerate(matrix.tolist()):
        place = (of_x * x[:, None, None] + of_y * y[:, None]) + of_z * z
        if planes is not None:
            weights = _weights(shape[0], planes.shape[1], device)[rows]
            place.view(len(x), -1).addmm_(weights, planes[axis])
        places.append(place)
    return places


def _planes(points: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Displacements (3, I, Y * Z): interpolated along the last two axes, and not yet the first."""
    along_y = _weights(shape[1], points.shape[2], points.device)
    along_z = _weights(shape[2], points.shape[3], points.device)
    return torch.einsum("aijk,yj,zk->aiyz", points, along_y, along_z).flatten(2)


def _weights(side: int, points: int, device: torch.device) -> torch.Tensor:
    """What each of `points` even points counts at each of `side` voxels: (side, points)."""
    each = torch.eye(points, device=device)[None]
    return F.interpolate(each, side, mode="linear", align_corners=True)[0].T


def _nearest(places: list[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """Indices of the nearest voxels in `_tissue`; those beyond the patch are in its frame."""
    flat = torch.zeros_like(places[0], dtype=torch.int32)
    for place, side in zip(places, shape, strict=True):
        voxel = (place + (side + 1) / 2).round_().clamp_(0, side + 1)
        flat.mul_(side + 2).add_(voxel.int())
    return flat.view(-1)


def _sample(image: torch.Tensor, places: list[torch.Tensor]) -> torch.Tensor:
    """Values (C, N) of an image (C, X, Y, Z) at N places, given an axis each."""
    # grid_sample counts from the middle in half patches, the last axis first.
    sides = image.shape[1:]
    grid = torch.stack([places[axis] * (2 / sides[axis]) for axis in (2, 1, 0)], dim=-1)
    # On a CPU, torch works on the images of a batch side by side, and on one by one thread alone:
    # shares of the places pass for a batch, each read from the same image.
    shares = torch.get_num_threads() if image.device.type == "cpu" else 1
    grid = F.pad(grid, (0, 0, 0, -len(grid) % shares)).view(shares, 1, 1, -1, 3)
    found = F.grid_sample(image[None].expand(shares, -1, -1, -1, -1), grid, align_corners=False)
    return found.transpose(0, 1).reshape(len(image), -1)[:, : len(places[0])]


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
    # 1 or 0, and not true or false, with which a CPU takes six times as long.
    inside = torch.ne(image, 0, out=torch.empty_like(image))
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
    image.mul_(inside)


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
