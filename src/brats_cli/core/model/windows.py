"""Sliding-window inference: from a prepared case to the probability of each region per voxel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..compute.devices import (
    autocast,
    is_out_of_memory,
    memory_for_network,
    more_memory,
    release_cached_memory,
    sent,
)
from ..data.labels import REGIONS
from ..errors import DeviceError
from .config import UNetConfig
from .network import Network, UNet3D
from .trial import TriedShape

OVERLAP = 0.25
"""Overlap of neighbouring windows, as a share of a window. Over nine real cases, no overlap cost
0.007 in Dice of ET; with 0.125, a rotated copy of a case differed more (WT 0.968, not 0.976)."""

OVERLAP_OF_PATCHES = 0.5
"""The overlap where the result depends on the window, so that averaging more windows helps: with
instance norm, 0.25 cost 0.01 to 0.03 in Dice of each region on the same nine cases."""

CONTEXT = 2
"""Voxels that the network reads around a window with `padding: same`; background beyond the image.
More only takes time: over nine real cases, each by two networks, mean Dice of one pass with 0, 2, 4
and 8 differed by 0.0008 at most."""

MIRRORS = ((), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3))
"""Axes of (C, X, Y, Z) that each test-time flip mirrors; the first mirrors none."""

CPU = torch.device("cpu")

# Feature maps of the first level alive at once in evaluation: skip, up-sampled, both joined, and
# input and output of a convolution with its workspace. Measured at 8; the rest is safety.
_LIVE_MAPS = 10

# Minimum weight at the edge of a window, where a Gaussian of this width has 3e-4 per axis.
_FLOOR = 1e-3


@torch.inference_mode()
def probabilities(
    network: Network,
    images: torch.Tensor,
    *,
    patch_size: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    overlap: float | None = None,
    on_share: Callable[[float], None] = lambda share: None,
) -> torch.Tensor:
    """Probability of each region at each voxel of a prepared case.

    As few windows as cover the case, weighted by Gaussians with a floor. A window is about as large
    as the training patch (with large patches, one window covers a brain), or smaller if memory is
    short. A network without padding computes the same in any window: it takes the whole case at
    once if memory allows. Where the result depends on the window, as with instance and group
    norm, the window is exactly the training patch.

    Args:
        network: In evaluation mode, on `device`.
        images: (C, X, Y, Z).
        patch_size: Edge of the patches it was trained on.
        device: Where to compute.
        dtype: Type of the convolutions.
        overlap: Minimum overlap of neighbouring windows, from 0 to below 1; by default `OVERLAP`
            or `OVERLAP_OF_PATCHES`.
        on_share: Called after each window with its share of the work.

    Returns:
        (R, X, Y, Z) float32, on `device` if it has the memory, else on the CPU.

    Raises:
        DeviceError: If not even a small window fits into the device's memory.
    """
    if overlap is None:
        overlap = OVERLAP_OF_PATCHES if network.config.depends_on_window else OVERLAP
    passes = _Passes(
        network,
        device,
        dtype,
        window=_window(network, images, patch_size, device, dtype),
        overlap=overlap,
        home=home_of(images, device),
    )
    while True:
        try:
            return passes.over(images, on_share)
        except (RuntimeError, MemoryError) as error:
            # The estimate was too low, or another program has taken memory since.
            if not is_out_of_memory(error):
                raise
        # Not before the error, which holds what the failed pass computed, is gone.
        passes = passes.smaller()
        release_cached_memory(device)


def home_of(images: torch.Tensor, device: torch.device) -> torch.device:
    """Where a case (C, X, Y, Z) and its probabilities are kept: `device` if they are small."""
    return device if _bytes_of(images) < memory_for_network(device) // 4 else CPU


def _bytes_of(images: torch.Tensor) -> int:
    """Bytes of a case (C, X, Y, Z) and its probabilities in float32."""
    return 4 * (images.numel() + len(REGIONS) * images[0].numel())


def _window(
    network: Network,
    images: torch.Tensor,
    patch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[int, ...]:
    """Size of the windows for a case."""
    size = tuple(images.shape[1:])
    config = network.config
    if config.depends_on_window:
        edge = config.output_size(patch_size)
        return tuple(min(edge, side) for side in size)
    if not config.margin:
        size = tuple(even_window(length, patch_size) for length in size)
    room = memory_for_network(device, beside=_bytes_of(images))
    return largest_window(network, size, room, dtype)


@dataclass(frozen=True, eq=False)
class _Passes:
    """Sliding-window inference with settled sizes.

    Attributes:
        network: The network, on `device`.
        device: Where it computes.
        dtype: Type of the convolutions.
        window: Size of a window.
        overlap: Minimum overlap of neighbouring windows, as a share of a window.
        home: Where the case is kept and the windows are summed.
    """

    network: Network
    device: torch.device
    dtype: torch.dtype
    window: tuple[int, ...]
    overlap: float
    home: torch.device

    def over(self, images: torch.Tensor, on_share: Callable[[float], None]) -> torch.Tensor:
        """Probabilities (R, X, Y, Z) of all of `images` (C, X, Y, Z)."""
        size = tuple(images.shape[1:])
        images = images.to(self.home)  # once, in their own type: a store's float16
        blends = [
            {start: sent(weights, self.home) for start, weights in of_axis.items()}
            for of_axis in self._blends(size)
        ]
        corners = list(product(*blends))
        total = None
        for corner in corners:
            found = self.run(images, corner)
            on_share(1 / len(corners))
            if len(corners) == 1:
                return found
            if total is None:
                total = torch.zeros(len(found), *size, device=self.home)
            _add(total, found.to(self.home), corner, blends)
        assert total is not None
        return total

    def _blends(self, size: tuple[int, ...]) -> list[dict[int, torch.Tensor]]:
        """Per axis, the weights of each window by its first voxel."""
        return [
            blending(length, side, window_starts(length, side, overlap=self.overlap))
            for length, side in zip(size, self.window, strict=True)
        ]

    def run(self, images: torch.Tensor, corner: Sequence[int]) -> torch.Tensor:
        """Probabilities (R, *window) of the window at `corner`."""
        read = self._read(images, corner)[None]
        with autocast(self.device, self.dtype):
            logits = self.network(read.contiguous(memory_format=torch.channels_last_3d))
        # The network has already cropped its margin.
        before = [around(self.network.config, side)[0] for side in self.window]
        margin = self.network.config.margin
        inside = [
            slice(first - margin, first - margin + side)
            for first, side in zip(before, self.window, strict=True)
        ]
        return torch.sigmoid(logits[(0, ..., *inside)].float())

    def _read(self, images: torch.Tensor, corner: Sequence[int]) -> torch.Tensor:
        """The network's input for a window, padded with background beyond `images`."""
        padding: list[int] = []
        box = []
        for start, side, length in zip(corner, self.window, images.shape[1:], strict=True):
            before, after = around(self.network.config, side)
            first, last = start - before, start + side + after
            box.append(slice(max(first, 0), min(last, length)))
            padding = [max(-first, 0), max(last - length, 0), *padding]
        return F.pad(images[(slice(None), *box)].to(self.device, torch.float32), padding)

    def smaller(self) -> _Passes:
        """The same with smaller windows, which take less memory.

        Raises:
            DeviceError: If they cannot be smaller, or the result depends on the window.
        """
        window = self.window
        if not self.network.config.depends_on_window:
            window = _halved(window, self.network.config.multiple)
        if window == self.window and self.home == CPU:
            raise DeviceError(
                f"{self.device} has no memory for {' x '.join(map(str, self.window))} voxels "
                f"of a network of {self.network.config.channels} channels",
                hint=more_memory(self.device),
            )
        return replace(self, window=window, home=CPU)


def even_window(length: int, edge: int) -> int:
    """Side, near `edge`, of windows that overlap by `OVERLAP` and divide `length` evenly.

    A network has not learnt to use context beyond the size of its patches. Over nine real cases,
    mean Dice in windows near the patch of 64 was 0.001 to 0.005 higher in WT and 0.006 to 0.012 in
    TC than in one pass (three trainings), and in ET the same to 0.0013.
    """
    count = max(1, round(length / edge))
    return int(np.ceil(length / (count - (count - 1) * OVERLAP)))


def around(config: UNetConfig | TriedShape, side: int) -> tuple[int, int]:
    """Voxels that a network reads before and after a window of `side` voxels along an axis.

    Its margin under `padding: valid`, else `CONTEXT`, and what makes the sum divisible. Where the
    result depends on the window there is no context, which would change the result.
    """
    if config.margin:
        return config.margin, config.input_size(side) - side - config.margin
    context = 0 if config.depends_on_window else CONTEXT
    more = config.input_size(side + 2 * context) - side
    return more // 2, more - more // 2


def largest_window(
    network: Network, size: Sequence[int], budget: int, dtype: torch.dtype
) -> tuple[int, ...]:
    """`size`, its longest edges halved until one pass over it fits into `budget` bytes."""
    config = network.config
    voxel = config.channels * _LIVE_MAPS * dtype.itemsize
    window = tuple(size)
    while voxel * int(np.prod([side + sum(around(config, side)) for side in window])) > budget:
        smaller = _halved(window, config.multiple)
        if smaller == window:
            break
        window = smaller
    return window


def _halved(window: tuple[int, ...], multiple: int) -> tuple[int, ...]:
    """`window` with its longest edge halved, unless that is twice `multiple` or less."""
    longest = int(np.argmax(window))
    if window[longest] <= 2 * multiple:
        return window
    return (*window[:longest], -(-window[longest] // 2), *window[longest + 1 :])


def window_starts(length: int, side: int, *, overlap: float) -> list[int]:
    """First voxels, along an axis, of as few evenly spread windows as cover `length`.

    Neighbours overlap by at least the share `overlap` of a window, to within a voxel.
    """
    room = length - side
    # A small tolerance: 10 * (1 - 0.8) is slightly less than 2.
    steps = int(np.ceil(room / max(1, side * (1 - overlap)) - 1e-9))
    return [round(room * step / max(steps, 1)) for step in range(steps + 1)]


def blending(length: int, side: int, starts: Sequence[int]) -> dict[int, torch.Tensor]:
    """Weights of each window along an axis, by its first voxel.

    A Gaussian, highest at the centre, with an eighth of the window as standard deviation and a
    floor. At every voxel the weights of all windows add up to 1, along each axis and thus for
    their products, so that a constant stays that constant.
    """
    offset = torch.arange(side) - (side - 1) / 2
    trust = torch.exp(-0.5 * (offset / (side / 8)) ** 2).clamp_min(_FLOOR)
    total = torch.zeros(length)
    for start in starts:
        total[start : start + side] += trust
    return {start: trust / total[start : start + side] for start in starts}


def _add(
    total: torch.Tensor,
    found: torch.Tensor,
    corner: Sequence[int],
    blends: Sequence[dict[int, torch.Tensor]],
) -> None:
    """Add a window's probabilities (R, *window) at `corner` to `total` (R, X, Y, Z), weighted."""
    box = []
    for axis, (start, blend) in enumerate(zip(corner, blends, strict=True)):
        shape = [-1 if other == axis else 1 for other in range(3)]
        found = found * blend[start].reshape(shape)
        box.append(slice(start, start + found.shape[axis + 1]))
    total[(slice(None), *box)] += found


def fused(network: Network) -> Network:
    """`network`, in evaluation mode, with each batch norm fused into the convolution before it.

    The same function up to rounding, in fewer passes over memory. MONAI's networks are not fused:
    layers that follow each other in their lists need not be computed one after the other.
    """
    for module in list(network.modules()) if isinstance(network, UNet3D) else []:
        if isinstance(module, nn.Sequential):
            _fuse(module)
    return network


def _fuse(layers: nn.Sequential) -> None:
    for index in range(len(layers) - 1):
        convolution, norm = layers[index], layers[index + 1]
        if isinstance(convolution, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
            layers[index] = fuse_conv_bn_eval(convolution, norm)
            layers[index + 1] = nn.Identity()
