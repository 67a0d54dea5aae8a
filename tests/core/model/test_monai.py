import sys

import pytest
import torch
from helpers import loaded_by

from brats_cli.core.errors import ConfigError
from brats_cli.core.model import windows as inference
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.config import MonaiConfig
from brats_cli.core.model.network import is_far_larger, make_network
from brats_cli.core.model.summary import costs
from brats_cli.core.model.trial import TriedShape
from brats_cli.core.model.windows import around, fused, probabilities
from brats_cli.core.train.config import TrainConfig

CPU = torch.device("cpu")

LEVELS_3 = {"channels": [2, 4, 8], "strides": [2, 2]}


def make(name, *, patch_size=32, in_channels=2, out_channels=3, **options):
    pytest.importorskip("monai", reason="MONAI is not installed")
    torch.manual_seed(0)
    config = MonaiConfig(name=f"monai/{name}", options=options)
    return make_network(
        config, in_channels=in_channels, out_channels=out_channels, patch_size=patch_size
    )


def refused(name, **options):
    with pytest.raises(ConfigError) as caught:
        make(name, **options)
    assert "\n" not in str(caught.value) + caught.value.hint
    return str(caught.value), caught.value.hint


# --- what each network takes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "multiple", "in_windows"),
    [
        # SegResNet halves three times and has group norm; its variant for deep supervision has
        # batch norm.
        ("SegResNet", {"init_filters": 8}, 8, True),
        ("SegResNet", {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}, 2, True),
        ("SegResNetDS", {"init_filters": 8}, 8, False),
        # V-Net halves four times (Milletari et al. 2016, figure 2), with batch norm.
        ("VNet", {}, 16, False),
        # Half of the patch embedding and four mergers: 2^5; instance norm.
        ("SwinUNETR", {"feature_size": 12}, 32, True),
        # Its position embedding has the size of the patch.
        ("UNETR", {"hidden_size": 24, "mlp_dim": 24, "num_heads": 2}, 32, True),
        (
            "UNETR",
            {"hidden_size": 24, "mlp_dim": 24, "num_heads": 2, "norm_name": "batch"},
            32,
            True,
        ),
        ("UNet", LEVELS_3, 4, True),
        ("UNet", {**LEVELS_3, "norm": "batch"}, 4, False),
        # Batch norm, but for its up-convolutions.
        ("AttentionUnet", LEVELS_3, 4, True),
        # Pads what does not fit.
        ("BasicUNet", {"features": [2, 2, 4, 4, 4, 2]}, 1, True),
        ("DynUNet", {"filters": [2, 2, 4, 4, 4]}, 16, True),
    ],
    ids=str,
)
def test_a_network_says_what_it_takes(name, options, multiple, in_windows):
    # Of 32 voxels the fifth half would be one, which has no variance for instance norm.
    patch_size = 64 if name == "SwinUNETR" else 32
    found = make(name, patch_size=patch_size, **options)
    assert found.config.multiple == multiple
    assert found.config.depends_on_window == in_windows
    assert found.config.margin == 0
    # And so it is, on real tensors: patches, and what inference rounds 33 voxels up to.
    edges = (patch_size if in_windows else found.config.input_size(33), patch_size, patch_size)
    found.eval()
    with torch.no_grad():
        assert found(torch.randn(1, 2, *edges)).shape == (1, 3, *edges)


def test_edges_by_hand():
    shape = TriedShape("monai/X", 8, 4, depends_on_window=False)
    assert [shape.input_size(side) for side in (0, 1, 8, 9)] == [8, 8, 8, 16]
    assert shape.output_size(24) == 24
    with pytest.raises(ConfigError, match="a patch of 30 voxels does not fit monai/X") as caught:
        shape.output_size(30)
    assert caught.value.hint == "try a patch_size of 32"
    # As of brats' own: 2 voxels of the image on each side, and what makes it divisible.
    assert around(shape, 13) == (5, 6)
    assert around(TriedShape("monai/X", 8, 4, depends_on_window=True), 13) == (1, 2)


def test_the_widest_map_of_the_full_resolution_is_what_memory_is_estimated_by():
    # 2 channels come and 16 go down; coming up, 16 and the 16 of the skip connection are joined.
    assert make("VNet").config.channels == 32


def test_what_brats_does_not_set_is_monais_default():
    plain, given = make("SegResNet"), make("SegResNet", init_filters=8)
    assert plain.state_dict().keys() == given.state_dict().keys()
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, given.state_dict()[name])


@pytest.mark.parametrize("name", ["UNet", "AttentionUnet", "DynUNet"])
def test_networks_that_need_channels_get_five_levels(name):
    assert make(name).config.multiple == 2**4


def test_options_as_yaml_has_them():
    found = make("UNet", **LEVELS_3, norm=["group", {"num_groups": 2}], act="relu")
    assert "GroupNorm" in {type(module).__name__ for module in found.modules()}


# --- what cannot be ----------------------------------------------------------------------------


def test_a_network_that_monai_does_not_have_names_the_nearest():
    message, hint = refused("SegResNett")
    assert message == "MONAI has no segmentation network 'SegResNett'"
    assert hint.startswith("did you mean 'monai/SegResNet'")
    assert refused("nets")[0] == "MONAI has no segmentation network 'nets'"


def test_an_option_that_a_network_does_not_have_names_the_nearest():
    message, hint = refused("SegResNet", init_filter=16)
    assert message == "monai/SegResNet has no option 'init_filter'"
    assert hint == "did you mean 'init_filters'?"
    assert refused("VNet", xyz=1)[1].startswith("it has act, dropout_prob")


def test_what_brats_sets_is_not_to_be_set():
    message, hint = refused("SegResNet", **{"spatial_dims": 2})
    assert message == "option 'spatial_dims' of monai/SegResNet is not to be set"
    assert "modalities" in hint


def test_an_option_that_monai_refuses_is_told_in_its_words():
    message, hint = refused("SegResNet", norm="nonesuch")
    assert message.startswith(
        "MONAI does not make monai/SegResNet with options {'norm': 'nonesuch'}"
    )
    assert "monai.networks.nets.SegResNet" in hint
    # 6 is no multiple of its 8 groups.
    assert "MONAI does not make" in refused("SegResNet", init_filters=6)[0]


def test_a_patch_that_a_network_does_not_take():
    message, hint = refused("VNet", patch_size=24)
    assert message.startswith("monai/VNet cannot be trained on patches of 24 voxels: ")
    assert hint.startswith("try a patch_size that is a multiple of 32")


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("SegResNetDS", {"init_filters": 8, "dsdepth": 2}, "2 outputs"),
        (
            "DynUNet",
            {"filters": [2, 2, 4, 4, 4], "deep_supervision": True},
            "a tensor of 2 x 2 x 3 x 32 x 32 x 32",
        ),
        ("DenseNet121", {}, "a tensor of 2 x 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_network_of_more_or_other_outputs_is_refused(name, options, found):
    message, hint = refused(name, **options)
    assert message == f"monai/{name} does not return one map per region in training, but {found}"
    assert "deep supervision" in hint


def test_without_monai_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks", None)
    config = MonaiConfig(name="monai/SegResNet")
    with pytest.raises(ConfigError) as caught:
        make_network(config, in_channels=4, out_channels=3, patch_size=32)
    assert str(caught.value) == "network monai/SegResNet needs MONAI, which is not installed"
    assert caught.value.hint == "pip install 'brats-cli[monai]'"


def test_monai_is_not_loaded_unless_asked_for():
    code = (
        "import brats_cli.core.predict.predictor, brats_cli.core.train.training\n"
        "import brats_cli.core.model.summary\n"
        "from brats_cli.core.train.config import load_config\n"
        "load_config(network='monai/SegResNet')"
    )
    assert loaded_by(code, {"monai"}) == set()


# --- checkpoints, inference, costs -------------------------------------------------------------


def test_a_checkpoint_is_enough_to_make_the_network(tmp_path):
    net = make("SegResNetDS", init_filters=8, in_channels=4).eval()
    for buffer in net.buffers():  # batch norm's statistics, as if trained
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    network = {"name": "monai/SegResNetDS", "options": {"init_filters": 8}}
    config = TrainConfig(patch_size=32, network=network)
    saved = Checkpoint(
        weights=net.state_dict(),
        config=config.model_dump(mode="json"),
        labels="brats2023",
        epoch=1,
        scores={},
    )
    saved.save(tmp_path / "best.pt")
    loaded = Checkpoint.load(tmp_path / "best.pt")
    assert TrainConfig.model_validate(loaded.config) == config
    found = loaded.network()
    assert not found.training
    assert found.config.multiple == net.config.multiple == 8
    images = torch.randn(1, 4, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(found(images), net(images))
        # What inference makes faster in brats' own networks leaves these alone.
        assert torch.equal(fused(found)(images), net(images))


def watch(net):
    shapes = []
    net.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


def test_one_pass_where_the_window_decides_nothing():
    net = make("UNet", **LEVELS_3, norm="batch").eval()
    shapes = watch(net)
    images = torch.randn(2, 41, 20, 19)
    found = probabilities(net, images, patch_size=32, device=CPU)
    # 2 voxels around, to the next multiple of 4: 45 to 48, 24, 23 to 24.
    assert shapes == [(1, 2, 48, 24, 24)]
    padded = torch.zeros(1, 2, 48, 24, 24)
    padded[0, :, 3:44, 2:22, 2:21] = images
    with torch.no_grad():
        expected = torch.sigmoid(net(padded))[0, :, 3:44, 2:22, 2:21]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "options", "sides"),
    [
        ("SegResNet", {"init_filters": 8}, (32, 24, 8)),  # 20 and 7 to multiples of 8
        ("UNETR", {"hidden_size": 24, "mlp_dim": 24, "num_heads": 2}, (32, 32, 32)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_windows_of_the_patch_where_the_window_decides(name, options, sides):
    net = make(name, **options).eval()
    shapes = watch(net)
    found = probabilities(net, torch.randn(2, 40, 20, 7), patch_size=32, device=CPU)
    assert found.shape == (3, 40, 20, 7)
    assert shapes == [(1, 2, *sides)] * 2  # 40 is 32, and 32 from 8 on


def test_windows_in_little_memory_of_a_network_whose_widest_map_is_known(monkeypatch):
    net = make("UNet", **LEVELS_3, norm="batch").eval()
    images = torch.randn(2, 40, 8, 8)
    whole = probabilities(net, images, patch_size=32, device=CPU)
    room = net.config.channels * 10 * 4 * (24 * 12 * 12)
    monkeypatch.setattr(inference, "memory_for_network", lambda device, beside=0: room)
    shapes = watch(net)
    found = probabilities(net, images, patch_size=32, device=CPU)
    assert set(shapes) == {(1, 2, 24, 12, 12)}
    assert (found - whole).abs().mean() < 0.01


def test_costs_of_a_network_of_monai_add_up_to_its_own():
    net = make("SegResNet", init_filters=8)
    found = costs(net, in_channels=2, patch_size=32, dtype=torch.float32)
    assert found[0].part == "convInit"
    # 3x3x3 weights from 2 to 8 channels without bias; two operations each at every voxel.
    assert (found[0].parameters, found[0].flops) == (27 * 16, 2 * 32**3 * 27 * 16)
    assert sum(cost.parameters for cost in found) == sum(p.numel() for p in net.parameters())


def test_maps_of_two_voxels_are_convolved_in_float32_in_a_training_on_the_cpu():
    # See `Conv3d`: in bfloat16 the gradient of their weights may be NaN there. SegResNet halves
    # 16 voxels three times.
    found = make("SegResNet", patch_size=16, init_filters=8).train()
    seen = set()

    def note(_, given, made):
        seen.add((2 in given[0].shape[2:], made.dtype))

    layers = [layer for layer in found.modules() if isinstance(layer, torch.nn.Conv3d)]
    for layer in layers:
        layer.register_forward_hook(note)
    with torch.autocast("cpu", torch.bfloat16):
        found(torch.rand(1, 2, 16, 16, 16))
    assert seen == {(True, torch.float32), (False, torch.bfloat16)}


# --- what a file may ask for -------------------------------------------------------------------

SIZES = {"in_channels": 2, "out_channels": 3, "patch_size": 64}


def far_larger(name, weights, **options):
    config = MonaiConfig(name=f"monai/{name}", options=options)
    return is_far_larger(config, weights, **SIZES)


def test_a_network_is_as_large_as_its_own_weights():
    for name, options in (("SwinUNETR", {"feature_size": 12}), ("SegResNet", {"init_filters": 8})):
        own = make(name, patch_size=64, **options).net.state_dict()
        assert not far_larger(name, own, **options)
        assert far_larger(name, {"w": torch.zeros(1000)}, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SwinUNETR", {"feature_size": 4080}),
        ("SwinUNETR", {"feature_size": 12, "depths": [4096] * 4}),
        ("SwinUNETR", {"feature_size": 12, "window_size": [4096] * 3}),  # in its buffers
        # Wide, and then wrong.
        ("SwinUNETR", {"feature_size": 4080, "norm_name": "nonsense"}),
        ("UNETR", {"hidden_size": 4096, "num_heads": 1}),
        ("SegResNet", {"blocks_down": [4096] * 4}),
        ("DenseNet", {"block_config": [4096] * 4}),
        ("BasicUNet", {"features": [4096] * 6}),
    ],
    ids=str,
)
def test_a_network_without_end_is_not_made(name, options):
    pytest.importorskip("monai", reason="MONAI is not installed")
    assert far_larger(name, {"w": torch.zeros(100_000)}, **options)


def test_a_network_that_cannot_be_made_is_refused_before_its_first_part_is():
    pytest.importorskip("monai", reason="MONAI is not installed")
    with pytest.raises(ConfigError, match=r"MONAI does not make monai/SwinUNETR with options"):
        far_larger(
            "SwinUNETR", {"w": torch.zeros(5_000_000)}, feature_size=12, norm_name="nonsense"
        )
    # Options that it does not have are named when it is made.
    assert not far_larger("SwinUNETR", {}, features=7)
