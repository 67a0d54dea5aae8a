import numpy as np
import pytest
import torch

from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.train.config import TrainConfig
from brats_cli.core.train.thresholds import (
    THRESHOLDS,
    Counts,
    SelectionPass,
    select_decision,
    select_thresholds,
)
from brats_cli.core.train.training import train

HALF = THRESHOLDS.index(0.5)
SIX = THRESHOLDS.index(0.6)


def test_the_thresholds_that_are_tried():
    assert THRESHOLDS == (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)


def test_counts_by_hand():
    # Five voxels; a threshold is reached by what equals it.
    probability = torch.tensor([0.1, 0.25, 0.5, 0.62, 0.9]).view(1, 5, 1, 1)
    truth = torch.tensor([False, True, False, True, True]).view(1, 5, 1, 1)
    counts = Counts.of(probability, truth)
    assert counts.true.tolist() == [3]
    assert counts.found.tolist() == [[4, 4, 3, 3, 3, 3, 3, 2, 2, 1, 1, 1, 1]]
    assert counts.common.tolist() == [[3, 3, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1]]
    # 0.5: 2 of 3 found are true, of 3: 4/6. 0.6: 2 of 2 found: 4/5.
    assert counts.dice()[0, [0, HALF, SIX]] == pytest.approx([6 / 7, 4 / 6, 4 / 5])


def test_counts_are_those_of_masks():
    random = torch.Generator().manual_seed(0)
    probability = torch.rand(3, 9, 8, 7, generator=random)
    truth = torch.rand(3, 9, 8, 7, generator=random) < 0.3
    counts = Counts.of(probability, truth)
    for place, threshold in enumerate(THRESHOLDS):
        found = probability >= threshold
        assert counts.found[:, place].tolist() == found.sum((1, 2, 3)).tolist()
        assert counts.common[:, place].tolist() == (found & truth).sum((1, 2, 3)).tolist()


def case(*regions):
    """Counts of WT, TC and ET, each given as (true, found, common) at every threshold."""
    true, found, common = zip(*regions, strict=True)
    each = (len(THRESHOLDS),)
    return Counts(
        np.array(true),
        np.stack([np.broadcast_to(value, each) for value in found]),
        np.stack([np.broadcast_to(value, each) for value in common]),
    )


RIGHT = (100, 100, 100)


def better_at(place, common, usual):
    """`common` voxels at one threshold, and `usual` at the others."""
    found = np.full(len(THRESHOLDS), usual)
    found[place] = common
    return found


def test_a_threshold_is_changed_where_that_pays():
    # Dice of WT 0.90 at 0.6 and 0.80 else; TC 0.803 at 0.6, which is no gain worth having.
    whole = (100, 100, better_at(SIX, 90, 80))
    core = (1000, 1000, better_at(SIX, 803, 800))
    decision = select_decision([case(whole, core, RIGHT)] * 2)
    assert decision.thresholds == {"WT": 0.6, "TC": 0.5, "ET": 0.5}
    assert decision.smallest_et_mm3 == 0


def test_a_threshold_is_chosen_over_all_cases():
    # One case gains 0.1 at 0.6, the other loses 0.2.
    gains = case((100, 100, better_at(SIX, 90, 80)), RIGHT, RIGHT)
    loses = case((100, 100, better_at(SIX, 60, 80)), RIGHT, RIGHT)
    assert select_decision([gains, loses]).thresholds["WT"] == 0.5


@pytest.mark.parametrize(
    ("gains", "threshold"),
    [
        # Mean 0.1, standard error 0.018 of five: t 5.4, and Student's quantile is 3.75.
        ([0.05, 0.07, 0.1, 0.13, 0.15], 0.6),
        # Of three, mean 0.1 and standard error 0.029: t 3.5 and 6.96.
        ([0.05, 0.1, 0.15], 0.5),
        # Of two, mean 0.1 and standard error 0.05: t 2 and 31.8.
        ([0.05, 0.15], 0.5),
        # Mean 0.04, standard error 0.024 of five: t 1.7, and 3.75.
        ([0, 0.01, 0.04, 0.02, 0.13], 0.5),
        # One case has no spread.
        ([0.15], 0.5),
    ],
)
def test_a_threshold_is_changed_where_that_is_no_chance(gains, threshold):
    # 100 voxels, as many found: Dice is the hundredth of those in common.
    cases = [
        case((100, 100, better_at(SIX, round(80 + 100 * gain), 80)), RIGHT, RIGHT) for gain in gains
    ]
    assert select_decision(cases).thresholds["WT"] == threshold


def test_little_enhancing_tumour_is_none_where_that_pays():
    # 40 voxels found where there are none, 0 for Dice; 60 true ones elsewhere. Under 50, the first
    # becomes 1 and the second stays; from 100 on, the second would be lost. Of four such gains
    # and one 0 the mean is 0.8 and the standard error 0.2: t 4, and Student's quantile 3.75.
    false, true = case(RIGHT, RIGHT, (0, 40, 0)), case(RIGHT, RIGHT, (60, 60, 60))
    assert select_decision([*[false] * 4, true]).smallest_et_mm3 == 50
    # Below is below: 50 voxels that are found where there are none are relabelled from 100 on.
    fifty = case(RIGHT, RIGHT, (0, 50, 0))
    assert select_decision([*[fifty] * 4, true]).smallest_et_mm3 == 0
    assert select_decision([*[fifty] * 4, case(RIGHT, RIGHT, RIGHT)]).smallest_et_mm3 == 100
    # Of a single gain the mean is 0.2, and so is the standard error.
    assert select_decision([false, *[true] * 4]).smallest_et_mm3 == 0
    assert select_decision([true] * 5).smallest_et_mm3 == 0


def exhausted(work):
    """What a generator yields, and what it returns."""
    yielded = []
    while True:
        try:
            yielded.append(next(work))
        except StopIteration as end:
            return yielded, end.value


@pytest.mark.slow
def test_thresholds_are_selected_and_scored(stored_case):
    labels = np.zeros((20, 18, 17))
    labels[3:12, 3:12, 3:12] = 2
    labels[5:9, 5:9, 5:9] = 3
    images = np.random.default_rng(0).normal(0, 0.3, (2, *labels.shape)) + labels
    cases = [stored_case(images, labels, case_id=f"case{number}") for number in range(2)]
    config = TrainConfig(
        epochs=1,
        steps_per_epoch=2,
        patch_size=16,
        modalities=("t1", "flair"),
        network=UNetConfig(channels=2, levels=2),
        precision="float32",
        workers=0,
    )
    *_, epoch = train(config, cases, cases, SCHEMES["brats2023"], torch.device("cpu"))
    passes, (found, scored) = exhausted(
        select_thresholds(epoch.checkpoint, cases, torch.device("cpu"))
    )
    assert passes == [SelectionPass(done, 4) for done in range(5)]  # two over each case
    assert [each.case_id for each in scored] == ["case0", "case1"]
    assert set(found.decision.thresholds) == {"WT", "TC", "ET"}
    assert found.weights is epoch.checkpoint.weights
    for region, dice in found.scores.items():
        assert dice == pytest.approx(np.mean([each.scores[region].dice for each in scored]))
        # Chosen on these very cases, nothing can be worse than at 0.5.
        assert dice >= epoch.dice[region] - 1e-9
