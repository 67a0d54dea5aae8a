"""Names of files that are made to be misread: escapes of terminals, HTML, formulas, odd bytes."""

import csv
import os
import shutil

import numpy as np
import pytest
import yaml
from helpers import TINY, brats, write_case

from brats_cli import console
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.network import make_network
from brats_cli.core.score.scores import write_csv
from brats_cli.core.train.config import TrainConfig

RED = "\x1b[31m"
NAMES = {
    "escapes": f"A{RED}\x07[bold]red",
    "HTML": "A<script>alert(1)<\\script>&",
    "a formula": "=cmd|' x'!A1",
    "mathematics": "A$x^$\\frac{",
    "no UTF-8": os.fsdecode(b"caf\xe9"),
}

CONFIG = TrainConfig.model_validate({**TINY, "network": {"channels": 1, "levels": 2}})


@pytest.fixture(params=NAMES)
def name(request, tmp_path, monkeypatch):
    """A case of such a name beside three others, and predictions of all, in the working folder."""
    monkeypatch.chdir(tmp_path)
    found = NAMES[request.param]
    for number, case_id in enumerate((found, "B", "C", "D")):
        labels = np.zeros((16, 16, 16), np.uint8)
        labels[4:10, 4:10, 4 : 8 + number] = 2
        labels[5:8, 5:8, 5:7] = 1
        labels[6, 6, 5:7] = 4
        write_case(tmp_path / "data", case_id, labels, seed=number)
        (tmp_path / "p").mkdir(exist_ok=True)
        path = tmp_path / f"data/{case_id}/{case_id}_seg.nii.gz"
        shutil.copy(path, tmp_path / f"p/{case_id}.nii.gz")
    network = make_network(CONFIG.network, in_channels=4, out_channels=3, patch_size=16)
    Checkpoint(
        network.state_dict(), CONFIG.model_dump(mode="json"), "brats2020", 1, {"WT": 0.5}
    ).save(tmp_path / "m.pt")
    CONFIG.save(tmp_path / "c.yaml")
    return found


def printed(*words, status=0):
    """What a command prints: as it may be, and encoded as a terminal that knows UTF-8 has it."""
    result = brats(*words)
    assert result.exit_code == status, result.output
    both = result.stdout + result.stderr
    assert not set(both) & {"\x1b", "\x07"}
    both.encode()
    return both


def test_every_command_prints_and_writes_such_names(name, tmp_path):
    shown = name.replace("\x1b", "\\x1b").replace("\x07", "\\x07").replace("\udce9", "\\xe9")
    assert shown in printed("check", "data")
    printed("split", "data", "-o", "s.yaml", "--ratios", "50/50/0")
    assert (
        name
        in yaml.safe_load((tmp_path / "s.yaml").read_text(encoding="utf-8"))["folds"][0]["train"]
        + yaml.safe_load((tmp_path / "s.yaml").read_text(encoding="utf-8"))["folds"][0]["val"]
    )
    printed("train", "s.yaml", "-c", "c.yaml", "--device", "cpu", "-o", "run")
    assert shown in printed("predict", "data", "-o", "out", "--model", "m.pt", "--device", "cpu")
    assert (tmp_path / f"out/{name}.nii.gz").is_file()
    printed("mesh", *sorted((tmp_path / "p").iterdir()), "-o", "meshes", "--workers", "0")
    printed(
        "evaluate", "p", "data", "-o", "s.csv", "--report", "r.html", "--markdown", "r.md",
        "--lesion-wise", "2023", "--lesions", "l.csv",
    )  # fmt: skip
    shutil.copy("s.csv", "t.csv")
    printed("compare", "s.csv", "t.csv", "-o", "c.png")
    assert shown in printed("view", "data", "--seg", "p", "-o", "views", "--workers", "0")
    printed("view", f"data/{name}", "-o", "v.png")
    for table in ("s.csv", "l.csv", "run/validation.csv"):
        with (tmp_path / table).open(newline="", errors="surrogateescape") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
    for page in (
        tmp_path / "r.html",
        tmp_path / "views/index.html",
        tmp_path / f"views/{name}.html",
    ):
        assert "<script>alert" not in page.read_text(encoding="utf-8")


def test_errors_show_such_names(name, tmp_path):
    (tmp_path / f"data/{name}/{name}_t1.nii.gz").write_bytes(b"text")
    printed("check", "data", status=3)
    printed("check", "data", "--fix", "fixed", status=3)
    printed("predict", f"data/{name}", "-o", "o.nii.gz", "--model", "m.pt", status=3)
    printed("evaluate", f"p/{name}.nii.gz", f"data/{name}/{name}_t1.nii.gz", status=3)
    printed("mesh", f"data/{name}/{name}_t1.nii.gz", "-o", "m.stl", status=3)
    printed("view", f"data/{name}", "-o", "v.html", status=3)
    missing = f"{name}-missing"
    for words in (
        ["check", missing], ["split", missing], ["train", missing], ["evaluate", missing, missing],
        ["compare", missing, "x.csv"], ["mesh", missing], ["view", missing], ["import", missing],
        ["predict", missing, "--model", "m.pt"], ["predict", "data", "--model", missing],
        ["train", "-c", missing], ["export", missing],
    ):  # fmt: skip
        result = brats(*words)
        assert result.exit_code in (2, 3)
        assert not set(result.output) & {"\x1b", "\x07"}, words


def test_models_and_regions_of_such_names_are_drawn(tmp_path):
    names = ["a$x^$", "\udce9", "b$\\frac{$"]
    for number, model in enumerate(names):
        rows = "".join(f"{case},$x^$,0.{number}{case},{case}\n" for case in range(1, 5))
        (tmp_path / f"{model}.csv").write_text(f"case,region,dice,hausdorff95_mm\n{rows}")
    files = [tmp_path / f"{model}.csv" for model in names]
    for some in (files, files[:2]):
        assert "$x^$" in printed("compare", *some, "-o", tmp_path / "c.png", "--overwrite")


def test_a_line_in_a_name_begins_no_formula(tmp_path):
    write_csv(tmp_path / "x.csv", ["case"], [{"case": "a\r=1+1"}, {"case": "=1"}], overwrite=True)
    with (tmp_path / "x.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["case"], ["a\\r=1+1"], ["'=1"]]


def test_a_word_between_colons_is_no_picture(capsys):
    console.message("a:bomb:b")
    console.table(["case"], [["a:bomb:b"]])
    printed = capsys.readouterr()
    assert "a:bomb:b" in printed.out
    assert "a:bomb:b" in printed.err
