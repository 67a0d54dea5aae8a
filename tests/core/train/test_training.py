import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import launched

from brats_cli.core.compute.distributed import ALONE, Group
from brats_cli.core.compute.machine import available_cpus
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.errors import CheckpointError
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.segmenter import Segmenter
from brats_cli.core.train import training
from brats_cli.core.train.config import AugmentConfig, TrainConfig
from brats_cli.core.train.training import (
    MOST_WORKERS,
    CaseValidated,
    Epoch,
    Progress,
    StepDone,
    TrainingError,
    evenly,
    train,
    validate,
    worker_count,
)

CPU = torch.device("cpu")
BRATS2023 = SCHEMES["brats2023"]

TINY = TrainConfig(
    epochs=2,
    steps_per_epoch=2,
    patch_size=16,
    modalities=("t1", "flair"),
    network=UNetConfig(channels=2, levels=2),
    loss="dice",
    precision="float32",
    workers=0,
)


def tiny(**changes):
    return TINY.model_copy(update=changes)


@pytest.fixture
def cases(stored_case):
    """Two cases of 20 x 18 x 17 voxels of noise, with a bright tumour of nested boxes in each."""
    made = []
    for seed in range(2):
        labels = np.zeros((20, 18, 17))
        first = 3 + 3 * seed
        for value, inset in ((2, 0), (1, 2), (3, 3)):
            box = slice(first + inset, first + 9 - inset)
            labels[box, box, box] = value
        images = np.random.default_rng(seed).normal(0, 0.3, (2, *labels.shape))
        images[0] += np.array([0.0, 1, 0, 2])[labels.astype(int)]
        images[1] += 2 * (labels > 0)
        made.append(stored_case(images, labels, case_id=f"case{seed}"))
    return made


def epochs_of(config, cases, **options):
    events = train(config, cases, cases[:1], BRATS2023, CPU, **options)
    return [event for event in events if isinstance(event, Epoch)]


def weights_after(config, cases, **options):
    """The weights that the last epoch leaves."""
    return epochs_of(config, cases, **options)[-1].checkpoint.weights


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


# --- progress ----------------------------------------------------------------------------------


def progress_after(scores, **settings):
    """The progress after epochs with these validation scores, one by one."""
    config = tiny(**settings)
    found = [Progress()]
    for score in scores:
        found.append(found[-1].after(score, config))
    return found[1:]


def test_progress_by_hand():
    # Better in epochs 1, 3 (not validated: 2) and 7; lowered after two validations in vain.
    scores = [0.5, None, 0.6, 0.6, 0.1, 0.2, 0.7]
    found = progress_after(scores, plateau_epochs=2, patience=9)
    assert [p.epoch for p in found] == [1, 2, 3, 4, 5, 6, 7]
    assert [p.best for p in found] == [0.5, 0.5, 0.6, 0.6, 0.6, 0.6, 0.7]
    assert [p.best_epoch for p in found] == [1, 1, 3, 3, 3, 3, 7]
    assert [p.stale for p in found] == [0, 0, 0, 1, 2, 3, 0]
    assert [p.waited for p in found] == [0, 0, 0, 1, 0, 1, 0]
    assert [p.lowered for p in found] == [0, 0, 0, 0, 1, 1, 1]


def test_a_first_score_of_0_is_the_best_so_far():
    (found,) = progress_after([0.0])
    assert (found.best, found.best_epoch, found.stale) == (0, 1, 0)


def test_training_stops_after_patience_validations_in_vain():
    config = tiny(patience=3)
    found = progress_after([0.5, 0.4, None, 0.4, 0.5], patience=3)
    assert [p.stops(config) for p in found] == [False, False, False, False, True]
    assert not found[-1].stops(tiny(patience=None))
    assert not Progress().stops(config)


def test_the_plateau_lowers_the_learning_rate_by_its_factor():
    config = tiny(learning_rate=1e-3, plateau_factor=0.3)
    rates = [replace(Progress(), lowered=times).learning_rate(config, 1) for times in range(3)]
    assert rates == pytest.approx([1e-3, 3e-4, 9e-5])


def test_the_polynomial_schedule_by_hand():
    # (1 - epoch/epochs)^0.9 of 1e-2 at the start, at 5 of 10 epochs, half an epoch later and one
    # step of 20 before the end.
    config = tiny(schedule="poly", learning_rate=1e-2, epochs=10, steps_per_epoch=20)
    rates = [
        Progress(epoch=epoch).learning_rate(config, step)
        for epoch, step in [(0, 0), (5, 0), (5, 10), (9, 19)]
    ]
    expected = [1e-2, 1e-2 * 0.5**0.9, 1e-2 * 0.45**0.9, 1e-2 * (1 / 200) ** 0.9]
    assert rates == pytest.approx(expected)
    # A plateau has no say in it.
    assert Progress(lowered=3).learning_rate(config, 0) == 1e-2


def test_the_cosine_schedule_by_hand():
    # Half a cosine: all at the start, cos 60 degrees a third of the way, nothing at the end.
    config = tiny(schedule="cosine", learning_rate=1e-2, epochs=6, steps_per_epoch=10)
    rates = [
        Progress(epoch=epoch).learning_rate(config, step)
        for epoch, step in [(0, 0), (2, 0), (3, 0), (6, 0)]
    ]
    assert rates == pytest.approx([1e-2, 1e-2 * (1 + 0.5) / 2, 1e-2 / 2, 0])


def test_the_learning_rate_rises_during_the_warm_up():
    # In 2 epochs of 4 steps to the full rate, which the eighth step has.
    config = tiny(learning_rate=8e-3, warmup_epochs=2, steps_per_epoch=4)
    rates = [
        Progress(epoch=epoch).learning_rate(config, step)
        for epoch, step in [(0, 0), (0, 3), (1, 0), (1, 3), (2, 0)]
    ]
    assert rates == pytest.approx([1e-3, 4e-3, 5e-3, 8e-3, 8e-3])


# --- optimisers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "step"),
    [
        # Adam's first step is the learning rate, whatever the gradient; weight decay, 0.1 * 2, is
        # part of the gradient.
        ("adam", 0.01),
        # Decoupled: the learning rate times 0.1 * 2 besides.
        ("adamw", 0.01 + 0.01 * 0.2),
        # Gradient 3 + 0.2, and Nesterov's momentum of 0.99 at once.
        ("sgd", 0.01 * 3.2 * 1.99),
    ],
)
def test_the_first_step_of_each_optimiser_by_hand(optimizer, step):
    weight = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(weight.weight, 2.0)
    config = tiny(optimizer=optimizer, learning_rate=0.01, weight_decay=0.1)
    optimiser = training._optimizer(config, weight)
    weight(torch.tensor([[3.0]])).sum().backward()
    optimiser.step()
    assert weight.weight.item() == pytest.approx(2 - step, rel=1e-5)


def test_an_average_moves_by_its_share_and_takes_counts_over():
    mean, network = torch.nn.BatchNorm3d(1), torch.nn.BatchNorm3d(1)
    torch.nn.init.constant_(mean.weight, 1.0)
    torch.nn.init.constant_(network.weight, 5.0)
    network.running_mean.fill_(10)
    network.num_batches_tracked.fill_(7)
    training._draw_near(mean, network, 0.25)
    assert mean.weight.item() == pytest.approx(2)
    assert mean.running_mean.item() == pytest.approx(2.5)
    assert mean.num_batches_tracked.item() == 7


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


# --- validation --------------------------------------------------------------------------------


class Answer(torch.nn.Module):
    """A network that finds a region where the modality of its number is above 0."""

    def __init__(self):
        super().__init__()
        self.config = UNetConfig(levels=2)
        self.output = torch.nn.Conv3d(3, 3, 1)

    def forward(self, images):
        return images


def segmenter_of(network):
    return Segmenter(network=network, device=CPU, dtype=torch.float32, patch_size=16)


def test_validation_scores_by_hand(stored_case):
    # First case, WT: 2 found, 4 true, 2 common: 4/6. TC: 1 found, none true: 0. ET: none, none: 1.
    labels = np.zeros((2, 4, 2, 2))
    labels[0, :, 0, 0] = 2
    images = np.full((2, 3, 4, 2, 2), -1.0)
    images[0, 0, :2, 0, 0] = images[0, 1, 0, 0, 0] = 1
    # Second case: ET in one voxel, which all three find.
    labels[1, 1, 1, 1] = 3
    images[1, :, 1, 1, 1] = 1
    both = [stored_case(*pair) for pair in zip(images, labels, strict=True)]
    segmenter = segmenter_of(Answer())
    first, second = (validate(segmenter, case, BRATS2023) for case in both)
    assert first.dice == pytest.approx({"WT": 2 / 3, "TC": 0, "ET": 1})
    assert second.dice == {"WT": 1, "TC": 1, "ET": 1}
    assert first.reference.sum((1, 2, 3)).tolist() == [4, 0, 0]
    assert first.predicted.sum((1, 2, 3)).tolist() == [2, 1, 0]


def test_validation_leaves_the_networks_statistics(cases):
    (epoch,) = epochs_of(tiny(epochs=1), cases)
    network = epoch.checkpoint.network().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    validate(segmenter_of(network), cases[0], BRATS2023)
    assert_same_weights(network.state_dict(), before)


# --- epochs ------------------------------------------------------------------------------------


def test_the_events_of_an_epoch(cases):
    events = list(train(TINY, cases, cases[:1], BRATS2023, CPU))
    kinds = [StepDone, StepDone, CaseValidated, Epoch]
    assert [type(event) for event in events] == kinds * 2
    assert [(event.step, event.steps) for event in events[:2]] == [(1, 2), (2, 2)]
    assert events[2].case_id == "case0"
    first, second = events[3], events[7]
    assert events[6].dice == pytest.approx(second.dice)
    # The loss of an epoch is the mean of its steps'.
    assert second.loss == pytest.approx((events[4].loss + events[5].loss) / 2)
    assert (first.number, second.number) == (1, 2)
    assert 0 < second.loss < 1
    assert list(second.dice) == ["WT", "TC", "ET"]
    assert second.mean_dice == pytest.approx(sum(second.dice.values()) / 3)
    assert first.is_best
    assert second.is_best == (second.mean_dice > first.mean_dice)
    assert second.learning_rate == TINY.learning_rate
    assert 0 <= second.data_wait_percent <= 100
    assert second.patches_per_second == pytest.approx(2 * 2 / second.seconds)
    assert first.peak_memory_mb <= second.peak_memory_mb
    assert not second.stops
    assert second.checkpoint.epoch == 2
    assert second.checkpoint.scores == second.dice
    assert TrainConfig.model_validate(second.checkpoint.config) == TINY
    assert second.checkpoint.scheme is BRATS2023


def test_the_preview_is_of_the_first_case_in_flair_with_what_was_found(cases):
    *_, first, second, epoch = train(tiny(epochs=1), cases, cases, BRATS2023, CPU)
    assert [first.case_id, second.case_id] == ["case0", "case1"]
    truth, found = first.reference, first.predicted
    # The expert's boxes are equal from 3 to 11 along z; the first of the equal slices is shown.
    assert epoch.preview.case_id == "case0"
    for shown, volume in (
        (epoch.preview.image, cases[0].images[1]),
        (epoch.preview.truth[0], truth[0].numpy()),
        (epoch.preview.found[0], found[0].numpy()),
    ):
        np.testing.assert_array_equal(shown, volume[:, :, 3].T[::-1, ::-1])


def test_validation_every_third_epoch_and_after_the_last(cases):
    found = epochs_of(tiny(epochs=4, steps_per_epoch=1, validate_every=3), cases)
    assert [epoch.dice is not None for epoch in found] == [False, False, True, True]
    assert [epoch.mean_dice is not None for epoch in found] == [False, False, True, True]
    assert [epoch.preview is not None for epoch in found] == [False, False, True, True]
    assert not found[0].is_best


def test_training_ends_when_patience_does(cases):
    # A learning rate of nearly nothing: the score stays, in batch norm's evaluation mode too.
    config = tiny(epochs=9, steps_per_epoch=1, patience=2, learning_rate=1e-30)
    config = config.model_copy(update={"network": UNetConfig(channels=2, levels=2, norm="none")})
    found = epochs_of(config, cases)
    assert [epoch.stops for epoch in found] == [None, None, "patience"]
    assert [epoch.is_best for epoch in found] == [True, False, False]


def test_patches_of_a_network_without_padding_are_scored_in_their_middle(cases):
    # 20 voxels give 4 (see test_config): targets are cropped to them.
    network = UNetConfig(channels=2, levels=2, padding="valid")
    (epoch,) = epochs_of(tiny(epochs=1, patch_size=20, network=network), cases)
    assert 0 < epoch.loss < 1


def test_a_simple_tumour_is_learnt(cases):
    # The whole tumour is the bright box of the second modality.
    config = tiny(
        epochs=1,
        steps_per_epoch=80,
        learning_rate=0.02,
        network=UNetConfig(channels=4, levels=2),
        augmentation=AugmentConfig(enabled=False),
    )
    (epoch,) = epochs_of(config, cases)
    assert epoch.dice["WT"] > 0.9


# --- the same again ----------------------------------------------------------------------------


def test_one_seed_gives_the_same_weights_and_another_does_not(cases):
    first = weights_after(TINY, cases)
    torch.manual_seed(99)  # what came before does not matter
    assert_same_weights(weights_after(TINY, cases), first)
    other = weights_after(tiny(seed=1), cases)
    assert not torch.equal(other["output.weight"], first["output.weight"])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_what_is_learnt(cases, workers):
    assert_same_weights(weights_after(tiny(workers=workers), cases), weights_after(TINY, cases))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # those of the compiler are not ours
def test_a_compiled_network_learns_the_same(cases):
    settings = {"epochs": 1, "steps_per_epoch": 2, "optimizer": "sgd", "learning_rate": 0.01}
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


def test_every_step_of_a_run_is_varied_in_its_own_way(cases, monkeypatch):
    seeds = []

    def watched(images, labels, config, random):
        seeds.append(random.initial_seed())
        return images.float(), labels

    monkeypatch.setattr(training, "augment", watched)
    last = epochs_of(TINY, cases)[-1].checkpoint
    epochs_of(tiny(epochs=3), cases, resume=last)
    unbroken = seeds.copy()
    seeds.clear()
    epochs_of(tiny(epochs=3), cases)
    assert seeds == unbroken
    assert len(set(seeds)) == 3 * 2
    epochs_of(tiny(seed=1), cases)
    assert len(set(seeds)) == 3 * 2 + 2 * 2


def test_epochs_may_be_raised_on_resume(cases):
    first = epochs_of(TINY, cases)[-1].checkpoint
    resumed = epochs_of(tiny(epochs=4), cases, resume=first)
    assert [epoch.number for epoch in resumed] == [3, 4]


def test_a_finished_training_resumes_to_nothing(cases):
    last = epochs_of(TINY, cases)[-1].checkpoint
    assert epochs_of(TINY, cases, resume=last) == []


def test_a_training_that_was_stopped_by_patience_resumes_to_nothing(cases):
    last = epochs_of(TINY, cases)[-1].checkpoint
    state = {**last.state, "progress": {**last.state["progress"], "stale": 5}}
    assert epochs_of(tiny(epochs=9, patience=5), cases, resume=replace(last, state=state)) == []


def test_a_training_ends_before_an_epoch_that_would_take_too_long(cases, monkeypatch):
    # By a clock on which each look takes 10 s: the first epoch ends 20 s after the start and took
    # 10 s, the second ends at 40 s. A third would be over at 50 s.
    looks = iter(range(0, 10_000, 10))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(looks))
    found = epochs_of(tiny(epochs=9, steps_per_epoch=1), cases, max_seconds=45)
    assert [epoch.stops for epoch in found] == [None, "time"]
    resumed = epochs_of(tiny(epochs=3, steps_per_epoch=1), cases, resume=found[-1].checkpoint)
    assert [(epoch.number, epoch.stops) for epoch in resumed] == [(3, None)]


def test_without_cases_to_validate_the_last_epoch_is_the_best(cases):
    events = train(TINY, cases, [], BRATS2023, CPU)
    found = [event for event in events if isinstance(event, Epoch)]
    assert [epoch.dice for epoch in found] == [None, None]
    assert [epoch.is_best for epoch in found] == [True, True]


def test_what_a_checkpoint_keeps_of_the_progress_is_plain(cases):
    (epoch,) = epochs_of(tiny(epochs=1), cases)
    kept = json.loads(json.dumps(epoch.checkpoint.state["progress"]))
    assert Progress(**kept).epoch == 1


# --- failures ----------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_training_and_says_what_to_do(stored_case):
    bad = stored_case(np.full((2, 16, 16, 16), np.nan), np.ones((16, 16, 16)))
    with pytest.raises(TrainingError) as caught:
        epochs_of(tiny(learning_rate=0.003), [bad])
    assert str(caught.value) == "the loss is nan at step 1 of epoch 1, of patches of case"
    assert caught.value.hint.endswith("--resume --set learning_rate=0.001")


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


# --- workers -----------------------------------------------------------------------------------


def test_workers_are_as_configured_or_one_less_than_there_are_cpus(monkeypatch):
    assert worker_count(tiny(workers=3), ALONE) == 3
    assert worker_count(tiny(workers=0), ALONE) == 0
    assert worker_count(tiny(workers=None), ALONE) == min(MOST_WORKERS, available_cpus() - 1)
    # Four processes of one machine divide its 18 CPUs; at times there are too few.
    monkeypatch.setattr(training, "available_cpus", lambda: 18)
    assert worker_count(tiny(workers=None), Group(1, 8, 1, local_size=4)) == 18 // 4 - 1
    assert worker_count(tiny(workers=None), Group(1, 32, 1, local_size=32)) == 0


def test_a_validation_takes_some_cases_spread_evenly():
    # 3 of 10: the first of each 3.33. As many as asked for, also of just one more.
    assert evenly(10, 3) == [0, 3, 6]
    assert evenly(10, 5) == [0, 2, 4, 6, 8]
    assert evenly(4, 3) == [0, 1, 2]
    assert len(set(evenly(33, 32))) == len(set(evenly(156, 32))) == 32
    assert evenly(3, 3) == evenly(3, 4) == evenly(3, None) == [0, 1, 2]
    assert evenly(0, 32) == evenly(0, None) == []


def test_what_a_validation_takes_is_what_it_scores(cases):
    seen = []
    config = tiny(epochs=1, validate_cases=1)
    for event in train(config, cases, [*cases, *cases], BRATS2023, CPU):
        if isinstance(event, CaseValidated):
            seen.append(event.case_id)
    assert seen == ["case0"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_learns_a_simple_tumour_in_half_precision(cases):
    config = tiny(
        epochs=1,
        steps_per_epoch=80,
        learning_rate=0.02,
        precision="auto",
        network=UNetConfig(channels=4, levels=2),
        augmentation=AugmentConfig(enabled=False),
    )
    *_, epoch = train(config, cases, cases[:1], BRATS2023, torch.device("cuda"))
    assert epoch.dice["WT"] > 0.9


# --- two processes -----------------------------------------------------------------------------

TOGETHER = """
import pickle
import torch
from brats_cli.core.compute.distributed import Group
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.train import training

config, cases = pickle.loads((folder / "work").read_bytes())
group, cpu = Group.from_environment(), torch.device("cpu")
segmenter, seen = training.Segmenter, []
def spy(**settings):
    seen.append({name: value.clone() for name, value in settings["network"].state_dict().items()})
    return segmenter(**settings)
training.Segmenter = spy
with group.joined(cpu):
    for _ in training.train(config, cases, cases, SCHEMES["brats2023"], cpu, group=group):
        pass
torch.save(seen, folder / f"{group.rank}.pt")
"""


def test_two_processes_validate_one_network(cases, tmp_path):
    # Each has seen other patches, so that its own statistics differ by tenths; accumulating, it
    # shares its gradients with the second batch alone.
    config = tiny(epochs=1, steps_per_epoch=3, ema_decay=0.9, accumulate=2)
    (tmp_path / "work").write_bytes(pickle.dumps((config, cases)))
    with launched(TOGETHER, tmp_path) as running:
        _, stderr = running.communicate(timeout=240)
    assert (running.returncode, stderr) == (0, "")
    (first,), (second,) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert_same_weights(first, second)
