import json
import pickle
import shutil
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import launched
from tinytraining import BRATS2023, CPU, TINY, assert_same_weights, epochs_of, tiny, weights_after

from brats_cli.core.compute.distributed import ALONE
from brats_cli.core.errors import CheckpointError
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.train.config import AugmentConfig
from brats_cli.core.train.events import Epoch
from brats_cli.core.train.learner import Learner, TrainingError
from brats_cli.core.train.progress import Progress
from brats_cli.core.train.training import train
from brats_cli.core.train.transfer import Batch


def test_the_average_of_the_weights_is_what_is_kept(cases):
    # After one step the average is the weights themselves; later it lies behind them.
    plain = weights_after(tiny(epochs=1, steps_per_epoch=1), cases)
    assert_same_weights(
        weights_after(tiny(epochs=1, steps_per_epoch=1, ema_decay=0.9), cases), plain
    )
    (epoch,) = epochs_of(tiny(epochs=1, steps_per_epoch=3, ema_decay=0.9), cases)
    kept, learning = epoch.checkpoint.weights, epoch.checkpoint.state["network"]
    assert_same_weights(learning, weights_after(tiny(epochs=1, steps_per_epoch=3), cases))
    assert not torch.equal(kept["output.weight"], learning["output.weight"])


def test_batches_together_make_the_step_of_one_batch_of_all(cases):
    # Of cross-entropy without Dice, whose sums run over a batch; without batch norm, likewise.
    settings = {
        "augmentation": AugmentConfig(enabled=False),
        "network": UNetConfig(channels=2, levels=2, norm="none"),
        "epochs": 1,
        "optimizer": "sgd",
        "learning_rate": 0.01,
    }
    whole = weights_after(tiny(batch_size=4, steps_per_epoch=2, **settings), cases)
    parts = weights_after(tiny(batch_size=2, accumulate=2, steps_per_epoch=2, **settings), cases)
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, atol=2e-3, rtol=0)


def test_gradients_are_clipped(cases):
    # SGD moves weights by 1.99 times learning rate and gradient, of norm 1e-3 at most.
    settings = {"epochs": 1, "steps_per_epoch": 1, "optimizer": "sgd", "learning_rate": 1.0}
    still = weights_after(tiny(**settings | {"learning_rate": 1e-30}), cases)
    moved = weights_after(tiny(**settings, clip_norm=1e-3), cases)
    names = [name for name in still if "running" not in name and "tracked" not in name]
    moves = torch.cat([(moved[name] - still[name]).flatten() for name in names])
    assert moves.norm().item() == pytest.approx(1.99e-3, rel=1e-2)


def test_patches_of_a_network_without_padding_are_scored_in_their_middle(cases):
    # 20 voxels give 4 (see test_config): targets are cropped to them.
    network = UNetConfig(channels=2, levels=2, padding="valid")
    (epoch,) = epochs_of(tiny(epochs=1, patch_size=20, network=network), cases)
    assert 0 < epoch.loss < 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # those of the compiler are not ours
def test_a_compiled_network_learns_the_same(cases):
    settings = {
        "epochs": 1,
        "steps_per_epoch": 2,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        # Each kernel takes the compiler half a second.
        "network": UNetConfig(channels=2, levels=2, residual=False),
    }
    plain, compiled = (
        weights_after(tiny(compile=compiling, **settings), cases) for compiling in (False, True)
    )
    assert compiled.keys() == plain.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(compiled[name], weight, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_without_a_compiler_the_way_out_is_told(cases, monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/compiler"))
    # Of another shape than that of the other test, which torch still has.
    config = tiny(compile=True, network=UNetConfig(channels=3, levels=2))
    with pytest.raises(TrainingError, match="the network cannot be compiled: ") as caught:
        epochs_of(config, cases)
    assert caught.value.hint == "install a C++ compiler, as g++, or set compile: false"


def test_every_step_of_a_run_is_varied_in_its_own_way(cases, monkeypatch):
    seeds = []

    def watched(images, labels, config, random):
        seeds.append(random.initial_seed())
        return images.float(), labels

    monkeypatch.setattr("brats_cli.core.train.learner.augment", watched)
    last = epochs_of(TINY, cases)[-1].checkpoint
    epochs_of(tiny(epochs=3), cases, resume=last)
    unbroken = seeds.copy()
    seeds.clear()
    epochs_of(tiny(epochs=3), cases)
    assert seeds == unbroken
    assert len(set(seeds)) == 3 * 2
    epochs_of(tiny(seed=1), cases)
    assert len(set(seeds)) == 3 * 2 + 2 * 2


def test_what_a_checkpoint_keeps_of_the_progress_is_plain(cases):
    (epoch,) = epochs_of(tiny(epochs=1), cases)
    kept = json.loads(json.dumps(epoch.checkpoint.state["progress"]))
    assert Progress(**kept).epoch == 1


# --- resuming ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"plateau_epochs": 1},
        {"schedule": "poly", "optimizer": "sgd", "clip_norm": 1.0},
        {"schedule": "cosine", "warmup_epochs": 3, "optimizer": "adamw", "weight_decay": 0.1},
        {"ema_decay": 0.9, "accumulate": 2},
        {"network": UNetConfig(channels=2, levels=2, dropout=0.3)},
    ],
)
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(cases, tmp_path, settings):
    config = tiny(epochs=4, **settings)
    unbroken = epochs_of(config, cases)
    for epoch in train(config, cases, cases[:1], BRATS2023, CPU):
        if isinstance(epoch, Epoch) and epoch.number == 2:
            epoch.checkpoint.save(tmp_path / "last.pt")
            break
    resumed = epochs_of(config, cases, resume=Checkpoint.load(tmp_path / "last.pt"))
    assert [epoch.number for epoch in resumed] == [3, 4]
    for again, before in zip(resumed, unbroken[2:], strict=True):
        assert (again.loss, again.dice, again.is_best, again.learning_rate) == (
            before.loss,
            before.dice,
            before.is_best,
            before.learning_rate,
        )
    assert_same_weights(resumed[-1].checkpoint.weights, unbroken[-1].checkpoint.weights)
    states = [each[-1].checkpoint.state for each in (resumed, unbroken)]
    assert states[0]["progress"] == states[1]["progress"]
    for again, before in zip(
        *(state["optimizer"]["state"][0].values() for state in states), strict=True
    ):
        assert torch.equal(torch.as_tensor(again), torch.as_tensor(before))


def test_a_best_checkpoint_cannot_be_resumed(cases):
    (epoch,) = epochs_of(tiny(epochs=1), cases)
    with pytest.raises(CheckpointError) as caught:
        epochs_of(TINY, cases, resume=replace(epoch.checkpoint, state=None))
    assert str(caught.value) == "this checkpoint holds weights only, nothing to resume from"
    assert caught.value.hint == "resume from the run's last.pt"


def test_a_checkpoint_of_another_network_cannot_be_resumed(cases):
    (epoch,) = epochs_of(tiny(epochs=1), cases)
    wider = tiny(network=UNetConfig(channels=3, levels=2))
    with pytest.raises(CheckpointError, match="network"):
        epochs_of(wider, cases, resume=epoch.checkpoint)


def test_a_network_of_other_modalities_cannot_be_resumed(cases):
    (epoch,) = epochs_of(tiny(epochs=1), cases)
    with pytest.raises(CheckpointError, match=r"modalities is .* not \['t1', 't2', 'flair'\]"):
        epochs_of(tiny(modalities=("t1", "t2", "flair")), cases, resume=epoch.checkpoint)


# --- failures ----------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_training_and_says_what_to_do(stored_case):
    bad = stored_case(np.full((2, 16, 16, 16), np.nan), np.ones((16, 16, 16)))
    with pytest.raises(TrainingError) as caught:
        epochs_of(tiny(learning_rate=0.003), [bad])
    assert str(caught.value) == "the loss is nan at step 1 of epoch 1, of patches of case"
    assert caught.value.hint.endswith("--resume --set learning_rate=0.001")


# --- two processes -----------------------------------------------------------------------------

TOGETHER = """
import pickle
import torch
from brats_cli.core.compute.distributed import Group
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.train import learner
from brats_cli.core.train.training import train

config, cases = pickle.loads((folder / "work").read_bytes())
group, cpu = Group.from_environment(), torch.device("cpu")
segmenter, seen = learner.Segmenter, []
def spy(**settings):
    seen.append({name: value.clone() for name, value in settings["network"].state_dict().items()})
    return segmenter(**settings)
learner.Segmenter = spy
with group.joined(cpu):
    for _ in train(config, cases, cases, SCHEMES["brats2023"], cpu, group=group):
        pass
torch.save(seen, folder / f"{group.rank}.pt")
"""


def test_two_processes_validate_one_network(cases, tmp_path):
    # Each has seen other patches, so that its own statistics differ by tenths; accumulating, it
    # shares its gradients with the second batch alone.
    config = tiny(epochs=1, steps_per_epoch=3, ema_decay=0.9, accumulate=2)
    (tmp_path / "work").write_bytes(pickle.dumps((config, cases)))
    assert launched(TOGETHER, tmp_path).ended() == ("", 0)
    (first,), (second,) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert_same_weights(first, second)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_stop_ends_a_backward_pass_before_its_end(monkeypatch):
    config = tiny(patch_size=48, network=UNetConfig(channels=8, levels=2))
    learner = Learner(config, BRATS2023, CPU, None, ALONE)
    backward = torch.Tensor.backward

    def stopped(loss):  # by a signal that comes when C++ computes the gradients
        signal.setitimer(signal.ITIMER_REAL, 1e-3)
        backward(loss)

    monkeypatch.setattr(torch.Tensor, "backward", stopped)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    edge = config.patch_size
    batch = Batch(torch.rand(2, 2, *3 * [edge]).half(), torch.ones(2, *3 * [edge]).byte(), ["a"])
    try:
        with pytest.raises(KeyboardInterrupt):
            next(learner.steps(iter([batch])))
    finally:
        signal.signal(signal.SIGALRM, before)
    first = next(learner.network.parameters())  # the last to get its gradient
    assert first.grad is None
