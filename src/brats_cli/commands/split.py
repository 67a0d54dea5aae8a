"""`brats split`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console

if TYPE_CHECKING:
    from ..core.splits import Split


def split(
    data: Annotated[Path, typer.Argument(help="Folder of the data set, in any BraTS layout.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The splits file to write.")
    ] = Path("splits.yaml"),
    ratios: Annotated[
        str, typer.Option(help="Percent of patients for train/validation/test.")
    ] = "70/15/15",
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Cross-validation: K folds, besides the test part of --ratios."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another split.")] = 0,
    group: Annotated[bool, typer.Option(help="Keep all visits of a patient on one side.")] = True,
    labels: Annotated[
        str | None, typer.Option(help="Label scheme, where values and names leave it open.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT.")] = False,
) -> None:
    """Deal a data set into train, validation and test, no patient on two sides.

    Example: brats split data/ -o splits.yaml --ratios 70/15/15
    """
    from ..core.files import require_writable
    from ..core.splits import parse_ratios, split_data_set

    require_writable(output, overwrite=overwrite)
    with console.progress() as bars:
        task = bars.add_task("reading labels", total=None)
        made = split_data_set(
            data,
            ratios=parse_ratios(ratios),
            folds=folds,
            seed=seed,
            grouped=group,
            labels=labels,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    made.save(output, overwrite=overwrite)
    _show(made)
    console.message(f"wrote {output}")


def _show(made: Split) -> None:
    """A row for each part of each fold."""
    parts = {"test": made.test}
    for number, fold in enumerate(made.folds):
        name = f"fold {number} " if len(made.folds) > 1 else ""
        parts |= {f"{name}train": fold.train, f"{name}val": fold.val}
    cases, total = made.cases(), len(made.ids())
    rows = []
    for name, ids in sorted(parts.items(), key=lambda part: part[0] == "test"):
        patients = {cases[case_id].patient for case_id in ids}
        schemes = sorted({made.scheme_of(case_id).name for case_id in ids})
        share = f"{100 * len(ids) / total:.0f} %"
        rows.append([name, str(len(ids)), str(len(patients)), share, ", ".join(schemes)])
    columns = ["part", "cases", "patients", "of all", "labels"]
    console.table(columns, rows, left=["labels"])
