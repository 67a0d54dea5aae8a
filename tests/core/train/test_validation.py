import numpy as np
import pytest
import torch
from tinytraining import BRATS2023, CPU, assert_same_weights, epochs_of, tiny

from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.segmenter import Segmenter
from brats_cli.core.train.validation import evenly, validate


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


def test_a_validation_takes_some_cases_spread_evenly():
    # 3 of 10: the first of each 3.33. As many as asked for, also of just one more.
    assert evenly(10, 3) == [0, 3, 6]
    assert evenly(10, 5) == [0, 2, 4, 6, 8]
    assert evenly(4, 3) == [0, 1, 2]
    assert len(set(evenly(33, 32))) == len(set(evenly(156, 32))) == 32
    assert evenly(3, 3) == evenly(3, 4) == evenly(3, None) == [0, 1, 2]
    assert evenly(0, 32) == evenly(0, None) == []
