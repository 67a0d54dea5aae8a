"""How a data set is split: by patient, with every kind of case in every part."""

from __future__ import annotations

import hashlib
import math
import re
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from ..compute.processes import in_threads
from ..errors import BratsWarning, LabelError, SplitError, UnreadableFileError
from ..images.nifti import LabelCount, count_labels, read_image
from ..wording import listing
from ..writing import require_ending, require_writable
from .cases import Case, ImageFile
from .finding import find_cases
from .labels import LabelScheme, as_scheme, is_predicted
from .naming import MODALITIES, OTHER, ROLES, VISITS, naming_of
from .schemes import with_schemes
from .splits import Fold, Split
from .strata import column_by_case, table_strata, tumour_strata

DEFAULT_RATIOS = (70.0, 15.0, 15.0)
"""Training, validation and test, in percent of the patients."""


@dataclass(frozen=True)
class NewSplit:
    """A new split, and what it was made from.

    Attributes:
        split: The cases for training, validation and testing.
        strata: Stratum of every case of the split.
        unlabelled: Ids of the cases that were left out because they have no label map.
    """

    split: Split
    strata: Mapping[str, str]
    unlabelled: tuple[str, ...]


def split(
    data: str | Path,
    *,
    output: str | Path | None = None,
    ratios: str = "70/15/15",
    folds: int | None = None,
    seed: int = 0,
    group: bool = True,
    stratify: str | None = None,
    patients: str | None = None,
    modalities: str | Sequence[str] = "t1,t1ce,t2,flair",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    labels: LabelScheme | str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> NewSplit:
    """Split a data set into training, validation and test cases.

    Every label map is read once. Cases without a label map are left out.

    Args:
        data: Folder of the data set.
        output: The splits file to write. By default nothing is written (the command writes
            splits.yaml); the result can be saved later with `.split.save(path)`.
        ratios: Percentages of the patients for training/validation/test.
        folds: Number of cross-validation folds; the test cases still follow `ratios`.
        seed: Random seed; the same seed gives the same split.
        group: Keep all visits of a patient in the same part.
        stratify: `TABLE.csv:COLUMN`, the property to balance between the parts; by default
            tumour size and whether there is enhancing tumour.
        patients: Who the patient of a case is, if names follow no known scheme: a regular
            expression for the part of the case id, or `TABLE.csv:COLUMN`.
        modalities: The MR sequences that each case must have, as "t1ce,flair" or a list.
        include: Patterns such as `BraTS2021_*`; only cases whose id matches one are split.
        exclude: Patterns; cases whose id matches one are left out.
        labels: Label scheme of the label maps, if names, headers and values leave it open.
        dry_run: Write nothing; the result is the same.
        overwrite: Replace `output` if it exists.
        on_progress: Called with the number of label maps read and their total.

    Raises:
        NoCasesError: If `data` holds no case.
        SplitError: If cases are incomplete, identical or too few, or if a pattern, `ratios` or
            `stratify` fits nothing.
        LabelError: If a label map fits no label scheme, or several.
        OutputExistsError: If `output` exists and `overwrite` is false.
    """
    data, scheme, shares = Path(data), as_scheme(labels), parse_ratios(ratios)
    wanted = parse_modalities(modalities)
    if output is not None:
        require_ending(Path(output), ".yaml", ".yml")
        require_writable(Path(output), overwrite=overwrite)
    found = select(find_cases(data), include, exclude)
    cases = [case for case in found if case.label]
    _require_complete(cases, found, data, wanted)
    cases = with_patients(cases, patients) if patients else cases
    if group and not patients:
        _warn_of_visits(cases)
    by_table = table_strata(stratify, cases) if stratify else None
    counts = _count_all(cases, on_progress)
    _require_experts(cases, counts)
    _require_different(cases, counts, wanted[0])
    cases = with_schemes(cases, counts, scheme)
    strata = by_table or tumour_strata(cases, counts)
    made = make_split(
        cases,
        data=data,
        strata=strata,
        ratios=shares,
        folds=folds,
        seed=seed,
        grouped=group,
    )
    if patients:
        made = replace(made, patients={case.id: case.patient for case in cases})
    if wanted != MODALITIES:
        made = replace(made, modalities=wanted)
    if output is not None and not dry_run:
        made.save(Path(output), overwrite=overwrite)
    return NewSplit(made, strata, tuple(case.id for case in found if not case.label))


def parse_ratios(text: str) -> tuple[float, float, float]:
    """`70/15/15` as numbers: training, validation, test.

    Raises:
        SplitError: If they are not three numbers, or if training or validation would be empty.
    """
    try:
        train, val, test = map(float, text.split("/"))
    except ValueError:
        train = val = test = -1.0
    if not (train > 0 and val > 0 and test >= 0 and math.isfinite(train + val + test)):
        raise SplitError(
            f"--ratios {text} is not of the form training/validation/test, such as 70/15/15",
            hint="give three numbers; only the last one may be 0",
        )
    return train, val, test


def select(cases: Sequence[Case], include: Sequence[str], exclude: Sequence[str]) -> list[Case]:
    """The cases whose id matches one of `include` (all cases if it is empty) and none of `exclude`.

    Patterns are written as in a shell: `BraTS2021_*`.

    Raises:
        SplitError: If a pattern matches no case; it is probably misspelt.
    """
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(case.id, pattern) for case in cases):
            raise SplitError(
                f"no case id matches '{pattern}'",
                hint=f"case ids look like {cases[0].id}; * matches any text",
            )
    return [
        case
        for case in cases
        if (not include or any(fnmatchcase(case.id, pattern) for pattern in include))
        and not any(fnmatchcase(case.id, pattern) for pattern in exclude)
    ]


def parse_modalities(given: str | Sequence[str]) -> tuple[str, ...]:
    """MR sequences by their names, as `t1ce,flair`, in the order of the channels.

    Raises:
        SplitError: If one is unknown, or there is none.
    """
    names = given.split(",") if isinstance(given, str) else given
    known = [ROLES.get(name.strip().lower(), "") for name in names]
    for name, role in zip(names, known, strict=True):
        if role not in MODALITIES:
            raise SplitError(
                f"--modalities: there is no MR sequence '{name}'",
                hint=f"give one or several of {','.join(MODALITIES)}",
            )
    return tuple(modality for modality in MODALITIES if modality in known)


def with_patients(cases: Sequence[Case], patients: str) -> list[Case]:
    """The cases with the patients that a regular expression finds in their ids, or a table has.

    The patient is what the groups of the expression match, joined by `_`, or the whole match.

    Raises:
        SplitError: If it is neither, or leaves out a case.
    """
    if Path(patients.rpartition(":")[0]).suffix.lower() in (".csv", ".tsv", ".txt"):
        by_id = column_by_case(patients, cases, option="--patients")
    else:
        try:
            pattern = re.compile(patients)
        except re.error as error:
            raise SplitError(
                f"--patients {patients} is not a regular expression: {error}",
                hint=r"such as 'Patient\d+', or a table: TABLE.csv:COLUMN",
            ) from error
        matches = {case.id: pattern.search(case.id) for case in cases}
        by_id = {
            case_id: "_".join(filter(None, match.groups())) or match[0]
            for case_id, match in matches.items()
            if match
        }
    without = [case.id for case in cases if not by_id.get(case.id)]
    if without:
        raise SplitError(
            f"--patients {patients} gives no patient for {listing(without)}",
            hint="it must give one for every case; leave cases out with --exclude",
        )
    return [replace(case, patient=by_id[case.id]) for case in cases]


def _warn_of_visits(cases: Sequence[Case]) -> None:
    """Say which ids were taken for visits of one patient though no release names them so."""
    visits: dict[str, list[str]] = {}
    for case in cases:
        if naming_of(case.id).name == VISITS:
            visits.setdefault(case.patient, []).append(case.id)
    several = [ids for ids in visits.values() if len(ids) > 1]
    if several:
        warnings.warn(
            f"{len(several)} patients seem to have several visits, such as {listing(several[0])}: "
            "they are kept together; say who the patient is with --patients",
            BratsWarning,
            stacklevel=3,
        )
    alike = _alike_but_for_the_end(case.id for case in cases)
    if alike:
        warnings.warn(
            f"ids such as {listing(alike)} differ only at their end: if these are scans of one "
            "patient, say so with --patients, as they may now be in training and test",
            BratsWarning,
            stacklevel=3,
        )


_END = re.compile(r"(?P<start>.+)[_. -]+[^_. -]{1,12}|(?P<patient>.*\d)[a-z]", re.IGNORECASE)
_FEW = 9
"""Of a numbering of cases there are more with one start."""


def _alike_but_for_the_end(case_ids: Iterable[str]) -> list[str]:
    """Ids that may be of one patient: few start alike, and most ids have such kin; else none."""
    kin: dict[str, list[str]] = {}
    of_no_release = [each for each in case_ids if naming_of(each).name == OTHER]
    for case_id in of_no_release:
        if match := _END.fullmatch(case_id):
            kin.setdefault(match["start"] or match["patient"], []).append(case_id)
    some = [ids for ids in kin.values() if 1 < len(ids) <= _FEW]
    if len(some) < 2 or 2 * sum(map(len, some)) < len(of_no_release):
        return []
    return some[0]


def _require_experts(cases: Sequence[Case], counts: Mapping[str, LabelCount]) -> None:
    for case in cases:
        if case.label and is_predicted(counts[case.id].note):
            raise LabelError.predicted(case.label)


def _require_complete(
    cases: Sequence[Case], found: Sequence[Case], data: Path, modalities: Sequence[str]
) -> None:
    if not cases:
        others = [path.name for case in found for path in case.others]
        raise SplitError(
            f"no case in {data} has a label map",
            hint=f"these names are not understood: {listing(others)}; name label maps CASE_seg"
            if others
            else "a split needs label maps: give the folder of the training data",
        )
    incomplete = [case for case in cases if set(modalities) - set(case.images)]
    if incomplete:
        lacks = [
            f"{case.id} has no {', '.join(m for m in modalities if m not in case.images)}"
            for case in incomplete
        ]
        shared = ",".join(m for m in MODALITIES if all(m in case.images for case in cases))
        some = f"; all have {shared}: use --modalities {shared}" if shared else ""
        raise SplitError(
            f"incomplete cases in {data}: {listing(lacks)}",
            hint="add the missing files, or use --exclude ID; `brats check` lists all such cases"
            + some,
        )


def _count_all(
    cases: Sequence[Case], on_progress: Callable[[int, int], object]
) -> dict[str, LabelCount]:
    """The label voxels of every case; each file is read once, several at the same time."""
    labels = {case.id: case.label for case in cases if case.label}
    counts = {}
    counted = in_threads(count_labels, list(labels.values()))
    for done, (case_id, count) in enumerate(zip(labels, counted, strict=True), 1):
        counts[case_id] = count
        on_progress(done, len(labels))
    return counts


# --- duplicates --------------------------------------------------------------------------------


def _require_different(
    cases: Sequence[Case], counts: Mapping[str, LabelCount], modality: str
) -> None:
    """Check that no two case ids hold the same image.

    Only cases with equal label counts, or with equal bytes on disk, are read and compared.

    Raises:
        SplitError: If two do; it gives both ids.
    """
    clues: dict[object, list[Case]] = {}
    for case in cases:
        # Sorted, because one year's 4 is another year's 3.
        sizes = sorted(n for value, n in counts[case.id].voxels.items() if value)
        for clue in (tuple(sizes), _clue_on_disk(case.images[modality].path)):
            clues.setdefault(clue, []).append(case)
    suspects = {case.id: case for alike in clues.values() if len(alike) > 1 for case in alike}
    seen: dict[tuple[object, ...], Case] = {}
    images = [case.images[modality] for case in suspects.values()]
    for case, voxels in zip(suspects.values(), in_threads(_voxels_of, images), strict=True):
        other = seen.setdefault(voxels, case)
        if other is not case:
            raise SplitError(
                f"cases {other.id} and {case.id} hold the same voxels: "
                f"{other.images[modality].path} and {case.images[modality].path}",
                hint="one case under two ids would leak into the test: remove one, or use "
                f"--exclude {case.id}",
            )


def _clue_on_disk(path: Path) -> bytes:
    """A few bytes that are equal for equal images: gzip's own checksum and size, or the middle."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would never end
            raise UnreadableFileError(path, "it is not a regular file", hint="give a NIfTI file")
        size = status.st_size
        with path.open("rb") as file:
            if path.name.lower().endswith(".gz"):
                file.seek(max(0, size - 8))
                return file.read(8)
            file.seek(size // 2)
            return hashlib.sha256(file.read(1 << 16)).digest()
    except OSError as error:
        raise UnreadableFileError(path, error.strerror or str(error)) from error


def _voxels_of(image: ImageFile) -> tuple[object, ...]:
    data = read_image(image.path, image.channel).data
    return data.shape, hashlib.sha256(data[data != 0].tobytes()).digest()


# --- assigning cases to parts ------------------------------------------------------------------


def make_split(
    cases: Sequence[Case],
    *,
    data: Path,
    strata: Mapping[str, str],
    ratios: tuple[float, float, float] = DEFAULT_RATIOS,
    folds: int | None = None,
    seed: int = 0,
    grouped: bool = True,
) -> Split:
    """Assign cases to one fold by `ratios`, or to `folds` folds, and to the test part.

    Whether a patient is in the test part depends on the seed and the patient's id alone, so that
    cases added later move nobody out of it; its size is therefore near the ratio, not exactly it.
    Of ids that do not end in numbers of a series the size is further off by chance, and is held
    near the ratio: patients next to that border may then change parts when cases are added.
    The other cases are assigned so that every fold has its share of each stratum.

    Args:
        cases: Cases with label maps and their label schemes, each id once.
        data: Folder of the data set.
        strata: Stratum by case id.
        ratios: Training, validation and test; with `folds`, only the share of the test counts.
        folds: Number of folds; every case outside the test part is in the validation of one.
        seed: Random seed; the same seed gives the same split.
        grouped: Keep all visits of a patient in the same part.

    Raises:
        SplitError: If there are too few patients.
    """
    train, val, test = np.array(ratios) / sum(ratios)
    groups = {case.id: case.patient if grouped else case.id for case in cases}
    held_out = _test_groups(set(groups.values()), test, seed, leave=folds or 2)
    rest = sorted(case_id for case_id, group in groups.items() if group not in held_out)
    if folds:
        parts = _equal_parts(rest, groups, strata, parts=folds, seed=seed)
    else:
        parts = [_part_of_share(rest, groups, strata, share=val / (train + val), seed=seed)]
    return Split(
        data.absolute(),
        {case.id: case.scheme for case in cases if case.scheme},
        seed,
        tuple(Fold(tuple(i for i in rest if i not in part), tuple(sorted(part))) for part in parts),
        tuple(sorted(case_id for case_id, group in groups.items() if group in held_out)),
        grouped,
        listing={case.id: case for case in cases},
    )


def _test_groups(groups: set[str], share: float, seed: int, *, leave: int) -> set[str]:
    """The groups whose place is below `share`: at least one if `share` > 0; `leave` remain."""
    if len(groups) < leave + bool(share):
        parts = f"{leave} parts" + " and a test part" * bool(share)
        raise SplitError(
            f"{len(groups)} patients are too few for {parts}",
            hint="add cases, use fewer folds, or --ratios with 0 for the test part",
        )
    place = {group: _place(seed, group) for group in groups}
    ordered = sorted(groups, key=lambda group: (place[group], group))
    below = sum(place[group] < share * 2**64 for group in ordered)
    # Places that follow no pattern can crowd together by chance, and numbers in steps, as of every
    # 144th patient, do; then the nearest to the share are taken.
    due = share * len(groups)
    off = max(1.0, math.sqrt(due))
    below = min(max(below, math.ceil(due - off)), math.floor(due + off))
    return set(ordered[: min(max(below, bool(share)), len(groups) - leave)])


_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio


def _place(seed: int, group: str) -> int:
    """A number in [0, 2^64) that depends on nothing but seed and group, on any machine.

    Consecutive patient numbers of one release advance by the golden ratio (a low-discrepancy
    sequence), so that the share of any run of them below any threshold is right to about one
    patient. A hash per patient would select between 1 and 10 of 40 patients where 6 are wanted.
    """
    release = group.rstrip("0123456789")
    digits = group[len(release) :]
    if len(digits) > 9:  # a time stamp or a UID counts nothing: the whole of it is hashed
        release, digits = group, ""
    digest = hashlib.sha256(f"{seed}/{release}".encode("utf-8", "surrogateescape")).digest()
    return (int.from_bytes(digest[:8], "big") + int(digits or 0) * _GOLDEN) % 2**64


def _equal_parts(
    ids: Sequence[str],
    groups: Mapping[str, str],
    strata: Mapping[str, str],
    *,
    parts: int,
    seed: int,
) -> list[set[str]]:
    """All of `ids` in `parts` parts of about equal size, each with its share of every stratum."""
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import

    kinds = [strata[case_id] for case_id in ids]
    of_whom = [groups[case_id] for case_id in ids]
    if max(Counter(kinds).values()) < parts:
        # scikit-learn refuses when every stratum is that small, though it splits them well.
        kinds += [""] * parts
        of_whom += [f"\0{number}" for number in range(parts)]
    splitter = StratifiedGroupKFold(n_splits=parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        chosen = [part for _, part in splitter.split(kinds, kinds, of_whom)]
    found = [{ids[index] for index in part if index < len(ids)} for part in chosen]
    return _none_empty(found, groups)


def _none_empty(parts: list[set[str]], groups: Mapping[str, str]) -> list[set[str]]:
    """`parts`, the empty ones with a group each of the part that has the most groups.

    scikit-learn leaves parts empty where there are few groups.
    """
    for empty in (part for part in parts if not part):
        largest = max(parts, key=lambda part: len({groups[case_id] for case_id in part}))
        members = sorted({groups[case_id] for case_id in largest})
        if len(members) < 2:
            break  # there are fewer groups than parts
        moved = {case_id for case_id in largest if groups[case_id] == members[-1]}
        largest -= moved
        empty |= moved
    return parts


def _part_of_share(
    ids: Sequence[str],
    groups: Mapping[str, str],
    strata: Mapping[str, str],
    *,
    share: float,
    seed: int,
) -> set[str]:
    """About a share `share` of `ids`, with that share of every stratum."""
    pieces, parts = _pieces(share, len({groups[case_id] for case_id in ids}))
    equal = _equal_parts(ids, groups, strata, parts=parts, seed=seed)
    runs = [set().union(*equal[start : start + pieces]) for start in range(parts - pieces + 1)]
    sizes = Counter(strata[case_id] for case_id in ids)

    def off(run: set[str]) -> float:
        got = Counter(strata[case_id] for case_id in run)
        by_stratum = sum(abs(got[kind] - share * size) for kind, size in sizes.items())
        return by_stratum + abs(len(run) - share * len(ids))

    return min(runs, key=off)


def _pieces(share: float, members: int) -> tuple[int, int]:
    """The fraction m/k that approximates `share` of `members` to half a member.

    Of several, the one with the smallest k, which balances the strata best.
    """
    most = min(20, members)
    fractions = [
        (min(max(round(share * parts), 1), parts - 1), parts) for parts in range(2, most + 1)
    ]
    off = [abs(pieces / parts - share) * members for pieces, parts in fractions]
    near = [index for index, distance in enumerate(off) if distance <= 0.5]
    return fractions[near[0] if near else int(np.argmin(off))]
