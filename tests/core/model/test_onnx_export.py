import builtins
import json

import numpy as np
import pytest
import torch
from helpers import REAL, assert_refused, brats, needs_real, stdout_of

from brats_cli.core.errors import CheckpointError, ConfigError
from brats_cli.core.model import onnx_export
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.network import make_network
from brats_cli.core.model.onnx_export import export
from brats_cli.core.train.config import TrainConfig

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def save(path, *, patch_size=32, **network):
    torch.manual_seed(0)
    config = TrainConfig(patch_size=patch_size, network=network)
    made = make_network(config.network, in_channels=4, out_channels=3, patch_size=patch_size)
    for buffer in made.buffers():  # batch norm's statistics, as if trained
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    Checkpoint(made.state_dict(), config.model_dump(mode="json"), "brats2020", 3, {}).save(path)
    return made.eval()


@pytest.mark.parametrize(
    "network",
    [
        {"channels": 4, "levels": 3},
        {"channels": 4, "levels": 3, "norm": "instance", "upsampling": "trilinear"},
        {"channels": 8, "levels": 3, "norm": "group", "activation": "silu"},
        {"channels": 4, "levels": 4, "deep_supervision": True, "residual": False},
    ],
    ids=["default", "instance", "group", "deep supervision"],
)
def test_onnxruntime_computes_what_pytorch_does_at_any_size(tmp_path, network):
    made = save(tmp_path / "model.pt", **network)
    exported = export(tmp_path / "model.pt", output=tmp_path / "model.onnx")
    assert exported.difference < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    images = torch.randn(2, 4, 40, 32, 48)  # another batch and size than anything before
    with torch.inference_mode():
        wanted = made(images)
    found = session.run(None, {"images": images.numpy()})[0]
    assert found.shape == (2, 3, 40, 32, 48)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert onnx.load(str(tmp_path / "model.onnx")).opset_import[0].version == exported.opset == 18


@pytest.mark.parametrize("labels", ["labels", "regions"])
def test_an_imported_network_is_exported_with_its_preparation(tmp_path, labels):
    import peers

    from brats_cli.core.model.imported import import_model

    described = peers.CLASS_LABELS if labels == "labels" else peers.REGION_LABELS
    peers.save_nnunet(
        tmp_path / "n", peers.nnunet_plans((32, 32, 32)), peers.nnunet_dataset(described)
    )
    import_model(tmp_path / "n", output=tmp_path / "model.pt")
    assert export(tmp_path / "model.pt", output=tmp_path / "m.onnx").difference < 1e-3
    notes = onnx.load(str(tmp_path / "m.onnx")).metadata_props
    held = {entry.key: entry.value for entry in notes}
    assert json.loads(held["modalities"]) == ["t1", "t1ce", "t2", "flair"]
    assert json.loads(held["preparation"])["orientation"] == "SPL"
    assert json.loads(held["origin"])["kind"] == "nnU-Net v2"


def test_torchscript_is_refused_with_the_reason(tmp_path):
    save(tmp_path / "model.pt", channels=2, levels=2)
    assert_refused(
        brats("export", tmp_path / "model.pt", "-o", tmp_path / "model.ts"),
        "brats exports no TorchScript (model.ts): PyTorch has deprecated it, and loading it runs "
        "code",
        ".onnx",
    )
    with pytest.raises(ConfigError, match=r"model\.h5 is no ONNX file"):
        export(tmp_path / "model.pt", output=tmp_path / "model.h5")


def test_a_network_that_comes_out_differently_is_not_left(tmp_path, monkeypatch):
    save(tmp_path / "model.pt", channels=2, levels=2)
    monkeypatch.setattr(onnx_export, "_difference", lambda *_: float("nan"))
    with pytest.raises(CheckpointError, match="differs from"):
        export(tmp_path / "model.pt", output=tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    imported = builtins.__import__

    def missing(name, *words, **more):
        if name.startswith("onnx"):
            raise ImportError(name, name="onnx")
        return imported(name, *words, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match="exporting needs onnx") as caught:
        export(tmp_path / "model.pt", output=tmp_path / "model.onnx")
    assert "brats-cli[onnx]" in caught.value.hint


def test_the_command_prints_what_a_program_has_to_know(tmp_path):
    save(tmp_path / "model.pt", channels=2, levels=3)
    words = ("export", tmp_path / "model.pt", "-o", tmp_path / "model.onnx")
    made = json.loads(stdout_of(*words, "--json"))
    assert (made["opset"], made["multiple"], made["outputs"]) == (18, 4, ["WT", "TC", "ET"])
    assert_refused(brats(*words), f"{tmp_path}/model.onnx exists already", "--overwrite")
    assert "t1 t1ce t2 flair" in stdout_of(*words, "--overwrite")


@pytest.mark.real
@needs_real
def test_a_real_case_has_the_same_masks(tmp_path):
    from brats_cli.core.data.cases import read_images
    from brats_cli.core.data.finding import case_at
    from brats_cli.core.prepared.preparation import prepare

    made = save(tmp_path / "model.pt", channels=8, levels=4)
    export(tmp_path / "model.pt", output=tmp_path / "model.onnx")
    images = prepare(read_images(case_at(REAL / "cases/BraTS2021_00006"))).images
    images = images[None, :, : images.shape[1] // 8 * 8, : images.shape[2] // 8 * 8]
    images = images[..., : images.shape[-1] // 8 * 8]
    with torch.inference_mode():
        wanted = made(torch.from_numpy(images)).numpy()
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    found = session.run(None, {"images": images})[0]
    assert np.abs(found - wanted).max() <= 1e-3
    assert 0.01 < (wanted > 0).mean() < 0.99
    # A voxel whose logit is 0 to rounding may fall on either side.
    sure = np.abs(wanted) > 1e-5
    assert ((found > 0) == (wanted > 0))[sure].all()
