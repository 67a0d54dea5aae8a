from dataclasses import replace

import pytest
from tinytraining import tiny

from brats_cli.core.train.progress import Progress


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
