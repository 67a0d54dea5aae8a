"""`brats split`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console

if TYPE_CHECKING:
    from ..core.data.splitting import Dealing


Patterns = list[str] | None


def _pattern(text: str) -> Any:
    return typer.Option(metavar="PATTERN", help=text)


def split(
    data: Annotated[Path, typer.Argument(help="Folder of the data set, in any BraTS layout.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The splits file to write.")
    ] = Path("splits.yaml"),
    ratios: Annotated[
        str, typer.Option(help="Share of the patients for train/validation/test.")
    ] = "70/15/15",
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Cross-validate in K folds, besides the test part of --ratios."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another split.")] = 0,
    group: Annotated[
        bool, typer.Option("--group/--no-group", help="Keep a patient's visits on one side.")
    ] = True,
    stratify: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE.csv:COLUMN",
            help="Balance the parts by this, not by tumour size and enhancement.",
        ),
    ] = None,
    include: Annotated[Patterns, _pattern("Only cases with such an id, as 'BraTS2021_*'.")] = None,
    exclude: Annotated[Patterns, _pattern("No cases with such an id.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="SCHEME", help="Label scheme, where names and values leave it open."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT.")] = False,
) -> None:
    """Deal a data set into train, validation and test, no patient on two sides.

    Example: brats split data/ -o splits.yaml --ratios 70/15/15
    """
    from ..core.data.splitting import deal_data_set, parse_ratios
    from ..core.writing import require_writable

    require_writable(output, overwrite=overwrite)
    with console.progress() as bars:
        task = bars.add_task("reading labels", total=None)
        dealing = deal_data_set(
            data,
            ratios=parse_ratios(ratios),
            folds=folds,
            seed=seed,
            grouped=group,
            stratify=stratify,
            include=include or [],
            exclude=exclude or [],
            labels=labels,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    dealing.split.save(output, overwrite=overwrite)
    _show(dealing)
    if dealing.unlabelled:
        console.message(f"left out {len(dealing.unlabelled)} cases that have no label map")
    console.message(f"wrote {output}")


def _show(dealing: Dealing) -> None:
    """A row for each part: its size, and how many cases of each stratum it has."""
    made = dealing.split
    parts = {f"fold {number}": fold.val for number, fold in enumerate(made.folds)}
    if len(made.folds) == 1:
        parts = {"train": made.folds[0].train, "val": made.folds[0].val}
    parts["test"] = made.test
    kinds = sorted(set(dealing.strata.values()))
    cases = made.cases()
    rows = []
    for name, ids in parts.items():
        patients = len({cases[case_id].patient for case_id in ids})
        share = f"{100 * len(ids) / len(cases):.0f} %"
        sizes = Counter(dealing.strata[case_id] for case_id in ids)
        rows.append([name, str(len(ids)), str(patients), share, *(str(sizes[k]) for k in kinds)])
    console.table(["part", "cases", "patients", "of all", *kinds], rows)
    schemes = Counter(case.scheme.name for case in cases.values() if case.scheme)
    console.message("labels: " + ", ".join(f"{name} ({n})" for name, n in schemes.items()))
