"""From a case on disk to its label map: windows, weights, thresholds and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from .cases import Case, read_images
from .checkpoints import Checkpoint
from .devices import arithmetic, autocast, memory_for_network
from .labels import LabelScheme
from .network import UNet3D
from .preparation import prepare, to_native
from .volumes import Volume, write_label_map

OVERLAP = 0.5
"""Share of a window that its neighbour covers too."""

THRESHOLD = 0.5
"""Probability from which a voxel belongs to a region."""

# Feature maps of the first level alive at once in evaluation: skip, up-sampled, both joined, and
# input and output of a convolution with its workspace. Measured at 8; the rest is safety.
_LIVE_MAPS = 10


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found in one case.

    Attributes:
        labels: (X, Y, Z) uint8 on the case's own grid.
        grid: A volume of the case, for shape, affine and header.
        scheme: The labels' scheme.
    """

    labels: npt.NDArray[np.uint8]
    grid: Volume
    scheme: LabelScheme

    def volumes_mm3(self) -> dict[str, float]:
        """Volume of each region."""
        voxel = float(np.prod(self.grid.spacing_mm))
        return {
            region.name: int(region.mask(self.labels).sum()) * voxel
            for region in self.scheme.regions
        }

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the label map on the case's own grid, its scheme noted in the header.

        Raises:
            OutputExistsError: If `path` exists and `overwrite` is false.
            OutputError: If it cannot be written.
        """
        write_label_map(path, self.labels, self.grid, self.scheme, overwrite=overwrite)


class Predictor:
    """A checkpoint on a device, ready to segment one case after another."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = arithmetic(device, checkpoint.precision)
        self.network = checkpoint.network().to(device)

    def segment(self, case: Case, scheme: LabelScheme | None = None) -> Segmentation:
        """Segment a case, in the checkpoint's label scheme unless another is given.

        Raises:
            BratsError: If the case lacks a modality or cannot be read.
        """
        volumes = read_images(case, self.checkpoint.modalities)
        grid = volumes[0]
        prepared = prepare(volumes)
        found = probabilities(
            self.network,
            torch.from_numpy(prepared.images),
            patch_size=self.checkpoint.patch_size,
            device=self.device,
            dtype=self.dtype,
        ).numpy()
        masks = np.stack(
            [to_native(region, prepared.affine, grid) >= THRESHOLD for region in found]
        )
        scheme = scheme or self.checkpoint.scheme
        return Segmentation(scheme.paint(masks), grid, scheme)


@torch.inference_mode()
def probabilities(
    network: UNet3D,
    images: torch.Tensor,
    *,
    patch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Probability of each region at each voxel of a prepared case.

    One pass over everything where memory allows, else as few windows as cover it, weighted by
    Gaussians that never vanish. With `norm: instance` the windows have the size of the training
    patch, because the statistics of the window decide what such a network computes.

    Args:
        network: In evaluation mode, on `device`.
        images: (C, X, Y, Z).
        patch_size: Edge of the patches it was trained on.
        device: Where to compute.
        dtype: Type of the convolutions.

    Returns:
        (R, X, Y, Z) float32 on the CPU.
    """
    size = tuple(images.shape[1:])
    if network.config.norm == "instance":
        edge = network.config.output_size(patch_size)
        window = tuple(min(edge, side) for side in size)
    else:
        window = largest_window(network, size, memory_for_network(device), dtype)
    corners = list(window_corners(size, window, overlap=OVERLAP))
    if len(corners) == 1:
        return _run(network, images, corners[0], window, device, dtype).cpu()
    weight = gaussian_weight(window)
    regions = network.output.out_channels
    total, weights = torch.zeros(regions, *size), torch.zeros(size)
    for corner in corners:
        box = tuple(slice(start, start + side) for start, side in zip(corner, window, strict=True))
        found = _run(network, images, corner, window, device, dtype).cpu()
        total[(slice(None), *box)] += found * weight
        weights[box] += weight
    return total / weights


def _run(
    network: UNet3D,
    images: torch.Tensor,
    corner: Sequence[int],
    window: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Probabilities (R, *window) of the window at `corner`."""
    margin = network.config.margin
    padding: list[int] = []
    box = []
    for start, side, length in zip(corner, window, images.shape[1:], strict=True):
        # What the network reads: the window, a margin about it, and what makes it divisible.
        first, last = start - margin, start - margin + network.config.input_size(side)
        box.append(slice(max(first, 0), min(last, length)))
        padding = [max(-first, 0), max(last - length, 0), *padding]
    read = images[(slice(None), *box)].to(device, torch.float32)
    read = F.pad(read, padding)[None].contiguous(memory_format=torch.channels_last_3d)
    with autocast(device, dtype):
        logits = network(read)[0]
    inside = tuple(slice(0, side) for side in window)
    return torch.sigmoid(logits[(slice(None), *inside)].float())


def largest_window(
    network: UNet3D, size: Sequence[int], budget: int, dtype: torch.dtype
) -> tuple[int, ...]:
    """The image's size, its longest edges halved until one pass fits into `budget` bytes."""
    config = network.config
    voxel = config.channels * _LIVE_MAPS * (2 if dtype == torch.bfloat16 else 4)
    window = list(size)
    while voxel * int(np.prod([config.input_size(side) for side in window])) > budget:
        longest = int(np.argmax(window))
        if window[longest] <= 2 * config.multiple:
            break
        window[longest] = -(-window[longest] // 2)
    return tuple(window)


def window_corners(
    size: Sequence[int], window: Sequence[int], *, overlap: float
) -> Iterator[tuple[int, ...]]:
    """First voxels of as few evenly spread windows as cover `size`, overlapping at least so far."""
    starts = []
    for length, side in zip(size, window, strict=True):
        room = length - side
        steps = int(np.ceil(room / (side * (1 - overlap))))
        starts.append([round(room * step / max(steps, 1)) for step in range(steps + 1)])
    yield from product(*starts)


def gaussian_weight(window: Sequence[int]) -> torch.Tensor:
    """Weights that trust the middle of a window most: standard deviation an eighth of its edge.

    At the corners a true Gaussian of this width is 1e-10 and rounds to nothing; the floor of
    1e-3 keeps every voxel covered.
    """
    weight = torch.ones(())
    for side in window:
        offset = torch.arange(side) - (side - 1) / 2
        weight = weight[..., None] * torch.exp(-0.5 * (offset / (side / 8)) ** 2)
    return weight.clamp_min(1e-3)
