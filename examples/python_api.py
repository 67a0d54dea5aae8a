"""From a folder of cases to scores and meshes, in Python: the same steps as on the command line.

python examples/python_api.py data/ out/
"""

import sys
from pathlib import Path

import brats_cli


def main(data: Path, out: Path, **training: object) -> None:
    """Check, split, train, predict, evaluate and mesh; `training` holds arguments of `train`."""
    checked = brats_cli.check(data)
    print(f"{len(checked.cases)} cases, {checked.errors} errors")

    made = brats_cli.split(data, output=out / "splits.yaml", ratios="60/20/20", seed=0)
    print(f"{len(made.split.test)} test cases")

    # `train` and `predict` are generators: they work while they are iterated over.
    for event in brats_cli.train(out / "splits.yaml", output=out / "run", **training):
        if isinstance(event, brats_cli.Epoch):
            print(f"epoch {event.number}: loss {event.loss:.3f}")

    # A splits file stands for its test cases.
    predictions = out / "predictions"
    for event in brats_cli.predict(out / "splits.yaml", output=predictions, model=out / "run"):
        if isinstance(event, brats_cli.Prediction):
            print(f"{event.case}: {event.volumes_mm3['WT']:.0f} mm3 of tumour")
        elif isinstance(event, brats_cli.BratsError):  # one case failed; the others continue
            print(f"{event}; {event.hint}")

    scores = brats_cli.evaluate(predictions, data, output=out / "scores.csv")
    print(f"whole-tumour Dice {scores.summary()['WT']['dice'].mean:.3f}")

    segmentations = sorted(predictions.glob("*.nii.gz"))
    brats_cli.mesh(segmentations, region="WT", output=out / "meshes")


if __name__ == "__main__":  # needed, because some steps start processes that import this file
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/python_api.py DATA OUT")
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), epochs=100)
    except brats_cli.BratsError as error:
        sys.exit(f"{error}\n{error.hint}")
