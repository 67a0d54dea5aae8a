"""How a network learns: a generator of epochs, the same again for the same seed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from ..compute.devices import (
    arithmetic,
    autocast,
    is_out_of_memory,
    memory_text,
    peak_memory,
    release_cached_memory,
    restart_peak_memory,
    searching_kernels,
)
from ..compute.distributed import ALONE, Group
from ..compute.machine import available_cpus, keep_freed_memory, release_freed_memory
from ..compute.processes import one_ahead
from ..data.labels import REGIONS, LabelScheme
from ..errors import BratsError, CheckpointError
from ..model.checkpoint import Checkpoint
from ..model.config import stored_network_config
from ..model.decision import THRESHOLD
from ..model.network import Network, make_network, on_device
from ..model.segmenter import Segmenter
from ..prepared.preparation import PREPARATION
from ..prepared.recipe import RECIPE
from ..prepared.store import StoredCase
from .augment import augment
from .config import TrainConfig
from .figures import Preview
from .losses import training_loss
from .sampling import Patches, batches
from .start import freeze, into_training
from .transfer import Batch
from .waits import Waits

Result = TypeVar("Result")

MOST_WORKERS = 8
"""Reading patches from a store needs few processes."""

# Between two times that freed memory is given back, which costs the next step 2 to 3.
_RELEASE_SECONDS = 8

WAIT_IS_LONG = 10.0
"""Percent of the time spent waiting for patches from which the data are the bottleneck."""


class TrainingError(BratsError):
    """A training that cannot be continued."""


@dataclass(frozen=True, eq=False)
class StepDone:
    """A step of an epoch.

    Attributes:
        step: Its number, from 1.
        steps: Steps per epoch.
        device_loss: Its loss, still on the device.
    """

    step: int
    steps: int
    device_loss: torch.Tensor

    @property
    def loss(self) -> float:
        """The loss; to ask for it waits for the GPU."""
        return self.device_loss.item()


@dataclass(frozen=True, eq=False)
class CaseValidated:
    """A validation case, segmented by the network as it is.

    Attributes:
        case_id: Its id.
        dice: By region.
        reference: Masks of WT, TC and ET as the expert drew them, (3, X, Y, Z), where it computed.
        predicted: Those of the network, in the same place.
    """

    case_id: str
    dice: Mapping[str, float]
    reference: torch.Tensor
    predicted: torch.Tensor


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
            share = (1 - done) ** 0.9  # nnU-Net's: reaches 0 with the last step
        elif config.schedule == "cosine":
            share = (1 + math.cos(math.pi * done)) / 2  # Loshchilov & Hutter 2017, one cycle
        else:
            share = config.plateau_factor**self.lowered
        if epochs < config.warmup_epochs:
            share *= (epochs + 1 / config.steps_per_epoch) / config.warmup_epochs
        return float(config.learning_rate * share)


Stop = Literal["patience", "time"]
"""Why a training ends before its last epoch."""


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
        data_wait_percent: Share of `seconds` that the device waited for patches: that a GPU idled.
        patches_per_second: Patches trained on in a second.
        peak_memory_mb: The most memory this process has held so far, in 10^6 bytes.
        stops: Why this is the last epoch, where it is not by number.
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
    stops: Stop | None
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
    weights: Mapping[str, torch.Tensor] | None = None,
    group: Group = ALONE,
    max_seconds: float = math.inf,
) -> Iterator[StepDone | CaseValidated | Epoch]:
    """Train a network, yielding after every step, validated case and epoch.

    The caller decides what to do with an epoch: print it, save its checkpoint, or stop by leaving
    the loop. Nothing here writes a file or a line of text.

    Args:
        config: What to learn, and how.
        training: Cases that patches are drawn from.
        validation: Cases that are segmented whole to score an epoch; without any, the last epoch
            is the best.
        scheme: The label scheme of the stored cases.
        device: Where to compute.
        resume: `last.pt` of the same run, to resume from.
        weights: Values that the network starts from, of all its tensors or some.
        group: The processes that train together: each reads `batch_size` patches per step.
        max_seconds: Stop after the epoch with which this time is up, or before one that would
            likely not end in it.

    Raises:
        TrainingError: If the loss is no longer a number, or memory is out.
        CheckpointError: If `resume` holds no state to resume from.
    """
    started = time.monotonic()
    learner = _Learner(config, scheme, device, resume, group, weights)
    feed = _feed(config, training, learner.progress.epoch, group, device)
    while learner.progress.epoch < config.epochs and not learner.progress.stops(config):
        before = time.monotonic()
        epoch = yield from learner.epoch(feed, validation)
        now = time.monotonic()
        late = group.as_the_first(now - started + (now - before) > max_seconds)
        if late and epoch.stops is None and epoch.number < config.epochs:
            epoch = replace(epoch, stops="time")
        yield epoch
        if late:
            return


@dataclass(frozen=True)
class Profile:
    """Where the time of training goes.

    Attributes:
        data_wait_percent: Share of it that the device waited for patches: that a GPU idled.
        patches_per_second: Patches trained on in a second.
        workers: Processes that read patches.
        cpus: CPUs that there are.
        device: What computes, such as `cuda`.
        precision: The network's arithmetic, such as `bfloat16`.
    """

    data_wait_percent: float
    patches_per_second: float
    workers: int
    cpus: int
    device: str = "cpu"
    precision: str = "float32"

    @property
    def data_is_bottleneck(self) -> bool:
        """Whether the network waits for the data for long, not the data for the network."""
        return self.data_wait_percent >= WAIT_IS_LONG


def profile(
    config: TrainConfig,
    training: Sequence[StoredCase],
    scheme: LabelScheme,
    device: torch.device,
    *,
    steps: int = 20,
) -> Profile:
    """Train for `steps` steps after as many to warm up, keep nothing, and report the time."""
    short = config.model_copy(update={"steps_per_epoch": steps, "epochs": 2})
    learner = _Learner(short, scheme, device, None, ALONE)
    feed = _feed(short, training, 0, ALONE, device)
    _result(learner.steps(feed))
    started = time.perf_counter()
    _, waited = _result(learner.steps(feed))
    seconds = time.perf_counter() - started
    return Profile(
        data_wait_percent=100 * waited / seconds,
        patches_per_second=steps * config.batch_size / seconds,
        workers=worker_count(config, ALONE),
        cpus=available_cpus(),
        device=device.type,
        precision=str(learner.dtype).removeprefix("torch."),
    )


def _result(work: Generator[Any, None, Result]) -> Result:
    """What a generator returns, whatever it yields before."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: Result = end.value
            return result


class _Learner:
    """A network in training, and all that changes with it."""

    def __init__(
        self,
        config: TrainConfig,
        scheme: LabelScheme,
        device: torch.device,
        resume: Checkpoint | None,
        group: Group,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        keep_freed_memory()
        restart_peak_memory(device)
        torch.manual_seed(config.seed)
        self.config, self.scheme, self.device, self.group = config, scheme, device, group
        self.dtype = arithmetic(device, config.precision)
        network = make_network(
            config.network,
            in_channels=len(config.modalities),
            out_channels=len(REGIONS),
            patch_size=config.patch_size,
        )
        if weights is not None:
            network.load_state_dict({**network.state_dict(), **weights})
        freeze(network, config)
        self.network = on_device(network, device)
        self.optimizer = _optimizer(config, self.network)
        # Gradients of float16 would vanish below 6e-8.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.average = copy.deepcopy(self.network) if config.ema_decay else None
        self.progress = Progress()
        self.learning_rate = config.learning_rate
        self.released = -math.inf  # when freed memory was last given back
        if resume is not None:
            self._resume(resume)
        replica = _Compiled(self.network) if config.compile else self.network
        self.replica = DistributedDataParallel(replica) if group.size > 1 else replica

    @property
    def kept(self) -> Network:
        """The network that is validated and kept."""
        return self.network if self.average is None else self.average

    def epoch(
        self,
        feed: Iterator[Batch],
        validation: Sequence[StoredCase],
    ) -> Generator[StepDone | CaseValidated, None, Epoch]:
        """Train for an epoch, and validate if that is due."""
        started = time.perf_counter()
        loss, waited = yield from self.steps(feed)
        seconds = time.perf_counter() - started
        dice, preview = yield from self._validate(validation)
        score = None if dice is None else float(np.mean(list(dice.values())))
        self.progress = self.progress.after(score, self.config)
        patches = self._batches_per_epoch * self.config.batch_size * self.group.size
        return Epoch(
            number=self.progress.epoch,
            loss=self.group.mean(loss),
            dice=dice,
            is_best=self.progress.stale == 0 if dice else not validation,
            learning_rate=self.learning_rate,
            seconds=seconds,
            validation_seconds=time.perf_counter() - started - seconds,
            data_wait_percent=100 * waited / seconds,
            patches_per_second=patches / seconds,
            peak_memory_mb=peak_memory(self.device) / 1e6,
            stops="patience" if self.progress.stops(self.config) else None,
            checkpoint=self._checkpoint(dice or {}),
            preview=preview,
        )

    def steps(self, feed: Iterator[Batch]) -> Generator[StepDone, None, tuple[float, float]]:
        """Take an epoch's steps; returns their mean loss, and the seconds waited for patches.

        Nothing in a step waits for a GPU, which is told what to do far ahead.

        Raises:
            TrainingError: If a loss is not a number, or memory is out.
        """
        into_training(self.network, self.config)
        waits = Waits(self.device)
        losses, cases = [], []
        for number in range(self._batches_per_epoch):
            with self._fitting(), searching_kernels(self.device):
                with waits.measured():
                    batch = next(feed)
                if not number:  # for dropout; the feed, as it starts, draws numbers too
                    torch.manual_seed(self._seed())
                losses.append(self._learn(batch, number))
            self._release()
            cases.append(batch.case_ids)
            step, rest = divmod(number + 1, self.config.accumulate)
            if not rest:
                yield StepDone(step, self.config.steps_per_epoch, losses[-1])
        together = torch.stack(losses).cpu()  # once: .item() at every step would wait for the GPU
        wrong = (~together.isfinite()).nonzero()[:, 0].tolist()
        self.group.raise_together(
            self._diverged(wrong[0], together[wrong[0]].item(), cases[wrong[0]]) if wrong else None
        )
        return together.mean().item(), waits.seconds()

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Report what does not fit where memory runs out."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size, edge = self.config.batch_size, self.config.patch_size
            less = f"batch_size={size // 2}" if size > 1 else f"patch_size={edge // 2}"
            raise TrainingError(
                f"training on {size} patches of {edge}^3 voxels at once does not fit into "
                f"{memory_text(self.device)}",
                hint=f"continue with --resume --set {less}, or train a network of fewer channels; "
                "`brats train --summary` shows what they take",
            ) from error

    @property
    def _batches_per_epoch(self) -> int:
        return self.config.steps_per_epoch * self.config.accumulate

    def _learn(self, batch: Batch, number: int) -> torch.Tensor:
        """Learn from batch `number` of the epoch; its loss, still on the device."""
        random = torch.Generator().manual_seed(self._seed(number))
        images, labels = augment(batch.images, batch.labels, self.config.augmentation, random)
        targets = torch.stack(self.scheme.masks(labels), dim=1)  # (B, 3, X, Y, Z)
        step, part = divmod(number, self.config.accumulate)
        last = part + 1 == self.config.accumulate
        with self._gradients(shared=last):
            with autocast(self.device, self.dtype):
                outputs = self.replica(images.contiguous(memory_format=torch.channels_last_3d))
            loss = training_loss(self.config, outputs, targets)
            scaled = self.scaler.scale(loss / self.config.accumulate)
            scaled.backward()  # type: ignore[no-untyped-call]
        if last:
            self._step(step)
        return loss.detach()

    def _gradients(self, *, shared: bool) -> AbstractContextManager[object]:
        """Add gradients up: over the processes as well, or in this one until the last batch."""
        if isinstance(self.replica, DistributedDataParallel) and not shared:
            return self.replica.no_sync()
        return nullcontext()

    def _step(self, step: int) -> None:
        """Change the weights by the gradients there are."""
        self.learning_rate = self.progress.learning_rate(self.config, step)
        for settings in self.optimizer.param_groups:
            settings["lr"] = self.learning_rate
        if self.config.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            done = self.progress.epoch * self.config.steps_per_epoch + step
            # At first a shorter memory, or the average would keep the random weights for long.
            decay = min(self.config.ema_decay, done / (done + 9))
            _draw_near(self.average, self.network, 1 - decay)

    def _release(self) -> None:
        """Give freed memory back, but not so often that a step of a few seconds waits for it."""
        if time.perf_counter() - self.released > _RELEASE_SECONDS:
            release_freed_memory()
            self.released = time.perf_counter()

    def _diverged(self, number: int, loss: float, case_ids: Sequence[str]) -> TrainingError:
        step = number // self.config.accumulate + 1
        lower = f"{self.config.learning_rate / 3:.1g}"
        return TrainingError(
            f"the loss is {loss} at step {step} of epoch {self.progress.epoch + 1}, "
            f"of patches of {', '.join(sorted(set(case_ids)))}",
            hint="look at these cases with `brats check`, or resume from the epoch before with a "
            f"lower learning rate: --resume --set learning_rate={lower}",
        )

    def _seed(self, *batch: int) -> int:
        """A seed by place in the run, so that a resumed run equals an uninterrupted one."""
        place = (self.config.seed, self.group.rank, self.progress.epoch, *batch)
        seed = np.random.SeedSequence(place).generate_state(1, np.uint64)[0]
        return int(seed >> 1)

    def _validate(
        self, validation: Sequence[StoredCase]
    ) -> Generator[CaseValidated, None, tuple[dict[str, float] | None, Preview | None]]:
        number = self.progress.epoch + 1
        due = number % self.config.validate_every == 0 or number == self.config.epochs
        if not validation or not due:
            return None, None
        preview, scores = None, []
        mine = self.group.share(evenly(len(validation), self.config.validate_cases))
        self.group.share_buffers(self.kept)
        release_freed_memory()
        release_cached_memory(self.device)
        segmenter = Segmenter(
            network=self.kept,
            device=self.device,
            dtype=self.dtype,
            patch_size=self.config.patch_size,
        )
        for case in one_ahead(lambda place: validation[place].read(), mine):
            found = validate(segmenter, case, self.scheme)
            scores.append(list(found.dice.values()))
            if preview is None:
                shown = case.images[_shown_modality(self.config)]
                masks = found.reference.cpu().numpy(), found.predicted.cpu().numpy()
                preview = Preview.of(case.id, shown, *masks)
            yield found
            release_freed_memory()  # each has blocks of other sizes
        means = np.mean(self.group.gathered(scores), axis=0).tolist()
        return dict(zip(REGIONS, means, strict=True)), preview

    def _checkpoint(self, dice: Mapping[str, float]) -> Checkpoint:
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "scaler": self.scaler.state_dict(),
        }
        if self.average is not None:
            state["network"] = _stored(self.network)
        return Checkpoint(
            weights=_stored(self.kept),
            config=self.config.model_dump(mode="json"),
            labels=self.scheme.name,
            epoch=self.progress.epoch,
            scores=dice,
            preparation=RECIPE if self.config.preparation else PREPARATION,
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
            if _resolved(name, checkpoint.config[name]) != settings[name]:
                raise CheckpointError(
                    f"the run's {name} is {checkpoint.config[name]}, not {settings[name]}",
                    hint=f"a run keeps its {name}: train a new run with -o NAME, without --resume",
                )
        try:
            self._take_up(checkpoint, checkpoint.state)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the state of the training in this checkpoint does not fit: {error}",
                hint="was the file changed? train a new run with -o NAME, without --resume",
            ) from error

    def _take_up(self, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        # Under an average, the weights that learn lie beside those that are kept.
        self.network.load_state_dict(dict(state.get("network", checkpoint.weights)))
        if self.average is not None:
            self.average.load_state_dict(dict(checkpoint.weights))
        _load_optimizer(self.optimizer, state["optimizer"])
        scaler = state.get("scaler")
        if scaler and self.scaler.is_enabled():  # a run of another precision has none
            self.scaler.load_state_dict(scaler)
        self.progress = Progress(**state["progress"])


def _resolved(name: str, setting: Any) -> Any:
    """A setting of an older checkpoint, with the defaults of what was not there yet."""
    if name == "network":
        return stored_network_config(setting).model_dump(mode="json")
    return setting


def validate(segmenter: Segmenter, case: StoredCase, scheme: LabelScheme) -> CaseValidated:
    """Segment a whole case, and score it by the Dice of WT, TC and ET.

    A region that is empty in both scores 1, in one of them 0 (the convention up to BraTS 2022).
    """
    predicted = segmenter.probabilities(case.images) >= THRESHOLD
    labels = torch.from_numpy(np.asarray(case.labels)).to(predicted.device)
    reference = torch.stack(scheme.masks(labels))
    dice = dict(zip(REGIONS, _dice(predicted, reference), strict=True))
    return CaseValidated(case.id, dice, reference, predicted)


def evenly(count: int, most: int | None) -> list[int]:
    """Places of `most` of so many cases, or of all, spread evenly: the same in every epoch."""
    chosen = count if most is None else min(most, count)
    return [place * count // chosen for place in range(chosen)]


def _shown_modality(config: TrainConfig) -> int:
    """The channel of a preview: FLAIR, in which the whole tumour is bright, else the first."""
    return config.modalities.index("flair") if "flair" in config.modalities else 0


def worker_count(config: TrainConfig, group: Group) -> int:
    """Processes that read patches for this one: as configured, or its share of CPUs, less one."""
    if config.workers is not None:
        return config.workers
    return max(0, min(MOST_WORKERS, group.of_each(available_cpus()) - 1))


def _feed(
    config: TrainConfig,
    training: Sequence[StoredCase],
    epoch: int,
    group: Group,
    device: torch.device,
) -> Iterator[Batch]:
    """This process's batches of the epochs after `epoch`, on its device."""
    patches = Patches(
        training, edge=config.patch_size, tumour_share=config.tumour_share, seed=config.seed
    )
    each = config.batch_size
    together = each * group.size
    per_epoch = config.steps_per_epoch * config.accumulate * together
    first = range(epoch * per_epoch, config.epochs * per_epoch, together)
    numbers = [start + group.rank * each + place for start in first for place in range(each)]
    workers = worker_count(config, group)
    return batches(patches, numbers, batch_size=each, workers=workers, device=device)


class _Compiled(torch.nn.Module):
    """A network that `torch.compile` makes faster when it is first called."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = torch.compile(network)

    def forward(self, images: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        from torch._dynamo.exc import TorchDynamoException  # which takes a second to import

        try:
            logits: torch.Tensor | list[torch.Tensor] = self.network(images)
        except TorchDynamoException as error:
            raise TrainingError(
                f"the network cannot be compiled: {str(error).splitlines()[0]}",
                hint="install a C++ compiler, as g++, or set compile: false",
            ) from error
        return logits


def _optimizer(config: TrainConfig, network: torch.nn.Module) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if next(network.parameters()).device.type == "cuda":
        settings["fused"] = True  # one kernel for all weights, and no wait under a scaler
    if config.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), momentum=0.99, nesterov=True, **settings)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(network.parameters(), **settings)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore an optimiser's state, which another device may have left."""
    own = [{name: group[name] for name in ("fused", "foreach")} for group in optimizer.param_groups]
    groups = [saved | kept for saved, kept in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if value is not None and value.shape == weight.shape:
                # As the weight lies in memory, which a fused optimiser requires.
                values[name] = torch.empty_like(weight).copy_(value)


def _stored(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A network's weights as they are saved, however they lie in a GPU's memory."""
    return {name: value.contiguous() for name, value in network.state_dict().items()}


@torch.no_grad()
def _draw_near(average: torch.nn.Module, network: torch.nn.Module, share: float) -> None:
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


def _dice(found: torch.Tensor, truth: torch.Tensor) -> list[float]:
    """Dice of masks (R, X, Y, Z); the device counts, and is waited for once."""
    counts = torch.stack([masks.sum((1, 2, 3)) for masks in (found & truth, found, truth)])
    return [
        2 * both / (predicted + drawn) if predicted + drawn else 1.0
        for both, predicted, drawn in counts.T.tolist()
    ]
