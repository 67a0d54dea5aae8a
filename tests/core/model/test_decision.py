import numpy as np
import pytest

from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.model.decision import Decision

BRATS2023 = SCHEMES["brats2023"]


def columns(*regions):
    """Probabilities of WT, TC and ET, (3, N, 1, 1)."""
    return np.array(regions, np.float32)[:, :, None, None]


def test_labels_by_hand():
    # WT from 0.5, TC from 0.6, ET from 0.5, which equal values reach.
    found = columns([0.4, 0.5, 0.9, 0.9], [0.1, 0.5, 0.6, 0.9], [0.0, 0.1, 0.4, 0.5])
    labels = Decision({"TC": 0.6}).label_map(found, BRATS2023)
    assert labels.dtype == np.uint8
    assert labels.ravel().tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize(("voxel_mm3", "label"), [(8.0, 3), (7.9, 1)])
def test_the_smallest_enhancing_tumour_is_a_volume(voxel_mm3, label):
    # Two voxels of 8 mm3 are 16 mm3.
    found = columns([0.9, 0.9], [0.9, 0.9], [0.9, 0.9])
    labels = Decision(smallest_et_mm3=16).label_map(found, BRATS2023, voxel_mm3=voxel_mm3)
    assert labels.ravel().tolist() == [label, label]


def test_an_ensemble_averages_thresholds_and_volumes():
    average = Decision.average([Decision({"WT": 0.3}, 50), Decision({"ET": 0.7})])
    assert average.thresholds == pytest.approx({"WT": 0.4, "TC": 0.5, "ET": 0.6})
    assert average.smallest_et_mm3 == 25


def test_a_decision_is_read_from_a_file_as_it_was_written_to_it():
    decision = Decision({"WT": 0.4}, 750.0)
    assert Decision.of(decision.content()) == decision
