"""`brats predict`: segment cases with a trained network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..core.errors import BratsError
from .batch import paths_of, raise_failures
from .options import Device, Gpu, Json, Overwrite, SkipExisting, output, scheme

if TYPE_CHECKING:
    from ..core.predict.many import PredictEvent, Prediction, PredictionStarted


def predict(
    cases: Annotated[
        list[Path],
        typer.Argument(
            metavar="CASE...",
            help="Case folders, 4D files, modality files or data set folders; - reads paths from "
            "standard input.",
        ),
    ],
    output: Annotated[
        Path | None,
        output("Output file for one case, folder for several; default: the current folder."),
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="MODEL",
            help="Run folder or checkpoint; repeat it to average several. Default: best.pt of the "
            "newest run.",
        ),
    ] = None,
    gpu: Gpu = None,
    device: Device = "auto",
    labels: Annotated[
        Any,
        scheme("Label scheme of the predictions; default: that of the training."),
    ] = None,
    tta: Annotated[
        bool,
        typer.Option("--tta", help="Average over the eight flips of a case; eight times slower."),
    ] = False,
    overlap: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.9,
            help="Overlap of neighbouring windows, as a fraction of a window; default: 0.25, or "
            "0.5 for networks with instance normalisation.",
        ),
    ] = None,
    batch_windows: Annotated[
        int, typer.Option(min=1, help="Number of windows computed at the same time.")
    ] = 1,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Segment cases that lack a sequence, even if the model was not trained for that.",
        ),
    ] = False,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Also write CASE_probabilities.nii.gz, with one channel per region.",
        ),
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="Also write CASE_uncertainty.nii.gz, with one channel per region, 0 to 100.",
        ),
    ] = False,
    as_json: Json = False,
    skip_existing: SkipExisting = False,
    overwrite: Overwrite = False,
) -> None:
    """Segment cases with a trained network; each label map has the grid of its case.

    The checkpoint is all that is needed: it holds the network and its settings. The table shows
    the volume of whole tumour (WT), tumour core (TC) and enhancing tumour (ET) of each case, and
    'review', from 0 to 1: cases with high values should be reviewed by a person first. If a case
    fails, the others are still segmented. An output folder also gets predictions.jsonl, with one
    line per case.

    Example: brats predict data/BraTS2021_00006 -o seg.nii.gz

    Example: brats predict data/ -o predictions/ --model runs/first --skip-existing
    """
    from ..core.predict import many

    with console.progress() as bars:
        task = bars.add_task("cases", total=None)
        events = many.predict(
            paths_of(cases),
            output=output,
            model=model,
            gpu=gpu,
            device=device,
            labels=labels,
            tta=tta,
            overlap=overlap,
            batch_windows=batch_windows,
            allow_missing=allow_missing,
            probabilities=probabilities,
            uncertainty=uncertainty,
            skip_existing=skip_existing,
            overwrite=overwrite,
            on_progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
        started, done, failed = _follow(events)
    if as_json:
        console.result_json(
            {
                "format": many.FORMAT,
                "models": [str(path) for path in started.models],
                "cases": [each.row() for each in done],
            }
        )
    elif done:
        _table(done)
    raise_failures(failed, tried=len(done) + len(failed), of="cases")


def _follow(
    events: Iterator[PredictEvent],
) -> tuple[PredictionStarted, list[Prediction], list[BratsError]]:
    """Show events as they happen; return how it started, what was segmented and what failed."""
    from ..core.predict.many import PredictionStarted, Skipped

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
        else:
            done.append(event)
            if event.missing:
                console.message(f"{event.case}: segmented without {', '.join(event.missing)}")
    return started, done, failed


def _table(done: Sequence[Prediction]) -> None:
    console.table(
        ["file", "WT", "TC", "ET", "review", "seconds"],
        [
            [
                each.file,
                *(console.volume(each.volumes_mm3[name]) for name in ("WT", "TC", "ET")),
                console.number(each.review),
                f"{each.seconds:.1f}",
            ]
            for each in done
        ],
    )
