import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import helpers
import nibabel as nib
import numpy as np
import pytest
from helpers import assert_refused, save_nifti

from brats_cli import console

brats = partial(helpers.brats, "evaluate")

# Ten voxels in a row: Dice WT 10/11 = 0.909, TC 6/8, ET 4/5; see tests/core/test_evaluation.py.
TRUTH = (0, 1, 1, 4, 4, 2, 2, 0, 0, 0)
GUESS = (0, 0, 1, 4, 4, 4, 2, 0, 0, 0)
INTERVALS = ("-0.371", "to", "2.171", "0.800", "to", "1.000")
NO_ET = (0, 1, 1, 1, 1, 2, 2, 0, 0, 0)


def put(path, labels):
    save_nifti(path, np.array(labels, dtype=np.uint8).reshape(-1, 1, 1))
    return path


def cells(line):
    return [cell.strip() for cell in line.split()]


@pytest.fixture
def folders(tmp_path):
    put(tmp_path / "ref/BraTS20_Training_001_seg.nii.gz", TRUTH)
    put(tmp_path / "pred/BraTS20_Training_001.nii.gz", GUESS)
    put(tmp_path / "ref/BraTS20_Training_002_seg.nii.gz", NO_ET)
    put(tmp_path / "pred/BraTS20_Training_002.nii.gz", NO_ET)
    return tmp_path / "pred", tmp_path / "ref"


def test_the_tables_show_cases_means_and_defined_means_within_80_columns(folders):
    result = brats(*folders)
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == "brats2020: both empty Dice 1, HD95 0 mm; one empty Dice 0, HD95 373.13 mm"
    assert cells(lines[3]) == [
        "BraTS20_Training_001",
        "WT",
        "0.909",
        "0.833",
        "0.833",
        "1.0000",
        "1.00",
        "0.50",
    ]
    # The prediction of case 2 is right, and it has no enhancing tumour to be sensitive to.
    assert cells(lines[8]) == [
        "BraTS20_Training_002",
        "ET",
        "1.000",
        "1.000",
        "-",
        "1.0000",
        "0.00",
        "0.00",
    ]
    assert lines[10] == "mean of 2 cases"
    # Dice (0.8 + 1) / 2; without the rule, 0.8 of the one case that has an ET. Both cases have a
    # specificity, one a sensitivity. Jaccard 2/3.
    assert cells(lines[14])[:4] == ["ET", "1-2", "0.900", "0.833"]
    assert cells(lines[15])[:5] == ["ET", "defined", "1-2", "0.800", "0.667"]
    assert lines[17:19] == ["empty masks:", "  ET both empty: BraTS20_Training_002"]
    # Two values d apart: their standard error is d/2, Student's t for one degree of freedom 12.706.
    assert lines[20] == "95 % intervals of the mean"
    assert cells(lines[26]) == ["ET", "Dice", "0.900", *INTERVALS]


def test_many_cases_are_summarized_only(tmp_path):
    for number in range(21):
        put(tmp_path / f"ref/BraTS20_Training_{number:03}_seg.nii.gz", TRUTH)
        put(tmp_path / f"pred/BraTS20_Training_{number:03}.nii.gz", GUESS)
    result = brats(tmp_path / "pred", tmp_path / "ref", "--workers", 1)
    assert result.stdout.splitlines()[2].rstrip() == "mean of 21 cases"
    assert "BraTS20_Training" not in result.stdout


def test_json_on_stdout_is_all_there_is(folders):
    result = brats(*folders, "--json")
    content = json.loads(result.stdout)
    assert content["format"] == "brats-scores/1"
    assert content["summary"]["ET"]["dice"]["mean"] == pytest.approx(0.9)
    assert content["summary_defined"]["ET"]["dice"]["mean"] == 0.8


def test_every_score_goes_to_the_csv(folders, tmp_path):
    path = tmp_path / "new/scores.csv"
    result = brats(*folders, "-o", path)
    assert result.exit_code == 0
    assert f"wrote {path}" in result.stderr
    assert len(path.read_text().splitlines()) == 1 + 2 * 3


@pytest.mark.parametrize("name", ["distributions.png", "worst_5.png"])
def test_plots_that_exist_are_reported_before_anything_is_scored(folders, tmp_path, name):
    path = tmp_path / "plots" / name
    path.parent.mkdir()
    path.touch()
    result = brats(*folders, "-o", tmp_path / "scores.csv", "--plots", path.parent)
    assert_refused(result, f"{path} exists already", "--overwrite")
    assert not (tmp_path / "scores.csv").exists()


def test_a_csv_that_exists_is_told_before_anything_is_scored(folders, tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("mine")
    result = brats(*folders, "-o", path)
    remedy = "choose another path with -o, or replace it with --overwrite"
    assert_refused(result, f"{path} exists already", remedy)
    assert path.read_text() == "mine"
    assert brats(*folders, "-o", path, "--overwrite").exit_code == 0


def test_left_overs_are_told_on_stderr_and_are_no_error(folders):
    predictions, references = folders
    put(references / "BraTS20_Training_003_seg.nii.gz", TRUTH)
    put(predictions / "BraTS20_Training_009.nii.gz", GUESS)
    result = brats(predictions, references)
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "not scored because they have no reference: BraTS20_Training_009",
        "1 reference has no prediction: BraTS20_Training_003",
    ]


def test_many_left_overs_are_counted(folders):
    for number in range(10, 18):
        put(folders[0] / f"BraTS20_Training_{number:03}.nii.gz", GUESS)
    assert brats(*folders).stderr.splitlines()[0].endswith("BraTS20_Training_014 and 3 more")


def test_a_csv_that_cannot_be_written_does_not_take_the_tables_along(
    folders, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    result = brats(*folders, "-o", tmp_path / "scores.csv")
    assert result.exit_code == 3
    assert "mean of 2 cases" in result.stdout
    assert result.stderr.splitlines()[0] == (
        f"error: cannot write {tmp_path / 'scores.csv'}: No space left on device"
    )
    assert list(tmp_path.glob("*scores*")) == []


def test_a_bad_case_is_listed_at_the_end_and_the_others_are_scored(folders, tmp_path):
    predictions, references = folders
    put(predictions / "BraTS20_Training_001.nii.gz", (0, 7, 0, 0, 0, 0, 0, 0, 0, 0))
    path = tmp_path / "scores.csv"
    result = brats(predictions, references, "-o", path)
    assert result.exit_code == 3
    assert "mean of 1 case " in result.stdout
    assert len(path.read_text().splitlines()) == 1 + 3
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith(f"error: {predictions / 'BraTS20_Training_001.nii.gz'} holds label")
    assert errors[1:] == ["error: 1 of 2 cases failed"]


def test_one_bad_pair_is_two_lines(folders, tmp_path):
    predicted = tmp_path / "notes.nii.gz"
    predicted.write_text("not an image")
    result = brats(predicted, folders[1] / "BraTS20_Training_001_seg.nii.gz", "--json")
    assert_refused(
        result,
        f"cannot read {predicted}: it is not a NIfTI file",
        "is it text, an archive or another format that was renamed?",
    )


def test_a_mean_below_its_threshold_ends_with_status_3_after_the_table(folders):
    limits = ["--fail-under", "TC.dice=0.9", "--fail-under", "ET.dice=0.9"]
    # TC: (0.75 + 1) / 2 = 0.875; ET: 0.9, which is not under 0.9.
    result = brats(*folders, *limits)
    assert result.exit_code == 3
    assert "mean of 2 cases" in result.stdout
    assert result.stderr.splitlines()[0] == "error: TC.dice is 0.875, under 0.9"
    assert len(result.stderr.splitlines()) == 2


def test_means_that_reach_their_thresholds_end_with_status_0(folders):
    result = brats(*folders, "--fail-under", "WT.dice=0.9", "--fail-under", "WT.hausdorff_mm=0.5")
    assert result.exit_code == 0


def test_a_bad_case_and_a_low_mean_are_both_told(folders):
    put(folders[0] / "BraTS20_Training_002.nii.gz", (0, 7, 0, 0, 0, 0, 0, 0, 0, 0))
    result = brats(*folders, "--fail-under", "WT.dice=0.95")
    assert result.exit_code == 3
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors[0] == "error: WT.dice is 0.9091, under 0.95"
    assert "holds label 7" in errors[1]
    assert errors[2:] == ["error: 1 of 2 cases failed"]


def test_a_misspelt_threshold_is_told_before_anything_is_scored(folders):
    result = brats(*folders, "--fail-under", "WT.dcie=0.8")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.splitlines()[1] == " hint: did you mean 'dice'?"


def test_the_tolerance_reaches_the_surface_dice(folders):
    # WT of case 1: of eleven voxels the one at the end is 1 mm off.
    strict = json.loads(brats(*folders, "--json", "--tolerance", 0.5).stdout)
    assert strict["cases"][0]["surface_dice"] == 10 / 11
    assert json.loads(brats(*folders, "--json").stdout)["cases"][0]["surface_dice"] == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX")
@pytest.mark.parametrize("seconds", [0.1, 2], ids=["while starting", "while scoring"])
def test_ctrl_c_ends_every_process_with_status_130_and_no_csv(tmp_path, seconds):
    image = nib.Nifti1Image(np.ones((100, 100, 100), dtype=np.uint8), np.eye(4))
    nib.save(image, tmp_path / "cube.nii.gz")
    for folder, count in (("ref", 300), ("pred", 301)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            link = tmp_path / folder / f"BraTS20_Training_{number:04}.nii.gz"
            link.symlink_to(tmp_path / "cube.nii.gz")
    command = [sys.executable, "-m", "brats_cli", "evaluate"]
    command += ["pred", "ref", "-o", "scores.csv", "--workers", "2"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        # The prediction too many is told before the first process starts.
        told = running.stderr.readline()
        time.sleep(seconds)
        os.killpg(running.pid, signal.SIGINT)  # as the terminal does
        stdout, stderr = running.communicate()
    assert told == "not scored because they have no reference: BraTS20_Training_0300\n"
    assert (running.returncode, stdout) == (-signal.SIGINT, "")  # in a shell 130
    assert "Traceback" not in stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cube.nii.gz", "pred", "ref"]


def test_the_files_are_written_although_nobody_reads_the_table(folders, monkeypatch, tmp_path):
    """As of `brats evaluate ... -o scores.csv | head`."""

    def closed(*_, **__):
        raise console.NobodyReadsError("Broken pipe")

    monkeypatch.setattr(console, "table", closed)
    result = brats(*folders, "-o", tmp_path / "scores.csv")
    assert result.exit_code == 141
    assert (tmp_path / "scores.csv").is_file()
