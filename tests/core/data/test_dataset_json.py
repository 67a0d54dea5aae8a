import os

import pytest

from brats_cli.core.data.dataset_json import channel_order, declared_schemes, read_description
from brats_cli.core.errors import UnreadableFileError


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ({"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, ["flair", "t1", "t1ce", "t2"]),
        ({"3": "flair", "0": "T1", "1": "T1ce", "2": "T2"}, ["t1", "t1ce", "t2", "flair"]),
        ({"0": "T1", "1": "ADC"}, ["t1", "ADC"]),
        (
            {"0": "T1 pre", "1": "T1-Gd", "2": "T2-weighted", "3": "T2-FLAIR"},
            ["t1", "t1ce", "T2-weighted", "flair"],
        ),
        ({"0": "CT"}, []),
        # One of ours twice, numbers that do not count from 0 or are none: never guessed.
        ({"0": "T1", "1": "t1w", "2": "T2", "3": "FLAIR"}, []),
        ({"1": "FLAIR", "2": "T1", "3": "T1ce", "4": "T2"}, []),
        ({"\u00b2": "T1"}, []),
        ({"99999999999999999999": "T1"}, []),
        ({"0": ["T1"]}, []),
        ({"first": "T1"}, []),
        (["T1", "T2"], []),
        (None, []),
    ],
)
@pytest.mark.parametrize(
    "key", ["channel_names", "modality"]
)  # nnU-Net 2; the Decathlon, nnU-Net 1
def test_channels_are_told_by_number(key, names, order):
    assert channel_order({key: names}) == order


def names(labels, layout="msd"):
    return [scheme.name for scheme in declared_schemes({"labels": labels}, layout).schemes]


# By the tissues that the values are named with, in either direction, or by regions as lists.
@pytest.mark.parametrize(
    ("labels", "schemes"),
    [
        ({"0": "background", "1": "edema", "2": "non-enhancing", "3": "enhancing"}, ["msd"]),
        ({"background": 0, "NCR": 1, "ED": 2, "ET": 3}, ["brats2023"]),
        ({"background": 0, "ET": 1, "NETC": 2, "CC": 3, "ED": 4}, ["brats2024-ped"]),
        ({"background": 0, "ED": 1, "NCR": 2, "ET": 3}, ["msd"]),
        ({"background": 0, "whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]}, ["brats2023"]),
        ({"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3},
         ["msd"]),
        ({"background": 0, "WT": [1, 2, 3, 4], "TC": [1, 3, 4], "ET": [4]}, ["brats2015"]),
        ({"background": 0, "WT": [1, 2, 3, 4], "TC": [1, 2, 3], "ET": [1]}, ["brats2024-ped"]),
        ({"background": 0, "WT": [1, 2, 3], "TC": [1, 3], "ET": [3], "RC": [4]}, ["brats2024"]),
        ({"background": 0, "necrotic tumor core": 1, "peritumoral edema": 2,
          "enhancing tumor core": 3}, ["brats2023"]),
        ({"background": 0, "Necrotic and non-enhancing tumour core (NCR/NET)": 1,
          "Surrounding non-enhancing FLAIR hyperintensity (SNFH)": 2, "GD-enhancing tumour": 4},
         ["brats2020"]),
        ({"1": "necrosis", "2": "oedema", "3": "non-enhancing tumor", "4": "enhancing tumor"},
         ["brats2015"]),
        # Fewer than a scheme has: all that agree stay open, as they read these values alike.
        ({"background": 0, "edema": 1, "enhancing": 3}, ["msd"]),
        ({"background": 0, "edema": 2}, ["brats2015", "brats2020", "brats2023", "brats2024"]),
        (None, []),
        ({}, []),
    ],
)  # fmt: skip
def test_labels_are_told_by_tissue(labels, schemes):
    assert names(labels) == schemes
    assert not declared_schemes({"labels": labels}).is_unclear


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "liver": 1},
        {"background": 0, "enhancing": 1, "non_enhancing": 2, "edema": 3},  # no year has these
        {"background": 0, "label_1": 1, "label_2": 2, "label_3": 3},
        {"background": 0, "edema": 1, "core": 2, "enhancing": 3},  # core without enhancing?
        {"background": 0, "enhancing edema": 1, "necrosis": 2},
        {"background": 0, "everything but edema": 1},
        {"background": 0, "edema": 1, "necrosis": 1},
        {"background": 1, "edema": 2},
        {"background": 0, "edema": "x"},
        {"background": 0, "edema": [[1]]},
        {"background": 0, "edema": True, "necrosis": None},
        {"background": 0, "edema": 1e400},
        {"1": 99999999999999999999999999},
        {"\u00b2": "edema"},
        {"WT": ["a", {}]},
        ["edema", "necrosis"],
        "edema",
        7,
    ],
    ids=repr,
)
def test_words_that_are_not_understood_are_shown_and_never_guessed(labels):
    declared = declared_schemes({"labels": labels}, "nnunet")
    assert declared.schemes == ()
    assert declared.is_unclear


def test_the_layout_decides_between_schemes_that_read_alike():
    labels = {"background": 0, "ED": 1, "NCR": 2, "ET": 3}
    assert names(labels, "nnunet") == ["nnunet"]
    assert names(labels, "") == ["msd", "nnunet"]


def test_a_folder_without_description_says_nothing(tmp_path):
    assert read_description(tmp_path) == {}
    (tmp_path / "dataset.json").write_text("[]")
    assert read_description(tmp_path) == {}
    (tmp_path / "dataset.json").write_text("not JSON")
    with pytest.raises(UnreadableFileError, match=r"dataset.json: it is not JSON"):
        read_description(tmp_path)
    (tmp_path / "dataset.json").write_text("[" * 100_000)
    with pytest.raises(UnreadableFileError, match=r"dataset.json: it is not JSON"):
        read_description(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_called_dataset_json_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "dataset.json")
    assert read_description(tmp_path) == {}
