import pytest
import torch
from torch import nn

from brats_cli.core.config import UNetConfig
from brats_cli.core.network import UNet3D, crop

ORIGINAL = UNetConfig(channels=64, levels=5, norm="none", padding="valid")


def network(*, in_channels=1, out_channels=1, **settings):
    torch.manual_seed(0)
    config = UNetConfig(**{"channels": 2, "levels": 2, "norm": "none"} | settings)
    return UNet3D(config, in_channels=in_channels, out_channels=out_channels).eval()


def convolutions(of):
    return [m for m in of.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)]


# --- layers and parameters ---------------------------------------------------------------------


def test_the_originals_23_convolutional_layers():
    with torch.device("meta"):
        layers = convolutions(UNet3D(ORIGINAL, in_channels=4, out_channels=3))
    # Ronneberger et al. 2015: "In total the network has 23 convolutional layers": ten going down,
    # four up-convolutions, eight going up, one at the end.
    assert len(layers) == 23
    kernels = [layer.kernel_size for layer in layers]
    assert kernels.count((3, 3, 3)) == 18
    assert [type(layer).__name__ for layer in layers].count("ConvTranspose3d") == 4
    assert kernels.count((1, 1, 1)) == 1
    # Channels of their figure 1: 64, 128, 256, 512, 1024 going down and back to 64.
    down = [layers[index].out_channels for index in range(10)]
    assert down == [64, 64, 128, 128, 256, 256, 512, 512, 1024, 1024]


def test_parameters_by_hand():
    # 27 weights for each pair of channels of a 3x3x3 convolution and a bias for each output:
    # down 1->2->2: 27*2+2 + 27*4+2 = 166; down 2->4->4: 27*8+4 + 27*16+4 = 656;
    # up 4->2 of 2x2x2: 8*8+2 = 66; merge 4->2->2: 27*8+2 + 27*4+2 = 328; output 2->3: 2*3+3 = 9.
    found = network(out_channels=3)
    assert sum(p.numel() for p in found.parameters()) == 166 + 656 + 66 + 328 + 9


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_norm_takes_the_place_of_the_biases(norm):
    # Each of the six 3x3x3 convolutions has a scale and a shift a channel in place of its bias:
    # 2 + 2 + 4 + 4 + 2 + 2 = 16 more than without.
    found = network(out_channels=3, norm=norm)
    assert sum(p.numel() for p in found.parameters()) == 1225 + 16


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_the_output_has_the_size_the_config_says(levels, padding):
    config = UNetConfig(channels=1, levels=levels, norm="none", padding=padding)
    edge = config.input_size(5)
    with torch.device("meta"):
        logits = UNet3D(config, in_channels=4, out_channels=3)(torch.zeros(2, 4, edge, edge, edge))
    assert logits.shape == (2, 3, *[config.output_size(edge)] * 3)


def test_the_originals_output_in_3d():
    # Cicek et al. 2016: a tile of 132 x 132 x 116 with three channels gives 44 x 44 x 28.
    config = UNetConfig(channels=32, levels=4, padding="valid")
    with torch.device("meta"):
        logits = UNet3D(config, in_channels=3, out_channels=3)(torch.zeros(1, 3, 132, 132, 116))
    assert logits.shape == (1, 3, 44, 44, 28)


# --- what lies where ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "wanted", "first"), [(7, 3, 2), (8, 4, 2), (5, 5, 0), (4, 2, 1)]
)
def test_crop_takes_the_middle(length, wanted, first):
    numbers = torch.arange(length).expand(1, length, length, length)
    assert crop(numbers, (wanted, wanted, wanted))[0, 0, 0].tolist() == [
        *range(first, first + wanted)
    ]


def straight_through(path):
    """A network without padding whose output is its input by one path: `skip` or `up`.

    Convolutions copy the middle of their kernel; the up-convolution repeats each voxel.
    """
    found = network(channels=1, padding="valid")
    with torch.no_grad():
        for layer in convolutions(found):
            layer.weight.zero_()
            layer.bias.zero_()
        for layer in (*found.down[0], *found.down[1], *found.merge[0]):
            if isinstance(layer, nn.Conv3d):
                layer.weight[0, 0, 1, 1, 1] = 1
        first = found.merge[0][0].weight
        first[0, :, 1, 1, 1] = torch.tensor([1.0, 0] if path == "skip" else [0, 1.0])
        found.up[0].weight[0, 0] = 1
        found.output.weight[0, 0] = 1
    return found


def test_the_skip_connection_is_cropped_to_the_middle():
    # The margin is 8 (see test_config): of 20 voxels, 8 to 11 come out as they went in.
    images = torch.rand(1, 1, 20, 20, 20)
    with torch.no_grad():
        found = straight_through("skip")(images)
    assert torch.equal(found, images[:, :, 8:12, 8:12, 8:12])


def test_the_way_through_the_pooling_lies_on_the_skip_connection():
    # Pooling takes the largest of each 2 x 2 x 2 voxels; the output's voxels 8 and 9 lie in one
    # block, 10 and 11 in the next. A path that were shifted by one would mix blocks.
    images = torch.rand(1, 1, 20, 20, 20)
    with torch.no_grad():
        found = straight_through("up")(images)
    largest = nn.functional.max_pool3d(images, 2)[:, :, 4:6, 4:6, 4:6]
    assert torch.equal(found, nn.functional.interpolate(largest, scale_factor=2))


@pytest.mark.parametrize("levels", [2, 3])
def test_an_image_shifted_by_the_poolings_shifts_the_output(levels):
    found = network(levels=levels, padding="valid", in_channels=2, out_channels=3)
    step = found.config.multiple
    edge = found.config.input_size(step + 1)
    images = torch.rand(1, 2, edge + step, edge, edge)
    with torch.no_grad():
        here, there = found(images[:, :, :-step]), found(images[:, :, step:])
    torch.testing.assert_close(here[:, :, step:], there[:, :, :-step])
    assert here.std() > 0


def test_the_same_image_in_another_place_of_the_batch_gives_the_same():
    found = network(norm="batch", padding="same")
    images = torch.rand(3, 1, 8, 8, 8)
    with torch.no_grad():
        together = found(images)
        alone = torch.cat([found(image[None]) for image in images])
    torch.testing.assert_close(together, alone)
