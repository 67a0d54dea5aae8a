"""Every naming scheme of the table of FACTS, on trees of tiny files, and what is told apart."""

import gzip
import json

import nibabel as nib
import pytest
from casefiles import DISTRIBUTED, ENDINGS, NEW, OLD, decathlon, four, names_of, put, put_all
from helpers import REAL, needs_real

from brats_cli.core.data.finding import case_at, find_cases, find_label_maps, survey
from brats_cli.core.data.given import find_each
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.data.naming import MODALITIES
from brats_cli.core.errors import CaseError, MissingModalityError, NoCasesError, UnreadableFileError

GLI_2023 = (240, 240, 155)

GLI_2024 = (182, 218, 182)


def put_header(path, shape):
    """The first bytes of an image, which is all that listing cases may read."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    content = header.binaryblock + bytes(4)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("row", DISTRIBUTED, ids=lambda row: row[1])
def test_every_naming_scheme_is_recognised(tree, row):
    folder, case_id, joint, suffixes, patient, schemes = row
    case = {case.id: case for case in find_cases(tree)}[case_id]
    assert case.patient.lower() == patient.lower()
    paths = [*(image.path for image in case.images.values()), case.label]
    ending = ENDINGS[DISTRIBUTED.index(row) % 3]
    expected = names_of(case_id, joint, suffixes, ending)  # t1, t1ce, t2, flair, label
    assert list(case.images) == list(MODALITIES)
    assert paths == [tree / folder / name for name in expected]
    told = [case.scheme] if case.scheme else case.allowed
    assert " ".join(scheme.name for scheme in told) == schemes


def test_the_misnamed_label_of_2020_is_found(tmp_path):
    put_all(tmp_path, four("BraTS20_Training_355", OLD[:4], ".nii"))
    put(tmp_path / "W39_1998.09.19_Segm.nii")
    (case,) = find_cases(tmp_path)
    assert (case.id, case.label.name) == ("BraTS20_Training_355", "W39_1998.09.19_Segm.nii")


def test_the_tree_holds_these_cases_and_no_others(tree):
    assert len(find_cases(tree)) == len(DISTRIBUTED)


@pytest.mark.parametrize(
    ("shape", "scheme"), [(GLI_2023, "brats2023"), (GLI_2024, "brats2024"), ((9, 9, 9), None)]
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_grid_tells_the_year_of_a_glioma(tmp_path, shape, scheme, ending):
    for name in four("BraTS-GLI-00005-101", NEW, ending, joint="-"):
        put_header(tmp_path / name, shape)
    (case,) = find_cases(tmp_path)
    assert (case.scheme and case.scheme.name) == scheme
    assert (case.id, case.patient) == ("BraTS-GLI-00005-101", "BraTS-GLI-00005")


def test_the_visits_of_a_patient_are_two_cases(tmp_path):
    for visit in ("000", "001"):
        case_id = f"BraTS-GLI-00005-{visit}"
        put_all(tmp_path / case_id, four(case_id, NEW, joint="-"))
    assert [(case.id[-3:], case.patient) for case in find_cases(tmp_path)] == [
        ("000", "BraTS-GLI-00005"),
        ("001", "BraTS-GLI-00005"),
    ]


# --- the Decathlon and nnU-Net -----------------------------------------------------------------

MSD_JSON = {
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {
        "0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"
    },
}  # fmt: skip


@pytest.mark.parametrize("description", [None, MSD_JSON], ids=["bare", "dataset.json"])
def test_the_decathlon_keeps_a_case_in_one_file(tmp_path, description):
    first, second = find_cases(decathlon(tmp_path, description))
    assert (first.id, first.scheme.name) == ("BRATS_001", "msd")
    assert first.label == tmp_path / "labelsTr/BRATS_001.nii.gz"
    channels = {modality: image.channel for modality, image in first.images.items()}
    assert channels == {"t1": 1, "t1ce": 2, "t2": 3, "flair": 0}
    assert (second.id, second.label) == ("BRATS_485", None)


def test_a_four_dimensional_file_anywhere_is_a_case(tmp_path):
    put(tmp_path / "mine.nii.gz", shape=(2, 2, 2, 4))
    put(tmp_path / "mine_seg.nii.gz")
    put(tmp_path / "something_else.nii.gz")
    (case,) = find_cases(tmp_path)
    assert (case.id, case.images["flair"].channel, case.label.name) == (
        "mine", 0, "mine_seg.nii.gz",
    )  # fmt: skip


NNUNET_LABELS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "ET": 3}


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        (None, "nnunet"),
        (NNUNET_LABELS, "nnunet"),
        ({"background": 0, "edema": 1, "necrosis": 2, "enhancing tumor": 3}, "nnunet"),
        ({"background": 0, "NCR": 1, "SNFH": 2, "ET": 3}, "brats2023"),
        ({"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}, "brats2024"),
        ({"background": 0, "necrotic core": 1, "edema": 2, "enhancing": 4}, "brats2020"),
    ],
)
def test_nnunets_dataset_json_tells_channels_and_labels(tmp_path, labels, scheme):
    put_all(tmp_path / "imagesTr", [f"case_7_{number:04}.nii.gz" for number in range(4)])
    put(tmp_path / "labelsTr/case_7.nii.gz")
    content = {"channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"}}
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"labels": labels}))
    (case,) = find_cases(tmp_path)
    assert (case.id, case.scheme.name) == ("case_7", scheme)
    assert case.images["flair"].path.name == "case_7_0003.nii.gz"
    assert case.label == tmp_path / "labelsTr/case_7.nii.gz"


def test_nnunets_channels_are_not_guessed(tmp_path):
    # The Decathlon's order starts with FLAIR, that of the BraTS conversions with T1.
    put_all(tmp_path / "imagesTr", [f"case_7_{number:04}.nii.gz" for number in range(4)])
    with pytest.raises(
        CaseError, match=r"case_7_0000.nii.gz is channel 0 of a case, but"
    ) as caught:
        find_cases(tmp_path)
    assert "add nnU-Net's dataset.json (with channel_names)" in caught.value.hint


def test_a_name_and_a_layout_that_disagree_leave_both_schemes_open(tmp_path):
    put(tmp_path / "imagesTr/BraTS2021_00000.nii.gz", shape=(2, 2, 2, 4))
    (case,) = find_cases(tmp_path)
    assert [scheme.name for scheme in case.allowed] == ["brats2020", "msd"]


def test_a_damaged_dataset_json_is_named(tmp_path):
    decathlon(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UnreadableFileError, match=r"dataset.json: it is not JSON"):
        find_cases(tmp_path)


# --- what cannot be told apart -----------------------------------------------------------------


def test_one_id_in_two_places_names_both(tmp_path):
    put_all(tmp_path / "a", four("x", OLD))
    put_all(tmp_path / "b", four("x", OLD))
    with pytest.raises(
        CaseError, match=r"case x was .* two places: .*/a/x_flair.* and .*/b/x_flair"
    ):
        find_cases(tmp_path)
    cases, clashes, *_ = survey(tmp_path)
    assert ([case.id for case in cases], len(clashes)) == (["x"], 1)
    cases, wrong = find_each([tmp_path / "a", tmp_path / "b"])
    assert [case.folder.name for case in cases] == ["a"]
    assert [str(error).partition(":")[0] for error in wrong] == ["case x was found in two places"]


def test_two_files_for_one_modality_are_named(tmp_path):
    put_all(tmp_path, ["x_t1.nii", "x_t1.nii.gz", "x_t2.nii"])
    with pytest.raises(CaseError, match=r"case x has two t1 files: .*x_t1.nii and x_t1.nii.gz"):
        find_cases(tmp_path)


def test_the_better_of_two_labels_is_taken(tmp_path):
    put_all(tmp_path, [*four("TCGA-02-0006_1996.08.23", ("t1", "t1Gd", "t2", "flair"))])
    for name in ("GlistrBoost", "GlistrBoost_ManuallyCorrected"):
        put(tmp_path / f"TCGA-02-0006_1996.08.23_{name}.nii.gz")
    (case,) = find_cases(tmp_path)
    assert case.label.name.endswith("ManuallyCorrected.nii.gz")


# --- what people really have -------------------------------------------------------------------


def surveyed(root, *names, **kwargs):
    put_all(root, names, **kwargs)
    return survey(root)


def found(survey):
    return {case.id: (tuple(case.images), case.label and case.label.name) for case in survey.cases}


def test_an_enhanced_t1_of_bids_is_no_case_of_its_own(tmp_path):
    names = ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR", "dseg")
    two = [f"sub-{i}/anat/sub-{i}_{name}.nii.gz" for i in (1, 2) for name in names]
    assert found(surveyed(tmp_path, *two)) == {
        f"sub-{i}": (MODALITIES, f"sub-{i}_dseg.nii.gz") for i in (1, 2)
    }


@pytest.mark.parametrize("table", ["dseg.tsv", "sub-1/dseg.tsv", "sub-1/anat/sub-1_dseg.tsv"])
@pytest.mark.parametrize("given", ["", "sub-1", "sub-1/anat", "sub-1/anat/sub-1_T2w.nii.gz"])
def test_the_table_of_bids_says_what_its_labels_are(tmp_path, table, given):
    names = ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR", "dseg")
    put_all(tmp_path / "sub-1/anat", [f"sub-1_{name}.nii.gz" for name in names])

    def case():
        if given.endswith(".gz"):
            return case_at(tmp_path / given)
        return find_cases(tmp_path / given)[0]

    assert (case().scheme, case().unclear) == (None, "")
    (tmp_path / table).write_text("index\tname\n1\tGM\n2\tWM\n")
    assert (case().scheme, case().unclear) == (None, "dseg.tsv says '1 GM, 2 WM'")
    (tmp_path / table).write_text("index\tname\n1\tnecrosis\n2\tedema\n4\tenhancing\n")
    assert (case().scheme, case().unclear) == (SCHEMES["brats2020"], "")


def test_weeks_of_lumiere_are_visits_of_their_patients(tmp_path):
    names = ("T1", "CT1", "T2", "FLAIR")
    weeks = [f"Patient-00{i}/week-000/{name}.nii.gz" for i in (1, 2) for name in names]
    cases = surveyed(tmp_path, *weeks).cases
    assert [(case.id, case.patient) for case in cases] == [
        ("Patient-001_week-000", "Patient-001"),
        ("Patient-002_week-000", "Patient-002"),
    ]
    assert all(tuple(case.images) == MODALITIES for case in cases)


def test_folders_that_are_named_like_files_stand_for_the_file_in_them(tmp_path):
    for role in ("t1", "t1ce", "t2", "flair"):
        put(tmp_path / f"X/X_{role}.nii/00000057_brain_{role}.nii")
    put(tmp_path / "X/X_seg.nii/00000057_final_seg.nii")
    (case,) = find_cases(tmp_path)
    assert (case.id, tuple(case.images)) == ("X", MODALITIES)
    assert case.label == tmp_path / "X/X_seg.nii/00000057_final_seg.nii"
    for given in ("X", "X/X_flair.nii", "X/X_flair.nii/00000057_brain_flair.nii"):
        assert case_at(tmp_path / given).images == case.images
    assert find_label_maps(tmp_path) == {"X": case.label}


@pytest.mark.parametrize("volumes", [2, 5, 7, 65])
def test_a_4d_file_of_other_than_four_volumes_is_no_case(tmp_path, volumes):
    put_all(tmp_path / "Anna", ["t1.nii", "t1ce.nii", "t2.nii", "flair.nii"])
    put(tmp_path / "Anna/dwi.nii.gz", shape=(2, 2, 2, volumes))
    put(tmp_path / "Bert/dwi.nii.gz", shape=(2, 2, 2, volumes))
    seen = survey(tmp_path)
    assert (list(found(seen)), seen.clashes) == (["Anna"], [])
    assert [path.name for path in seen.cases[0].others] == ["dwi.nii.gz"]
    assert seen.others == [tmp_path / "Bert/dwi.nii.gz"]


def test_a_4d_file_beside_a_complete_case_is_no_case(tmp_path):
    put_all(tmp_path / "Anna", ["t1.nii", "t1ce.nii", "t2.nii", "flair.nii"])
    put(tmp_path / "Anna/perfusion.nii.gz", shape=(2, 2, 2, 4))
    assert case_at(tmp_path / "Anna").id == "Anna"


def test_more_volumes_in_images_tr_than_are_told_of_are_never_guessed(tmp_path):
    put(tmp_path / "imagesTr/BRATS_001.nii.gz", shape=(2, 2, 2, 5))
    with pytest.raises(CaseError, match=r"BRATS_001.nii.gz holds 5 volumes where 4 are due"):
        find_cases(tmp_path)


@pytest.mark.parametrize("names", [{"0": "a", "1": "b"}, {"1": "T1", "2": "T2"}, ["T1"], "T1"])
@pytest.mark.parametrize("file", ["case_1_0000.nii.gz", "case_1.nii.gz"])
def test_channels_that_are_not_understood_are_shown_and_never_guessed(tmp_path, names, file):
    put(tmp_path / "imagesTr" / file, shape=(2, 2, 2, 4) if "_0000" not in file else (2, 2, 2))
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": names}))
    with pytest.raises(CaseError, match=r"names its channels .* which are not understood"):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    "name", ["my_tumour_mask_v2.nii.gz", "ADC.nii.gz", "t1.mgz", "seg.nrrd", "lesion.mha"]
)
def test_images_that_are_not_understood_are_kept_in_mind(tmp_path, name):
    put_all(tmp_path / "X", ["X_t1.nii", "X_t2.nii"])
    put(tmp_path / "X/temporary.nii").rename(tmp_path / f"X/X_{name}")
    (case,) = survey(tmp_path).cases
    assert case.others == (tmp_path / f"X/X_{name}",)
    with pytest.raises(MissingModalityError, match=rf"not understood: X_{name}\)"):
        case.require()


def test_a_folder_without_cases_names_what_is_in_it(tmp_path):
    put_all(tmp_path, ["a/T1_to_SRI.nii.gz", "a/C1_x.nii"])
    with pytest.raises(NoCasesError, match=r"not understood: C1_x.nii, T1_to_SRI.nii.gz"):
        find_cases(tmp_path)


def test_of_two_label_maps_the_experts_is_used_and_two_alike_are_a_conflict(tmp_path):
    put_all(tmp_path, ["a/X_t1.nii", "b/X_automated_approx_segm.nii", "c/X_segm.nii"])
    assert survey(tmp_path).cases[0].label == tmp_path / "c/X_segm.nii"
    put(tmp_path / "d/X_segm.nii.gz")
    with pytest.raises(CaseError, match="X's label map was found in two places"):
        find_cases(tmp_path)
    put(tmp_path / "a/X_seg.nii")
    put(tmp_path / "a/X_seg.nii.gz")
    assert "case X has two label files" in str(survey(tmp_path).clashes[0])


def test_a_mask_of_something_else_is_not_adopted(tmp_path):
    seen = surveyed(tmp_path, "X/X_t1.nii", "X/X_ventricles_seg.nii")
    assert seen.cases[0].label is None
    assert seen.strays == [tmp_path / "X/X_ventricles_seg.nii"]


@pytest.mark.real
@needs_real
def test_the_real_cases_are_found_with_their_schemes():
    cases = find_cases(REAL / "cases")
    by_scheme = {case.id: case.scheme.name for case in cases}
    assert len(cases) == 12
    assert by_scheme.pop("BraTS-GLI-00000-000") == "brats2023"
    assert set(by_scheme.values()) == {"brats2020"}
    assert all(len(case.images) == 4 and case.label for case in cases)
    assert SCHEMES["brats2023"] == cases[0].scheme
