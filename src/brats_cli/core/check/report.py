"""Is a data set complete and sound? Each case is examined alone, then compared with the others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..compute.executors import in_order
from ..compute.machine import keep_freed_memory
from ..data.cases import Case
from ..data.finding import survey
from ..data.labels import LabelScheme, fitting_schemes
from ..data.naming import MODALITIES
from ..data.schemes import alike_in_labels, scheme_of_all
from ..errors import LabelError, UnreadableFileError
from ..images.background import on_zero
from ..images.grid import Volume, times
from ..images.nifti import LabelCount, read_volume
from .rules import (
    BACKGROUND,
    ERROR,
    HEADER_RULES,
    IMAGE_RULES,
    LABEL_RULES,
    LEVELS,
    LITTLE_ET_MM3,
    NOTE,
    WARNING,
    Finding,
    compare,
    header_is_sound,
    print_of,
)

FORMAT = "brats-check/1"

_VOXELS_TO_RECOGNISE = 20
"""Images with fewer voxels may be equal in two cases by chance."""


@dataclass(frozen=True)
class Intensities:
    """Range of a modality's intensities inside the brain, that is where they are not 0."""

    low: float
    median: float
    high: float
    largest: float

    @classmethod
    def of(cls, volume: Volume) -> Intensities:
        """1st, 50th and 99th percentile and maximum of an image; all 0 if the image is empty."""
        if not volume.foreground.size:
            return cls(0.0, 0.0, 0.0, 0.0)
        low, median, high = np.percentile(volume.foreground, [1, 50, 99])
        return cls(float(low), float(median), float(high), float(volume.foreground.max()))


@dataclass(frozen=True)
class CaseReport:
    """What the check found in one case.

    Attributes:
        id: Case id.
        patient: Patient id.
        findings: Worst first.
        shape: Grid of its images, (X, Y, Z); empty if no image could be read.
        spacing_mm: Voxel size along each axis.
        intensities: Range of intensities by modality.
        count: Its label voxels, if its label map could be read and holds labels.
        scheme: Its label scheme, if that is known.
        regions_mm3: Volume of each region of the scheme.
        prints: Fingerprints of the voxels, by modality or `label`.
    """

    id: str
    patient: str
    findings: tuple[Finding, ...]
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    intensities: Mapping[str, Intensities] = field(default_factory=dict)
    count: LabelCount | None = None
    scheme: LabelScheme | None = None
    regions_mm3: Mapping[str, float] = field(default_factory=dict)
    prints: Mapping[str, str] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """Level of its worst finding; `ok` if there is none, or only notes."""
        return next((level for level in LEVELS[:2] if level in self._levels()), "ok")

    @property
    def repairable(self) -> bool:
        """Whether a repair would change something and leave no error."""
        errors = [finding for finding in self.findings if finding.level == ERROR]
        return all(finding.repair for finding in errors) and any(
            finding.repair for finding in self.findings
        )

    def with_findings(self, *more: Finding) -> CaseReport:
        """The same report with `more` findings."""
        ordered = sorted((*self.findings, *more), key=lambda each: LEVELS.index(each.level))
        return replace(self, findings=tuple(ordered))

    def _levels(self) -> set[str]:
        return {finding.level for finding in self.findings}


@dataclass(frozen=True)
class DataReport:
    """What the check found in a data set.

    Attributes:
        root: Folder of the data set.
        cases: Worst first, then by id.
        findings: Findings that concern no single case.
        repaired: Ids of the cases of which `fix` wrote a repaired copy.
    """

    root: Path
    cases: tuple[CaseReport, ...]
    findings: tuple[Finding, ...]
    repaired: tuple[str, ...] = ()

    @property
    def errors(self) -> int:
        """Number of cases with an error, and of errors that concern no single case."""
        return self.count(ERROR) + sum(finding.level == ERROR for finding in self.findings)

    @property
    def unrepaired_errors(self) -> int:
        """Number of errors, as in `errors`, without the cases that were repaired."""
        return self.errors - sum(
            case.id in self.repaired for case in self.cases if case.level == ERROR
        )

    @property
    def repairable_errors(self) -> int:
        """Number of cases with an error that a repair would remove."""
        return sum(case.repairable for case in self.cases if case.level == ERROR)

    def count(self, level: str) -> int:
        """Number of cases whose worst finding is of that level."""
        return sum(case.level == level for case in self.cases)

    def as_dict(self) -> dict[str, Any]:
        """The whole report in plain values, for JSON."""
        return {
            "format": FORMAT,
            "data": str(self.root),
            "summary": summarize(self),
            "findings": [_finding_dict(finding) for finding in self.findings],
            "cases": [_case_dict(case) for case in self.cases],
            "repaired": list(self.repaired),
        }


def check_data_set(
    root: Path,
    *,
    labels: LabelScheme | None = None,
    workers: int | None = None,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> DataReport:
    """Read every file of the data set in `root`, and report everything that is wrong with it.

    Args:
        root: Folder of a data set or of one case.
        labels: Label scheme of the label maps, if names, headers and values leave it open.
        workers: Number of processes; by default one per CPU.
        on_progress: Called with the number of cases read and their total.

    Raises:
        NoCasesError: If there is no case at all.
    """
    found_in = survey(root)
    cases = found_in.cases
    reports = {}
    for done, report in enumerate(in_order(examine, cases, workers=workers), 1):
        reports[report.id] = report
        on_progress(done, len(cases))
    found = [Finding(ERROR, "clash", f"{clash}") for clash in found_in.clashes]
    stray = "a label map without images"
    found += [Finding(WARNING, "stray", stray, path) for path in found_in.strays]
    found += [_not_understood(path, "", labelled=False) for path in found_in.others]
    _judge_labels(cases, reports, labels)
    _judge_twins(cases, reports)
    _judge_missing_labels(cases, reports)
    ordered = sorted(
        reports.values(), key=lambda case: ((*LEVELS, "ok").index(case.level), case.id)
    )
    return DataReport(root, tuple(ordered), tuple(found))


def examine(case: Case) -> CaseReport:
    """Examine one case on its own: its findings and its measures."""
    keep_freed_memory()  # else an eighth of the time is page faults
    findings = []
    missing = [modality for modality in MODALITIES if modality not in case.images]
    if missing:
        findings.append(Finding(ERROR, "missing", f"no {', '.join(missing)}", case.folder))
    labelled = case.label is not None
    findings += [_not_understood(path, case.id, labelled=labelled) for path in case.others]
    volumes, unreadable = _read(case)
    findings += unreadable
    for role, volume in _one_a_file(volumes).items():
        for rule in (*HEADER_RULES, *(LABEL_RULES if role == "label" else ())):
            findings += rule.find(volume)
    images = {role: volume for role, volume in volumes.items() if role != "label"}
    # An odd background is a finding; all else is judged as it is read, with 0 around the head.
    for volume in images.values():
        findings += BACKGROUND.find(volume)
    images = {role: on_zero(volume) for role, volume in images.items()}
    volumes |= images
    for volume in images.values():
        for rule in IMAGE_RULES:
            findings += rule.find(volume)
    reference = reference_of(images)
    if reference is not None:
        findings += compare(volumes, reference)
        if not header_is_sound(reference):
            # No file is left that gives the position of the others.
            findings = [_unless_placing(finding) for finding in findings]
    label = volumes.get("label")
    return CaseReport(
        case.id,
        case.patient,
        (),
        reference.data.shape if reference else (),
        tuple(round(float(size), 4) for size in reference.spacing_mm) if reference else (),
        {role: Intensities.of(volume) for role, volume in images.items()},
        _count(label, [each for each in findings if each.file == label.path]) if label else None,
        prints={
            role: print_of(volume)
            for role, volume in volumes.items()
            if volume.foreground.size >= _VOXELS_TO_RECOGNISE
        },
    ).with_findings(*findings)


def reference_of(images: Mapping[str, Volume]) -> Volume | None:
    """The image, of those with a sound header, whose grid most of the others share."""
    volumes = [volume for volume in images.values() if header_is_sound(volume)]
    volumes = volumes or [volume for volume in images.values() if volume.grid.is_usable]
    if not volumes:
        return next(iter(images.values()), None)
    grids = [(volume.data.shape, *np.round(volume.affine.ravel(), 1)) for volume in volumes]
    return volumes[grids.index(Counter(grids).most_common(1)[0][0])]


def _unless_placing(finding: Finding) -> Finding:
    placing = finding.rule in ("affine", "orientation", "place")
    return replace(finding, repair="") if placing else finding


def read_case(case: Case) -> Iterator[tuple[str, Volume | UnreadableFileError]]:
    """Each file of a case by modality or `label`: a 3D volume, or the error of reading it."""
    whole: dict[Path, Volume | UnreadableFileError] = {}
    files = {role: (image.path, image.channel) for role, image in case.images.items()}
    channels = 1 + max((channel or 0 for _, channel in files.values()), default=0)
    if case.label:
        files["label"] = (case.label, None)
    for role, (path, channel) in files.items():
        if path not in whole:
            whole[path] = _whole(path, 1 if channel is None else channels)
        volume = whole[path]
        if isinstance(volume, Volume) and channel is not None:
            volume = volume.channel(channel)
        yield role, volume


def _whole(path: Path, channels: int) -> Volume | UnreadableFileError:
    """A file with the expected dimensions and type of numbers, or the error in it."""
    try:
        volume = read_volume(path)
    except UnreadableFileError as error:
        return error
    shape = volume.data.shape
    if len(shape) != (3 if channels == 1 else 4):
        expected = "3 dimensions" if channels == 1 else "4 dimensions (FLAIR, T1, T1ce, T2)"
        return UnreadableFileError(path, f"it has {times(shape)} voxels; {expected} are expected")
    if channels > 1 and shape[3] < channels:
        return UnreadableFileError(path, f"it has {shape[3]} channels; {channels} are expected")
    return volume


def _read(case: Case) -> tuple[dict[str, Volume], list[Finding]]:
    volumes, findings = {}, {}
    for role, volume in read_case(case):
        if isinstance(volume, Volume):
            volumes[role] = volume
        else:
            reason = str(volume).removeprefix(f"cannot read {volume.path}: ")
            findings[volume.path] = Finding(ERROR, "unreadable", reason, volume.path)
    return volumes, list(findings.values())


def _one_a_file(volumes: Mapping[str, Volume]) -> dict[str, Volume]:
    """`volumes` with one channel for each 4D file."""
    paths: dict[Path, str] = {}
    for role, volume in volumes.items():
        paths.setdefault(volume.path, role)
    return {role: volumes[role] for role in paths.values()}


def _count(label: Volume, findings: Sequence[Finding]) -> LabelCount | None:
    """The number of voxels of each label, or None if the values are not labels."""
    if any(finding.rule in ("not-finite", "not-whole", "range") for finding in findings):
        return None
    if label.data.dtype.kind == "f":
        label = replace(label, data=np.rint(label.data))
    return LabelCount.of(label)


# --- comparing the cases -----------------------------------------------------------------------


def _judge_labels(
    cases: Sequence[Case], reports: dict[str, CaseReport], labels: LabelScheme | None
) -> None:
    """Give every case its label scheme; add a finding if its labels fit no scheme, or several."""
    counts = {case.id: count for case in cases if (count := reports[case.id].count)}
    known = []
    for case in cases:
        if case.id not in counts:
            continue
        strange = sorted(counts[case.id].voxels)
        if labels or fitting_schemes(strange):
            known.append(case)
        else:
            message = f"it holds labels {', '.join(map(str, strange))}, which fit no label scheme"
            finding = Finding(ERROR, "labels", message, case.label)
            reports[case.id] = reports[case.id].with_findings(finding)
    for alike in alike_in_labels(known, counts):
        try:
            scheme = scheme_of_all(alike, counts, labels)
        except LabelError as error:
            for case in alike:
                message = str(error).partition(" holds ")[2]
                finding = Finding(ERROR, "labels", f"labels: {message}; {error.hint}", case.label)
                reports[case.id] = reports[case.id].with_findings(finding)
            continue
        for case in alike:
            reports[case.id] = _with_scheme(reports[case.id], case, scheme)


def _with_scheme(report: CaseReport, case: Case, scheme: LabelScheme) -> CaseReport:
    assert report.count is not None
    voxels, voxel_mm3 = report.count.voxels, report.count.voxel_mm3
    regions = {
        region.name: voxel_mm3 * sum(voxels.get(value, 0) for value in region.labels)
        for region in scheme.regions
    }
    report = replace(report, scheme=scheme, regions_mm3=regions)
    if case.scheme and not case.scheme.values >= set(voxels):
        message = f"it has labels of {scheme.name}, but its name is of {case.scheme.name}"
        report = report.with_findings(Finding(WARNING, "scheme", message, case.label, "labels"))
    et = regions.get("ET")
    if et is None or not regions.get("WT"):
        return report
    if et == 0:
        return report.with_findings(Finding(NOTE, "no-et", "no enhancing tumour", case.label))
    if et < LITTLE_ET_MM3:
        message = f"very little enhancing tumour ({et:.0f} mm3)"
        return report.with_findings(Finding(NOTE, "little-et", message, case.label))
    return report


def _judge_twins(cases: Sequence[Case], reports: dict[str, CaseReport]) -> None:
    """Add an error to each case that shares an image, or a tumour, with one before it."""
    first: dict[tuple[bool, str], Case] = {}
    for case in cases:
        for role, voxels in reports[case.id].prints.items():
            other = first.setdefault((role == "label", voxels), case)
            if other is case:
                continue
            what = "the same tumour" if role == "label" else f"the same {role} voxels"
            place = other.label if role == "label" else other.folder
            file = case.label if role == "label" else case.images[role].path
            finding = Finding(ERROR, "twin", f"{what} as case {other.id} in {place}", file)
            reports[case.id] = reports[case.id].with_findings(finding)


def _judge_missing_labels(cases: Sequence[Case], reports: dict[str, CaseReport]) -> None:
    labelled = sum(case.label is not None for case in cases)
    if not labelled:
        return
    for case in cases:
        if case.label is None:
            message = f"no label map; {labelled} of {len(cases)} cases have one"
            finding = Finding(WARNING, "unlabelled", message, case.folder)
            reports[case.id] = reports[case.id].with_findings(finding)


_LIKE_A_LABEL = re.compile(r"seg|label|mask|tumou?r|lesion|truth|annot|roi", re.IGNORECASE)


def _not_understood(path: Path, case_id: str, *, labelled: bool) -> Finding:
    """A note of an image whose name is not understood; a warning if it may be the label map."""
    rest = path.name.removeprefix(case_id)
    name = f"*{rest}" if case_id and rest != path.name else path.name
    message = f"the name of {name} is not understood: the image is left out"
    if _LIKE_A_LABEL.search(rest) and not labelled:
        message += " (if it is the label map, name it CASE_seg)"
        return Finding(WARNING, "not-understood", message, path)
    return Finding(NOTE, "not-understood", message, path)


# --- summing up --------------------------------------------------------------------------------


def summarize(report: DataReport) -> dict[str, Any]:
    """The data set as a whole: numbers of cases, grids, schemes, intensities, region volumes."""
    cases = report.cases
    patients = Counter(case.patient for case in cases)
    regions = [case.regions_mm3 for case in cases if case.regions_mm3]
    return {
        "cases": len(cases),
        "patients": len(patients),
        "patients_with_several_visits": sum(visits > 1 for visits in patients.values()),
        "errors": report.errors,
        "warnings": report.count(WARNING),
        "repairable": sum(case.repairable for case in cases if case.level != "ok"),
        "grids": _tally(times(case.shape) for case in cases if case.shape),
        "spacings_mm": _tally(
            " x ".join(f"{size:g}" for size in case.spacing_mm) for case in cases if case.shape
        ),
        "labels": _tally(case.scheme.name for case in cases if case.scheme),
        "without_et": sum(volumes.get("ET") == 0 for volumes in regions),
        "intensities": {
            modality: _ranges(
                [
                    asdict(case.intensities[modality])
                    for case in cases
                    if modality in case.intensities
                ]
            )
            for modality in MODALITIES
        },
        "regions_mm3": _ranges(regions),
    }


def _tally(names: Iterator[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _ranges(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Smallest, median and largest of each column."""
    columns = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if name in row] for name in columns}
    return {
        name: {
            "min": float(min(each)),
            "median": float(np.median(each)),
            "max": float(max(each)),
        }
        for name, each in values.items()
    }


def _finding_dict(finding: Finding) -> dict[str, Any]:
    return {
        "level": finding.level,
        "rule": finding.rule,
        "message": finding.message,
        "file": str(finding.file) if finding.file else None,
        "repair": finding.repair or None,
    }


def _case_dict(case: CaseReport) -> dict[str, Any]:
    return {
        "id": case.id,
        "patient": case.patient,
        "level": case.level,
        "findings": [_finding_dict(finding) for finding in case.findings],
        "shape": list(case.shape),
        "spacing_mm": list(case.spacing_mm),
        "labels": case.scheme.name if case.scheme else None,
        "voxels": {str(v): n for v, n in case.count.voxels.items()} if case.count else None,
        "regions_mm3": dict(case.regions_mm3),
        "intensities": {role: asdict(each) for role, each in case.intensities.items()},
    }
