"""`brats compare`: paired statistics of several models' scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console
from ..core.wording import listing
from . import options

if TYPE_CHECKING:
    from ..core.score.paired import Comparison, Difference

_HEADINGS = {"dice": ("Dice", 3), "hausdorff95_mm": ("HD95 mm", 2)}


def compare(
    scores: Annotated[
        list[Path],
        typer.Argument(metavar="CSV", help="Scores of each model, from brats evaluate -o CSV."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PNG", help="Draw the differences to this file."),
    ] = None,
    as_json: options.Json = False,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Metric to compare and rank by, a column of the CSV; can be repeated. "
            "Default: dice and hausdorff95_mm.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Random seed of the bootstrap and permutations.")
    ] = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Compare models by their scores of the same cases.

    Per region and metric: the mean difference with its 95 % bootstrap interval, the Wilcoxon
    signed-rank test with Holm's correction for all comparisons made, and how many cases each
    model wins. Then the ranking as BraTS does it: a rank per case, region and metric, averaged,
    and a permutation test between neighbours.

    Example: brats compare unet.csv ensemble.csv -o compare.png
    """
    from ..core.score.comparison import DEFAULT_METRICS, compare

    found = compare(
        scores,
        output=output,
        metric=metric or DEFAULT_METRICS,
        seed=seed,
        overwrite=overwrite,
    )
    for model, missing in found.missing.items():
        console.message(
            f"{model} lacks {len(missing)} case{'s' * (len(missing) != 1)}, which "
            f"{'are' if len(missing) > 1 else 'is'} left out: {listing(missing, shown=5)}"
        )
    if as_json:
        console.result_json(found.to_json_dict())
    else:
        _show(found)
    if output is not None:
        console.message(f"wrote {output}")


def _show(found: Comparison) -> None:
    pairs = dict.fromkeys((each.a, each.b) for each in found.differences)
    for a, b in pairs:
        rows = [_row(each) for each in found.differences if (each.a, each.b) == (a, b)]
        console.table(
            ("region", "metric", "n", "diff.", "95 % interval", "p", "p Holm", "won/tied/lost"),
            rows,
            left=("metric",),
            title=f"{a} minus {b}",
        )
        console.result("")
    rows = [
        (str(each.rank), each.model, console.number(each.score), _p(each.p_next))
        for each in found.ranking
    ]
    console.table(
        ("rank", "model", "mean rank", "p to next"),
        rows,
        left=("model",),
        title=f"ranking over {len(found.cases)} case{'s' * (len(found.cases) != 1)}",
    )


def _row(each: Difference) -> tuple[str, ...]:
    heading, digits = _HEADINGS.get(each.metric, (each.metric, 3))
    low, high = each.ci95
    interval = f"{low:.{digits}f} to {high:.{digits}f}" if low == low else "-"
    return (
        each.region,
        heading,
        str(each.n),
        console.number(each.mean_difference, digits),
        interval,
        _p(each.p),
        _p(each.p_holm),
        f"{each.wins}/{each.ties}/{each.losses}",
    )


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else console.number(value, 4)
