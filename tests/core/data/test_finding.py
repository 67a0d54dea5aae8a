import shutil
from pathlib import Path

import pytest
from casefiles import DISTRIBUTED, OLD, decathlon, four, put, put_all

from brats_cli.core.data.finding import case_at, find_cases, find_label_maps
from brats_cli.core.data.given import find_each
from brats_cli.core.errors import CaseError, NoCasesError, UnreadableFileError

# --- one case ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "wild_a_T1.nii", "wild_a_fla.nii", "wild_a_seg.nii"])
def test_a_case_is_its_folder_or_any_of_its_files(tree, name):
    case = case_at(tree / "wild/a" / name)
    assert (case.id, len(case.images), case.label is not None) == ("wild_a", 4, True)


def test_a_file_of_the_decathlon_finds_its_label(tmp_path, monkeypatch):
    monkeypatch.chdir(decathlon(tmp_path) / "imagesTr")
    case = case_at(Path("BRATS_001.nii.gz"))
    assert case.label.resolve() == tmp_path / "labelsTr/BRATS_001.nii.gz"


def test_a_file_that_says_nothing_is_an_error(tmp_path):
    path = put(tmp_path / "brain.nii.gz")
    with pytest.raises(CaseError, match="is neither a 4D file nor does its name end in") as caught:
        case_at(path)
    assert "name it CASE_t1.nii.gz" in caught.value.hint


def test_a_data_set_is_not_one_case(tree):
    with pytest.raises(CaseError, match="holds 20 cases") as caught:
        case_at(tree)
    assert caught.value.hint == "give the folder of one case"


def test_a_path_that_is_not_there_is_an_error(tmp_path):
    for look in (case_at, find_cases, find_label_maps):
        with pytest.raises(UnreadableFileError):
            look(tmp_path / "none")


def test_cases_and_data_sets_can_be_given_together(tree):
    one = tree / "2021/BraTS2021_00000"
    cases, wrong = find_each([one, tree / "HGG", one / "BraTS2021_00000_t2.nii"])
    assert wrong == []
    assert [case.id for case in cases] == [
        "BraTS2021_00000", "Brats17_TCIA_248_1", "Brats18_TCIA09_248_1",
    ]  # fmt: skip


def test_bad_paths_are_reported_beside_the_cases_found(phantoms, tmp_path):
    one = phantoms / "BraTS-GLI-00002-000"
    copied = shutil.copytree(one, tmp_path / "again" / one.name)
    (tmp_path / "empty").mkdir()
    paths = [one, tmp_path / "nowhere", one, copied, tmp_path / "empty", phantoms]
    cases, wrong = find_each(paths)
    assert cases[0].id == one.name
    assert len(cases) == 4
    assert [str(error) for error in wrong] == [
        f"cannot read {tmp_path / 'nowhere'}: there is no such file",
        f"case {one.name} was found in two places: {one} and {copied}",
        f"no cases in {tmp_path / 'empty'}",
    ]


def test_an_empty_folder_holds_no_case(tmp_path):
    with pytest.raises(NoCasesError, match=f"no cases in {tmp_path}$"):
        find_cases(tmp_path)


def test_files_of_another_format_are_named(tmp_path):
    (tmp_path / "VSD.Brain.XX.O.MR_T1.54513.mha").touch()  # as of 2012-2015
    with pytest.raises(NoCasesError, match=r"\(only .mha files: convert them to .nii.gz\)"):
        find_cases(tmp_path)


# --- label maps --------------------------------------------------------------------------------


def test_label_maps_of_a_data_set_go_by_case_id(tree):
    maps = find_label_maps(tree)
    assert len(maps) == len(DISTRIBUTED)
    assert maps["patient_7"] == tree / "patient_7/seg.NII.GZ"


def test_a_folder_of_label_maps_needs_no_suffix(tmp_path):
    put_all(tmp_path, ["b_seg.nii.gz", "a.nii", "case_0001.nii.gz"])
    assert list(find_label_maps(tmp_path)) == ["a", "b", "case_0001"]
    assert find_label_maps(tmp_path / "b_seg.nii.gz") == {"b": tmp_path / "b_seg.nii.gz"}


def test_what_predict_writes_beside_label_maps_is_neither_a_case_nor_a_label_map(tmp_path):
    put_all(tmp_path, ["a.nii.gz", "a_uncertainty.nii.gz", "b.nii.gz"])
    put(tmp_path / "a_probabilities.nii.gz", shape=(2, 2, 2, 3))
    assert list(find_label_maps(tmp_path)) == ["a", "b"]
    with pytest.raises(NoCasesError):
        find_cases(tmp_path)


def test_two_label_maps_of_one_id_are_named(tmp_path):
    put_all(tmp_path, ["a_seg.nii.gz", "a.nii"])
    with pytest.raises(CaseError, match=r"case a was .* two places: .*a.nii and .*a_seg.nii.gz"):
        find_label_maps(tmp_path)


def test_a_data_set_without_labels_has_no_label_maps(tmp_path):
    put_all(tmp_path, four("x", OLD[:4]))
    with pytest.raises(NoCasesError, match="no label maps in"):
        find_label_maps(tmp_path)
