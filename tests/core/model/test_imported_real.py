"""The same as `test_imported`, on two real cases and with windows of the real sizes."""

import warnings

import numpy as np
import peers
import pytest
import torch
from helpers import REAL, needs_real

from brats_cli.core.data.finding import case_at
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.imported import import_model
from brats_cli.core.predict.predictor import Predictor
from brats_cli.core.prepared.preparation import to_native

pytestmark = [pytest.mark.real, pytest.mark.slow, needs_real]

CASES = ["BraTS2021_00006", "BraTS-GLI-00000-000"]


def segment(model, case):
    predictor = Predictor([Checkpoint.load(model)], torch.device("cpu"))
    loaded = predictor.load(case)
    samples = predictor.compute(loaded)
    found = [to_native(each, loaded.affine, loaded.grid) for each in samples.mean.numpy()]
    return np.stack(found), predictor.decode(loaded, samples).labels


def images(case, *names):
    return [case.images[name].path for name in names]


@pytest.mark.parametrize("name", CASES)
def test_the_bundle(name, tmp_path):
    case = case_at(REAL / "cases" / name)
    network = peers.save_bundle(tmp_path / "bundle")
    import_model(tmp_path / "bundle", output=tmp_path / "model.pt")
    files = images(case, "t1ce", "t1", "t2", "flair")
    theirs, labels = peers.bundle_probabilities(network, files, (240, 240, 160))
    found, ours = segment(tmp_path / "model.pt", case)
    assert theirs.std() > 0.1
    assert np.abs(found - theirs[[1, 0, 2]]).max() <= 1e-3
    assert (ours == labels).mean() >= 0.9999


@pytest.mark.parametrize("name", CASES)
def test_auto3dseg(name, tmp_path):
    case = case_at(REAL / "cases" / name)
    network = peers.save_auto3dseg(tmp_path / "model.pt", roi=(96, 96, 96))
    import_model(tmp_path / "model.pt", output=tmp_path / "ours.pt")
    files = images(case, "flair", "t1ce", "t1", "t2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MONAI's Orientationd
        theirs = peers.auto3dseg_probabilities(network, files, (96, 96, 96))
    found, _ = segment(tmp_path / "ours.pt", case)
    assert theirs.std() > 0.1
    assert np.abs(found - theirs).max() <= 1e-3
    assert ((found >= 0.5) == (theirs > 0.5)).mean() >= 0.9999


@pytest.mark.parametrize("labels", ["labels", "regions"])
@pytest.mark.parametrize("name", CASES)
def test_nnunet(name, labels, tmp_path):
    case = case_at(REAL / "cases" / name)
    described = peers.CLASS_LABELS if labels == "labels" else peers.REGION_LABELS
    plans = peers.nnunet_plans((96, 112, 80), residual=labels == "labels")
    peers.save_nnunet(tmp_path / "n", plans, peers.nnunet_dataset(described))
    import_model(tmp_path / "n", output=tmp_path / "model.pt")
    files = images(case, "t1", "t1ce", "t2", "flair")
    theirs, label_map = peers.nnunet_prediction(tmp_path / "n", files)
    found, ours = segment(tmp_path / "model.pt", case)
    if labels == "labels":
        theirs = np.stack([theirs[1:].sum(axis=0), theirs[2:].sum(axis=0), theirs[3]])
        theirs[:, (found == 0).all(axis=0)] = 0  # where nnU-Net cut off: all background
    assert theirs.std() > 0.1
    assert np.abs(found - theirs).max() <= 1e-3
    assert (ours == np.array([0, 2, 1, 3])[label_map]).mean() >= 0.9999
