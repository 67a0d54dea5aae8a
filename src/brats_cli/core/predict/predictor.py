"""From a case on disk to its label map and its uncertainty, with one network or several."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..compute.devices import arithmetic, dtype_name
from ..compute.machine import free_memory, keep_freed_memory
from ..data.cases import Case, read_images
from ..data.labels import LabelScheme, write_labels
from ..data.naming import BESIDE, MODALITIES, UNCERTAINTY_OF, companion
from ..errors import BratsError, BratsWarning, ConfigError, MissingModalityError
from ..images.background import signs_of_skull
from ..images.grid import Grid, Volume
from ..images.nifti import write_image
from ..model.checkpoint import Checkpoint
from ..model.decision import Decision
from ..model.network import on_device
from ..model.segmenter import Segmenter
from ..model.windows import MIRRORS, fused, home_of
from ..prepared.preparation import to_native
from ..prepared.recipe import prepare_by
from ..writing import together

Array = npt.NDArray[Any]

PROBABILITY_STEP = 2.0**-14
"""Probabilities are written in these steps, rounded down: NIfTI has no float16, and int16 in steps
that float32 represents exactly gives the same masks at the same threshold."""

DOUBT_MM3 = 1000.0
"""Volume added to smooth a region's expected Dice: in a region of few voxels, or none, a few voxels
more or less are no reason to review a case first."""

# Memory for reading and preparing, in bytes per voxel and modality, and per voxel: float32 images
# as read and as prepared, one of them being processed, and masks. Measured: 9 and 8.
_BYTES_A_VALUE = 9
_BYTES_A_VOXEL = 8


MEMORY_OF_NETWORK = 1_500_000_000
"""About what torch, the networks and a window take on a CPU; up to twice as much for the largest
brains, and less where memory is short: windows are chosen by what is free."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How cases are segmented.

    Attributes:
        labels: Label scheme of the predictions; by default that of the training.
        tta: Average over the eight flips of a case (test-time augmentation).
        overlap: Overlap of neighbouring windows, as a fraction of a window; by default as suits
            the network.
        allow_missing: Segment cases without all modalities, even if the network was never trained
            on such cases.
        probabilities: Return the probability of each region.
        uncertainty: Return the uncertainty of each region.
        uncertainty_format: `4d` for one map of all regions; `brats` for one of each, as BraTS
            2020's task 3 names them.

    Raises:
        ConfigError: If there is no such format.
    """

    labels: LabelScheme | None = None
    tta: bool = False
    overlap: float | None = None
    allow_missing: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    uncertainty_format: str = "4d"

    def __post_init__(self) -> None:
        if self.uncertainty_format not in ("4d", "brats"):
            raise ConfigError(
                f"there is no uncertainty format '{self.uncertainty_format}'",
                hint="choose 4d (one file, with one channel per region) or brats (one per region)",
            )

    @property
    def companions(self) -> tuple[str, ...]:
        """Names of the maps that are written beside the label map."""
        names = tuple(name for name in BESIDE if getattr(self, name))
        if self.uncertainty and self.uncertainty_format == "brats":
            return (*names[:-1], *UNCERTAINTY_OF.values())
        return names


@dataclass(frozen=True, eq=False)
class Loaded:
    """A case as the networks see it.

    Attributes:
        case: The case.
        grid: Its own grid.
        images: (C, X, Y, Z) z-scores in the order of the networks' channels; 0 where missing.
        affine: Affine of the prepared grid.
        modalities: The modalities that the case has.
    """

    case: Case
    grid: Grid
    images: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    modalities: tuple[str, ...]

    def without_images(self) -> Loaded:
        """The part that is still needed after the networks have computed."""
        return replace(self, images=self.images[:0].copy())


@dataclass
class Samples:
    """Mean and variance of the outputs of several networks and flips, by Welford's method."""

    count: int = 0
    mean: Any = None
    squares: Any = None

    def add(self, found: torch.Tensor, *, spread: bool) -> None:
        """Add an output (R, X, Y, Z), which may be changed in place."""
        self.count += 1
        if self.mean is None:
            self.mean = found
            self.squares = torch.zeros_like(found) if spread else None
            return
        off = found.to(self.mean.device) - self.mean  # as the device may run out of memory
        self.mean += off / self.count
        if spread:
            self.squares += off * (found.to(self.mean.device) - self.mean)

    def on_cpu(self) -> Samples:
        """The same in the machine's memory."""
        squares = None if self.squares is None else self.squares.cpu()
        return Samples(self.count, self.mean.cpu(), squares)

    def uncertainty(self) -> Array:
        """Uncertainty by region, 0 (certain) to 100 as in QU-BraTS: (R, X, Y, Z) float32.

        With several outputs, their standard deviation relative to its maximum, 0.5; with one,
        its entropy in bits.
        """
        if self.count > 1:
            found: Array = 200 * np.sqrt(self.squares.numpy() / self.count)
        else:
            found = 100 * entropy(self.mean.numpy())
        return np.clip(found, 0, 100)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segmentation of one case.

    Attributes:
        labels: (X, Y, Z) uint8 on the case's own grid.
        grid: That grid.
        scheme: Label scheme of `labels`.
        modalities: The modalities that were used.
        doubt: By region, 1 minus the Dice expected from the probabilities.
        maps: `probabilities` and `uncertainty` if requested, each (X, Y, Z, R) as written; or
            the uncertainty of each region by the name of its file, (X, Y, Z).
    """

    labels: npt.NDArray[np.uint8]
    grid: Grid
    scheme: LabelScheme
    modalities: tuple[str, ...] = ()
    doubt: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, Array] = field(default_factory=dict)

    @property
    def review(self) -> float:
        """Priority for review by a person: mean of the regions' doubt, 0 (low) to 1."""
        return float(np.mean(list(self.doubt.values())))

    def volumes_mm3(self) -> dict[str, float]:
        """Volume of each region."""
        voxel = self.grid.voxel_mm3
        return {
            region.name: int(region.mask(self.labels).sum()) * voxel
            for region in self.scheme.regions
        }

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the label map on the case's own grid, and the other maps beside it.

        Maps of an earlier prediction of the case, if that may be replaced, are removed.

        Raises:
            OutputExistsError: If a file exists and `overwrite` is false.
            OutputError: If one cannot be written.
        """
        kinds = (*BESIDE, *UNCERTAINTY_OF.values()) if overwrite else ()
        with together(companion(path, kind) for kind in kinds if kind not in self.maps):
            for name, values in self.maps.items():
                regions = self.doubt if values.ndim == 4 else ()
                note = f"brats {name}={','.join(regions)}".rstrip("=")
                step = PROBABILITY_STEP if name == "probabilities" else 1
                file = companion(path, name)
                write_image(file, values, self.grid, note=note, step=step, overwrite=overwrite)
            write_labels(
                path, self.labels, self.grid, self.scheme, predicted=True, overwrite=overwrite
            )


class Predictor:
    """Checkpoints on a device, ready to segment one case after another.

    A single network stays on the device; several are loaded there one after another per case.

    Raises:
        ConfigError: If the checkpoints do not have the same modalities and regions.
        LabelError: If the label scheme of the predictions lacks one of the regions.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        device: torch.device,
        config: PredictConfig | None = None,
    ) -> None:
        keep_freed_memory()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self.checkpoints = tuple(checkpoints)
        self.device = device
        self.config = config or PredictConfig()
        first = self.checkpoints[0]
        for other in self.checkpoints[1:]:
            _require_alike(first, other)
        self.modalities, self.regions = first.modalities, first.regions
        self.recipe = first.recipe
        self.scheme = self.config.labels or first.scheme
        for region in self.regions:
            self.scheme.region(region)  # raises if it has no such region
        self.decision = Decision.average([each.decision or Decision() for each in checkpoints])
        self._only = self._on_device(first) if len(self.checkpoints) == 1 else None

    @property
    def precision(self) -> str:
        """Number type that the networks compute in (that of the first, if they differ)."""
        return dtype_name(arithmetic(self.device, self.checkpoints[0].precision))

    def segment(self, case: Case) -> Segmentation:
        """Segment a case.

        Raises:
            BratsError: If the case lacks a modality or cannot be read.
        """
        loaded = self.load(case)
        return self.decode(loaded, self.compute(loaded))

    def load(self, case: Case) -> Loaded:
        """Read and prepare a case.

        Raises:
            MissingModalityError: If it lacks a modality that the networks need, or has an image
                of zeros in its place.
            UnreadableFileError: If a file is damaged.
            BratsError: If it needs more memory than is free.
        """
        present = self._present(case)
        _require_memory(case, len(present))
        volumes = read_images(case, present)
        if blank := [m for m, each in zip(present, volumes, strict=True) if each.is_blank]:
            present = self._present(case, blank)
            volumes = [each for each in volumes if not each.is_blank]
        prepared = prepare_by(self.recipe, volumes)
        _warn_of_skull(case, dict(zip(present, volumes, strict=True)))
        images = prepared.images
        if present != self.modalities:
            images = np.zeros((len(self.modalities), *images.shape[1:]), dtype=np.float32)
            for modality, image in zip(present, prepared.images, strict=True):
                images[self.modalities.index(modality)] = image
        return Loaded(case, volumes[0].grid, images, prepared.affine, present)

    @torch.inference_mode()
    def compute(
        self, loaded: Loaded, on_share: Callable[[float], None] = lambda share: None
    ) -> Samples:
        """Apply every network to a case, in every flip requested.

        Args:
            loaded: The case.
            on_share: Called with the fraction of the work done since the last call.
        """
        images = torch.from_numpy(loaded.images)
        images = images.to(home_of(images, self.device))  # once, for all flips and networks
        # Where the windows have a rule of their own, each is flipped on its own.
        flips = [
            MIRRORS if self.config.tta and not each.sliding else MIRRORS[:1]
            for each in self.checkpoints
        ]
        passes = sum(map(len, flips))
        samples = Samples()
        for segmenter, mirrors in zip(self._segmenters(), flips, strict=True):
            for axes in mirrors:
                found = segmenter.probabilities(
                    images.flip(axes) if axes else images,
                    tta=self.config.tta,
                    on_share=lambda share: on_share(share / passes),
                )
                found = found.flip(axes) if axes else found
                samples.add(found, spread=self.config.uncertainty and passes > 1)
        return samples.on_cpu()

    def decode(self, loaded: Loaded, samples: Samples) -> Segmentation:
        """Labels, and the maps requested, on the case's own grid.

        Raises:
            BratsError: If the networks' probabilities are not finite.
        """
        mean = samples.mean.numpy()
        if not np.isfinite(mean).all():
            raise BratsError(
                f"the model's probabilities for case {loaded.case.id} are not finite",
                hint="its weights have diverged: use an earlier checkpoint, or train again with "
                "a lower learning rate",
            )
        written = []

        def native() -> Iterator[Array]:
            for name, region in zip(self.regions, mean, strict=True):
                values = to_native(region, loaded.affine, loaded.grid)
                if self.config.probabilities:
                    calm = self.decision.calibrated(name, values)
                    written.append(np.floor(calm / PROBABILITY_STEP).astype(np.int16))
                yield values

        voxel_mm3 = loaded.grid.voxel_mm3
        labels = self.decision.label_map(native(), self.scheme, voxel_mm3=voxel_mm3)
        maps = {"probabilities": _stacked(written)} if written else {}
        if self.config.uncertainty:
            found = [
                np.rint(to_native(region, loaded.affine, loaded.grid)).astype(np.uint8)
                for region in samples.uncertainty()
            ]
            if self.config.uncertainty_format == "brats":
                names = map(UNCERTAINTY_OF.__getitem__, self.regions)
                maps |= dict(zip(names, found, strict=True))
            else:
                maps["uncertainty"] = _stacked(found)
        doubts = map(doubt, mean, map(self.decision.threshold, self.regions))
        return Segmentation(
            labels,
            loaded.grid,
            self.scheme,
            loaded.modalities,
            dict(zip(self.regions, doubts, strict=True)),
            maps,
        )

    def _present(self, case: Case, blank: Sequence[str] = ()) -> tuple[str, ...]:
        """The modalities of `case` that the networks use, without the `blank` ones."""
        found = [modality for modality in case.images if modality not in blank]
        present = tuple(modality for modality in self.modalities if modality in found)
        missing = [modality for modality in self.modalities if modality not in found]
        able = all(checkpoint.saw_missing_modalities for checkpoint in self.checkpoints)
        if missing and not (present and (able or self.config.allow_missing)):
            others = [path.name for path in case.others]
            raise MissingModalityError(
                case.id, missing, found, blank=blank, others=others, hint=_ways_out(present)
            )
        return present

    def _segmenters(self) -> Iterator[Segmenter]:
        for checkpoint in self.checkpoints:
            yield self._only or self._on_device(checkpoint)

    def _on_device(self, checkpoint: Checkpoint) -> Segmenter:
        return Segmenter(
            network=on_device(fused(checkpoint.network()), self.device),
            device=self.device,
            dtype=arithmetic(self.device, checkpoint.precision),
            patch_size=checkpoint.patch_size,
            overlap=self.config.overlap,
            sliding=checkpoint.sliding,
        )


def entropy(probability: Array) -> Array:
    """Binary entropy in bits: 0 where `probability` is 0 or 1, and 1 where it is 0.5."""
    found: Array = np.zeros_like(probability)
    for share in (probability, 1 - probability):
        inside = share > 0
        found[inside] -= share[inside] * np.log2(share[inside])
    return found


def doubt(probability: Array, threshold: float) -> float:
    """1 minus the Dice of a region's mask that is expected from its probabilities.

    If each voxel is tumour with its probability p, the expected overlap of the mask M with the
    truth is the sum of p in M, and the expected size of the truth is the sum of all p.

    Args:
        probability: (X, Y, Z), voxels of 1 mm.
        threshold: Voxels with at least this probability are in the mask.
    """
    inside = probability[probability >= threshold]
    sizes = inside.size + float(probability.sum(dtype=np.float64)) + DOUBT_MM3
    return 1 - (2 * float(inside.sum(dtype=np.float64)) + DOUBT_MM3) / sizes


def _stacked(maps: Sequence[Array]) -> Array:
    """Maps as one array (X, Y, Z, R) in NIfTI's memory order."""
    return np.stack([each.T for each in maps]).T


def _require_alike(first: Checkpoint, other: Checkpoint) -> None:
    for name in ("modalities", "regions"):
        here, there = getattr(first, name), getattr(other, name)
        if here != there:
            raise ConfigError(
                "these models cannot be averaged: one was trained on the "
                f"{name} {', '.join(here)}, another on {', '.join(there)}",
                hint="predict with each of them separately, or train them with the same settings",
            )
    if first.recipe != other.recipe:
        raise ConfigError(
            "these models cannot be averaged: their images are prepared differently",
            hint="predict with each of them separately; networks of different origin can be "
            "averaged only as folds of one training",
        )


def _ways_out(present: Sequence[str]) -> str:
    if not present:
        return "it has none of the sequences that the model uses; see README, 'Which data'"
    return (
        "use --allow-missing to segment it all the same, with worse results; or train a model for "
        "missing sequences with --set augmentation.modality_dropout=0.3"
    )


def _warn_of_skull(case: Case, images: Mapping[str, Volume]) -> None:
    """Warn if one of the images shows more than a brain, of which the networks know nothing."""
    for modality in sorted(images, key=MODALITIES.index):
        volume = images[modality]
        is_t1 = modality in ("t1", "t1ce")
        if signs := signs_of_skull(volume.data, volume.grid.voxel_mm3, is_t1=is_t1):
            warnings.warn(
                f"case {case.id}: {signs} in {modality}: was the skull not removed? The networks "
                "know brains alone",
                BratsWarning,
                stacklevel=2,
            )
            return


def memory_of(case: Case, modalities: int) -> int:
    """Bytes of memory that it takes to read and prepare a case; 0 if its header is implausible."""
    return case.voxels_on_disk() * (_BYTES_A_VALUE * modalities + _BYTES_A_VOXEL)


def _require_memory(case: Case, modalities: int) -> None:
    """Refuse a case, before it is read, if it needs more memory than is free."""
    needed, free = memory_of(case, modalities), free_memory()
    if needed > free:
        raise BratsError(
            f"case {case.id} has {case.voxels_on_disk():,} voxels and needs "
            f"{needed / 2**30:.1f} GiB of memory; {free / 2**30:.1f} GiB are free",
            hint="crop its images to the head, resample them to 1 mm, or use a larger machine",
        )
