import json

import peers
import pytest
from helpers import assert_refused, brats, stdout_of

pytest.importorskip("monai")


@pytest.fixture
def model(tmp_path):
    peers.save_auto3dseg(tmp_path / "model.pt", roi=(32, 32, 32))
    return tmp_path / "model.pt"


def test_the_table_names_origin_channels_and_licence(model, tmp_path):
    shown = stdout_of("import", model, "-o", tmp_path / "ours.pt")
    head, row = shown.splitlines()
    assert head.split()[:3] == ["file", "origin", "channels"]
    assert "Auto3DSeg SegResNetDS: segresnet" in row
    assert "flair t1ce t1 t2" in row
    assert "32x32x32" in row
    assert "not stated" in row


def test_json_has_the_same(model, tmp_path):
    [made] = json.loads(stdout_of("import", model, "-o", tmp_path / "ours.pt", "--json"))
    assert made["file"] == str(tmp_path / "ours.pt")
    assert made["modalities"] == ["flair", "t1ce", "t1", "t2"]
    assert made["kind"] == "Auto3DSeg SegResNetDS"


def test_an_output_that_exists_is_kept(model, tmp_path):
    stdout_of("import", model, "-o", tmp_path / "ours.pt")
    again = ("import", model, "-o", tmp_path / "ours.pt")
    assert_refused(brats(*again), f"{tmp_path}/ours.pt exists already", "--overwrite")
    stdout_of(*again, "--overwrite", "--labels", "brats2020")


def test_what_is_not_there_is_named(tmp_path):
    assert_refused(
        brats("import", tmp_path / "no.pt"),
        f"cannot read {tmp_path}/no.pt: there is no such file or folder",
        "check the path",
    )


@pytest.mark.slow
def test_predict_takes_it_and_needs_no_flag(model, tmp_path):
    from brats_cli.core.data.phantom import write_phantoms

    write_phantoms(tmp_path / "data", cases=1, shape=(36, 40, 34))
    stdout_of("import", model, "-o", tmp_path / "ours.pt")
    words = ("predict", tmp_path / "data", "-o", tmp_path / "out", "--device", "cpu", "--json")
    found = json.loads(stdout_of(*words, "--model", tmp_path / "ours.pt", "--tta"))
    assert len(found["cases"]) == 1
    assert found["cases"][0]["precision"] == "float32"
    assert found["cases"][0]["labels"] == "brats2023"
