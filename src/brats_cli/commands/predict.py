"""`brats predict`: segment cases with a trained network."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..core.errors import BratsError
from .batch import paths_of, raise_failures, show_plan
from .options import (
    Cases,
    Device,
    DryRun,
    Gpu,
    Json,
    Overwrite,
    Scheduler,
    SkipExisting,
    output,
    scheme,
)

if TYPE_CHECKING:
    from ..core.predict.many import PredictEvent, PredictionStarted
    from ..core.predict.outputs import Prediction


Output = Annotated[
    Path | None,
    output("Output file for one case, folder for several; default: the current folder."),
]
Model = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="MODEL",
        help="Run folder or checkpoint; repeat it to average several. Default: best.pt of the "
        "newest run.",
    ),
]
Labels = Annotated[
    Any,
    scheme("Label scheme of the predictions; default: that of the training."),
]
Tta = Annotated[
    bool,
    typer.Option("--tta", help="Average over the eight flips of a case; eight times slower."),
]
Overlap = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=0.9,
        metavar="F",
        help="Overlap of neighbouring windows, as a fraction of a window; default: 0.25, or "
        "0.5 for networks with instance normalisation.",
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing",
        help="Segment cases that lack a sequence, even if the model was not trained for that.",
    ),
]
Probabilities = Annotated[
    bool,
    typer.Option(
        "--probabilities",
        help="Also write CASE_probabilities.nii.gz, with one channel per region.",
    ),
]
Uncertainty = Annotated[
    bool,
    typer.Option(
        "--uncertainty",
        help="Also write CASE_uncertainty.nii.gz, with one channel per region, 0 to 100.",
    ),
]
UncertaintyFormat = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        help="Write the uncertainty as 4d, one file, or as brats, three files "
        "CASE_unc_whole, _core and _enhance.nii.gz as in BraTS 2020.",
    ),
]


def predict(
    cases: Cases,
    output: Output = None,
    model: Model = None,
    gpu: Gpu = None,
    device: Device = "auto",
    executor: Scheduler = None,
    labels: Labels = None,
    tta: Tta = False,
    overlap: Overlap = None,
    allow_missing: AllowMissing = False,
    probabilities: Probabilities = False,
    uncertainty: Uncertainty = False,
    uncertainty_format: UncertaintyFormat = None,
    as_json: Json = False,
    skip_existing: SkipExisting = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Segment cases with a trained network; each label map has the grid of its case.

    The checkpoint is all that is needed: it holds the network and its settings. The table shows
    the volume of whole tumour (WT), tumour core (TC) and enhancing tumour (ET) of each case, and
    'review', from 0 to 1: cases with high values should be reviewed by a person first. If a case
    fails, the others are still segmented. An output folder also gets predictions.jsonl, with one
    line per case.

    Example: brats predict data/BraTS2021_00006 -o seg.nii.gz

    Example: brats predict splits.yaml -o predictions/ --model runs/first --skip-existing
    """
    from ..core.predict import many
    from ..core.predict.outputs import FORMAT

    paths = paths_of(cases)
    with console.counted("cases") as on_progress:
        events = many.predict(
            paths,
            output=output,
            model=model,
            gpu=gpu,
            device=device,
            executor=executor,
            labels=labels,
            tta=tta,
            overlap=overlap,
            allow_missing=allow_missing,
            probabilities=probabilities,
            uncertainty=uncertainty,
            uncertainty_format=uncertainty_format,
            skip_existing=skip_existing,
            dry_run=dry_run,
            overwrite=overwrite,
            on_progress=on_progress,
        )
        if dry_run:
            planned = list(events)
        else:
            started, done, failed = follow(events)
    if dry_run:
        _show_planned(planned, as_json=as_json)
        return
    if as_json:
        console.result_json(
            {
                "format": FORMAT,
                "models": [str(path) for path in started.models],
                "cases": [each.row() for each in done],
            }
        )
    elif done:
        show_predictions(done)
        console.message(f"see it: {_view_command(paths, output, done)}")
    raise_failures(failed, tried=len(done) + len(failed), of="cases")


def _show_planned(events: Sequence[PredictEvent], *, as_json: bool) -> None:
    """What would be done; the paths that are no cases are errors as ever."""
    from ..core.compute.plan import Plan

    failed = [each for each in events if isinstance(each, BratsError)]
    [plan] = [each for each in events if isinstance(each, Plan)]
    show_plan(plan, as_json=as_json)
    raise_failures(failed, tried=len(plan.cases) + len(failed), of="cases")


def follow(
    events: Iterator[PredictEvent],
) -> tuple[PredictionStarted, list[Prediction], list[BratsError]]:
    """Show events as they happen; return how it started, what was segmented and what failed."""
    from ..core.predict.many import PredictionStarted, Skipped
    from ..core.predict.outputs import Prediction

    started = PredictionStarted(0, (), ())
    done: list[Prediction] = []
    failed: list[BratsError] = []
    skipped = 0
    for event in events:
        if isinstance(event, BratsError):
            failed.append(event)
        elif isinstance(event, Skipped):
            skipped += 1
        elif isinstance(event, PredictionStarted):
            started = event
            if skipped:
                total = skipped + event.cases
                console.message(f"skipped {skipped} of {total} cases: their outputs exist")
            if event.cases:
                models, devices = ", ".join(map(str, event.models)), ", ".join(event.devices)
                console.message(f"model {models} on {devices}")
        elif isinstance(event, Prediction):
            done.append(event)
            if event.missing:
                console.message(f"{event.case}: segmented without {', '.join(event.missing)}")
    return started, done, failed


def show_predictions(done: Sequence[Prediction]) -> None:
    """One row per case."""
    console.table(
        ["file", "WT ml", "TC ml", "ET ml", "review", "seconds"],
        [
            [
                each.file,
                *(console.number(each.volumes_mm3[name] / 1000, 2) for name in ("WT", "TC", "ET")),
                console.number(each.review),
                f"{each.seconds:.1f}",
            ]
            for each in done
        ],
    )


def _view_command(paths: Sequence[Path], output: Path | None, done: Sequence[Prediction]) -> str:
    """The command that shows what was segmented."""
    case = str(paths[0]) if len(paths) == 1 else "CASE..."
    seen, target = (done[0].file, "view.html") if len(done) == 1 else (str(output or "."), "views")
    words = shlex.join(["--seg", seen, "-o", target])
    return f"brats view {case if case == 'CASE...' else shlex.quote(case)} {words}"
