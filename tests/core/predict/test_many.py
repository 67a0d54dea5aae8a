import pytest
import torch

from brats_cli.core.data.finding import find_cases
from brats_cli.core.errors import CaseError, UnreadableFileError
from brats_cli.core.images.nifti import read_labels
from brats_cli.core.predict.many import PredictionStarted, Skipped, predict
from brats_cli.core.predict.outputs import Prediction


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
