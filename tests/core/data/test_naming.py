from pathlib import Path

import pytest

from brats_cli.core.data.naming import (
    VISITS,
    case_id_of,
    companion,
    folder_id,
    lies_beside,
    naming_of,
    parse_name,
    patient_of,
    schemes_by_name,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BraTS2021_00006_t1ce", ("BraTS2021_00006", "t1ce")),
        ("BraTS-GLI-00000-000-t2W", ("BraTS-GLI-00000-000", "t2")),
        ("TCGA-02-0006_1996.08.23_t1Gd", ("TCGA-02-0006_1996.08.23", "t1ce")),
        ("FLAIR", ("", "flair")),
        ("W39_1998.09.19_Segm", ("W39_1998.09.19", "label")),
        ("BRATS_001", ("BRATS_001", "")),
        ("scant1", ("scant1", "")),  # no joint before it
        ("x_t1_brain", ("x_t1_brain", "")),
        ("x_t1_t2", ("x_t1", "t2")),
    ],
)
def test_a_name_is_an_id_and_a_role(name, expected):
    assert parse_name(name) == expected


@pytest.mark.parametrize(
    ("path", "case_id"),
    [
        ("a/BraTS2021_00006_seg.nii.gz", "BraTS2021_00006"),
        ("a/BraTS2021_00006.nii.gz", "BraTS2021_00006"),
        ("a/patient_7/seg.nii", "patient_7"),
        ("a/case_0001.nii.gz", "case_0001"),  # not channel 1 of `case`
    ],
)
def test_the_id_of_a_label_map(path, case_id):
    assert case_id_of(Path(path)) == case_id


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Brats17_TCIA_248_1", "Brats18_TCIA09_248_1"),  # a year later, with the site's number
        ("Brats18_2013_2_1", "BraTS19_2013_2_2"),
        ("BraTS-GLI-00005-000", "BraTS-GLI-00005-101"),
        ("TCGA-02-0006_1996.08.23", "TCGA-02-0006_1997.01.01"),
        ("UPENN-GBM-00001_11", "UPENN-GBM-00001_21"),
        ("sub-01_ses-1", "sub-01_ses-2"),
        ("BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0001-2"),
    ],
)
def test_visits_of_one_patient(first, second):
    assert patient_of(first).lower() == patient_of(second).lower()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("BraTS2021_00000", "BraTS2021_00001"),
        ("BraTS20_Training_001", "BraTS20_Validation_001"),
        ("BraTS-GLI-00005-000", "BraTS-MET-00005-000"),
        ("BraTS-GLI-00005-000", "BraTS-GLI-00050-000"),
        ("Brats18_2013_2_1", "Brats18_2013_20_1"),
        ("mine_1", "mine_2"),
    ],
)
def test_different_patients(first, second):
    assert patient_of(first).lower() != patient_of(second).lower()


def test_the_grid_settles_the_scheme_of_gliomas_only():
    def names(case_id, shape):
        return [scheme.name for scheme in schemes_by_name(case_id, shape)]

    assert names("BraTS-GLI-00000-000", (182, 218, 182)) == ["brats2024"]
    assert names("BraTS-GLI-00000-000", (240, 240, 155)) == ["brats2023"]
    assert names("BraTS-GLI-00000-000", None) == ["brats2023", "brats2024"]
    assert names("BraTS-MET-00000-000", (240, 240, 155)) == ["brats2023", "brats2024"]
    assert names("anything", (240, 240, 155)) == []


def test_every_id_has_a_row():
    assert naming_of("x").name == "other"
    assert naming_of("line\nbreak").name == "other"


# Names of public data sets (TCIA, Kaggle, BIDS, CaPTk), and what looks like them but is not.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-01_T1w", ("sub-01", "t1")),
        ("sub-01_ce-gadolinium_T1w", ("sub-01", "t1ce")),
        ("sub-01_ses-2_acq-3d_ce-gd_run-1_T1w", ("sub-01_ses-2", "t1ce")),
        ("sub-01_ses-2_acq-tse_T2w", ("sub-01_ses-2", "t2")),
        ("sub-01_ce-gd_FLAIR", ("sub-01_ce-gd_FLAIR", "")),
        ("sub-01_space-T1w_desc-manual_dseg", ("sub-01", "label")),
        ("sub-01_ses-2_ce-gadolinium_dseg", ("sub-01_ses-2", "label")),
        ("UCSF-PDGM-0004_tumor_segmentation", ("UCSF-PDGM-0004", "label")),
        ("UCSF-PDGM-0004_brain_segmentation", ("UCSF-PDGM-0004_brain_segmentation", "")),
        ("UCSF-PDGM-0004_brain_parenchyma_segmentation",
         ("UCSF-PDGM-0004_brain_parenchyma_segmentation", "")),
        ("UCSF-PDGM-0004_T1_bias", ("UCSF-PDGM-0004_T1_bias", "")),
        ("RHUH-0001_0_segmentations", ("RHUH-0001_0", "label")),
        ("PatientID_0003_Timepoint_1_brain_t1n", ("PatientID_0003_Timepoint_1", "t1")),
        ("PatientID_0003_Timepoint_1_tumorMask", ("PatientID_0003_Timepoint_1", "label")),
        ("UPENN-GBM-00001_11_T1GD", ("UPENN-GBM-00001_11", "t1ce")),
        ("UPENN-GBM-00001_11_automated_approx_segm", ("UPENN-GBM-00001_11", "label")),
        ("HGG147_Label", ("HGG147", "label")),
        ("CT1", ("", "t1ce")),
        ("T1CE_to_SRI_brain", ("", "t1ce")),
        ("FL_to_SRI_brain", ("", "flair")),
        ("T1_to_SRI", ("T1_to_SRI", "")),  # with the skull
        ("C1_brain_mask", ("C1_brain_mask", "")),
        ("C1_brain_seg", ("C1_brain_seg", "")),
        ("C1_ground_truth", ("C1", "label")),
    ],
)  # fmt: skip
def test_names_of_public_data_sets(name, expected):
    assert parse_name(name) == expected


@pytest.mark.parametrize(
    ("folder", "case_id"),
    [
        ("003/2019-01-02", "003_2019-01-02"),
        ("003/20190102", "003_20190102"),
        ("Anna/baseline/anat", "Anna_baseline"),
        ("Anna/post-op", "Anna_post-op"),
        ("Anna/tumour", "tumour"),
    ],
)
def test_folders_of_visits_go_with_their_patient(folder, case_id):
    assert folder_id(Path("/data") / folder) == case_id


@pytest.mark.parametrize(
    ("case_id", "patient", "naming"),
    [
        ("UCSF-PDGM-0315_FU003d", "UCSF-PDGM-0315", "UCSF-PDGM"),
        ("RHUH-0001_2", "RHUH-0001", "RHUH-GBM"),
        ("PatientID_0003_Timepoint_1", "PatientID_0003", "MU-Glioma-Post"),
        ("Patient-001_week-000-2", "Patient-001", "LUMIERE"),
        ("A_visit2", "A", VISITS),
        ("glioma7-tp-03", "glioma7", VISITS),
        ("X_week 12", "X", VISITS),
        ("week-000", "week-000", "other"),  # no patient is left
        ("setup_1", "setup_1", "other"),
        ("case_12", "case_12", "other"),
    ],
)
def test_patients_of_visits(case_id, patient, naming):
    assert (patient_of(case_id), naming_of(case_id).name) == (patient, naming)


@pytest.mark.parametrize(
    ("path", "case_id"),
    [
        ("d/Patient-001/week-000/CT1.nii.gz", "Patient-001_week-000"),
        ("d/Anna/scan/t1.nii.gz", "Anna"),
        ("d/Anna/ses-2/anat/t1.nii.gz", "Anna_ses-2"),
        ("d/X_flair.nii/00000057_brain_flair.nii", "X"),
        ("d/X_seg.nii/00000057_final_seg.nii", "X"),
        ("d/X.nii/other.nii", "other"),  # the folder's name is not that of a file of a case
    ],
)
def test_folders_that_name_no_case_or_are_named_like_files(path, case_id):
    assert case_id_of(Path("/") / path) == case_id


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A_uncertainty", True),
        ("A_unc_core", True),
        ("uncertainty", True),
        ("A_unc_edema", False),
        ("Aunc_core", False),
        ("A_seg", False),
    ],
)
def test_maps_of_predict_are_known_by_their_names(name, expected):
    assert lies_beside(name) is expected


def test_the_file_beside_a_label_map():
    assert companion(Path("out/a.b.nii.gz"), "x") == Path("out/a.b_x.nii.gz")
    assert companion(Path("seg.nii"), "x") == Path("seg_x.nii.gz")
