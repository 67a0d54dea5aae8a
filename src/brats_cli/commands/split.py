"""`brats split`: training, validation and test cases."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from .options import DryRun, Labels, Overwrite, output

if TYPE_CHECKING:
    from ..core.data.splitting import NewSplit


Patterns = list[str] | None


def _pattern(text: str) -> Any:
    return typer.Option(metavar="PATTERN", help=text)


Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="Folder of the data set, in any BraTS layout.")
]
Output = Annotated[Path, output("Splits file to write.")]
Ratios = Annotated[
    str,
    typer.Option(
        metavar="A/B/C", help="Percentages of the patients for training, validation and test."
    ),
]
Folds = Annotated[
    int | None,
    typer.Option(
        min=2,
        metavar="K",
        help="Split into K folds for cross-validation; the test cases follow --ratios.",
    ),
]
Seed = Annotated[
    int, typer.Option(metavar="N", help="Random seed; the same seed gives the same split.")
]
Group = Annotated[
    bool,
    typer.Option("--group/--no-group", help="Keep all visits of a patient in the same part."),
]
Stratify = Annotated[
    str | None,
    typer.Option(
        metavar="TABLE:COLUMN",
        help="Balance the parts by this column of a CSV file; default: by tumour size and "
        "enhancement.",
    ),
]
Patients = Annotated[
    str | None,
    typer.Option(
        metavar="RULE",
        help="Who the patient of a case is, if names follow no known scheme: a regular "
        "expression, or TABLE.csv:COLUMN.",
    ),
]
Modalities = Annotated[
    str,
    typer.Option(metavar="NAMES", help="MR sequences that every case must have."),
]
Include = Annotated[
    Patterns, _pattern("Only cases whose id matches, such as 'BraTS2021_*'; can be repeated.")
]
Exclude = Annotated[Patterns, _pattern("Leave out cases whose id matches; can be repeated.")]


def split(
    data: Data,
    output: Output = Path("splits.yaml"),
    ratios: Ratios = "70/15/15",
    folds: Folds = None,
    seed: Seed = 0,
    group: Group = True,
    stratify: Stratify = None,
    patients: Patients = None,
    modalities: Modalities = "t1,t1ce,t2,flair",
    include: Include = None,
    exclude: Exclude = None,
    labels: Labels = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Split a data set into training, validation and test cases; a patient's visits stay together.

    The parts are balanced by tumour size and by whether there is enhancing tumour. Cases without
    a label map are left out. Whether a patient is in the test part depends on the seed and the
    patient's id alone, so cases that are added later move nobody out of it.

    Example: brats split data/ -o splits.yaml --ratios 70/15/15
    """
    from ..core.data import splitting

    with console.counted("reading labels") as on_progress:
        made = splitting.split(
            data,
            output=output,
            ratios=ratios,
            folds=folds,
            seed=seed,
            group=group,
            stratify=stratify,
            patients=patients,
            modalities=modalities,
            include=include or (),
            exclude=exclude or (),
            labels=labels,
            dry_run=dry_run,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    show_split(made)
    console.message(f"dry run: {output} was not written" if dry_run else f"wrote {output}")


def show_split(made: NewSplit) -> None:
    """One row per part: its size, and its number of cases in each stratum."""
    split = made.split
    parts = {f"fold {number}": fold.val for number, fold in enumerate(split.folds)}
    if len(split.folds) == 1:
        parts = {"train": split.folds[0].train, "val": split.folds[0].val}
    parts["test"] = split.test
    kinds = sorted(set(made.strata.values()))
    cases = split.cases()
    rows = []
    for name, ids in parts.items():
        patients = len({cases[case_id].patient for case_id in ids})
        share = f"{100 * len(ids) / len(cases):.0f} %"
        sizes = Counter(made.strata[case_id] for case_id in ids)
        rows.append([name, str(len(ids)), str(patients), share, *(str(sizes[k]) for k in kinds)])
    console.table(["part", "cases", "patients", "of all", *kinds], rows)
    schemes = Counter(case.scheme.name for case in cases.values() if case.scheme)
    console.message("labels: " + ", ".join(f"{name} ({n})" for name, n in schemes.items()))
    if made.unlabelled:
        count = len(made.unlabelled)
        console.message(f"left out {count} case{'s' * (count > 1)} without a label map")
