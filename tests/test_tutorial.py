"""The tutorial, followed line by line on synthetic cases, with a network that learns nothing."""

import re
import shlex
from pathlib import Path

import yaml
from helpers import TINY, stdout_of

from brats_cli.core.data.phantom import write_phantoms

TUTORIAL = Path(__file__).parents[1] / "docs/tutorial.md"

SMALL = [f"--set={key}={TINY[key]}" for key in ("steps_per_epoch", "patch_size", "workers")]
SMALL += [f"--set=network.{key}={value}" for key, value in TINY["network"].items()]

NOT_OURS = {"unzip", "ln"}
"""Programs that the reader has."""


def blocks():
    text = TUTORIAL.read_text(encoding="utf-8")
    return re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def follow(line):
    """Run a line as a shell does, of the few things that a line of the tutorial has."""
    program, *words = shlex.split(line.replace("--gpu 0", "--device cpu"))
    if program in NOT_OURS:
        return
    assert program == "brats"
    if "--epochs" in words:
        words[words.index("--epochs") + 1] = "1"
    expanded = [file for word in words for file in (Path().glob(word) if "*" in word else [word])]
    stdout_of(*expanded, *(SMALL if words[0] == "train" else ()))


def test_the_tutorial_leads_from_a_download_to_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_phantoms(Path("data"), cases=9, shape=(32, 36, 34))
    for text in blocks():
        for line in text.splitlines():
            follow(line)
    assert not Path("repaired").exists()  # nothing is wrong with synthetic cases
    for made in (
        "runs/first/curves.png",
        "predictions/predictions.jsonl",
        "report.html",
        "lesions2023.csv",
        "table.md",
        "plots",
        "compare.png",
        "views/index.html",
        "figure.png",
        "meshes",
    ):
        assert Path(made).exists(), made
    # All test cases, and no other, were segmented and scored.
    tested = set(yaml.safe_load(Path("splits.yaml").read_text())["test"])
    assert tested
    assert {name.name for name in Path("predictions").glob("*.nii.gz")} == {
        f"{case}.nii.gz" for case in tested
    }
    rows = Path("first.csv").read_text().splitlines()[1:]
    assert {row.partition(",")[0] for row in rows} == tested
