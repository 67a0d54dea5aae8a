"""Networks of others, imported: their outputs are those that the others compute themselves."""

import json
import os
import pickle
import warnings

import nibabel as nib
import numpy as np
import peers
import pytest
import torch
from scipy import ndimage

from brats_cli.core.data.finding import case_at
from brats_cli.core.errors import CheckpointError, ConfigError, OutputExistsError
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.imported import import_model
from brats_cli.core.predict.predictor import PredictConfig, Predictor
from brats_cli.core.prepared.preparation import to_native

pytest.importorskip("monai")

WINDOW = (32, 32, 32)
SHAPE = (40, 46, 36)
# As BraTS distributes its images: x to the left, y to the back.
LPS = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
SMALL = {"blocks_down": (1, 2), "blocks_up": (1,), "init_filters": 8}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A case with a brain, whose four images differ in everything."""
    folder = tmp_path_factory.mktemp("case") / "BraTS2021_00001"
    folder.mkdir()
    generator = np.random.default_rng(0)
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    brain = (place**2).sum(axis=0) < 0.8
    found = {}
    for number, name in enumerate(("t1", "t1ce", "t2", "flair")):
        image = ndimage.gaussian_filter(generator.normal(size=SHAPE), 2) * 3000 * (number + 1)
        image = np.where(brain, np.maximum(image + 600 + 100 * number, 0), 0)
        found[name] = folder / f"BraTS2021_00001_{name}.nii.gz"
        nib.save(nib.Nifti1Image(image.astype(np.int16), LPS), found[name])
    return found


def ours(model, files, *, tta=False):
    """Probabilities on the case's own grid, and the segmentation."""
    predictor = Predictor([Checkpoint.load(model)], torch.device("cpu"), PredictConfig(tta=tta))
    loaded = predictor.load(case_at(files["t1"]))
    samples = predictor.compute(loaded)
    found = [to_native(each, loaded.affine, loaded.grid) for each in samples.mean.numpy()]
    return np.stack(found), predictor.decode(loaded, samples)


def of(files, *names):
    return [files[name] for name in names]


# --- the same numbers --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_bundle_gives_what_monai_gives(files, tmp_path):
    network = peers.save_bundle(tmp_path / "bundle", window=WINDOW, options=SMALL)
    [made] = import_model(tmp_path / "bundle", output=tmp_path / "model.pt")
    assert (made.kind, made.name) == ("MONAI bundle", "BraTS MRI segmentation 0.5.2")
    assert made.licence == "Apache License Version 2.0, January 2004 (LICENSE)"
    assert made.modalities == ("t1ce", "t1", "t2", "flair")
    assert made.window == WINDOW
    images = of(files, "t1ce", "t1", "t2", "flair")
    theirs, labels = peers.bundle_probabilities(network, images, WINDOW)
    found, segmentation = ours(tmp_path / "model.pt", files)
    assert theirs.std() > 0.1  # there is something to be the same
    assert np.abs(found - theirs[[1, 0, 2]]).max() < 1e-5
    assert (segmentation.labels == labels).mean() > 0.9999
    assert segmentation.scheme.name == "brats2020"
    # In another order of channels MONAI gives something else.
    swapped, _ = peers.bundle_probabilities(network, [images[1], images[0], *images[2:]], WINDOW)
    assert np.abs(found - swapped[[1, 0, 2]]).max() > 0.1


@pytest.mark.slow
def test_auto3dseg_gives_what_monai_gives(files, tmp_path):
    network = peers.save_auto3dseg(tmp_path / "model.pt", roi=WINDOW)
    [made] = import_model(tmp_path / "model.pt", output=tmp_path / "ours.pt")
    assert made.modalities == ("flair", "t1ce", "t1", "t2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MONAI's Orientationd
        theirs = peers.auto3dseg_probabilities(
            network, of(files, "flair", "t1ce", "t1", "t2"), WINDOW
        )
    found, segmentation = ours(tmp_path / "ours.pt", files)
    assert theirs.std() > 0.1
    assert np.abs(found - theirs).max() < 1e-4
    assert segmentation.scheme.name == "brats2023"
    masks = np.stack(segmentation.scheme.masks(segmentation.labels))
    whole, core, enhancing = theirs > 0.5
    painted = np.stack([whole | core | enhancing, core | enhancing, enhancing])
    assert (masks == painted).mean() > 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("tta", [False, True], ids=["once", "flipped"])
@pytest.mark.parametrize("labels", ["labels", "regions"])
@pytest.mark.parametrize(
    ("residual", "transpose"), [(False, (1, 0, 2)), (True, (0, 1, 2))], ids=["plain", "residual"]
)
def test_nnunet_gives_what_nnunet_gives(files, tmp_path, labels, residual, transpose, tta):
    described = peers.CLASS_LABELS if labels == "labels" else peers.REGION_LABELS
    plans = peers.nnunet_plans((24, 32, 28), residual=residual, transpose=transpose)
    peers.save_nnunet(tmp_path / "nnunet", plans, peers.nnunet_dataset(described))
    [made] = import_model(tmp_path / "nnunet", output=tmp_path / "model.pt")
    assert made.name == "Dataset137_BraTS"
    assert made.modalities == ("t1", "t1ce", "t2", "flair")
    images = of(files, "t1", "t1ce", "t2", "flair")
    theirs, label_map = peers.nnunet_prediction(tmp_path / "nnunet", images, mirroring=tta)
    found, segmentation = ours(tmp_path / "model.pt", files, tta=tta)
    if labels == "labels":  # background, edema, non-enhancing, enhancing
        theirs = np.stack([theirs[1:].sum(axis=0), theirs[2:].sum(axis=0), theirs[3]])
    assert theirs.std() > 0.1
    assert np.abs(found - theirs).max() < 1e-4
    # nnU-Net's conversion of BraTS has edema as 1 and necrosis as 2; BraTS has 2 and 1.
    swapped = np.array([0, 2, 1, 3])[label_map]
    assert (segmentation.labels == swapped).mean() > 0.9999


@pytest.mark.slow
def test_folds_of_nnunet_go_into_a_folder_that_predict_averages(files, tmp_path):
    from brats_cli.core.model.run_folder import checkpoint_paths

    plans = peers.nnunet_plans((32, 32, 32))
    dataset = peers.nnunet_dataset(peers.REGION_LABELS)
    peers.save_nnunet(tmp_path / "nnunet", plans, dataset, folds=(0, 1))
    with pytest.raises(ConfigError, match=r"holds 2 folds, which do not fit into .*model\.pt"):
        import_model(tmp_path / "nnunet", output=tmp_path / "model.pt")
    with pytest.raises(ConfigError, match="there is no fold 4"):
        import_model(tmp_path / "nnunet", output=tmp_path / "model.pt", fold=4)
    made = import_model(tmp_path / "nnunet", output=tmp_path / "run")
    assert tuple(each.file for each in made) == checkpoint_paths(tmp_path / "run")
    [one] = import_model(tmp_path / "nnunet", output=tmp_path / "model.pt", fold=1)
    first = [Checkpoint.load(path).weights for path in (one.file, made[1].file)]
    assert all(torch.equal(first[0][name], first[1][name]) for name in first[0])
    predictor = Predictor([Checkpoint.load(each.file) for each in made], torch.device("cpu"))
    loaded = predictor.load(case_at(files["t1"]))
    both = predictor.compute(loaded).mean.numpy()
    each = [ours(made.file, files)[0] for made in made]
    found = np.stack([to_native(one, loaded.affine, loaded.grid) for one in both])
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-6)


def test_plans_of_before_2024_make_the_same_network(tmp_path):
    pytest.importorskip("nnunetv2")
    plans, old = peers.nnunet_plans((32, 32, 32)), peers.nnunet_plans((32, 32, 32))
    settings = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    settings["features_per_stage"] = [6, 12, 20]
    fullres = old["configurations"]["3d_fullres"]
    del fullres["architecture"]
    fullres |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 6,
        "unet_max_num_features": 20,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "num_pool_per_axis": [1, 2, 2],
        "pool_op_kernel_sizes": settings["strides"],
        "conv_kernel_sizes": settings["kernel_sizes"],
    }
    peers.save_nnunet(tmp_path / "n", plans, peers.nnunet_dataset(peers.REGION_LABELS))
    import_model(tmp_path / "n", output=tmp_path / "new.pt")
    (tmp_path / "n/plans.json").write_text(json.dumps(old))
    import_model(tmp_path / "n", output=tmp_path / "old.pt")
    new, same = (Checkpoint.load(tmp_path / f"{name}.pt").config for name in ("new", "old"))
    assert new["network"] == same["network"]


def test_a_bare_file_of_the_known_bundle_is_enough(tmp_path):
    peers.save_bundle(tmp_path / "bundle")
    file = tmp_path / "model.pt"
    (tmp_path / "bundle/models/model.pt").rename(file)
    [made] = import_model(file, output=tmp_path / "ours.pt")
    # The numbers, of the model zoo's own file.
    assert made.parameters == 4_702_227
    assert len(Checkpoint.load(tmp_path / "ours.pt").weights) == 83
    assert made.window == (240, 240, 160)
    assert made.licence == "not stated"


def test_a_checkpoint_says_where_it_comes_from(tmp_path):
    import hashlib

    peers.save_auto3dseg(tmp_path / "model.pt")
    import_model(tmp_path / "model.pt", output=tmp_path / "ours.pt", labels="brats2020")
    checkpoint = Checkpoint.load(tmp_path / "ours.pt")
    assert checkpoint.origin == {
        "kind": "Auto3DSeg SegResNetDS",
        "name": "segresnet",
        "licence": "not stated",
        "file": str(tmp_path / "model.pt"),
        "sha256": hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest(),
    }
    assert (checkpoint.epoch, checkpoint.labels) == (7, "brats2020")
    assert checkpoint.preparation == "brats-recipe/1"
    assert checkpoint.recipe.content() == {
        "orientation": "RAS",
        "crop": "positive",
        "margin": 10,
        "over": "nonzero",
        "limit": None,
        "spacing_mm": None,
        "tolerance": 0.25,
    }
    assert torch.load(tmp_path / "ours.pt", weights_only=True)["format"] == "brats-checkpoint/1"


def test_channels_that_no_file_states_may_be_given(tmp_path):
    peers.save_auto3dseg(tmp_path / "model.pt")
    [made] = import_model(
        tmp_path / "model.pt", output=tmp_path / "ours.pt", modalities="t1,t2,t1ce,flair"
    )
    assert made.modalities == ("t1", "t2", "t1ce", "flair")
    with pytest.raises(ConfigError, match="modalities t1,t2 are not each of t1, t1ce, t2, flair"):
        import_model(tmp_path / "model.pt", output=tmp_path / "o.pt", modalities="t1,t2")
    peers.save_bundle(tmp_path / "bundle", options=SMALL)
    with pytest.raises(ConfigError, match="are t1ce,t1,t2,flair by its own files"):
        import_model(tmp_path / "bundle", output=tmp_path / "o.pt", modalities="t1,t2,t1ce,flair")


# --- refused -----------------------------------------------------------------------------------


class Shell:
    """Unpickled, it runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["bundle", "auto3dseg", "nnunet", "bare pickle"])
def test_code_in_a_file_does_not_run(tmp_path, kind):
    touched = tmp_path / "touched"
    code = Shell(touched)
    path = tmp_path / "model.pt"
    source = path
    if kind == "bundle":
        peers.save_bundle(tmp_path / "b", options=SMALL)
        path, source = tmp_path / "b/models/model.pt", tmp_path / "b"
        torch.save({**torch.load(path), "extra": code}, path)
    elif kind == "auto3dseg":
        peers.save_auto3dseg(path)
        torch.save({"state_dict": {}, "config": {"x": code}}, path)
    elif kind == "nnunet":
        path, source = tmp_path / "n/fold_0/checkpoint_final.pth", tmp_path / "n"
        path.parent.mkdir(parents=True)
        (tmp_path / "n/plans.json").write_text("{}")
        torch.save({"network_weights": {}, "init_args": {}, "logging": code}, path)
    else:
        path.write_bytes(pickle.dumps(code, protocol=2))
    with pytest.raises(CheckpointError, match=r"cannot be read: it would run code") as caught:
        import_model(source, output=tmp_path / "ours.pt")
    assert "brats runs no code" in caught.value.hint
    assert not touched.exists()
    assert not (tmp_path / "ours.pt").exists()


def test_numbers_of_numpy_are_the_only_names_that_are_let_in(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"a": np.float64(0.25), "b": np.float32(0.5)}, path)
    with pytest.raises(CheckpointError, match=r"holds no network that brats knows .*entries a, b"):
        import_model(path, output=tmp_path / "ours.pt")  # it was read
    for other in (np.zeros(3), np.int64(3), np.float16(1)):
        torch.save({"a": other}, path)
        with pytest.raises(CheckpointError, match="would run code"):
            import_model(path, output=tmp_path / "ours.pt")


def test_another_task_is_refused_with_what_was_found(tmp_path):
    nets = pytest.importorskip("monai.networks.nets")
    peers.save_bundle(tmp_path / "b", options=SMALL)
    spleen = nets.SegResNet(in_channels=1, out_channels=2, **SMALL)
    torch.save(spleen.state_dict(), tmp_path / "b/models/model.pt")
    metadata = json.loads((tmp_path / "b/configs/metadata.json").read_text())
    metadata["task"] = "Decathlon spleen segmentation"
    (tmp_path / "b/configs/metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(CheckpointError) as caught:
        import_model(tmp_path / "b", output=tmp_path / "ours.pt")
    assert str(caught.value) == (
        f"{tmp_path}/b/models/model.pt is a network of 1 input and 2 output channels "
        "(Decathlon spleen segmentation), not of 4 and 3"
    )
    # The model zoo's own bundle for the spleen is a UNet.
    unet = nets.UNet(3, 1, 2, channels=(4, 8), strides=(2,))
    torch.save(unet.state_dict(), tmp_path / "b/models/model.pt")
    with pytest.raises(CheckpointError, match=r"holds no network that brats knows .*model\.0\."):
        import_model(tmp_path / "b", output=tmp_path / "ours.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmoid": False}, "outputs that exclude each other"),
        ({"class_index": [[1], [2], [3]]}, "segments .* not WT, TC and ET"),
        ({"normalize_mode": "ct"}, "prepares images by normalize_mode ct"),
        ({"extra_modalities": {"image2": "ct"}}, "prepares images by extra_modalities"),
        ({"custom_data_transforms": [{"path": "x.py"}]}, "custom_data_transforms"),
        ({"network": {"_target_": "$os.system('x')"}}, "which brats does not import"),
        ({"network": {"_target_": "SegResNetDS", "in_channels": 1}}, "of 1 input"),
        ({"roi_size": [30, 32, 32]}, "windows of .* which its network does not take"),
        ({"roi_size": "$x"}, "cannot have window"),
        ({"sliding_inferrer": {"_target_": "SaliencyInferer"}}, "applied by SaliencyInferer"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_auto3dseg_with_what_brats_does_not_have_is_refused(tmp_path, changes, message):
    peers.save_auto3dseg(tmp_path / "model.pt", roi=WINDOW, **changes)
    with pytest.raises(CheckpointError, match=message):
        import_model(tmp_path / "model.pt", output=tmp_path / "ours.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plans, data: data["channel_names"].update({"0": "CT"}), "for other images: CT"),
        (lambda plans, data: data["labels"].update({"RC": 4}), "segments .*RC"),
        (
            lambda plans, data: plans["configurations"]["3d_fullres"].update(
                normalization_schemes=["CTNormalization"] * 4
            ),
            "normalises images by CTNormalization",
        ),
        (
            lambda plans, data: plans["configurations"]["3d_fullres"].update(patch_size=[32, 32]),
            "trained in the configuration 3d_fullres",
        ),
        (
            lambda plans, data: plans["configurations"]["3d_fullres"]["architecture"].update(
                network_class_name="os.system"
            ),
            "the network system, which brats does not import",
        ),
        (lambda plans, data: plans.update(transpose_forward=[0, 0, 2]), "transposes axes"),
        (
            lambda plans, data: plans["configurations"]["3d_fullres"]["architecture"][
                "arch_kwargs"
            ].update(features_per_stage=[4, 8, 12]),
            "does not hold the weights of its network",
        ),
    ],
)
def test_nnunet_with_what_brats_does_not_have_is_refused(tmp_path, change, message):
    plans, data = peers.nnunet_plans(WINDOW), peers.nnunet_dataset(dict(peers.CLASS_LABELS))
    peers.save_nnunet(tmp_path / "n", plans, data)
    change(plans, data)
    (tmp_path / "n/plans.json").write_text(json.dumps(plans))
    (tmp_path / "n/dataset.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=message):
        import_model(tmp_path / "n", output=tmp_path / "ours.pt")


def test_a_fold_without_its_folder_is_refused(tmp_path):
    plans, data = peers.nnunet_plans(WINDOW), peers.nnunet_dataset(peers.CLASS_LABELS)
    peers.save_nnunet(tmp_path / "n", plans, data)
    file = tmp_path / "checkpoint_final.pth"
    (tmp_path / "n/fold_0/checkpoint_final.pth").rename(file)
    with pytest.raises(CheckpointError, match=r"without dataset\.json and plans\.json") as caught:
        import_model(file, output=tmp_path / "ours.pt")
    assert caught.value.hint.startswith("give the folder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is not a whole file of torch.save"),
        (b"<html>log in first</html>", "it is not a whole file of torch.save"),
        (b"PK\x03\x04" + bytes(100), "it is not a whole file of torch.save"),
    ],
    ids=["empty", "html", "zip"],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, message):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        import_model(path, output=tmp_path / "ours.pt")
    assert str(path) in str(caught.value)


def test_a_folder_without_a_network_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"holds no network that brats knows \(only notes"):
        import_model(tmp_path, output=tmp_path / "ours.pt")


def test_a_checkpoint_of_brats_needs_no_import_and_outputs_are_kept(tmp_path):
    peers.save_auto3dseg(tmp_path / "model.pt")
    import_model(tmp_path / "model.pt", output=tmp_path / "ours.pt")
    with pytest.raises(CheckpointError, match=r"ours\.pt is a checkpoint of brats"):
        import_model(tmp_path / "ours.pt", output=tmp_path / "again.pt")
    with pytest.raises(OutputExistsError):
        import_model(tmp_path / "model.pt", output=tmp_path / "ours.pt")
    import_model(tmp_path / "model.pt", output=tmp_path / "ours.pt", overwrite=True)
