"""Augmentation of training patches: torch operations on the training device, CPU and GPU alike."""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from ..compute.devices import sent
from .config import AugmentConfig

CONTROL_POINTS_MM = 32
"""Spacing of the control points whose random displacements make an elastic deformation."""

_BRAIN = 128
"""Added to the labels of the brain's voxels while a patch is resampled."""

_SLAB = 16
"""Slices resampled at once on a CPU: few, so that intermediate results stay in its cache."""


def augment(
    images: torch.Tensor,
    labels: torch.Tensor,
    config: AugmentConfig,
    random: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment every patch of a batch, each with parameters of its own.

    One interpolation applies all spatial transforms, and each intensity transform changes only the
    modalities that it was drawn for; all other values stay the same bit for bit.

    Args:
        images: (B, C, X, Y, Z) float16 or float32, z-scores with 0 outside the brain.
        labels: (B, X, Y, Z) uint8.
        config: Probabilities and strengths.
        random: A CPU generator, so that one seed augments alike on every device, except for the
            noise, which the device draws.

    Returns:
        New images (float32) and labels; labels are taken from the nearest voxel.
    """
    moved = _empty(tuple(images.shape), images.device)
    if not config.enabled:
        return moved.copy_(images), labels
    found = torch.empty_like(labels)
    moves, changes = [], []
    for label in labels:
        moves.append(_Move.draw(label.shape, config, random))
        changes.append([_Changes.draw(config, random) for _ in range(images.shape[1])])
        for blank in _blanked(images.shape[1], config, random):
            changes[-1][blank] = _Changes(blank=True)
    resamplings, flips = [], []
    for image, label, move, *out in zip(images, labels, moves, moved, found, strict=True):
        if move.matrix is None:
            for source, target in zip((label, *image), (out[1], *out[0]), strict=True):
                flips.append(partial(_flip, source, move.flips, target))
        else:
            resamplings.append(Resampling(image, label, move.matrix, move.points, *out))
    # The tasks of all patches in one list, so that no thread waits for a second patch.
    device = images.device
    _run([partial(each.read, rows) for each in resamplings for rows in each.slabs], device)
    _run([partial(each.write, rows) for each in resamplings for rows in each.slabs] + flips, device)
    modalities = zip(moved.flatten(0, 1), itertools.chain(*changes), strict=True)
    _run([partial(change.apply, modality) for modality, change in modalities], device)
    return moved, found


def _run(tasks: Sequence[Callable[[], None]], device: torch.device) -> None:
    """Run `tasks`, on a CPU in several threads.

    Torch's own threads wait for each other after every operation, of which there are dozens here.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(tasks) < 2:
        for task in tasks:
            task()
    else:
        for done in [_pool(threads).submit(task) for task in tasks]:
            done.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that each compute alone, without torch's own threads."""
    started = threading.Barrier(threads + 1)

    def start() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, "augment", start)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(threads)  # the default for threads started later; the pool keeps its own
    return pool


# --- where voxels are --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Move:
    """The spatial transform of a patch.

    Attributes:
        flips: Axes to mirror.
        matrix: The flips, a rotation and a scaling, from output to input voxels; None for flips
            alone.
        points: (3, I, J, K) displacements in voxels of control points spread evenly over the patch.
    """

    flips: tuple[int, ...]
    matrix: torch.Tensor | None = None
    points: torch.Tensor | None = None

    @classmethod
    def draw(cls, shape: torch.Size, config: AugmentConfig, random: torch.Generator) -> _Move:
        mirrored = torch.rand(3, generator=random) < config.flip
        flips = tuple(axis for axis in range(3) if mirrored[axis])
        if not _happens(config.spatial, random):
            return cls(flips)
        angles = _between(-1, 1, random, 3) * math.radians(config.rotation_degrees)
        largest = math.log(1 + config.scaling_range)
        factor = math.exp(float(_between(-largest, largest, random)))
        # To enlarge a patch, it is sampled from a smaller region.
        matrix = torch.diag(1.0 - 2 * mirrored) @ rotation_matrix(angles) / factor
        points = [max(2, round(side / CONTROL_POINTS_MM) + 1) for side in shape]
        strength = float(_between(0, config.elastic_mm, random))
        return cls(flips, matrix, _between(-1, 1, random, 3, *points) * strength)


def _flip(image: torch.Tensor, axes: tuple[int, ...], out: torch.Tensor) -> None:
    out.copy_(image.flip(axes) if axes else image)


def _empty(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """An uninitialised float32 tensor; on a CPU in huge pages, which numpy requests, not torch.

    The system clears a new tensor page by page, which for a patch takes longer than filling it.
    """
    if device.type == "cpu":
        return torch.from_numpy(np.empty(shape, np.float32))
    return torch.empty(shape, device=device)


class Resampling:
    """A resampled patch: voxel o is sampled at `matrix @ o + displacement(o)`, from the centre.

    Images are interpolated linearly where the nearest voxel is brain, which is half of a patch.
    Everything else, and what lies beyond the patch, is background, 0. All slabs of slices are
    read before the first is written.

    Args:
        image: (C, X, Y, Z) float16 or float32.
        label: (X, Y, Z) uint8.
        matrix: (3, 3).
        points: (3, I, J, K) displacements in voxels, of points spread evenly over the patch.
        new_image: (C, X, Y, Z) float32, to be written.
        new_label: (X, Y, Z) uint8, to be written.
    """

    def __init__(
        self,
        image: torch.Tensor,
        label: torch.Tensor,
        matrix: torch.Tensor,
        points: torch.Tensor | None,
        new_image: torch.Tensor,
        new_label: torch.Tensor,
    ) -> None:
        self._image, self._label, self._matrix = image, label, matrix
        self._new_image, self._new_label = new_image, new_label
        self._shape, device = label.shape, image.device
        # The modalities of a voxel lie side by side here, which a CPU reads a fifth faster.
        self._source = _empty((*self._shape, len(image)), device).permute(3, 0, 1, 2)
        # Labels, with `_BRAIN` added in the brain, in a frame of one voxel of background.
        framed = [side + 2 for side in self._shape]
        self._tissue = torch.zeros(framed, dtype=label.dtype, device=device)
        self._planes = None if points is None else _planes(sent(points, device), self._shape)
        step = _SLAB if device.type == "cpu" else len(label)
        self.slabs = [slice(start, start + step) for start in range(0, len(label), step)]

    def read(self, rows: slice) -> None:
        """Copy some slices of the patch."""
        label, image = self._label[rows], self._image[:, rows]
        tissue, filled = torch.zeros_like(label), torch.empty_like(label)
        for modality, values in zip(image, self._source[:, rows], strict=True):
            values.copy_(modality)
            tissue |= torch.ne(modality, 0, out=filled)
        self._tissue[1:-1, 1:-1, 1:-1][rows] = tissue.mul_(_BRAIN).bitwise_or_(label)

    def write(self, rows: slice) -> None:
        """Interpolate some slices of the augmented patch."""
        places = _places(self._matrix, self._shape, rows, self._planes, self._image.device)
        there = self._tissue.view(-1).index_select(0, _nearest(places, self._shape))
        torch.bitwise_and(there, _BRAIN - 1, out=self._new_label[rows].view(-1))
        if there.device.type == "cuda":
            # To select the brain's voxels, the CPU would wait for the GPU; to compute all is cheap.
            values = _sample(self._source, [place.view(-1) for place in places])
            for modality, value in zip(self._new_image, values, strict=True):
                modality[rows].view(-1).copy_(value).masked_fill_(there < _BRAIN, 0)
            return
        brain = (there >= _BRAIN).nonzero()[:, 0]
        read = [place.view(-1).index_select(0, brain) for place in places]
        values = _sample(self._source, read)
        for modality, value in zip(self._new_image, values, strict=True):
            modality[rows].zero_().view(-1).scatter_(0, brain, value)


def _places(
    matrix: torch.Tensor,
    shape: torch.Size,
    rows: slice,
    planes: torch.Tensor | None,
    device: torch.device,
) -> list[torch.Tensor]:
    """Sampling positions of the voxels of some slices, from the centre; one array per axis."""
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
    """Displacements (3, I, Y * Z), interpolated along the last two axes but not yet the first."""
    along_y = _weights(shape[1], points.shape[2], points.device)
    along_z = _weights(shape[2], points.shape[3], points.device)
    return torch.einsum("aijk,yj,zk->aiyz", points, along_y, along_z).flatten(2)


def _weights(side: int, points: int, device: torch.device) -> torch.Tensor:
    """Interpolation weights of `points` evenly spaced points at `side` voxels: (side, points)."""
    each = torch.eye(points, device=device)[None]
    return F.interpolate(each, side, mode="linear", align_corners=True)[0].T


def _nearest(places: list[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """Indices of the nearest voxels in a padded patch; what lies beyond is in the padding."""
    flat = torch.zeros_like(places[0], dtype=torch.int32)
    for place, side in zip(places, shape, strict=True):
        voxel = (place + (side + 1) / 2).round_().clamp_(0, side + 1)
        flat.mul_(side + 2).add_(voxel.int())
    return flat.view(-1)


def _sample(image: torch.Tensor, places: list[torch.Tensor]) -> torch.Tensor:
    """Values (C, N) of an image (C, X, Y, Z) at N positions, given as one array per axis."""
    # grid_sample takes coordinates from -1 to 1 across the patch, the last axis first.
    sides = image.shape[1:]
    grid = torch.stack([places[axis] * (2 / sides[axis]) for axis in (2, 1, 0)], dim=-1)
    found = F.grid_sample(image[None], grid.view(1, 1, 1, -1, 3), align_corners=False)
    return found.view(len(image), -1)


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
    """The intensity transforms of one modality of one patch; None where one is not applied."""

    noise_std: float | None = None
    noise_seed: int = 0
    blur_sigma: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    resolution: float | None = None
    gamma: float | None = None
    blank: bool = False

    @classmethod
    def draw(cls, config: AugmentConfig, random: torch.Generator) -> _Changes:
        def maybe(probability: float, low: float, high: float) -> float | None:
            happens = _happens(probability, random)
            value = float(_between(low, high, random))
            return value if happens else None

        return cls(
            noise_std=maybe(config.noise, 0, config.noise_std),
            noise_seed=int(torch.randint(2**62, (), generator=random)),
            blur_sigma=maybe(config.blur, 0.5, config.blur_sigma_mm),
            brightness=maybe(config.brightness, -config.brightness_shift, config.brightness_shift),
            contrast=maybe(config.contrast, 1 - config.contrast_range, 1 + config.contrast_range),
            resolution=maybe(config.low_resolution, config.lowest_resolution, 1),
            gamma=maybe(config.gamma, 1 - config.gamma_range, 1 + config.gamma_range),
        )

    def apply(self, image: torch.Tensor) -> None:
        """Transform the intensities of a modality (X, Y, Z) in place; background stays 0."""
        if self.blank:
            image.zero_()
            return
        if self == _Changes(noise_seed=self.noise_seed):
            return
        # As floats: multiplying by a boolean mask takes a CPU six times as long.
        inside = torch.ne(image, 0, out=torch.empty_like(image))
        if self.noise_std is not None:
            grain = torch.Generator(image.device).manual_seed(self.noise_seed)
            image.add_(torch.empty_like(image).normal_(0, self.noise_std, generator=grain))
        if self.blur_sigma is not None:
            image.copy_(blur(image, self.blur_sigma))
        if self.contrast is not None:
            image.mul_(self.contrast)  # about 0, the mean of a z-score
        if self.brightness is not None:
            image.add_(self.brightness)
        if self.resolution is not None:
            image.copy_(lower_resolution(image, self.resolution))
        if self.gamma is not None:
            _bend(image, self.gamma)
        image.mul_(inside)


def blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """`image` (X, Y, Z) smoothed by a Gaussian of `sigma` voxels, truncated at three sigma.

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
    """Gamma transform: scale intensities to 0..1, raise them to `gamma`, and scale them back."""
    low, high = torch.aminmax(image)
    span = (high - low).clamp_min(1e-6)
    # x^g as exp(g log x), which takes half as long and is also right for 0.
    image.sub_(low).div_(span).log_().mul_(gamma).exp_().mul_(span).add_(low)


def _blanked(modalities: int, config: AugmentConfig, random: torch.Generator) -> list[int]:
    """Which modalities of a patch to set to 0, as if missing: none, or up to all but one."""
    happens = _happens(config.modality_dropout, random)
    order: list[int] = torch.randperm(modalities, generator=random).tolist()
    count = int(torch.randint(1, max(2, modalities), (), generator=random))
    return order[:count] if happens and modalities > 1 else []


def _happens(probability: float, random: torch.Generator) -> bool:
    return float(torch.rand((), generator=random)) < probability


def _between(low: float, high: float, random: torch.Generator, *shape: int) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=random)
