import nibabel as nib
import numpy as np
import pytest
import yaml

from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.data.splits import Fold, Split
from brats_cli.core.errors import (
    LabelError,
    OutputExistsError,
    SplitError,
    UnreadableFileError,
)

CASES = ("BraTS2021_00001", "BraTS2021_00002", "BraTS2021_00003", "BraTS-GLI-00001-000")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    for case_id in (*CASES, "BraTS-GLI-00001-001"):
        (folder / case_id).mkdir(parents=True)
        for suffix in ("t1", "t1ce", "t2", "flair", "seg"):
            image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
            nib.save(image, folder / case_id / f"{case_id}_{suffix}.nii")
    return folder


CONTENT = {
    "format": "brats-splits/1",
    "data": "data",
    "labels": "brats2020",
    "seed": 0,
    "folds": [{"train": [CASES[0], CASES[1]], "val": [CASES[2]]}],
    "test": [CASES[3]],
}


def load(folder, **changes):
    """The split of `CONTENT` with some entries changed, or without those that are None."""
    content = {key: value for key, value in (CONTENT | changes).items() if value is not None}
    path = folder / "splits.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return Split.load(path)


def test_a_split_is_what_was_saved(tmp_path, data):
    split = Split(
        data,
        {case_id: SCHEMES["brats2020" if "2021" in case_id else "brats2023"] for case_id in CASES},
        seed=7,
        folds=(Fold(CASES[:1], CASES[1:2]), Fold(CASES[1:2], CASES[:1])),
        test=CASES[2:],
    )
    split.save(tmp_path / "splits.yaml")
    again = Split.load(tmp_path / "splits.yaml")
    assert again == split
    assert again.cases()["BraTS-GLI-00001-000"].scheme.name == "brats2023"
    assert list(again.cases()) == sorted(CASES)
    assert again.cases()[CASES[0]].label.name == "BraTS2021_00001_seg.nii"


def test_the_file_is_readable_and_relative(tmp_path, data):
    split = Split(data, SCHEMES["brats2020"], 0, (Fold(CASES[:2], CASES[2:3]),), CASES[3:])
    (tmp_path / "deep").mkdir()
    split.save(tmp_path / "deep/splits.yaml")
    assert (tmp_path / "deep/splits.yaml").read_text() == (
        "format: brats-splits/1\n"
        "data: ../data\n"
        "labels: brats2020\n"
        "seed: 0\n"
        "grouped: true\n"
        "folds:\n"
        "- train:\n"
        "  - BraTS2021_00001\n"
        "  - BraTS2021_00002\n"
        "  val:\n"
        "  - BraTS2021_00003\n"
        "test:\n"
        "- BraTS-GLI-00001-000\n"
    )


def test_one_scheme_for_all_is_written_once(tmp_path, data):
    labels = dict.fromkeys(CASES, SCHEMES["brats2020"])
    Split(data, labels, 0, (Fold(CASES[:2], CASES[2:]),), ()).save(tmp_path / "splits.yaml")
    assert yaml.safe_load((tmp_path / "splits.yaml").read_text())["labels"] == "brats2020"


def test_folder_and_file_can_move_together(tmp_path, data):
    load(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "splits.yaml").rename(tmp_path / "elsewhere/splits.yaml")
    data.rename(tmp_path / "elsewhere/data")
    assert Split.load(tmp_path / "elsewhere/splits.yaml").data == tmp_path / "elsewhere/data"


def test_a_split_is_not_written_over_another(tmp_path, data):
    split = load(tmp_path)
    with pytest.raises(OutputExistsError, match=r"splits.yaml exists already"):
        split.save(tmp_path / "splits.yaml")
    split.save(tmp_path / "splits.yaml", overwrite=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "brats-splits/2"}, "has format brats-splits/2, not brats-splits/1"),
        ({"format": None}, "is not a splits file"),
        ({"tests": []}, "unknown key 'tests'"),
        ({"data": None}, "'data' must be text, found nothing"),
        ({"seed": "zero"}, "'seed' must be a whole number, found 'zero'"),
        ({"folds": []}, "has no fold"),
        ({"folds": [{"train": [CASES[0]]}]}, "fold 0 is malformed"),
        ({"folds": [{"train": [1], "val": []}]}, r"\[1\] is not a list of case ids"),
        ({"labels": 3}, "'labels' must be a label scheme, or one per case"),
        ({"labels": {CASES[0]: "brats2020"}}, "without a label scheme"),
    ],
)
def test_a_malformed_file_is_named_with_what_is_wrong(tmp_path, data, changes, message):
    with pytest.raises(SplitError, match=message) as caught:
        load(tmp_path, **changes)
    assert str(tmp_path / "splits.yaml") in str(caught.value)
    assert caught.value.hint


def test_an_unknown_scheme_is_an_error(tmp_path, data):
    with pytest.raises(LabelError, match="there is no label scheme 'brats2019'"):
        load(tmp_path, labels="brats2019")


def test_a_patient_in_two_parts_is_an_error(tmp_path, data):
    with pytest.raises(SplitError) as caught:
        load(tmp_path, folds=[{"train": [*CASES[:2], "BraTS-GLI-00001-001"], "val": [CASES[2]]}])
    assert str(caught.value).endswith(
        "patient BraTS-GLI-00001 is in two parts: BraTS-GLI-00001-001 in train, "
        "BraTS-GLI-00001-000 in test (fold 0)"
    )
    assert caught.value.hint.startswith("all visits of a patient belong in the same part")


def test_a_leak_in_a_later_fold_is_an_error_too(tmp_path, data):
    good = CONTENT["folds"][0]
    bad = {"train": [CASES[0]], "val": [CASES[0]]}
    with pytest.raises(SplitError, match=r"BraTS2021_00001 is listed 2 times in fold 1"):
        load(tmp_path, folds=[good, bad])


def test_cases_on_their_own_may_be_dealt_apart(tmp_path, data):
    folds = [{"train": [CASES[0], "BraTS-GLI-00001-001"], "val": [CASES[2]]}]
    assert not load(tmp_path, folds=folds, grouped=False).grouped


def test_every_fold_counts(tmp_path, data):
    folds = [{"train": [CASES[0]], "val": [CASES[1]]}, {"train": [CASES[1]], "val": [CASES[2]]}]
    assert load(tmp_path, folds=folds).ids() == sorted(CASES)


def test_cases_that_are_not_there_are_named(tmp_path, data):
    folds = [{"train": ["a", "b", "c", "d", CASES[0]], "val": [CASES[2]]}]
    with pytest.raises(SplitError, match=r"cases a, b, c and 1 more are not in .*data"):
        load(tmp_path, folds=folds)


def test_a_data_folder_that_is_not_there_is_named(tmp_path, data):
    with pytest.raises(SplitError, match=r"there is no data folder .*moved"):
        load(tmp_path, data="moved")


def test_a_file_that_is_not_there_says_how_to_make_one(tmp_path):
    with pytest.raises(UnreadableFileError, match="there is no such file") as caught:
        Split.load(tmp_path / "splits.yaml")
    assert caught.value.hint == "create it with brats split DATA"


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"- a"])
def test_what_is_no_split_is_an_error(tmp_path, content):
    (tmp_path / "splits.yaml").write_bytes(content)
    with pytest.raises((UnreadableFileError, SplitError), match=r"splits.yaml") as caught:
        Split.load(tmp_path / "splits.yaml")
    assert "brats split" in caught.value.hint


def test_folds_are_chosen_by_number(tmp_path, data):
    split = load(tmp_path)
    assert split.fold(0).val == (CASES[2],)
    with pytest.raises(SplitError, match="there is no fold 1: the split has 1"):
        split.fold(1)


def test_a_fold_without_cases_to_train_on_is_refused_and_one_without_validation_is_not(
    tmp_path, data
):
    split = load(tmp_path, folds=[CONTENT["folds"][0] | {"train": []}])
    with pytest.raises(SplitError, match="fold 0 has no training case"):
        split.fold(0)
    assert load(tmp_path, folds=[CONTENT["folds"][0] | {"val": []}]).fold(0).val == ()
