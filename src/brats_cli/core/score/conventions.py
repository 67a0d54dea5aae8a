"""What an empty mask scores, by the rules of each year."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .metrics import MaskScore


@dataclass(frozen=True)
class Convention:
    """What a challenge scores where an empty mask leaves a metric without a value.

    Dice, Jaccard and surface Dice are 1 if both masks are empty and 0 if one is; the three
    distances are 0 if both are empty and `missed_mm` if one is. No challenge says what the
    sensitivity to a tumour that is not there is, nor the precision of a prediction that was not
    made: these stay without a value. Specificity needs no rule.
    """

    name: str
    missed_mm: float

    def official(self, score: MaskScore) -> MaskScore:
        """`score` with the values that the challenge gives in place of undefined ones."""
        empty = (score.reference_mm3 == 0) + (score.predicted_mm3 == 0)
        if not empty:
            return score
        overlap = 1.0 if empty == 2 else 0.0
        distance = 0.0 if empty == 2 else self.missed_mm
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
BRATS_2022 = Convention("BraTS 2022 and before", missed_mm=373.12866)
