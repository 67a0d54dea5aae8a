"""The examples that are programs, run on synthetic cases."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import TINY

import brats_cli
from brats_cli.core.data.phantom import write_phantoms
from brats_cli.core.model.checkpoint import Checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_python_api_leads_from_a_folder_to_scores_and_meshes(tmp_path, capsys):
    write_phantoms(tmp_path / "data", cases=9, shape=(40, 48, 36))
    network = {f"network.{key}": value for key, value in TINY["network"].items()}
    settings = {key: TINY[key] for key in TINY.keys() - {"network"}} | network
    example("python_api").main(tmp_path / "data", tmp_path / "out", device="cpu", settings=settings)
    printed = capsys.readouterr().out
    assert printed.startswith("9 cases, 0 errors\n")
    assert "epoch 1: loss " in printed
    assert "whole-tumour Dice 0." in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "splits.yaml",
        "run",
        "predictions",
        "scores.csv",
    }


# --- shell --------------------------------------------------------------------------------------

bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


class Shell:
    """Runs examples in a folder in which `brats`, `torchrun` and stubs of Slurm's programs are."""

    def __init__(self, folder):
        self.folder, self.bin = folder, folder / "bin"
        self.program("brats", 'exec "$PYTHON" -m brats_cli "$@"')
        self.program("torchrun", 'exec "$PYTHON" -m torch.distributed.run "$@"')

    def program(self, name, text):
        self.bin.mkdir(exist_ok=True)
        (self.bin / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (self.bin / name).chmod(0o755)

    def start(self, name, *words, **settings):
        return subprocess.Popen(
            ["bash", str(EXAMPLES / name), *map(str, words)],
            cwd=self.folder,
            env={
                **os.environ,
                "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
                "PYTHON": sys.executable,
                **settings,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, name, *words, status=0, **settings):
        process = self.start(name, *words, **settings)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == status, output
        return output


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Nine cases in `data`, `splits.yaml` of two folds, and settings of a tiny training."""
    folder = tmp_path_factory.mktemp("work")
    write_phantoms(folder / "data", cases=9, shape=(32, 34, 36))
    brats_cli.split(folder / "data", output=folder / "splits.yaml", folds=2)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


@pytest.fixture
def shell(work):
    return Shell(work)


TINY_ON_CPU = ("-c", "tiny.yaml", "--device", "cpu")


@pytest.fixture(scope="module")
def model(work):
    """What a job of the array of trainings makes: the run of the second fold."""
    Shell(work).run("slurm.sh", *TINY_ON_CPU, SLURM_ARRAY_TASK_ID="1")
    return work / "runs/fold1"


@bash
def test_a_slurm_array_trains_a_fold_per_job_which_resumes_when_it_is_requeued(shell, model):
    assert (model / "best.pt").is_file()
    assert not (shell.folder / "runs/fold0").exists()
    weights = (model / "last.pt").read_bytes()
    shell.run("slurm.sh", "--device", "cpu", SLURM_ARRAY_TASK_ID="1")
    assert (model / "last.pt").read_bytes() == weights  # it had been finished


@bash
def test_a_loop_leads_from_cases_to_scores_and_meshes(shell, model, tmp_path):
    shell.run("batch.sh", "data", model, tmp_path)
    predictions = sorted(path.name for path in (tmp_path / "predictions").glob("*.nii.gz"))
    cases = [path.name for path in (shell.folder / "data").iterdir() if path.is_dir()]
    assert predictions == sorted(f"{case}.nii.gz" for case in cases)
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + 3 * len(predictions)
    meshes = {path.name for path in (tmp_path / "meshes").iterdir()}
    assert meshes == {f"{case}_WT.stl" for case in cases}


@bash
def test_a_slurm_array_shares_the_cases_out(shell, model, tmp_path):
    parts = []
    for number in range(4):
        shell.run(
            *("slurm_predict.sh", "data", model, tmp_path / "out", "--device", "cpu"),
            SLURM_ARRAY_TASK_ID=str(number),
            SLURM_ARRAY_TASK_COUNT="4",
        )
        parts.append(len(list((tmp_path / "out").glob("*.nii.gz"))))
    count = sum(path.is_dir() for path in (shell.folder / "data").iterdir())
    # Case 0, 4, 8 ... go to the first job, 1, 5, 9 ... to the second.
    assert parts == [len([n for n in range(count) if n % 4 <= job]) for job in range(4)]


@bash
def test_xargs_shows_four_cases_at_a_time_and_one_bad_one_stops_no_other(shell, tmp_path):
    first, second = sorted(path for path in (shell.folder / "data").iterdir() if path.is_dir())[:2]
    shutil.copytree(first, tmp_path / "data/a case")
    shutil.copytree(second, tmp_path / "data" / second.name)
    (tmp_path / "data/empty").mkdir()
    output = shell.run("xargs.sh", tmp_path / "data", tmp_path / "out", status=123)
    assert "error: " in output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a case.png", f"{second.name}.png"}


@bash
def test_xargs_goes_on_after_a_signal_and_keeps_pictures_that_exist(shell, tmp_path):
    first, second = sorted(path for path in (shell.folder / "data").iterdir() if path.is_dir())[:2]
    for path in (first, second):
        shutil.copytree(path, tmp_path / "data" / path.name)
    words = ("xargs.sh", tmp_path / "data", tmp_path / "out")
    kills = Shell(tmp_path)  # each case that is not there yet, but for the second
    kills.program(
        "brats", f'[[ $2 == *{second.name} ]] || kill -9 $$; exec "$PYTHON" -m brats_cli "$@"'
    )
    kills.run(*words, status=123, JOBS="1")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{second.name}.png"]
    drawn = (tmp_path / "out" / f"{second.name}.png").stat().st_mtime_ns
    shell.run(*words)
    assert (tmp_path / "out" / f"{first.name}.png").is_file()
    assert (tmp_path / "out" / f"{second.name}.png").stat().st_mtime_ns == drawn


@bash
def test_a_job_of_slurm_without_a_case_has_done_its_work(shell, tmp_path):
    (tmp_path / "data/a").mkdir(parents=True)
    job = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert shell.run("slurm_predict.sh", tmp_path / "data", "runs/no", tmp_path, **job) == ""


def free_port():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return str(door.getsockname()[1])


@bash
def test_torchrun_trains_the_same_on_one_machine_and_on_two_of_slurm(shell):
    """Each machine is one agent of torchrun, on loopback; two processes in all, gloo on the CPU."""
    settings = {"HEAD": "127.0.0.1", "PET_LOCAL_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    words = ("splits.yaml", *TINY_ON_CPU, "-o")
    one = {**settings, "PORT": free_port(), "GPUS": "2"}
    shell.run("torchrun.sh", *words, "runs/one", **one)
    shell.program("scontrol", "echo 127.0.0.1; echo other")
    shell.program("srun", 'shift; "$@" & first=$!; "$@" && wait $first')  # without its option
    slurm = {
        **settings,
        "PORT": free_port(),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "BRATS_EXAMPLES": str(EXAMPLES),
    }
    shell.run("slurm_nodes.sh", *words, "runs/two", **slurm)
    # Two processes see the same patches and share gradients, on however many machines they are.
    first, second = (
        Checkpoint.load(shell.folder / "runs" / name / "last.pt").weights for name in ("one", "two")
    )
    assert first.keys() == second.keys()
    for name, weights in first.items():
        torch.testing.assert_close(second[name], weights)
