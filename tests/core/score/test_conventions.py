import math
from dataclasses import asdict

import numpy as np
import pytest

from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.errors import ConfigError
from brats_cli.core.score.conventions import (
    CONVENTIONS,
    challenge_named,
    challenge_of,
    convention_named,
)
from brats_cli.core.score.metrics import score

UNIT = (1.0, 1.0, 1.0)
EMPTY, DRAWN = np.zeros((2, 4, 4, 4), dtype=bool)
DRAWN[1:3, 1:3, 1:3] = True
GRID = (240, 240, 155)
OF_2024 = (182, 218, 182)


@pytest.mark.parametrize(
    ("name", "challenge", "shape", "missed_mm"),
    [
        ("brats2020", "GLI", GRID, 373.12866),
        ("brats2023", "GLI", GRID, 374),
        ("brats2023", "MET", GRID, 374),
        ("brats2024", "GLI", OF_2024, 337),
        *[("brats2024", challenge, GRID, 374) for challenge in ("PED", "SSA", "MEN")],
        # The diagonal in voxels, whatever their size.
        ("brats2024", "MET", GRID, math.sqrt(240**2 + 240**2 + 155**2)),
        ("brats2024", "MEN-RT", (3, 4, 12), 13),
        ("brats2025", "MET", GRID, 373),
    ],
)
def test_a_missed_tumour_costs_what_its_year_and_challenge_charged(
    name, challenge, shape, missed_mm
):
    convention = CONVENTIONS[name]
    penalty = convention.penalty_mm(challenge, shape)
    assert penalty == pytest.approx(missed_mm, abs=1e-9)
    for masks in ((DRAWN, EMPTY), (EMPTY, DRAWN)):
        found = convention.official(score(*masks, UNIT), penalty)
        assert (found.dice, found.surface_dice) == (0, 0)
        assert found.hausdorff95_mm == found.hausdorff_mm == found.assd_mm == penalty


@pytest.mark.parametrize("name", ["brats2020", "brats2023", "brats2024"])
def test_until_2024_two_empty_masks_agree(name):
    found = CONVENTIONS[name].official(score(EMPTY, EMPTY, UNIT), 1.0)
    assert (found.dice, found.jaccard, found.surface_dice) == (1, 1, 1)
    assert (found.hausdorff95_mm, found.hausdorff_mm, found.assd_mm) == (0, 0, 0)


@pytest.mark.parametrize("name", ["brats2025", "plain"])
def test_from_2025_on_two_empty_masks_are_left_out(name):
    found = CONVENTIONS[name].official(score(EMPTY, EMPTY, UNIT), 1.0)
    undefined = {key for key, value in asdict(found).items() if math.isnan(value)}
    assert {"dice", "hausdorff95_mm", "surface_dice"} <= undefined


def test_plain_leaves_undefined_what_medpy_cannot_compute():
    found = CONVENTIONS["plain"].official(score(DRAWN, EMPTY, UNIT), 1.0)
    assert found.dice == 0  # 2 x 0 / 8
    assert math.isnan(found.hausdorff95_mm)


def test_hd95_is_weighted_by_area_in_2023_and_2024_only():
    assert [name for name, each in CONVENTIONS.items() if each.weighted] == [
        "brats2023",
        "brats2024",
    ]


@pytest.mark.parametrize(
    ("case", "scheme", "challenge"),
    [
        ("BraTS-GLI-00000-000", "brats2023", "GLI"),
        ("BraTS-MET-00000-000", "brats2023", "MET"),
        ("BraTS-MEN-00000-000", "brats2023", "MEN"),
        ("BraTS-MEN-RT-0000-1", "men-rt", "MEN-RT"),
        ("brats-ssa-00000-000", "brats2024", "SSA"),
        ("Anna", "brats2024-ped", "PED"),
        ("Anna", "men-rt", "MEN-RT"),
        ("BraTS20_Training_001", "brats2020", "GLI"),
    ],
)
def test_the_challenge_is_known_by_name_else_by_labels(case, scheme, challenge):
    assert challenge_of(case, SCHEMES[scheme]) == challenge


def test_a_misspelt_convention_and_a_strange_challenge_are_errors():
    with pytest.raises(ConfigError, match="there is no convention 'brats20233'") as caught:
        convention_named("brats20233")
    assert caught.value.hint == "did you mean 'brats2023'?"
    assert challenge_named("ped") == "PED"
    with pytest.raises(ConfigError, match="there is no challenge 'LUNG'") as caught:
        challenge_named("LUNG")
    assert caught.value.hint == "choose from GLI, MET, PED, SSA, MEN, MEN-RT"
