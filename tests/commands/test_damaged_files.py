"""Every command that reads images, against every way in which a file may be damaged."""

import nibabel as nib
import numpy as np
import pytest
import yaml
from helpers import DAMAGES, brats

from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.network import UNet3D
from brats_cli.core.train.config import TrainConfig

BROKEN, *WHOLE = IDS = [f"BraTS2021_0000{number}" for number in range(3)]
SUFFIXES = ("t1", "t1ce", "t2", "flair", "seg")
TINY = UNetConfig(channels=1, levels=2, norm="none", residual=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three cases of 8 x 8 x 8 voxels as in BraTS 2021, split, and a network, all in one folder."""
    folder = tmp_path_factory.mktemp("whole")
    generator = np.random.default_rng(0)
    for number, case_id in enumerate(IDS):
        labels = np.zeros((8, 8, 8), dtype=np.uint8)
        labels[2:6, 2:6, 2 : 6 - number] = 2
        labels[3, 3, 2:4] = (1, 4)
        (folder / "data" / case_id).mkdir(parents=True)
        for suffix in SUFFIXES:
            image = generator.integers(1, 999, labels.shape, dtype=np.int16)
            image[0] = 0
            voxels = labels if suffix == "seg" else image
            path = folder / "data" / case_id / f"{case_id}_{suffix}.nii"
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    split = {
        "format": "brats-splits/1",
        "data": "data",
        "labels": "brats2020",
        "seed": 0,
        "folds": [{"train": [BROKEN, WHOLE[0]], "val": [WHOLE[1]]}],
        "test": [],
    }
    (folder / "splits.yaml").write_text(yaml.safe_dump(split))
    config = TrainConfig(patch_size=8, precision="float32", network=TINY)
    config.save(folder / "tiny.yaml")
    net = UNet3D(TINY, in_channels=4, out_channels=3)
    Checkpoint(net.state_dict(), config.model_dump(mode="json"), "brats2020", 1, {}).save(
        folder / "model.pt"
    )
    return folder


CALLS = {
    "check": ("t2", ["check", "data"]),
    "split": ("seg", ["split", "data", "-o", "new.yaml"]),
    "train": (
        "t1",
        ["train", "-o", "runs/a", "--device", "cpu", "--workers", "0", "-c", "tiny.yaml"],
    ),
    "predict": ("flair", ["predict", "data", "-o", "out", "--model", "model.pt"]),
    "evaluate": ("seg", ["evaluate", "data", "data", "--workers", "0"]),
    "mesh": ("seg", ["mesh", f"data/{BROKEN}/{BROKEN}_seg.nii", "-o", "a.stl"]),
}
"""The file that is damaged, and the call that reads it."""


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", CALLS)
def test_a_damaged_file_is_named_in_two_lines(command, damage, whole, tmp_path, monkeypatch, capfd):
    for name in ("splits.yaml", "model.pt", "tiny.yaml"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    suffix, words = CALLS[command]
    for case_id in IDS:
        (tmp_path / "data" / case_id).mkdir(parents=True)
        for each in SUFFIXES:
            name = f"data/{case_id}/{case_id}_{each}.nii"
            content = (whole / name).read_bytes()
            damaged = (case_id, each) == (BROKEN, suffix)
            (tmp_path / name).write_bytes(DAMAGES[damage](content) if damaged else content)
    monkeypatch.chdir(tmp_path)
    before = capfd.readouterr()
    result = brats(*words)
    assert result.exit_code == 3, result.output
    assert capfd.readouterr() == before == ("", "")  # past the program's own output: nibabel's
    lines = result.stderr.splitlines()
    named = [line for line in lines if f"{BROKEN}_{suffix}.nii" in line]
    if command == "check":
        lines = result.stdout.splitlines()
        named = [line for line in lines if f"{BROKEN}_{suffix}.nii" in line]
        assert named
        assert named[0].startswith("error: ")
        return
    assert len(named) == 1, result.stderr
    assert named[0].startswith("error: ")
    assert lines[lines.index(named[0]) + 1].startswith(" hint: ")
    if command in ("split", "mesh"):
        assert len(lines) == 2
    if command == "predict":  # one bad case stops no other
        assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [
            f"{case_id}.nii.gz" for case_id in WHOLE
        ]
