"""The demo: every step of brats on synthetic cases, through the functions of the Python API."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .data.phantom import SHAPE, write_phantoms
from .errors import BratsError
from .wording import count_of
from .writing import require_writable, whole_file

RATIOS = "60/15/25"
"""With so few cases, the usual 15 % would leave a single test case."""


@dataclass(frozen=True)
class DemoSize:
    """How much is computed.

    Attributes:
        cases: Number of synthetic cases.
        shape: Their voxels of 1 mm.
        settings: Settings of the training.
    """

    cases: int
    shape: tuple[int, int, int]
    settings: Mapping[str, Any]


# A few minutes on two CPU cores, and enough to find the tumours of the synthetic cases.
FULL = DemoSize(
    16,
    SHAPE,
    {
        "epochs": 10,
        "steps_per_epoch": 25,
        "patch_size": 48,
        "learning_rate": 3e-3,
        "schedule": "poly",
        "network": {"channels": 8, "levels": 3},
    },
)
# A few seconds; the network learns nothing. For tests.
SMALL = DemoSize(
    6,
    (32, 36, 34),
    {
        "epochs": 1,
        "steps_per_epoch": 2,
        "patch_size": 16,
        "workers": 0,
        "network": {"channels": 2, "levels": 2},
    },
)


@dataclass(frozen=True, eq=False)
class DemoStep:
    """A step of the demo that is about to begin.

    Attributes:
        name: Name of the command.
        command: The command line as a user would type it.
        events: What the command's function yields, or its result alone. The step is carried out
            while this is iterated over; what the caller leaves is done before the next step.
    """

    name: str
    command: str
    events: Iterator[Any]


@dataclass(frozen=True)
class Made:
    """What a step has made, in words, and where it is."""

    step: str
    what: str
    where: Path


@dataclass(frozen=True)
class DemoFinished:
    """All steps are done.

    Attributes:
        made: What each step made, in their order.
    """

    made: tuple[Made, ...]


def demo(
    folder: str | Path = "demo",
    *,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    small: bool = False,
) -> Iterator[DemoStep | DemoFinished]:
    """Generate synthetic cases with known tumours, and run every step on them.

    A generator: it works while it is iterated over.

    Args:
        folder: Where everything is written.
        seed: Random seed of the cases and of the split.
        device: auto, cpu, cuda or mps.
        overwrite: Replace an earlier demo in `folder`.
        small: Take seconds instead of minutes, and learn nothing.

    Yields:
        A `DemoStep` per step, and `DemoFinished` at the end.

    Raises:
        BratsError: If a file exists and `overwrite` is false, or if a step fails.
    """
    from .. import evaluate, mesh, predict, split, train, view

    home, size = Path(folder), SMALL if small else FULL
    data, splits, run = home / "data", home / "splits.yaml", home / "runs" / "demo"
    config, scores = home / "config.yaml", home / "scores.csv"
    predictions, meshes, views = home / "predictions", home / "meshes", home / "views"
    require_writable(config, overwrite=overwrite)
    write_phantoms(data, cases=size.cases, seed=seed, shape=size.shape, overwrite=overwrite)
    with whole_file(config, overwrite=overwrite) as partial:
        partial.write_text(yaml.safe_dump(dict(size.settings), sort_keys=False))
    again = ["--overwrite"] if overwrite else []
    on = ["--device", device, *again]

    made = _Result(
        lambda: split(data, output=splits, ratios=RATIOS, seed=seed, overwrite=overwrite)
    )
    yield from _step(made, "split", data, "-o", splits, "--ratios", RATIOS, "--seed", seed, *again)
    test = made.value.split.test
    epochs = train(splits, config=config, output=run, device=device, overwrite=overwrite)
    yield from _step(epochs, "train", splits, "-c", config, "-o", run, *on)
    label_maps = predict(splits, output=predictions, model=run, device=device, overwrite=overwrite)
    words = ["predict", splits, "-o", predictions, "--model", run, *on]
    yield from _step(_raising(label_maps), *words)
    report = _Result(lambda: evaluate(predictions, data, output=scores, overwrite=overwrite))
    yield from _step(report, "evaluate", predictions, data, "-o", scores, *again)
    maps = [predictions / f"{case_id}.nii.gz" for case_id in test]
    surfaces = _Result(lambda: mesh(maps, region="WT", output=meshes, overwrite=overwrite))
    yield from _step(surfaces, "mesh", *maps, "--region", "WT", "-o", meshes, *again)
    pages = _Result(lambda: view(splits, seg=[predictions], output=views, overwrite=overwrite))
    yield from _step(pages, "view", splits, "--seg", predictions, "-o", views, *again)

    dice = report.value.summary()["WT"]["dice"].mean
    others = f"{size.cases - len(test)} cases to train and validate with"
    yield DemoFinished(
        (
            Made(
                "phantoms", f"{count_of(size.cases, 'case')} with four sequences and labels", data
            ),
            Made("split", f"{others}, {len(test)} to test with", splits),
            Made("train", f"a network, {size.settings['epochs']} epochs", run / "best.pt"),
            Made("predict", count_of(len(test), "label map"), predictions),
            Made("evaluate", f"whole-tumour Dice {dice:.3f} on the test cases", scores),
            Made("mesh", f"{len(list(meshes.glob('*.stl')))} surfaces", meshes),
            Made("view", "one page per test case, and an index", views / "index.html"),
        )
    )


class _Result:
    """An iterator of the result of a function alone, which is called when it is asked for."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.value: Any = None

    def __iter__(self) -> Iterator[Any]:
        if self.value is None:
            self.value = self.call()
            yield self.value


def _raising(events: Iterable[Any]) -> Iterator[Any]:
    """The same events, but an error is raised: of synthetic cases, none may fail."""
    for event in events:
        if isinstance(event, BratsError):
            raise event
        yield event


def _step(events: Iterable[Any], *words: object) -> Iterator[DemoStep]:
    """A step; when the caller asks for the next one, this one is completed first."""
    step = DemoStep(str(words[0]), shlex.join(["brats", *map(str, words)]), iter(events))
    yield step
    for _ in step.events:
        pass
