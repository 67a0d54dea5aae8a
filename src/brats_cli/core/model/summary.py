"""The cost of a network: parameters, FLOPs and memory, determined without computing anything."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from .network import Network, UNet3D

CPU = torch.device("cpu")

# Of one, batch norm has no statistics where the lowest level is a single voxel.
_PATCHES = 2


@dataclass
class Cost:
    """The cost of a part of a network, for one patch in training.

    Attributes:
        part: Its name in the network, and so in the checkpoint.
        parameters: Number of trainable parameters.
        output: Shape of its output, (C, X, Y, Z); empty if that is not one map.
        flops: Floating-point operations of the forward pass: a multiplication and an addition are
            two. `torch.utils.flop_counter` counts them, of convolutions, matrix products and
            attention; the rest is little. The backward pass takes twice as many.
        kept_bytes: Memory of what the forward pass keeps for the backward pass.
    """

    part: str
    parameters: int
    output: tuple[int, ...] = ()
    flops: int = 0
    kept_bytes: int = 0


def costs(
    network: Network,
    *,
    in_channels: int,
    patch_size: int,
    dtype: torch.dtype,
    device: torch.device = CPU,
) -> list[Cost]:
    """The cost of each part of a network in training, in the order of the forward pass.

    Operations between two parts, such as pooling, count with the part before. The network is run on
    the meta device, where tensors have shapes and no values: at once, and in no memory.

    Args:
        network: On any device; a copy of it is run.
        in_channels: Modalities.
        patch_size: Edge of the patch.
        dtype: Type of the convolutions, in which activations are kept.
        device: What would train it. CUDA's autocast computes group and layer norm in float32, and
            copies what they give for each convolution that reads it.
    """
    network = copy.deepcopy(network).to("meta").train()
    met: dict[str, Cost] = {}
    within: list[str] = []
    counter = FlopCounterMode(display=False)
    kept = _Kept(network, dtype, device)

    def settle() -> None:
        """Assign what came since the last call to the last part that was entered."""
        if met:
            last = list(met.values())[-1]
            last.flops += counter.get_total_flops() - sum(cost.flops for cost in met.values())
            last.kept_bytes += kept.bytes - sum(cost.kept_bytes for cost in met.values())

    def begin(name: str, module: nn.Module) -> None:
        within.append(name)
        if len(within) > 1:  # a part that is used within another as well
            return
        settle()
        parameters = sum(parameter.numel() for parameter in module.parameters())
        met[name] = met.pop(name, Cost(name, parameters))

    def end(name: str, found: object) -> None:
        within.pop()
        if isinstance(found, torch.Tensor) and not within:
            met[name].output = tuple(found.shape[1:])

    for name, module in _parts(network):
        module.register_forward_pre_hook(lambda module, _, name=name: begin(name, module))
        module.register_forward_hook(lambda _module, _, found, name=name: end(name, found))
    edges = (patch_size, patch_size, patch_size)
    with counter, saved_tensors_hooks(kept.keep, lambda tensor: tensor):
        network(torch.zeros(_PATCHES, in_channels, *edges, device="meta"))
    settle()
    for cost in met.values():
        cost.flops //= _PATCHES
        cost.kept_bytes //= _PATCHES
    return list(met.values())


class _Kept:
    """What a forward pass in float32 on the meta device would keep in another type.

    Attributes:
        bytes: Memory of what was kept until now, each storage counted once.
    """

    def __init__(self, network: Network, dtype: torch.dtype, device: torch.device) -> None:
        self.bytes = 0
        self._dtype = dtype
        self._counted = {_storage(each) for each in [*network.parameters(), *network.buffers()]}
        self._wide: set[int] = set()  # storages that are float32 whatever `dtype` is
        self._read: set[int] = set()  # by a convolution
        self._alive: list[
            torch.Tensor
        ] = []  # a storage's number may be given again once it is gone
        if device.type != "cuda" or dtype == torch.float32:
            return
        for module in network.modules():
            if isinstance(module, nn.GroupNorm | nn.LayerNorm):
                module.register_forward_pre_hook(lambda _, given: self._widen(given[0]))
                module.register_forward_hook(lambda _module, _, found: self._widen(found))
            elif isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
                module.register_forward_pre_hook(lambda _, given: self._convert(given[0]))

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor that the backward pass needs."""
        if _storage(tensor) not in self._counted:
            self._counted.add(_storage(tensor))
            self._alive.append(tensor)
            wide = _storage(tensor) in self._wide
            self.bytes += _bytes(tensor, torch.float32 if wide else self._dtype)
        return tensor

    def _widen(self, tensor: torch.Tensor) -> None:
        self._wide.add(_storage(tensor))
        self._alive.append(tensor)

    def _convert(self, tensor: torch.Tensor) -> None:
        """Count the copy that a convolution makes, and keeps, of what is float32.

        That is also what comes of the norms, such as skip connections joined with lower levels; of
        these, which nothing else keeps, the first copy is counted as the tensor itself.
        """
        place = _storage(tensor)
        if place in self._wide or (self._wide and place in self._read):
            self.bytes += tensor.numel() * self._dtype.itemsize
        self._read.add(place)
        self._alive.append(tensor)


def _parts(network: Network) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a network: its children, and each layer of a list of layers."""
    within: nn.Module = network if isinstance(network, UNet3D) else network.net
    for name, child in within.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{number}", layer) for number, layer in enumerate(child))
        else:
            yield name, child


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: torch.Tensor, dtype: torch.dtype) -> int:
    """Memory of a tensor's storage, if its floating-point values are of `dtype`."""
    values = tensor.untyped_storage().nbytes() // tensor.element_size()
    return values * (dtype if tensor.is_floating_point() else tensor.dtype).itemsize
