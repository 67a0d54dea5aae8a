"""What a label value means: the schemes of every BraTS year, as data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import LabelError
from ..images.grid import Grid
from ..images.nifti import write_image

LabelMap = npt.NDArray[np.integer]

REGIONS = ("WT", "TC", "ET")
"""Whole tumour, tumour core, enhancing tumour: nested, from the outside in."""


@dataclass(frozen=True)
class Region:
    """A union of labels that is trained, scored and meshed as one mask."""

    name: str
    labels: tuple[int, ...]

    def mask(self, label_map: Any) -> Any:
        """Where `label_map` holds one of the region's labels, in the same shape.

        Of a numpy array or a torch tensor: both have the operators, and torch is not needed here.
        """
        first, *others = self.labels
        mask = label_map == first
        for label in others:
            mask |= label_map == label
        return mask


@dataclass(frozen=True)
class LabelScheme:
    """Which value stands for which tissue, and which tissues make up which region.

    Tissues: NCR necrosis (with non-enhancing core from 2017), ED edema (or SNFH), NET
    non-enhancing tumour, ET enhancing tumour, CC cystic component, RC resection cavity,
    GTV gross tumour volume.
    """

    name: str
    years: str
    tissues: Mapping[int, str]
    regions: tuple[Region, ...] = field(default=())

    @property
    def values(self) -> frozenset[int]:
        """Every value a label map of this scheme may hold, background included."""
        return frozenset({0, *self.tissues})

    def region(self, name: str) -> Region:
        """The region called `name`.

        Raises:
            LabelError: If this scheme has no such region.
        """
        for region in self.regions:
            if region.name == name:
                return region
        known = ", ".join(region.name for region in self.regions)
        raise LabelError(
            f"label scheme {self.name} has no region {name}", hint=f"its regions are {known}"
        )

    def masks(self, label_map: Any) -> tuple[Any, ...]:
        """The masks of WT, TC and ET in a numpy array or a torch tensor, in the same shape."""
        return tuple(self.region(name).mask(label_map) for name in REGIONS)

    def paint(
        self, masks: npt.NDArray[np.bool_], *, smallest_et_voxels: float = 0
    ) -> npt.NDArray[np.uint8]:
        """Label map of nested region masks, the inner regions painted over the outer ones.

        Args:
            masks: WT, TC and ET, (3, X, Y, Z).
            smallest_et_voxels: Enhancing tumour of fewer voxels in total is relabelled as necrosis:
                in a case without any, a single voxel of it scores Dice 0 (nnU-Net at BraTS 2020,
                arXiv 2011.00848).

        Returns:
            (X, Y, Z): what only WT covers is edema, what TC covers and ET does not is necrosis.

        Raises:
            LabelError: If this scheme has no value for one of these.
        """
        value = {tissue: label for label, tissue in self.tissues.items()}
        if missing := {"ED", "NCR", "ET"} - value.keys():
            raise LabelError(
                f"label scheme {self.name} has no value for {', '.join(sorted(missing))}",
                hint=f"it knows {', '.join(value)}; write another with --labels",
            )
        if masks[-1].sum() < smallest_et_voxels:
            masks = np.stack([masks[0], masks[1] | masks[2], np.zeros_like(masks[2])])
        painted = np.zeros(masks.shape[1:], dtype=np.uint8)
        for mask, tissue in zip(masks, ("ED", "NCR", "ET"), strict=True):
            painted[mask] = value[tissue]
        return painted

    def convert(self, label_map: LabelMap, other: LabelScheme) -> npt.NDArray[np.uint8]:
        """`label_map` of this scheme in the values of `other`, tissue by tissue.

        Non-enhancing tumour counts as necrosis, as from 2017 on, where `other` has no value for
        it. What is in no region (a resection cavity) becomes background where `other` lacks it.

        Raises:
            LabelError: If a tumour tissue that is present has no counterpart.
        """
        value = {tissue: label for label, tissue in other.tissues.items()}
        table = np.zeros(256, dtype=np.uint8)
        for label, tissue in self.tissues.items():
            stand_in = {"NET": "NCR", "CC": "NCR"}.get(tissue, tissue)
            target = value.get(tissue, value.get(stand_in))
            if target is None and tissue != "RC" and (label_map == label).any():
                raise LabelError(
                    f"label scheme {other.name} has no value for {tissue}",
                    hint=f"it knows {', '.join(value)}; choose another with --labels",
                )
            table[label] = target or 0
        return table[label_map]

    def require(self, values: Iterable[int], source: str) -> None:
        """Check that `source` holds only values of this scheme.

        Raises:
            LabelError: Naming the values that are not in it.
        """
        strange = sorted(set(values) - self.values)
        if strange:
            fitting = ", ".join(scheme.name for scheme in fitting_schemes(values))
            raise LabelError(
                f"{source} holds label {', '.join(map(str, strange))}, "
                f"which label scheme {self.name} ({self.years}) does not have",
                hint=f"--labels may be {fitting}" if fitting else "is it a label map at all?",
            )


def _scheme(name: str, years: str, tissues: dict[int, str], **regions: str) -> LabelScheme:
    """A row of the table: the regions are given as tissues, so that no value stands twice."""
    return LabelScheme(
        name,
        years,
        tissues,
        tuple(
            Region(region, tuple(value for value, t in tissues.items() if t in members.split()))
            for region, members in regions.items()
        ),
    )


_CORE = {"TC": "NCR NET ET CC", "ET": "ET"}
_NESTED = {"WT": "NCR NET ED ET CC", **_CORE}  # the resection cavity is in no region but its own

SCHEMES: Mapping[str, LabelScheme] = {
    scheme.name: scheme
    for scheme in (
        _scheme("brats2015", "2012-2015", {1: "NCR", 2: "ED", 3: "NET", 4: "ET"}, **_NESTED),
        _scheme("brats2020", "2017-2022", {1: "NCR", 2: "ED", 4: "ET"}, **_NESTED),
        _scheme("brats2023", "2023", {1: "NCR", 2: "ED", 3: "ET"}, **_NESTED),
        _scheme(
            "brats2024",
            "2024 and later",
            {1: "NCR", 2: "ED", 3: "ET", 4: "RC"},
            **_NESTED,
            RC="RC",
        ),
        _scheme(
            "brats2024-ped",
            "2024 and later, PED",
            {1: "ET", 2: "NCR", 3: "CC", 4: "ED"},
            **_NESTED,
        ),
        _scheme("men-rt", "2024 MEN-RT", {1: "GTV"}, GTV="GTV"),
        _scheme("msd", "Medical Decathlon Task01", {1: "ED", 2: "NCR", 3: "ET"}, **_NESTED),
        _scheme("nnunet", "nnU-Net's conversion", {1: "ED", 2: "NCR", 3: "ET"}, **_NESTED),
    )
}


def scheme_named(name: str) -> LabelScheme:
    """The scheme called `name`.

    Raises:
        LabelError: If there is none; the hint lists them.
    """
    try:
        return SCHEMES[name]
    except KeyError:
        raise LabelError(
            f"there is no label scheme '{name}'", hint=f"the schemes are {', '.join(SCHEMES)}"
        ) from None


def noted_scheme(note: str) -> LabelScheme | None:
    """The label scheme that a label map's description names, as `write_labels` writes it, or None.

    >>> noted_scheme("brats labels=brats2023").years
    '2023'
    """
    noted = re.search(r"labels=(\S+)", note)
    return SCHEMES.get(noted[1]) if noted else None


def write_labels(
    path: Path, labels: LabelMap, grid: Grid, scheme: LabelScheme, *, overwrite: bool = False
) -> None:
    """Write a label map as uint8 on a grid: its shape, affine, and sform and qform codes.

    The scheme's name goes into the header's description, so that later steps need no flag.

    Raises:
        ValueError: If the shapes differ.
        OutputExistsError: If `path` exists and `overwrite` is false.
        OutputError: If it cannot be written.
    """
    note = f"brats labels={scheme.name}"
    write_image(path, labels.astype(np.uint8), grid, note=note, overwrite=overwrite)


def fitting_schemes(values: Iterable[int]) -> list[LabelScheme]:
    """The schemes whose values include all of `values`."""
    present = set(values)
    return [scheme for scheme in SCHEMES.values() if present <= scheme.values]


def tightest_schemes(values: Iterable[int]) -> list[LabelScheme]:
    """The fitting schemes of whole tumours with no other fitting scheme's values inside theirs.

    So {0, 1, 2, 4} is 2017-2022's and not, with label 3 missing everywhere, 2012-2015's.
    """
    fitting = [
        scheme
        for scheme in fitting_schemes(values)
        if any(region.name == "WT" for region in scheme.regions)
    ]
    return [
        scheme for scheme in fitting if not any(other.values < scheme.values for other in fitting)
    ]


def label_scheme(
    values: Iterable[int],
    declared: LabelScheme | None,
    source: str,
    labels: str | None = None,
    *,
    allowed: Sequence[LabelScheme] = (),
    flag: str = "--labels",
) -> LabelScheme:
    """What the values of `source` mean.

    The user's `labels` win; then what name or header declare, if the values fit; then what is
    left of `allowed`; then the schemes that hold these values and as few others as can be.

    Args:
        values: Values present, over the whole data set where there is one.
        declared: The scheme that name, layout or header tell, if they do.
        source: What the values come from, for messages.
        labels: The name of the scheme as the user gave it.
        allowed: The schemes that the name leaves open, if it tells no single one.
        flag: The option that says so, for hints.

    Raises:
        LabelError: If no scheme fits, or two that give the values different meanings.
    """
    present = set(values)
    if labels is not None:
        scheme_named(labels).require(present, source)
        return scheme_named(labels)
    if declared is not None and present <= declared.values:
        return declared
    fitting = [scheme for scheme in allowed if present <= scheme.values] or tightest_schemes(
        present
    )
    if not fitting:
        (declared or SCHEMES["brats2024"]).require(present, source)
    if any(_meanings(scheme, present) != _meanings(fitting[0], present) for scheme in fitting):
        names = ", ".join(scheme.name for scheme in fitting)
        held = ", ".join(map(str, sorted(present)))
        expected = f" (by its name it would be {declared.name})" if declared else ""
        raise LabelError(
            f"{source} holds labels {held}, which fit several schemes: {names}{expected}",
            hint=f"say which it is with {flag}, one of {names}",
        )
    return fitting[0]


def _meanings(scheme: LabelScheme, present: set[int]) -> dict[int, str]:
    return {value: scheme.tissues[value] for value in present if value}
