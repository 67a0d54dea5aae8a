import pytest

from brats_cli.core.data.dataset_json import channel_order, declared_scheme, read_description
from brats_cli.core.errors import UnreadableFileError


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ({"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, ["flair", "t1", "t1ce", "t2"]),
        ({"3": "flair", "0": "T1", "1": "T1ce", "2": "T2"}, ["t1", "t1ce", "t2", "flair"]),
        ({"0": "T1", "1": "ADC"}, ["t1", "ADC"]),
        ({"0": "CT"}, []),
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


# By the tissues that the values are named with, in either direction.
@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        ({"0": "background", "1": "edema", "2": "non-enhancing", "3": "enhancing"}, "msd"),
        ({"background": 0, "NCR": 1, "ED": 2, "ET": 3}, "brats2023"),
        ({"background": 0, "ET": 1, "NETC": 2, "CC": 3, "ED": 4}, "brats2024-ped"),
        ({"background": 0, "ED": 1, "NCR": 2, "ET": 3}, "msd"),
        ({"background": 0, "whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]}, "brats2023"),
        ({"background": 0, "liver": 1}, None),
        (None, None),
        ([], None),
    ],
)  # fmt: skip
def test_labels_are_told_by_tissue(labels, scheme):
    declared = declared_scheme({"labels": labels}, "msd")
    assert (declared and declared.name) == scheme


def test_the_layout_decides_between_schemes_that_read_alike():
    labels = {"background": 0, "ED": 1, "NCR": 2, "ET": 3}
    assert declared_scheme({"labels": labels}, "nnunet").name == "nnunet"


def test_a_folder_without_description_says_nothing(tmp_path):
    assert read_description(tmp_path) == {}
    (tmp_path / "dataset.json").write_text("[]")
    assert read_description(tmp_path) == {}
    (tmp_path / "dataset.json").write_text("not JSON")
    with pytest.raises(UnreadableFileError, match=r"dataset.json: it is not JSON"):
        read_description(tmp_path)
