"""Repaired copies of cases with errors; the original files are left unchanged."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compute.executors import in_order
from ..compute.plan import Plan
from ..data.cases import Case
from ..data.finding import survey
from ..errors import OutputError, OutputExistsError, UnreadableFileError
from ..images.grid import Grid, Volume
from ..images.nifti import as_float32, read_volume, stem, write_image
from ..reading import real_path
from ..writing import whole_file, whole_folder
from .report import CaseReport, DataReport, read_case, reference_of
from .rules import not_orthonormal


def repair_data_set(report: DataReport, out: Path, *, workers: int | None = None) -> list[str]:
    """Write every case of `report` that can be repaired in full to `out`, and return their ids.

    A case is written with all its files, in the same folders as the original; files without a
    defect are copied. Sound cases, and cases that would keep an error, are not written.

    Raises:
        OutputError: If `out` lies inside the data set, or cannot be written.
        OutputExistsError: If `out` is a folder that is not empty.
    """
    require_place(out, report.root)
    by_id = {case.id: case for case in survey(report.root).cases}
    broken = [(case, by_id[case.id]) for case in report.cases if case.repairable]
    if not broken:
        return []
    files = {path for _, found in broken for path in _files_of(found)}
    Plan(
        cases=tuple(case.id for case, _ in broken),
        outputs=(str(out),),
        disk_bytes={out: sum(path.stat().st_size for path in files)},
    ).require_room()
    with whole_folder(out) as folder:
        task = partial(_repair_case, root=report.root, out=folder)
        list(in_order(task, broken, workers=workers))
    return sorted(case.id for case, _ in broken)


def _files_of(case: Case) -> dict[Path, bool]:
    """The files of a case, and whether each is its label map."""
    files = {image.path: False for image in case.images.values()}
    return {**files, **({case.label: True} if case.label else {})}


def require_place(out: Path, root: Path) -> None:
    """Check that repaired copies of the data set in `root` may go to the folder `out`.

    Raises:
        OutputError: If `out` lies inside the data set.
        OutputExistsError: If `out` is a folder that is not empty.
    """
    if real_path(out).is_relative_to(real_path(root)):
        raise OutputError(out, "it lies inside the data set, which is left unchanged")
    if out.is_dir() and any(out.iterdir()):
        raise OutputExistsError(out, hint="give an empty folder, or one that does not exist yet")


def _repair_case(found: tuple[CaseReport, Case], *, root: Path, out: Path) -> None:
    report, case = found
    repairs: dict[Path, set[str]] = {}
    for finding in report.findings:
        if finding.file and finding.repair:
            repairs.setdefault(finding.file, set()).add(finding.repair)
    volumes = {role: volume for role, volume in read_case(case) if isinstance(volume, Volume)}
    reference = reference_of({role: volume for role, volume in volumes.items() if role != "label"})
    grid = None if reference is None else rotation_only(_in_millimetres(reference))
    for path, is_label in _files_of(case).items():
        target = out / _place(path, case, root)
        _copy_description(path.parent, target.parent, root)
        wanted = repairs.get(path, set())
        if not wanted:
            _copy(path, target)
            continue
        volume = read_volume(path)
        place = grid if "header" in wanted and grid is not None else volume.grid
        data = _repaired(volume.data, wanted)
        if is_label:
            data = _as_labels(data, report, case if "labels" in wanted else None)
        _write(target, data, place, gzipped=volume.gzipped)


def _place(path: Path, case: Case, root: Path) -> Path:
    """Path of a file below the output folder; a single case keeps the name of its folder."""
    inside = path.absolute().relative_to(root.absolute())
    return Path(case.id) / inside if inside.parent == Path() else inside


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(path, error.strerror or str(error)) from error


def _copy(path: Path, target: Path) -> None:
    content = _bytes_of(path)
    with whole_file(target, overwrite=False) as partial:
        partial.write_bytes(content)
        try:
            read_volume(partial)
        except UnreadableFileError as error:  # cut short since the check read it
            raise UnreadableFileError(path, "it changed while it was being copied") from error


def _copy_description(source: Path, target: Path, root: Path) -> None:
    """Copy the dataset.json that describes the channels and labels of the files in `source`."""
    for above, beside in ((source, target), (source.parent, target.parent)):
        description = above / "dataset.json"
        copied = beside / "dataset.json"
        inside = real_path(above).is_relative_to(real_path(root))
        if inside and description.is_file() and not copied.exists():
            content = _bytes_of(description)
            with whole_file(copied) as partial:
                partial.write_bytes(content)


def _in_millimetres(volume: Volume) -> Grid:
    """The grid of a volume in mm, scaled if the unit explains its implausible voxel size."""
    return replace(volume.grid.in_millimetres(), unit_mm=1.0)


def rotation_only(grid: Grid) -> Grid:
    """The nearest grid without shear: same voxel sizes, origin and handedness.

    The direction cosines are replaced by the orthogonal factor of their polar decomposition,
    the nearest rotation (or reflection) in the Frobenius norm (Higham 1986).
    """
    if not_orthonormal(grid) == 0:
        return grid
    affine = grid.affine.copy()
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / sizes)
    affine[:3, :3] = (left @ right) * sizes
    return replace(grid, affine=affine)


def _repaired(data: npt.NDArray[Any], wanted: set[str]) -> npt.NDArray[Any]:
    if "zeros" in wanted:
        data = np.where(np.isfinite(data), data, 0).astype(data.dtype)
    if "unsigned" in wanted:
        data = data.astype(np.uint16)  # -1 becomes 65535 again
    if "round" in wanted:
        data = np.rint(data)
    return data


def _as_labels(
    data: npt.NDArray[Any], report: CaseReport, case: Case | None
) -> npt.NDArray[np.uint8]:
    """Labels as uint8; if `case` is given, converted to the scheme that its name indicates."""
    labels = data.astype(np.uint8)
    if case and case.scheme and report.scheme:
        return report.scheme.convert(labels, case.scheme)
    return labels


def _write(path: Path, data: npt.NDArray[Any], grid: Grid, *, gzipped: bool) -> None:
    """Write with equal sform and qform, in mm, under a name that ends in .gz if it is gzipped."""
    if gzipped and not path.name.lower().endswith(".gz"):
        path = path.with_name(f"{stem(path)}.nii.gz")
    stored = as_float32(data) if data.dtype.kind == "f" or data.dtype.itemsize > 4 else data
    x, y, z = data.shape[:3]
    write_image(path, stored, Grid((x, y, z), grid.affine))
