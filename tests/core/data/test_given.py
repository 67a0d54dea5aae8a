import shutil

import pytest
import yaml

from brats_cli.core.data.given import find_each
from brats_cli.core.data.labels import SCHEMES

TEST = "BraTS-GLI-00002-000"


@pytest.fixture
def splits(phantoms, tmp_path):
    """A splits file of four phantoms, two visits of one patient and two test cases."""
    ids = ["BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00001-000", TEST]
    content = {
        "format": "brats-splits/1",
        "data": str(phantoms),
        "labels": "brats2023",
        "seed": 0,
        "folds": [{"train": ids[:2], "val": []}],
        "test": [ids[3], ids[2]],
    }
    path = tmp_path / "splits.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_splits_file_stands_for_its_test_cases(splits):
    cases, wrong = find_each([splits])
    assert wrong == []
    assert [case.id for case in cases] == [TEST, "BraTS-GLI-00001-000"]
    assert [case.scheme for case in cases] == [SCHEMES["brats2023"]] * 2


def test_a_test_case_that_is_given_as_a_folder_as_well_comes_once(splits, phantoms):
    cases, wrong = find_each([phantoms / "BraTS-GLI-00001-000", splits])
    assert wrong == []
    assert [case.id for case in cases] == ["BraTS-GLI-00001-000", TEST]


def test_a_split_without_test_cases_says_what_to_do(splits):
    content = yaml.safe_load(splits.read_text())
    splits.write_text(yaml.safe_dump(content | {"test": []}))
    cases, (error,) = find_each([splits])
    assert cases == []
    assert str(error) == f"{splits} has no test cases"
    assert error.hint == (
        "split again with a test part, such as --ratios 70/15/15, or give the data set"
    )


def test_what_is_wrong_with_a_splits_file_is_one_error_beside_the_others(
    splits, phantoms, tmp_path
):
    other = tmp_path / "other.yml"
    other.write_text("format: brats-splits/1\n")
    cases, wrong = find_each([other, tmp_path / "none.yaml", phantoms / "BraTS-GLI-00000-000"])
    assert [case.id for case in cases] == ["BraTS-GLI-00000-000"]
    assert [str(error).partition(":")[0] for error in wrong] == [
        str(other),
        f"cannot read {tmp_path / 'none.yaml'}",
    ]


def test_a_copy_of_a_test_case_elsewhere_is_an_error(splits, phantoms, tmp_path):
    copied = shutil.copytree(phantoms / TEST, tmp_path / "again" / TEST)
    _, (error,) = find_each([splits, copied])
    assert str(error) == f"case {TEST} was found in two places: {phantoms / TEST} and {copied}"
