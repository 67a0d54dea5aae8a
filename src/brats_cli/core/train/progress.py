"""How far a training has come, and what follows from it: the learning rate, and when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .config import TrainConfig


@dataclass(frozen=True)
class Progress:
    """What decides how training continues; saved in `last.pt`.

    Attributes:
        epoch: Epochs done.
        best: Best validation score so far, the mean Dice of the regions; -1 before the first.
        best_epoch: When it was reached.
        stale: Validations since then.
        waited: Validations since then or since the learning rate was lowered.
        lowered: How often the learning rate was lowered on a plateau.
    """

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    stale: int = 0
    waited: int = 0
    lowered: int = 0

    def after(self, score: float | None, config: TrainConfig) -> Progress:
        """The progress after one more epoch, validated with `score` or not at all (None)."""
        done = replace(self, epoch=self.epoch + 1)
        if score is None:
            return done
        if score > self.best:
            return replace(done, best=score, best_epoch=done.epoch, stale=0, waited=0)
        done = replace(done, stale=self.stale + 1, waited=self.waited + 1)
        if done.waited >= config.plateau_epochs:
            return replace(done, waited=0, lowered=self.lowered + 1)
        return done

    def stops(self, config: TrainConfig) -> bool:
        """Whether training has waited for a better score for long enough."""
        return config.patience is not None and self.stale >= config.patience

    def learning_rate(self, config: TrainConfig, step: int) -> float:
        """The learning rate of a step of the coming epoch."""
        epochs = self.epoch + step / config.steps_per_epoch
        done = epochs / config.epochs
        if config.schedule == "poly":
            share = (1 - done) ** 0.9  # nnU-Net's: nearly 0 at the last step
        elif config.schedule == "cosine":
            share = (1 + math.cos(math.pi * done)) / 2  # Loshchilov & Hutter 2017, one cycle
        else:
            share = config.plateau_factor**self.lowered
        if epochs < config.warmup_epochs:
            share *= (epochs + 1 / config.steps_per_epoch) / config.warmup_epochs
        return float(config.learning_rate * share)
