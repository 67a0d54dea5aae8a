"""One patient visit: its images, by modality, and its label map."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..compute.processes import in_threads
from ..errors import BratsWarning, MissingModalityError
from ..images.background import odd_background, on_zero
from ..images.grid import Volume, require_same_grid
from ..images.nifti import read_channels, read_image, voxels_on_disk
from .labels import LabelScheme
from .naming import MODALITIES


@dataclass(frozen=True)
class ImageFile:
    """The image of one modality: a 3D file, or one channel of a 4D file."""

    path: Path
    channel: int | None = None


@dataclass(frozen=True)
class Case:
    """One visit of one patient.

    Attributes:
        id: Case id, without modality or `seg` suffix.
        patient: Shared by all visits of one patient.
        images: The file of each modality; some may be missing.
        label: The expert's label map, if there is one.
        scheme: The label scheme, if name and layout alone determine it.
        allowed: The schemes that name and layout leave open; empty if they leave all open.
        unclear: What dataset.json or dseg.tsv says of the labels, if no label scheme agrees.
        others: Images beside its own whose names give neither a modality nor a label map.
    """

    id: str
    patient: str
    images: Mapping[str, ImageFile]
    label: Path | None
    scheme: LabelScheme | None
    allowed: tuple[LabelScheme, ...] = ()
    unclear: str = ""
    others: tuple[Path, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder that holds its images."""
        return next(iter(self.images.values())).path.parent

    def voxels_on_disk(self) -> int:
        """Voxels of its images by the header of one; 0 if that claims what cannot be."""
        return next((voxels_on_disk(image.path) for image in self.images.values()), 0)

    def require(self, modalities: Sequence[str] = MODALITIES) -> None:
        """Check that the case has all of `modalities`.

        Raises:
            MissingModalityError: If it lacks one; the message lists those missing.
        """
        missing = [modality for modality in modalities if modality not in self.images]
        if missing:
            others = [path.name for path in self.others]
            raise MissingModalityError(self.id, missing, self.images, others=others)


def read_images(case: Case, modalities: Sequence[str] = MODALITIES) -> list[Volume]:
    """The images of `case` as float32, in the order of `modalities`, all on one grid.

    Raises:
        MissingModalityError: If the case lacks one.
        UnreadableFileError: If a file is damaged or does not have the expected dimensions.
        GridMismatchError: If two images do not lie on the same grid.
    """
    case.require(modalities)
    files = [case.images[modality] for modality in modalities]
    if len({file.path for file in files}) == 1:
        volumes = read_channels(files[0].path, [file.channel for file in files])
    else:
        volumes = list(in_threads(lambda file: read_image(file.path, file.channel), files))
        require_same_grid(volumes)
    found = [replace(on_zero(volume), grid=volumes[0].grid) for volume in volumes]
    for before, after in zip(volumes, found, strict=True):
        if after.data is not before.data:
            background = odd_background(before.data)
            message = f"{before.path}: its background is {background:g}, taken as 0"
            warnings.warn(message, BratsWarning, stacklevel=2)
    return found
