"""The files that each case of a batch gets, which of them exist, and the manifest beside them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.cases import Case
from ..data.manifest import read_manifest
from ..data.naming import companion
from ..errors import ConfigError
from ..images.nifti import is_nifti
from ..writing import require_writable
from .predictor import PredictConfig

FORMAT = "brats-predictions/1"


@dataclass(frozen=True)
class Job:
    """A case to segment, and the file for its label map."""

    case: Case
    file: Path


@dataclass(frozen=True)
class Prediction:
    """A case that was segmented; one line of the manifest.

    Attributes:
        case: Case id.
        file: Its label map.
        labels: Name of the label scheme.
        models: The checkpoints.
        device: Device that computed.
        precision: Number type that the networks computed in.
        tta: Whether the flips were averaged.
        modalities: Modalities that were used.
        missing: Modalities that the case lacks; the networks were given zeros.
        volumes_mm3: Volume of each region.
        doubt: By region, 1 minus the expected Dice.
        review: Mean of `doubt`; cases with high values should be reviewed first.
        seconds: Time for reading, computing and writing, which may overlap with other cases.
        network_seconds: Part of `seconds` in the networks.
        finished: Date and time.
        versions: Versions of brats and torch.
    """

    case: str
    file: str
    labels: str
    models: tuple[str, ...]
    device: str
    precision: str
    tta: bool
    modalities: tuple[str, ...]
    missing: tuple[str, ...]
    volumes_mm3: Mapping[str, float]
    doubt: Mapping[str, float]
    review: float
    seconds: float
    network_seconds: float
    finished: str
    versions: Mapping[str, str]

    def row(self) -> dict[str, Any]:
        """As plain values."""
        return {"format": FORMAT, **asdict(self)}


_NOT_WRITTEN = (
    ".mha", ".mhd", ".nrrd", ".mgz", ".hdr", ".img", ".gz", ".zip", ".dcm", ".nifti", ".npy",
    ".npz", ".h5", ".mat", ".tif", ".tiff", ".png", ".jpg", ".stl", ".obj", ".ply", ".json",
    ".csv", ".txt", ".yaml", ".yml", ".pt",
)  # fmt: skip
"""Endings of files of other formats, which no folder of predictions is called by."""


def assign_outputs(cases: Sequence[Case], output: Path | None) -> tuple[Path | None, list[Job]]:
    """The output file of each case; and the folder of all of them, unless `output` is a file.

    Raises:
        ConfigError: If `output` is one file for several cases.
    """
    if output is None or output.is_dir() or not is_nifti(output):
        if output is not None and output.suffix.lower() in _NOT_WRITTEN and not output.is_dir():
            raise ConfigError(
                f"{output} cannot be written: label maps are written as .nii.gz or .nii",
                hint=f"use -o {output.with_suffix('')}.nii.gz, or the name of a folder",
            )
        folder = output or Path()
        return folder, [Job(case, folder / f"{case.id}.nii.gz") for case in cases]
    if len(cases) > 1:
        raise ConfigError(
            f"{len(cases)} cases cannot be written to one file, {output}",
            hint="give a folder with -o",
        )
    return None, [Job(case, output) for case in cases]


def complete(job: Job, config: PredictConfig, lines: Container[str] | None = None) -> bool:
    """Whether all outputs of a case exist; since files are never half written, they are whole.

    Of `lines`, the manifest's, its own must be one: a process may have been killed before that.
    """
    whole = all(file.exists() for file in outputs(job, config))
    return whole and (lines is None or job.case.id in lines)


def outputs(job: Job, config: PredictConfig) -> list[Path]:
    """The files that are written for a case; the label map is the last."""
    return [*(companion(job.file, name) for name in config.companions), job.file]


def require_outputs_writable(
    jobs: Sequence[Job], config: PredictConfig, *, overwrite: bool
) -> None:
    """Check, before any work, that every output could be written now.

    Raises:
        OutputExistsError: If one exists and `overwrite` is false.
        OutputError: If the folder for it may not be written to.
    """
    for job in jobs:
        for file in outputs(job, config):
            require_writable(file, overwrite=overwrite)


def recorded(manifest: Path | None) -> set[str] | None:
    """Ids of the cases that have a valid line in a manifest; None if there is no manifest."""
    if manifest is None or not manifest.is_file():
        return None
    lines = {str(row["case"]): row for row in read_manifest(manifest) if "case" in row}
    return {case for case, row in lines.items() if "finished" in row}
