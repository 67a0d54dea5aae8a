"""The rules of each challenge and year: the scores of empty masks, and the definition of HD95."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..data.labels import LabelScheme
from ..errors import ConfigError
from ..wording import did_you_mean
from .metrics import MaskScore

CHALLENGES = ("GLI", "MET", "PED", "SSA", "MEN", "MEN-RT")

_NAMED = re.compile(r"brats-(men-rt|gli|met|ped|ssa|men)-", re.IGNORECASE)
_BY_SCHEME = {"brats2024-ped": "PED", "men-rt": "MEN-RT"}


@dataclass(frozen=True)
class Convention:
    """What a challenge scores where an empty mask leaves a metric undefined, and which HD95.

    Dice, Jaccard and surface Dice are 1 if both masks are empty and 0 if one is; the three
    distances are 0 if both are empty and `missed_mm` if one is. No challenge says what the
    sensitivity to a tumour that is not there is, nor the precision of a prediction that was not
    made: these stay undefined. Specificity needs no rule.

    Attributes:
        name: What `--convention` calls it.
        about: Its rule, in words.
        missed_mm: The distances of a tumour that was missed or invented; NaN if there is no rule.
        by_challenge: Those challenges whose penalty is another; NaN stands for the diagonal of
            the image in voxels.
        scores_double_empties: Whether a case counts in which both masks are empty.
        weighted: Whether HD95 is the larger of the two directed percentiles weighted by surface
            area, and not that of the distances of both directions pooled.
    """

    name: str
    about: str
    missed_mm: float
    by_challenge: Mapping[str, float] | None = None
    scores_double_empties: bool = True
    weighted: bool = False

    def penalty_mm(self, challenge: str, shape: tuple[int, int, int]) -> float:
        """The distances of a missed or invented tumour in a case on a grid of this shape."""
        penalty = (self.by_challenge or {}).get(challenge, self.missed_mm)
        return math.hypot(*shape) if math.isnan(penalty) and self.by_challenge else penalty

    def official(self, score: MaskScore, penalty_mm: float | None = None) -> MaskScore:
        """`score` with the values that the challenge gives in place of undefined ones."""
        empty = (score.reference_mm3 == 0) + (score.predicted_mm3 == 0)
        if not empty or (empty == 2 and not self.scores_double_empties):
            return score
        if math.isnan(self.missed_mm):
            return score
        overlap = 1.0 if empty == 2 else 0.0
        missed_mm = self.missed_mm if penalty_mm is None else penalty_mm
        distance = 0.0 if empty == 2 else missed_mm
        return replace(
            score,
            dice=overlap,
            jaccard=overlap,
            surface_dice=overlap,
            hausdorff_mm=distance,
            hausdorff95_mm=distance,
            assd_mm=distance,
        )


# The diagonal of the 240 x 240 x 155 mm grid, on any grid; the value of the BraTS servers up to
# 2022, for Dice, HD and HD95 (nnU-Net v1, Task082). Jaccard and surface Dice follow Dice here,
# and ASSD follows HD.
BRATS_2022 = Convention(
    "brats2020",
    "both empty Dice 1, HD95 0 mm; one empty Dice 0, HD95 373.13 mm",
    missed_mm=373.12866,
)

CONVENTIONS: Mapping[str, Convention] = {
    each.name: each
    for each in (
        BRATS_2022,
        Convention(
            "brats2023",
            "both empty Dice 1, HD95 0 mm; one empty Dice 0, HD95 374 mm; HD95 is the larger "
            "directed percentile, weighted by surface area",
            missed_mm=374.0,
            weighted=True,
        ),
        Convention(
            "brats2024",
            "both empty Dice 1, HD95 0 mm; one empty Dice 0, HD95 337 mm (GLI), 374 mm (PED, SSA, "
            "MEN) or the image's diagonal (MET, MEN-RT); HD95 is the larger directed percentile, "
            "weighted by surface area",
            missed_mm=374.0,
            by_challenge={"GLI": 337.0, "MET": math.nan, "MEN-RT": math.nan},
            weighted=True,
        ),
        Convention(
            "brats2025",
            "both empty left out; one empty Dice 0, HD95 373 mm",
            missed_mm=373.0,
            scores_double_empties=False,
        ),
        Convention(
            "plain",
            "what an empty mask leaves undefined is left out",
            missed_mm=math.nan,
            scores_double_empties=False,
        ),
    )
}


def convention_named(name: str) -> Convention:
    """The convention called `name`.

    Raises:
        ConfigError: If there is none.
    """
    if name not in CONVENTIONS:
        raise ConfigError(
            f"there is no convention '{name}'",
            hint=did_you_mean(name, CONVENTIONS, otherwise=f"choose from {', '.join(CONVENTIONS)}"),
        )
    return CONVENTIONS[name]


def challenge_named(name: str) -> str:
    """The challenge called `name`, in capitals.

    Raises:
        ConfigError: If there is none.
    """
    if name.upper() not in CHALLENGES:
        raise ConfigError(
            f"there is no challenge '{name}'", hint=f"choose from {', '.join(CHALLENGES)}"
        )
    return name.upper()


def challenge_of(case: str, scheme: LabelScheme) -> str:
    """The challenge of a case, by its id (BraTS-MET-...), else by its labels, else GLI."""
    named = _NAMED.match(case)
    return named[1].upper() if named else _BY_SCHEME.get(scheme.name, "GLI")
