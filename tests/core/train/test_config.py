import pytest
import yaml

from brats_cli.core.errors import ConfigError, OutputError
from brats_cli.core.model.config import CLASSIC, MonaiConfig, UNetConfig, stored_network_config
from brats_cli.core.train.config import AugmentConfig, TrainConfig, load_config, parse_setting


def write(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def yaml_file(tmp_path):
    return lambda text: write(tmp_path / "train.yaml", text)


# --- where settings come from ------------------------------------------------------------------


def test_without_anything_given_the_defaults_hold():
    assert load_config() == TrainConfig()


def test_overrides_go_before_the_file_and_the_file_before_defaults(yaml_file):
    path = yaml_file("epochs: 7\nbatch_size: 3\nnetwork: {channels: 8, levels: 3}\n")
    config = load_config(path, epochs=9, **{"network.channels": 16})
    assert (config.epochs, config.batch_size, config.seed) == (9, 3, 0)
    assert config.network == UNetConfig(channels=16, levels=3)


def test_an_override_may_be_null(yaml_file):
    assert load_config(yaml_file("patience: 7\n"), patience=None).patience is None


def test_an_override_reaches_into_a_section_that_the_file_lacks(yaml_file):
    config = load_config(yaml_file("epochs: 7\n"), **{"augmentation.flip": 0})
    assert config.augmentation == AugmentConfig(flip=0)


def test_an_empty_file_gives_the_defaults(yaml_file):
    assert load_config(yaml_file("# nothing yet\n")) == TrainConfig()


def test_null_in_the_file_turns_patience_off(yaml_file):
    assert load_config(yaml_file("patience: null\n")).patience is None


def test_a_number_as_yaml_1_1_misreads_it_is_a_number(yaml_file):
    # PyYAML takes 1e-3, without a dot, for text.
    path = yaml_file("learning_rate: 1e-3\n")
    assert yaml.safe_load(path.read_text()) == {"learning_rate": "1e-3"}
    assert load_config(path).learning_rate == 0.001


def test_what_is_saved_is_read_back(tmp_path):
    config = TrainConfig(
        epochs=3,
        modalities=("flair", "t1ce"),
        patience=None,
        network=UNetConfig(channels=4, levels=2, norm="none", padding="valid"),
        augmentation=AugmentConfig(enabled=False),
        patch_size=20,
    )
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    # Every setting is written, so that a run shows all it was trained with.
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert list(written) == list(TrainConfig.model_fields)
    assert written["modalities"] == ["flair", "t1ce"]


def test_saving_into_a_file_instead_of_a_folder_is_an_output_error(tmp_path):
    write(tmp_path / "run", "")
    with pytest.raises(OutputError, match=r"cannot write .*config\.yaml"):
        TrainConfig().save(tmp_path / "run" / "config.yaml")


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().epochs = 3


# --- networks by name --------------------------------------------------------------------------


def test_the_classic_network_by_its_name(yaml_file):
    # The smallest patch that four poolings without padding leave a voxel of is 188.
    config = load_config(yaml_file("network: classic\npatch_size: 188\n"))
    assert config.network == CLASSIC
    assert (CLASSIC.widths, CLASSIC.norm) == ([64, 128, 256, 512, 1024], "none")
    assert (CLASSIC.padding, CLASSIC.upsampling) == ("valid", "transposed")


@pytest.mark.parametrize(
    "text",
    ["network: {name: classic, padding: same}", "network: {padding: same, name: classic}"],
)
def test_a_named_network_with_settings_is_a_variant_of_it(yaml_file, text):
    network = load_config(yaml_file(text)).network
    assert network == CLASSIC.model_copy(update={"padding": "same"})


@pytest.mark.parametrize("order", [1, -1], ids=["as meant", "turned round"])
def test_a_name_and_a_setting_of_it_on_the_command_line(yaml_file, order):
    given = ["network=classic", "network.padding=same"][::order]
    overrides = dict(parse_setting(text) for text in given)
    config = load_config(yaml_file("network: {channels: 8, norm: batch}\n"), **overrides)
    # The name replaces the section of the file; the setting changes what the name means.
    assert config.network == CLASSIC.model_copy(update={"padding": "same"})


def test_a_setting_on_the_command_line_changes_the_network_that_the_file_names(yaml_file):
    path = yaml_file("network: classic\n")
    network = load_config(path, **{"network.padding": "same", "network.channels": 4}).network
    assert (network.widths, network.norm) == ([4, 8, 16, 32, 64], "none")


def test_a_network_without_a_name_starts_from_the_default(yaml_file):
    assert load_config(yaml_file("network: unet\n")).network == UNetConfig()
    assert load_config(yaml_file("network: {levels: 3}\n")).network == UNetConfig(levels=3)


def test_a_saved_config_holds_the_values_of_a_named_network(tmp_path):
    config = load_config(network="classic", **{"network.padding": "same"})
    config.save(tmp_path / "config.yaml")
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())["network"]
    assert written["channels"] == 64
    assert sorted(written) == sorted(UNetConfig.model_fields)  # and no name
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    "text",
    [
        "network: {name: monai/SegResNet, options: {init_filters: 16}}",
        "network: {options: {init_filters: 16}, name: monai/SegResNet}",
    ],
)
def test_a_network_of_monai_with_options(tmp_path, yaml_file, text):
    config = load_config(yaml_file(text))
    assert config.network == MonaiConfig(name="monai/SegResNet", options={"init_filters": 16})
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    overrides = {"network": "monai/SegResNet", "network.options.init_filters": 16}
    assert load_config(**overrides) == config


def test_any_patch_is_left_to_a_network_of_monai(yaml_file):
    assert load_config(yaml_file("network: monai/UNETR\npatch_size: 100\n")).patch_size == 100


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("clasic", "did you mean 'classic'?"),
        ("segresnet", "did you mean 'monai/SegResNet'?"),
        ("xyz", "networks are unet, classic and MONAI's, as monai/SegResNet"),
    ],
)
def test_a_network_that_does_not_exist_names_the_nearest(name, hint):
    with pytest.raises(ConfigError, match=f"there is no network '{name}'") as caught:
        load_config(network=name)
    assert caught.value.hint == hint


def test_a_setting_of_brats_networks_is_none_of_monais(yaml_file):
    path = yaml_file("network: {name: monai/SegResNet, channels: 8}\n")
    with pytest.raises(ConfigError, match=r"unknown setting 'network.channels'") as caught:
        load_config(path)
    assert caught.value.hint == "the settings here are name, options"


def test_the_network_of_an_older_checkpoint_has_todays_defaults():
    older = {"channels": 16, "levels": 4, "norm": "batch", "padding": "same"}
    # But for residual blocks: there were none.
    assert stored_network_config(older) == UNetConfig(channels=16, levels=4, residual=False)


@pytest.mark.parametrize(
    "network", [UNetConfig(), UNetConfig(residual=False), CLASSIC, MonaiConfig(name="monai/UNet")]
)
def test_the_network_of_a_checkpoint_is_read_as_it_was_written(network):
    assert stored_network_config(network.model_dump(mode="json")) == network


def test_deep_supervision_needs_a_resolution_to_supervise():
    # Of three levels the lowest has no way up, and the one above it is left out.
    with pytest.raises(ConfigError, match="3 levels has no lower resolution") as caught:
        load_config(**{"network.levels": 3, "network.deep_supervision": True})
    assert "use 4 or more" in caught.value.hint


# --- settings that do not exist ----------------------------------------------------------------


def test_a_misspelt_setting_names_the_right_one_and_the_file(yaml_file):
    path = yaml_file("learning_rat: 0.1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"unknown setting 'learning_rat' in {path}"
    assert caught.value.hint == "did you mean 'learning_rate'?"


def test_a_misspelt_setting_in_a_section_names_the_right_one_there(yaml_file):
    path = yaml_file("network: {chanels: 8}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"unknown setting 'network.chanels' in {path}"
    assert caught.value.hint == "did you mean 'channels'?"


def test_an_override_that_is_misspelt_names_the_right_one():
    with pytest.raises(ConfigError) as caught:
        load_config(**{"augmentation.flips": 0.1})
    assert str(caught.value) == "unknown setting 'augmentation.flips'"
    assert caught.value.hint == "did you mean 'flip'?"


def test_a_setting_like_no_other_lists_those_there_are():
    with pytest.raises(ConfigError) as caught:
        load_config(**{"network.xyz": 1})
    assert caught.value.hint == (
        "the settings here are channels, most_channels, levels, norm, activation, dropout, "
        "residual, deep_supervision, upsampling, padding"
    )


def test_a_setting_below_one_that_is_no_section():
    with pytest.raises(ConfigError) as caught:
        load_config(None, epochs=3, **{"epochs.most": 4})
    assert str(caught.value) == "setting 'epochs.most' is not within a section"
    assert caught.value.hint == "'epochs' has the value 3"


def test_a_number_as_a_settings_name_is_an_error(yaml_file):
    with pytest.raises(ConfigError, match="setting '1'"):
        load_config(yaml_file("1: 2\n"))


# --- values that cannot be ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("epochs: many", "'epochs' in {} cannot be 'many'", "input should be a valid integer"),
        ("epochs: 0", "'epochs' in {} cannot be 0", "greater than or equal to 1"),
        ("epochs: 2.5", "'epochs' in {} cannot be 2.5", "got a number with a fractional part"),
        ("learning_rate: 0", "'learning_rate' in {} cannot be 0", "greater than 0"),
        ("learning_rate: .nan", "'learning_rate' in {} cannot be nan", "greater than 0"),
        ("tumour_share: 1.5", "'tumour_share' in {} cannot be 1.5", "less than or equal to 1"),
        ("loss: dise", "'loss' in {} cannot be 'dise'", "input should be 'dice', 'dice_ce'"),
        ("modalities: []", "'modalities' in {} cannot be []", "at least 1"),
        ("modalities: [t1, t3]", "'modalities.1' in {} cannot be 't3'", "'t1', 't1ce', 't2'"),
        ("network: {levels: 1}", "'network.levels' in {} cannot be 1", "greater than or equal"),
        ("network: 3", "'network' in {} cannot be 3", "dictionary"),
        ("plateau_factor: 1", "'plateau_factor' in {} cannot be 1", "less than 1"),
        ("patience: 0", "'patience' in {} cannot be 0", "greater than or equal to 1"),
    ],
)
def test_a_value_that_cannot_be_names_setting_file_and_value(yaml_file, line, message, hint):
    path = yaml_file(line + "\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == "setting " + message.format(path)
    assert hint in caught.value.hint


def test_a_patch_that_the_poolings_cannot_halve_names_one_that_fits():
    # Five levels halve four times: 96 and 112 are multiples of 16, 100 is not.
    with pytest.raises(ConfigError) as caught:
        load_config(patch_size=100)
    assert str(caught.value) == (
        "a patch of 100 voxels does not fit a network of 5 levels with padding: same and "
        "norm: batch"
    )
    assert caught.value.hint == "try a patch_size of 112"


def test_a_patch_too_small_for_a_valid_network_names_the_smallest():
    # Two levels without padding lose 8 on each side; of the edges above 16, 18 is the first
    # that halves: 18 - 4 = 14, 7 - 4 = 3, 6 - 4 = 2.
    with pytest.raises(ConfigError) as caught:
        load_config(patch_size=16, **{"network.levels": 2, "network.padding": "valid"})
    assert caught.value.hint == "try a patch_size of 18"


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_a_single_voxel_has_no_spread_to_divide_by(norm):
    # Five levels take 16 voxels to one, 32 to two.
    with pytest.raises(ConfigError, match=f"a patch of 16 voxels .* norm: {norm}") as caught:
        load_config(patch_size=16, **{"network.norm": norm})
    assert caught.value.hint == "try a patch_size of 32"
    assert load_config(patch_size=32, **{"network.norm": norm}).network.norm == norm


def test_batch_norm_needs_two_values_of_each_channel():
    with pytest.raises(ConfigError, match="of one patch of 16 voxels has a single value") as caught:
        load_config(patch_size=16, batch_size=1)
    assert caught.value.hint == "use a batch_size of 2, or a patch_size of 32"
    assert load_config(patch_size=16, batch_size=2).patch_size == 16
    assert load_config(patch_size=32, batch_size=1).patch_size == 32


# --- files that are no settings ----------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "none.yaml")
    assert str(caught.value) == (
        f"cannot read settings from {tmp_path / 'none.yaml'}: there is no such file"
    )
    assert "examples/train.yaml" in caught.value.hint


@pytest.mark.parametrize("content", [b"a: [1,", b"\xff\xfe\x00", b"a: b: c"])
def test_a_file_that_is_no_yaml_is_named(tmp_path, content):
    path = tmp_path / "train.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"cannot read settings from {path}: it is not a YAML file"


def test_a_list_holds_no_settings(yaml_file):
    path = yaml_file("- epochs\n- 3\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path} holds no settings"
    assert "epochs: 100" in caught.value.hint


# --- --set -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("network.channels=16", ("network.channels", 16)),
        ("modalities=[t1ce, flair]", ("modalities", ["t1ce", "flair"])),
        ("augmentation.enabled=false", ("augmentation.enabled", False)),
        ("patience=null", ("patience", None)),
        ("name=a=b", ("name", "a=b")),
    ],
)
def test_a_setting_on_the_command_line_is_read_as_yaml(text, setting):
    assert parse_setting(text) == setting


@pytest.mark.parametrize("text", ["epochs", "=3", ""])
def test_a_setting_without_name_or_value_shows_how_to_write_it(text):
    with pytest.raises(ConfigError, match="is not KEY=VALUE") as caught:
        parse_setting(text)
    assert caught.value.hint == "write --set network.channels=16"


def test_a_setting_whose_value_is_no_yaml():
    with pytest.raises(ConfigError, match=r"cannot read the value of --set modalities=\[t1"):
        parse_setting("modalities=[t1")


# --- what a network makes of an edge -----------------------------------------------------------


def test_the_originals_sizes_without_padding():
    # Ronneberger et al. 2015, figure 1: 572 in, 388 out, four poolings.
    original = UNetConfig(levels=5, padding="valid")
    assert original.output_size(572) == 388
    assert original.margin == (572 - 388) // 2
    # Cicek et al. 2016, section 3: a tile of 132 x 132 x 116 gives 44 x 44 x 28, three poolings.
    in_3d = UNetConfig(levels=4, padding="valid")
    assert (in_3d.output_size(132), in_3d.output_size(116)) == (44, 28)


def test_sizes_of_a_small_network_without_padding_by_hand():
    # 20: less 4 is 16, halved 8, less 4 is 4; up 8, less 4 is 4.
    config = UNetConfig(levels=2, padding="valid")
    assert (config.multiple, config.margin, config.output_size(20)) == (2, 8, 4)


def test_sizes_with_interpolation_and_without_padding_by_hand():
    # 22: less 4 is 18, halved 9, less 4 is 5; interpolated 10, of which the outermost voxels are
    # cut off: 8, less 4 is 4. Above, the up-convolution kept them.
    config = UNetConfig(levels=2, padding="valid", upsampling="trilinear")
    assert (config.multiple, config.margin, config.output_size(22)) == (2, 9, 4)
    padded = UNetConfig(levels=2, padding="same", upsampling="trilinear")
    assert (padded.margin, padded.output_size(22)) == (0, 22)


def test_channels_double_up_to_the_most():
    assert UNetConfig().widths == [32, 64, 128, 256, 512]
    assert UNetConfig(most_channels=320).widths == [32, 64, 128, 256, 320]
    assert UNetConfig(channels=8, levels=3, most_channels=8).widths == [8, 8, 8]


def test_padding_keeps_the_size():
    config = UNetConfig(levels=5, padding="same")
    assert (config.multiple, config.margin, config.output_size(96)) == (16, 0, 96)


@pytest.mark.parametrize(
    ("edge", "padding"), [(104, "same"), (571, "valid"), (580, "valid"), (184, "valid")]
)
def test_an_edge_that_cannot_be_halved_or_leaves_nothing_is_refused(edge, padding):
    with pytest.raises(ConfigError, match=f"a patch of {edge} voxels does not fit"):
        UNetConfig(levels=5, padding=padding).output_size(edge)


def output_or_nothing(config, edge):
    try:
        return config.output_size(edge)
    except ConfigError:
        return 0


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("upsampling", ["transposed", "trilinear"])
def test_the_input_for_an_output_is_the_smallest_that_gives_it(levels, padding, upsampling):
    config = UNetConfig(levels=levels, padding=padding, upsampling=upsampling)
    for output in range(1, 20):
        edges = [edge for edge in range(1, 130) if output_or_nothing(config, edge) >= output]
        assert config.input_size(output) == edges[0]
