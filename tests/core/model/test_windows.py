import math

import numpy as np
import pytest
import torch
from torch import nn

from brats_cli.core.errors import DeviceError
from brats_cli.core.model import windows as inference
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.network import UNet3D
from brats_cli.core.model.windows import (
    OVERLAP,
    around,
    blending,
    even_window,
    fused,
    largest_window,
    probabilities,
    window_starts,
)

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
        room = budget(net, *edges)
        monkeypatch.setattr(inference, "memory_for_network", lambda device, beside=0: room)

    return fits


def budget(net, *edges, bytes_a_value=4):
    """Bytes for ten maps of the first level's channels on a grid of `edges`."""
    return net.config.channels * 10 * bytes_a_value * math.prod(edges)


def run(net, images, *, patch_size=128, **options):
    return probabilities(net, images, patch_size=patch_size, device=CPU, **options)


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
def test_starts_by_hand(length, window, overlap, starts):
    assert window_starts(length, window, overlap=overlap) == starts


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.75])
def test_windows_cover_every_voxel_and_none_beyond_and_overlap_at_least_so_far(overlap):
    for length in range(1, 40):
        for window in range(math.ceil(1 / (1 - overlap)), length + 1):
            starts = window_starts(length, window, overlap=overlap)
            assert (starts[0], starts[-1]) == (0, length - window)
            steps = np.diff(starts)
            assert (steps > 0).all()
            # Positions are rounded to voxels, so that a step may be half a voxel more each way.
            assert (steps <= max(1, math.floor(window * (1 - overlap) + 1))).all()
            assert (steps <= window).all()


def test_a_window_alone_is_taken_as_it_is():
    for length in (1, 2, 7):
        (weight,) = blending(length, length, [0]).values()
        torch.testing.assert_close(weight, torch.ones(length))


def test_of_two_windows_a_voxel_trusts_the_one_whose_middle_is_near():
    # The standard deviation is 8 / 8 = 1. Voxel 4 is half a voxel from the middle of the first
    # and 3.5 from that of the second: exp(-0.125) to exp(-6.125), or 1 to exp(-6).
    first, second = blending(12, 8, [0, 4]).values()
    assert first[4].item() == pytest.approx(1 / (1 + math.exp(-6)), rel=1e-5)
    assert second[0].item() == pytest.approx(math.exp(-6) / (1 + math.exp(-6)), rel=1e-5)
    assert (first[:4] == 1).all()
    assert (second[4:] == 1).all()


def test_no_voxel_is_trusted_to_nobody():
    # Only the last voxel of the first window lies in the second too, where both have 9e-4, and
    # the floor of 1e-3 goes before.
    first, second = blending(31, 16, [0, 15]).values()
    assert first[15].item() == second[0].item() == 0.5


@pytest.mark.parametrize("overlap", [0, 0.3, 0.5, 0.9])
def test_the_weights_of_all_windows_add_up_to_1_at_every_voxel(overlap):
    for length in range(1, 40):
        for window in range(1, length + 1):
            starts = window_starts(length, window, overlap=overlap)
            total = torch.zeros(length)
            for start, weight in blending(length, window, starts).items():
                assert (weight > 0).all()
                total[start : start + window] += weight
            torch.testing.assert_close(total, torch.ones(length))


# --- how large a window ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "edge", "side"),
    [
        (180, 128, 180),  # nearer to one window than to two
        (137, 64, 79),  # two, of which 137 is 7/4: 78.3
        (181, 64, 73),  # three, of which 181 is 10/4: 72.4
        (181, 96, 104),  # two: 103.4
        (5, 64, 5),
        (1, 8, 1),
    ],
)
def test_windows_near_the_patch_divide_a_length_evenly(length, edge, side):
    assert even_window(length, edge) == side


def test_windows_near_the_patch_come_out_as_many_as_were_counted():
    for edge in (48, 64, 96, 128):
        for length in range(1, 300):
            starts = window_starts(length, even_window(length, edge), overlap=OVERLAP)
            assert len(starts) == max(1, round(length / edge))


def test_an_image_that_fits_is_one_window():
    net = network()
    assert largest_window(net, (30, 20, 10), budget(net, 34, 24, 14), torch.float32) == (30, 20, 10)


def test_the_longest_edge_is_halved_until_it_fits():
    # The network reads 2 voxels on each side too. 30 does not fit where 15 (read as 20) does; then
    # 20, read as 24, and then 15 again.
    net = network()
    for edges, expected in [
        ((20, 24, 14), (15, 20, 10)),
        ((20, 14, 14), (15, 10, 10)),
        ((12, 14, 14), (8, 10, 10)),
    ]:
        found = largest_window(net, (30, 20, 10), budget(net, *edges), torch.float32)
        assert found == expected
        less = budget(net, *edges) - 1
        assert largest_window(net, (30, 20, 10), less, torch.float32) != expected


def test_half_as_many_bytes_a_value_take_a_larger_window():
    net = network()
    enough = budget(net, 36, 24, 14, bytes_a_value=2)
    assert largest_window(net, (32, 20, 10), enough, torch.bfloat16) == (32, 20, 10)
    # In float32 half of 36 x 24 x 14: 20 x 24 x 14 is too much, 20 x 14 x 14 is not.
    assert largest_window(net, (32, 20, 10), enough, torch.float32) == (16, 10, 10)


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


# What a window of half the first axis reads, of 9 x 11 x 9 voxels: 2 more on each side under
# `same`, the margin of 8 that it needs under `valid`, and what makes it even.
HALF = {"same": (14, 16, 14), "valid": (26, 28, 26)}


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


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_norms_of_a_window_take_the_smallest_volume(norm):
    # One voxel on the lowest level would have no spread, and end in an error of PyTorch.
    config = UNetConfig(channels=2, levels=3, norm=norm)
    assert around(config, 1) == (3, 4)  # twice four in all
    net = UNet3D(config, in_channels=1, out_channels=3).eval()
    assert run(net, torch.randn(1, 1, 2, 3), patch_size=16).shape == (3, 1, 2, 3)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_in_windows_and_in_one_pass_each_voxel_gets_its_own(memory, padding):
    net = Pointwise(UNetConfig(channels=2, levels=2, padding=padding)).eval()
    images = torch.randn(1, 17, 11, 9)
    expected = torch.sigmoid(torch.stack([images[0], 1 - 2 * images[0], images[0] / 2 - 1]))
    for edges in [(99, 99, 99), HALF[padding]]:
        memory(net, *edges)
        torch.testing.assert_close(run(net, images), expected)


def test_a_network_of_small_patches_goes_in_windows_near_them():
    # 31 is near to two patches of 16: windows of 18 (17.7), of which 5 are common. 12 is near to
    # one, and 20 too. Each is read with 2 voxels more on each side.
    net = network()
    images = torch.randn(1, 31, 12, 20)
    shapes = watch(net)
    found = run(net, images, patch_size=16)
    assert shapes == [(1, 1, 22, 16, 24)] * 2
    padded = nn.functional.pad(images[None], [2] * 6)
    with torch.no_grad():
        halves = [net(padded[:, :, first : first + 22]) for first in (0, 13)]
    first, second = (torch.sigmoid(half[0, :, 2:20, 2:14, 2:22]) for half in halves)
    # What only one of the windows, from 0 to 17 and from 13 to 30, has seen is its own.
    torch.testing.assert_close(found[:, :13], first[:, :13])
    torch.testing.assert_close(found[:, 18:], second[:, 5:])
    # Where both have seen, the result lies between them.
    both = torch.stack([first[:, 13:], second[:, :5]])
    assert (found[:, 13:18] >= both.amin(0) - 1e-6).all()
    assert (found[:, 13:18] <= both.amax(0) + 1e-6).all()


def test_windows_near_the_patch_shrink_where_memory_ends(memory):
    # Of 18 x 12 x 12 half the first axis fits, read as 14 x 16 x 16. 31 in steps of 6.75 at most:
    # 22 to go in four.
    net = Pointwise(UNetConfig(channels=2, levels=2)).eval()
    memory(net, 14, 16, 16)
    images = torch.randn(1, 31, 12, 12)
    shapes = watch(net)
    found = run(net, images, patch_size=16)
    assert shapes == [(1, 1, 14, 16, 16)] * 5
    torch.testing.assert_close(found[0], torch.sigmoid(images[0]))


def test_a_network_without_padding_needs_no_small_windows():
    # They would read its margin again and again, and compute the same.
    net = network(padding="valid")
    shapes = watch(net)
    run(net, torch.randn(1, 32, 12, 20), patch_size=20)
    assert shapes == [(1, 1, 48, 28, 36)]


def test_one_pass_is_the_network_on_the_image_with_background_around_it():
    # 9 x 8 x 7 with 2 voxels on each side are 13 x 12 x 11, to be halved once: a voxel more behind
    # the first and the last axis.
    net = network()
    images = torch.randn(1, 9, 8, 7)
    padded = torch.zeros(1, 1, 14, 12, 12)
    padded[0, :, 2:11, 2:10, 2:9] = images
    with torch.no_grad():
        expected = torch.sigmoid(net(padded))[0, :, 2:11, 2:10, 2:9]
    torch.testing.assert_close(run(net, images), expected)


def test_what_makes_the_size_divisible_lies_evenly_around():
    # Four levels halve three times: 13 + 4 = 17 becomes 24, of which 5 go before and 6 behind.
    config = UNetConfig(levels=4)
    assert [around(config, side) for side in (13, 12, 11)] == [(5, 6), (2, 2), (2, 3)]
    # The statistics of instance norm belong to the window: only what makes it divisible.
    assert around(UNetConfig(levels=4, norm="instance"), 13) == (1, 2)


def test_a_window_reads_the_image_around_it(memory):
    # Half of 24 and 2 voxels on each side: from -2 to 14 and from 10 to 26, background beyond.
    net = network()
    images = torch.randn(1, 24, 6, 6)
    memory(net, 16, 10, 10)
    shapes = watch(net)
    found = run(net, images, overlap=0)
    assert shapes == [(1, 1, 16, 10, 10)] * 2
    padded = nn.functional.pad(images[None], [2] * 6)
    with torch.no_grad():
        halves = [net(padded[:, :, first : first + 16]) for first in (0, 12)]
    expected = torch.cat([half[0, :, 2:14, 2:8, 2:8] for half in halves], dim=1)
    torch.testing.assert_close(found, torch.sigmoid(expected))


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


def test_more_overlap_takes_more_windows(memory):
    net = network()
    memory(net, 14, 8, 8)
    counts = []
    for overlap in (0, 0.5, 0.8):
        shapes = watch(net)
        run(net, torch.randn(1, 20, 4, 4), overlap=overlap)
        assert set(shapes) == {(1, 1, 14, 8, 8)}
        counts.append(len(shapes))
    # 20 in steps of 10, 5 and 2.
    assert counts == [2, 3, 6]


@pytest.mark.parametrize(("edges", "parts"), [((99, 99, 99), [1]), ((14, 8, 8), [1 / 3] * 3)])
def test_progress_is_told_in_shares_of_the_work(memory, edges, parts):
    net = network()
    memory(net, *edges)
    shares = []
    run(net, torch.randn(1, 20, 4, 4), on_share=shares.append)
    assert shares == pytest.approx(parts)


# --- where the estimate was wrong ---------------------------------------------------------------


def lets_in(net, voxels):
    """`net` on a device that has no memory for inputs of more than `voxels`."""

    def refuse(_, inputs):
        if inputs[0].numel() > voxels:
            raise torch.OutOfMemoryError

    net.register_forward_pre_hook(refuse)
    return net


def test_out_of_memory_goes_on_in_smaller_windows():
    net = constant(0.3)
    found = run(lets_in(net, 14 * 12 * 12), torch.randn(1, 20, 8, 8))
    torch.testing.assert_close(found, torch.full((3, 20, 8, 8), 0.3))


@pytest.mark.parametrize(
    ("norm", "size"),
    [("batch", "3 x 4 x 4"), ("instance", "16 x 8 x 8")],
    ids=["batch", "instance"],
)
def test_a_device_without_memory_for_a_window_is_named(norm, size):
    # 20 is halved to 4 or less: 10, 5, 3. With instance norm a smaller window computes otherwise.
    net = lets_in(network(norm=norm), 0)
    with pytest.raises(DeviceError) as caught:
        run(net, torch.randn(1, 20, 8, 8), patch_size=16)
    assert str(caught.value) == f"cpu has no memory for {size} voxels of a network of 2 channels"
    assert caught.value.hint == "end other programs, or use a larger machine"


# --- batch norm --------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_batch_norm_as_part_of_the_convolutions_computes_the_same(padding):
    net = network(levels=3, padding=padding)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            for values in (module.running_mean, module.weight, module.bias):
                nn.init.normal_(values, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    images = torch.randn(2, 1, 44, 44, 44)
    with torch.no_grad():
        expected = net(images)
        found = fused(net)(images)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in net.modules())
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_other_networks_stay_as_they_are(norm):
    net = network(norm=norm)
    images = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(fused(net)(images), net(images), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_what_the_cpu_finds(monkeypatch):
    net, images = network(channels=8, levels=3), torch.randn(1, 40, 33, 27)
    here = run(net, images)
    there = probabilities(net.cuda(), images, patch_size=16, device=torch.device("cuda"))
    torch.testing.assert_close(there.cpu(), here, atol=2e-3, rtol=0)  # cuDNN multiplies in TF32
