"""The whole way, from a folder of scans to scores and a mesh, as a user would type it."""

import csv
import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import yaml
from helpers import REAL, TINY, needs_real, stdout_of
from stl import mesh as stl

from brats_cli.core.data.phantom import write_phantoms


def learn_and_segment(data, folder):
    """Split, train and predict in `folder`; the test cases, and the folder of their label maps."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    splits, run, predictions = folder / "splits.yaml", folder / "runs/tiny", folder / "predictions"
    stdout_of("split", data, "-o", splits, "--ratios", "40/30/30")
    stdout_of("train", splits, "-c", folder / "tiny.yaml", "--device", "cpu", "-o", run)
    assert {"best.pt", "last.pt", "log.csv", "config.yaml", "splits.yaml"} <= {
        path.name for path in run.iterdir()
    }
    test = yaml.safe_load(splits.read_text())["test"]
    assert test
    paths = [data / case_id for case_id in test]
    stdout_of("predict", *paths, "-o", predictions, "--model", run, "--device", "cpu")
    return test, predictions


@pytest.mark.slow
def test_the_whole_way_on_phantoms(tmp_path):
    cases = write_phantoms(tmp_path / "data", cases=9, shape=(40, 48, 36))
    test, predictions = learn_and_segment(tmp_path / "data", tmp_path)

    # What two steps have learnt is worth nothing; the experts' own labels score 1 in every region.
    stdout_of("evaluate", predictions, tmp_path / "data", "-o", tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["case"], row["region"]) for row in rows} == {
        (case_id, region) for case_id in test for region in ("WT", "TC", "ET")
    }
    report = json.loads(stdout_of("evaluate", tmp_path / "data", tmp_path / "data", "--json"))
    assert report["summary"]["WT"]["dice"]["mean"] == 1
    assert report["summary"]["WT"]["dice"]["n"] == len(cases)

    # The mesh of a phantom's label map holds the tumour that was put in, by its formula. Voxels
    # meet the formula to 0.6 % at full size; at half the size, to twice that.
    case = cases[0]
    label_map = case.folder / f"{case.folder.name}-seg.nii.gz"
    stdout_of("mesh", label_map, "--region", "WT", "-o", tmp_path / "tumour.stl")
    surface = stl.Mesh.from_file(str(tmp_path / "tumour.stl"))
    assert surface.is_closed(exact=True)
    expected = sum(case.volumes_mm3.values())
    assert float(surface.get_mass_properties()[0]) == pytest.approx(expected, rel=0.012)


def test_a_prediction_lies_on_its_cases_grid(tmp_path):
    write_phantoms(tmp_path / "data", cases=9, shape=(40, 48, 36))
    test, predictions = learn_and_segment(tmp_path / "data", tmp_path)
    found = nib.load(predictions / f"{test[0]}.nii.gz")
    scan = nib.load(tmp_path / "data" / test[0] / f"{test[0]}-t1c.nii.gz")
    assert found.shape == scan.shape
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(found.affine, scan.affine)
    assert [int(found.header[f"{form}_code"]) for form in ("sform", "qform")] == [
        int(scan.header[f"{form}_code"]) for form in ("sform", "qform")
    ]


@pytest.mark.slow
def test_the_command_itself_works_in_a_folder_with_the_defaults(tmp_path):
    # The mission's own lines, typed where the step before was run.
    write_phantoms(tmp_path / "data", cases=9, shape=(40, 48, 36))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    case = sorted((tmp_path / "data").iterdir())[0].name
    for words in (
        ["split", "data/"],
        ["train", "-c", "tiny.yaml", "--device", "cpu"],
        ["predict", f"data/{case}", "-o", "seg.nii.gz", "--device", "cpu"],
        ["mesh", f"data/{case}/{case}-seg.nii.gz", "--region", "WT", "-o", "seg_WT.stl"],
    ):
        subprocess.run(
            [sys.executable, "-c", "from brats_cli.app import main; main()", *words],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
    made = {path.name for path in tmp_path.iterdir()}
    assert {"splits.yaml", "brats-store", "runs", "seg.nii.gz", "seg_WT.stl"} <= made
    newest = (tmp_path / "runs/latest").read_text().strip()
    assert (tmp_path / "runs" / newest / "best.pt").is_file()


@pytest.mark.real
@pytest.mark.slow
@needs_real
def test_the_whole_way_on_real_cases_of_three_years(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    names = ["Brats18_2013_2_1", "BraTS20_Training_001", "BraTS2021_01481", "BraTS-GLI-00000-000"]
    for name in names:
        (data / name).symlink_to(REAL / "cases" / name)
    test, predictions = learn_and_segment(data, tmp_path)
    assert {path.name for path in predictions.glob("*.nii.gz")} == {f"{i}.nii.gz" for i in test}
    stdout_of("evaluate", predictions, data, "-o", tmp_path / "scores.csv")

    # The mesh of an expert's label map is closed and holds the voxels that README.md of the data
    # counts: 4,514 + 34,894 + 21,677.
    label_map = REAL / "cases/Brats18_2013_2_1/Brats18_2013_2_1_seg.nii.gz"
    stdout_of("mesh", label_map, "--region", "WT", "-o", tmp_path / "tumour.stl")
    surface = stl.Mesh.from_file(str(tmp_path / "tumour.stl"))
    assert surface.is_closed(exact=True)
    assert float(surface.get_mass_properties()[0]) == pytest.approx(61_085, rel=0.01)
