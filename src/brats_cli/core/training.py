"""How a network learns: a generator of epochs, the same again for the same seed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from .augment import augment
from .checkpoints import Checkpoint
from .config import TrainConfig
from .devices import arithmetic, autocast, peak_memory
from .errors import BratsError, CheckpointError
from .figures import Preview
from .inference import THRESHOLD, probabilities
from .labels import REGIONS, LabelScheme
from .losses import LOSSES
from .network import UNet3D, crop
from .parallel import available_cpus
from .sampling import Batch, Patches, batches
from .store import StoredCase

MOST_WORKERS = 8
"""Reading patches from a store needs few processes."""


WAIT_IS_LONG = 10.0
"""Percent of the time spent waiting for patches from which the data hold training up."""

OnStep = Callable[[int, torch.Tensor], None]
"""Hears the number of each finished step of an epoch and its loss, which is on the device still:
to ask for its value waits for the GPU."""

OnCase = Callable[[StoredCase, torch.Tensor, torch.Tensor], None]
"""Hears each validated case, with the regions' masks of the expert and of the network, both
(3, X, Y, Z)."""


class TrainingError(BratsError):
    """A training that cannot go on."""


@dataclass(frozen=True)
class Progress:
    """What decides how training goes on; saved in `last.pt`.

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
        if config.schedule == "poly":
            # nnU-Net's: reaches 0 with the last step.
            done = (self.epoch + step / config.steps_per_epoch) / config.epochs
            return float(config.learning_rate * (1 - done) ** 0.9)
        return float(config.learning_rate * config.plateau_factor**self.lowered)


@dataclass(frozen=True, eq=False)
class Epoch:
    """What happened in one epoch.

    Attributes:
        number: From 1.
        loss: Mean training loss.
        dice: Validation Dice by region, mean over cases; None if not validated.
        is_best: Whether the mean of `dice` is the best so far.
        learning_rate: Of the epoch's last step.
        seconds: Of training, validation excluded.
        validation_seconds: Of validation.
        data_wait_percent: Share of `seconds` spent waiting for patches.
        patches_per_second: Patches trained on in a second.
        peak_memory_mb: The most memory this process has held so far, in 10^6 bytes.
        stops: Whether this is the last epoch because of the patience.
        checkpoint: All that `last.pt` needs; shares the network's tensors, so save it at once.
        preview: A slice of the first validation case; None if not validated.
    """

    number: int
    loss: float
    dice: Mapping[str, float] | None
    is_best: bool
    learning_rate: float
    seconds: float
    validation_seconds: float
    data_wait_percent: float
    patches_per_second: float
    peak_memory_mb: float
    stops: bool
    checkpoint: Checkpoint
    preview: Preview | None = None

    @property
    def mean_dice(self) -> float | None:
        """Mean Dice of the regions, by which the best epoch is chosen."""
        return None if self.dice is None else float(np.mean(list(self.dice.values())))


def train(
    config: TrainConfig,
    training: Sequence[StoredCase],
    validation: Sequence[StoredCase],
    scheme: LabelScheme,
    device: torch.device,
    *,
    resume: Checkpoint | None = None,
    on_step: OnStep = lambda step, loss: None,
    on_case: OnCase = lambda case, truth, found: None,
) -> Iterator[Epoch]:
    """Train a network, yielding after every epoch.

    The caller decides what to do with an epoch: print it, save its checkpoint, or stop by leaving
    the loop. Nothing here writes a file or a line of text.

    Args:
        config: What to learn, and how.
        training: Cases that patches are drawn from.
        validation: Cases that are segmented whole to score an epoch.
        scheme: The label scheme of the stored cases.
        device: Where to compute.
        resume: `last.pt` of the same run, to go on from.
        on_step: Called after each step, for a progress bar.
        on_case: Called after each validated case.

    Raises:
        TrainingError: If the loss is no longer a number.
        CheckpointError: If `resume` holds no state to resume from.
    """
    learner = _Learner(config, scheme, device, resume)
    feed = _feed(config, training, learner.progress.epoch)
    while learner.progress.epoch < config.epochs and not learner.progress.stops(config):
        yield learner.epoch(feed, validation, on_step, on_case)


@dataclass(frozen=True)
class Profile:
    """Where the time of training goes.

    Attributes:
        data_wait_percent: Share of it spent waiting for patches.
        patches_per_second: Patches trained on in a second.
    """

    data_wait_percent: float
    patches_per_second: float


def profile(
    config: TrainConfig,
    training: Sequence[StoredCase],
    scheme: LabelScheme,
    device: torch.device,
    *,
    steps: int = 20,
) -> Profile:
    """Train for `steps` steps after as many to warm up, keep nothing, and tell where time went."""
    short = config.model_copy(update={"steps_per_epoch": steps, "epochs": 2})
    learner = _Learner(short, scheme, device, None)
    feed = _feed(short, training, 0)
    learner.steps(feed)
    started = time.perf_counter()
    _, waited = learner.steps(feed)
    seconds = time.perf_counter() - started
    return Profile(100 * waited / seconds, steps * config.batch_size / seconds)


class _Learner:
    """A network in training, and all that changes with it."""

    def __init__(
        self,
        config: TrainConfig,
        scheme: LabelScheme,
        device: torch.device,
        resume: Checkpoint | None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.scheme, self.device = config, scheme, device
        self.dtype = arithmetic(device, config.precision)
        self.network = UNet3D(
            config.network, in_channels=len(config.modalities), out_channels=len(REGIONS)
        ).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), config.learning_rate)
        self.progress = Progress()
        self.learning_rate = config.learning_rate
        if resume is not None:
            self._resume(resume)

    def epoch(
        self,
        feed: Iterator[Batch],
        validation: Sequence[StoredCase],
        on_step: OnStep,
        on_case: OnCase,
    ) -> Epoch:
        """Train for an epoch, and validate if that is due."""
        started = time.perf_counter()
        loss, waited = self.steps(feed, on_step)
        seconds = time.perf_counter() - started
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of epoch {self.progress.epoch + 1} is {loss}",
                hint="resume with a lower learning rate: --resume --set learning_rate="
                f"{self.learning_rate / 3:.1g}",
            )
        dice, preview = self._validate(validation, on_case)
        score = None if dice is None else float(np.mean(list(dice.values())))
        self.progress = self.progress.after(score, self.config)
        return Epoch(
            number=self.progress.epoch,
            loss=loss,
            dice=dice,
            is_best=dice is not None and self.progress.stale == 0,
            learning_rate=self.learning_rate,
            seconds=seconds,
            validation_seconds=time.perf_counter() - started - seconds,
            data_wait_percent=100 * waited / seconds,
            patches_per_second=self.config.steps_per_epoch * self.config.batch_size / seconds,
            peak_memory_mb=peak_memory(self.device) / 1e6,
            stops=self.progress.stops(self.config),
            checkpoint=self._checkpoint(dice or {}),
            preview=preview,
        )

    def steps(
        self, feed: Iterator[Batch], on_step: OnStep = lambda step, loss: None
    ) -> tuple[float, float]:
        """Mean loss of an epoch's steps, and the seconds waited for patches."""
        self.network.train()
        losses, waited = [], 0.0
        for step in range(self.config.steps_per_epoch):
            asked = time.perf_counter()
            batch = next(feed)
            waited += time.perf_counter() - asked
            losses.append(self._step(batch, step))
            on_step(step + 1, losses[-1])
        return torch.stack(losses).mean().item(), waited

    def _step(self, batch: Batch, step: int) -> torch.Tensor:
        """One step of the optimiser; its loss, still on the device."""
        images, labels = augment(
            batch.images.to(self.device, non_blocking=True),
            batch.labels.to(self.device, non_blocking=True),
            self.config.augmentation,
            self._random(step),
        )
        targets = region_targets(labels, self.scheme)
        self.learning_rate = self.progress.learning_rate(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        with autocast(self.device, self.dtype):
            logits = self.network(images.contiguous(memory_format=torch.channels_last_3d))
        loss = LOSSES[self.config.loss](logits, crop(targets, logits.shape[2:]))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()  # .item() here would wait for the GPU at every step

    def _random(self, step: int) -> torch.Generator:
        """Seeded by place in the run, so that a resumed run goes on as an unbroken one."""
        seed = np.random.SeedSequence((self.config.seed, self.progress.epoch, step))
        return torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))

    def _validate(
        self, validation: Sequence[StoredCase], on_case: OnCase
    ) -> tuple[dict[str, float] | None, Preview | None]:
        number = self.progress.epoch + 1
        if number % self.config.validate_every and number < self.config.epochs:
            return None, None
        preview = None

        def look(case: StoredCase, truth: torch.Tensor, found: torch.Tensor) -> None:
            nonlocal preview
            if preview is None:
                shown = case.images[_shown_modality(self.config)]
                preview = Preview.of(case.id, shown, truth.numpy(), found.numpy())
            on_case(case, truth, found)

        dice = validate(
            *(self.network, validation, self.scheme, self.config, self.device, self.dtype),
            on_case=look,
        )
        return dice, preview

    def _checkpoint(self, dice: Mapping[str, float]) -> Checkpoint:
        state = {
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        return Checkpoint(
            weights=self.network.state_dict(),
            config=self.config.model_dump(mode="json"),
            labels=self.scheme.name,
            epoch=self.progress.epoch,
            scores=dice,
            state=state,
        )

    def _resume(self, checkpoint: Checkpoint) -> None:
        if not checkpoint.state:
            raise CheckpointError(
                "this checkpoint holds weights only, nothing to resume from",
                hint="resume from the run's last.pt",
            )
        settings = self.config.model_dump(mode="json")
        for name in ("network", "modalities"):
            if checkpoint.config[name] != settings[name]:
                raise CheckpointError(
                    f"the run's {name} is {checkpoint.config[name]}, not {settings[name]}",
                    hint=f"a run keeps its {name}: train another with -o NAME, without --resume",
                )
        self.network.load_state_dict(dict(checkpoint.weights))
        self.optimizer.load_state_dict(checkpoint.state["optimizer"])
        self.progress = Progress(**checkpoint.state["progress"])


def validate(
    network: UNet3D,
    cases: Sequence[StoredCase],
    scheme: LabelScheme,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    on_case: OnCase = lambda case, truth, found: None,
) -> dict[str, float]:
    """Dice of each region over whole cases, averaged over cases.

    A region that is empty in both scores 1, in one of them 0 (the convention up to BraTS 2022).
    """
    network.eval()
    scores = []
    for case in cases:
        found = probabilities(
            network,
            torch.from_numpy(np.array(case.images)),
            patch_size=config.patch_size,
            device=device,
            dtype=dtype,
        )
        truth = region_targets(torch.from_numpy(np.array(case.labels))[None], scheme)[0]
        scores.append(_dice(found >= THRESHOLD, truth))
        on_case(case, truth, found >= THRESHOLD)
    return dict(zip(REGIONS, np.mean(scores, axis=0).tolist(), strict=True))


def _shown_modality(config: TrainConfig) -> int:
    """The channel of a preview: FLAIR, in which the whole tumour is bright, else the first."""
    return config.modalities.index("flair") if "flair" in config.modalities else 0


def region_targets(labels: torch.Tensor, scheme: LabelScheme) -> torch.Tensor:
    """Masks of WT, TC and ET (B, 3, X, Y, Z) in labels (B, X, Y, Z)."""
    masks = []
    for name in REGIONS:
        values = scheme.region(name).labels
        masks.append(torch.isin(labels, torch.tensor(values, dtype=labels.dtype).to(labels.device)))
    return torch.stack(masks, dim=1)


def worker_count(config: TrainConfig) -> int:
    """Processes that read patches: as configured, or the CPUs there are, less one."""
    if config.workers is not None:
        return config.workers
    return min(MOST_WORKERS, available_cpus() - 1)


def _feed(config: TrainConfig, training: Sequence[StoredCase], epoch: int) -> Iterator[Batch]:
    """Batches of the epochs after `epoch`."""
    patches = Patches(
        training, edge=config.patch_size, tumour_share=config.tumour_share, seed=config.seed
    )
    an_epoch = config.steps_per_epoch * config.batch_size
    return batches(
        patches,
        first=epoch * an_epoch,
        last=config.epochs * an_epoch,
        batch_size=config.batch_size,
        workers=worker_count(config),
    )


def _dice(found: torch.Tensor, truth: torch.Tensor) -> list[float]:
    both = (found & truth).sum((1, 2, 3)).double()
    total = found.sum((1, 2, 3)) + truth.sum((1, 2, 3))
    return torch.where(total == 0, 1.0, 2 * both / total.clamp_min(1)).tolist()
