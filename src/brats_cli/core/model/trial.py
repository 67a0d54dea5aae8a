"""What a network of others takes, found by trying it where that costs nothing."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from ..errors import ConfigError

_WINDOW_NORMS = (nn.InstanceNorm3d, nn.GroupNorm)


class TriedShape:
    """What a network of others makes of an edge; the counterpart of `UNetConfig`'s.

    Attributes:
        name: As `monai/SegResNet`.
        multiple: Edges that it takes are multiples of this.
        channels: Of its widest map at the full resolution.
        depends_on_window: Whether the size of the window decides what is computed at a voxel.
        margin: Voxels that the output is smaller by: none.
    """

    margin = 0

    def __init__(self, name: str, multiple: int, channels: int, *, depends_on_window: bool) -> None:
        self.name, self.multiple, self.channels = name, multiple, channels
        self.depends_on_window = depends_on_window

    def output_size(self, edge: int) -> int:
        """Edge of the output for an input of `edge` voxels: the same.

        Raises:
            ConfigError: If the network does not take it.
        """
        if edge % self.multiple:
            raise ConfigError(
                f"a patch of {edge} voxels does not fit {self.name}",
                hint=f"try a patch_size of {self.input_size(edge)}",
            )
        return edge

    def input_size(self, output: int) -> int:
        """Smallest edge that the network takes of at least `output` voxels."""
        return math.ceil(max(output, 1) / self.multiple) * self.multiple


class Trial:
    """A copy of a network on the meta device, where a run takes neither memory nor arithmetic."""

    def __init__(self, network: nn.Module, name: str, in_channels: int, out_channels: int) -> None:
        self.network = copy.deepcopy(network).to("meta")
        self.name, self.in_channels, self.out_channels = name, in_channels, out_channels

    def shape(self, patch_size: int) -> TriedShape:
        """What the network takes, found by trying the divisors of `patch_size`.

        Raises:
            ConfigError: If it does not take a patch to one map per region.
        """
        self._require_maps(patch_size)
        self.network.eval()
        # A network that takes a patch takes multiples of one of its divisors.
        divisors = [edge for edge in range(1, patch_size) if patch_size % edge == 0]
        fitting = (edge for edge in divisors if self._fits(patch_size + edge))
        multiple = next(fitting, patch_size)
        of_window = any(
            isinstance(module, _WINDOW_NORMS) and getattr(module, "running_mean", None) is None
            for module in self.network.modules()
        )
        return TriedShape(
            self.name,
            multiple,
            channels=self._widest(patch_size),
            depends_on_window=of_window or multiple == patch_size,
        )

    def _run(self, edge: int) -> object:
        images = torch.zeros(2, self.in_channels, edge, edge, edge, device="meta")
        images = images.contiguous(memory_format=torch.channels_last_3d)  # as they come later
        with torch.no_grad():
            found: object = self.network(images)
        return found

    def _require_maps(self, edge: int) -> None:
        try:
            found = self._run(edge)
        except Exception as error:  # each network has its own for a size that it does not take
            raise ConfigError(
                f"{self.name} cannot be trained on patches of {edge} voxels: {first_line(error)}",
                hint="try a patch_size that is a multiple of 32, or other network.options",
            ) from error
        if not self._are_maps(found, edge):
            raise ConfigError(
                f"{self.name} does not return one map per region in training, but "
                f"{_described(found)}",
                hint="leave deep supervision off, which brats has for its own network only, or "
                "choose another network",
            )

    def _are_maps(self, found: object, edge: int) -> bool:
        wanted = (2, self.out_channels, edge, edge, edge)
        return isinstance(found, torch.Tensor) and tuple(found.shape) == wanted

    def _fits(self, edge: int) -> bool:
        try:
            return self._are_maps(self._run(edge), edge)
        except Exception:  # as above
            return False

    def _widest(self, edge: int) -> int:
        """Channels of the widest map at the full resolution."""
        widths = [self.in_channels]

        def note(_module: nn.Module, _inputs: object, found: object) -> None:
            if isinstance(found, torch.Tensor) and found.shape[2:] == (edge, edge, edge):
                widths.append(found.shape[1])

        for module in self.network.modules():
            module.register_forward_hook(note)
        self._run(edge)
        return max(widths)


def _described(found: object) -> str:
    if isinstance(found, torch.Tensor):
        return "a tensor of " + " x ".join(map(str, found.shape))
    return f"{len(found)} outputs" if isinstance(found, list | tuple) else type(found).__name__


def first_line(error: Exception) -> str:
    """What an error of others says, as part of a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
