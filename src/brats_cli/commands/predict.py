"""`brats predict`: label maps of cases that nobody has labelled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console
from ..core.errors import BratsError, ConfigError
from .batch import paths_of, raise_failures

if TYPE_CHECKING:
    from ..core.data.cases import Case
    from ..core.predict.many import Batch, Job, Prediction


def predict(
    cases: Annotated[
        list[Path],
        typer.Argument(
            metavar="CASE...",
            help="Case folders, 4D files, modality files or data sets; - reads paths from stdin.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file for one case, a folder for several [here]."),
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(help="Run or checkpoint; of several the mean [the newest run's best]."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Number of the CUDA GPU to use; 0,1 shares the cases out.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    labels: Annotated[
        str | None, typer.Option(help="Label scheme to write [the one trained in].")
    ] = None,
    tta: Annotated[
        bool, typer.Option("--tta", help="Mean over the eight flips, in eight times the time.")
    ] = False,
    overlap: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.9,
            help="Share of a window that its neighbour covers [0.25; half with instance norm].",
        ),
    ] = None,
    batch_windows: Annotated[int, typer.Option(min=1, help="Windows computed at once.")] = 1,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Go on without sequences that the model expects."),
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write CASE_probabilities.nii.gz too, 4D.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Write CASE_uncertainty.nii.gz too, 0 to 100.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out cases that have their outputs.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs.")] = False,
) -> None:
    """Segment cases with a trained network; the label map lies on the case's own grid.

    The checkpoint alone is enough. Prints each case's volume of whole, core and enhancing
    tumour, and how much it deserves a second look (review, 0 to 1). One bad case does not stop
    the others. In a folder of outputs, predictions.jsonl gets a line for each case.

    Example: brats predict data/BraTS2021_00006 -o seg.nii.gz

    Example: brats predict data/ -o predictions/ --model runs/first --skip-existing
    """
    from ..core.compute.devices import choose_devices
    from ..core.data.labels import scheme_named
    from ..core.model.run_folder import checkpoint_paths
    from ..core.predict.many import (
        FORMAT,
        MANIFEST,
        Batch,
        complete,
        find_each,
        require_outputs_writable,
    )
    from ..core.predict.predictor import PredictConfig

    config = PredictConfig(
        labels=scheme_named(labels).name if labels else None,
        tta=tta,
        overlap=overlap,
        batch_windows=batch_windows,
        allow_missing=allow_missing,
        probabilities=probabilities,
        uncertainty=uncertainty,
    )
    found, failed = find_each(paths_of(cases))
    if not found:
        raise_failures(failed, tried=len(failed), of="paths")
    folder, jobs = _jobs(found, output)
    todo = [job for job in jobs if not (skip_existing and complete(job, config))]
    # A case that lacks one of its outputs is done again, whatever it has.
    replacing = overwrite or skip_existing
    require_outputs_writable(todo, config, overwrite=replacing)
    meant: list[Path | None] = [*model] if model else [None]
    batch = Batch(
        models=tuple(path for each in meant for path in checkpoint_paths(each)),
        config=config,
        manifest=folder / MANIFEST if folder else None,
        overwrite=replacing,
    )
    if len(todo) < len(jobs):
        console.message(f"{len(jobs) - len(todo)} of {len(jobs)} cases have their output")
    done = _run(batch, todo, choose_devices(device, gpu), failed)
    if as_json:
        models = [str(path) for path in batch.models]
        console.result_json(
            {"format": FORMAT, "models": models, "cases": [each.row() for each in done]}
        )
    elif done:
        _table(done)
    raise_failures(failed, tried=len(done) + len(failed), of="cases")


def _jobs(cases: Sequence[Case], output: Path | None) -> tuple[Path | None, list[Job]]:
    """The file of each case, and the folder of all of them, if that is not told by a file.

    Raises:
        ConfigError: If several cases would go into one file.
    """
    from ..core.images.nifti import is_nifti
    from ..core.predict.many import Job

    if output is None or output.is_dir() or not is_nifti(output):
        folder = output or Path()
        return folder, [Job(case, folder / f"{case.id}.nii.gz") for case in cases]
    if len(cases) > 1:
        raise ConfigError(
            f"{len(cases)} cases do not go into one file, {output}",
            hint="give a folder with -o",
        )
    return None, [Job(case, output) for case in cases]


def _run(
    batch: Batch, jobs: Sequence[Job], devices: Sequence[object], failed: list[BratsError]
) -> list[Prediction]:
    """Segment the cases under a progress bar; what goes wrong is added to `failed`."""
    import torch

    from ..core.compute.devices import describe

    done: list[Prediction] = []
    if not jobs:
        return done
    chosen = [device for device in devices if isinstance(device, torch.device)]
    with console.progress() as bars:
        task = bars.add_task("cases", total=len(jobs))
        outcomes = batch.run(jobs, chosen, lambda share: bars.advance(task, share))
        console.message(
            f"model {', '.join(map(str, batch.models))} on {', '.join(map(describe, chosen))}"
        )
        for outcome in outcomes:
            if isinstance(outcome, BratsError):
                failed.append(outcome)
                continue
            done.append(outcome)
            if outcome.missing:
                console.message(f"{outcome.case}: without {', '.join(outcome.missing)}")
    return done


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
