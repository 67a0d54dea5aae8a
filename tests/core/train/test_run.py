import inspect

import pytest
import torch
import yaml

import brats_cli
import brats_cli.core.data.splits
from brats_cli.commands.train import train as command
from brats_cli.core.compute.distributed import Group
from brats_cli.core.errors import ConfigError
from brats_cli.core.train import run
from brats_cli.core.train.config import TrainConfig
from brats_cli.core.train.events import (
    CasePrepared,
    CaseValidated,
    Epoch,
    FoldsFinished,
    NetworkCosts,
    Prepared,
    Preparing,
    RunFinished,
    RunStarted,
    StepDone,
)
from brats_cli.core.train.run import ProcessesNeeded
from brats_cli.core.train.thresholds import SelectionPass

IDS = [f"BraTS-GLI-0000{patient}-000" for patient in range(3)]

TINY = {
    "epochs": 1,
    "steps_per_epoch": 2,
    "patch_size": 16,
    "precision": "float32",
    "network": {"channels": 1, "levels": 2},
    "augmentation.enabled": False,
}


@pytest.fixture
def splits(phantoms, tmp_path):
    content = {
        "format": "brats-splits/1",
        "data": str(phantoms),
        "labels": "brats2023",
        "seed": 0,
        "folds": [{"train": IDS[:1], "val": IDS[1:2]}, {"train": IDS[1:2], "val": IDS[:1]}],
        "test": IDS[2:],
    }
    (tmp_path / "splits.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "splits.yaml"


def train(splits, **options):
    options = {"settings": TINY, "workers": 0, "device": "cpu"} | options
    return list(brats_cli.train(str(splits), output=splits.parent / "run", **options))


def test_the_twin_has_the_commands_parameters():
    assert list(inspect.signature(brats_cli.train).parameters) == list(
        inspect.signature(command).parameters
    )


@pytest.mark.slow
def test_the_events_of_a_run_in_their_order(splits, capsys):
    events = train(splits)
    assert [type(event) for event in events] == [
        *(Preparing, CasePrepared, CasePrepared, Prepared, RunStarted),
        *(StepDone, StepDone, CaseValidated, Epoch),
        *[SelectionPass] * 3,
        RunFinished,
    ]
    started, finished = events[4], events[-1]
    assert (started.training, started.validation, started.epochs_done) == (1, 1, 0)
    assert finished.folder == splits.parent / "run"
    assert (finished.best_epoch, finished.epochs) == (1, 1)
    assert set(finished.scores) == set(finished.decision.thresholds) == {"WT", "TC", "ET"}
    names = [path.name for path in finished.files]
    assert names == ["best.pt", "log.csv", "curves.png", "validation.csv"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_folds_look_at_each_case_once(splits, monkeypatch):
    looked, listed = [], []
    place, find = run.Store._place, brats_cli.core.data.splits.find_cases
    monkeypatch.setattr(
        run.Store, "_place", lambda store, case: looked.append(case.id) or place(store, case)
    )
    monkeypatch.setattr(
        "brats_cli.core.data.splits.find_cases", lambda data: listed.append(data) or find(data)
    )
    *_, last = train(splits, fold="all")
    assert isinstance(last, FoldsFinished)
    assert [each.folder.name for each in last.runs] == ["fold_0", "fold_1"]
    assert sorted(looked) == IDS[:2]
    assert len(listed) == 1


def test_cases_can_be_prepared_alone(splits):
    *_, last = train(splits, prepare_only=True)
    assert last == Prepared(2, splits.parent / "brats-store")
    assert not (splits.parent / "run").exists()


def test_a_summary_needs_no_data(tmp_path):
    (costs,) = brats_cli.train(tmp_path / "none.yaml", summary=True, device="cpu", settings=TINY)
    assert isinstance(costs, NetworkCosts)
    assert costs.total.parameters == sum(part.parameters for part in costs.parts)
    # Float32 weights, gradients and two moments, and what two patches keep.
    assert costs.training_bytes == 16 * costs.total.parameters + 2 * costs.total.kept_bytes


def test_leaving_the_loop_keeps_the_finished_epochs(splits):
    settings = TINY | {"epochs": 9}
    for event in brats_cli.train(
        splits, output=splits.parent / "run", settings=settings, workers=0, device="cpu"
    ):
        if isinstance(event, Epoch):
            break
    assert torch.load(splits.parent / "run" / "last.pt", weights_only=True)["epoch"] == 1


def test_several_gpus_take_several_processes(splits, monkeypatch):
    monkeypatch.setattr(run, "choose_devices", lambda *_: [torch.device("cpu")] * 2)
    with pytest.raises(ProcessesNeeded) as caught:
        train(splits, gpu="0,1")
    assert caught.value.count == 2
    assert str(caught.value) == "training on 2 GPUs takes 2 processes, and this is one"
    assert "torchrun --nproc-per-node 2" in caught.value.hint


def test_a_fold_that_is_none(splits):
    with pytest.raises(ConfigError, match="--fold some is not a fold"):
        train(splits, fold="some")


def test_the_memory_of_other_machines_is_not_counted():
    config = TrainConfig(workers=2)
    cuda = torch.device("cuda")
    alone = run._memory(config, cuda, Group(size=1, local_size=1))
    two = run._memory(config, cuda, Group(size=2, local_size=2))
    assert two == 2 * alone
    assert run._memory(config, cuda, Group(size=8, local_size=2)) == two
