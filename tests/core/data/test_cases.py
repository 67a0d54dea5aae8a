"""Every naming scheme of the table of FACTS, on trees of tiny files, and what is told apart."""

import gzip
import json
import os
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import REAL, needs_real

from brats_cli.core.data.cases import (
    MODALITIES,
    case_at,
    find_cases,
    find_each,
    find_label_maps,
    nifti_files,
    read_images,
    survey,
    with_schemes,
)
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.errors import (
    BratsWarning,
    CaseError,
    GridMismatchError,
    LabelError,
    MissingModalityError,
    NoCasesError,
    UnreadableFileError,
)
from brats_cli.core.images.nifti import LabelCount

GLI_2023 = (240, 240, 155)
GLI_2024 = (182, 218, 182)


def put(path, *, shape=(2, 2, 2), affine=None, value=0):
    """Write an image of one value, with intensities that tell which one it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.eye(4) if affine is None else affine
    nib.save(nib.Nifti1Image(np.full(shape, value, np.uint8), affine), path)
    return path


def put_header(path, shape):
    """The first bytes of an image, which is all that listing cases may read."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    content = header.binaryblock + bytes(4)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


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


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """All of `DISTRIBUTED` in one data set, as somebody might keep it, and what lies about."""
    root = tmp_path_factory.mktemp("tree")
    for row, (folder, case_id, joint, suffixes, *_) in enumerate(DISTRIBUTED):
        put_all(root / folder, names_of(case_id, joint, suffixes, ENDINGS[row % 3]))
    (root / "name_mapping.csv").write_text("a table\n")
    put(root / "2021/BraTS2021_00000/BraTS2021_00000_brain_mask.nii.gz")
    put(root / "2021/BraTS2021_00000/._BraTS2021_00000_t1.nii.gz")  # macOS leaves such behind
    return root


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


def decathlon(root, description=None):
    put(root / "imagesTr/BRATS_001.nii.gz", shape=(2, 2, 2, 4))
    put(root / "labelsTr/BRATS_001.nii.gz")
    put(root / "imagesTs/BRATS_485.nii.gz", shape=(2, 2, 2, 4))
    if description:
        (root / "dataset.json").write_text(json.dumps(description))
    return root


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


def test_an_empty_folder_holds_no_case(tmp_path):
    with pytest.raises(NoCasesError, match=f"no cases in {tmp_path}$"):
        find_cases(tmp_path)


def test_files_of_another_format_are_named(tmp_path):
    (tmp_path / "VSD.Brain.XX.O.MR_T1.54513.mha").touch()  # as of 2012-2015
    with pytest.raises(NoCasesError, match=r"\(only .mha files: convert them to .nii.gz\)"):
        find_cases(tmp_path)


def test_a_missing_modality_is_named(tmp_path):
    put_all(tmp_path, ["x_t1.nii.gz", "x_flair.nii.gz"])
    (case,) = find_cases(tmp_path)
    with pytest.raises(MissingModalityError, match=r"case x has no t1ce, t2 \(found: t1, flair\)"):
        case.require()


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


def test_links_are_followed_once(tmp_path):
    put_all(tmp_path / "elsewhere/x", four("x", OLD))
    data = tmp_path / "data"
    data.mkdir()
    (data / "link").symlink_to(tmp_path / "elsewhere")
    (data / "again").symlink_to(tmp_path / "elsewhere/x")
    (tmp_path / "elsewhere/round").symlink_to(data)
    assert [case.id for case in find_cases(data)] == ["x"]


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


# --- label schemes of a data set ---------------------------------------------------------------


def schemes(root, values, labels=None):
    """Schemes by case id, where the label map of each case holds `values` of that case."""
    cases = find_cases(root)
    counts = {case.id: LabelCount(dict.fromkeys(values[case.id], 1), 1.0) for case in cases}
    return {case.id: case.scheme.name for case in with_schemes(cases, counts, labels)}


def pair(root, first, second):
    for case_id in (first, second):
        put_all(root / case_id, four(case_id, OLD))


def test_years_can_be_mixed(tmp_path):
    pair(tmp_path, "BraTS2021_00000", "BraTS-SSA-00001-000")
    found = schemes(tmp_path, {"BraTS2021_00000": (0, 2), "BraTS-SSA-00001-000": (0, 2, 3)})
    assert found == {"BraTS2021_00000": "brats2020", "BraTS-SSA-00001-000": "brats2023"}


def test_values_are_judged_over_the_whole_data_set(tmp_path):
    # The first case alone could be of any year; the second has a 4 and no 3.
    pair(tmp_path, "a", "b")
    assert set(schemes(tmp_path, {"a": (0, 1, 2), "b": (0, 1, 4)}).values()) == {"brats2020"}


def test_a_resection_cavity_anywhere_is_of_2024(tmp_path):
    pair(tmp_path, "BraTS-MET-00001-000", "BraTS-MET-00002-000")
    values = {"BraTS-MET-00001-000": (0, 1, 2, 3), "BraTS-MET-00002-000": (0, 2, 4)}
    assert set(schemes(tmp_path, values).values()) == {"brats2024"}


def test_children_of_2023_and_2024_are_not_guessed(tmp_path):
    pair(tmp_path, "BraTS-PED-00001-000", "BraTS-PED-00002-000")
    values = {"BraTS-PED-00001-000": (0, 1, 2, 3), "BraTS-PED-00002-000": (0, 2)}
    with pytest.raises(LabelError, match="fit several schemes: brats2023, brats2024-ped"):
        schemes(tmp_path, values)
    values["BraTS-PED-00002-000"] = (0, 4)  # 2023 had no 4
    assert set(schemes(tmp_path, values).values()) == {"brats2024-ped"}


def test_two_schemes_that_fit_are_named_with_the_flag(tmp_path):
    pair(tmp_path, "a", "b")
    values = {"a": (0, 1, 2, 3), "b": (0, 1)}
    with pytest.raises(
        LabelError, match=r"a_seg.nii.gz \(and 1 more with such a name\) h"
    ) as caught:
        schemes(tmp_path, values)
    assert caught.value.hint == "choose one with --labels: brats2023, msd, nnunet"
    assert set(schemes(tmp_path, values, labels="nnunet").values()) == {"nnunet"}


def test_a_case_whose_values_belie_its_name_is_named_alone(tmp_path):
    pair(tmp_path, "BraTS2021_00000", "BraTS2021_00001")
    values = {"BraTS2021_00000": (0, 1, 2, 4), "BraTS2021_00001": (0, 1, 2, 3)}
    with pytest.raises(LabelError, match=r"00001_seg.nii.gz .*its name indicates brats2020"):
        schemes(tmp_path, values)


# --- images ------------------------------------------------------------------------------------


def test_images_come_in_the_order_asked_for(tmp_path):
    for value, suffix in enumerate(OLD[:4]):
        put(tmp_path / f"x_{suffix}.nii.gz", value=value)
    (case,) = find_cases(tmp_path)
    assert [int(image.data[0, 0, 0]) for image in read_images(case)] == [0, 1, 2, 3]
    assert [int(v.data[0, 0, 0]) for v in read_images(case, ("flair", "t1"))] == [3, 0]


def test_channels_of_one_file_come_in_our_order(tmp_path):
    data = np.broadcast_to(np.arange(4, dtype=np.int16), (2, 3, 4, 4))  # FLAIR, T1, T1ce, T2
    nib.save(nib.Nifti1Image(data.copy(), np.eye(4)), tmp_path / "x.nii.gz")
    images = read_images(case_at(tmp_path / "x.nii.gz"))
    assert [(image.shape, int(image.data[0, 0, 0])) for image in images] == [
        ((2, 3, 4), 1), ((2, 3, 4), 2), ((2, 3, 4), 3), ((2, 3, 4), 0),
    ]  # fmt: skip


def shifted(millimetres):
    affine = np.eye(4)
    affine[0, 3] = millimetres
    return affine


def case_with_t2_off_by(tmp_path, millimetres):
    put_all(tmp_path, four("x", OLD[:4]))
    put(tmp_path / "x_t2.nii.gz", affine=shifted(millimetres))
    return case_at(tmp_path)


def test_a_hundredth_of_a_millimetre_is_nothing(tmp_path):
    assert len(read_images(case_with_t2_off_by(tmp_path, 0.0099))) == 4


def test_up_to_half_a_voxel_is_warned_about_and_reconciled(tmp_path):
    case = case_with_t2_off_by(tmp_path, 0.4)
    with pytest.warns(BratsWarning, match=r"x_t2.nii.gz is 0.4 mm off the grid of .*x_t1.nii.gz"):
        images = read_images(case)
    np.testing.assert_array_equal(images[2].affine, images[0].affine)


def test_more_than_half_a_voxel_is_an_error_that_names_both_files(tmp_path):
    case = case_with_t2_off_by(tmp_path, 0.6)
    with pytest.raises(GridMismatchError, match=r"x_t2.* grid of .*x_t1.*: corners 0.6 mm apart"):
        read_images(case)


# --- size, and the real cases ------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_cases_are_all_found(tmp_path):
    for number in range(10_000):
        folder = tmp_path / f"BraTS-GLI-{number:05}-000"
        folder.mkdir()
        for suffix in NEW:
            (folder / f"{folder.name}-{suffix}.nii.gz").touch()
    assert len(find_cases(tmp_path)) == 10_000  # benchmarks/bench_listing.py tells how fast
    assert len(nifti_files(tmp_path)) == 50_000
    shutil.rmtree(tmp_path)  # pytest would keep so many files of three runs


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


def test_a_folder_that_may_not_be_read_is_skipped_with_a_warning(tmp_path, monkeypatch):
    put_all(tmp_path, ["a/X_t1.nii", "lost+found/Y_t1.nii"])
    scandir = os.scandir

    def refused(path):
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.warns(BratsWarning, match=r"lost\+found: Permission denied; it is skipped"):
        assert list(found(survey(tmp_path))) == ["X"]
    with pytest.raises(UnreadableFileError, match="Permission denied"):
        survey(tmp_path / "lost+found")


def test_links_to_themselves_are_left_out(tmp_path):
    put(tmp_path / "a/X_t1.nii")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a/b.nii").symlink_to("b.nii")
    assert list(found(survey(tmp_path))) == ["X"]


def test_many_links_are_listed_at_the_speed_of_folders(tmp_path):
    for number in range(400):
        folder = tmp_path / f"real/{number}"
        folder.mkdir(parents=True)
        (folder / f"X{number:04}_t1.nii").touch()
        (tmp_path / "links").mkdir(exist_ok=True)
        (tmp_path / f"links/{number}").symlink_to(folder)
    started = time.process_time()
    assert len(survey(tmp_path / "real").cases) == 400
    folders = time.process_time() - started
    assert len(survey(tmp_path / "links").cases) == 400
    # Comparing each link with each other took 50 times as long.
    assert time.process_time() - started < 10 * folders


UNCLEAR = {"background": 0, "label_1": 1, "label_2": 2, "label_3": 3}


@pytest.mark.parametrize("words", [UNCLEAR, {"background": 0, "ET": 1, "NCR": 2, "ED": 3}])
def test_labels_that_dataset_json_names_unclearly_ask_for_the_scheme(tmp_path, words):
    put_all(tmp_path / "imagesTr", [f"c_000{n}.nii.gz" for n in range(4)])
    put(tmp_path / "labelsTr/c.nii.gz", value=3)
    channels = {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": channels, "labels": words}))
    (case,) = find_cases(tmp_path)
    counts = {"c": LabelCount({0: 1, 1: 1, 2: 1, 3: 1}, 1.0)}
    with pytest.raises(LabelError, match=r"its dataset.json says '1 .*, which no label") as caught:
        with_schemes([case], counts)
    assert caught.value.hint.startswith("choose one with --labels: brats2015")
    assert with_schemes([case], counts, SCHEMES["msd"])[0].scheme.name == "msd"


def test_a_background_of_another_value_is_taken_as_0_with_a_warning(tmp_path):
    for role in ("t1", "t1ce", "t2", "flair"):
        data = np.full((6, 6, 6), -1000, np.int16)
        data[2:4, 2:4, 2:4] = 7
        nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / f"X_{role}.nii")
    with pytest.warns(BratsWarning) as caught:
        images = read_images(case_at(tmp_path))
    assert [str(each.message) for each in caught] == [
        f"{tmp_path}/X_{role}.nii: its background is -1000, taken as 0" for role in MODALITIES
    ]
    assert [(image.data.sum(), image.data.min()) for image in images] == [(56, 0)] * 4
