"""How weights move: by the optimiser, or as an average that follows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .config import TrainConfig


def make_optimizer(config: TrainConfig, network: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimiser that the settings name, of the weights of `network`."""
    settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if next(network.parameters()).device.type == "cuda":
        settings["fused"] = True  # one kernel for all weights, and no wait under a scaler
    if config.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), momentum=0.99, nesterov=True, **settings)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(network.parameters(), **settings)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore an optimiser's state, which another device may have left."""
    own = [{name: group[name] for name in ("fused", "foreach")} for group in optimizer.param_groups]
    groups = [saved | kept for saved, kept in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if value is not None and value.shape == weight.shape:
                # As the weight lies in memory, which a fused optimiser requires.
                values[name] = torch.empty_like(weight).copy_(value)


@torch.no_grad()
def draw_near(average: torch.nn.Module, network: torch.nn.Module, share: float) -> None:
    """Move an average of networks towards one by a share of the way; counts are taken over."""
    pairs = list(
        zip(
            (*average.parameters(), *average.buffers()),
            (*network.parameters(), *network.buffers()),
            strict=True,
        )
    )
    moving = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([mean for mean, _ in moving], [value for _, value in moving], share)
    for mean, value in pairs:
        if not mean.is_floating_point():
            mean.copy_(value)
