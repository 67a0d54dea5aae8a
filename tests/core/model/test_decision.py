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


# --- of networks trained on labels, and calibration --------------------------------------------


def test_the_most_likely_tissue_wins_where_labels_exclude_each_other():
    # Background, edema, necrosis and enhancement, as a softmax gives them.
    softmax = np.array(
        [[0.4, 0.35, 0.15, 0.1], [0.3, 0.4, 0.2, 0.1], [0.1, 0.2, 0.4, 0.3], [0, 0.1, 0.4, 0.5]]
    ).T
    regions = [softmax[1:].sum(0), softmax[2:].sum(0), softmax[3]]
    volumes = [region.reshape(4, 1, 1) for region in regions]
    scheme = SCHEMES["brats2023"]
    decided = Decision(rule="most likely").label_map(volumes, scheme)
    assert decided.ravel().tolist() == [0, 2, 1, 3]
    # At a threshold of a half the first would be edema, for WT has 0.6 there.
    assert Decision().label_map(volumes, scheme).ravel().tolist() == [2, 2, 1, 3]


def test_a_temperature_divides_the_logit():
    decision = Decision(temperatures={"WT": 2.0})
    values = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    # Logits log 9 and -log 9, halved: 3 to 1.
    np.testing.assert_allclose(decision.calibrated("WT", values), [0, 0.25, 0.5, 0.75, 1])
    assert decision.calibrated("TC", values) is values


def test_rule_and_temperatures_come_back_and_are_left_out_by_default():
    decision = Decision({"WT": 0.4}, 25.0, "most likely", {"ET": 1.5})
    assert Decision.of(decision.content()) == decision
    assert Decision().content() == {"thresholds": {}, "smallest_et_mm3": 0.0}


def test_an_ensemble_keeps_a_common_rule_and_no_temperatures():
    likely = Decision(rule="most likely", temperatures={"WT": 2.0})
    assert Decision.average([likely]).temperatures == {"WT": 2.0}
    both = Decision.average([likely, likely])
    assert (both.rule, both.temperatures) == ("most likely", {})
    assert Decision.average([likely, Decision()]).rule == "thresholds"
