"""Sliding windows as MONAI and nnU-Net place and blend them, for networks imported from there.

Both average a network's outputs before they become probabilities, and both place, weigh and mirror
windows in ways of their own. The last digits depend on it, and with group norm more than these. So
an imported checkpoint is computed by the rule of its origin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations, product
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from ..compute.devices import autocast, is_out_of_memory, more_memory, release_cached_memory, sent
from ..errors import CheckpointError, DeviceError
from ..images.grid import times
from ..wording import brief
from .network import Network, in_two_parts
from .windows import home_of

Rule = Literal["monai", "nnunet"]
Weights = Literal["constant", "gaussian"]

CPU = torch.device("cpu")

# What a file may ask for: windows without number or end would take all memory.
_MOST_OVERLAP, _MOST_VOXELS = 0.95, 512**3

# Least weight of a window where MONAI blends by a Gaussian.
_MONAI_FLOOR = 1e-3


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """The rule of a sliding window.

    Attributes:
        rule: Whose rule: the positions, the Gaussian, and what is averaged over flips.
        window: Size of a window along the network's axes, in voxels.
        overlap: Overlap of neighbouring windows, as a share of a window.
        weights: Whether all voxels of a window count the same, or those near its centre more.
        mirror_axes: Axes that the network may be flipped along, of 0, 1 and 2.
    """

    rule: Rule
    window: tuple[int, int, int]
    overlap: float = 0.5
    weights: Weights = "gaussian"
    mirror_axes: tuple[int, ...] = (0, 1, 2)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> SlidingWindow:
        """The rule that a checkpoint holds.

        Raises:
            CheckpointError: If a value is unknown or invalid.
        """
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
        }
        wrong = [name for name in values if name not in known or not _fits(name, values[name])]
        if wrong or not {"rule", "window"} <= set(values):
            name = wrong[0] if wrong else "window"
            raise CheckpointError(
                f"the windows of the checkpoint cannot have {name} {brief(values.get(name))}",
                hint="import the network again with this version of brats",
            )
        return cls(**values)

    def content(self) -> dict[str, Any]:
        """As plain values, for a file."""
        return asdict(self)

    @property
    def mirrors(self) -> tuple[tuple[int, ...], ...]:
        """Flips that are averaged, as axes of (X, Y, Z); the first mirrors none."""
        return tuple(
            axes
            for count in range(len(self.mirror_axes) + 1)
            for axes in combinations(self.mirror_axes, count)
        )

    def starts(self, length: int, axis: int, overlap: float) -> list[int]:
        """First voxels of the windows along an axis of `length` voxels, at least a window's."""
        side = self.window[axis]
        room = length - side
        if self.rule == "monai":
            # Of fixed distance; the last is moved back to end with the image.
            step = max(int(side * (1 - overlap)), 1)
            return [min(start, room) for start in range(0, room + step, step)]
        count = int(np.ceil(room / (side * (1 - overlap)))) + 1
        step_size = room / max(count - 1, 1)
        return [int(np.round(step_size * number)) for number in range(count)]

    def importance(self) -> torch.Tensor:
        """Weight of each voxel of a window, (X, Y, Z) float32."""
        if self.weights == "constant":
            return torch.ones(self.window)
        x, y, z = (_gaussian(self.rule, side) for side in self.window)
        found = x[:, None, None] * y[:, None] * z
        least = _MONAI_FLOOR if self.rule == "monai" else float(found[found > 0].min())
        return found.clamp_min(least)


def _gaussian(rule: Rule, side: int) -> torch.Tensor:
    """Weights along an axis: standard deviation an eighth of the window, the highest about 1."""
    if rule == "monai":
        offset = torch.arange(side) - (side - 1) / 2
        return torch.exp(-0.5 * (offset / (side / 8)) ** 2)
    impulse = np.zeros(side)
    impulse[side // 2] = 1
    blurred = ndimage.gaussian_filter(impulse, side / 8, mode="constant")
    return torch.from_numpy(blurred / blurred.max()).float()


@torch.inference_mode()
def probabilities(
    network: Network,
    images: torch.Tensor,
    sliding: SlidingWindow,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    overlap: float | None = None,
    tta: bool = False,
    on_share: Callable[[float], None] = lambda share: None,
) -> torch.Tensor:
    """Probability of each region at each voxel of a prepared case.

    Args:
        network: In evaluation mode, on `device`.
        images: (C, X, Y, Z).
        sliding: The rule.
        device: Where to compute.
        dtype: Type of the convolutions.
        overlap: Overrides that of the rule.
        tta: Average over the flips of the rule as well.
        on_share: Called after each window with its share of the work.

    Returns:
        (R, X, Y, Z) float32, on `device` if it has the memory, else on the CPU.

    Raises:
        DeviceError: If a window does not fit into the device's memory; a smaller one would
            compute something else.
    """
    share = sliding.overlap if overlap is None else overlap
    passes = _Passes(network, sliding, share, device, dtype, tta=tta)
    home = home_of(images, device)
    while True:
        try:
            return passes.over(images, home, on_share)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if home == CPU:
                raise DeviceError(
                    f"{device} has no memory for a window of {times(sliding.window)} voxels of "
                    "this network, which needs just that",
                    hint=more_memory(device),
                ) from error
        home = CPU  # where the case and the sums take nothing of the device's memory
        release_cached_memory(device)


@dataclass(frozen=True, eq=False)
class _Passes:
    """Sliding-window inference with settled numbers; see `probabilities`."""

    network: Network
    sliding: SlidingWindow
    overlap: float
    device: torch.device
    dtype: torch.dtype
    tta: bool

    def over(
        self, images: torch.Tensor, home: torch.device, on_share: Callable[[float], None]
    ) -> torch.Tensor:
        """Probabilities (R, X, Y, Z) of all of `images`, which are kept and summed at `home`."""
        window = self.sliding.window
        outputs, to_regions = in_two_parts(self.network)
        padded, inside = _padded(images.to(home), window)
        sides = padded.shape[1:]
        corners = list(
            product(
                *(self.sliding.starts(side, axis, self.overlap) for axis, side in enumerate(sides))
            )
        )
        mirrors = self.sliding.mirrors if self.tta else ((),)
        importance = sent(self.sliding.importance(), home)
        weight, total = torch.zeros(sides, device=home), None
        for corner in corners:
            box = tuple(
                slice(start, start + side) for start, side in zip(corner, window, strict=True)
            )
            read = padded[(slice(None), *box)].to(self.device, torch.float32)
            found = _flipped(outputs, read[None], mirrors, self.device, self.dtype)[0].to(home)
            if total is None:
                total = torch.zeros(len(found), *sides, device=home)
            total[(slice(None), *box)] += found * importance
            weight[box] += importance
            on_share(1 / len(corners))
        assert total is not None
        logits = (total / weight)[(slice(None), *inside)]
        return torch.sigmoid(to_regions(logits[None])[0])


def _flipped(
    outputs: Callable[[torch.Tensor], torch.Tensor],
    read: torch.Tensor,
    mirrors: Sequence[tuple[int, ...]],
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The network's outputs for windows (B, C, X, Y, Z), averaged over flips."""
    total = None
    for axes in mirrors:
        turned = [axis + 2 for axis in axes]
        with autocast(device, dtype):
            found = outputs(read.flip(turned) if turned else read).float()
        found = found.flip(turned) if turned else found
        total = found if total is None else total + found
    assert total is not None
    return total / len(mirrors)


def _padded(
    images: torch.Tensor, window: Sequence[int]
) -> tuple[torch.Tensor, tuple[slice, slice, slice]]:
    """`images` with zeros around, so that a window fits; and the box that they fill."""
    padding: list[int] = []
    box = []
    for length, side in zip(images.shape[1:], window, strict=True):
        missing = max(side - length, 0)
        padding = [missing // 2, missing - missing // 2, *padding]
        box.append(slice(missing // 2, missing // 2 + length))
    return F.pad(images, padding), (box[0], box[1], box[2])


def _fits(name: str, value: Any) -> bool:
    """Whether a field of a rule may have a value."""
    if name == "rule":
        return value in get_args(Rule)
    if name == "weights":
        return value in get_args(Weights)
    if name == "overlap":
        return isinstance(value, int | float) and 0 <= value <= _MOST_OVERLAP
    if not isinstance(value, tuple) or not all(type(number) is int for number in value):
        return False
    if name == "window":
        return (
            len(value) == 3
            and all(8 <= side <= 1024 for side in value)
            and math.prod(value) <= _MOST_VOXELS
        )
    return len(set(value)) == len(value) and set(value) <= {0, 1, 2}
