from dataclasses import replace

import numpy as np
import pytest
import torch
from tinytraining import (
    BRATS2023,
    CPU,
    TINY,
    assert_same_weights,
    epochs_of,
    tiny,
    weights_after,
)

from brats_cli.core.compute.distributed import ALONE, Group
from brats_cli.core.compute.machine import available_cpus
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.train import training
from brats_cli.core.train.config import AugmentConfig, TrainConfig
from brats_cli.core.train.events import CaseValidated, Epoch, StepDone
from brats_cli.core.train.training import MOST_WORKERS, train, worker_count

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


def test_what_a_validation_takes_is_what_it_scores(cases):
    seen = []
    config = tiny(epochs=1, validate_cases=1)
    for event in train(config, cases, [*cases, *cases], BRATS2023, CPU):
        if isinstance(event, CaseValidated):
            seen.append(event.case_id)
    assert seen == ["case0"]


def test_without_cases_to_validate_the_last_epoch_is_the_best(cases):
    events = train(TINY, cases, [], BRATS2023, CPU)
    found = [event for event in events if isinstance(event, Epoch)]
    assert [epoch.dice for epoch in found] == [None, None]
    assert [epoch.is_best for epoch in found] == [True, True]


def test_training_ends_when_patience_does(cases):
    # A learning rate of nearly nothing: the score stays, in batch norm's evaluation mode too.
    config = tiny(epochs=9, steps_per_epoch=1, patience=2, learning_rate=1e-30)
    config = config.model_copy(update={"network": UNetConfig(channels=2, levels=2, norm="none")})
    found = epochs_of(config, cases)
    assert [epoch.stops for epoch in found] == [None, None, "patience"]
    assert [epoch.is_best for epoch in found] == [True, False, False]


def test_a_training_ends_before_an_epoch_that_would_take_too_long(cases, monkeypatch):
    # By a clock on which each look takes 10 s: the first epoch ends 20 s after the start and took
    # 10 s, the second ends at 40 s. A third would be over at 50 s.
    looks = iter(range(0, 10_000, 10))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(looks))
    found = epochs_of(tiny(epochs=9, steps_per_epoch=1), cases, max_seconds=45)
    assert [epoch.stops for epoch in found] == [None, "time"]
    resumed = epochs_of(tiny(epochs=3, steps_per_epoch=1), cases, resume=found[-1].checkpoint)
    assert [(epoch.number, epoch.stops) for epoch in resumed] == [(3, None)]


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


# --- workers -----------------------------------------------------------------------------------


def test_workers_are_as_configured_or_one_less_than_there_are_cpus(monkeypatch):
    assert worker_count(tiny(workers=3), ALONE) == 3
    assert worker_count(tiny(workers=0), ALONE) == 0
    assert worker_count(tiny(workers=None), ALONE) == min(MOST_WORKERS, available_cpus() - 1)
    # Four processes of one machine divide its 18 CPUs; at times there are too few.
    monkeypatch.setattr(training, "available_cpus", lambda: 18)
    assert worker_count(tiny(workers=None), Group(1, 8, 1, local_size=4)) == 18 // 4 - 1
    assert worker_count(tiny(workers=None), Group(1, 32, 1, local_size=32)) == 0
