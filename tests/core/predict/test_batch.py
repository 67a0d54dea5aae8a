import json
import shutil

import pytest
import torch

from brats_cli import __version__
from brats_cli.core.compute.devices import describe
from brats_cli.core.data.finding import find_cases
from brats_cli.core.errors import CheckpointError, OutputExistsError
from brats_cli.core.images.nifti import read_labels
from brats_cli.core.predict import batch as batches
from brats_cli.core.predict.batch import Batch
from brats_cli.core.predict.outputs import Job, Prediction, complete
from brats_cli.core.predict.predictor import PredictConfig

CPU = torch.device("cpu")


def test_every_case_is_written_and_told(model, jobs, tmp_path):
    manifest = tmp_path / "predictions.jsonl"
    shares = []
    batch = Batch((model,), PredictConfig(), manifest)
    done = list(batch.run(jobs, [CPU], shares.append))
    assert [each.case for each in done] == [job.case.id for job in jobs]
    assert sum(shares) == pytest.approx(len(jobs))
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert lines == [json.loads(json.dumps(each.row())) for each in done]
    first = lines[0]
    labels = read_labels(jobs[0].file)
    assert first["volumes_mm3"] == {"WT": (labels.data == 2).sum(), "TC": 0, "ET": 0}
    assert first["seconds"] >= first["network_seconds"] > 0
    told = {name: first[name] for name in ("format", "case", "file", "labels", "models", "device")}
    assert told == {
        "format": "brats-predictions/1",
        "case": "BraTS-GLI-00000-000",
        "file": str(jobs[0].file),
        "labels": "brats2023",
        "models": [str(model)],
        "device": describe(torch.device("cpu")),
    }
    assert first["modalities"] == ["t1", "t1ce", "t2", "flair"]
    assert (first["missing"], first["tta"], first["precision"]) == ([], False, "float32")
    assert first["versions"] == {"brats": __version__, "torch": torch.__version__}
    # The brain box holds more than 20,000 voxels: of n at 0.9, 1 - (1.8 n + 1000) / (1.9 n + 1000).
    assert first["doubt"]["WT"] == pytest.approx(0.1 / 1.9, abs=0.005)
    assert first["review"] == pytest.approx(sum(first["doubt"].values()) / 3, abs=1e-4)


def test_one_bad_case_does_not_stop_the_others(model, phantoms, tmp_path):
    folder = shutil.copytree(phantoms, tmp_path / "data")
    damaged = folder / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-t1c.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:500])
    jobs = [Job(case, tmp_path / "out" / f"{case.id}.nii.gz") for case in find_cases(folder)]
    outcomes = list(Batch((model,), PredictConfig()).run(jobs, [CPU]))
    kinds = [isinstance(outcome, Prediction) for outcome in outcomes]
    assert kinds == [job.case.id != "BraTS-GLI-00001-000" for job in jobs]
    assert str(damaged) in str(outcomes[kinds.index(False)])
    assert sum(job.file.exists() for job in jobs) == len(jobs) - 1


def test_an_output_that_appears_meanwhile_is_kept(model, jobs):
    jobs[0].file.write_text("mine")
    first, *others = Batch((model,), PredictConfig()).run(jobs, [CPU])
    assert isinstance(first, OutputExistsError)
    assert all(isinstance(other, Prediction) for other in others)
    assert jobs[0].file.read_text() == "mine"


def test_a_model_that_cannot_be_read_ends_the_batch(jobs, tmp_path):
    (tmp_path / "best.pt").write_text("no checkpoint")
    batch = Batch((tmp_path / "best.pt",), PredictConfig())
    for devices in ([CPU], [CPU, CPU]):
        with pytest.raises(CheckpointError):
            list(batch.run(jobs, devices))


@pytest.mark.slow
def test_devices_share_the_cases_out(model, jobs, tmp_path):
    manifest = tmp_path / "predictions.jsonl"
    shares = []
    batch = Batch((model,), PredictConfig(probabilities=True), manifest)
    done = list(batch.run(jobs, [CPU, CPU], shares.append))
    assert sorted(each.case for each in done) == [job.case.id for job in jobs]
    assert sum(shares) == pytest.approx(len(jobs))
    assert all(complete(job, batch.config) for job in jobs)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert sorted(line["case"] for line in lines) == [job.case.id for job in jobs]


def test_a_killed_process_is_reported():
    error = batches._ended(torch.device("cuda", 1), ["c", "d"], -9)
    assert str(error) == (
        "the process on cuda:1 was killed, most likely because memory ran out; "
        "some of its 2 cases are not segmented"
    )
    assert error.hint.endswith("run the same command again with --skip-existing")


def test_a_bug_in_a_process_is_a_bug():
    with pytest.raises(RuntimeError, match="the process on cpu failed"):
        batches._ended(CPU, ["a", "b"], 1)
