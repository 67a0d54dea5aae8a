"""Predictions of nnU-Net, whose labels are not in BraTS' order, in folders of any kind."""

import json

import nibabel as nib
import numpy as np
import pytest

from brats_cli.core.data.labels import SCHEMES, write_labels
from brats_cli.core.data.meaning import known_of, values_in
from brats_cli.core.errors import LabelError
from brats_cli.core.images.grid import Grid, Volume

REGIONS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}


def put(folder, **values):
    """Label maps that hold these values, by case id."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for case_id, held in values.items():
        data = np.zeros((4, 4, 4), np.uint8)
        data[0, 0, : len(held)] = held
        path = folder / f"{case_id}.nii.gz"
        nib.save(nib.Nifti1Image(data, np.eye(4)), path)
        files[path] = case_id
    return files


def meanings(files, labels=None):
    """The scheme of each label map by case id, or the error's message."""
    said = {}
    for path, known in known_of(files).items():
        values = np.unique(np.asarray(nib.load(path).dataobj)).tolist()
        try:
            said[files[path]] = known.scheme(values, path, labels).name
        except LabelError as error:
            said[files[path]] = str(error)
    return said


@pytest.mark.parametrize("folder", ["pred", "labelsTr"])
def test_a_dataset_json_beside_or_above_counts_before_the_name(tmp_path, folder):
    files = put(tmp_path / folder, **{"BraTS-GLI-00000-000": (1, 2, 3), "BraTS2021_00000": (1, 2)})
    place = tmp_path / folder if folder == "pred" else tmp_path
    (place / "dataset.json").write_text(json.dumps({"labels": REGIONS}))
    assert set(meanings(files).values()) == {"msd"}  # as nnunet's, value by value


@pytest.mark.parametrize("fold", ["fold_0", "fold_all"])
def test_nnunets_own_validation_has_the_labels_of_its_training(tmp_path, fold):
    # By their names alone these would be of 2023.
    files = put(tmp_path / fold / "validation", **{"BraTS-GLI-00000-000": (1, 2, 3)})
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": REGIONS}))
    assert set(meanings(files).values()) == {"msd"}
    (tmp_path / "dataset.json").write_text('{"labels": {"label_1": 1}}')
    (said,) = meanings(files).values()
    assert "its dataset.json says '1 label_1', which no label scheme agrees with" in said


@pytest.mark.parametrize("folder", ["mine", "mine/of/today", "imagesTr"])
def test_a_dataset_json_further_up_is_one_more_way_to_read_label_maps(tmp_path, folder):
    files = put(tmp_path / folder, **{"BraTS-SSA-00000-000": (1, 2, 3)})
    assert set(meanings(files).values()) == {"brats2023"}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": REGIONS}))
    (said,) = meanings(files).values()
    assert "which fit several schemes: brats2023, brats2024, msd, nnunet" in said
    assert set(meanings(files, SCHEMES["brats2023"]).values()) == {"brats2023"}
    # What it says does not matter where it agrees with the name, or is not understood.
    for labels in ({"NCR": 1, "ED": 2, "ET": 3}, {"liver": 1}):
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
        assert set(meanings(files).values()) == {"brats2023"}
    (tmp_path / "dataset.json").write_text("no JSON")
    assert set(meanings(files).values()) == {"brats2023"}


def test_one_folder_has_one_scheme(tmp_path):
    files = put(tmp_path, BraTS2021_00000=(1, 2), BraTS2021_00001=(1, 2, 3))
    for said in meanings(files).values():
        assert said == (
            f"{tmp_path} (all label maps in it) holds labels 0, 1, 2, 3, which fit several "
            "schemes: brats2023, msd, nnunet"
        ) or said.startswith(f"{tmp_path}/BraTS2021_00001.nii.gz holds labels 0, 1, 2, 3, which")
    assert set(meanings(files, SCHEMES["msd"]).values()) == {"msd"}


def test_names_that_do_not_fit_anywhere_in_a_folder_count_nowhere_in_it(tmp_path):
    files = put(tmp_path, BraTS2021_00000=(1, 2), **{"UPENN-GBM-00001_11": (1, 2, 4)})
    assert set(meanings(files).values()) == {"brats2020"}
    files |= put(tmp_path, BraTS2021_00001=(1, 2, 3))
    assert all("fit several schemes: brats2015, brats2024" in m for m in meanings(files).values())


def test_releases_in_one_folder_whose_names_fit_are_each_their_own(tmp_path):
    files = put(tmp_path, BraTS2021_00000=(1, 2, 4), **{"BraTS-SSA-00000-000": (1, 2, 3)})
    assert list(meanings(files).values()) == ["brats2020", "brats2023"]


def test_words_that_are_not_understood_are_an_error_for_each_file(tmp_path):
    files = put(tmp_path, BraTS2021_00000=(1, 2, 4))
    (tmp_path / "dataset.json").write_text('{"labels": {"label_1": 1, "label_2": 2}}')
    (said,) = meanings(files).values()
    assert "its dataset.json says '1 label_1, 2 label_2', which no label scheme agrees" in said
    assert meanings(files, SCHEMES["brats2020"]) == {"BraTS2021_00000": "brats2020"}


def test_a_header_of_brats_counts_before_all_else(tmp_path):
    data = np.zeros((4, 4, 4), np.uint8)
    data[0, 0, :3] = 1, 2, 3
    path = tmp_path / "BraTS2021_00000.nii.gz"
    grid = Grid((4, 4, 4), np.eye(4))
    write_labels(path, data, grid, SCHEMES["brats2023"], predicted=True)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": REGIONS}))
    assert meanings({path: "BraTS2021_00000"}) == {"BraTS2021_00000": "brats2023"}


@pytest.mark.parametrize(("voxels", "held"), [([0, 4, 1, 4], {0, 1, 4}), ([2, 3, 3, 2], {2, 3})])
def test_the_background_is_a_value_only_where_there_is_some(voxels, held):
    data = np.array(voxels, np.uint8).reshape(2, 2, 1)
    assert values_in(Volume(data, Grid((2, 2, 1), np.eye(4)))) == held


# --- BIDS, whose dseg may be of anything -------------------------------------------------------

TISSUES = "index\tname\n1\tGray Matter\n2\tWhite Matter\n3\tCSF\n"


@pytest.mark.parametrize("values", [(1, 2, 3), (1, 2), (1, 2, 3, 4)], ids=str)
def test_a_dseg_of_unknown_labels_is_never_guessed(tmp_path, values):
    files = put(tmp_path / "sub-1/anat", **{"sub-1_dseg": values})
    ((path, known),) = known_of(files).items()
    with pytest.raises(LabelError, match="which fit several schemes: brats") as caught:
        known.scheme({0, *values}, path, None)
    assert caught.value.hint.startswith(
        "if these are grey matter, white matter and CSF, leave it out; if not, choose one with "
        "--labels: brats20"
    )


@pytest.mark.parametrize("table", ["dseg.tsv", "sub-1/sub-1_dseg.tsv", "sub-1/anat/sub-1_dseg.tsv"])
def test_a_dseg_has_the_labels_that_its_table_names(tmp_path, table):
    files = put(tmp_path / "sub-1/anat", **{"sub-1_dseg": (1, 2, 3)})
    (tmp_path / table).write_text(TISSUES)
    (said,) = meanings(files).values()
    assert said.endswith(
        "holds labels 0, 1, 2, 3, and its dseg.tsv says '1 Gray Matter, 2 White Matter, 3 CSF', "
        "which no label scheme agrees with"
    )
    (tmp_path / table).write_text("index\tname\n1\tedema\n2\tnecrosis\n3\tenhancing tumor\n")
    assert set(meanings(files).values()) == {"msd"}
