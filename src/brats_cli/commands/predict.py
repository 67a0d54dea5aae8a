"""`brats predict`: label maps of cases that nobody has labelled."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import console
from ..core.errors import BratsError, ConfigError
from .batch import paths_of, raise_failures

if TYPE_CHECKING:
    from ..core.cases import Case
    from ..core.inference import Predictor
    from ..core.labels import LabelScheme

FORMAT = "brats-predictions/1"


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
        Path | None, typer.Option(help="Run or checkpoint [the newest run's best].")
    ] = None,
    gpu: Annotated[int | None, typer.Option(help="Number of the CUDA GPU to use.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    labels: Annotated[
        str | None, typer.Option(help="Label scheme to write [the one trained in].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out cases that have their output.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs.")] = False,
) -> None:
    """Segment cases with a trained network; the label map lies on the case's own grid.

    The checkpoint alone is enough. Prints each case's volume of whole, core and enhancing
    tumour; one bad case does not stop the others.

    Example: brats predict data/BraTS2021_00006 -o seg.nii.gz

    Example: brats predict data/ -o predictions/ --model runs/first --skip-existing
    """
    from ..core.cases import resolve_cases
    from ..core.checkpoints import Checkpoint
    from ..core.devices import choose_device, describe
    from ..core.inference import Predictor
    from ..core.labels import scheme_named
    from ..core.runs import checkpoint_path

    scheme = scheme_named(labels) if labels else None
    found = resolve_cases(paths_of(cases))
    todo = _outputs(found, output, skip_existing=skip_existing, overwrite=overwrite)
    path = checkpoint_path(model)
    predictor = Predictor(Checkpoint.load(path), choose_device(device, gpu))
    console.message(f"model {path} on {describe(predictor.device)}")
    if len(todo) < len(found):
        console.message(f"{len(found) - len(todo)} of {len(found)} cases have their output")
    done: list[dict[str, Any]] = []
    failed: list[BratsError] = []
    with console.progress() as bars:
        for case, file in bars.track(todo, description="cases"):
            try:
                done.append(_predict_one(predictor, case, file, scheme, overwrite))
            except BratsError as error:
                failed.append(error)
    if as_json:
        console.result_json({"format": FORMAT, "model": str(path), "cases": done})
    elif done:
        _table(done)
    raise_failures(failed, tried=len(todo), of="cases")


def _outputs(
    cases: Sequence[Case], output: Path | None, *, skip_existing: bool, overwrite: bool
) -> list[tuple[Case, Path]]:
    """The file of each case that is to be written.

    Raises:
        ConfigError: If several cases would go into one file.
        OutputError, OutputExistsError: If a file cannot be written, before any work is done.
    """
    from ..core.files import require_writable
    from ..core.volumes import is_nifti

    if output is not None and is_nifti(output) and not output.is_dir():
        if len(cases) > 1:
            raise ConfigError(
                f"{len(cases)} cases do not go into one file, {output}",
                hint="give a folder with -o",
            )
        files = [(cases[0], output)]
    else:
        folder = output or Path()
        files = [(case, folder / f"{case.id}.nii.gz") for case in cases]
    if skip_existing:
        files = [(case, file) for case, file in files if not file.exists()]
    for _, file in files:
        require_writable(file, overwrite=overwrite)
    return files


def _predict_one(
    predictor: Predictor, case: Case, file: Path, scheme: LabelScheme | None, overwrite: bool
) -> dict[str, Any]:
    started = time.perf_counter()
    segmentation = predictor.segment(case, scheme)
    segmentation.write(file, overwrite=overwrite)
    return {
        "case": case.id,
        "file": str(file),
        "labels": segmentation.scheme.name,
        "volumes_mm3": segmentation.volumes_mm3(),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _table(done: Sequence[dict[str, Any]]) -> None:
    console.table(
        ["file", "WT", "TC", "ET", "seconds"],
        [
            [
                row["file"],
                *(console.volume(row["volumes_mm3"][name]) for name in ("WT", "TC", "ET")),
                f"{row['seconds']:.1f}",
            ]
            for row in done
        ],
    )
