"""The smallest training that the tests of train share."""

import torch

from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.train.config import TrainConfig
from brats_cli.core.train.events import Epoch
from brats_cli.core.train.training import train

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
