import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from helpers import assert_refused, brats
from rich.console import Console

from brats_cli import console
from brats_cli.commands.train import _seconds
from brats_cli.commands.train_view import Pace
from brats_cli.core.data.phantom import write_phantoms
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.run_folder import checkpoint_paths
from brats_cli.core.train.events import Profile, RunStarted, StepDone
from brats_cli.core.train.run_record import RunRecord

IDS = [f"BraTS-GLI-0000{patient}-000" for patient in range(3)]

SETTINGS = {
    "epochs": 2,
    "steps_per_epoch": 1,
    "patch_size": 16,
    "precision": "float32",
    "workers": 0,
    "network": {"channels": 1, "levels": 2},
    "augmentation": {"enabled": False},
}


def train(*args):
    return brats("train", *args, "--device", "cpu")


def done(*args):
    result = train(*args)
    assert result.exit_code == 0, result.output
    return result


def rows(run):
    header, *lines = (run / "log.csv").read_text().splitlines()
    return [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]


def written(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with three phantom cases, their splits file and a config, and the store made."""
    folder = tmp_path_factory.mktemp("train")
    write_phantoms(folder / "data", cases=4, shape=(32, 34, 36))
    shutil.rmtree(folder / "data" / "BraTS-GLI-00000-001")
    write_split(folder / "splits.yaml")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SETTINGS))
    made = train(
        folder / "splits.yaml", "-c", folder / "tiny.yaml", "-o", folder / "made", "--epochs", 1
    )
    assert made.exit_code == 0, made.output
    told = rf"preparing 2 cases in {folder / 'brats-store'} \(once, about \d+\.\d kB\)\n"
    assert re.match(told, made.stderr)
    shutil.rmtree(folder / "made")
    return folder


def write_split(path, *, train=IDS[:1], val=IDS[1:2], test=IDS[2:], **changes):
    content = {
        "format": "brats-splits/1",
        "data": "data",
        "labels": "brats2023",
        "seed": 0,
        "grouped": True,
        "folds": [{"train": train, "val": val}],
        "test": test,
    }
    path.write_text(yaml.safe_dump(content | changes))


@pytest.fixture
def here(template, tmp_path, monkeypatch):
    """A working folder with splits.yaml and tiny.yaml; data and store are shared."""
    for name in ("data", "brats-store"):
        (tmp_path / name).symlink_to(template / name)
    for name in ("splits.yaml", "tiny.yaml"):
        shutil.copy(template / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- training ----------------------------------------------------------------------------------


def test_with_its_defaults_it_trains_on_splits_yaml_into_a_new_run(here):
    result = done("-c", "tiny.yaml", "--epochs", 1)
    latest = (here / "runs/latest").read_text().strip()
    run = here / "runs" / latest
    assert written(here / "runs") == sorted([latest, "latest"])
    made = written(run)
    (events,) = (name for name in made if name.startswith("events.out.tfevents."))
    made.remove(events)
    assert made == [
        *("best.pt", "config.yaml", "curves.png", "last.pt", "log.csv", "splits.yaml"),
        "validation.csv",
    ]
    (row,) = rows(run)
    # The result is a table of the best epoch; all else is told on stderr.
    header, line = result.stdout.splitlines()
    assert header.split() == ["run", "best", "WT", "TC", "ET", "mean", "time", "memory"]
    # Of the one validation case, by the thresholds chosen on it.
    scores = [line.split(",") for line in (run / "validation.csv").read_text().splitlines()[1:]]
    assert [case for case, *_ in scores] == IDS[1:2] * 3
    dice = [float(value) for _, _, value, _ in scores]
    dice = [f"{value:.3f}" for value in [*dice, fmean(dice)]]
    took = round(float(row["seconds"]) + float(row["validation_seconds"]))
    memory = f"{float(row['peak_memory_mb']) / 1000:.1f}"
    assert line.split() == [f"runs/{latest}", "1/1", *dice, f"0:{took:02}", memory, "GB"]
    told = result.stderr.splitlines()
    assert told[0].startswith("training on cpu (")
    assert told[0].endswith("in float32: 1 training case, 1 validation case")
    assert told[1] == f"run: runs/{latest}"
    assert told[3].split()[:2] == ["1/1", f"{float(row['loss']):.4f}"]
    assert told[3].endswith(f"% {f'0:{took:02}':>7} best")
    assert told[-3] == f"in runs/{latest}: best.pt, log.csv, curves.png, validation.csv"
    assert told[-2] == "curves: tensorboard --logdir runs"
    assert told[-1] == f"next: brats predict CASE -o seg.nii.gz --model runs/{latest}"


def test_quiet_prints_the_result_alone(here):
    args = ["-q", "train", "-c", "tiny.yaml", "--epochs", "1", "--device", "cpu"]
    result = brats(*args)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 2


def test_flags_override_the_config_file_and_that_the_defaults(here):
    done(
        "-c",
        "tiny.yaml",
        "-o",
        "run",
        "--epochs",
        1,
        "--set",
        "network.channels=2",
        "--patience",
        4,
    )
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["epochs"] == 1
    network = config["network"]
    assert (network["channels"], network["levels"], network["norm"]) == (2, 2, "batch")
    assert (config["patience"], config["patch_size"], config["batch_size"]) == (4, 16, 2)


def test_a_setting_that_also_has_a_flag_may_be_given_with_set(here):
    done("-c", "tiny.yaml", "-o", "run", "--set", "epochs=1", "--set", "patience=5")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (config["epochs"], config["patience"], len(rows(here / "run"))) == (1, 5, 1)


def test_null_turns_patience_off_on_the_command_line(here):
    done("-c", "tiny.yaml", "-o", "run", "--epochs", 1, "--set", "patience=null")
    assert yaml.safe_load(Path("run/config.yaml").read_text())["patience"] is None


def test_the_run_names_where_it_is_told_to_and_keeps_a_copy_of_its_split(here):
    done("-c", "tiny.yaml", "-o", "elsewhere/first", "--epochs", 1)
    copy = yaml.safe_load(Path("elsewhere/first/splits.yaml").read_text())
    assert copy["folds"] == [{"train": IDS[:1], "val": IDS[1:2]}]
    assert copy["test"] == IDS[2:]
    assert Path("elsewhere/first", copy["data"]).resolve() == (here / "data").resolve()
    assert not Path("runs").exists()


def test_another_fold_trains_on_other_cases(here):
    folds = [{"train": IDS[:1], "val": IDS[1:2]}, {"train": IDS[1:2], "val": IDS[:1]}]
    write_split(here / "splits.yaml", folds=folds)
    settings = ["-c", "tiny.yaml", "--epochs", 1]
    for fold in (0, 1):
        done(*settings, "-o", f"run{fold}", "--fold", fold)
    assert rows(here / "run0")[0]["loss"] != rows(here / "run1")[0]["loss"]


def test_a_tumour_learnt_in_one_year_is_labelled_as_most_cases_are(here):
    # One case of three is declared 2024's, whose labels 1 to 3 mean the same.
    labels = {IDS[0]: "brats2023", IDS[1]: "brats2024", IDS[2]: "brats2023"}
    write_split(here / "splits.yaml", train=IDS[::2], val=IDS[1:2], test=[], labels=labels)
    done("-c", "tiny.yaml", "-o", "run", "--epochs", 1, "--store", here / "store")
    content = torch.load("run/best.pt", weights_only=True)
    assert content["labels"] == "brats2023"


def test_validation_of_some_epochs_leaves_dashes_in_the_others(here):
    result = done("-c", "tiny.yaml", "-o", "run", "--set", "validate_every=2")
    first, second = (line.split() for line in result.stderr.splitlines()[3:5])
    assert (first[0], first[2:6]) == ("1/2", ["-", "-", "-", "-"])
    assert second[0] == "2/2"
    assert "-" not in second[2:6]
    assert " 2/2 " in result.stdout


def test_early_stopping_says_why(here):
    # Nothing is learnt at a rate of nearly nothing, and without a norm nothing else changes.
    settings = ("learning_rate=1e-30", "network.norm=none", "epochs=9")
    result = done(
        *("-c", "tiny.yaml", "-o", "run", "--patience", 1),
        *(word for setting in settings for word in ("--set", setting)),
    )
    assert "stopped: no better score in 1 validations" in result.stderr.splitlines()
    assert len(rows(here / "run")) == 2
    assert " 1/2 " in result.stdout


# --- resuming ----------------------------------------------------------------------------------


def weights(run):
    return torch.load(run / "last.pt", weights_only=True)["weights"]


def test_a_resumed_run_is_the_unbroken_one(here):
    done("-c", "tiny.yaml", "-o", "unbroken", "--epochs", 3)
    done("-c", "tiny.yaml", "-o", "runs/broken", "--epochs", 1)
    result = done("--resume", "--epochs", 3)  # the newest
    assert [line.split()[0] for line in result.stderr.splitlines()[3:5]] == ["2/3", "3/3"]
    broken, unbroken = here / "runs/broken", here / "unbroken"
    kept = ("epoch", "loss", "val_dice_mean", "learning_rate")
    assert [[row[name] for name in kept] for row in rows(broken)] == [
        [row[name] for name in kept] for row in rows(unbroken)
    ]
    for name, weight in weights(unbroken).items():
        assert torch.equal(weights(broken)[name], weight)
    assert yaml.safe_load((broken / "config.yaml").read_text())["epochs"] == 3


# Each kills the process, as a lack of memory or of electricity would, in its third epoch.
KILLS = {
    "at a step": """
def learn(learner, batch, number, learn=Learner._learn):
    if learner.progress.epoch == 2 and number == 2:
        kill()
    return learn(learner, batch, number)
Learner._learn = learn
""",
    "before last.pt": """
def save(checkpoint, path, save=Checkpoint.save):
    if checkpoint.epoch == 3 and path.name == "last.pt":
        kill()
    save(checkpoint, path)
Checkpoint.save = save
""",
    "within last.pt": """
def save(content, file, save=torch.save):
    save(content, file)
    if content["epoch"] == 3 and content["state"]:
        file.flush()
        (partial,) = Path("killed").glob(".*.partial.last.pt")
        os.truncate(partial, partial.stat().st_size // 2)
        kill()
torch.save = save
""",
}


FOUR = SETTINGS | {
    "epochs": 4,
    "steps_per_epoch": 3,
    "workers": 1,
    "schedule": "poly",
    "ema_decay": 0.5,
    "augmentation": {"modality_dropout": 0.3},
}


@pytest.fixture(scope="module")
def straight(template):
    """A run of four epochs that nothing interrupted."""
    (template / "four.yaml").write_text(yaml.safe_dump(FOUR))
    splits, run = template / "splits.yaml", template / "straight"
    made = train(splits, "-c", template / "four.yaml", "-o", run)
    assert made.exit_code == 0, made.output
    return run


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no such signal")
@pytest.mark.parametrize("moment", KILLS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(here, straight, moment):
    Path("four.yaml").write_text(yaml.safe_dump(FOUR))
    code = (
        "import os, signal, sys, torch\nfrom pathlib import Path\nfrom brats_cli.app import main\n"
        "from brats_cli.core.train.learner import Learner\n"
        "from brats_cli.core.model.checkpoint import Checkpoint\n"
        f"def kill(): os.kill(os.getpid(), signal.SIGKILL)\n{KILLS[moment]}\nmain()\n"
    )
    command = [sys.executable, "-c", code, "train", "-c", "four.yaml", "-o", "killed"]
    ended = subprocess.run([*command, "--device", "cpu"], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert Checkpoint.load(here / "killed/last.pt").epoch == 2
    done("-o", "killed", "--resume")
    for name in ("best.pt", "last.pt"):
        whole, killed = (Checkpoint.load(run / name) for run in (straight, here / "killed"))
        assert killed.epoch == whole.epoch
        assert killed.scores == whole.scores
        assert killed.decision == whole.decision
        for key, weight in whole.weights.items():
            assert torch.equal(killed.weights[key], weight), key
    assert [row["loss"] for row in rows(here / "killed")] == [row["loss"] for row in rows(straight)]
    files = written(here / "killed")
    assert [name for name in files if "tfevents" not in name] == [
        *("best.pt", "config.yaml", "curves.png", "last.pt", "log.csv"),
        *("splits.yaml", "validation.csv"),
    ]


def test_a_finished_run_resumes_to_its_result(here):
    first = done("-c", "tiny.yaml", "-o", "runs/a", "--epochs", 1)
    before = Path("runs/a/last.pt").read_bytes()
    again = done("-o", "runs/a", "--resume")
    assert again.stdout == first.stdout
    assert Path("runs/a/last.pt").read_bytes() == before


def test_a_run_that_ended_before_its_first_epoch_is_resumed_from_the_start(here):
    done("-c", "tiny.yaml", "-o", "run", "--epochs", 1)
    for name in ("last.pt", "best.pt", "log.csv"):
        (here / "run" / name).unlink()
    done("-o", "run", "--resume")
    assert [row["epoch"] for row in rows(here / "run")] == ["1"]


def test_a_run_of_another_fold_goes_on_with_its_own_cases(here):
    folds = [{"train": IDS[:1], "val": IDS[1:2]}, {"train": IDS[1:2], "val": IDS[:1]}]
    write_split(here / "splits.yaml", folds=folds)
    done("-c", "tiny.yaml", "-o", "unbroken", "--fold", 1)
    done("-c", "tiny.yaml", "-o", "broken", "--fold", 1, "--epochs", 1)
    done("-o", "broken", "--resume", "--epochs", 2)
    assert rows(here / "broken")[1]["loss"] == rows(here / "unbroken")[1]["loss"]


def test_there_must_be_a_run_to_resume(here):
    assert_refused(
        train("--resume"),
        f"there is no trained model in {here / 'runs'}",
        "train one with `brats train --epochs 100`",
    )
    assert_refused(
        train("-o", "none", "--resume"), "there is no run to resume in none", "without --resume"
    )


def test_a_resume_that_is_refused_leaves_the_run_as_it_was(here):
    done("-c", "tiny.yaml", "-o", "run", "--epochs", 1)
    before = Path("run/config.yaml").read_text()
    result = train("-o", "run", "--resume", "--epochs", 2, "--set", "network.channels=2")
    assert result.exit_code == 3
    assert "error: the run's network is" in result.stderr
    assert Path("run/config.yaml").read_text() == before


def test_a_run_that_was_never_validated_ends_without_a_result(here):
    # Interrupted after its first epoch, when every fifth is validated, and resumed to end there.
    done("-c", "tiny.yaml", "-o", "run", "--epochs", 1)
    (here / "run/best.pt").unlink()
    result = done("-o", "run", "--resume")
    assert result.stdout == ""
    assert "no epoch of run was validated" in result.stderr


# --- preparing ---------------------------------------------------------------------------------


@pytest.fixture
def own_data(here, template):
    """The data set as a copy, to be changed."""
    Path("data").unlink()
    shutil.copytree(template / "data", here / "data")
    return here / "data"


def test_cases_can_be_prepared_alone(here):
    result = done("-c", "tiny.yaml", "--store", "store", "--prepare-only")
    first, last = result.stderr.splitlines()
    assert re.fullmatch(r"preparing 2 cases in store \(once, about \d+\.\d kB\)", first)
    assert last == "2 cases in store"
    assert result.stdout == ""
    assert not Path("runs").exists()
    again = done("-c", "tiny.yaml", "--store", "store", "--prepare-only")
    assert again.stderr == "2 cases in store\n"


def test_preparing_alone_needs_no_device_and_no_place_for_a_run(here):
    done("-c", "tiny.yaml", "-o", "run", "--epochs", 1)
    args = ["-c", "tiny.yaml", "-o", "run", "--prepare-only", "--gpu", "99"]
    assert brats("train", *args).exit_code == 0


def test_a_case_whose_image_changed_is_prepared_again(own_data):
    settings = ("-c", "tiny.yaml", "--epochs", 1, "--store", "store")
    done(*settings, "-o", "first")
    image = own_data / IDS[0] / f"{IDS[0]}-t2w.nii.gz"
    nib.save(nib.Nifti1Image(nib.load(image).get_fdata() ** 2, np.eye(4)), image)
    for file in (own_data / IDS[0]).glob("*.nii.gz"):  # all on one grid again
        nib.save(nib.Nifti1Image(nib.load(file).get_fdata(), np.eye(4)), file)
    result = done(*settings, "-o", "second")
    assert result.stderr.startswith("preparing 1 case in store (once, about ")
    assert rows(Path("first"))[0]["loss"] != rows(Path("second"))[0]["loss"]
    assert len(written(Path("store"))) == 2


def test_a_disk_that_is_too_small_is_two_lines(here, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2000))
    result = train("-c", "tiny.yaml", "--store", "store")
    error, hint = result.stderr.splitlines()
    size = error.partition(" take about ")[2].partition(",")[0]
    assert float(size.removesuffix(" kB")) > 2
    assert result.exit_code == 3
    assert error == (
        f"error: cannot write store: 2 prepared cases take about {size}, "
        "and the disk has 2.0 kB left"
    )
    assert hint == " hint: make room, or choose another place with --store DIR"
    assert not Path("runs").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stored_case_that_was_damaged_meanwhile_is_prepared_again(here, workers):
    done("-c", "tiny.yaml", "--store", "store", "--prepare-only")
    (images,) = Path("store").glob(f"{IDS[0]}-*/images.b2nd")
    content = images.read_bytes()
    images.write_bytes(content[:300] + bytes(len(content) - 600) + content[-300:])
    result = done("-c", "tiny.yaml", "-o", "run", "--store", "store", "--workers", workers)
    assert "preparing 1 case in store" in result.stderr
    assert images.read_bytes() == content


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU 0")
def test_a_gpu_that_is_not_there(here):
    result = brats("train", "-c", "tiny.yaml", "--epochs", "1", "--gpu", "0")
    assert_refused(result, "this machine has no GPU 0 (CUDA devices found: 0)", "use --device cpu")
    assert not Path("runs").exists()


def test_a_misspelt_setting_in_the_config_file(here):
    Path("wrong.yaml").write_text("learning_rat: 0.1\n")
    assert_refused(
        train("-c", "wrong.yaml"),
        "unknown setting 'learning_rat' in wrong.yaml",
        "did you mean 'learning_rate'?",
    )


def test_a_misspelt_setting_on_the_command_line(here):
    assert_refused(
        train("--set", "network.chanels=4"),
        "unknown setting 'network.chanels'",
        "did you mean 'channels'?",
    )


def test_a_setting_without_a_value(here):
    assert_refused(train("--set", "epochs"), "--set epochs is not KEY=VALUE", "network.channels=16")


def test_a_value_out_of_range(here):
    result = train("-c", "tiny.yaml", "--epochs", 0)
    assert_refused(
        result, "setting 'epochs' in tiny.yaml cannot be 0", "greater than or equal to 1"
    )


def test_a_patch_that_does_not_fit(here):
    assert_refused(
        train("-c", "tiny.yaml", "--set", "patch_size=17"),
        "a patch of 17 voxels does not fit a network of 2 levels with padding: same and "
        "norm: batch",
        "try a patch_size of 18",
    )


def test_an_existing_run_is_kept_unless_asked(here):
    done("-c", "tiny.yaml", "-o", "run", "--epochs", 1)
    before = Path("run/last.pt").read_bytes()
    assert_refused(
        train("-c", "tiny.yaml", "-o", "run"), "run/log.csv exists already", "--overwrite"
    )
    assert Path("run/last.pt").read_bytes() == before
    done("-c", "tiny.yaml", "-o", "run", "--epochs", 2, "--overwrite")
    assert [row["epoch"] for row in rows(here / "run")] == ["1", "2"]


def test_without_a_splits_file(here):
    Path("splits.yaml").unlink()
    assert_refused(
        train("-c", "tiny.yaml"),
        "cannot read splits.yaml: there is no such file",
        "brats split DATA",
    )


def test_a_fold_that_is_not_there(here):
    result = train("-c", "tiny.yaml", "--fold", 3)
    assert_refused(result, "there is no fold 3: the split has 1", "--fold 0 to 0")


def test_a_case_that_is_not_there(here):
    write_split(here / "splits.yaml", train=["BraTS-GLI-00009-000"])
    result = train("-c", "tiny.yaml")
    assert_refused(
        result, f"splits.yaml: case BraTS-GLI-00009-000 is not in {here / 'data'}", "brats split"
    )


def test_a_damaged_case_is_named_and_no_run_is_left(own_data):
    broken = own_data / IDS[1] / f"{IDS[1]}-t1n.nii.gz"
    broken.write_bytes(broken.read_bytes()[:2000])
    result = train("-c", "tiny.yaml", "--store", "store")
    assert result.exit_code == 3
    told, error, hint = result.stderr.splitlines()
    assert told.startswith("preparing 2 cases in store (once, about ")
    assert error == f"error: cannot read {broken}: it is cut short"
    assert "copy or download it again" in hint
    assert not Path("runs").exists()


def test_help_shows_the_missions_line():
    result = brats("train", "--help")
    assert "Example: brats train --epochs 100 --gpu 0" in result.stdout


# --- what holds it up --------------------------------------------------------------------------


def test_a_profile_is_one_line_and_leaves_no_run(here):
    result = train("-c", "tiny.yaml", "--profile")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    assert re.match(r"the (network is|data are) the bottleneck: \d+ % of the time is spent", line)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("wait", "said"),
    [(9.9, "the network is the bottleneck"), (10.0, "the data are the bottleneck: 10 %")],
)
def test_waiting_for_a_tenth_of_the_time_is_too_much(here, monkeypatch, wait, said):
    monkeypatch.setattr(
        "brats_cli.core.train.training.profile",
        lambda *_: Profile(wait, patches_per_second=7.5, workers=1, cpus=1),
    )
    result = train("-c", "tiny.yaml", "--profile")
    assert result.stdout.startswith(said)
    assert "at 7.5 patches/s" in result.stdout


@pytest.mark.parametrize(
    ("device", "precision", "advice"),
    [
        ("cpu", "float32", "a GPU, precision=bfloat16, fewer network.channels"),
        ("cuda", "float32", "precision=bfloat16, fewer network.channels"),
        ("cuda", "bfloat16", "fewer network.channels"),
    ],
)
def test_who_has_something_is_not_advised_to_take_it(here, monkeypatch, device, precision, advice):
    monkeypatch.setattr(
        "brats_cli.core.train.training.profile",
        lambda *_: Profile(1, 7.5, workers=1, cpus=1, device=device, precision=precision),
    )
    line = train("-c", "tiny.yaml", "--profile").stdout
    assert line.endswith(f"; faster with {advice} or a smaller patch_size\n")


def test_ctrl_c_tells_how_to_go_on(here, monkeypatch):
    record = RunRecord.record

    def record_and_interrupt(run, epoch):
        record(run, epoch)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunRecord, "record", record_and_interrupt)
    result = train("-c", "tiny.yaml", "-o", "run")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-2:] == [
        "stopped; the finished epochs are saved in last.pt",
        "resume with: brats train -o run --device cpu --resume",
    ]
    assert Path("run/last.pt").is_file()


# --- other networks ----------------------------------------------------------------------------


def test_a_summary_needs_no_data_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SETTINGS))
    result = done("--summary", "-c", "tiny.yaml")
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["part", "output", "parameters", "GFLOP", "MB", "kept"]
    parts = [line.split()[0] for line in lines]
    assert parts == ["down.0", "down.1", "up.0", "merge.0", "output", "total"]
    # Of 4 modalities 1, 1: 27*(4+1), and 2*2 numbers of batch norm; from 1 to 2, 2: 27*(2+4) and
    # 2*4; up-convolution 8*2 and 1; 2, 1, 1: 27*(2+1) and 2*2; three regions: 3 and 3. Around each
    # pair of convolutions one of 1x1x1 and batch norm: 4 * 1 + 2, 1 * 2 + 4 and 2 * 1 + 2.
    parameters = [27 * 5 + 4 + 6, 27 * 6 + 8 + 6, 17, 27 * 3 + 4 + 4, 6]
    counts = [int(line.split()[-3].replace(",", "")) for line in lines]
    assert counts == [*parameters, sum(parameters)]
    assert lines[0].split()[1:8] == ["1", "x", "16", "x", "16", "x", "16"]
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "(a\nmultiplication and an addition are two operations;" in result.stderr
    assert written(tmp_path) == ["tiny.yaml"]


def test_the_summary_of_the_classic_network_fits_a_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = done("--summary", "--set", "network=classic", "--set", "network.padding=same")
    assert max(map(len, result.stdout.splitlines())) <= 80
    # The first level at 128^3 voxels: 2 * 27 * (4 * 64 + 64 * 64) operations a voxel.
    first = result.stdout.splitlines()[1].split()
    assert first[-2] == f"{2 * 27 * (4 * 64 + 64 * 64) * 128**3 / 1e9:.1f}"


def test_a_network_that_cannot_be_is_told_before_anything_is_prepared(here):
    (here / "brats-store").unlink()
    pytest.importorskip("monai", reason="MONAI is not installed")
    result = train("-c", "tiny.yaml", "-o", "run", "--set", "network=monai/SegResNett")
    assert_refused(result, "MONAI has no segmentation network 'SegResNett'", "monai/SegResNet'")
    assert not (here / "brats-store").exists()
    assert not (here / "run").exists()


def test_a_network_of_monai_trains_and_resumes(here):
    pytest.importorskip("monai", reason="MONAI is not installed")
    options = ("--set", "network=monai/UNet", "--set", "network.options.channels=[2, 4]")
    strides = ("--set", "network.options.strides=[2]")
    done("-c", "tiny.yaml", "-o", "run", "--epochs", 1, *options, *strides)
    resolved = yaml.safe_load((here / "run/config.yaml").read_text())["network"]
    assert resolved == {"name": "monai/UNet", "options": {"channels": [2, 4], "strides": [2]}}
    done("-o", "run", "--resume", "--epochs", 2)
    assert [row["epoch"] for row in rows(here / "run")] == ["1", "2"]
    assert RunRecord(here / "run").resume().network().config.multiple == 2


def test_deep_supervision_trains(here):
    variant = {"channels": 1, "levels": 4, "deep_supervision": True, "residual": True}
    (here / "tiny.yaml").write_text(yaml.safe_dump(SETTINGS | {"network": variant}))
    done("-c", "tiny.yaml", "-o", "run", "--epochs", 1, "--set", "loss=dice_focal")
    # Dice of regions that are hardly learnt is near 1, and focal loss below.
    assert 0 < float(rows(here / "run")[0]["loss"]) < 2


def test_a_run_of_before_there_were_these_settings_resumes(here):
    plain = ("--set", "network.residual=false")  # there were no residual blocks
    done("-c", "tiny.yaml", "-o", "run", "--epochs", 1, *plain)
    content = torch.load(here / "run/last.pt", weights_only=True)
    older = ("channels", "levels", "norm", "padding")
    content["config"]["network"] = {name: content["config"]["network"][name] for name in older}
    torch.save(content, here / "run/last.pt")
    (here / "run/config.yaml").write_text(yaml.safe_dump(content["config"]))
    done("-o", "run", "--resume", "--epochs", 2)
    assert [row["epoch"] for row in rows(here / "run")] == ["1", "2"]
    # It is plain still, and no new file of settings makes it another.
    assert not RunRecord(here / "run").resume().config["network"]["residual"]
    with pytest.raises(AssertionError, match="the run's network is"):
        done("-c", "tiny.yaml", "-o", "run", "--resume", "--epochs", 3)


def test_more_epochs_are_noted_as_soon_as_the_run_goes_on(here, monkeypatch):
    done("-c", "tiny.yaml", "-o", "run", "--epochs", 1)

    def interrupt(pace, step):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Pace, "step", interrupt)
        assert train("-o", "run", "--resume", "--epochs", 2).exit_code == 130
    done("-o", "run", "--resume")  # as the interrupted command said
    assert [row["epoch"] for row in rows(here / "run")] == ["1", "2"]


def test_the_command_to_go_on_has_what_the_runs_files_do_not_say(here, monkeypatch):
    def interrupt(run, epoch):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunRecord, "record", interrupt)
    Path("a b").mkdir()
    shutil.move("splits.yaml", "a b/splits.yaml")
    (here / "a b" / "data").symlink_to(here / "data")
    result = train("a b/splits.yaml", "-c", "tiny.yaml", "-o", "run", "--store", "brats-store")
    words = "train 'a b/splits.yaml' -o run --store brats-store --device cpu --resume"
    assert result.stderr.splitlines()[-1] == f"start again with: brats {words}"
    monkeypatch.undo()
    monkeypatch.chdir(here)
    done(*shlex.split(words)[1:-3], "--resume")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_training_that_is_told_to_stop_ends_within_seconds(here, stop, epoch):
    # The first epoch would take hours; each of the others a moment.
    settings = {"epochs": 9999, "steps_per_epoch": 10**6 if epoch == 1 else 1, "workers": 1}
    Path("long.yaml").write_text(yaml.safe_dump(SETTINGS | settings))
    command = [sys.executable, "-c", "from brats_cli.app import main; main()", "train"]
    with subprocess.Popen(
        [*command, "-c", "long.yaml", "-o", "run", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        # The line before the first epoch, or the rows of two.
        awaited = "run:" if epoch == 1 else "2/9999"
        while (line := running.stderr.readline()).split()[:1] != [awaited]:
            assert line, "it ended by itself"
        time.sleep(1)
        asked = time.monotonic()
        # As the terminal does with Ctrl-C, and a batch system with SIGTERM: to all of them.
        os.killpg(running.pid, stop)
        stdout, stderr = running.communicate(timeout=60)
        took = time.monotonic() - asked
    assert (running.returncode, stdout) == (128 + stop, "")
    assert took < 30  # a second or two of computing, on a machine that may have others to serve
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)  # nobody is left of them
    *rows_told, kept, command = stderr.splitlines()
    assert all("best" in row or re.fullmatch(r".*\d+%\s+\d+:\d+", row) for row in rows_told[1:])
    assert command.endswith("with: brats train -o run --device cpu --resume")
    files = {path.name for path in Path("run").iterdir() if "tfevents" not in path.name}
    if epoch == 1:
        assert kept == "stopped during the first epoch; nothing was saved"
        assert files == {"config.yaml", "splits.yaml"}
    else:
        assert kept == "stopped; the finished epochs are saved in last.pt"
        assert files - {"curves.png"} == {
            *("best.pt", "config.yaml", "last.pt", "log.csv", "splits.yaml"),
        }
        saved = torch.load("run/last.pt", weights_only=True)["epoch"]
        assert len(rows(here / "run")) - 1 <= saved <= len(rows(here / "run"))


@pytest.mark.parametrize(
    ("stop", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_stop_while_an_epoch_is_written_waits_for_its_files(here, monkeypatch, stop, status):
    record = RunRecord.record

    def stopped_and_record(run, epoch):
        signal.raise_signal(stop)
        record(run, epoch)

    monkeypatch.setattr(RunRecord, "record", stopped_and_record)
    before = signal.getsignal(stop)
    assert train("-c", "tiny.yaml", "-o", "run").exit_code == status
    assert torch.load("run/last.pt", weights_only=True)["epoch"] == 1
    assert Path("run/curves.png").is_file()
    assert signal.getsignal(stop) is before


class Cleared:
    """Something at whose end a stop is asked for; Python drops what is raised there."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_python_dropped_is_not_lost(here, monkeypatch):
    def augment_and_stop(images, labels, *_):
        Cleared()
        return images.float(), labels

    monkeypatch.setattr("brats_cli.core.train.learner.augment", augment_and_stop)
    assert train("-c", "tiny.yaml", "-o", "run").exit_code == 143
    assert written(here / "run") == ["config.yaml", "splits.yaml"]


# --- on a terminal -----------------------------------------------------------------------------


class Screen(io.StringIO):
    """A terminal that keeps what it is sent."""

    def isatty(self):
        return True


@pytest.fixture
def screen(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(
        console, "_stderr", Console(file=screen, force_terminal=True, width=80, height=24)
    )
    return screen


def test_on_a_terminal_a_line_tells_what_is_done_of_the_epoch(here, screen):
    done("-c", "tiny.yaml", "-o", "run", "--set", "steps_per_epoch=3")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    shown = [line.strip() for line in re.split(r"[\r\n]+", text)]
    assert max(map(len, shown)) < 80
    assert any(re.match(r"1/2 .* validated 1/1  0:00 left, run 0:0\d$", line) for line in shown)


def test_the_line_tells_the_time_that_is_left_by_hand(monkeypatch):
    shown, clock = [], iter([100.0, 102.0, 104.0, 104.0])
    monkeypatch.setattr(console, "is_live", lambda: True)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    run = RunStarted(
        folder=Path("run"),
        device="cpu",
        processes=1,
        dtype="float32",
        training=9,
        validation=4,
        validation_in_all=9,
        epochs=12,
        epochs_done=9,
        steps_per_epoch=100,
    )
    pace = Pace(run, lambda *told: shown.append(told))
    for step in (1, 2, 3):
        pace.step(StepDone(step, 100, torch.tensor(0.5)))
    # Two steps in four seconds: 97 more are 194 s, and two whole epochs after it 400 s.
    assert shown[-1] == ("  10/12", 0.03, "3/100  loss 0.5000  3:14 left, run 9:54")
    pace.next(SimpleNamespace(number=10, validation_seconds=40.0, stops=False))
    # Two epochs of 200 s and 40 s of validation.
    assert shown[-1][:2] == ("  11/12", 0)
    assert shown[-1][2].endswith("4:00 left, run 8:00")
    pace.case()
    assert shown[-1][1:] == (0.25, "validated 1/4  0:30 left, run 4:30")


# --- in time, all folds, several processes -----------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("1h1m1s", 3661)]
)
def test_times_are_read(text, seconds):
    assert _seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 h", "30m1h", "-1h"])
def test_what_is_no_time_is_wrong_usage(here, text):
    result = train("-c", "tiny.yaml", "--max-time", text)
    assert result.exit_code == 2
    assert "write 2h, 90m or 1h30m" in " ".join(result.output.split())


def test_a_training_whose_time_is_up_says_so_and_can_go_on(here):
    result = done("-c", "tiny.yaml", "-o", "run", "--epochs", 2, "--max-time", "0s")
    assert "stopped: the time is up" in result.stderr.splitlines()
    assert len(rows(here / "run")) == 1
    done("-o", "run", "--resume")
    assert len(rows(here / "run")) == 2


def test_without_validation_cases_the_last_epoch_is_kept(here):
    content = yaml.safe_load((here / "splits.yaml").read_text())
    for fold in content["folds"]:
        fold["train"] += fold.pop("val")
        fold["val"] = []
    (here / "splits.yaml").write_text(yaml.safe_dump(content))
    # From the second step on, the time that is left can be told.
    done("-c", "tiny.yaml", "-o", "run", "--epochs", 2, "--set", "steps_per_epoch=3")
    assert [row["is_best"] for row in rows(here / "run")] == ["1", "1"]
    best, last = (Checkpoint.load(here / f"run/{name}.pt") for name in ("best", "last"))
    assert best.epoch == last.epoch == 2


def test_the_end_of_a_run_chooses_thresholds_and_scores_each_case(here):
    result = done("-c", "tiny.yaml", "-o", "run", "--epochs", 1)
    best = Checkpoint.load(here / "run/best.pt")
    assert set(best.decision.thresholds) == {"WT", "TC", "ET"}
    assert "thresholds: WT " in result.stderr
    lines = (here / "run/validation.csv").read_text().splitlines()
    assert lines[0] == "case,region,dice,hausdorff95_mm"
    whole = [float(line.split(",")[2]) for line in lines[1:] if ",WT," in line]
    assert best.scores["WT"] == pytest.approx(sum(whole) / len(whole), abs=1e-6)


def test_all_folds_are_trained_and_told_together_and_predict_as_one(here):
    folds = [{"train": IDS[:1], "val": IDS[1:2]}, {"train": IDS[1:2], "val": IDS[:1]}]
    write_split(here / "splits.yaml", folds=folds)
    result = done("-c", "tiny.yaml", "-o", "runs/all", "--epochs", 1, "--fold", "all")
    count = len(folds)
    names = [f"fold_{number}" for number in range(count)]
    assert written(here / "runs/all") == names
    table = result.stdout.splitlines()[-count - 3 :]
    assert [line.split()[0] for line in table] == ["fold", *names, "mean", "sd"]
    whole = [Checkpoint.load(here / f"runs/all/{name}/best.pt").scores["WT"] for name in names]
    assert float(table[-2].split()[1]) == pytest.approx(fmean(whole), abs=6e-4)
    assert float(table[-1].split()[1]) == pytest.approx(stdev(whole), abs=6e-4)
    every = tuple(here / f"runs/all/{name}/best.pt" for name in names)
    assert checkpoint_paths(here / "runs/all") == every
    assert (here / "runs/latest").read_text() == "all/fold_1\n"
    # What is finished is left, what is missing is made.
    shutil.rmtree(here / "runs/all/fold_1")
    before = (here / "runs/all/fold_0/best.pt").stat().st_mtime_ns
    done("-o", "runs/all", "--fold", "all", "--resume")  # as a stopped run says, without settings
    assert (here / "runs/all/fold_1/best.pt").is_file()
    settings = [(here / f"runs/all/{name}/config.yaml").read_text() for name in names]
    assert settings[0] == settings[1]
    assert (here / "runs/all/fold_0/best.pt").stat().st_mtime_ns == before


def test_a_fold_that_is_no_number(here):
    result = train("-c", "tiny.yaml", "--fold", "some")
    assert result.exit_code == 3
    assert "error: --fold some is not a fold" in result.stderr


def with_two_devices(*args):
    """`brats train` on a machine of two devices that both are its CPU."""
    code = (
        "import sys, torch\nfrom brats_cli.app import main\n"
        "from brats_cli.core.compute import devices\n"
        "devices.choose_devices = lambda *_: [torch.device('cpu')] * 2\nmain()\n"
    )
    command = [sys.executable, "-c", code, "train", *args, "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_several_gpus_are_several_processes(here):
    ran = with_two_devices("-c", "tiny.yaml", "-o", "run")
    assert ran.returncode == 0, ran.stderr
    assert [row["epoch"] for row in rows(here / "run")] == ["1", "2"]
    assert len(ran.stdout.splitlines()) == 2  # one of the two prints the result
    assert " and 1 more in float32: 1 training case, 1 validation case" in ran.stderr


def test_what_several_processes_meet_is_told_once(own_data):
    broken = own_data / IDS[1] / f"{IDS[1]}-t1n.nii.gz"
    broken.write_bytes(broken.read_bytes()[:2000])
    ran = with_two_devices("-c", "tiny.yaml", "--store", "store")
    assert ran.returncode == 3
    told, error, hint = ran.stderr.splitlines()
    assert told.startswith("preparing 2 cases in store")
    assert error == f"error: cannot read {broken}: it is cut short"
    assert "copy or download it again" in hint


def test_two_processes_learn_what_one_learns_with_twice_the_batch(here):
    settings = SETTINGS | {
        "loss": "dice_ce",
        "augmentation": {"enabled": False},
        "network": {"channels": 2, "levels": 2, "norm": "none"},
        "epochs": 1,
        "workers": 0,
        "precision": "float32",
    }
    (here / "one.yaml").write_text(yaml.safe_dump(settings | {"batch_size": 4}))
    (here / "two.yaml").write_text(yaml.safe_dump(settings | {"batch_size": 2}))
    done("-c", "one.yaml", "-o", "one", "--device", "cpu")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "brats_cli", "train", "-c", "two.yaml", "-o", "two", "--device", "cpu"),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    assert len(rows(here / "two")) == 1
    one, two = (Checkpoint.load(here / f"{name}/last.pt") for name in ("one", "two"))
    for name, weight in one.weights.items():
        torch.testing.assert_close(two.weights[name], weight, atol=1e-4, rtol=0)
    (alone,), (together,) = rows(here / "one"), rows(here / "two")
    assert float(together["loss"]) == pytest.approx(float(alone["loss"]), abs=1e-4)
    assert together["val_dice_WT"] == alone["val_dice_WT"]
    assert ran.stdout.count("run ") == 1  # one of the two prints the result
