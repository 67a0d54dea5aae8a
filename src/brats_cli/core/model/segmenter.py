"""From a prepared case to its probabilities: the same in validation and in prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from . import sliding
from .network import Network
from .sliding import SlidingWindow
from .windows import probabilities


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmenter:
    """A trained network, and how it is applied.

    Attributes:
        network: On `device`; it is put into evaluation mode.
        device: Where it computes.
        dtype: Type of its convolutions.
        patch_size: Edge of the patches it was trained on, in voxels.
        overlap: Overlap of neighbouring windows, as a share of a window; by default as the network
            needs.
        sliding: The rule of the windows, if it is not brats' own.
    """

    network: Network
    device: torch.device
    dtype: torch.dtype
    patch_size: int
    overlap: float | None = None
    sliding: SlidingWindow | None = None

    def __post_init__(self) -> None:
        self.network.eval()

    def probabilities(
        self,
        images: torch.Tensor | npt.ArrayLike,
        *,
        tta: bool = False,
        on_share: Callable[[float], None] = lambda share: None,
    ) -> torch.Tensor:
        """Probability of each region at each voxel of a prepared case.

        Args:
            images: (C, X, Y, Z) z-scores.
            tta: Average over the flips of the rule of the windows, if there is one.
            on_share: Called after each window with its share of the work.

        Returns:
            (R, X, Y, Z) float32, on `device` if it has the memory, else on the CPU.

        Raises:
            DeviceError: If not even a small window fits into the device's memory.
        """
        if not isinstance(images, torch.Tensor):
            images = torch.from_numpy(np.asarray(images))
        if self.sliding:
            return sliding.probabilities(
                self.network,
                images,
                self.sliding,
                device=self.device,
                dtype=self.dtype,
                overlap=self.overlap,
                tta=tta,
                on_share=on_share,
            )
        return probabilities(
            self.network,
            images,
            patch_size=self.patch_size,
            device=self.device,
            dtype=self.dtype,
            overlap=self.overlap,
            on_share=on_share,
        )
