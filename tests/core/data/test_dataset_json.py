import os

import pytest

from brats_cli.core.data.dataset_json import (
    channel_order,
    declared_schemes,
    read_description,
    read_dseg,
    read_dseg_above,
)
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
    assert not declared_schemes({"labels": labels}).unclear


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
    assert declared.unclear.startswith("dataset.json says '")


def test_the_layout_decides_between_schemes_that_read_alike():
    labels = {"background": 0, "ED": 1, "NCR": 2, "ET": 3}
    assert names(labels, "nnunet") == ["nnunet"]
    assert names(labels, "") == ["msd", "nnunet"]


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "whole tumor": [1, 2, 3], "enhancing tumor": 3},  # where is the edema?
        {"background": 0, "enhancing": 3},
        {"WT": [1, 2, 3]},
    ],
    ids=repr,
)
def test_the_layout_does_not_decide_what_the_words_leave_open(labels):
    for layout in ("nnunet", "msd"):
        found = set(names(labels, layout))
        assert {layout, "brats2023"} <= found
        assert not {"nnunet", "msd"} <= found


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


# --- BIDS' dseg.tsv ----------------------------------------------------------------------------

TISSUES = "index\tname\tabbreviation\n0\tBackground\tBG\n1\tGray Matter\tGM\n2\tWhite Matter\tWM\n"
TUMOUR = "index\tname\tmapping\n1\tnecrosis\t7\n2\tedema\t7\n3\tenhancing tumour\t7\n"


def of_dseg(folder):
    declared = declared_schemes(read_dseg(folder))
    return [scheme.name for scheme in declared.schemes], declared.unclear


@pytest.mark.parametrize(
    ("table", "schemes", "unclear"),
    [
        (TUMOUR, ["brats2023"], ""),
        (TUMOUR.replace("3\t", "4\t"), ["brats2020"], ""),
        (TUMOUR.replace("name", "Name").replace("\t", "  \t "), ["brats2023"], ""),
        (TISSUES, [], "dseg.tsv says '1 Gray Matter, 2 White Matter'"),
        ("index\tname\n1\tLesion\n", [], "dseg.tsv says '1 Lesion'"),
        ("index\tname\n1\tedema\n2\tedema\n", [], "dseg.tsv says '['1', '2'] edema'"),
        ("index\tname\n1\t\n", [], "dseg.tsv says 'no columns index and name'"),
        ("label,tissue\n1,edema\n", [], "dseg.tsv says 'no columns index and name'"),
        ("index\tname\n", [], ""),
        ("", [], ""),
    ],
)
@pytest.mark.parametrize("name", ["dseg.tsv", "sub-1_desc-tumor_dseg.tsv"])
def test_labels_by_the_table_of_bids(tmp_path, table, schemes, unclear, name):
    (tmp_path / name).write_text(table)
    assert of_dseg(tmp_path) == (schemes, unclear)


def test_tables_that_contradict_each_other_are_unclear(tmp_path):
    for name, table in (("sub-1", TUMOUR), ("sub-2", TUMOUR)):
        (tmp_path / f"{name}_dseg.tsv").write_text(table)
    assert of_dseg(tmp_path) == (["brats2023"], "")
    (tmp_path / "sub-3_dseg.tsv").write_text(TUMOUR.replace("edema", "necrosis"))
    assert of_dseg(tmp_path)[0] == []


def test_the_nearest_table_of_bids_counts(tmp_path):
    anat = tmp_path / "sub-1/ses-2/anat"
    anat.mkdir(parents=True)
    assert read_dseg_above(anat) == {}
    for folder in (tmp_path, tmp_path / "sub-1", anat):
        (folder / "dseg.tsv").write_text(f"index\tname\n1\t{folder.name}\n")
        assert read_dseg_above(anat) == {"dseg.tsv": {folder.name: "1"}}
    (tmp_path / "mine").mkdir()
    assert read_dseg_above(tmp_path / "mine") == {}  # no folder of a subject


def test_a_table_that_may_not_be_read_is_an_error(tmp_path):
    (tmp_path / "dseg.tsv").write_bytes(b"\0\0")
    with pytest.raises(UnreadableFileError, match=r"dseg.tsv: it is not text"):
        read_dseg(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_called_dseg_tsv_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "dseg.tsv")
    assert read_dseg(tmp_path) == {}
