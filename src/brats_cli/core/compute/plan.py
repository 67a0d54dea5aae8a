"""What a command would do and need, and whether this machine has that: reported before the work."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import BratsError, OutputError
from ..wording import size_text
from .machine import free_memory
from .processes import process_count


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command would do, and about what it would need.

    Attributes:
        cases: What would be worked on, by id or by file.
        outputs: The files that would be written, or patterns where their names depend on what is
            in the images; of a training its folders.
        skipped: What would be left out, as its outputs exist.
        device: What would compute; empty where there is no choice.
        disk_bytes: About what the outputs take, by folder.
        memory_bytes: About what the processes take of the machine's memory at once.
        least_memory_bytes: What one process takes with the smallest case. Nothing is begun where
            not even that is free; a case that is too large for the others' sake fails alone.
    """

    cases: tuple[str, ...]
    outputs: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    device: str = ""
    disk_bytes: Mapping[Path, int] = field(default_factory=dict)
    memory_bytes: int = 0
    least_memory_bytes: int = 0

    def in_processes(
        self, workers: int | None, voxels: Sequence[int], *, base: int, per_voxel: int
    ) -> Plan:
        """This plan with the memory of processes that each take one image at a time.

        Args:
            workers: Number of processes, as `process_count` has it.
            voxels: Of each image.
            base: Bytes that a process takes with the smallest image.
            per_voxel: Bytes that it takes more per voxel.
        """
        processes = max(1, process_count(workers, len(voxels)))
        return replace(
            self,
            memory_bytes=processes * (base + per_voxel * max(voxels, default=0)),
            least_memory_bytes=per_voxel * min(voxels, default=0),
        )

    def over(self, executor: object | None) -> Plan:
        """This plan, if an executor does the work: its machines share the disk, not the memory."""
        return self if executor is None else replace(self, memory_bytes=0, least_memory_bytes=0)

    def require_room(self) -> Plan:
        """This plan, if the disk and the memory that are free suffice for it.

        Raises:
            OutputError: If a disk is too small.
            BratsError: If there is too little memory.
        """
        needed: dict[int, int] = {}
        for folder, size in self.disk_bytes.items():
            disk = _existing(folder).stat().st_dev
            needed[disk] = needed.get(disk, 0) + size
            if needed[disk] > free_disk(folder):
                raise OutputError(
                    folder,
                    f"the outputs take about {size_text(needed[disk])}, and the disk has "
                    f"{size_text(free_disk(folder))} left",
                    hint="make room, or choose another place",
                )
        if self.least_memory_bytes > (free := free_memory()):
            raise BratsError(
                f"this takes at least {size_text(self.least_memory_bytes)} of memory, and "
                f"{size_text(free)} are free",
                hint="end other programs, or use a machine with more memory",
            )
        return self

    def to_json_dict(self) -> dict[str, Any]:
        """As plain values, with what is free."""
        disk = {
            str(folder): {"needed_bytes": size, "free_bytes": free_disk(folder)}
            for folder, size in self.disk_bytes.items()
        }
        return {
            "format": "brats-plan/1",
            "cases": list(self.cases),
            "outputs": list(self.outputs),
            "skipped": list(self.skipped),
            "device": self.device or None,
            "disk": disk,
            "memory": {"needed_bytes": self.memory_bytes, "free_bytes": free_memory()},
        }


def by_folder(files: Iterable[tuple[Path, int]]) -> dict[Path, int]:
    """Bytes by folder, of files and the bytes of each."""
    found: dict[Path, int] = {}
    for file, size in files:
        found[file.parent] = found.get(file.parent, 0) + size
    return found


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder is, or would be made."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder
