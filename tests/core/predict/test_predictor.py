import itertools
import math
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from brats_cli.core.data.cases import read_images
from brats_cli.core.data.finding import case_at
from brats_cli.core.data.labels import SCHEMES, noted_scheme
from brats_cli.core.data.naming import companion
from brats_cli.core.errors import (
    BratsError,
    ConfigError,
    MissingModalityError,
    OutputExistsError,
)
from brats_cli.core.images.grid import Grid
from brats_cli.core.images.nifti import read_labels
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.decision import Decision
from brats_cli.core.model.network import UNet3D
from brats_cli.core.predict import predictor as prediction
from brats_cli.core.predict.predictor import (
    PredictConfig,
    Predictor,
    Samples,
    Segmentation,
    doubt,
    entropy,
)
from brats_cli.core.prepared.preparation import prepare
from brats_cli.core.train.config import TrainConfig

CPU = torch.device("cpu")
BRATS2023 = SCHEMES["brats2023"]


def checkpoint(*, answer=None, seed=0, dropout=0.0, decision=None, **changes):
    """A checkpoint of random weights; one with an `answer` finds WT, TC and ET so anywhere."""
    config = TrainConfig(
        patch_size=64,  # phantoms are smaller: one pass
        precision="float32",
        network=UNetConfig(channels=2, levels=2),
        augmentation={"modality_dropout": dropout},
        **changes,
    )
    torch.manual_seed(seed)
    net = UNet3D(config.network, in_channels=len(config.modalities), out_channels=3)
    with torch.no_grad():
        if answer is None:
            net.output.weight *= 20  # probabilities of all sizes
        else:
            net.output.weight.zero_()
            net.output.bias.copy_(torch.logit(torch.tensor(answer)))
    return Checkpoint(
        net.state_dict(),
        config.model_dump(mode="json"),
        "brats2023",
        1,
        {},
        decision=decision,
    )


def segment(case, *checkpoints, **options):
    return Predictor(checkpoints, CPU, PredictConfig(**options)).segment(case)


@pytest.fixture
def case(phantoms):
    return case_at(phantoms / "BraTS-GLI-00000-000")


@pytest.fixture
def without(phantoms, tmp_path):
    """A function that copies a case and leaves out some of its files."""

    def copied(*suffixes):
        source = phantoms / "BraTS-GLI-00002-000"
        folder = shutil.copytree(source, tmp_path / source.name)
        for suffix in suffixes:
            (folder / f"{source.name}-{suffix}.nii.gz").unlink()
        return case_at(folder)

    return copied


def brain_of(case):
    return np.any([np.asarray(nib.load(f.path).dataobj) for f in case.images.values()], axis=0)


# --- a case ------------------------------------------------------------------------------------


def test_a_segmentation_lies_on_the_cases_own_grid(case, tmp_path):
    # WT everywhere that the network sees, which is the brain box: all of that is edema.
    found = segment(case, checkpoint(answer=(0.9, 0.1, 0.1)))
    path = tmp_path / "seg.nii.gz"
    found.write(path)
    image, of = nib.load(path), nib.load(case.images["t1"].path)
    np.testing.assert_array_equal(image.affine, of.affine)
    assert (image.shape, image.get_data_dtype()) == (of.shape, np.uint8)
    for code in ("sform_code", "qform_code"):
        assert image.header[code] == of.header[code] == 1
    written = read_labels(path)
    assert noted_scheme(written.note) is BRATS2023
    assert set(np.unique(written.data)) == {0, 2}
    assert (written.data[brain_of(case)] == 2).all()
    assert found.volumes_mm3() == {"WT": (written.data == 2).sum(), "TC": 0, "ET": 0}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("answer", "scheme", "label"),
    [
        ((0.9, 0.9, 0.9), None, 3),
        ((0.9, 0.9, 0.1), None, 1),
        ((0.9, 0.9, 0.9), "brats2020", 4),
        ((0.9, 0.1, 0.1), "msd", 1),
        ((0.5, 0.1, 0.1), None, 2),  # from one half on, a voxel belongs to the region
        ((0.49, 0.1, 0.1), None, 0),
    ],
)
def test_regions_become_labels_of_the_scheme(case, answer, scheme, label):
    found = segment(case, checkpoint(answer=answer), labels=SCHEMES.get(scheme))
    assert set(np.unique(found.labels)) <= {0, label}
    assert (found.labels == label).sum() > found.labels.size / 2
    assert found.scheme is SCHEMES[scheme or "brats2023"]


def test_volumes_in_mm3_by_hand():
    # Voxels of 1 x 2 x 3 mm: 3 edema, 2 necrosis, 1 enhancing.
    labels = np.array([2, 2, 2, 1, 1, 3, 0], np.uint8).reshape(7, 1, 1)
    grid = Grid((7, 1, 1), np.diag([-1.0, 2, 3, 1]))
    volumes = Segmentation(labels, grid, BRATS2023).volumes_mm3()
    assert volumes == pytest.approx({"WT": 36, "TC": 18, "ET": 6})


def test_an_existing_file_is_kept(tmp_path):
    labels = np.zeros((2, 2, 2), np.uint8)
    found = Segmentation(labels, Grid((2, 2, 2), np.eye(4)), BRATS2023)
    path = tmp_path / "seg.nii.gz"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match=f"{path} exists already"):
        found.write(path)
    assert path.read_text() == "mine"
    found.write(path, overwrite=True)
    assert read_labels(path).shape == (2, 2, 2)


def test_a_case_that_no_memory_suffices_for_is_refused_before_it_is_read(case, monkeypatch):
    monkeypatch.setattr(prediction, "free_memory", lambda: 2**20)
    with pytest.raises(BratsError) as caught:
        segment(case, checkpoint())
    # 32 * 36 * 34 voxels of 4 * 9 + 8 bytes are 1.6 MiB.
    assert str(caught.value) == (
        "case BraTS-GLI-00000-000 has 39,168 voxels and needs 0.0 GiB of memory; 0.0 GiB are free"
    )
    assert "crop its images" in caught.value.hint


def test_a_model_that_has_diverged_is_named(case):
    with pytest.raises(BratsError) as caught:
        segment(case, checkpoint(answer=(math.nan, 0.5, 0.5)))
    assert str(caught.value) == (
        "the model's probabilities for case BraTS-GLI-00000-000 are not finite"
    )
    assert "lower learning rate" in caught.value.hint


# --- however it was stored ---------------------------------------------------------------------


def stored_as(case, folder, change):
    """A copy of a case, each image changed by a function of nibabel images."""
    folder.mkdir()
    for image in case.images.values():
        nib.save(change(nib.load(image.path)), folder / image.path.name)
    return case_at(folder)


ORIENTATIONS = [
    np.array([*zip(axes, signs, strict=True)])
    for axes, signs in [((0, 1, 2), (-1, 1, -1)), ((2, 0, 1), (1, 1, 1)), ((1, 2, 0), (-1, 1, -1))]
]


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=["flipped", "permuted", "both"])
def test_a_case_stored_with_other_axes_is_segmented_the_same(case, tmp_path, orientation):
    other = stored_as(case, tmp_path / "other", lambda image: image.as_reoriented(orientation))
    plain = segment(case, checkpoint())
    turned = segment(other, checkpoint())
    image = nib.Nifti1Image(plain.labels, plain.grid.affine).as_reoriented(orientation)
    assert len(np.unique(plain.labels)) > 1
    np.testing.assert_array_equal(turned.labels, np.asarray(image.dataobj))
    np.testing.assert_allclose(turned.grid.affine, image.affine)


@pytest.mark.parametrize("shape", [(5, 5, 1), (1, 1, 1), (2, 20, 3)])
def test_thin_and_tiny_images_are_segmented(case, tmp_path, shape):
    def cut(image):
        data = np.asarray(image.dataobj)[10:, 10:, 10:]
        return nib.Nifti1Image(data[tuple(map(slice, shape))], image.affine)

    found = segment(stored_as(case, tmp_path / "cut", cut), checkpoint(answer=(0.9, 0.1, 0.1)))
    assert found.labels.shape == shape
    assert (found.labels == 2).all()


def test_a_2_mm_grid_gets_labels_of_its_own_size(case, tmp_path):
    def coarser(image):
        data = np.asarray(image.dataobj)[::2, ::2, ::2]
        return nib.Nifti1Image(data, image.affine @ np.diag([2, 2, 2, 1]))

    other = stored_as(case, tmp_path / "coarse", coarser)
    found = segment(other, checkpoint(answer=(0.9, 0.9, 0.1)))
    brain = brain_of(other)
    assert found.labels.shape == brain.shape
    assert (found.labels[brain] == 1).all()
    assert found.volumes_mm3()["TC"] == 8 * (found.labels == 1).sum()


# --- several answers ---------------------------------------------------------------------------


def test_the_mean_of_an_ensemble_decides(case):
    # WT 0.9 and 0.3: 0.6. TC 0.9 and 0: 0.45.
    models = checkpoint(answer=(0.9, 0.9, 0.1)), checkpoint(answer=(0.3, 1e-6, 1e-6))
    assert set(np.unique(segment(case, *models).labels)) == {0, 2}


def test_an_ensemble_is_computed_as_each_of_its_models_alone(case):
    models = [checkpoint(seed=seed) for seed in range(3)]
    alone = [mean_of(case, model) for model in models]
    np.testing.assert_allclose(mean_of(case, *models), np.mean(alone, axis=0), atol=1e-6)
    assert np.std(alone, axis=0).max() > 0.01


def mean_of(case, *checkpoints, **options):
    predictor = Predictor(checkpoints, CPU, PredictConfig(**options))
    return predictor.compute(predictor.load(case)).mean.numpy()


def test_flips_are_undone_before_they_are_averaged(case):
    model = checkpoint()
    images = Predictor([model], CPU).load(case).images
    net = model.network()
    expected = []
    for signs in itertools.product((1, -1), repeat=3):
        turn = (slice(None), *(slice(None, None, sign) for sign in signs))
        # With 2 voxels of background on each side, and one more behind an odd axis.
        padded = torch.zeros(4, *(side + 4 + side % 2 for side in images.shape[1:]))
        inside = (slice(None), *(slice(2, 2 + side) for side in images.shape[1:]))
        padded[inside] = torch.tensor(images[turn].copy())
        with torch.no_grad():
            found = torch.sigmoid(net(padded[None]))[0].numpy()
        expected.append(found[inside][turn])
    np.testing.assert_allclose(mean_of(case, model, tta=True), np.mean(expected, axis=0), atol=1e-5)
    assert np.std(expected, axis=0).max() > 0.01


def test_progress_of_flips_and_models_adds_up_to_1(case):
    predictor = Predictor([checkpoint(), checkpoint()], CPU, PredictConfig(tta=True))
    shares = []
    predictor.compute(predictor.load(case), shares.append)
    assert shares == pytest.approx([1 / 16] * 16)


def test_mean_and_spread_by_hand():
    # 0.9, 0.6 and 0.3: mean 0.6, variance (0.09 + 0 + 0.09) / 3 = 0.06.
    samples = Samples()
    for value in (0.9, 0.6, 0.3):
        samples.add(torch.full((1, 1, 1, 1), value), spread=True)
    assert samples.mean.item() == pytest.approx(0.6)
    assert samples.uncertainty().item() == pytest.approx(200 * 0.06**0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("values", "expected"), [((1, 0), 100), ((0.7, 0.7), 0), ((1, 1, 0, 0), 100)]
)
def test_uncertainty_of_several_answers_is_from_0_to_100(values, expected):
    samples = Samples()
    for value in values:
        samples.add(torch.full((1, 1, 1, 1), float(value)), spread=True)
    assert samples.uncertainty().item() == pytest.approx(expected)


def test_uncertainty_of_one_answer_is_its_entropy():
    # H(1/4) = 2 - 3/4 log2 3 bits.
    values = torch.tensor([0, 0.25, 0.5, 0.75, 1])[None, None, None]
    samples = Samples()
    samples.add(values, spread=False)
    quarter = 100 * (2 - 0.75 * math.log2(3))
    np.testing.assert_allclose(
        samples.uncertainty()[0, 0, 0], [0, quarter, 100, quarter, 0], rtol=1e-5
    )


def test_entropy_of_certainty_is_0_without_a_warning():
    np.testing.assert_array_equal(entropy(np.array([0.0, 1.0])), [0, 0])


def test_models_of_other_modalities_make_no_ensemble():
    with pytest.raises(ConfigError) as caught:
        Predictor([checkpoint(), checkpoint(modalities=("flair", "t1ce"))], CPU)
    assert str(caught.value) == (
        "these models cannot be averaged: one was trained on the modalities t1, t1ce, t2, flair, "
        "another on flair, t1ce"
    )
    assert (
        caught.value.hint
        == "predict with each of them separately, or train them with the same settings"
    )


# --- from probabilities to labels --------------------------------------------------------------


def test_the_checkpoint_knows_the_thresholds(case):
    decision = Decision({"WT": 0.3, "TC": 0.6})
    answer = (0.4, 0.55, 0.4)
    assert set(np.unique(segment(case, checkpoint(answer=answer)).labels)) == {0, 1}
    found = segment(case, checkpoint(answer=answer, decision=decision))
    assert set(np.unique(found.labels)) == {0, 2}


def test_an_ensemble_decides_by_the_mean_of_its_thresholds(case):
    # 0.3 and 0.5 make 0.4: 0.41 is tumour.
    low = checkpoint(answer=(0.41, 0.1, 0.1), decision=Decision({"WT": 0.3}))
    assert segment(case, low, checkpoint(answer=(0.41, 0.1, 0.1))).labels.any()


def test_the_smallest_enhancing_tumour_is_in_mm3(case, tmp_path):
    def coarser(image):  # the same voxels, each of 8 mm3
        return nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([2, 2, 2, 1]))

    everything = checkpoint(answer=(0.9, 0.9, 0.9))
    voxels = int((segment(case, everything).labels == 3).sum())
    more = replace(everything, decision=Decision(smallest_et_mm3=voxels + 1))
    assert set(np.unique(segment(case, more).labels)) == {0, 1}
    large = stored_as(case, tmp_path / "large", coarser)
    assert set(np.unique(segment(large, more).labels)) == {0, 3}


# --- how far to trust it -----------------------------------------------------------------------


def test_doubt_by_hand():
    # 500 voxels of 0.8 make the mask, 500 of 0.2 do not: the overlap to be expected is 400, the
    # sizes are 500 and 500, so with 1000 mm3 for smoothing 1 - (2 * 400 + 1000) / 2000.
    probability = np.repeat([0.8, 0.2], 500).reshape(10, 10, 10)
    assert doubt(probability, 0.5) == pytest.approx(0.1)
    # With a threshold that all pass: 1 - (2 * 500 + 1000) / (1000 + 500 + 1000).
    assert doubt(probability, 0.1) == pytest.approx(0.2)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_certainty_leaves_no_doubt(value):
    assert doubt(np.full((5, 5, 5), value), 0.5) == pytest.approx(0)


def test_a_few_voxels_more_or_less_raise_little_doubt():
    # 10 voxels of 0.9: 1 - (18 + 1000) / (10 + 9 + 1000).
    assert doubt(np.full((10, 1, 1), 0.9), 0.5) == pytest.approx(1 / 1019)


def test_review_is_the_mean_doubt_of_the_regions(case):
    found = segment(case, checkpoint(answer=(0.9, 0.6, 0.1)))
    assert list(found.doubt) == ["WT", "TC", "ET"]
    assert found.doubt["WT"] < found.doubt["TC"]
    assert found.review == pytest.approx(sum(found.doubt.values()) / 3)


def test_probabilities_are_written_so_that_the_threshold_gives_the_same_masks(case, tmp_path):
    found = segment(case, checkpoint(seed=2), probabilities=True)
    path = tmp_path / "seg.nii.gz"
    found.write(path)
    image = nib.load(companion(path, "probabilities"))
    assert image.shape == (*found.labels.shape, 3)
    assert (image.get_data_dtype(), image.dataobj.slope) == (np.int16, 2**-14)
    np.testing.assert_array_equal(image.affine, found.grid.affine)
    values = image.get_fdata(dtype=np.float32)
    assert 0 <= values.min() < 0.4
    assert 0.6 < values.max() <= 1
    masks = np.moveaxis(values >= 0.5, -1, 0)
    np.testing.assert_array_equal(BRATS2023.paint(masks), found.labels)
    assert b"WT,TC,ET" in bytes(image.header["descrip"])


def test_a_probability_just_below_the_threshold_is_written_below_it(case):
    # A quarter of a step below: rounded to the nearest step, it would be 0.5.
    found = segment(case, checkpoint(answer=(0.5 - 2**-16, 0.1, 0.1)), probabilities=True)
    assert found.maps["probabilities"][..., 0].max() == 2**13 - 1
    assert not found.labels.any()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        # H(0.9) = 0.469 bits, H(0.5) = 1, H(0.1) = H(0.9)
        ([(0.9, 0.5, 0.1)], [47, 100, 47]),
        # standard deviations 0.2, 0 and 0.05, of 0.5
        ([(0.9, 0.5, 0.1), (0.5, 0.5, 0.2)], [40, 0, 10]),
    ],
    ids=["entropy of one", "spread of two"],
)
def test_uncertainty_is_written_from_0_to_100(case, tmp_path, answers, expected):
    found = segment(case, *(checkpoint(answer=each) for each in answers), uncertainty=True)
    path = tmp_path / "seg.nii.gz"
    found.write(path)
    image = nib.load(companion(path, "uncertainty"))
    assert image.get_data_dtype() == np.uint8
    values = np.asarray(image.dataobj)
    assert values[brain_of(case)].tolist() == [expected] * int(brain_of(case).sum())
    outside = values[0, 0, 0].tolist()  # nothing to doubt where the network did not look
    assert outside == [0, 0, 0]


def test_flips_that_agree_are_certain(case):
    found = segment(case, checkpoint(answer=(0.9, 0.5, 0.2)), tta=True, uncertainty=True)
    assert not found.maps["uncertainty"].any()


# --- missing sequences -------------------------------------------------------------------------


def test_only_the_modalities_that_the_network_was_trained_on_are_needed(without):
    model = checkpoint(answer=(0.9, 0.1, 0.1), modalities=("flair", "t1ce"))
    found = segment(without("t1n", "t2w"), model)
    assert found.labels.any()
    assert found.modalities == ("flair", "t1ce")


def test_a_missing_sequence_is_named_and_so_is_the_way_out(without):
    with pytest.raises(MissingModalityError) as caught:
        segment(without("t1n", "t2w"), checkpoint())
    assert str(caught.value) == "case BraTS-GLI-00002-000 has no t1, t2 (found: t1ce, flair)"
    assert caught.value.hint == (
        "use --allow-missing to segment it all the same, with worse results; or train a model for "
        "missing sequences with --set augmentation.modality_dropout=0.3"
    )


@pytest.mark.parametrize(
    ("model", "options"),
    [(checkpoint(dropout=0.3), {}), (checkpoint(), {"allow_missing": True})],
    ids=["trained for it", "told to"],
)
@pytest.mark.parametrize("missing", [("t1n",), ("t1n", "t2w"), ("t1n", "t2w", "t2f")])
def test_missing_sequences_are_blank_as_in_training(without, model, options, missing):
    case = without(*missing)
    predictor = Predictor([model], CPU, PredictConfig(**options))
    found = predictor.load(case)
    prepared = iter(prepare(read_images(case, tuple(case.images))).images)
    for modality, image in zip(predictor.modalities, found.images, strict=True):
        expected = next(prepared) if modality in case.images else np.zeros_like(image)
        np.testing.assert_array_equal(image, expected)
    assert found.modalities == tuple(case.images)
    assert predictor.segment(case).modalities == found.modalities


def test_every_model_of_an_ensemble_must_know_missing_sequences(without):
    case = without("t1n")
    with pytest.raises(MissingModalityError):
        segment(case, checkpoint(dropout=0.3), checkpoint())
    assert segment(case, checkpoint(dropout=0.3), checkpoint(dropout=0.1)).labels.shape


def test_a_case_with_nothing_that_the_model_knows_is_refused(without):
    case = without("t1n", "t2w", "t2f")
    model = checkpoint(dropout=0.3, modalities=("t1", "t2"))
    with pytest.raises(MissingModalityError) as caught:
        segment(case, model, allow_missing=True)
    assert str(caught.value) == "case BraTS-GLI-00002-000 has no t1, t2 (found: t1ce)"
    assert caught.value.hint.startswith("it has none of the sequences that the model uses")
