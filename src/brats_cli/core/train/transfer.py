"""Copies batches to the device while it still computes the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

# One is being filled while the GPU reads the other.
_BUFFERS = 2


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches of one step.

    Attributes:
        images: (B, C, X, Y, Z) float16.
        labels: (B, X, Y, Z) uint8.
        case_ids: The case of each patch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    case_ids: list[str]


class Transfer:
    """Copies batches to the training device.

    A GPU copies them asynchronously, beside its computation, but only from page-locked memory. That
    is slow to allocate and allocated once; before it is filled again, its last copy must be done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._by_itself = device.type == "cuda"
        self._buffers: list[_Buffer] = []
        self._turn = 0
        if self._by_itself:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def stack(
        self,
        images: Sequence[npt.NDArray[np.float16]],
        labels: Sequence[npt.NDArray[np.uint8]],
        case_ids: list[str],
    ) -> Batch:
        """A batch of patches on the CPU; the batch of two calls ago may be overwritten."""
        if not self._by_itself:
            # By numpy, which asks for large pages: to stack in torch's memory takes five times as
            # long.
            stacked = torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels))
            return Batch(*stacked, case_ids)
        buffer = self._next_buffer((len(images), *images[0].shape))
        buffer.copied.synchronize()
        batch = Batch(buffer.images[: len(images)], buffer.labels[: len(labels)], case_ids)
        np.stack(images, out=batch.images.numpy())
        np.stack(labels, out=batch.labels.numpy())
        return batch

    def send(self, batch: Batch) -> Batch:
        """The last batch of `stack`, on the device; does not wait for the copy."""
        if not self._by_itself:
            images, labels = batch.images.to(self._device), batch.labels.to(self._device)
            return Batch(images, labels, batch.case_ids)
        with torch.cuda.stream(self._stream):
            images = batch.images.to(self._device, non_blocking=True)
            labels = batch.labels.to(self._device, non_blocking=True)
            self._buffers[self._turn].copied.record(self._stream)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for copied in (images, labels):
            copied.record_stream(computing)  # else its memory is free as soon as it is let go here
        return Batch(images, labels, batch.case_ids)

    def _next_buffer(self, shape: tuple[int, ...]) -> _Buffer:
        if not self._buffers:
            self._buffers = [_Buffer(shape) for _ in range(_BUFFERS)]
        self._turn = (self._turn + 1) % _BUFFERS
        return self._buffers[self._turn]


class _Buffer:
    """Page-locked memory of a batch, and the event after its last copy to the GPU."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        batch, _, *edges = shape
        self.images = torch.empty(shape, dtype=torch.float16, pin_memory=True)
        self.labels = torch.empty((batch, *edges), dtype=torch.uint8, pin_memory=True)
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
