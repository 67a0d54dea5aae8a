"""The network in training: its steps, its validation, and the state that a run resumes with."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

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
from ..compute.distributed import Group
from ..compute.machine import keep_freed_memory, release_freed_memory
from ..compute.processes import one_ahead
from ..data.labels import REGIONS, LabelScheme
from ..errors import BratsError, CheckpointError
from ..model.checkpoint import Checkpoint
from ..model.config import stored_network_config
from ..model.network import Network, make_network, on_device
from ..model.segmenter import Segmenter
from ..prepared.preparation import PREPARATION
from ..prepared.recipe import RECIPE
from ..prepared.store import StoredCase
from .augment import augment
from .config import TrainConfig
from .events import CaseValidated, Epoch, StepDone
from .figures import Preview
from .losses import training_loss
from .optimizer import draw_near, load_optimizer, make_optimizer
from .progress import Progress
from .start import freeze, into_training
from .transfer import Batch
from .validation import evenly, validate
from .waits import Waits

# Between two times that freed memory is given back, which costs the next step 2 to 3.
_RELEASE_SECONDS = 8


class TrainingError(BratsError):
    """A training that cannot be continued."""


class Learner:
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
        self.optimizer = make_optimizer(config, self.network)
        # Gradients of float16 would vanish below 6e-8.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.average = copy.deepcopy(self.network) if config.ema_decay else None
        self.progress = Progress()
        self.learning_rate = config.learning_rate
        self.released = -math.inf  # when freed memory was last given back
        if resume is not None:
            self._resume(resume)
        if device.type == "cpu" and not config.compile:
            _answer_signals_in_backward(self.network)
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
            draw_near(self.average, self.network, 1 - decay)

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
        load_optimizer(self.optimizer, state["optimizer"])
        scaler = state.get("scaler")
        if scaler and self.scaler.is_enabled():  # a run of another precision has none
            self.scaler.load_state_dict(scaler)
        self.progress = Progress(**state["progress"])


def _answer_signals_in_backward(network: torch.nn.Module) -> None:
    """Let Ctrl-C and SIGTERM end a backward pass after any layer.

    Python answers a signal when it runs next. The pass is one call into C++, which takes the
    default network half a minute on two CPU cores; a hook that does nothing runs Python within it.
    """

    def hook(_: torch.nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: None)  # type: ignore[no-untyped-call]

    for module in network.modules():
        if not any(module.children()):
            module.register_forward_hook(hook)


def _resolved(name: str, setting: Any) -> Any:
    """A setting of an older checkpoint, with the defaults of what was not there yet."""
    if name == "network":
        return stored_network_config(setting).model_dump(mode="json")
    return setting


def _shown_modality(config: TrainConfig) -> int:
    """The channel of a preview: FLAIR, in which the whole tumour is bright, else the first."""
    return config.modalities.index("flair") if "flair" in config.modalities else 0


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


def _stored(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A network's weights as they are saved, however they lie in a GPU's memory."""
    return {name: value.contiguous() for name, value in network.state_dict().items()}
