"""Starting from a checkpoint: what is taken over, what is refused, and what stays as it is."""

import numpy as np
import pytest
import torch
import yaml
from helpers import REAL, assert_refused, brats, needs_real

import brats_cli
from brats_cli.core.errors import CheckpointError, ConfigError
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.network import make_network
from brats_cli.core.train.config import TrainConfig
from brats_cli.core.train.events import Epoch
from brats_cli.core.train.start import Initialised

SMALL = {"channels": 4, "levels": 3, "residual": True}
QUICK = {"steps_per_epoch": 3, "batch_size": 1, "workers": 0}


def save(path, *, modalities=("t1", "t1ce", "t2", "flair"), patch_size=32, network=None):
    """A checkpoint with random weights and statistics."""
    torch.manual_seed(7)
    config = TrainConfig(patch_size=patch_size, network=network or SMALL, modalities=modalities)
    made = make_network(
        config.network, in_channels=len(modalities), out_channels=3, patch_size=patch_size
    )
    for buffer in made.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    Checkpoint(made.state_dict(), config.model_dump(mode="json"), "brats2023", 5, {}).save(path)
    return path


@pytest.fixture
def splits(phantoms, tmp_path):
    brats_cli.split(phantoms, output=tmp_path / "splits.yaml", ratios="50/25/25")
    return tmp_path / "splits.yaml"


def train(splits, folder, **more):
    settings = {**QUICK, **more.pop("settings", {})}
    given = {"epochs": 1, "device": "cpu", "settings": settings, **more}
    return list(brats_cli.train(splits, output=folder, **given))


def weights_of(*paths):
    return [Checkpoint.load(path).weights for path in paths]


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


def test_network_modalities_and_patch_size_are_taken_over_and_noted(splits, tmp_path):
    order = ("flair", "t1ce", "t1", "t2")
    model = save(tmp_path / "model.pt", modalities=order)
    [started] = of(Initialised, train(splits, tmp_path / "run", init=model))
    assert (started.random, started.unused, started.differences) == ((), (), ())
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert tuple(config["modalities"]) == order
    assert (config["patch_size"], config["network"]["channels"]) == (32, 4)
    assert config["init"] == str(model)
    assert config["origin"]["file"] == str(model)
    assert config["origin"]["epoch"] == 5
    assert Checkpoint.load(tmp_path / "run/last.pt").origin == config["origin"]


def test_the_weights_are_the_checkpoints_before_the_first_step(splits, tmp_path):
    model = save(tmp_path / "model.pt")
    # So small a learning rate changes nothing that float32 shows but in the last digits.
    train(splits, tmp_path / "run", init=model, settings={"learning_rate": 1e-12})
    before, after = weights_of(model, tmp_path / "run/last.pt")
    learnt = [name for name in before if "running" not in name and "num_batches" not in name]
    for name in learnt:
        np.testing.assert_allclose(after[name], before[name], atol=1e-7)


def test_a_frozen_encoder_keeps_weights_and_statistics(splits, tmp_path):
    model = save(tmp_path / "model.pt")
    [started] = of(Initialised, train(splits, tmp_path / "run", init=model, freeze="encoder"))
    before, after = weights_of(model, tmp_path / "run/last.pt")
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("down.")} <= same
    assert not {"merge.0.layers.0.weight", "merge.1.layers.0.weight", "output.weight"} & same
    weights = make_network(TrainConfig(network=SMALL).network, in_channels=4, out_channels=3,
                           patch_size=32).down.parameters()  # fmt: skip
    assert started.frozen == sum(each.numel() for each in weights)


def test_an_average_of_weights_starts_there_too(splits, tmp_path):
    model = save(tmp_path / "model.pt")
    settings = {"learning_rate": 1e-12, "ema_decay": 0.9}
    train(splits, tmp_path / "run", init=model, settings=settings)
    before, after = weights_of(model, tmp_path / "run/last.pt")
    np.testing.assert_allclose(after["output.weight"], before["output.weight"], atol=1e-7)


def test_a_run_from_init_resumes_exactly_without_the_file(splits, tmp_path):
    model = save(tmp_path / "model.pt")
    whole = train(splits, tmp_path / "whole", init=model, freeze="encoder", epochs=2)
    train(splits, tmp_path / "parts", init=model, freeze="encoder", epochs=1)
    model.unlink()
    again = list(
        brats_cli.train(splits, output=tmp_path / "parts", resume=True, epochs=2, device="cpu")
    )
    assert of(Initialised, again) == []
    assert of(Epoch, again)[-1].number == 2
    one, two = (Checkpoint.load(tmp_path / name / "last.pt").weights for name in ("whole", "parts"))
    # The schedule by default does not depend on the number of epochs.
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert of(Epoch, whole)[-1].loss == of(Epoch, again)[-1].loss


def test_layers_that_do_not_fit_are_named(splits, tmp_path):
    model = save(tmp_path / "model.pt", network={**SMALL, "channels": 6})
    words = ("train", splits, "-o", tmp_path / "run", "--init", model, "--device", "cpu")
    result = brats(*words, "--set", "network.channels=4", "--set", "workers=0")
    config = TrainConfig(network=SMALL)
    due = make_network(config.network, in_channels=4, out_channels=3, patch_size=32).state_dict()
    # The counts of batch norm and output.bias have the same shape.
    unfit = len(due) - sum("num_batches" in name for name in due) - 1
    assert_refused(
        result,
        f"{unfit} of {len(due)} tensors of the network have no values in {model} that fit: "
        "down.0.layers.0.weight (4, 4, 3, 3, 3), not (6, 4, 3, 3, 3), "
        "down.0.layers.1.weight (4,), not (6,), down.0.layers.1.bias (4,), not (6,) and "
        f"{unfit - 3} more",
        "--init-partial",
    )
    assert not (tmp_path / "run/last.pt").exists()


def test_what_does_not_fit_starts_from_random_values_if_asked(splits, tmp_path):
    model = save(tmp_path / "model.pt", modalities=("t1ce", "flair"))
    more = {"settings": {"modalities": ["t1ce", "flair", "t2"], "learning_rate": 1e-12}}
    with pytest.raises(CheckpointError, match=r"down\.0\.layers\.0\.weight \(4, 3, 3, 3, 3\)"):
        train(splits, tmp_path / "run", init=model, **more)
    events = train(splits, tmp_path / "run", init=model, init_partial=True, **more)
    [started] = of(Initialised, events)
    assert started.random == ("down.0.layers.0.weight", "down.0.shortcut.0.weight")
    assert started.differences == (
        "the checkpoint's modalities are t1ce, flair, those of this training t1ce, flair, t2",
    )


def test_where_nothing_fits_no_option_helps(splits, tmp_path):
    pytest.importorskip("monai")
    model = save(tmp_path / "model.pt")
    unet = {"name": "monai/UNet", "options": {"channels": [4, 8], "strides": [2]}}
    with pytest.raises(CheckpointError, match="have no values in") as caught:
        train(splits, tmp_path / "r", init=model, init_partial=True, settings={"network": unet})
    assert "--init-partial" not in caught.value.hint


def test_another_order_of_modalities_is_told(splits, tmp_path):
    model = save(tmp_path / "model.pt")
    events = train(
        splits,
        tmp_path / "run",
        init=model,
        settings={"modalities": ["flair", "t1", "t1ce", "t2"]},
    )
    [started] = of(Initialised, events)
    assert started.differences[0].startswith("the checkpoint's modalities are t1, t1ce, t2, flair")


def test_a_file_that_has_changed_does_not_start_the_run_again(splits, tmp_path):
    model = save(tmp_path / "model.pt")
    train(splits, tmp_path / "run", init=model)
    for name in ("last.pt", "best.pt"):
        (tmp_path / "run" / name).unlink()  # as if stopped in the first epoch
    save(model, network={**SMALL, "dropout": 0.1})
    with pytest.raises(CheckpointError, match="is not the file any more that this run started"):
        list(brats_cli.train(splits, output=tmp_path / "run", resume=True, device="cpu"))


def test_to_freeze_random_weights_is_refused(splits, tmp_path):
    with pytest.raises(ConfigError, match="freeze: encoder would keep random weights"):
        train(splits, tmp_path / "run", freeze="encoder")
    with pytest.raises(ConfigError, match="setting 'freeze' cannot be 'decoder'"):
        train(splits, tmp_path / "run", freeze="decoder")


def test_an_imported_network_is_trained_on_images_prepared_as_it_was(splits, tmp_path):
    import peers

    small = {"blocks_down": (1, 2), "blocks_up": (1,), "init_filters": 8}
    peers.save_bundle(tmp_path / "bundle", window=(32, 32, 32), options=small)
    brats_cli.import_model(tmp_path / "bundle", output=tmp_path / "model.pt")
    model = tmp_path / "model.pt"
    [started] = of(Initialised, train(splits, tmp_path / "run", init=model, freeze="encoder"))
    assert (started.random, started.differences) == ((), ())
    tuned = Checkpoint.load(tmp_path / "run/best.pt")
    assert tuned.recipe == Checkpoint.load(model).recipe
    assert tuned.sliding is None  # in windows of the patches that it was trained on
    assert tuned.origin["origin"]["kind"] == "MONAI bundle"
    assert tuned.preparation == "brats-recipe/1"
    # The store holds both preparations of the same cases.
    before = {path.name for path in (tmp_path / "brats-store").iterdir()}
    train(splits, tmp_path / "own", settings={"patch_size": 32, "network": SMALL})
    after = {path.name for path in (tmp_path / "brats-store").iterdir()}
    assert before < after


@pytest.mark.real
@needs_real
def test_ten_steps_from_a_checkpoint_beat_ten_from_scratch_on_real_cases(tmp_path):
    cases = sorted(path for path in (REAL / "cases").iterdir() if path.is_dir())[:4]
    (tmp_path / "data").mkdir()
    for case in cases:
        (tmp_path / "data" / case.name).symlink_to(case)
    splits = tmp_path / "splits.yaml"
    content = brats_cli.split(tmp_path / "data", output=splits, ratios="50/50/0").split
    folds = [{"train": content.ids(), "val": []}]  # all are trained on: only the loss is looked at
    splits.write_text(yaml.safe_dump(yaml.safe_load(splits.read_text()) | {"folds": folds}))
    settings = {"patch_size": 48, "batch_size": 2, "workers": 0, "patience": None,
                "network.channels": 4, "network.levels": 4}  # fmt: skip
    train(splits, tmp_path / "first", settings={**settings, "steps_per_epoch": 40})
    ten = {**settings, "steps_per_epoch": 10, "seed": 1}
    scratch = of(Epoch, train(splits, tmp_path / "scratch", settings=ten))[0].loss
    init = tmp_path / "first/last.pt"
    tuned = of(Epoch, train(splits, tmp_path / "tuned", settings=ten, init=init))[0].loss
    print(f"mean loss of ten steps: {scratch:.3f} from scratch, {tuned:.3f} from a checkpoint")
    assert tuned < scratch - 0.1
