import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.network import UNet3D
from brats_cli.core.model.summary import Cost, costs

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

# One channel, two levels, in and out of one channel, on a patch of 4 voxels an edge: 64 voxels
# on the first level, 8 on the second.
SMALL = UNetConfig(channels=1, levels=2, norm="none", residual=False)


def network(config=SMALL, *, in_channels=1, out_channels=1):
    return UNet3D(config, in_channels=in_channels, out_channels=out_channels)


def of(net, *, in_channels=1, patch_size=4, dtype=torch.float32, device=CPU):
    return costs(net, in_channels=in_channels, patch_size=patch_size, dtype=dtype, device=device)


def test_a_small_network_by_hand():
    # Operations: 2 a weight and voxel of the output; of the up-convolution 2 a weight and voxel
    # of its input, which each of its 8 x 2 weights meets once.
    # Kept of 4 bytes: of a convolution what it reads, of ReLU what it gives; of pooling what it
    # reads, which ReLU gave, and where the largest lay, in 8 bytes. What the next convolution
    # reads and ReLU gives is one tensor.
    assert of(network()) == [
        # 1 -> 1 -> 1: reads the image and the first ReLU's; the second's; 8 places.
        Cost("down.0", 28 + 28, (1, 4, 4, 4), 2 * 64 * 27 * 2, 4 * (64 + 64 + 64) + 8 * 8),
        # 1 -> 2 -> 2: reads what pooling gives; two times two channels of ReLU.
        Cost("down.1", 56 + 110, (2, 2, 2, 2), 2 * 8 * (2 + 4) * 27, 4 * (8 + 16 + 16)),
        # 2 -> 1: reads what the last ReLU gave.
        Cost("up.0", 17, (1, 4, 4, 4), 2 * 8 * 2 * 8, 0),
        # 2 -> 1 -> 1: reads both joined, and the first ReLU's; the second's.
        Cost("merge.0", 55 + 28, (1, 4, 4, 4), 2 * 64 * (2 + 1) * 27, 4 * (128 + 64 + 64)),
        Cost("output", 2, (1, 4, 4, 4), 2 * 64, 0),
    ]


def test_half_precision_keeps_half_as_much_but_for_the_places_of_the_largest():
    single, half = of(network()), of(network(), dtype=torch.bfloat16)
    places = 8 * 8
    assert sum(cost.kept_bytes for cost in half) - places == (
        (sum(cost.kept_bytes for cost in single) - places) / 2
    )
    assert [cost.flops for cost in half] == [cost.flops for cost in single]


def test_a_gpu_normalises_groups_in_float32():
    # CUDA's autocast does: the norm keeps what it reads in 4 bytes, ReLU what it gives as well, and
    # the next convolution a copy of that in 2. Beside them 2 statistics of each of two norms.
    net = network(UNetConfig(channels=1, levels=2, norm="group", residual=False))
    half = {"dtype": torch.bfloat16, "device": CUDA}
    first = of(net, **half)[0]
    image, places, statistics = 2 * 64, 8 * 8, 2 * 2 * 2
    assert first.kept_bytes == image + (4 + 4 + 2) * 64 + (4 + 4) * 64 + places + statistics
    # A CPU normalises in bfloat16: there it reads 2 bytes, and ReLU's 2 are the convolution's.
    first = of(net, dtype=torch.bfloat16)[0]
    assert first.kept_bytes == image + (2 + 2) * 64 + (2 + 2) * 64 + places + statistics
    # In float32 nothing is copied, and other norms are computed in the type of the convolutions.
    assert of(net, device=CUDA) == of(net)
    batch = network(UNetConfig(channels=1, levels=2))
    assert of(batch, **half) == of(batch, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "variant",
    [{"residual": False}, {"norm": "batch"}, {"padding": "valid", "upsampling": "trilinear"}],
    ids=str,
)
def test_the_sums_are_those_of_torch_on_a_real_run(variant):
    config = UNetConfig(**{"channels": 2, "levels": 3} | variant)
    net = network(config, in_channels=4, out_channels=3)
    edge = config.input_size(4)
    found = of(net, in_channels=4, patch_size=edge)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(2, 4, edge, edge, edge))
    assert sum(cost.flops for cost in found) == counter.get_total_flops() / 2
    assert sum(cost.parameters for cost in found) == sum(p.numel() for p in net.parameters())


def test_deep_supervision_counts_the_outputs_of_lower_resolutions():
    config = UNetConfig(channels=1, levels=4, deep_supervision=True)
    found = {cost.part: cost for cost in of(network(config, out_channels=3), patch_size=16)}
    # Of the second level's 2 channels on 8 voxels an edge.
    lower = found["lower_outputs.0"]
    assert (lower.output, lower.flops) == ((3, 8, 8, 8), 2 * 8**3 * 2 * 3)


def test_the_network_is_left_as_it_is():
    net = network(UNetConfig(channels=1, levels=2)).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    of(net)
    assert not net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net(torch.zeros(1, 1, 4, 4, 4)).shape == (1, 1, 4, 4, 4)  # and no hook fails
    assert not any(module._forward_hooks for module in net.modules())


def test_a_large_network_and_patch_take_no_memory():
    # 2048^3 voxels of 64 channels would be 2 TB.
    with torch.device("meta"):
        net = network(UNetConfig(channels=64, levels=2), in_channels=4, out_channels=3)
    found = of(net, in_channels=4, patch_size=2048)
    assert found[-1].flops == 2 * 2048**3 * 64 * 3
