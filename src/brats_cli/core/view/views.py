"""The function behind `brats view`: which cases are shown with which files, and where."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..compute.cluster import paths_for
from ..compute.executors import in_order
from ..compute.machine import keep_freed_memory
from ..compute.plan import Plan, by_folder
from ..compute.processes import outcome_of
from ..data.cases import Case
from ..data.finding import find_label_maps
from ..data.folders import nifti_files
from ..data.given import as_paths, find_each
from ..data.labels import LabelScheme, as_scheme
from ..data.manifest import MANIFEST, read_manifest
from ..data.meaning import known_of
from ..errors import BratsError, CaseError, ConfigError, NoCasesError
from ..images.nifti import stem
from ..reading import real_path
from ..writing import require_writable
from .index import INDEX, require_own_index, summarise, write_index
from .page import write_page
from .scene import PLANES, Wanted, load_scene
from .slices import FORMATS, draw_slices, parse_slices

_PAGE = ".html"

StrPath = str | Path


@dataclass(frozen=True, kw_only=True)
class View:
    """The picture or page of a case.

    Attributes:
        case: Case id.
        file: The picture or page.
        volumes_mm3: By segmentation (prediction, reference) and region.
        scores: Dice and HD95 by region, if there was a reference; NaN where one is undefined.
        review: The review number of `brats predict` (high values first), if known.
        notes: What a reader should know, one sentence each.
    """

    case: str
    file: str
    volumes_mm3: Mapping[str, Mapping[str, float]]
    scores: Mapping[str, Mapping[str, float]]
    review: float | None = None
    notes: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """As plain values for JSON; None for what is undefined."""
        scores = {
            region: {
                metric: None if math.isnan(value) else value for metric, value in found.items()
            }
            for region, found in self.scores.items()
        }
        return {**asdict(self), "scores": scores}


@dataclass(frozen=True)
class Views:
    """The result of `view`.

    Attributes:
        made: In the order of the cases.
        failed: What was wrong with the cases that could not be shown.
        skipped: Ids of cases that were left out because their file exists.
        unmatched: Ids of cases that were left out because they have no segmentation.
        index: The page that lists all pages of the folder, if there is one.
        planned: What would be done, where that was asked for and nothing else.
    """

    made: tuple[View, ...]
    failed: tuple[BratsError, ...] = ()
    skipped: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    index: Path | None = None
    planned: Plan | None = None


@dataclass(frozen=True)
class _Job:
    case: Case
    file: Path
    wanted: Wanted
    review: float | None = None


def view(
    case: StrPath | Sequence[StrPath],
    *,
    seg: Sequence[StrPath] = (),
    output: StrPath | None = None,
    slice: Sequence[str] = (),  # noqa: A002
    montage: int | None = None,
    uncertainty: StrPath | None = None,
    probabilities: StrPath | None = None,
    labels: LabelScheme | str | None = None,
    workers: int | None = None,
    executor: Executor | str | None = None,
    skip_existing: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Views:
    """Show cases: slices of every sequence in one picture, or a page that opens offline.

    Args:
        case: Cases (folders, 4D files or modality files) or data sets, or a splits file for its
            test cases.
        seg: The segmentation to show, and a second one to compare it with; files, or folders from
            which each case's is taken. Of one, the case's own label map is the reference.
        output: A file that ends in .html, .png, .pdf or .svg, or a folder for pages with an index.
            By default CASE.html here, of several cases the folder `views`.
        slice: Slices to show (and where a page begins) instead of those with most tumour, as
            `axial=77`: the voxel index in the case's files, counted from 0.
        montage: Show so many axial slices instead of one per plane; pictures only.
        uncertainty: Map to lay over the scans, 0 to 100; a file, or a folder of CASE_uncertainty.
        probabilities: Map to lay over the scans, 0 to 1; a file, or a folder of
            CASE_probabilities.
        labels: Label scheme of label maps whose header and data set leave it open.
        workers: Processes; None means one per CPU, 0 and 1 stay in this one.
        executor: Where to draw the cases instead, or the address of a Dask scheduler.
        skip_existing: Skip cases whose file exists.
        dry_run: Write nothing; the result's `planned` says what would be done and needed.
        overwrite: Replace files that exist.
        on_progress: Called with the number of cases done and their total.

    Returns:
        The files written; cases of a batch that fail are listed, and do not stop the others.

    Raises:
        BratsError: If nothing can be shown: no case, no match, or an output that exists.
    """
    scheme = as_scheme(labels)
    path = paths_for(executor)
    paths = [path(each) for each in as_paths(case)]
    cases, wrong = find_each(paths)
    batch = len(cases) + len(wrong) > 1
    if wrong and not (cases and batch):
        raise wrong[0]
    if not cases:
        raise ValueError("no case was given")
    default = "views" if batch else f"{cases[0].id}{_PAGE}"
    target = path(default if output is None else output)
    index = None if target.suffix.lower() in (_PAGE, *FORMATS) else target / INDEX
    files = _files(cases, target, montage=montage)
    maps = {"uncertainty": uncertainty, "probabilities": probabilities}
    sources = _Sources.of(
        [path(each) for each in seg],
        {kind: path(given) for kind, given in maps.items() if given is not None},
        scheme,
        batch=batch,
    )
    jobs, unmatched = sources.jobs(cases, files)
    todo = [job for job in jobs if not (skip_existing and job.file.exists())]
    for job in todo:
        require_writable(job.file, overwrite=overwrite)
    if index is not None:
        require_own_index(index, overwrite=overwrite)
    left_out = tuple(job.case.id for job in jobs if job not in todo)
    plan = _plan(todo, left_out, index, workers).over(executor).require_room()
    if dry_run:
        return Views((), tuple(wrong), left_out, unmatched, planned=plan)
    todo = _with_known(todo)
    outcomes = []
    for outcome in in_order(
        partial(_show, slices=tuple(slice), montage=montage),
        todo,
        executor=executor,
        workers=workers,
        name=lambda job: f"case {job.case.id}",
        lost=lambda job, error: error,
    ):
        if isinstance(outcome, BratsError) and not batch:
            raise outcome
        outcomes.append(outcome)
        on_progress(len(outcomes), len(todo))
    if index is not None:
        write_index(index)
    return Views(
        made=tuple(each for each in outcomes if isinstance(each, View)),
        failed=(*wrong, *(each for each in outcomes if isinstance(each, BratsError))),
        skipped=left_out,
        unmatched=unmatched,
        index=index,
    )


# Measured: a page of a case of 240 x 240 x 155 voxels has 8.3 MB, a picture 1.0, and the process
# that makes either takes 0.4 GB at its largest.
_BYTES_OF_PAGE, _BYTES_OF_PICTURE = 1.0, 0.12
_MEMORY, _MEMORY_PER_VOXEL = 120_000_000, 32


def _plan(
    jobs: Sequence[_Job], left_out: tuple[str, ...], index: Path | None, workers: int | None
) -> Plan:
    """What would be shown where; estimated from the shapes in the headers."""
    voxels = [job.case.voxels_on_disk() for job in jobs]
    sizes = [
        int(count * (_BYTES_OF_PICTURE if job.file.suffix.lower() in FORMATS else _BYTES_OF_PAGE))
        for job, count in zip(jobs, voxels, strict=True)
    ]
    plan = Plan(
        cases=tuple(job.case.id for job in jobs),
        outputs=(*(str(job.file) for job in jobs), *([str(index)] if index else [])),
        skipped=left_out,
        disk_bytes=by_folder(zip((job.file for job in jobs), sizes, strict=True)),
    )
    return plan.in_processes(workers, voxels, base=_MEMORY, per_voxel=_MEMORY_PER_VOXEL)


def _files(cases: Sequence[Case], target: Path, *, montage: int | None) -> dict[str, Path]:
    """The file of each case.

    Raises:
        ConfigError: If several cases would go into one file, or it has another format.
    """
    suffix = target.suffix.lower()
    if suffix in FORMATS or suffix == _PAGE:
        if len(cases) > 1:
            raise ConfigError(
                f"{len(cases)} cases do not fit into one file, {target}",
                hint="give a folder with -o: it gets a page per case and an index",
            )
    elif suffix and len(cases) == 1 and not target.is_dir():
        raise ConfigError(
            f"{target} has a format that brats view does not write",
            hint="end it in .html (interactive), .png, .pdf or .svg, or give a folder",
        )
    if montage is not None and suffix not in FORMATS:
        raise ConfigError(
            "--montage makes pictures, not pages",
            hint="give a file that ends in .png, .pdf or .svg with -o",
        )
    if suffix in FORMATS or suffix == _PAGE:
        return {cases[0].id: target}
    return {each.id: target / f"{each.id}{_PAGE}" for each in cases}


@dataclass(frozen=True)
class _Sources:
    """Where the files to show with each case come from.

    Attributes:
        segmentations: One or two: a file, or label maps by case id; empty for the case's own.
        maps: For uncertainty and probabilities, likewise.
        reviews: The review number of each case, where a folder of predictions has them.
        labels: Label scheme of label maps whose header and data set leave it open.
    """

    segmentations: tuple[Path | Mapping[str, Path], ...]
    maps: Mapping[str, Path | Mapping[str, Path]]
    reviews: Mapping[str, float] = field(default_factory=dict)
    labels: LabelScheme | None = None

    @classmethod
    def of(
        cls,
        seg: Sequence[Path],
        maps: Mapping[str, Path],
        labels: LabelScheme | None,
        *,
        batch: bool,
    ) -> _Sources:
        """Look into the folders given.

        Raises:
            ConfigError: If there are more than two segmentations, or one file for many cases.
            BratsError: If a folder holds nothing that can be shown.
        """
        if len(seg) > 2:
            raise ConfigError(
                f"{len(seg)} segmentations are too many for one picture",
                hint="give one or two: --seg PREDICTION --seg REFERENCE",
            )
        for path in (*seg, *maps.values()):
            if batch and not path.is_dir():
                raise ConfigError(
                    f"{path} is not a folder, and there are several cases",
                    hint="give a folder in which each case has a file of its id",
                )
        return cls(
            tuple(find_label_maps(path) if path.is_dir() else path for path in seg),
            {kind: _maps_in(path, kind) if path.is_dir() else path for kind, path in maps.items()},
            _reviews(seg[0] if seg[0].is_dir() else seg[0].parent) if seg else {},
            labels,
        )

    def jobs(
        self, cases: Sequence[Case], files: Mapping[str, Path]
    ) -> tuple[list[_Job], tuple[str, ...]]:
        """What is to be drawn, and the ids of the cases that have no segmentation to show.

        Raises:
            CaseError: If no case has one of the segmentations.
        """
        jobs, unmatched = [], []
        for case in cases:
            found = [_of_case(source, case.id) for source in self.segmentations]
            if found and found[0] is None:
                unmatched.append(case.id)
                continue
            prediction = found[0] if found else None
            reference = found[1] if len(found) > 1 else case.label
            if prediction is not None and reference is not None and _same(prediction, reference):
                prediction = None  # the expert's own: nothing to compare it with
            maps = {kind: _of_case(source, case.id) for kind, source in self.maps.items()}
            wanted = Wanted(
                prediction,
                reference,
                maps.get("uncertainty"),
                maps.get("probabilities"),
                self.labels,
            )
            jobs.append(_Job(case, files[case.id], wanted, self.reviews.get(case.id)))
        if not jobs:
            source = self.segmentations[0]
            ids = sorted(source) if isinstance(source, Mapping) else []
            raise CaseError(
                f"no label map in the folder given with --seg ({', '.join(ids[:3])}) has the id "
                f"of a case ({', '.join(unmatched[:3])})",
                hint="the file name without modality or _seg is the case id: rename the label "
                "maps, or give one case and one file",
            )
        return jobs, tuple(unmatched)


def _with_known(jobs: Sequence[_Job]) -> list[_Job]:
    """The jobs, with what the label maps of one folder or data set say together of their values."""
    shown = [(job.case, job.wanted.prediction, job.wanted.reference) for job in jobs]
    predictions = {path: case.id for case, path, _ in shown if path}
    own = {path: case.id for case, _, path in shown if path and path == case.label}
    references = {path: case.id for case, _, path in shown if path and path not in own}
    known = {
        **known_of(predictions),
        **known_of(references),
        **known_of(own, {case.id: case for case, *_ in shown}),
    }
    return [
        # Its own files alone: a job travels to another process.
        replace(job, wanted=replace(job.wanted, known={path: known[path] for path in of if path}))
        for job, (_, *of) in zip(jobs, shown, strict=True)
    ]


def _of_case(source: Path | Mapping[str, Path], case_id: str) -> Path | None:
    """Its file in a source; ids may differ in upper and lower case, as in `evaluate`."""
    if isinstance(source, Path):
        return source
    alike = (path for name, path in source.items() if name.casefold() == case_id.casefold())
    return source.get(case_id) or next(alike, None)


def _same(first: Path, second: Path) -> bool:
    return real_path(first) == real_path(second)


def _maps_in(folder: Path, kind: str) -> dict[str, Path]:
    """The maps that `brats predict` wrote into a folder, by case id.

    Raises:
        NoCasesError: If there is none.
    """
    ending = f"_{kind}"
    found = {
        stem(path).removesuffix(ending): path
        for path in nifti_files(folder)
        if stem(path).endswith(ending)
    }
    if not found:
        raise NoCasesError(folder, f"{kind} maps (CASE{ending}.nii.gz)")
    return found


def _reviews(folder: Path) -> dict[str, float]:
    """The review number of each case by the manifest of a folder of predictions; often none."""
    reviews: dict[str, float] = {}
    for row in read_manifest(folder / MANIFEST):
        with suppress(ArithmeticError, LookupError, TypeError, ValueError):
            reviews.pop(str(row["case"]), None)  # of several lines the last holds
            reviews[str(row["case"])] = float(row["review"])
    return {case: review for case, review in reviews.items() if math.isfinite(review)}


# --- one case ----------------------------------------------------------------------------------


def _show(job: _Job, *, slices: Sequence[str], montage: int | None) -> View | BratsError:
    """Draw one case; an error is returned, not raised, so that a batch continues."""
    keep_freed_memory()  # else a seventh of the time is page faults
    return outcome_of(partial(_drawn, job, slices, montage))


def _drawn(job: _Job, slices: Sequence[str], montage: int | None) -> View:
    """Draw one case.

    Its file may be there if the process that drew it before was lost, and is replaced.
    """
    scene = load_scene(job.case, job.wanted)
    made = View(
        case=job.case.id,
        file=str(job.file),
        volumes_mm3={each.name: each.volumes_mm3 for each in scene.segmentations},
        scores={
            region: {"dice": found.dice, "hausdorff95_mm": found.hausdorff95_mm}
            for region, found in scene.scores.items()
        },
        review=job.review,
        notes=scene.notes,
    )
    if job.file.suffix.lower() in FORMATS:
        draw_slices(scene, job.file, slices=slices, montage=montage, overwrite=True)
    else:
        chosen = parse_slices(scene, slices)
        focus = [chosen.get(plane, scene.fullest[axis]) for plane, axis in PLANES.items()]
        write_page(
            scene,
            job.file,
            summary=summarise(made.row(), scene),
            focus=(focus[2], focus[1], focus[0]),
            overwrite=True,
        )
    return made
