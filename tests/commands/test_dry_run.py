"""`--dry-run` of every command that has it: names what the run then writes, and writes nothing."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers import TINY, assert_refused, brats, stdout_of

from brats_cli.core.compute import plan as planning
from brats_cli.core.data.phantom import write_phantoms
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.network import make_network
from brats_cli.core.train.config import TrainConfig

CASES = ["BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00001-000", "BraTS-GLI-00002-000"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Four cases, their split, settings and a network, in one folder."""
    folder = tmp_path_factory.mktemp("dry")
    write_phantoms(folder / "data", cases=4, shape=(32, 34, 36))
    torch.manual_seed(0)
    config = TrainConfig(patch_size=16, network=TINY["network"])
    network = make_network(config.network, in_channels=4, out_channels=3, patch_size=16)
    settings = config.model_dump(mode="json")
    Checkpoint(network.state_dict(), settings, "brats2023", 1, {}).save(folder / "model.pt")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    stdout_of("split", folder / "data", "-o", folder / "splits.yaml", "--ratios", "50/25/25")
    return folder


@pytest.fixture
def here(inputs, tmp_path, monkeypatch):
    shutil.copytree(inputs, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def files():
    return {str(path) for path in Path().rglob("*") if path.is_file()}


WORK = {
    "predict": ["predict", "data", "-o", "out", "--model", "model.pt", "--device", "cpu"],
    "mesh": ["mesh", *(f"data/{case}/{case}-seg.nii.gz" for case in CASES), "-o", "meshes"],
    "view": ["view", "data", "-o", "views", "--workers", "0"],
}


FIRST = f"data/{CASES[0]}/{CASES[0]}"
MORE = {
    "predict, one file": [
        *("predict", f"data/{CASES[0]}", "-o", "one.nii.gz"),
        *("--uncertainty", "--model", "model.pt", "--device", "cpu"),
    ],
    "mesh, textured": [
        *("mesh", f"{FIRST}-seg.nii.gz", "-o", "meshes", "--format", "obj"),
        *("--paint", f"{FIRST}-t1c.nii.gz"),
    ],
}


@pytest.mark.parametrize("name", [*WORK, *MORE])
def test_it_names_the_files_that_the_run_then_writes(name, here):
    words = (WORK | MORE)[name]
    before = files()
    named = stdout_of(*words, "--dry-run").split()
    assert files() == before
    stdout_of(*words)
    assert files() - before == set(named)


@pytest.mark.parametrize("name", WORK)
def test_what_would_be_skipped_and_needed_is_in_the_json(name, here):
    stdout_of(*WORK[name])
    made = files()
    found = json.loads(stdout_of(*WORK[name], "--skip-existing", "--dry-run", "--json"))
    assert (found["cases"], len(found["skipped"])) == ([], 4)
    found = json.loads(stdout_of(*WORK[name], "--overwrite", "--dry-run", "--json"))
    assert (len(found["cases"]), found["skipped"]) == (4, [])
    assert found["memory"]["free_bytes"] > found["memory"]["needed_bytes"] > 0
    [disk] = found["disk"].values()
    assert disk["free_bytes"] > disk["needed_bytes"] > 0
    assert files() == made


@pytest.mark.parametrize("name", WORK)
def test_a_full_disk_is_reported_before_anything_is_written(name, here, monkeypatch):
    monkeypatch.setattr(planning, "free_disk", lambda folder: 1)
    before = files()
    folder = WORK[name][WORK[name].index("-o") + 1]
    for more in ([], ["--dry-run"]):
        result = brats(*WORK[name], *more)
        assert result.exit_code == 3
        first, second = result.stderr.splitlines()
        assert first.startswith(f"error: cannot write {folder}: the outputs take about ")
        assert first.endswith(", and the disk has 0.0 kB left")
        assert second == " hint: make room, or choose another place"
    assert files() == before


def test_predict_reports_a_bad_model_and_a_bad_path_as_the_run_does(here):
    words = ("predict", "data", "-o", "out", "--device", "cpu", "--dry-run")
    Path("bad.pt").write_text("no")
    assert_refused(
        brats(*words, "--model", "bad.pt"), "bad.pt is not a brats checkpoint", "cut short"
    )
    result = brats(*words, "nothing", "--model", "model.pt")
    assert result.exit_code == 3
    assert "error: cannot read nothing" in result.stderr
    assert "out/BraTS-GLI-00000-000.nii.gz" in result.stdout


def test_mesh_reports_a_bad_label_map_and_names_the_others(here):
    Path("bad.nii.gz").write_text("no")
    result = brats(*WORK["mesh"], "bad.nii.gz", "--dry-run")
    assert result.exit_code == 3
    assert "error: cannot read bad.nii.gz" in result.stderr
    assert len(result.stdout.split()) == 4


def test_all_regions_are_named_by_a_pattern(here):
    words = [*WORK["mesh"][:2], "--region", "all", "-o", "meshes", "--dry-run"]
    assert stdout_of(*words).split() == [f"meshes/{CASES[0]}-seg_*.stl"]


def test_the_disk_space_of_meshes_follows_what_is_asked_for(here):
    scan = f"data/{CASES[0]}/{CASES[0]}-t1c.nii.gz"

    def needed(*more, image=WORK["mesh"][1]):
        words = ("mesh", image, "-o", "meshes", "--dry-run", "--json", *more)
        [disk] = json.loads(stdout_of(*words))["disk"].values()
        return disk["needed_bytes"]

    whole = needed()
    # Binary STL has 50 bytes per triangle.
    assert needed("--faces", "1000") == 50_000
    assert needed("--region", "all", "--faces", "1000") == 3 * 50_000
    assert needed("--reduce", "0.1") == whole // 10
    assert needed("--format", "glb", "--region", "all") > needed("--format", "glb")
    painted = ("--format", "glb", "--paint", scan)
    assert needed(*painted, "--texture") > 2 * needed(*painted)
    assert needed("--region", "brain", image=scan) > 2 * whole


def test_split_shows_the_table_and_writes_nothing(here):
    before = files()
    words = ("split", "data", "--ratios", "50/25/25", "-o", "new.yaml")
    result = brats(*words, "--dry-run")
    assert result.exit_code == 0
    assert files() == before
    assert "dry run: new.yaml was not written" in result.stderr
    assert result.stdout == stdout_of(*words)
    assert_refused(brats(*words, "--dry-run"), "new.yaml exists already", "--overwrite")


TRAIN = ["train", "splits.yaml", "-c", "tiny.yaml", "-o", "runs/a", "--device", "cpu"]


def test_train_names_the_store_and_the_run(here):
    before = files()
    result = brats(*TRAIN, "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.split() == ["brats-store", "runs/a"]
    assert "3 cases would be processed" in result.stderr
    assert "device: cpu" in result.stderr
    assert files() == before
    assert not Path("runs").exists()


def test_train_prepares_no_case_again(here):
    stdout_of(*TRAIN, "--prepare-only")
    assert stdout_of(*TRAIN, "--dry-run").split() == ["runs/a"]


def test_train_reports_too_little_disk_and_memory_first(here, monkeypatch):
    before = files()
    monkeypatch.setattr(planning, "free_memory", lambda: 1)
    result = brats(*TRAIN)
    assert result.exit_code == 3
    assert "of memory, and 0.0 kB are free" in result.stderr
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    result = brats(*TRAIN)
    assert "error: cannot write brats-store: 3 prepared cases take about" in result.stderr
    assert files() == before


def test_train_reports_bad_settings_as_the_run_does(here):
    result = brats(*TRAIN, "--dry-run", "--set", "patch_size=17")
    assert result.exit_code == 3
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/log.csv").touch()
    assert_refused(brats(*TRAIN, "--dry-run"), "runs/a/log.csv exists already", "--overwrite")
