"""What came of label maps: the meshes that were written, what is measured of each, and failures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..compute.plan import Plan
from ..errors import BratsError

FORMAT = "brats-meshes/1"


@dataclass(frozen=True)
class MeshResult:
    """A mesh that was written.

    Attributes:
        segmentation: The label map (or, of the brain, the scan).
        region: The region, or the label value.
        file: Where it is; a scene holds several regions.
        space: RAS or LPS, the axes of the file.
        scale: What the file's coordinates were multiplied by. All numbers below are without it.
        vertices: How many.
        faces: How many.
        full_faces: How many there were before the reduction.
        volume_mm3: What it encloses.
        voxels_mm3: The volume of the region's voxels.
        area_mm2: Its area.
        euler_number: Vertices - edges + faces; 2 for each shell, less 2 for each handle.
        shells: Connected pieces of the mesh, cavities included.
        voxel_shells: Connected pieces of the voxels' boundary, cavities included.
        unsmoothed: Shells that are too small to be smoothed.
        smooth: The smoothing, less than was asked for if the surface would touch itself.
        wanted_smooth: What was asked for.
        wanted_faces: To how many triangles it was to be reduced; it may have more, so that it stays
            closed and no part is lost.
        interpolated: Into how many parts voxels were cut along each axis between thick slices, or
            None.
        mean_mm: Mean distance between the mesh and the faces of the voxels, sampled at up to 1,500
            points each way; see `distances.POINTS`.
        p95_mm: 95th percentile of that distance.
        max_mm: The largest distance found.
        closed: Whether it is a closed manifold; always true.
    """

    segmentation: Path
    region: str
    file: Path
    space: str
    scale: float
    vertices: int
    faces: int
    full_faces: int
    volume_mm3: float
    voxels_mm3: float
    area_mm2: float
    euler_number: int
    shells: int
    voxel_shells: int
    unsmoothed: int
    smooth: str
    wanted_smooth: str
    wanted_faces: int
    interpolated: tuple[int, int, int] | None
    mean_mm: float
    p95_mm: float
    max_mm: float
    closed: bool

    @property
    def volume_error(self) -> float:
        """By how much the volume differs from the voxels', as a part of it."""
        return (self.volume_mm3 - self.voxels_mm3) / self.voxels_mm3

    @property
    def notes(self) -> list[str]:
        """What a person should know of how it was made, a sentence each."""
        notes = []
        if self.interpolated:
            parts = " x ".join(map(str, self.interpolated))
            notes.append(f"thick slices were interpolated (each voxel cut into {parts})")
        if self.unsmoothed:
            notes.append(
                f"too small to be smoothed: {self.unsmoothed} of its {self.voxel_shells} parts "
                "(islands and cavities)"
            )
        if self.smooth != self.wanted_smooth:
            notes.append(f"smoothed less than asked ({self.smooth}), as it would touch itself")
        if self.faces > 1.05 * self.wanted_faces:
            notes.append(
                f"kept {self.faces} faces instead of {self.wanted_faces}, so that it stays closed "
                "and no part is lost"
            )
        return notes

    def to_json_dict(self) -> dict[str, Any]:
        """As plain values."""
        plain = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(self).items()
        }
        return plain | {"volume_error": self.volume_error}


@dataclass(frozen=True)
class MeshFailure:
    """A label map of which some mesh could not be made."""

    segmentation: Path
    error: BratsError

    def to_json_dict(self) -> dict[str, str]:
        """As plain values."""
        return {
            "segmentation": str(self.segmentation),
            "error": str(self.error),
            "hint": self.error.hint,
        }


@dataclass(frozen=True)
class Meshes:
    """The meshes of label maps, in the order of the label maps.

    Attributes:
        made: The meshes that were written.
        skipped: Files that existed and were kept.
        failed: Label maps of which some mesh could not be made.
        left_out: Maps of probabilities or uncertainty among the label maps.
        planned: What would be done, where that was asked for and nothing else.
    """

    made: list[MeshResult] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[MeshFailure] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    planned: Plan | None = None

    @classmethod
    def of(cls, parts: Iterable[Meshes], left_out: list[Path]) -> Meshes:
        """All of several, beside what was left out."""
        every = list(parts)
        return cls(
            [each for part in every for each in part.made],
            [each for part in every for each in part.skipped],
            [each for part in every for each in part.failed],
            left_out,
        )

    def to_json_dict(self) -> dict[str, Any]:
        """As plain values, with the format's name."""
        return {
            "format": FORMAT,
            "meshes": [each.to_json_dict() for each in self.made],
            "skipped": [str(each) for each in self.skipped],
            "failed": [each.to_json_dict() for each in self.failed],
            "left_out": [str(each) for each in self.left_out],
        }
