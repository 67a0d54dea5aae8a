import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from brats_cli import __version__
from brats_cli.core.data.finding import find_cases
from brats_cli.core.errors import (
    BratsError,
    CaseError,
    CheckpointError,
    OutputExistsError,
    UnreadableFileError,
)
from brats_cli.core.images.nifti import read_labels
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.network import UNet3D
from brats_cli.core.predict import many as batches
from brats_cli.core.predict.many import (
    MANIFEST,
    Batch,
    Job,
    Prediction,
    PredictionStarted,
    Skipped,
    complete,
    overlapped,
    predict,
    recorded,
    require_outputs_writable,
)
from brats_cli.core.predict.predictor import PredictConfig
from brats_cli.core.train.config import TrainConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint that finds WT with 0.9 anywhere, and TC and ET with 0.1."""
    config = TrainConfig(
        patch_size=16, precision="float32", network=UNetConfig(channels=2, levels=2)
    )
    net = UNet3D(config.network, in_channels=4, out_channels=3)
    with torch.no_grad():
        net.output.weight.zero_()
        net.output.bias.copy_(torch.logit(torch.tensor([0.9, 0.1, 0.1])))
    path = tmp_path_factory.mktemp("model") / "best.pt"
    Checkpoint(net.state_dict(), config.model_dump(mode="json"), "brats2023", 1, {}).save(path)
    return path


@pytest.fixture
def jobs(phantoms, tmp_path):
    return [Job(case, tmp_path / f"{case.id}.nii.gz") for case in find_cases(phantoms)]


# --- a batch -----------------------------------------------------------------------------------


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
        "device": f"cpu ({torch.get_num_threads()} threads)",
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


def test_threads_of_an_executor_share_the_models_and_make_the_same_files(
    model, phantoms, tmp_path, monkeypatch
):
    read = []
    load = Checkpoint.load.__func__
    monkeypatch.setattr(
        Checkpoint, "load", classmethod(lambda cls, path: read.append(path) or load(cls, path))
    )
    wanted = {"model": model, "device": "cpu", "probabilities": True}
    list(predict(phantoms, output=tmp_path / "one", **wanted))
    before = len(read)
    shares = []
    with ThreadPoolExecutor(4) as executor:
        started, *done = predict(
            phantoms,
            output=tmp_path / "other",
            executor=executor,
            on_progress=lambda *share: shares.append(share),
            **wanted,
        )
    assert len(read) - before == 2  # to see whether they can be averaged, and to compute
    assert started.cases == 4
    assert started.devices == (f"cpu ({torch.get_num_threads()} threads) of each worker",)
    assert shares == [(1, 4), (2, 4), (3, 4), (4, 4)]
    maps = {path.name: path.read_bytes() for path in (tmp_path / "one").glob("*.nii.gz")}
    assert len(maps) == 8
    assert maps == {path.name: path.read_bytes() for path in (tmp_path / "other").glob("*.nii.gz")}
    lines = (tmp_path / "other" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["case"] for line in lines] == [each.case for each in done]


def test_one_bad_case_stops_no_other_on_an_executor(model, phantoms, tmp_path):
    folder = shutil.copytree(phantoms, tmp_path / "data")
    damaged = folder / "BraTS-GLI-00001-000" / "BraTS-GLI-00001-000-t1c.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:500])
    with ThreadPoolExecutor(2) as executor:
        _, *done = predict(
            folder, output=tmp_path / "out", model=model, device="cpu", executor=executor
        )
    (error,) = (each for each in done if isinstance(each, BratsError))
    assert str(damaged) in str(error)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3


# --- the function behind the command -----------------------------------------------------------


def test_events_tell_what_happens_in_order(model, phantoms, tmp_path):
    first, *_ = find_cases(phantoms)
    (tmp_path / f"{first.id}.nii.gz").write_text("there already")
    seen = []
    events = predict(
        [str(phantoms), str(tmp_path / "nowhere")],
        output=str(tmp_path),
        model=str(model),
        device="cpu",
        skip_existing=True,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    failed, skipped, started, *done = events
    assert str(failed) == f"cannot read {tmp_path / 'nowhere'}: there is no such file"
    assert skipped == Skipped(first.id, tmp_path / f"{first.id}.nii.gz")
    assert started == PredictionStarted(3, (model,), (f"cpu ({torch.get_num_threads()} threads)",))
    assert [type(event) for event in done] == [Prediction] * 3
    assert seen[-1] == (pytest.approx(3), 3)
    assert [step for step, _ in seen] == sorted(step for step, _ in seen)


def test_one_path_and_one_model_need_no_list(model, phantoms, tmp_path):
    case = find_cases(phantoms)[0]
    *_, done = predict(case.folder, output=tmp_path / "seg.nii.gz", model=model, device="cpu")
    assert done.file == str(tmp_path / "seg.nii.gz")
    assert read_labels(tmp_path / "seg.nii.gz").data.any()


def test_the_rest_is_not_segmented_when_the_loop_is_left(model, phantoms, tmp_path):
    events = predict(phantoms, output=tmp_path / "out", model=model, device="cpu")
    next(event for event in events if isinstance(event, Prediction))
    events.close()
    # The one yielded, and those that were being finished and loaded.
    assert 1 <= len(list((tmp_path / "out").glob("*.nii.gz"))) <= 3


def test_nothing_happens_before_the_first_event_is_asked_for(tmp_path):
    events = predict(tmp_path / "nowhere")
    with pytest.raises(UnreadableFileError, match="there is no such file"):
        next(events)


def test_no_case_at_all_is_an_error_that_is_raised(tmp_path):
    with pytest.raises(CaseError, match=r"none of 2 paths is a case: cannot read .*a: .*b: "):
        next(predict([tmp_path / "a", tmp_path / "b"]))
    with pytest.raises(CaseError, match="no paths of cases were given"):
        next(predict([]))


# --- killed while outputs are replaced ---------------------------------------------------------


class KilledError(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


def kill_at_rename(patch, number):
    """Of all renames, the one with this number is not done, nor any after it."""
    rename, count = Path.replace, 0

    def replace(self, target):
        nonlocal count
        count += 1
        if count >= number:
            raise KilledError
        return rename(self, target)

    patch.setattr(Path, "replace", replace)


def versions(folder, new):
    """Whether each file of a case is the new one."""
    return {
        path.name.removesuffix(".nii.gz").partition("_")[2]: path.read_bytes()
        == (new / path.name).read_bytes()
        for path in sorted(folder.glob("*.nii.gz"))
    }


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_the_case_that_a_kill_hit_is_done_again_and_never_half_new(
    model, phantoms, tmp_path, rename
):
    case = find_cases(phantoms)[0].folder
    wanted = {"model": model, "device": "cpu", "probabilities": True, "uncertainty": True}
    old, new = tmp_path / "old", tmp_path / "new"
    list(predict(case, output=new, **wanted))
    list(predict(case, output=old, labels="brats2020", **wanted))
    for kind in ("probabilities", "uncertainty"):
        (old / f"{case.name}_{kind}.nii.gz").write_bytes(b"old")
    with pytest.MonkeyPatch.context() as patch:
        kill_at_rename(patch, rename)
        with pytest.raises(KilledError):
            list(predict(case, output=old, overwrite=True, **wanted))
    # All that is there is old, or all is new; the label map is always there.
    assert (
        versions(old, new)
        == [
            {"": False},
            {"": True},
            {"": True, "probabilities": True},
        ][rename - 1]
    )
    started, done = predict(case, output=old, skip_existing=True, **wanted)
    assert (started.cases, type(done)) == (1, Prediction)
    assert versions(old, new) == {"": True, "probabilities": True, "uncertainty": True}


@pytest.mark.parametrize("executor", [False, True])
def test_a_kill_before_the_line_of_a_case_leaves_no_line_of_its_old_files(
    model, phantoms, tmp_path, executor
):
    cases = [case.folder for case in find_cases(phantoms)[:1]]
    wanted = {"model": model, "device": "cpu", "output": tmp_path}
    *_, done = predict(cases, labels="brats2020", **wanted)
    assert recorded(tmp_path / MANIFEST) == {done.case}
    add = batches.append_line

    def append(path, line):
        if "finished" in line:
            raise KilledError
        add(path, line)

    with ThreadPoolExecutor(1) as threads, pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "append_line", append)
        with pytest.raises(KilledError):
            list(predict(cases, overwrite=True, executor=threads if executor else None, **wanted))
    assert recorded(tmp_path / MANIFEST) == set()
    started, *again = predict(cases, skip_existing=True, **wanted)
    assert (started.cases, len(again)) == (1, 1)
    assert recorded(tmp_path / MANIFEST) == {done.case}
    (skipped, started) = predict(cases, skip_existing=True, **wanted)
    assert (type(skipped), started.cases) == (Skipped, 0)


# --- processes ---------------------------------------------------------------------------------


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


# --- at the same time --------------------------------------------------------------------------


class Meeting:
    """Two threads that have to be in two places at once."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=10)

    def __call__(self):
        self.barrier.wait()


def test_the_next_is_loaded_and_the_last_finished_while_one_is_computed():
    loading, finishing = Meeting(), Meeting()

    def load(item):
        if item == 2:
            loading()  # waits until 1 is being computed
        return item

    def compute(item):
        if item == 1:
            loading()
        if item == 2:
            finishing()  # waits until 1 is being finished
        return item

    def finish(item):
        if item == 1:
            finishing()
        return -item

    assert list(overlapped([1, 2, 3], load, compute, finish)) == [-1, -2, -3]


@pytest.mark.parametrize("loaders", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_few_items_are_done_as_well(count, loaders):
    done = overlapped(range(count), str, str.upper, int, loaders=loaders)
    assert list(done) == list(range(count))


def test_two_loaders_load_at_the_same_time():
    both = threading.Barrier(2)

    def load(item):
        both.wait(timeout=20)  # for the other
        return item

    assert list(overlapped([1, 2], load, str, int, loaders=2)) == [1, 2]


@pytest.mark.parametrize("stage", ["load", "compute", "finish"])
def test_a_mistake_in_any_stage_takes_the_place_of_its_item(stage):
    wrong = BratsError("bad", hint="repair it")

    def step(name):
        def pass_on(item):
            if name == stage and item == 1:
                raise wrong
            return item

        return pass_on

    stages = [step(name) for name in ("load", "compute", "finish")]
    assert list(overlapped([0, 1, 2], *stages)) == [0, wrong, 2]


def test_a_case_that_memory_did_not_suffice_for_is_told():
    def load(item):
        raise MemoryError("Unable to allocate 9 TiB")

    (outcome,) = overlapped([1], load, str, str)
    assert str(outcome) == "not enough memory: Unable to allocate 9 TiB"


@pytest.mark.parametrize("stage", range(3))
def test_a_bug_in_any_stage_is_raised(stage):
    stages = [lambda item: item, lambda item: item, lambda item: item]
    stages[stage] = lambda item: 1 / item
    with pytest.raises(ZeroDivisionError):
        list(overlapped([1, 0, 2], *stages))


# --- what there is, and what is due ------------------------------------------------------------


def test_a_case_is_complete_with_all_that_was_asked_for(jobs):
    job = jobs[0]
    config = PredictConfig(uncertainty=True)
    assert not complete(job, config)
    job.file.write_text("")
    assert complete(job, PredictConfig())
    assert not complete(job, config)
    Path(str(job.file).replace(".nii.gz", "_uncertainty.nii.gz")).write_text("")
    assert complete(job, config)


def test_every_output_must_be_free(jobs):
    config = PredictConfig(probabilities=True)
    require_outputs_writable(jobs, config, overwrite=False)
    beside = Path(str(jobs[-1].file).replace(".nii.gz", "_probabilities.nii.gz"))
    beside.write_text("")
    with pytest.raises(OutputExistsError, match=r"_probabilities.*exists already"):
        require_outputs_writable(jobs, config, overwrite=False)
    require_outputs_writable(jobs, config, overwrite=True)
