import nibabel as nib
import numpy as np
import pytest
from helpers import save_nifti, write_case

from brats_cli.core.check.run import check
from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.errors import OutputError


@pytest.fixture
def data(tmp_path):
    """Three cases with labels of 1, 2 and 3 voxels of enhancing tumour."""
    for number in (1, 2, 3):
        labels = np.zeros((6, 6, 6), np.uint8)
        labels[2, 2, : 2 + number] = (1, 2, *[3] * number)
        write_case(tmp_path / "data", f"case_{number}", labels, seed=number)
    return tmp_path / "data"


def test_what_was_repaired_is_in_the_report(data, tmp_path):
    # One case can be repaired (a value that is not finite), one cannot (no T2).
    broken = data / "case_1/case_1_t1.nii.gz"
    voxels = nib.load(broken).get_fdata(dtype=np.float32)
    voxels[0, 0, 0] = np.nan
    save_nifti(broken, voxels)
    (data / "case_2/case_2_t2.nii.gz").unlink()

    before = check(data, labels="brats2023")
    assert (before.errors, before.repaired, before.unrepaired_errors) == (2, (), 2)
    assert before.repairable_errors == 1
    found = check(str(data), labels="brats2023", fix=str(tmp_path / "repaired"))
    assert found.repaired == ("case_1",)
    assert (found.errors, found.unrepaired_errors) == (2, 1)
    assert found.as_dict()["repaired"] == ["case_1"]
    assert check(tmp_path / "repaired", labels="brats2023").errors == 0


def test_a_place_for_repairs_inside_the_data_is_refused_before_anything_is_read(data):
    seen = []
    with pytest.raises(OutputError, match="it lies inside the data set"):
        check(data, fix=data / "repaired", on_progress=lambda *step: seen.append(step))
    assert seen == []


def test_a_scheme_is_given_by_name_or_as_itself(data):
    for labels in ("brats2023", SCHEMES["brats2023"]):
        schemes = [case.scheme for case in check(data, labels=labels).cases]
        assert schemes == [SCHEMES["brats2023"]] * 3
