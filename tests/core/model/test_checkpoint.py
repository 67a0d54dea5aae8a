import pickle
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from brats_cli import __version__
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.errors import CheckpointError, OutputError, UnreadableFileError
from brats_cli.core.model import checkpoint
from brats_cli.core.model.checkpoint import FORMAT, Checkpoint
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.decision import Decision
from brats_cli.core.model.network import UNet3D
from brats_cli.core.prepared.preparation import PREPARATION
from brats_cli.core.train.config import TrainConfig

CONFIG = TrainConfig(
    patch_size=8, modalities=("flair", "t1ce"), network=UNetConfig(channels=2, levels=2)
)


class Touch:
    """Unpickled, it makes a file: what a checkpoint from the internet might do, and worse."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def make(**changes):
    torch.manual_seed(0)
    network = UNet3D(CONFIG.network, in_channels=2, out_channels=3)
    for buffer in network.buffers():  # batch norm's statistics, as if trained
        buffer.copy_(torch.rand(buffer.shape) + 0.5)
    made = Checkpoint(
        weights=network.state_dict(),
        config=CONFIG.model_dump(mode="json"),
        labels="brats2020",
        epoch=3,
        scores={"WT": 0.9, "TC": 0.8, "ET": 0.7},
    )
    return replace(made, **changes)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "best.pt"


# --- there and back ----------------------------------------------------------------------------


def test_everything_comes_back(path):
    saved = make(state={"progress": {"epoch": 3, "best": 0.8}, "optimizer": {"state": {}}})
    saved.save(path)
    loaded = Checkpoint.load(path)
    assert loaded.weights.keys() == saved.weights.keys()
    for name, weight in saved.weights.items():
        assert torch.equal(loaded.weights[name], weight)
    for field in fields(Checkpoint):
        if field.name != "weights":
            assert getattr(loaded, field.name) == getattr(saved, field.name), field.name
    assert (loaded.version, loaded.preparation) == (__version__, PREPARATION)


def test_a_network_of_version_0_1_has_no_residual_blocks(path):
    config = CONFIG.model_dump(mode="json")
    del config["network"]["residual"]  # there was no such setting
    plain = UNet3D(
        CONFIG.network.model_copy(update={"residual": False}), in_channels=2, out_channels=3
    )
    make(config=config, weights=plain.state_dict()).save(path)
    images = torch.rand(1, 2, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(Checkpoint.load(path).network()(images), plain.eval()(images))


def test_a_checkpoint_is_enough_to_make_the_network(path):
    saved = make()
    saved.save(path)
    loaded = Checkpoint.load(path)
    assert TrainConfig.model_validate(loaded.config) == CONFIG
    assert loaded.scheme is SCHEMES["brats2020"]
    images = torch.randn(1, 2, 8, 8, 8)
    network = loaded.network()
    assert not network.training
    with torch.no_grad():
        expected = saved.network()(images)
        assert expected.std() > 0
        assert torch.equal(network(images), expected)


def test_a_network_shares_the_checkpoints_weights():
    saved = make()
    network = saved.network()
    assert network.output.weight.data_ptr() == saved.weights["output.weight"].data_ptr()


def test_the_way_from_probabilities_to_labels_comes_back(path):
    content = {"thresholds": {"WT": 0.4, "ET": 0.6}, "smallest_et_mm3": 750.0}
    decision = Decision({"WT": 0.4, "ET": 0.6}, 750.0)
    make(decision=decision).save(path)
    assert torch.load(path, weights_only=True)["decision"] == content  # as 0.1.0 wrote it
    assert Checkpoint.load(path).decision == decision


def test_a_checkpoint_whose_thresholds_were_not_selected_has_no_decision(path):
    make().save(path)
    content = torch.load(path, weights_only=True)
    assert content["decision"] == {}
    assert Checkpoint.load(path).decision is None
    del content["decision"]
    torch.save(content, path)
    assert Checkpoint.load(path).decision is None


@pytest.mark.parametrize(
    ("augmentation", "expected"),
    [
        ({"modality_dropout": 0.2}, True),
        ({"modality_dropout": 0.2, "enabled": False}, False),
        ({"modality_dropout": 0.0}, False),
        ({}, False),  # from before there was such a setting
    ],
)
def test_whether_a_network_knows_missing_modalities(augmentation, expected):
    saved = make(config={**CONFIG.model_dump(mode="json"), "augmentation": augmentation})
    assert saved.saw_missing_modalities is expected


def test_the_file_is_plain_tensors_and_builtins(path):
    make().save(path)
    content = torch.load(path, weights_only=True)
    assert content["format"] == FORMAT
    assert set(content) == {"format", *(field.name for field in fields(Checkpoint))}


def test_saving_again_replaces_the_file_and_leaves_nothing_beside_it(path):
    make().save(path)
    make(epoch=4).save(path)
    assert Checkpoint.load(path).epoch == 4
    assert [file.name for file in path.parent.iterdir()] == ["best.pt"]


def test_a_save_that_fails_leaves_the_old_checkpoint(path, monkeypatch):
    make().save(path)

    def write(self, content):
        raise OSError(28, "No space left on device")

    # torch makes a RuntimeError of it that does not say why.
    monkeypatch.setattr(checkpoint._Written, "_put", write)
    with pytest.raises(OutputError, match=r"best\.pt: No space left on device"):
        make(epoch=4).save(path)
    monkeypatch.undo()
    assert Checkpoint.load(path).epoch == 3
    assert [file.name for file in path.parent.iterdir()] == ["best.pt"]


# --- what is no checkpoint ---------------------------------------------------------------------


def test_a_missing_checkpoint_is_named(path):
    with pytest.raises(UnreadableFileError) as caught:
        Checkpoint.load(path)
    assert str(caught.value) == f"cannot read {path}: there is no such checkpoint"
    assert caught.value.hint == "check --model"


@pytest.mark.parametrize("write", [torch.save, lambda content, file: pickle.dump(content, file)])
def test_code_in_a_checkpoint_does_not_run(path, tmp_path, write):
    touched = tmp_path / "touched"
    with path.open("wb") as file:
        write({"format": FORMAT, "weights": Touch(touched)}, file)
    with pytest.raises(CheckpointError, match=f"{path} is not a brats checkpoint"):
        Checkpoint.load(path)
    assert not touched.exists()
    # The test's own file does what it should not, where it is let.
    with path.open("rb") as file:
        torch.load(file, weights_only=False) if write is torch.save else pickle.load(file)
    assert touched.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"epoch,loss,val_dice_WT\n1,0.9,0.1\n",  # a run's log.csv
        b"epochs: 100\nsteps_per_epoch: 250\n",  # a run's config.yaml
        b"format: brats-splits/1\n",  # a run's splits.yaml
        b"Gb\n",
        b"hello",
        b"\x1f\x8b\x08\x00" + bytes(100),  # a NIfTI file
        b"\x80\x02}q\x00.",  # a pickled dict
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_a_file_of_another_kind_is_named(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(path)
    assert str(path) in str(caught.value)
    assert "best.pt or last.pt of a run" in caught.value.hint


def test_a_checkpoint_cut_short_says_so(path):
    make().save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(path)
    assert str(caught.value) == f"{path} is not a brats checkpoint"
    assert caught.value.hint.startswith("was it cut short while copying?")


@pytest.mark.parametrize(
    "content",
    [
        {"conv.weight": torch.zeros(3)},
        torch.zeros(3),
        {"format": "brats-checkpoint/0", "weights": {}},
    ],
    ids=["weights of another network", "a tensor", "another version"],
)
def test_a_torch_file_of_others_is_named(path, content):
    torch.save(content, path)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(path)
    assert str(caught.value) == f"{path} was not written by this version of brats ({FORMAT})"


def test_a_checkpoint_of_another_preparation_names_the_version_that_fits(path):
    make(preparation="brats-preparation/0", version="0.0.1").save(path)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(path)
    assert str(caught.value) == (
        f"{path} expects images prepared as brats-preparation/0, not {PREPARATION}"
    )
    assert "(0.0.1)" in caught.value.hint


# --- a whole archive with something else in it -------------------------------------------------


def rewrite(path, *keys, value=None):
    """Change one entry of a checkpoint's file, or remove it."""
    make().save(path)
    content = torch.load(path, weights_only=True)
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    torch.save(content, path)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("config",), None, "it has no config"),
        (("version",), None, "it has no version"),
        (("config",), "unet", "its config is 'unet'"),
        (("weights",), [1], r"its weights is \[1\]"),
        (("weights", "output.bias"), 3, "its weights are not tensors"),
        (("weights", "output.bias"), None, "the weights output.bias do not fit its network"),
        (("weights", "output.bias"), torch.zeros(4), "the weights output.bias do not fit"),
        (("weights", "output.bias"), torch.zeros(3, dtype=int), "the weights output.bias do not"),
        (("weights", "more"), torch.zeros(3), "the weights more do not fit its network"),
        (("labels",), 5, "its labels is 5"),
        (("labels",), "brats1999", "there is no label scheme 'brats1999'"),
        (("epoch",), -1, "its spacing_mm is 1.0, its epoch -1"),
        (("scores", "WT"), "good", "its scores are"),
        (("regions",), ("WT",), r"its regions are \('WT',\), not WT, TC, ET"),
        (("surplus",), 3, "it has an entry 'surplus', which is unknown"),
        (("config", "modalities"), 7, "its modalities are 7"),
        (("config", "modalities"), ["t1", "t1"], "its modalities are"),
        (("config", "modalities"), ["t1", "pet"], "its modalities are"),
        (("config", "modalities"), ["t1", "t2", "flair"], "the weights .* do not fit"),
        (("config", "patch_size"), "x", "its patch_size is 'x'"),
        (("config", "patch_size"), 10**9, "its patch_size is 1000000000"),
        (("config", "precision"), "int4", "its precision is 'int4'"),
        (("config", "augmentation"), 1, "its augmentation is 1"),
        (("config", "network", "channels"), 10**6, "the weights .* do not fit its network"),
        (("config", "network", "channels"), -1, "its network is"),
        (("config", "network", "levels"), 10**6, "its network is"),
        (("config", "network"), "resnet", "its network is 'resnet'"),
        (("config", "network"), None, "it has no network"),
        (("decision",), {"thresholds": "x"}, "its decision is"),
        (("decision",), {"thresholds": {"WT": float("nan")}}, "its decision is"),
        (("decision",), {"smallest_et_mm3": [1]}, "its decision is"),
        (("decision",), {"smallest_et_mm3": 10**400}, "its decision is"),
        (("decision",), {"temperatures": {"WT": -(10**400)}}, "its decision is"),
        (("state",), [], r"its state is \[\]"),
    ],
)
def test_a_checkpoint_is_validated_whole_when_it_is_loaded(path, keys, value, said):
    rewrite(path, *keys, value=value)
    with pytest.raises(
        CheckpointError, match=rf"{path} is not a sound checkpoint: {said}"
    ) as caught:
        Checkpoint.load(path)
    assert "best.pt or last.pt of a run" in caught.value.hint


def test_weights_that_fit_no_longer_name_the_parameter():
    other = make(weights={"x": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="the weights do not fit the network") as caught:
        other.network()
    assert "MONAI" in caught.value.hint
