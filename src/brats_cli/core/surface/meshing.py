"""From label maps on disk to mesh files: the plain function behind `brats mesh`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import get_args

from ..compute.cluster import paths_for
from ..compute.executors import in_order
from ..compute.machine import keep_freed_memory
from ..compute.plan import Plan, by_folder
from ..compute.processes import outcome_of
from ..data.labels import REGION_COLOURS, SCHEMES, LabelScheme, as_scheme
from ..data.meaning import Known, known_of
from ..data.naming import case_id_of, lies_beside
from ..errors import BratsError, ConfigError, MeshError
from ..images.grid import Volume
from ..images.nifti import read_image, read_labels, shape_on_disk, stem, voxels_on_disk
from ..wording import did_you_mean
from ..writing import require_writable
from .distances import voxel_distances
from .files import FORMATS, Model, Placing, Space, files_of, write_models
from .paint import Paint
from .regions import BRAIN, Islands, RegionMask, region_masks, wanted_region
from .results import Meshes, MeshFailure, MeshResult
from .smoothing import Smoothing
from .surfaces import Surface, SurfaceConfig, surface_of

_GREY = "#C8C8C8"  # of the brain and of label values

_OUTER_OPACITY = 0.3  # of a scene's regions with another one inside


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """What is made of each label map, and how it is written.

    Attributes:
        region: As `wanted_region` gives it.
        surface: How surfaces are made.
        islands: Which parts of a region are kept.
        format: Of `FORMATS`.
        placing: Axes and scale of the files.
        paint: A scan to paint surfaces with, or None.
        texture: Whether it is painted into a picture rather than onto vertices.
        labels: Label scheme of the label maps, if they leave it open.
        skip_existing: Whether files that exist are kept without an error.
        overwrite: Whether they are replaced.
    """

    region: str = "WT"
    surface: SurfaceConfig = field(default_factory=SurfaceConfig)
    islands: Islands = field(default_factory=Islands)
    format: str = "stl"
    placing: Placing = field(default_factory=Placing)
    paint: Path | None = None
    texture: bool = False
    labels: LabelScheme | None = None
    skip_existing: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.placing.space not in get_args(Space):
            raise ConfigError(f"there is no space '{self.placing.space}'", hint="it is ras or lps")
        if not 0 < self.placing.scale < float("inf"):
            raise ConfigError(
                f"cannot scale a mesh by {self.placing.scale:g}",
                hint="give a number above 0, such as 0.5 for half the size",
            )
        if self.texture and self.paint is None:
            raise ConfigError("a texture needs a scan", hint="give it with --paint SCAN")
        if self.paint is not None and self.format == "stl":
            raise ConfigError("STL holds no colours", hint="write --format ply, obj or glb")
        if self.texture and self.format == "ply":
            raise ConfigError(
                "PLY holds colours of vertices, and no texture",
                hint="leave out --texture, or write --format obj or glb",
            )

    @property
    def is_scene(self) -> bool:
        """Whether all regions go into one file."""
        return self.region == "all" and self.format == "glb"

    @property
    def is_replacing(self) -> bool:
        """Whether files may be replaced: those beside a missing mesh are of a run that was cut off.

        A mesh is the last of its files to be written.
        """
        return self.overwrite or self.skip_existing

    @property
    def is_textured(self) -> bool:
        """Whether pictures are written; OBJ has no colours of vertices."""
        return self.texture or (self.paint is not None and self.format == "obj")


def mesh(
    segmentations: str | Path | Sequence[str | Path],
    *,
    region: str = "WT",
    output: str | Path | None = None,
    format: str | None = None,  # noqa: A002
    space: Space = "ras",
    scale: float = 1.0,
    smooth: Smoothing = "light",
    interpolate: bool | None = None,
    faces: int | None = None,
    reduce: float | None = None,
    paint: str | Path | None = None,
    texture: bool = False,
    min_volume: float = 0.0,
    largest: bool = False,
    fill_holes: bool = False,
    labels: LabelScheme | str | None = None,
    workers: int | None = None,
    executor: Executor | str | None = None,
    skip_existing: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Meshes:
    """Write closed surfaces of tumour regions.

    A label map of a list that fails is among the `failed` and stops no other; a single one raises.

    Args:
        segmentations: Label maps (NIfTI); scans for the region `brain`. Maps that `predict` writes
            beside label maps are left out, unless there is nothing else.
        region: WT, TC, ET, another region, a label value, `all` or `brain`.
        output: A file for one mesh, a folder for several; None: beside each label map.
        format: stl, ply, obj or glb; None: by the suffix of `output`, or stl.
        space: Axes of the file: NIfTI's (ras) or DICOM's (lps).
        scale: Factor to multiply coordinates by.
        smooth: none, light, medium or strong.
        interpolate: Whether to interpolate between slices; None: where they are thick.
        faces: How many triangles to reduce each surface to.
        reduce: Or the part of each surface's triangles to keep, above 0 and up to 1.
        paint: A scan on the same grid to paint surfaces with (not STL).
        texture: Whether to paint into a picture (OBJ and GLB) rather than onto vertices.
        min_volume: Leave out separate parts smaller than this, in mm3.
        largest: Mesh only the largest part.
        fill_holes: Fill cavities.
        labels: Label scheme, if names, headers and values leave it open.
        workers: Number of processes; None: one per CPU, where that pays.
        executor: Where to mesh instead, or the address of a Dask scheduler.
        skip_existing: Whether to keep meshes that exist.
        dry_run: Write nothing; the result's `planned` says what would be done and needed.
        overwrite: Whether to replace meshes that exist.
        on_progress: Called with the numbers of label maps done and of all.

    Raises:
        BratsError: If a setting is wrong, two meshes would have one name, or the one label map
            that is not in a list fails.
    """
    keep_freed_memory()  # else a fifth of the time is page faults
    is_one = isinstance(segmentations, str | Path)
    given = [segmentations] if isinstance(segmentations, str | Path) else segmentations
    path = paths_for(executor)
    paths, left_out = _without_maps_beside([path(each) for each in given])
    target = None if output is None else path(output)
    config = MeshConfig(
        region=wanted_region(region),
        surface=SurfaceConfig(smooth=smooth, faces=faces, reduce=reduce, interpolate=interpolate),
        islands=Islands(min_volume=min_volume, largest=largest, fill_holes=fill_holes),
        format=format_of(format, target, to_folder=len(paths) > 1),
        placing=Placing(space, scale),
        paint=None if paint is None else path(paint),
        texture=texture,
        labels=as_scheme(labels),
        skip_existing=skip_existing,
        overwrite=overwrite,
    )
    if config.labels is None and config.region != BRAIN and not config.region.isdecimal():
        known = known_of({path: case_id_of(path) for path in paths})
    else:  # no need to read all of a folder first
        known = dict.fromkeys(paths, Known())
    bases = [
        replace(base, existing=_existing(base, config)) for base in _bases(paths, target, config)
    ]
    jobs = [_Job(path, base, known[path]) for path, base in zip(paths, bases, strict=True)]
    plan, known_failures = _planned(jobs, config, workers, thorough=dry_run)
    plan = plan.over(executor).require_room()
    if dry_run:
        return Meshes(failed=known_failures, left_out=left_out, planned=plan)
    parts = []
    for part in in_order(
        partial(_meshes_of, config=config),
        jobs,
        executor=executor,
        workers=workers,
        name=lambda job: str(job.path),
        lost=lambda job, error: Meshes(failed=[MeshFailure(job.path, error)]),
    ):
        parts.append(part)
        on_progress(len(parts), len(jobs))
    meshes = Meshes.of(parts, left_out)
    if meshes.failed and is_one:
        raise meshes.failed[0].error
    return meshes


def _without_maps_beside(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Label maps, and the maps of probabilities or uncertainty that `predict` writes beside them.

    A folder's `*` names both. Maps alone are kept, for the error that names what they hold.
    """
    kept = [path for path in paths if not lies_beside(stem(path))]
    return (kept, [path for path in paths if lies_beside(stem(path))]) if kept else (paths, [])


def format_of(name: str | None, output: Path | None, *, to_folder: bool = False) -> str:
    """The format that is written, by its name or else by the suffix of the output.

    With `to_folder` a suffix that is no format's is part of a folder's name.

    Raises:
        ConfigError: If there is no such format, or the two disagree.
    """
    suffix = "" if output is None or output.is_dir() else output.suffix.lower().removeprefix(".")
    if to_folder and suffix not in FORMATS:
        suffix = ""
    chosen = (name or suffix or "stl").lower()
    if chosen not in FORMATS:
        raise ConfigError(
            f"there is no mesh format '{chosen}'",
            hint=did_you_mean(chosen, FORMATS, otherwise=f"choose {', '.join(FORMATS)}"),
        )
    if suffix in FORMATS and suffix != chosen:
        raise ConfigError(
            f"{output} ends in .{suffix}, and the format is {chosen}",
            hint="leave out one of the two, or let them agree",
        )
    return chosen


# Measured on cases of 240 x 240 x 155 voxels, of which a process takes 0.2 GB. Of twelve, the mean
# surface of a whole tumour has 56,000 faces and the largest 110,000; a brain has 220,000.
_FACES = {"WT": 60_000, "all": 40_000, BRAIN: 220_000}
_FACES_OF_OTHERS = 30_000
_MESHES_OF_ALL = 3
_BYTES_PER_FACE = {"stl": 50, "ply": 27, "obj": 68, "glb": 60}
_BYTES_OF_TEXTURE = 72  # per face
_MEMORY, _MEMORY_PER_VOXEL = 100_000_000, 16


def _planned(
    jobs: Sequence[_Job],
    config: MeshConfig,
    workers: int | None,
    *,
    thorough: bool,
) -> tuple[Plan, list[MeshFailure]]:
    """What would be written for which label maps, and what is wrong with the others.

    No more is read of them than the header; `thorough`, of those without one all, for the error.
    """
    meshes, due, voxels = Meshes(), [], []
    is_known = config.region != "all" or config.is_scene
    for job in jobs:
        path = job.path
        try:
            # Which regions there are is in the voxels.
            file = job.base.of(config.region if is_known else "*")
            if is_known and not _is_due(job.base, config.region, config, meshes):
                continue
            if thorough and shape_on_disk(path) is None:
                read_image(path)
        except BratsError as error:
            meshes.failed.append(MeshFailure(path, error))
            continue
        due.append((path, file))
        voxels.append(voxels_on_disk(path))
    size = _size(config)
    plan = Plan(
        cases=tuple(str(path) for path, _ in due),
        outputs=tuple(
            str(each) for _, file in due for each in files_of(file, textured=config.is_textured)
        ),
        skipped=tuple(map(str, meshes.skipped)),
        disk_bytes=by_folder((file, size) for _, file in due),
    )
    plan = plan.in_processes(workers, voxels, base=_MEMORY, per_voxel=_MEMORY_PER_VOXEL)
    return plan, meshes.failed


def _size(config: MeshConfig) -> int:
    """About how many bytes are written per label map."""
    faces = config.surface.wanted(_FACES.get(config.region, _FACES_OF_OTHERS))
    faces *= _MESHES_OF_ALL if config.region == "all" else 1
    texture = _BYTES_OF_TEXTURE if config.is_textured else 0
    return faces * (_BYTES_PER_FACE[config.format] + texture)


def _bases(paths: Sequence[Path], output: Path | None, config: MeshConfig) -> list[_Base]:
    """Where the meshes of each label map are written.

    Raises:
        MeshError: If two meshes would have one name.
    """
    several = len(paths) > 1 or (config.region == "all" and not config.is_scene)
    suffix = f".{config.format}"
    if output is not None and not output.is_dir() and (output.exists() or output.suffix):
        if several and (output.exists() or output.suffix.lower() == suffix):
            raise MeshError(
                f"{output} is one file, and several meshes are to be written",
                hint="give a folder with -o, or leave it out to write beside each label map",
            )
        if not several:
            return [_Base(output.with_suffix(""), suffix=output.suffix or suffix, is_whole=True)]
    first: dict[Path, Path] = {}
    for path in paths:
        base = (output or path.parent) / stem(path)
        if first.setdefault(base, path) != path:
            raise MeshError(
                f"{first[base]} and {path} would be written to the same mesh, "
                f"{base.name}_*{suffix}",
                hint="mesh them one by one with -o, or leave out -o to write beside each",
            )
    return [_Base((output or path.parent) / stem(path), suffix) for path in paths]


@dataclass(frozen=True)
class _Base:
    """Where the meshes of a label map are written: a path to which region and suffix are added.

    Attributes:
        path: Without both.
        suffix: With its dot.
        is_whole: Whether no region is added.
        existing: What was there before any work. A file that comes later is of a process that was
            lost after it had written it, and is replaced when its label map is done again.
    """

    path: Path
    suffix: str
    is_whole: bool = False
    existing: frozenset[Path] = frozenset()

    def of(self, region: str) -> Path:
        region = "" if self.is_whole else f"_{region}"
        return self.path.parent / f"{self.path.name}{region}{self.suffix}"  # it may be `.`


def _existing(base: _Base, config: MeshConfig) -> frozenset[Path]:
    """The files among those that may be written for a label map that are there already."""
    regions = {config.region}
    if config.region == "all" and not config.is_scene:
        regions = {region.name for scheme in SCHEMES.values() for region in scheme.regions}
    files = [base.of(region) for region in regions]
    every = {each for file in files for each in files_of(file, textured=config.is_textured)}
    return frozenset(each for each in every if _exists(each))


def _exists(file: Path) -> bool:
    with contextlib.suppress(OSError):  # a name that is too long is refused in its turn
        return file.exists()
    return False


@dataclass(frozen=True)
class _Job:
    """A label map, where its meshes are written, and what is known of it."""

    path: Path
    base: _Base
    known: Known


def _meshes_of(job: _Job, config: MeshConfig) -> Meshes:
    """What came of one label map; a failure is part of the result and does not stop the others."""
    meshes = Meshes()
    keep_freed_memory()  # in a process of its own
    error = outcome_of(partial(_make, job, config, meshes))
    if error is not None:
        meshes.failed.append(MeshFailure(job.path, error))
    return meshes


def _make(job: _Job, config: MeshConfig, meshes: Meshes) -> None:
    is_known = config.region != "all" or config.is_scene
    if is_known and not _is_due(job.base, config.region, config, meshes):
        return
    image = read_image(job.path) if config.region == BRAIN else read_labels(job.path)
    for result in _written(image, job.base, job.known, config, meshes):
        meshes.made.append(result)


def _is_due(base: _Base, region: str, config: MeshConfig, meshes: Meshes) -> bool:
    """Whether a mesh is to be made; if it exists and may be kept, that is noted.

    Raises:
        OutputError: If it cannot be written.
    """
    file = base.of(region)
    files = files_of(file, textured=config.is_textured)
    if config.skip_existing and base.existing.issuperset(files):
        meshes.skipped.append(file)
        return False
    for each in files:
        require_writable(each, overwrite=config.is_replacing or each not in base.existing)
    return True


def _written(
    image: Volume, base: _Base, known: Known, config: MeshConfig, meshes: Meshes
) -> Iterator[MeshResult]:
    """The meshes of a label map, each as soon as it is on disk."""
    scene: list[tuple[RegionMask, Surface, Model]] = []
    each_alone = config.region == "all" and not config.is_scene
    of_another = set(base.existing) if each_alone and config.overwrite else set()
    masks = region_masks(
        image, config.region, labels=config.labels, known=known, islands=config.islands
    )
    for found in masks:
        name = found.region.name
        file = base.of(name)
        of_another.difference_update(files_of(file, textured=config.is_textured))
        if each_alone and not _is_due(base, name, config, meshes):
            continue
        surface = surface_of(found.mask, found.grid, config.surface)
        model = _model(found, surface, image, config)
        if config.is_scene:
            scene.append((found, surface, model))
            continue
        result = _result(found, surface, image.path, file, config)
        write_models(file, [model], config.placing, overwrite=True)
        yield result
    if scene:
        file = base.of("all")
        results = [_result(*each[:2], image.path, file, config) for each in scene]
        models = [each[2] for each in scene]
        outer = [replace(model, opacity=_OUTER_OPACITY) for model in models[:-1]]
        write_models(file, [*outer, models[-1]], config.placing, overwrite=True)
        yield from results
    for stale in of_another:  # of a region that this label map does not have
        stale.unlink(missing_ok=True)


def _model(found: RegionMask, surface: Surface, image: Volume, config: MeshConfig) -> Model:
    """A surface as it is written, painted if that is wanted."""
    name = found.region.name
    model = Model(name, surface.mesh, REGION_COLOURS.get(name, _GREY))
    if config.paint is None:
        return model
    paint = Paint.of(config.paint, image, name)
    if config.is_textured:
        return replace(model, texture=paint.texture(surface.mesh))
    return replace(model, greys=paint.greys(surface.mesh.vertices))


def _result(
    found: RegionMask, surface: Surface, path: Path, file: Path, config: MeshConfig
) -> MeshResult:
    """All that is measured of a mesh.

    Raises:
        MeshError: If it is not closed, so that none such is ever written.
    """
    mesh = surface.mesh
    if not (mesh.is_closed and mesh.is_apart):
        raise MeshError(
            f"the surface of {found.region.name} in {path} does not close",
            hint="this is an error of brats: please report it with the label map",
        )
    distances = voxel_distances(mesh, surface.voxels, found.grid.affine)
    return MeshResult(
        segmentation=path,
        region=found.region.name,
        file=file,
        space=config.placing.space.upper(),
        scale=config.placing.scale,
        vertices=len(mesh.vertices),
        faces=len(mesh.faces),
        full_faces=surface.full_faces,
        volume_mm3=mesh.volume_mm3,
        voxels_mm3=surface.voxels_mm3,
        area_mm2=mesh.area_mm2,
        euler_number=mesh.euler_number,
        shells=surface.shells,
        voxel_shells=len(surface.voxels.shell_voxels),
        unsmoothed=surface.unsmoothed,
        smooth=surface.smooth,
        wanted_smooth=config.surface.smooth,
        wanted_faces=config.surface.wanted(surface.full_faces),
        interpolated=surface.parts,
        mean_mm=distances.mean_mm,
        p95_mm=distances.p95_mm,
        max_mm=distances.max_mm,
        closed=True,
    )
