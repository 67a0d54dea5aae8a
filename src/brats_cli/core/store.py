"""The patch store: each case prepared once, then read by patch without reading the volume."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .cases import MODALITIES, Case, read_images
from .errors import OutputError
from .labels import REGIONS, LabelScheme, scheme_named
from .preparation import PREPARATION, prepare, prepare_labels
from .volumes import read_label_map, require_same_grid

CENTRES = 4096
"""Voxels kept of each region and of the brain, to centre patches on."""

FORMAT = "brats-store/1"


@dataclass(frozen=True, eq=False)
class StoredCase:
    """A prepared case on disk; the arrays are memory maps.

    Attributes:
        id: Case id.
        images: (C, X, Y, Z) float16, z-scores.
        labels: (X, Y, Z) uint8, in the store's label scheme.
        centres: By region, and by "brain", (N, 3) voxels drawn at random from it.
    """

    id: str
    images: npt.NDArray[np.float16]
    labels: npt.NDArray[np.uint8]
    centres: Mapping[str, npt.NDArray[np.int16]]


@dataclass(frozen=True)
class Store:
    """A folder of prepared cases, all in one label scheme."""

    folder: Path
    scheme: LabelScheme
    modalities: tuple[str, ...] = MODALITIES

    def missing(
        self, cases: Sequence[Case], schemes: Mapping[str, LabelScheme]
    ) -> list[tuple[Case, LabelScheme]]:
        """The cases, with their label schemes, that are not stored as their files are now."""
        return [
            (case, schemes[case.id])
            for case in cases
            if not self._place(case, schemes[case.id]).is_dir()
        ]

    def prepare(
        self, cases: Sequence[Case], schemes: Mapping[str, LabelScheme], *, workers: int
    ) -> Iterator[str]:
        """Store the cases that are missing, yielding the id of each when it is done.

        An interruption loses only the cases in work; two processes may prepare at once.

        Raises:
            BratsError: If a case cannot be read, its labels do not fit, or the disk is full.
        """
        work = self.missing(cases, schemes)
        if workers < 2 or len(work) < 2:
            for case, scheme in work:
                yield self._prepare_case(case, scheme)
            return
        # spawn: forking a process that has torch's threads can hang.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(self._prepare_case, case, scheme) for case, scheme in work]
            try:
                for job in as_completed(jobs):
                    yield job.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def open(self, case: Case, scheme: LabelScheme) -> StoredCase:
        """The stored case, its arrays mapped and not yet read."""
        place = self._place(case, scheme)
        return StoredCase(
            id=case.id,
            images=np.load(place / "images.npy", mmap_mode="r"),
            labels=np.load(place / "labels.npy", mmap_mode="r"),
            centres={
                name: np.load(place / f"{name}.npy", mmap_mode="r") for name in (*REGIONS, "brain")
            },
        )

    def _place(self, case: Case, scheme: LabelScheme) -> Path:
        """Folder of a case; its name changes whenever what is stored would."""
        files = [case.images[name].path for name in self.modalities]
        assert case.label is not None
        told = [FORMAT, PREPARATION, self.scheme.name, scheme.name, *self.modalities]
        for path in (*files, case.label):
            status = path.stat()
            told += [str(path.resolve()), str(status.st_size), str(status.st_mtime_ns)]
        return (
            self.folder / f"{case.id}-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]}"
        )

    def _prepare_case(self, case: Case, scheme: LabelScheme) -> str:
        assert case.label is not None
        volumes = read_images(case, self.modalities)
        label_map = read_label_map(case.label)
        require_same_grid([volumes[0], label_map])
        scheme.require(np.unique(label_map.data).tolist(), str(case.label))
        prepared = prepare(volumes)
        labels = scheme.convert(prepare_labels(label_map, prepared), self.scheme)
        arrays: dict[str, npt.NDArray[Any]] = {
            "images": prepared.images.astype(np.float16),
            "labels": labels,
            "brain": _some_voxels(prepared.brain, case.id),
        }
        for name in REGIONS:
            arrays[name] = _some_voxels(self.scheme.region(name).mask(labels), case.id)
        self._write(self._place(case, scheme), arrays)
        return case.id

    def _write(self, place: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        partial = place.with_name(f".{os.getpid()}.partial.{place.name}")
        try:
            partial.mkdir(parents=True, exist_ok=True)  # one that was killed may have left it
            for name, array in arrays.items():
                np.save(partial / f"{name}.npy", array)
            if not place.exists():
                partial.replace(place)
        except OSError as error:
            if not place.exists():  # another training may have stored it in the meantime
                raise OutputError(place, error.strerror or str(error)) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def training_scheme(schemes: Mapping[str, LabelScheme]) -> LabelScheme:
    """The scheme that most cases have; the others' labels are converted to it."""
    names = [scheme.name for scheme in schemes.values()]
    return scheme_named(max(sorted(set(names)), key=names.count))


def _some_voxels(mask: npt.NDArray[np.bool_], case_id: str) -> npt.NDArray[np.int16]:
    """At most `CENTRES` voxels of a mask, (N, 3); the same at every preparation."""
    inside = np.flatnonzero(mask)
    if inside.size > CENTRES:
        seed = int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8], "little")
        inside = np.sort(np.random.default_rng(seed).choice(inside, CENTRES, replace=False))
    return np.stack(np.unravel_index(inside, mask.shape), axis=-1).astype(np.int16)
