"""Files as people really have them: blank sequences, some of the four, odd names, a full disk."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from helpers import TINY, brats, save_nifti, stdout_of, write_case

from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.network import make_network
from brats_cli.core.train.config import TrainConfig

CONFIG = TrainConfig.model_validate({**TINY, "network": {"channels": 1, "levels": 2}})
NAME = "BraTS2021_0000"


def labels(number):
    found = np.zeros((16, 16, 16), np.uint8)
    found[4:10, 4:10, 4 : 8 + number] = 2
    found[5:8, 5:8, 5:7] = 1
    found[6, 6, 5:7] = 4
    return found


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Four cases in `data`, a network, and settings of the smallest training."""
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        write_case(tmp_path / "data", f"{NAME}{number}", labels(number), seed=number)
    network = make_network(CONFIG.network, in_channels=4, out_channels=3, patch_size=16)
    settings = CONFIG.model_dump(mode="json")
    Checkpoint(network.state_dict(), settings, "brats2020", 1, {"WT": 0.5}).save(tmp_path / "m.pt")
    CONFIG.save(tmp_path / "c.yaml")
    return tmp_path


PREDICT = ["predict", f"data/{NAME}0", "-o", "o.nii.gz", "--model", "m.pt", "--device", "cpu"]


@pytest.mark.parametrize("blank", [["t1"], ["flair"], ["t2", "t1ce"]])
@pytest.mark.parametrize("voxel", [np.int16(0), np.float32(0), np.int16(7), np.float32(-0.5)])
def test_sequences_of_one_value_are_missing(here, blank, voxel):
    for role in blank:
        path = here / f"data/{NAME}0/{NAME}0_{role}.nii.gz"
        save_nifti(path, np.full((16, 16, 16), voxel))
    result = brats(*PREDICT)
    assert result.exit_code == 3
    first, hint = result.stderr.splitlines()[-2:]
    assert f"case {NAME}0 has no " in first
    assert all(role in first.partition("(found: ")[0] for role in blank)
    assert f"every voxel of {', '.join(sorted(blank))} is the same" in first
    assert "--allow-missing" in hint
    assert not (here / "o.nii.gz").exists()
    stdout_of(*PREDICT, "--allow-missing")
    assert (here / "o.nii.gz").is_file()


@pytest.mark.parametrize("some", [("t1ce", "flair"), ("t2",), ("t1", "t2", "flair")])
def test_some_of_the_four_are_split_trained_and_predicted(here, some):
    for path in (here / "data").rglob("*.nii.gz"):
        if not path.name.removesuffix(".nii.gz").endswith((*[f"_{role}" for role in some], "_seg")):
            path.unlink()
    result = brats("split", "data")
    assert result.exit_code == 3
    assert f"all have {','.join(r for r in ('t1', 't1ce', 't2', 'flair') if r in some)}" in (
        result.stderr
    )
    stdout_of("split", "data", "--modalities", ",".join(some), "--ratios", "50/50/0")
    assert set(yaml.safe_load((here / "splits.yaml").read_text())["modalities"]) == set(some)
    (here / "s.yaml").write_text(yaml.safe_dump(TINY))  # which names no sequences
    stdout_of("train", "-c", "s.yaml", "--device", "cpu", "-o", "run")
    assert set(Checkpoint.load(here / "run/last.pt").modalities) == set(some)
    words = ["predict", f"data/{NAME}0", "-o", "o.nii.gz", "--model", "run", "--device", "cpu"]
    stdout_of(*words)
    assert (here / "o.nii.gz").is_file()


@pytest.mark.parametrize("name", ["seg.mha", "seg.nrrd", "seg.gz", "seg.nii.zip", "seg.mgz"])
def test_only_nifti_is_written(here, name):
    words = [*PREDICT]
    words[3] = name
    result = brats(*words)
    assert result.exit_code == 3
    assert f"{name} cannot be written: label maps are written as .nii.gz or .nii" in result.stderr
    assert not (here / name).exists()


@pytest.mark.parametrize("role", ["seg", "t1", "t2"])
def test_a_file_that_is_not_gzipped_under_its_name_is_read(here, role):
    path = here / f"data/{NAME}0/{NAME}0_{role}.nii.gz"
    subprocess.run(["gunzip", "-k", path], check=True)
    shutil.move(path.with_suffix(""), path)
    stdout_of(*PREDICT)
    if role == "seg":
        stdout_of("mesh", path, "-o", "m.stl")
        report = json.loads(stdout_of("evaluate", path, path, "--json"))
        assert {row["dice"] for row in report["cases"]} == {1.0}


@pytest.mark.parametrize("role", ["t1", "flair", "t2"])
def test_what_is_no_number_is_null_in_json(here, role):
    path = here / f"data/{NAME}1/{NAME}1_{role}.nii.gz"
    image = np.full((16, 16, 16), np.nan, np.float32)
    image[3:9] = 5
    save_nifti(path, image)
    result = brats("check", "data", "--json")
    assert result.exit_code == 3

    def never(word):
        raise AssertionError(word)

    found = json.loads(result.stdout, parse_constant=never)
    assert found["cases"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB, where one may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    how = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(how, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("left_kb", [4, 24, 60, 100])
def test_a_disk_that_fills_up_during_training_is_two_lines(here, small_disk, left_kb):
    """Whatever is written when it is full: TensorBoard's events, log.csv, a checkpoint, curves."""
    stdout_of("split", "data", "--ratios", "50/50/0")
    (small_disk / "ballast").write_bytes(bytes((200 - left_kb) << 10))
    words = ["train", "-c", "c.yaml", "--device", "cpu", "-o", str(small_disk / "run")]
    ended = subprocess.run(
        [sys.executable, "-m", "brats_cli", *words], capture_output=True, text=True
    )
    assert ended.returncode == 3, ended.stderr
    lines = ended.stderr.splitlines()
    # What a run takes at least is known before it; beyond that, what is written last fails.
    said = "and the disk has" if left_kb == 4 else "No space left on device"
    assert any(said in line for line in lines if line.startswith("error: "))
    assert "Traceback" not in ended.stderr
