"""Scores of uncertainty maps, as in BraTS 2020's task 3 (QU-BraTS).

Mehta et al., "QU-BraTS", MELBA 2022; read at RagMeh11/QU-BraTS, `BraTS_Seg_Uncertainty.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.labels import REGIONS
from ..data.naming import UNCERTAINTY_OF
from ..errors import CaseError, UnreadableFileError
from ..images.grid import Mask, Volume, require_same_grid
from ..images.nifti import read_volume

Map = npt.NDArray[Any]

THRESHOLDS = np.linspace(0, 100, 41)
"""0, 2.5 ... 100. The challenge's script takes `arange` up to 100 and a float32 epsilon, which
loses the last one under NumPy 2."""


@dataclass(frozen=True, kw_only=True)
class UncertaintyScore:
    """Of one region of one case; the fields are columns of `scores.csv`.

    Attributes:
        uncertainty_dice_auc: Dice of the voxels that are certain enough, over all thresholds.
        uncertainty_ftp_auc: Share of the true positives that are filtered out; less is better.
        uncertainty_ftn_auc: Share of the true negatives inside the brain, likewise.
        uncertainty_score: (Dice + 1 - FTP + 1 - FTN) / 3.
    """

    uncertainty_dice_auc: float
    uncertainty_ftp_auc: float
    uncertainty_ftn_auc: float
    uncertainty_score: float


def score_uncertainty(
    reference: Mask, predicted: Mask, uncertainty: Map, brain: Mask
) -> UncertaintyScore:
    """Score how the uncertainty of a region is spread over right and wrong voxels.

    At each of the `THRESHOLDS` the voxels whose uncertainty is not above it are kept. Dice is
    that of the kept voxels of the whole image, 1 where neither mask has any. Of the true positives
    and true negatives only those inside the brain are counted; their shares are 0 where there are
    none. The areas are those of the trapezoid rule over thresholds from 0 to 1.

    Args:
        reference: Expert mask, (X, Y, Z).
        predicted: Predicted mask, same shape.
        uncertainty: 0 (certain) to 100, same shape.
        brain: Where the brain is, same shape.
    """
    level = np.searchsorted(THRESHOLDS, uncertainty)  # the first threshold at which it is kept

    def kept(mask: Mask) -> npt.NDArray[np.int64]:
        """Voxels of `mask` that are kept, by threshold."""
        return np.bincount(level[mask], minlength=len(THRESHOLDS)).cumsum()

    positive = reference & predicted
    common, either = kept(positive), kept(reference) + kept(predicted)
    dice = _area(np.where(either == 0, 1.0, 2 * common / np.maximum(either, 1)))
    ftp = _area(_filtered(kept(positive & brain)))
    ftn = _area(_filtered(kept(brain & ~(reference | predicted))))
    return UncertaintyScore(
        uncertainty_dice_auc=dice,
        uncertainty_ftp_auc=ftp,
        uncertainty_ftn_auc=ftn,
        uncertainty_score=(dice + (1 - ftp) + (1 - ftn)) / 3,
    )


def _filtered(kept: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Share that is filtered out at each threshold; at 100 nothing is."""
    return 1 - kept / kept[-1] if kept[-1] else np.zeros(len(kept))


def _area(curve: npt.NDArray[np.float64]) -> float:
    steps = np.diff(THRESHOLDS) / 100
    return float(((curve[1:] + curve[:-1]) / 2 * steps).sum())


def read_uncertainty(folder: Path, case: str, like: Volume) -> Mapping[str, Map]:
    """The uncertainty maps of a case by region, (X, Y, Z) each.

    Either `CASE_uncertainty.nii.gz` (4D, WT, TC and ET), as `brats predict --uncertainty` writes
    it, or the challenge's three files `CASE_unc_whole|core|enhance.nii.gz`.

    Raises:
        CaseError: If neither is there.
        GridMismatchError: If one is not on the grid of `like`.
        UnreadableFileError: If a value is not from 0 to 100.
    """
    whole = _file(folder, f"{case}_uncertainty")
    if whole is not None:
        volume = _checked(whole, like)
        if volume.data.ndim != 4 or volume.data.shape[3] != len(REGIONS):
            raise UnreadableFileError(
                whole,
                f"its shape is {tuple(volume.data.shape)}, not (X, Y, Z, {len(REGIONS)})",
                hint="it has to hold one map each for WT, TC and ET",
            )
        return {region: volume.data[..., number] for number, region in enumerate(REGIONS)}
    maps = {}
    for region, name in UNCERTAINTY_OF.items():
        path = _file(folder, f"{case}_{name}")
        if path is None:
            raise CaseError(
                f"{folder} has no uncertainty of case {case}: neither {case}_uncertainty.nii.gz "
                f"nor {case}_{name}.nii.gz",
                hint="brats predict --uncertainty writes them beside the label maps",
            )
        maps[region] = _checked(path, like).data
    return maps


def _file(folder: Path, name: str) -> Path | None:
    found = (folder / f"{name}{ending}" for ending in (".nii.gz", ".nii"))
    return next((path for path in found if path.exists()), None)


def _checked(path: Path, like: Volume) -> Volume:
    volume = read_volume(path)
    require_same_grid([like, volume])
    low, high = volume.data.min(), volume.data.max()
    if not (low >= 0 and high <= 100):  # NaN must fail too
        raise UnreadableFileError(
            path,
            f"its values run from {low:g} to {high:g}, not from 0 to 100",
            hint="0 is certain and 100 uncertain: rescale it",
        )
    return replace(volume, data=volume.data.astype(np.float32))
