"""Which patches are seen, in which order: balanced, and the same for any number of workers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchio as tio
from torch.utils.data import Sampler

from .labels import REGIONS
from .store import StoredCase


@dataclass(frozen=True, eq=False)
class Batch:
    """Patches of one step.

    Attributes:
        images: (B, C, X, Y, Z) float16.
        labels: (B, X, Y, Z) uint8.
        case_ids: The case of each patch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    case_ids: list[str]


class Patches(tio.SubjectsDataset):  # type: ignore[misc]
    """Patch number `i` of a run, read from the store alone.

    A `tio.Queue` moves whole subjects from its workers to the training process and cuts patches
    there; here a subject *is* a patch, so that patches travel and volumes never do.
    """

    def __init__(
        self, cases: Sequence[StoredCase], *, edge: int, tumour_share: float, seed: int
    ) -> None:
        # TorchIO's own __init__ wants subjects whose images it can open.
        self.cases = list(cases)
        self.edge = edge
        self.tumour_share = tumour_share
        self.seed = seed

    def __len__(self) -> int:
        return len(self.cases)

    def dry_iter(self) -> range:
        """What the queue counts: a patch for every number there is."""
        return range(sys.maxsize)

    def __getitem__(self, index: int) -> tio.Subject:
        case, corner = self.draw(index)
        images, labels = cut(case, corner, self.edge)
        return tio.Subject(
            images=tio.ScalarImage(tensor=images),
            labels=tio.LabelMap(tensor=labels[None]),
            case_id=case.id,
        )

    def draw(self, index: int) -> tuple[StoredCase, npt.NDArray[np.int_]]:
        """Case and first corner of patch `index`, which depend on seed and index only."""
        rounds, place = divmod(index, len(self.cases))
        # Every case once a round, in a new order each round.
        order = np.random.default_rng((self.seed, 0, rounds)).permutation(len(self.cases))
        case = self.cases[order[place]]
        random = np.random.default_rng((self.seed, 1, index))
        kinds = [name for name in REGIONS if len(case.centres[name])]
        tumour = kinds and random.random() < self.tumour_share
        centres = case.centres[kinds[random.integers(len(kinds))] if tumour else "brain"]
        centre = centres[random.integers(len(centres))].astype(int)
        room = np.maximum(np.array(case.labels.shape) - self.edge, 0)
        return case, np.clip(centre - self.edge // 2, 0, room)


class _WholePatch(tio.data.PatchSampler):  # type: ignore[misc]
    """The queue's sampler: a subject is a patch already."""

    def __call__(self, subject: tio.Subject, num_patches: int | None = None) -> Any:
        yield subject


class _Numbers(Sampler[int]):
    """Patch numbers in order, for the rest of a run."""

    def __init__(self, start: int, stop: int) -> None:
        self.numbers = range(start, stop)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def batches(
    patches: Patches, *, first: int, last: int, batch_size: int, workers: int
) -> Iterator[Batch]:
    """Batches of patches number `first` to `last` (excluded), through a TorchIO queue.

    One queue serves a whole run, so that workers start once and read ahead during validation.
    """
    queue = tio.Queue(
        patches,
        max_length=batch_size,
        samples_per_volume=1,
        sampler=_WholePatch(patches.edge),
        subject_sampler=_Numbers(first, last),
        num_workers=workers,
        shuffle_subjects=False,
        shuffle_patches=False,  # their order is random already, and the same for any workers
    )
    for batch in tio.SubjectsLoader(queue, batch_size=batch_size, num_workers=0):
        yield Batch(
            images=batch["images"][tio.DATA],
            labels=batch["labels"][tio.DATA][:, 0],
            case_ids=batch["case_id"],
        )


def cut(
    case: StoredCase, corner: npt.NDArray[np.int_], edge: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cube of `edge` voxels at `corner`; background where it reaches beyond the case.

    Returns:
        Images (C, edge, edge, edge) float16 and labels (edge, edge, edge) uint8.
    """
    box = tuple(slice(start, start + edge) for start in corner)
    images = np.ascontiguousarray(case.images[(slice(None), *box)])
    labels = np.ascontiguousarray(case.labels[box])
    short = [edge - side for side in labels.shape]
    if any(short):
        # Half of what is missing before, half behind, as the window at inference has it.
        pad = [(gap // 2, gap - gap // 2) for gap in short]
        images, labels = np.pad(images, [(0, 0), *pad]), np.pad(labels, pad)
    return torch.from_numpy(images), torch.from_numpy(labels)
