"""What a label value means: a table of the label schemes of all BraTS years."""

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

REGION_COLOURS: Mapping[str, str] = {
    "WT": "#3FA7F0",
    "TC": "#FFC20A",
    "ET": "#E1341E",
    "RC": "#9C6ADE",
    "GTV": "#FFC20A",
}
"""The colour of each region in every figure, page and mesh.

Blue, amber and red differ by at least 20 in CIEDE2000 from each other and from every grey, also
as people with protanopia, deuteranopia or tritanopia see them (simulated after Machado et al.
2009); Okabe and Ito's green does not differ enough from a scan's greys.
"""


@dataclass(frozen=True)
class Region:
    """A union of labels that is trained, scored and meshed as one mask."""

    name: str
    labels: tuple[int, ...]

    def mask(self, label_map: Any) -> Any:
        """True where `label_map` holds one of the region's labels; same shape.

        `label_map` is a numpy array or a torch tensor: both have these operators, and torch is not
        imported here.
        """
        first, *others = self.labels
        mask = label_map == first
        for label in others:
            mask |= label_map == label
        return mask


@dataclass(frozen=True)
class LabelScheme:
    """The tissue of each label value, and the labels of each region.

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
        """Every value a label map of this scheme may hold, including 0 for the background."""
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
        """Label map of nested region masks; inner regions are painted over outer ones.

        Args:
            masks: WT, TC and ET, (3, X, Y, Z).
            smallest_et_voxels: Enhancing tumour of fewer voxels in total is relabelled as necrosis:
                in a case without any, a single voxel of it scores Dice 0 (nnU-Net at BraTS 2020,
                arXiv 2011.00848).

        Returns:
            (X, Y, Z): edema in WT outside TC, necrosis in TC outside ET, enhancing tumour in ET.

        Raises:
            LabelError: If this scheme has no label for one of these tissues.
        """
        value = {tissue: label for label, tissue in self.tissues.items()}
        if missing := {"ED", "NCR", "ET"} - value.keys():
            raise LabelError(
                f"label scheme {self.name} has no label for {', '.join(sorted(missing))}",
                hint=f"its tissues are {', '.join(value)}; choose another scheme with --labels",
            )
        if masks[-1].sum() < smallest_et_voxels:
            masks = np.stack([masks[0], masks[1] | masks[2], np.zeros_like(masks[2])])
        painted = np.zeros(masks.shape[1:], dtype=np.uint8)
        for mask, tissue in zip(masks, ("ED", "NCR", "ET"), strict=True):
            painted[mask] = value[tissue]
        return painted

    def convert(self, label_map: LabelMap, other: LabelScheme) -> npt.NDArray[np.uint8]:
        """Convert `label_map` from this scheme to `other`, tissue by tissue.

        Non-enhancing tumour and cysts become necrosis (as BraTS has done since 2017) if `other`
        has no label for them; a resection cavity then becomes background.

        Raises:
            LabelError: If `other` has no label for a tumour tissue that is present.
        """
        value = {tissue: label for label, tissue in other.tissues.items()}
        table = np.zeros(256, dtype=np.uint8)
        for label, tissue in self.tissues.items():
            stand_in = {"NET": "NCR", "CC": "NCR"}.get(tissue, tissue)
            target = value.get(tissue, value.get(stand_in))
            if target is None and tissue != "RC" and (label_map == label).any():
                raise LabelError(
                    f"label scheme {other.name} has no label for {tissue}",
                    hint=f"its tissues are {', '.join(value)}; choose another scheme with --labels",
                )
            table[label] = target or 0
        return table[label_map]

    def require(self, values: Iterable[int], source: str) -> None:
        """Check that `source` holds only values of this scheme.

        Raises:
            LabelError: If it holds others; the message lists them.
        """
        strange = sorted(set(values) - self.values)
        if strange:
            fitting = ", ".join(scheme.name for scheme in fitting_schemes(values))
            raise LabelError(
                f"{source} holds label {', '.join(map(str, strange))}, "
                f"which label scheme {self.name} ({self.years}) does not have",
                hint=f"its labels fit --labels {fitting}" if fitting else "is it a label map?",
            )


def _scheme(name: str, years: str, tissues: dict[int, str], **regions: str) -> LabelScheme:
    """A row of the table; regions are given by their tissues, so that values are written once."""
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
        LabelError: If there is none; the hint lists all schemes.
    """
    try:
        return SCHEMES[name]
    except KeyError:
        raise LabelError(
            f"there is no label scheme '{name}'", hint=f"label schemes: {', '.join(SCHEMES)}"
        ) from None


def noted_scheme(note: str) -> LabelScheme | None:
    """The label scheme that a label map's description names, as `write_labels` writes it, or None.

    >>> noted_scheme("brats labels=brats2023").years
    '2023'
    """
    noted = re.search(r"labels=(\S+)", note)
    return SCHEMES.get(noted[1]) if noted else None


def is_predicted(note: str) -> bool:
    """Whether a label map's description says that `brats predict` made it, not an expert.

    >>> is_predicted("brats predict labels=brats2023")
    True
    """
    return note.startswith("brats predict")


def write_labels(
    path: Path,
    labels: LabelMap,
    grid: Grid,
    scheme: LabelScheme,
    *,
    predicted: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a label map as uint8 on a grid: its shape, affine, and sform and qform codes.

    The scheme's name goes into the header's description, so that later steps need no flag, and
    whether a network made it, so that none learns from it.

    Raises:
        ValueError: If the shapes differ.
        OutputExistsError: If `path` exists and `overwrite` is false.
        OutputError: If it cannot be written.
    """
    note = f"brats {'predict ' if predicted else ''}labels={scheme.name}"
    write_image(path, labels.astype(np.uint8), grid, note=note, overwrite=overwrite)


def as_scheme(labels: LabelScheme | str | None) -> LabelScheme | None:
    """A label scheme given as itself or by its name, or None.

    Raises:
        LabelError: If there is no scheme of that name.
    """
    return scheme_named(labels) if isinstance(labels, str) else labels


def fitting_schemes(values: Iterable[int]) -> list[LabelScheme]:
    """The schemes whose values include all of `values`."""
    present = set(values)
    return [scheme for scheme in SCHEMES.values() if present <= scheme.values]


def tightest_schemes(values: Iterable[int]) -> list[LabelScheme]:
    """The fitting schemes with a whole tumour and as few other values as possible.

    A scheme is left out if the values of another fitting one are a proper subset of its own: so
    {0, 1, 2, 4} is of 2017-2022, and not of 2012-2015 with label 3 absent from every case.
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
    labels: LabelScheme | str | None = None,
    *,
    allowed: Sequence[LabelScheme] = (),
    flag: str = "--labels",
) -> LabelScheme:
    """The label scheme of `source`, judged by the values it holds.

    The user's `labels`, if given; else the first of these that fits: the scheme that name or
    header declare; one of `allowed`; a scheme that has these values and as few others as possible.

    Args:
        values: Values present, in the whole data set if there is one.
        declared: The scheme that name, layout or header declare, if they do.
        source: Where the values come from, for messages.
        labels: The scheme that the user gave.
        allowed: The schemes that the name leaves open, if it declares no single one.
        flag: The option that sets the scheme, for hints.

    Raises:
        LabelError: If no scheme fits, or two fit that give the values different meanings.
    """
    present = set(values)
    if (chosen := as_scheme(labels)) is not None:
        chosen.require(present, source)
        return chosen
    if declared is not None and present <= declared.values:
        return declared
    fitting = [scheme for scheme in allowed if present <= scheme.values] or tightest_schemes(
        present
    )
    if not fitting:
        (declared or SCHEMES["brats2024"]).require(present, source)
    if any(_meanings(scheme, present) != _meanings(fitting[0], present) for scheme in fitting):
        names = ", ".join(scheme.name for scheme in fitting)
        mask = "a mask of 0 and 1 does not say of which tissue: " if present <= {0, 1} else ""
        if _DSEG.search(source):
            mask += "if these are grey matter, white matter and CSF, leave it out; if not, "
        held = ", ".join(map(str, sorted(present)))
        expected = f" (its name indicates {declared.name})" if declared else ""
        raise LabelError(
            f"{source} holds labels {held}, which fit several schemes: {names}{expected}",
            hint=f"{mask}choose one with {flag}: {names}",
        )
    return fitting[0]


_DSEG = re.compile(r"_dseg\.nii")
"""BIDS calls any map of labels so, also one of grey matter, white matter and CSF."""


def _meanings(scheme: LabelScheme, present: set[int]) -> dict[int, str]:
    return {value: scheme.tissues[value] for value in present if value}
