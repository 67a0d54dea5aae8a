from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import KilledError, kill_at_rename

from brats_cli.core.compute.devices import describe
from brats_cli.core.data.finding import find_cases
from brats_cli.core.data.manifest import MANIFEST
from brats_cli.core.errors import CaseError, UnreadableFileError
from brats_cli.core.images.nifti import read_labels
from brats_cli.core.predict import batch
from brats_cli.core.predict.many import PredictionStarted, Skipped, predict
from brats_cli.core.predict.outputs import Prediction, recorded


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
    assert started == PredictionStarted(3, (model,), (describe(torch.device("cpu")),))
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


def test_maps_of_an_earlier_prediction_do_not_stay_beside_a_new_one(model, phantoms, tmp_path):
    case = find_cases(phantoms)[0].folder
    wanted = {"model": model, "device": "cpu", "output": tmp_path, "overwrite": True}
    list(predict(case, probabilities=True, uncertainty=True, **wanted))
    (tmp_path / f"{case.name}_mine.nii.gz").write_bytes(b"mine")
    list(predict(case, uncertainty_format="brats", **wanted))
    names = {path.name.removeprefix(case.name) for path in tmp_path.glob("*.nii.gz")}
    unc = {f"_unc_{part}.nii.gz" for part in ("whole", "core", "enhance")}
    assert names == {".nii.gz", "_mine.nii.gz", *unc}
    list(predict(case, **wanted))
    assert {path.name for path in tmp_path.glob("*_unc_*")} == set()


@pytest.mark.parametrize("executor", [False, True])
def test_a_kill_before_the_line_of_a_case_leaves_no_line_of_its_old_files(
    model, phantoms, tmp_path, executor
):
    cases = [case.folder for case in find_cases(phantoms)[:1]]
    wanted = {"model": model, "device": "cpu", "output": tmp_path}
    *_, done = predict(cases, labels="brats2020", **wanted)
    assert recorded(tmp_path / MANIFEST) == {done.case}
    add = batch.append_line

    def append(path, line):
        if "finished" in line:
            raise KilledError
        add(path, line)

    with ThreadPoolExecutor(1) as threads, pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "append_line", append)
        with pytest.raises(KilledError):
            list(predict(cases, overwrite=True, executor=threads if executor else None, **wanted))
    assert recorded(tmp_path / MANIFEST) == set()
    started, *again = predict(cases, skip_existing=True, **wanted)
    assert (started.cases, len(again)) == (1, 1)
    assert recorded(tmp_path / MANIFEST) == {done.case}
    (skipped, started) = predict(cases, skip_existing=True, **wanted)
    assert (type(skipped), started.cases) == (Skipped, 0)
