"""Cases as trees of tiny files, in the naming of every BraTS year, for the tests of data."""

import json

import nibabel as nib
import numpy as np


def put(path, *, shape=(2, 2, 2), affine=None, value=0):
    """Write an image of one value, with intensities that tell which one it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4) if affine is None else affine
    nib.save(nib.Nifti1Image(np.full(shape, value, np.uint8), affine), path)
    return path


def put_all(folder, names, **kwargs):
    for name in names:
        put(folder / name, **kwargs)


def four(case_id, suffixes, ending=".nii.gz", joint="_"):
    return [f"{case_id}{joint}{suffix}{ending}" for suffix in suffixes]


OLD = ("t1", "t1ce", "t2", "flair", "seg")
UPPER = ("T1", "T1CE", "T2", "FLAIR", "SEG")
NEW = ("t1n", "t1c", "t2w", "t2f", "seg")
WILD_NEW = ("t1n", "t1c", "t2W", "t2f", "seg")
TCGA = ("t1", "t1Gd", "t2", "flair", "GlistrBoost_ManuallyCorrected")

# What the challenges distribute, and what is met in the wild (FACTS section 1): a folder, the case
# id, what joins it to the endings of its files, these endings, then what is to be recognised: the
# patient, and the label schemes that the name leaves open.
DISTRIBUTED = [
    ("HGG/Brats17_TCIA_248_1", "Brats17_TCIA_248_1", "_", OLD, "TCIA_248", "brats2020"),
    ("HGG/Brats18_TCIA09_248_1", "Brats18_TCIA09_248_1", "_", OLD, "TCIA_248", "brats2020"),
    ("LGG/Brats18_2013_0_1", "Brats18_2013_0_1", "_", OLD, "2013_0", "brats2020"),
    ("LGG/BraTS19_TMC_06290_1", "BraTS19_TMC_06290_1", "_", OLD, "TMC_06290", "brats2020"),
    ("2020/001", "BraTS20_Training_001", "_", OLD, "BraTS20_Training_001", "brats2020"),
    ("2020/V", "BraTS20_Validation_001", "_", OLD, "BraTS20_Validation_001", "brats2020"),
    ("2021/BraTS2021_00000", "BraTS2021_00000", "_", OLD, "BraTS2021_00000", "brats2020"),
    (".", "BraTS2021_00002", "_", OLD, "BraTS2021_00002", "brats2020"),
    (".", "BraTS2021_00003", "_", OLD, "BraTS2021_00003", "brats2020"),
    ("upper", "BRATS2021_00004", "_", UPPER, "BRATS2021_00004", "brats2020"),
    ("gli", "BraTS-GLI-00000-000", "-", NEW, "BraTS-GLI-00000", "brats2023 brats2024"),
    ("gli2", "BraTS-GLI-00000-001", "-", WILD_NEW, "BraTS-GLI-00000", "brats2023 brats2024"),
    ("ssa", "BraTS-SSA-00002-000", "-", NEW, "BraTS-SSA-00002", "brats2023 brats2024"),
    ("men", "BraTS-MEN-00004-001", "-", NEW, "BraTS-MEN-00004", "brats2023 brats2024"),
    ("met", "BraTS-MET-00001-000", "-", NEW, "BraTS-MET-00001", "brats2023 brats2024"),
    ("ped", "BraTS-PED-00001-000", "-", NEW, "BraTS-PED-00001", "brats2023 brats2024-ped"),
    ("tcga", "TCGA-02-0006_1996.08.23", "_", TCGA, "TCGA-02-0006", "brats2020"),
    ("patient_7", "patient_7", None, OLD, "patient_7", ""),
    ("wild/a", "wild_a", "_", ("T1", "t1c", "T2", "fla", "seg"), "wild_a", ""),
    ("wild/b", "wild.b", ".", ("t1", "t1gd", "t2", "FLAIR", "SEG"), "wild.b", ""),
]
ENDINGS = (".nii", ".nii.gz", ".NII.GZ")


def names_of(case_id, joint, suffixes, ending):
    return [f"{'' if joint is None else case_id + joint}{suffix}{ending}" for suffix in suffixes]


def decathlon(root, description=None):
    put(root / "imagesTr/BRATS_001.nii.gz", shape=(2, 2, 2, 4))
    put(root / "labelsTr/BRATS_001.nii.gz")
    put(root / "imagesTs/BRATS_485.nii.gz", shape=(2, 2, 2, 4))
    if description:
        (root / "dataset.json").write_text(json.dumps(description))
    return root
