import csv
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from brats_cli.core.data.labels import SCHEMES
from brats_cli.core.data.splits import Fold, Split
from brats_cli.core.errors import OutputError
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.network import UNet3D
from brats_cli.core.train.config import TrainConfig, load_config
from brats_cli.core.train.events import Epoch
from brats_cli.core.train.figures import Preview
from brats_cli.core.train.run_record import COLUMNS, Board, RunRecord

CONFIG = TrainConfig(patch_size=8, network=UNetConfig(channels=1, levels=2))
WEIGHTS = UNet3D(CONFIG.network, in_channels=4, out_channels=3).state_dict()


@pytest.fixture(autouse=True)
def _work_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def split(tmp_path):
    return Split(tmp_path / "data", SCHEMES["brats2023"], 0, (Fold(("a",), ("b",)),), ("c",))


def epoch(number, dice=0.5, *, is_best=True):
    """An epoch as `train` yields it; `dice` is that of every region, or None."""
    scores = None if dice is None else dict.fromkeys(("WT", "TC", "ET"), dice)
    checkpoint = Checkpoint(
        weights={name: torch.full_like(value, number) for name, value in WEIGHTS.items()},
        config=CONFIG.model_dump(mode="json"),
        labels="brats2023",
        epoch=number,
        scores=scores or {},
        state={"progress": {"epoch": number}},
    )
    return Epoch(
        number=number,
        loss=0.25,
        dice=scores,
        is_best=is_best,
        learning_rate=3e-4,
        seconds=12.5,
        validation_seconds=2.5,
        data_wait_percent=1.26,
        patches_per_second=40.5,
        peak_memory_mb=1234.4,
        stops=False,
        checkpoint=checkpoint,
    )


def recorded(run, *epochs):
    for each in epochs:
        run.record(each)
    return run


# --- the log and the checkpoints ---------------------------------------------------------------


def test_an_epoch_is_a_row_of_the_log(tmp_path):
    run = recorded(RunRecord(tmp_path), replace(epoch(1), dice={"WT": 0.9, "TC": 0.75, "ET": 0.6}))
    header, row = run.log.read_text().splitlines()
    assert header == (
        "epoch,loss,val_dice_WT,val_dice_TC,val_dice_ET,val_dice_mean,is_best,learning_rate,"
        "seconds,validation_seconds,data_wait_percent,patches_per_second,peak_memory_mb"
    )
    # The mean of 0.9, 0.75 and 0.6 is 0.75.
    assert (
        row == "1,0.250000,0.900000,0.750000,0.600000,0.750000,1,0.0003,12.50,2.50,1.3,40.50,1234"
    )


def test_an_epoch_that_was_not_validated_has_no_scores_in_its_row(tmp_path):
    (row,) = recorded(RunRecord(tmp_path), epoch(1, None, is_best=False)).rows()
    assert [row[name] for name in COLUMNS[2:7]] == ["", "", "", "", "0"]


def test_the_last_checkpoint_follows_and_the_best_stays(tmp_path):
    run = recorded(RunRecord(tmp_path), epoch(1), epoch(2, 0.4, is_best=False))
    last, best = Checkpoint.load(run.last), Checkpoint.load(run.best)
    assert (last.epoch, best.epoch) == (2, 1)
    # Only the last can be resumed; the best is for `predict`, at a third of the size.
    assert last.state == {"progress": {"epoch": 2}}
    assert best.state is None
    assert [int(row["epoch"]) for row in run.rows()] == [1, 2]


def test_rows_of_epochs_that_are_trained_again_are_replaced(tmp_path):
    # Interrupted after epoch 3 was logged and before its last.pt: it is trained again.
    run = recorded(RunRecord(tmp_path), epoch(1, 0.1), epoch(2, 0.2), epoch(3, 0.3))
    recorded(run, epoch(2, 0.4))
    assert [(row["epoch"], row["val_dice_mean"]) for row in run.rows()] == [
        ("1", "0.100000"),
        ("2", "0.400000"),
    ]


def test_a_log_of_another_version_goes_on_with_the_columns_of_both(tmp_path):
    run = RunRecord(tmp_path)
    old = [name for name in COLUMNS if name != "peak_memory_mb"] + ["mood"]
    run.log.write_text(f"{','.join(old)}\n1,0.5,0.1,0.2,0.3,0.2,1,0.001,9,1,2,3,good\n")
    first, second = recorded(run, epoch(2)).rows()
    assert list(first) == [*COLUMNS, "mood"]
    assert (first["loss"], first["peak_memory_mb"], first["mood"]) == ("0.5", "", "good")
    assert (second["epoch"], second["peak_memory_mb"], second["mood"]) == ("2", "1234", "")


def test_the_curves_are_drawn_again_with_every_epoch(tmp_path):
    run = recorded(RunRecord(tmp_path), epoch(1))
    first = run.curves.read_bytes()
    recorded(run, epoch(2, 0.7))
    assert first[:4] == run.curves.read_bytes()[:4] == b"\x89PNG"
    assert run.curves.read_bytes() != first


def test_an_epoch_is_safe_before_its_curves_are_drawn(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("brats_cli.core.train.run_record.draw_curves", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RunRecord(tmp_path).record(epoch(1))
    assert Checkpoint.load(tmp_path / "last.pt").epoch == 1


def test_the_log_is_whole_if_writing_it_fails(tmp_path, monkeypatch):
    run = recorded(RunRecord(tmp_path), epoch(1))
    before = run.log.read_text()
    monkeypatch.setattr(csv.DictWriter, "writerows", lambda *rows: (_ for _ in ()).throw(OSError))
    with pytest.raises(OutputError, match=r"cannot write .*log\.csv"):
        run.record(epoch(2))
    assert run.log.read_text() == before
    assert Checkpoint.load(run.last).epoch == 1


def test_a_run_without_epochs_has_no_rows_and_nothing_to_resume_from(tmp_path):
    assert RunRecord(tmp_path).rows() == []
    assert RunRecord(tmp_path).resume() is None


def test_a_run_is_resumed_from_its_last_checkpoint(tmp_path):
    run = recorded(RunRecord(tmp_path), epoch(1), epoch(2, is_best=False))
    assert run.resume().epoch == 2


# --- starting ----------------------------------------------------------------------------------


def test_a_run_starts_with_its_config_and_its_split(tmp_path, split):
    run = RunRecord(tmp_path / "elsewhere" / "first")
    run.start(CONFIG, split)
    assert load_config(run.config) == CONFIG
    written = run.splits.read_text()
    assert "train:\n  - a\n" in written
    assert "data: ../../data\n" in written  # relative to the copy, not to the original
    assert not Path("runs").exists()


def test_the_run_started_last_is_the_newest(split):
    for name in ("b", "a"):
        RunRecord(Path("runs") / name).start(CONFIG, split)
    assert Path("runs/latest").read_text() == "a\n"
    assert RunRecord.newest() == RunRecord(Path("runs/a"))


def test_starting_again_clears_what_was_there(split):
    run = recorded(RunRecord(Path("runs/a")), epoch(1))
    board = Board(run)
    board.add(epoch(1))
    run.start(CONFIG, split)
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.yaml", "splits.yaml"]


# --- TensorBoard -------------------------------------------------------------------------------


def shown_by_tensorboard(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={"images": 0})
        return events.Reload()


def scalars(folder, name):
    return [(event.step, event.value) for event in shown_by_tensorboard(folder).Scalars(name)]


def test_tensorboard_shows_an_epochs_numbers(tmp_path):
    dice = {"WT": 0.75, "TC": 0.5, "ET": 0.25}
    board = Board(RunRecord(tmp_path))
    board.add(replace(epoch(1), dice=dice))
    board.add(epoch(2, None))
    assert scalars(tmp_path, "loss") == [(1, 0.25), (2, 0.25)]
    for region, value in dice.items():
        assert scalars(tmp_path, f"dice/{region}") == [(1, value)]
    assert scalars(tmp_path, "dice/mean") == [(1, 0.5)]
    assert scalars(tmp_path, "speed/patches_per_second") == [(1, 40.5), (2, 40.5)]
    assert scalars(tmp_path, "learning_rate")[0] == pytest.approx((1, 3e-4))
    assert scalars(tmp_path, "speed/data_wait_percent")[0] == pytest.approx((1, 1.26))
    assert scalars(tmp_path, "memory/peak_mb")[0] == pytest.approx((1, 1234.4))


def test_tensorboard_shows_the_preview_of_a_validated_epoch(tmp_path):
    masks = np.zeros((3, 20, 20), dtype=bool)
    preview = Preview("case", np.ones((20, 20), np.float32), masks, masks)
    board = Board(RunRecord(tmp_path))
    board.add(epoch(1, None))
    board.add(replace(epoch(2), preview=preview))
    (image,) = shown_by_tensorboard(tmp_path).Images("preview")
    high, wide, _ = preview.draw().shape
    assert (image.step, image.height, image.width) == (2, high, wide)


def test_a_resumed_run_has_each_epoch_once_in_tensorboard(tmp_path):
    board = Board(RunRecord(tmp_path))
    for number in (1, 2, 3):
        board.add(replace(epoch(number), loss=1.0))
    board = Board(RunRecord(tmp_path))  # epoch 3 was not saved
    for number in (3, 4):
        board.add(replace(epoch(number), loss=0.5))
    assert scalars(tmp_path, "loss") == [(1, 1), (2, 1), (3, 0.5), (4, 0.5)]


def test_a_board_that_is_given_nothing_writes_nothing(tmp_path):
    Board(RunRecord(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_events_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        Board(RunRecord(tmp_path / "file")).add(epoch(1))
