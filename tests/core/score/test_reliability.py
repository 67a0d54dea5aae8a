import json

import numpy as np
import pytest
from helpers import assert_refused, brats, save_nifti, stdout_of

from brats_cli.core.errors import CaseError, UnreadableFileError
from brats_cli.core.score.reliability import Reliability


def test_the_expected_calibration_error_by_hand():
    # Of ten voxels at 0.8 six are tumour, of ten at 0.3 three; those below 0.01 do not count.
    probability = np.array([0.8] * 10 + [0.3] * 10 + [0.001] * 100)
    truth = np.array([True] * 6 + [False] * 4 + [True] * 3 + [False] * 7 + [False] * 100)
    found = Reliability.of(probability, truth)
    assert found.ece == pytest.approx((10 * 0.2 + 10 * 0) / 20)
    assert found.voxels.tolist() == [0, 0, 0, 10, 0, 0, 0, 0, 10, 0]
    content = found.content()
    assert content["frequency"][8] == pytest.approx(0.6)
    assert content["probability"][3] == pytest.approx(0.3)
    assert content["probability"][0] is None


def test_cases_add_up_by_voxels():
    sure = Reliability.of(np.array([1.0]), np.array([True]))
    wrong = Reliability.of(np.array([1.0, 1.0, 1.0]), np.array([False, False, False]))
    assert (sure + wrong).ece == pytest.approx(3 / 4)
    nothing = Reliability.of(np.zeros(4), np.zeros(4, bool))
    assert np.isnan(nothing.ece)
    assert nothing.content()["ece"] is None


@pytest.fixture
def scored(tmp_path):
    """A case of 40 voxels in WT with a probability of 0.75, of which 20 are tumour."""
    reference, predicted = np.zeros((2, 8, 8, 8), np.uint8)
    reference[0, :5, :4], predicted[0, :5, :8] = 2, 2
    probability = np.zeros((8, 8, 8, 3), np.float32)
    probability[0, :5, :8, 0] = 0.75
    save_nifti(tmp_path / "ref/BraTS2021_00001_seg.nii.gz", reference)
    save_nifti(tmp_path / "out/BraTS2021_00001.nii.gz", predicted)
    save_nifti(tmp_path / "out/BraTS2021_00001_probabilities.nii.gz", probability)
    words = ("evaluate", tmp_path / "out", tmp_path / "ref", "--labels", "brats2020")
    return (*words, "--reference-labels", "brats2020", "--workers", "0")


def test_evaluate_draws_and_prints_it(scored, tmp_path):
    shown = stdout_of(*scored, "--reliability", tmp_path / "r.png")
    [line] = [line.split() for line in shown.splitlines() if line.split()[1:2] == ["40"]]
    assert line == ["WT", "40", "0.2500"]
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads(stdout_of(*scored, "--reliability", tmp_path / "s.png", "--json"))
    assert report["reliability"]["WT"]["ece"] == pytest.approx(0.25)
    assert report["reliability"]["TC"]["ece"] is None
    assert "reliability" not in json.loads(stdout_of(*scored, "--json"))


def test_without_probabilities_it_says_who_writes_them(scored, tmp_path):
    (tmp_path / "out/BraTS2021_00001_probabilities.nii.gz").unlink()
    assert_refused(
        brats(*scored, "--reliability", tmp_path / "r.png"),
        "case BraTS2021_00001 has no probabilities: there is no "
        f"{tmp_path}/out/BraTS2021_00001_probabilities.nii.gz",
        "brats predict --probabilities",
    )
    assert issubclass(CaseError, Exception)


def test_maps_of_something_else_are_refused(scored, tmp_path):
    path = tmp_path / "out/BraTS2021_00001_probabilities.nii.gz"
    save_nifti(path, np.full((8, 8, 8, 3), 50, np.float32))
    result = brats(*scored, "--reliability", tmp_path / "r.png")
    assert result.exit_code == 3
    assert "it holds no probabilities of WT, TC, ET" in result.stderr
    assert issubclass(UnreadableFileError, Exception)
