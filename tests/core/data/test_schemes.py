import json

import pytest
from casefiles import OLD, four, put, put_all

from brats_cli.core.data.finding import find_cases
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.data.schemes import with_schemes
from brats_cli.core.errors import LabelError
from brats_cli.core.images.nifti import LabelCount


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
