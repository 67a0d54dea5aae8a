import math
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from brats_cli.core import inference
from brats_cli.core.cases import case_at
from brats_cli.core.checkpoints import Checkpoint
from brats_cli.core.config import TrainConfig, UNetConfig
from brats_cli.core.errors import MissingModalityError, OutputExistsError
from brats_cli.core.inference import (
    Predictor,
    Segmentation,
    gaussian_weight,
    largest_window,
    probabilities,
    window_corners,
)
from brats_cli.core.labels import SCHEMES
from brats_cli.core.network import UNet3D
from brats_cli.core.volumes import Volume, read_label_map

CPU = torch.device("cpu")


def network(*, in_channels=1, out_channels=3, **settings):
    torch.manual_seed(0)
    config = UNetConfig(**{"channels": 2, "levels": 2} | settings)
    return UNet3D(config, in_channels=in_channels, out_channels=out_channels).eval()


def constant(value, **settings):
    """A network that answers `value` to everything."""
    found = network(**settings)
    with torch.no_grad():
        for parameter in found.output.parameters():
            parameter.zero_()
        found.output.bias.fill_(math.log(value / (1 - value)))
    return found


class Pointwise(UNet3D):
    """A network that looks at single voxels: windows and one pass must agree exactly."""

    def __init__(self, config):
        super().__init__(config, in_channels=1, out_channels=3)
        self.output = nn.Conv3d(1, 3, kernel_size=1)
        with torch.no_grad():
            self.output.weight.copy_(torch.tensor([1.0, -2, 0.5]).reshape(3, 1, 1, 1, 1))
            self.output.bias.copy_(torch.tensor([0.0, 1, -1]))

    def forward(self, images):
        margin = self.config.margin
        inside = slice(margin, -margin or None)
        return self.output(images[:, :, inside, inside, inside])


@pytest.fixture
def memory(monkeypatch):
    """A function that sets the memory for one pass of a network: a grid of `edges` fits."""

    def fits(net, *edges):
        monkeypatch.setattr(inference, "memory_for_network", lambda device: budget(net, *edges))

    return fits


def budget(net, *edges, bytes_a_value=4):
    """Bytes for ten maps of the first level's channels on a grid of `edges`."""
    return net.config.channels * 10 * bytes_a_value * math.prod(edges)


def run(net, images, *, patch_size=16):
    return probabilities(net, images, patch_size=patch_size, device=CPU)


# --- windows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "window", "overlap", "starts"),
    [
        (10, 4, 0.5, [0, 2, 4, 6]),  # steps of 2 at most, 6 to go
        (9, 4, 0.5, [0, 2, 3, 5]),  # 5 to go in three steps of 5/3: 1.67, 3.33, 5
        (8, 4, 0, [0, 4]),
        (9, 4, 0, [0, 2, 5]),  # two steps of 2.5, which rounds to the even 2
        (4, 4, 0.5, [0]),
        (5, 4, 0.5, [0, 1]),
        (240, 128, 0.5, [0, 56, 112]),
    ],
)
def test_corners_along_one_axis_by_hand(length, window, overlap, starts):
    corners = list(window_corners((length, 1, 1), (window, 1, 1), overlap=overlap))
    assert corners == [(start, 0, 0) for start in starts]


def test_corners_of_three_axes_are_all_combinations():
    corners = list(window_corners((6, 4, 5), (4, 4, 3), overlap=0.5))
    assert corners == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (2, 0, 0), (2, 0, 1), (2, 0, 2)]


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.75])
def test_windows_cover_every_voxel_and_none_beyond_and_overlap_at_least_so_far(overlap):
    for length in range(1, 40):
        for window in range(math.ceil(1 / (1 - overlap)), length + 1):
            starts = [corner[0] for corner in window_corners((length,), (window,), overlap=overlap)]
            assert (starts[0], starts[-1]) == (0, length - window)
            steps = np.diff(starts)
            assert (steps > 0).all()
            # Positions are rounded to voxels, so that a step may be half a voxel more each way.
            assert (steps <= max(1, math.floor(window * (1 - overlap) + 1))).all()
            assert (steps <= window).all()


def test_the_weight_trusts_the_middle_most_and_no_voxel_not_at_all():
    weight = gaussian_weight((16, 16, 16))
    # Two voxels share the middle, half a voxel from it: exp(-0.5 (0.5 / 2)^2) an axis.
    assert weight.max().item() == pytest.approx(math.exp(-3 * 0.5 * 0.25**2))
    assert weight[7, 7, 7] == weight[8, 8, 8] == weight.max()
    # In the corner three times exp(-0.5 (7.5 / 2)^2) = 8.8e-4 is 7e-10, and the floor goes before.
    assert weight.min().item() == pytest.approx(1e-3)
    assert weight[7, 7, 0].item() == pytest.approx(
        max(1e-3, math.exp(-0.5 * (7.5**2 + 0.5**2 + 0.5**2) / 4)), rel=1e-4
    )
    assert torch.equal(weight, weight.flip(0, 1, 2))


def test_the_weight_of_a_flat_window():
    assert gaussian_weight((1, 2, 3)).shape == (1, 2, 3)
    assert (gaussian_weight((1, 1, 1)) == 1).all()


# --- how large a window ------------------------------------------------------------------------


def test_an_image_that_fits_is_one_window():
    net = network()
    assert largest_window(net, (30, 20, 10), budget(net, 30, 20, 10), torch.float32) == (30, 20, 10)


def test_the_longest_edge_is_halved_until_it_fits():
    # 30 x 20 x 10 does not fit where 15 (read as 16) x 20 x 10 does; then 20, then 15 again.
    net = network()
    for edges, expected in [
        ((16, 20, 10), (15, 20, 10)),
        ((16, 10, 10), (15, 10, 10)),
        ((8, 10, 10), (8, 10, 10)),
    ]:
        found = largest_window(net, (30, 20, 10), budget(net, *edges), torch.float32)
        assert found == expected
        less = budget(net, *edges) - 1
        assert largest_window(net, (30, 20, 10), less, torch.float32) != expected


def test_half_as_many_bytes_a_value_take_twice_the_window():
    net = network()
    enough = budget(net, 32, 20, 10, bytes_a_value=2)
    assert largest_window(net, (32, 20, 10), enough, torch.bfloat16) == (32, 20, 10)
    assert largest_window(net, (32, 20, 10), enough, torch.float32) == (16, 20, 10)


def test_what_a_network_without_padding_reads_counts():
    # A window of 10 is read with a margin of 8: 26, of which 26 - 4 = 22 halves.
    net = network(padding="valid")
    assert largest_window(net, (10, 10, 10), budget(net, 26, 26, 26), torch.float32) == (10, 10, 10)
    less = budget(net, 26, 26, 26) - 1
    assert largest_window(net, (10, 10, 10), less, torch.float32) == (5, 10, 10)


def test_a_window_does_not_shrink_below_twice_what_the_poolings_need():
    # Two levels halve once: edges of 4 are small enough, whatever the memory.
    assert largest_window(network(), (30, 20, 10), 1, torch.float32) == (4, 3, 3)


# --- probabilities -----------------------------------------------------------------------------


# What a window of half the first axis reads: under `valid` a margin of 8 on each side more.
HALF = {"same": (10, 12, 10), "valid": (26, 28, 26)}


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [(17, 11, 9), (19, 11, 10), (1, 1, 1)])
def test_a_constant_comes_out_to_the_last_voxel_in_windows(memory, size, padding):
    net = constant(0.3, padding=padding)
    memory(net, *HALF[padding])
    found = run(net, torch.randn(1, *size))
    assert found.shape == (3, *size)
    torch.testing.assert_close(found, torch.full((3, *size), 0.3))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_constant_comes_out_to_the_last_voxel_in_one_pass(padding):
    found = run(constant(0.7, padding=padding), torch.randn(1, 17, 11, 9))
    torch.testing.assert_close(found, torch.full((3, 17, 11, 9), 0.7))


def test_a_constant_comes_out_of_windows_of_the_training_patch():
    found = run(constant(0.3, norm="instance"), torch.randn(1, 17, 11, 9), patch_size=8)
    torch.testing.assert_close(found, torch.full((3, 17, 11, 9), 0.3))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_in_windows_and_in_one_pass_each_voxel_gets_its_own(memory, padding):
    net = Pointwise(UNetConfig(channels=2, levels=2, padding=padding)).eval()
    images = torch.randn(1, 17, 11, 9)
    expected = torch.sigmoid(torch.stack([images[0], 1 - 2 * images[0], images[0] / 2 - 1]))
    for edges in [(99, 99, 99), HALF[padding]]:
        memory(net, *edges)
        torch.testing.assert_close(run(net, images), expected)


def test_one_pass_is_the_network_on_the_image_padded_behind():
    # 9 x 8 x 7 pools once: a voxel of background more behind the first and the last axis.
    net = network()
    images = torch.randn(1, 9, 8, 7)
    padded = torch.zeros(1, 1, 10, 8, 8)
    padded[0, :, :9, :, :7] = images
    with torch.no_grad():
        expected = torch.sigmoid(net(padded))[0, :, :9, :, :7]
    torch.testing.assert_close(run(net, images), expected)


def test_a_network_without_padding_sees_background_beyond_the_image():
    net = network(padding="valid")
    images = torch.randn(1, 6, 6, 6)
    padded = nn.functional.pad(images[None], [8] * 6)
    with torch.no_grad():
        expected = torch.sigmoid(net(padded))[0]
    torch.testing.assert_close(run(net, images), expected)


def test_windows_without_padding_are_one_pass(memory):
    # Each window reads its margin, so that no voxel knows of the windows; they start at 0, 4 and
    # 8, where the poolings of the one pass start too. 8 is read as 24, and 6 as 22.
    net = network(padding="valid")
    images = torch.randn(1, 16, 6, 6)
    whole = run(net, images)
    memory(net, 24, 22, 22)
    shapes = watch(net)
    torch.testing.assert_close(run(net, images), whole)
    assert shapes == [(1, 1, 24, 22, 22)] * 3


def watch(net):
    """A list to which the shape of every input is added from now on."""
    shapes = []
    net.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


def test_instance_norm_has_windows_of_the_training_patch():
    net = network(norm="instance")
    shapes = watch(net)
    run(net, torch.randn(1, 20, 8, 6), patch_size=8)
    # 20 in steps of 4 at most: 0, 4, 8, 12; the other axes fit (6 is even).
    assert shapes == [(1, 1, 8, 8, 6)] * 4


def test_images_of_the_store_in_half_precision_are_computed_in_float32():
    images = torch.randn(1, 8, 8, 8).half()
    found = run(network(), images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, run(network(), images.float()))


# --- a case ------------------------------------------------------------------------------------


def answering(*values, **changes):
    """A checkpoint whose network finds WT, TC and ET with the probabilities given, anywhere."""
    config = TrainConfig(
        patch_size=16, precision="float32", network=UNetConfig(channels=2, levels=2), **changes
    )
    net = network(in_channels=len(config.modalities))
    with torch.no_grad():
        net.output.weight.zero_()
        net.output.bias.copy_(torch.logit(torch.tensor(values)))
    return Checkpoint(net.state_dict(), config.model_dump(mode="json"), "brats2023", 1, {})


@pytest.fixture
def case(phantoms):
    return case_at(phantoms / "BraTS-GLI-00000-000")


def test_a_segmentation_lies_on_the_cases_own_grid(case, tmp_path):
    # WT everywhere that the network sees, which is the brain box: all of that is edema.
    found = Predictor(answering(0.9, 0.1, 0.1), CPU).segment(case)
    path = tmp_path / "seg.nii.gz"
    found.write(path)
    image, of = nib.load(path), nib.load(case.images["t1"].path)
    np.testing.assert_array_equal(image.affine, of.affine)
    assert (image.shape, image.get_data_dtype()) == (of.shape, np.uint8)
    for code in ("sform_code", "qform_code"):
        assert image.header[code] == of.header[code] == 1
    written = read_label_map(path)
    assert written.scheme is SCHEMES["brats2023"]
    brain = np.any([np.asarray(nib.load(f.path).dataobj) for f in case.images.values()], axis=0)
    assert set(np.unique(written.data)) == {0, 2}
    assert (written.data[brain] == 2).all()
    assert found.volumes_mm3() == {"WT": (written.data == 2).sum(), "TC": 0, "ET": 0}


@pytest.mark.parametrize(
    ("values", "scheme", "label"),
    [
        ((0.9, 0.9, 0.9), None, 3),
        ((0.9, 0.9, 0.1), None, 1),
        ((0.9, 0.9, 0.9), "brats2020", 4),
        ((0.9, 0.1, 0.1), "msd", 1),
        ((0.5, 0.1, 0.1), None, 2),  # from one half on, a voxel belongs to the region
        ((0.49, 0.1, 0.1), None, 0),
    ],
)
def test_regions_become_labels_of_the_scheme(case, values, scheme, label):
    scheme = SCHEMES[scheme] if scheme else None
    found = Predictor(answering(*values), CPU).segment(case, scheme)
    assert set(np.unique(found.labels)) <= {0, label}
    assert (found.labels == label).sum() > found.labels.size / 2
    assert found.scheme is (scheme or SCHEMES["brats2023"])


def test_only_the_modalities_that_the_network_was_trained_on_are_needed(phantoms, tmp_path):
    source = phantoms / "BraTS-GLI-00002-000"
    folder = shutil.copytree(source, tmp_path / source.name)
    for suffix in ("t1n", "t2w"):
        (folder / f"{source.name}-{suffix}.nii.gz").unlink()
    case = case_at(folder)
    two = Predictor(answering(0.9, 0.1, 0.1, modalities=("flair", "t1ce")), CPU).segment(case)
    assert two.labels.any()
    with pytest.raises(MissingModalityError) as caught:
        Predictor(answering(0.9, 0.1, 0.1), CPU).segment(case)
    assert str(caught.value) == "case BraTS-GLI-00002-000 has no t1, t2 (found: t1ce, flair)"


def test_volumes_in_mm3_by_hand():
    # Voxels of 1 x 2 x 3 mm: 3 edema, 2 necrosis, 1 enhancing.
    labels = np.array([2, 2, 2, 1, 1, 3, 0], np.uint8).reshape(7, 1, 1)
    grid = Volume(labels, np.diag([-1.0, 2, 3, 1]))
    volumes = Segmentation(labels, grid, SCHEMES["brats2023"]).volumes_mm3()
    assert volumes == pytest.approx({"WT": 36, "TC": 18, "ET": 6})


def test_an_existing_file_is_kept(tmp_path):
    labels = np.zeros((2, 2, 2), np.uint8)
    found = Segmentation(labels, Volume(labels, np.eye(4)), SCHEMES["brats2023"])
    path = tmp_path / "seg.nii.gz"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match=f"{path} exists already"):
        found.write(path)
    assert path.read_text() == "mine"
    found.write(path, overwrite=True)
    assert read_label_map(path).shape == (2, 2, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_what_the_cpu_finds(monkeypatch):
    net, images = network(channels=8, levels=3), torch.randn(1, 40, 33, 27)
    here = run(net, images)
    there = probabilities(net.cuda(), images, patch_size=16, device=torch.device("cuda"))
    assert there.device == CPU
    torch.testing.assert_close(there, here, atol=2e-3, rtol=0)  # cuDNN multiplies in TF32
