"""Every row of the README's table of data sets, held against what brats makes of such files."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brats_cli.core.data.finding import find_cases
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.data.naming import MODALITIES

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
TABLE = README[README.index("| data set | a case |") :].partition("\n\n")[0].splitlines()[2:]
ROWS = {
    cells[0]: cells[1:] for cells in ([c.strip() for c in row.split("|")[1:-1]] for row in TABLE)
}
SUFFIXES = ("t1", "t1ce", "t2", "flair", "seg")
SUFFIXES_2023 = ("t1n", "t1c", "t2w", "t2f", "seg")
DATASET_JSON = (
    '{"channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "Flair"},'
    ' "labels": {"background": 0, "edema": 1, "necrosis": 2, "enhancing tumor": 3}}'
)


def files(pattern, endings):
    return [pattern.format(ending) for ending in endings]


# By the first cell of a row: the files of a case, its id, its patient, the schemes that it leaves
# open (of none, its values decide, or the user is asked).
CASES = {
    "BraTS 2017-2019": [
        files("HGG/Brats18_TCIA09_248_1/Brats18_TCIA09_248_1_{}.nii.gz", SUFFIXES),
        *("Brats18_TCIA09_248_1", "TCIA_248", ["brats2020"]),
    ],
    "BraTS 2020": [
        [
            *files("BraTS20_Training_355/BraTS20_Training_355_{}.nii", SUFFIXES[:4]),
            "BraTS20_Training_355/W39_1998.09.19_Segm.nii",
        ],
        *("BraTS20_Training_355", "BraTS20_Training_355", ["brats2020"]),
    ],
    "BraTS 2021, 2022": [
        files("BraTS2021_00000/BraTS2021_00000_{}.nii.gz", SUFFIXES),
        *("BraTS2021_00000", "BraTS2021_00000", ["brats2020"]),
    ],
    "BraTS 2023 GLI, SSA, MEN, MET": [
        files("BraTS-GLI-00000-000/BraTS-GLI-00000-000-{}.nii.gz", SUFFIXES_2023),
        *("BraTS-GLI-00000-000", "BraTS-GLI-00000", ["brats2023", "brats2024"]),
    ],
    "BraTS 2024 and later, the same": [
        files("BraTS-MET-00000-000/BraTS-MET-00000-000-{}.nii.gz", SUFFIXES_2023),
        *("BraTS-MET-00000-000", "BraTS-MET-00000", ["brats2023", "brats2024"]),
    ],
    "BraTS PED": [
        files("BraTS-PED-00000-000/BraTS-PED-00000-000-{}.nii.gz", SUFFIXES_2023),
        *("BraTS-PED-00000-000", "BraTS-PED-00000", ["brats2023", "brats2024-ped"]),
    ],
    "TCGA-GBM, TCGA-LGG": [
        [
            *files("TCGA-02-0006_1996.08.23_{}.nii.gz", ("t1", "t1Gd", "t2", "flair")),
            "TCGA-02-0006_1996.08.23_GlistrBoost_ManuallyCorrected.nii.gz",
        ],
        *("TCGA-02-0006_1996.08.23", "TCGA-02-0006", ["brats2020"]),
    ],
    "Medical Decathlon Task01": [
        ["imagesTr/BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz"],
        *("BRATS_001", "BRATS_001", ["msd"]),
    ],
    "nnU-Net's raw folders and predictions": [
        [
            *files("imagesTr/CASE_{}.nii.gz", ("0000", "0001", "0002", "0003")),
            "labelsTr/CASE.nii.gz",
            "dataset.json",
        ],
        *("CASE", "CASE", ["nnunet"]),
    ],
    "Kaggle's copies of BraTS": [
        [
            "BraTS20_Training_001_flair.nii/00000057_brain_flair.nii",
            "BraTS20_Training_001_t1.nii/00000057_brain_t1.nii",
            "BraTS20_Training_001_t1ce.nii/00000057_brain_t1ce.nii",
            "BraTS20_Training_001_t2.nii/00000057_brain_t2.nii",
            "BraTS20_Training_001_seg.nii/00000057_final_seg.nii",
        ],
        *("BraTS20_Training_001", "BraTS20_Training_001", ["brats2020"]),
    ],
    "UCSF-PDGM": [
        files(
            "UCSF-PDGM-0004_FU001d_nifti/UCSF-PDGM-0004_FU001d_{}.nii.gz",
            ("T1", "T1c", "T2", "FLAIR", "tumor_segmentation"),
        ),
        *("UCSF-PDGM-0004_FU001d", "UCSF-PDGM-0004", []),
    ],
    "UPENN-GBM": [
        files(
            "UPENN-GBM-00001_11/UPENN-GBM-00001_11_{}.nii.gz",
            ("T1", "T1GD", "T2", "FLAIR", "automated_approx_segm"),
        ),
        *("UPENN-GBM-00001_11", "UPENN-GBM-00001", []),
    ],
    "RHUH-GBM": [
        files("RHUH-0001/0/RHUH-0001_0_{}.nii.gz", ("t1", "t1ce", "t2", "flair", "segmentations")),
        *("RHUH-0001_0", "RHUH-0001", []),
    ],
    "MU-Glioma-Post": [
        [
            *files(
                "PatientID_0003/Timepoint_1/PatientID_0003_Timepoint_1_brain_{}.nii.gz",
                SUFFIXES_2023[:4],
            ),
            "PatientID_0003/Timepoint_1/PatientID_0003_Timepoint_1_tumorMask.nii.gz",
        ],
        *("PatientID_0003_Timepoint_1", "PatientID_0003", []),
    ],
    "LUMIERE": [
        files("Patient-001/week-000/{}.nii.gz", ("T1", "CT1", "T2", "FLAIR")),
        *("Patient-001_week-000", "Patient-001", []),
    ],
    "BIDS": [
        files(
            "sub-01/ses-1/anat/sub-01_ses-1_{}.nii.gz",
            ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR", "dseg"),
        ),
        *("sub-01_ses-1", "sub-01", []),
    ],
    "CaPTk, in a folder of the case": [
        [
            *files("AAAC/{}_to_SRI_brain.nii.gz", ("T1", "T1CE", "T2", "FL")),
            "AAAC/brainTumorMask_SRI.nii.gz",
        ],
        *("AAAC", "AAAC", []),
    ],
    "others": [
        files("CASE_{}.nii.gz", ("t1", "t1gd", "t2", "fla", "label")),
        *("CASE", "CASE", []),
    ],
    "2012-2015, converted to NIfTI": [
        files("pat0103/{}.nii.gz", ("t1", "t1c", "t2", "flair", "seg")),
        *("pat0103", "pat0103", []),
    ],
    "BraTS 2024 MEN-RT": [
        files("BraTS-MEN-RT-0000-1/BraTS-MEN-RT-0000-1_{}.nii.gz", ("t1c", "gtv")),
        *("BraTS-MEN-RT-0000-1", "BraTS-MEN-RT-0000", ["men-rt"]),
    ],
}


def test_every_row_is_held():
    assert set(ROWS) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_row_of_the_readme_is_what_brats_makes_of_such_files(name, tmp_path):
    paths, case_id, patient, schemes = CASES[name]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".json"):
            (tmp_path / path).write_text(DATASET_JSON)
            continue
        shape = (2, 2, 2, 4) if path == "imagesTr/BRATS_001.nii.gz" else (2, 2, 2)
        nib.save(nib.Nifti1Image(np.ones(shape, np.uint8), np.eye(4)), tmp_path / path)
    (case,) = find_cases(tmp_path)
    assert (case.id, case.patient) == (case_id, patient)
    expected = ["t1ce"] if name == "BraTS 2024 MEN-RT" else list(MODALITIES)
    assert list(case.images) == expected
    assert (case.label is None) == (name == "LUMIERE")
    assert [s.name for s in ((case.scheme,) if case.scheme else case.allowed)] == schemes


@pytest.mark.parametrize("name", [name for name in ROWS if "`" in ROWS[name][3]])
def test_the_readmes_schemes_have_the_labels_that_it_says(name):
    named = re.findall(r"`([\w-]+)`", ROWS[name][3])
    assert set(named) <= set(SCHEMES)
    # Such as '1 necrosis and non-enhancing, 2 edema, 4 enhancing', of the scheme named last.
    words = {"edema": "ED", "enhancing": "ET", "necrosis": "NCR", "cyst": "CC"}
    words |= {"resection cavity": "RC", "gross tumour volume": "GTV", "non-enhancing": ""}
    for value, word in re.findall(
        r"(?<!\d)(\d) ([a-z-]+(?: cavity| tumour volume)?)", ROWS[name][2]
    ):
        tissue = SCHEMES[named[-1]].tissues[int(value)]
        assert tissue == (words[word] or tissue)
        assert word != "non-enhancing" or tissue in ("NCR", "NET")
