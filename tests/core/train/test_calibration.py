import numpy as np
import pytest
import torch

from brats_cli.core.train.calibration import TEMPERATURES, LogitCounts, fit_temperatures


def case(heat, seed, *, voxels=20_000):
    """A case whose logits are `heat` times those by which its truth was drawn."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, voxels, 1, 1, generator=generator) * 2
    truth = torch.rand(logits.shape, generator=generator) < torch.sigmoid(logits)
    heats = torch.tensor(heat).reshape(3, 1, 1, 1)
    return LogitCounts.of(torch.sigmoid(logits * heats), truth)


def test_the_temperature_is_what_the_logits_were_multiplied_by():
    cases = [case([3.0, 1.0, 0.5], seed) for seed in range(5)]
    found = fit_temperatures(cases)
    # Steps of the grid are 9 %.
    assert found["WT"] == pytest.approx(3.0, rel=0.1)
    assert "TC" not in found
    assert found["ET"] == pytest.approx(0.5, rel=0.1)


def test_what_gains_by_chance_is_left():
    assert fit_temperatures([case([3.0, 3.0, 3.0], 0)]) == {}  # one case proves nothing
    assert fit_temperatures([]) == {}
    # One case is too hot, the other too cold by as much: no temperature suits both.
    assert fit_temperatures([case([2.0] * 3, 0), case([0.5] * 3, 1)]) == {}


def test_the_loss_is_the_mean_negative_log_likelihood():
    probability = torch.tensor([0.9, 0.2]).reshape(1, 2, 1, 1).expand(3, 2, 1, 1)
    truth = torch.tensor([True, False]).reshape(1, 2, 1, 1).expand(3, 2, 1, 1)
    counts = LogitCounts.of(probability, truth)
    expected = -(np.log(0.9) + np.log(0.8)) / 2
    assert counts.loss(0, 1.0) == pytest.approx(expected, abs=0.01)  # bins are 0.05 wide
    # Logits log 9 and log(1/4), halved: probabilities 3/4 and 1/3.
    assert counts.loss(2, 2.0) == pytest.approx(-(np.log(3 / 4) + np.log(2 / 3)) / 2, abs=0.01)


def test_certain_voxels_count_at_the_ends():
    probability = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(3, 2, 1, 1)
    counts = LogitCounts.of(probability, probability > 0.5)
    assert counts.inside[0].nonzero()[0].tolist() == [639]
    assert counts.outside[0].nonzero()[0].tolist() == [0]


def test_1_is_tried():
    assert 1.0 in TEMPERATURES
    assert sorted(TEMPERATURES) == list(TEMPERATURES)
