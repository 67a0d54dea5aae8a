import numpy as np
import pytest
import torch

from brats_cli.core.errors import CheckpointError, DeviceError
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.network import UNet3D
from brats_cli.core.model.sliding import SlidingWindow, probabilities

CPU = torch.device("cpu")


class Mean(torch.nn.Module):
    """Logits that are the mean of the window: what a window sees, all of it decides."""

    def forward(self, images):
        return images.mean(dim=(2, 3, 4), keepdim=True).expand_as(images)


class Ramp(torch.nn.Module):
    """Logits that rise along x whatever is there, so that a flip shows."""

    def forward(self, images):
        rise = torch.arange(images.shape[2], dtype=torch.float32).reshape(1, 1, -1, 1, 1)
        return rise.expand_as(images)


def rule(**changes):
    return SlidingWindow(**{"rule": "monai", "window": (8, 8, 8), "overlap": 0.5, **changes})


@pytest.mark.parametrize(
    ("name", "length", "overlap", "starts"),
    [
        ("monai", 8, 0.5, [0]),
        ("monai", 12, 0.5, [0, 4]),
        ("monai", 17, 0.5, [0, 4, 8, 9]),  # steps of 4; the last ends with the image
        ("monai", 20, 0.625, [0, 3, 6, 9, 12]),  # int(8 * 0.375)
        ("nnunet", 8, 0.5, [0]),
        ("nnunet", 17, 0.5, [0, 3, 6, 9]),  # 9 voxels in ceil(9 / 4) = 3 even steps
        ("nnunet", 15, 0.5, [0, 4, 7]),  # of 3.5, rounded to even
    ],
)
def test_places_of_windows(name, length, overlap, starts):
    assert rule(rule=name).starts(length, 0, overlap) == starts


def test_places_and_weights_are_those_of_the_peers():
    utils = pytest.importorskip("monai.data.utils")
    theirs = utils.compute_importance_map((8, 12, 16), mode="gaussian", sigma_scale=0.125)
    ours = rule(window=(8, 12, 16)).importance()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    nnunet = pytest.importorskip("nnunetv2.inference.sliding_window_prediction")
    settings = {"sigma_scale": 1 / 8, "dtype": torch.float32, "device": CPU}
    theirs = nnunet.compute_gaussian((8, 12, 16), **settings)
    ours = rule(rule="nnunet", window=(8, 12, 16)).importance()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    for length in range(8, 40):
        for overlap in (0.25, 0.5):
            theirs = nnunet.compute_steps_for_sliding_window((length,), (8,), 1 - overlap)
            assert rule(rule="nnunet").starts(length, 0, overlap) == theirs[0]


def test_logits_are_averaged_and_not_probabilities():
    images = torch.zeros(3, 12, 8, 8)
    images[:, 8:] = 6  # windows from 0 to 8, of mean 0, and from 4 to 12, of mean 3
    found = probabilities(Mean(), images, rule(weights="constant"), device=CPU)
    expected = torch.sigmoid(torch.tensor([0.0, 1.5, 3.0]))  # of 0; of 0 and 3; of 3
    for place, value in zip((0, 5, 11), expected, strict=True):
        assert found[0, place, 0, 0] == pytest.approx(value.item())


def test_a_small_image_is_padded_on_both_sides():
    images = torch.full((3, 5, 8, 8), 8.0)  # of 8 voxels along x, 1 is added before and 2 behind
    found = probabilities(Mean(), images, rule(weights="constant"), device=CPU)
    assert found.shape == (3, 5, 8, 8)
    assert found[0, 0, 0, 0] == pytest.approx(torch.sigmoid(torch.tensor(5.0)).item())
    rising = probabilities(Ramp(), images, rule(weights="constant"), device=CPU)
    assert rising[0, 0, 0, 0] == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item())


def test_flips_are_averaged_in_each_window():
    images = torch.zeros(3, 8, 8, 8)
    once = probabilities(Ramp(), images, rule(), device=CPU)
    assert once[0, 2, 0, 0] == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item())
    flipped = probabilities(Ramp(), images, rule(mirror_axes=(0,)), device=CPU, tta=True)
    # 2 from the left is 5 from the right; their mean is 3.5 everywhere.
    np.testing.assert_allclose(flipped, torch.sigmoid(torch.tensor(3.5)), rtol=1e-6)
    same = probabilities(Ramp(), images, rule(mirror_axes=(1, 2)), device=CPU, tta=True)
    np.testing.assert_allclose(same, once, rtol=1e-6)


def test_mirrors_are_all_sets_of_axes():
    assert rule(mirror_axes=()).mirrors == ((),)
    assert rule(mirror_axes=(0, 2)).mirrors == ((), (0,), (2,), (0, 2))
    assert len(rule().mirrors) == 8


def test_overlap_and_shares():
    torch.manual_seed(0)
    network = UNet3D(UNetConfig(channels=2, levels=2), in_channels=2, out_channels=3).eval()
    images, shares = torch.randn(2, 16, 12, 8), []
    probabilities(network, images, rule(), device=CPU, on_share=shares.append)
    assert len(shares) == 3 * 2
    assert sum(shares) == pytest.approx(1)
    shares.clear()
    probabilities(network, images, rule(), device=CPU, overlap=0, on_share=shares.append)
    assert len(shares) == 2 * 2


def test_there_and_back():
    sliding = rule(rule="nnunet", mirror_axes=(0, 1))
    assert SlidingWindow.of(sliding.content()) == sliding
    assert SlidingWindow.of({**sliding.content(), "window": [8, 8, 8]}) == sliding


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rule", "other"),
        ("window", [8, 8]),
        ("window", [8, 8, 100_000]),
        ("window", "$x"),
        ("window", None),
        ("overlap", 1.0),
        ("overlap", "a"),
        ("weights", "hann"),
        ("mirror_axes", [3]),
        ("mirror_axes", [0, 0]),
        ("code", "x"),
    ],
)
def test_other_values_are_refused(name, value):
    with pytest.raises(CheckpointError, match=f"cannot have {name}"):
        SlidingWindow.of({**rule().content(), name: value})


def test_a_window_without_memory_is_named():
    class Large(torch.nn.Module):
        def forward(self, images):
            raise torch.OutOfMemoryError

    with pytest.raises(DeviceError) as caught:
        probabilities(Large(), torch.zeros(3, 8, 8, 8), rule(), device=CPU)
    assert str(caught.value) == (
        "cpu has no memory for a window of 8 x 8 x 8 voxels of this network, which needs just that"
    )
