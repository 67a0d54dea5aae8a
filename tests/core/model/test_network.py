import itertools
import math

import pytest
import torch
from torch import nn

from brats_cli.core.model.config import CLASSIC, NnunetConfig, UNetConfig
from brats_cli.core.model.network import UNet3D, crop, make_network


def network(*, in_channels=1, out_channels=1, **settings):
    torch.manual_seed(0)
    config = UNetConfig(
        **{"channels": 2, "levels": 2, "norm": "none", "residual": False} | settings
    )
    return UNet3D(config, in_channels=in_channels, out_channels=out_channels).eval()


def convolutions(of):
    return [m for m in of.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)]


# --- layers and parameters ---------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_the_classic_networks_23_convolutional_layers(padding):
    config = CLASSIC.model_copy(update={"padding": padding})
    with torch.device("meta"):
        net = UNet3D(config, in_channels=4, out_channels=3)
    layers = [
        (type(layer).__name__, layer.in_channels, layer.out_channels, layer.kernel_size[0])
        for layer in convolutions(net)
    ]
    # Ronneberger et al. 2015, figure 1, from left to right: "In total the network has 23
    # convolutional layers". Each level has two of 3x3(x3); each up-convolution of 2x2(x2) halves
    # the channels; behind it skip connection and it are joined.
    assert layers[:10] == [
        *[("Conv3d", 4, 64, 3), ("Conv3d", 64, 64, 3)],
        *[("Conv3d", 64, 128, 3), ("Conv3d", 128, 128, 3)],
        *[("Conv3d", 128, 256, 3), ("Conv3d", 256, 256, 3)],
        *[("Conv3d", 256, 512, 3), ("Conv3d", 512, 512, 3)],
        *[("Conv3d", 512, 1024, 3), ("Conv3d", 1024, 1024, 3)],
    ]
    ups = [("ConvTranspose3d", 2 * width, width, 2) for width in (64, 128, 256, 512)]
    merges = [
        ("Conv3d", before, width, 3)
        for width in (64, 128, 256, 512)
        for before in (2 * width, width)
    ]
    assert layers[10:] == [*ups, *merges, ("Conv3d", 64, 3, 1)]
    assert len(layers) == 10 + 4 + 8 + 1 == 23
    kinds = {type(module).__name__ for module in net.modules() if not list(module.children())}
    assert kinds - {"ModuleList"} == {"Conv3d", "ConvTranspose3d", "ReLU"}  # no norm, no dropout
    assert {layer.padding for layer in convolutions(net) if layer.kernel_size == (3, 3, 3)} == {
        (1, 1, 1) if padding == "same" else (0, 0, 0)
    }


def test_the_classic_network_pools_four_times_and_cuts_as_in_the_paper():
    # Ronneberger et al. 2015: 572 in, 388 out; in 3D the same along each axis.
    with torch.device("meta"):
        net = UNet3D(CLASSIC, in_channels=1, out_channels=3)
        assert net(torch.zeros(1, 1, 572, 572, 572)).shape[2:] == (388, 388, 388)


def test_without_residual_blocks_the_network_is_that_of_older_checkpoints():
    # Names and order of all parameters, as checkpoints of version 0.1 have them; made in this
    # order from one seed, each has the values that it had.
    torch.manual_seed(0)
    config = UNetConfig(channels=2, levels=2, residual=False)
    found = UNet3D(config, in_channels=1, out_channels=3)
    torch.manual_seed(0)
    expected = {
        "down.0.0": nn.Conv3d(1, 2, 3, bias=False),
        "down.0.1": nn.BatchNorm3d(2),
        "down.0.3": nn.Conv3d(2, 2, 3, bias=False),
        "down.0.4": nn.BatchNorm3d(2),
        "down.1.0": nn.Conv3d(2, 4, 3, bias=False),
        "down.1.1": nn.BatchNorm3d(4),
        "down.1.3": nn.Conv3d(4, 4, 3, bias=False),
        "down.1.4": nn.BatchNorm3d(4),
        "up.0": nn.ConvTranspose3d(4, 2, 2, stride=2),
        "merge.0.0": nn.Conv3d(4, 2, 3, bias=False),
        "merge.0.1": nn.BatchNorm3d(2),
        "merge.0.3": nn.Conv3d(2, 2, 3, bias=False),
        "merge.0.4": nn.BatchNorm3d(2),
        "output": nn.Conv3d(2, 3, 1),
    }
    weights = {
        f"{name}.{key}": value
        for name, layer in expected.items()
        for key, value in layer.state_dict().items()
    }
    assert list(found.state_dict()) == list(weights)
    assert all(torch.equal(found.state_dict()[name], weights[name]) for name in weights)
    assert (
        make_network(config, in_channels=1, out_channels=3, patch_size=8).state_dict().keys()
        == weights.keys()
    )


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


def test_group_norm_has_eight_groups_or_as_many_as_divide():
    # A scale and a shift a channel, as with the other norms.
    found = network(channels=12, norm="group")
    norms = [module for module in found.modules() if isinstance(module, nn.GroupNorm)]
    # Two convolutions a level down (12, 24) and up (12); of 12 channels 4 groups divide.
    assert [(norm.num_groups, norm.num_channels) for norm in norms] == [
        *[(4, 12), (4, 12), (8, 24), (8, 24), (4, 12), (4, 12)]
    ]


@pytest.mark.parametrize(
    ("name", "of_minus_one"),
    [
        ("relu", 0),
        ("leaky_relu", -0.01),
        ("elu", math.exp(-1) - 1),
        ("silu", -1 / (1 + math.e)),
    ],
)
def test_activations_by_hand(name, of_minus_one):
    activation = network(activation=name).down[0][1]
    assert activation(torch.tensor([-1.0])).item() == pytest.approx(of_minus_one, abs=1e-7)


def test_dropout_blanks_whole_channels_in_training_only():
    found = network(channels=64, dropout=0.25).train()
    images = torch.randn(1, 1, 4, 4, 4)
    features = found.down[0](images)[0].flatten(1)
    blank = (features == 0).all(1)
    # Of 64 channels 16 are expected, give or take four standard deviations of 3.5.
    assert 2 <= blank.sum() <= 30
    found.eval()
    assert not (found.down[0](images)[0].flatten(1) == 0).all(1).any()


def test_a_residual_block_adds_its_input():
    found = network(channels=3, in_channels=3, residual=True)
    block = found.down[0]
    images = torch.randn(1, 3, 4, 4, 4)
    with torch.no_grad():
        for layer in convolutions(block):
            layer.weight.zero_()
            layer.bias.zero_()
        # Nothing is left but the input, through the last ReLU.
        assert torch.equal(block(images), images.relu())
        block.layers[-2].bias.fill_(1)  # and the second convolution's answer is added before it
        assert torch.equal(block(images), (images + 1).relu())


def test_a_residual_blocks_shortcut_is_cropped_where_nothing_is_padded():
    block = network(channels=1, residual=True, padding="valid").down[0]
    images = torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        for layer in convolutions(block):
            layer.weight.zero_()
            layer.bias.zero_()
        assert torch.equal(block(images), images[:, :, 2:6, 2:6, 2:6])


def test_a_residual_block_of_other_channels_has_a_convolution_as_shortcut():
    # Of in 1, out 2: 1*2 + 2 weights more than without on the first level, 2*4 + 4 on the second,
    # and 4*2 + 2 where the joined channels come back to two.
    plain, residual = network(out_channels=3), network(out_channels=3, residual=True)
    counts = [sum(p.numel() for p in net.parameters()) for net in (plain, residual)]
    assert counts[1] - counts[0] == 4 + 12 + 10


def test_interpolation_is_of_fewer_channels_first_and_that_is_the_same():
    found = network(upsampling="trilinear")
    below = torch.randn(1, 4, 3, 3, 3)
    with torch.no_grad():
        finer = nn.functional.interpolate(below, scale_factor=2, mode="trilinear")
        expected = found.up[0].channels(finer)
        torch.testing.assert_close(found.up[0](below), expected)


# --- deep supervision --------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("levels", [4, 5])
def test_deep_supervision_gives_all_but_the_two_lowest_levels_in_training(levels, padding):
    config = UNetConfig(channels=1, levels=levels, padding=padding, deep_supervision=True)
    edge = config.input_size(1)
    with torch.device("meta"):
        found = UNet3D(config, in_channels=1, out_channels=3)
        outputs = found.train()(torch.zeros(2, 1, edge, edge, edge))
        alone = found.eval()(torch.zeros(2, 1, edge, edge, edge))
    assert len(outputs) == levels - 2
    full = config.output_size(edge)
    sizes = [output.shape[2] for output in outputs]
    if padding == "same":
        assert sizes == [full // 2**level for level in range(levels - 2)]
    else:  # the two convolutions of each level above cut 4 of what is twice as fine
        assert all(2 * coarse - 4 == fine for fine, coarse in itertools.pairwise(sizes))
    assert {output.shape[:2] for output in outputs} == {(2, 3)}
    assert sizes[0] == full
    assert alone.shape == outputs[0].shape


def test_deep_supervision_changes_neither_weights_nor_the_full_resolution():
    plain = network(levels=4)
    deep = network(levels=4, deep_supervision=True)
    for name, weight in plain.state_dict().items():
        assert torch.equal(deep.state_dict()[name], weight)
    images = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(deep(images), plain(images))
        assert torch.equal(deep.train()(images)[0], plain(images))


# --- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("upsampling", ["transposed", "trilinear"])
def test_the_output_has_the_size_the_config_says(levels, padding, residual, upsampling):
    config = UNetConfig(
        channels=1, levels=levels, padding=padding, residual=residual, upsampling=upsampling
    )
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


def test_what_is_cropped_by_nothing_is_no_copy():
    numbers = torch.rand(1, 1, 3, 4, 5)
    assert crop(numbers, torch.Size((3, 4, 5))) is numbers


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
@pytest.mark.parametrize(
    "variant", [{}, {"upsampling": "trilinear"}, {"residual": True, "activation": "elu"}], ids=str
)
def test_an_image_shifted_by_the_poolings_shifts_the_output(levels, variant):
    found = network(levels=levels, padding="valid", in_channels=2, out_channels=3, **variant)
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


def test_gradients_over_maps_of_two_voxels_are_finite_in_bfloat16():
    # Where PyTorch's own layer reads memory that nobody wrote, a third of the tries find NaN there.
    config = UNetConfig(channels=8, levels=2, norm="none")
    net = UNet3D(config, in_channels=8, out_channels=3).train()
    for _ in range(25):
        del [torch.full((size,), torch.nan) for size in (10**3, 10**4, 10**5) * 6][:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(torch.randn(2, 8, 4, 4, 4))
        net.zero_grad()
        logits.sum().backward()
        assert all(weight.grad.isfinite().all() for weight in net.parameters())


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_nnunets_maps_of_two_voxels_are_convolved_in_float32_in_a_training_on_the_cpu(name):
    # As those of `UNet3D` above; 16 voxels are halved three times.
    pytest.importorskip("dynamic_network_architectures")
    config = NnunetConfig(
        name=f"nnunet/{name}",
        features=(4, 8, 8, 8),
        kernels=((3, 3, 3),) * 4,
        strides=((1, 1, 1), *((2, 2, 2),) * 3),
        blocks=(1, 1, 1, 2),
        decoder_blocks=(1, 1, 1),
    )
    net = make_network(config, in_channels=2, out_channels=3, patch_size=16).train()
    seen = set()

    def note(_, given, made):
        seen.add((2 in given[0].shape[2:], made.dtype))

    layers = [layer for layer in net.modules() if isinstance(layer, torch.nn.Conv3d)]
    for layer in layers:
        layer.register_forward_hook(note)
    for _ in range(3):
        del [torch.full((size,), torch.nan) for size in (10**3, 10**4, 10**5) * 6][:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(torch.rand(2, 2, 16, 16, 16))
        net.zero_grad()
        logits.sum().backward()
        assert all(weight.grad.isfinite().all() for weight in net.parameters())
    assert seen == {(True, torch.float32), (False, torch.bfloat16)}
