"""A real Dask scheduler and its workers on this machine, which are killed half way."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_refused, brats

import brats_cli
from brats_cli.core.compute import cluster as connecting
from brats_cli.core.compute import executors
from brats_cli.core.compute.executors import in_order
from brats_cli.core.errors import BratsError
from brats_cli.core.model.checkpoint import Checkpoint
from brats_cli.core.model.config import UNetConfig
from brats_cli.core.model.network import UNet3D
from brats_cli.core.train.config import TrainConfig

distributed = pytest.importorskip("distributed", reason="needs the extra cluster: distributed")


class Cluster:
    """A scheduler on this machine, and workers that a test starts and kills."""

    def __init__(self, folder):
        self.folder, self.workers = folder, []
        place = folder / "scheduler.json"
        self.scheduler = self.start(
            "dask_scheduler", "--port", "0", "--no-show", "--scheduler-file", place
        )
        until = time.monotonic() + 60
        while not (place.is_file() and place.stat().st_size):
            assert time.monotonic() < until, self.log()
            time.sleep(0.05)
        self.address = json.loads(place.read_text())["address"]

    def start(self, program, *words, path=None):
        settings = {
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
            # By default, the scheduler waits a minute for results that lie on a dead worker.
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s",
        }
        if path:
            settings["PYTHONPATH"] = f"{path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", f"distributed.cli.{program}", *map(str, words)),
                    *("--host", "127.0.0.1", "--no-dashboard"),
                ],
                cwd=self.folder,
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
            )

    def log(self):
        return (self.folder / "log").read_text()

    def add_workers(self, count=2, *, threads=1, path=None, restarted=False):
        started = [
            self.start(
                "dask_worker",
                self.address,
                *("--nthreads", threads, "--nanny" if restarted else "--no-nanny"),
                path=path,
            )
            for _ in range(count)
        ]
        self.workers += started
        with self.client() as client:
            client.wait_for_workers(count, timeout=60)

    def client(self):
        return distributed.Client(self.address, set_as_default=False)

    def kill_a_worker(self):
        worker = self.workers.pop()
        worker.kill()
        worker.wait(30)

    def end(self):
        for process in (*self.workers, self.scheduler):
            process.terminate()  # a nanny ends its worker
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


@pytest.fixture
def cluster(tmp_path):
    folder = tmp_path / "cluster"
    folder.mkdir()
    started = Cluster(folder)
    yield started
    started.end()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint whose random weights make some labels of any scan."""
    config = TrainConfig(
        patch_size=16, precision="float32", network=UNetConfig(channels=2, levels=2)
    )
    torch.manual_seed(0)
    weights = UNet3D(config.network, in_channels=4, out_channels=3).state_dict()
    path = tmp_path_factory.mktemp("model") / "best.pt"
    Checkpoint(weights, config.model_dump(mode="json"), "brats2023", 1, {}).save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve synthetic cases, and predictions of them: the labels of the case before each."""
    from brats_cli.core.data.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("cases")
    write_phantoms(folder / "data", cases=12, shape=(40, 48, 36))
    labels = sorted((folder / "data").glob("*/*seg.nii.gz"))
    (folder / "predictions").mkdir()
    for own, other in zip(labels, labels[-1:] + labels[:-1], strict=True):
        (folder / "predictions" / own.name).write_bytes(other.read_bytes())
    return folder


def contents(folder, pattern="*"):
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def killing_at(count, kill):
    """A progress callback that kills something once, when so many cases are done."""
    killed = []

    def on_progress(*progress):
        done = next(each for each in reversed(progress) if isinstance(each, int))
        if done >= count and not killed:
            killed.append(done)
            kill()

    return killed, on_progress


# --- equal results, and a worker that is killed half way ------------------------------------------


def test_evaluate_with_a_worker_killed_half_way_gives_the_files_of_the_pool(
    cluster, data, tmp_path
):
    cluster.add_workers()
    killed, on_progress = killing_at(3, cluster.kill_a_worker)
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, more in (
        (one, {"workers": 2}),
        (other, {"executor": cluster.address, "on_progress": lambda _, n: on_progress(n)}),
    ):
        brats_cli.evaluate(
            data / "predictions",
            data / "data",
            output=folder / "scores.csv",
            report=folder / "report.html",
            lesion_wise=2023,
            lesions=folder / "lesions.csv",
            **more,
        )
    assert killed == [3]
    assert len(contents(one)) == 3
    assert contents(one) == contents(other)


def test_predict_with_a_worker_killed_half_way_gives_the_files_of_one_process(
    cluster, data, model, tmp_path, monkeypatch
):
    cluster.add_workers(threads=2)  # two cases share the models of a worker
    monkeypatch.chdir(tmp_path)  # where no worker is
    wanted = {"model": model, "device": "cpu", "probabilities": True, "uncertainty": True}
    list(brats_cli.predict(data / "data", output="one", **wanted))
    events = brats_cli.predict(data / "data", output="other", executor=cluster.address, **wanted)
    started = next(events)
    assert started.cases == 12
    assert started.devices == ("cpu (1 thread) of each worker",)
    done = [next(events), next(events)]
    cluster.kill_a_worker()
    done += events
    assert sorted(each.case for each in done) == sorted(
        path.name for path in (data / "data").iterdir() if path.is_dir()
    )
    maps = contents(Path("one"), "*.nii.gz")
    assert len(maps) == 36
    assert contents(Path("other"), "*.nii.gz") == maps
    lines = [json.loads(each) for each in Path("other/predictions.jsonl").read_text().splitlines()]
    assert [line["case"] for line in lines] == [each.case for each in done]
    assert [line["file"] for line in lines] == [
        str(tmp_path / "other" / f"{each.case}.nii.gz") for each in done
    ]


def test_mesh_and_view_with_a_worker_killed_half_way_give_the_files_of_the_pool(
    cluster, data, tmp_path
):
    cluster.add_workers(3)
    labels = sorted((data / "predictions").iterdir())
    killed, on_progress = killing_at(3, cluster.kill_a_worker)
    brats_cli.mesh(labels, region="all", output=tmp_path / "one", workers=2)
    made = brats_cli.mesh(
        labels,
        region="all",
        output=tmp_path / "other",
        executor=cluster.address,
        on_progress=lambda done, total: on_progress(done),
    )
    assert killed == [3]
    assert made.failed == []
    assert made.skipped == []
    meshes = contents(tmp_path / "one")
    assert len(meshes) == len(made.made) > 24
    assert contents(tmp_path / "other") == meshes

    killed, on_progress = killing_at(3, cluster.kill_a_worker)
    wanted = {"seg": [data / "predictions"]}
    brats_cli.view(data / "data", output=tmp_path / "views", workers=2, **wanted)
    shown = brats_cli.view(
        data / "data",
        output=tmp_path / "seen",
        executor=cluster.address,
        on_progress=lambda done, total: on_progress(done),
        **wanted,
    )
    assert killed == [3]
    assert shown.failed == ()
    assert len(shown.made) == 12
    assert contents(tmp_path / "seen") == contents(tmp_path / "views")


def test_an_item_that_kills_one_worker_after_another_is_named_and_stops_no_other(cluster):
    cluster.add_workers(restarted=True)
    lost = []
    with cluster.client() as client:
        outcomes = in_order(
            os._exit,
            ["x", 1],
            executor=client.get_executor(pure=False),
            name=lambda item: f"case {item}",
            lost=lambda item, error: lost.append(error) or "lost",
        )
        with pytest.raises(TypeError):  # of "x", which os._exit does not take
            next(outcomes)
        outcomes = in_order(
            os._exit,
            [1],
            executor=client.get_executor(pure=False),
            name=lambda item: f"case {item}",
            lost=lambda item, error: lost.append(error) or "lost",
        )
        assert list(outcomes) == ["lost"]
        assert list(in_order(abs, [-1, -2], executor=client.get_executor(pure=False))) == [1, 2]
    assert str(lost[-1]).startswith(
        "2 workers died while they worked on case 1, the last at tcp://127.0.0.1:"
    )
    assert (
        lost[-1].hint == "see its log; give each worker more memory, or start fewer on each machine"
    )


def test_who_leaves_the_loop_leaves_no_work_behind(cluster):
    cluster.add_workers()
    outcomes = in_order(time.sleep, [0.3] * 40, executor=cluster.address)
    next(outcomes)
    outcomes.close()
    with cluster.client() as client:
        until = time.monotonic() + 20
        while any(client.processing().values()):
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_ctrl_c_ends_the_command_and_its_work(cluster, data, tmp_path):
    cluster.add_workers()
    script = tmp_path / "slow.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from brats_cli.core.compute.executors import in_order\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n"
        f"    for _ in in_order(time.sleep, [0.5] * 40, executor={cluster.address!r}):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
    with cluster.client() as client:
        until = time.monotonic() + 20
        while any(client.processing().values()):
            assert time.monotonic() < until
            time.sleep(0.05)


# --- what is refused ------------------------------------------------------------------------------


class Log(logging.Handler):
    """What Dask's own loggers would print."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def log():
    handler = Log()
    loggers = [
        logging.getLogger(name)
        for name in ("distributed", "distributed.client", "tornado.application")
    ]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)


def test_a_scheduler_that_dies_is_reported_once(cluster, log):
    cluster.add_workers()
    outcomes = in_order(time.sleep, [0.2] * 40, executor=cluster.address)
    next(outcomes)
    cluster.scheduler.kill()
    with pytest.raises(BratsError) as caught:
        list(outcomes)
    assert str(caught.value) == "the connection to the scheduler was lost"
    assert caught.value.hint == "see the scheduler's log, and run the same command again"
    assert log.lines == []


def test_a_cluster_whose_workers_are_all_gone_is_reported_once(cluster, log, monkeypatch):
    monkeypatch.setattr(executors, "_SECONDS_OF_IDLING", 0.2)
    monkeypatch.setattr(connecting, "_SECONDS_WITHOUT_WORKERS", 2)
    cluster.add_workers()
    outcomes = in_order(time.sleep, [0.2] * 400, executor=cluster.address)
    next(outcomes)
    cluster.kill_a_worker()
    cluster.kill_a_worker()
    with pytest.raises(BratsError) as caught:
        list(outcomes)
    assert str(caught.value) == "the scheduler has had no workers for 2 seconds"
    assert caught.value.hint.endswith("run the same command again")
    assert log.lines == []


def test_a_cluster_may_be_without_workers_for_a_minute_after_any_time_of_results(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    workers = {"a": {}}
    client = SimpleNamespace(
        status="running",
        scheduler=SimpleNamespace(identity=lambda: {"workers": workers}),
        sync=lambda call, **_: call(),
    )
    monkeypatch.setattr(connecting, "_is_of_dask", lambda _: True)
    monkeypatch.setattr(connecting.time, "monotonic", lambda: clock.now)
    look = connecting.watch_over(SimpleNamespace(_client=client))
    for clock.now in (5, 10):
        look()
    workers.clear()
    for clock.now in range(600, 661, 5):  # results came for ten minutes, in which nobody looked
        look()
    clock.now = 665
    with pytest.raises(BratsError, match="the scheduler has had no workers for 60 seconds"):
        look()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_worker_or_a_scheduler_that_has_stopped_is_not_waited_for_without_end(
    cluster, monkeypatch
):
    monkeypatch.setattr(executors, "_SECONDS_OF_IDLING", 0.2)
    cluster.add_workers(1)
    outcomes = in_order(time.sleep, [0.1, 20], executor=cluster.address)
    next(outcomes)
    for name, seconds in (("", 0.5), ("_OF_A_WORKER", 1), ("_WITHOUT_WORKERS", 2)):
        monkeypatch.setattr(connecting, f"_SECONDS{name}", seconds)
    cluster.scheduler.send_signal(signal.SIGSTOP)
    with pytest.raises(BratsError, match="the scheduler has not answered for 2 seconds"):
        list(outcomes)
    cluster.scheduler.send_signal(signal.SIGCONT)
    cluster.workers[0].send_signal(signal.SIGSTOP)
    monkeypatch.setattr(connecting, "_SECONDS", 5)
    with pytest.raises(BratsError) as caught:
        list(in_order(abs, [1], executor=cluster.address))
    cluster.workers[0].send_signal(signal.SIGCONT)
    assert str(caught.value).startswith("the worker at tcp://127.0.0.1:")
    assert str(caught.value).endswith(" does not answer")
    assert caught.value.hint == "see its log, and end it or start it again"


def test_a_scheduler_without_workers_or_with_others_is_refused(cluster, data, tmp_path):
    words = ("evaluate", data / "predictions", data / "data", "--scheduler", cluster.address)
    assert_refused(
        brats(*words),
        f"the scheduler at {cluster.address} has no workers",
        f"dask worker {cluster.address}",
    )
    older = tmp_path / "older" / "brats_cli-0.0.9.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: brats-cli\nVersion: 0.0.9\n")
    cluster.add_workers(1, path=older.parent)
    result = brats(*words)
    assert result.exit_code == 3
    first, second = result.stderr.splitlines()
    assert first.startswith("error: the worker at tcp://127.0.0.1:")
    assert " has brats 0.0.9, and this machine has brats " in first
    assert second == " hint: install the same version on all machines"


def test_a_device_that_the_workers_lack_is_refused_before_any_case(cluster, data, model, tmp_path):
    cluster.add_workers(1)
    words = ("predict", data / "data", "-o", tmp_path / "out", "--model", model)
    words = (*words, "--scheduler", cluster.address)
    result = brats(*words, "--gpu", "0,1")
    assert_refused(
        result,
        "--gpu 0,1 is for one machine; each worker of a scheduler has one device",
        "start one worker per GPU, each with its own CUDA_VISIBLE_DEVICES",
    )
    if not torch.cuda.is_available():
        result = brats(*words, "--gpu", "0")
        assert_refused(result, "this machine has no GPU 0 (CUDA devices found: 0)")
    assert not (tmp_path / "out").exists()


def test_the_address_of_a_worker_is_refused(cluster):
    cluster.add_workers(1)
    with cluster.client() as client:
        [worker] = client.scheduler_info()["workers"]
    with pytest.raises(BratsError) as caught:
        list(in_order(abs, [1], executor=worker))
    assert str(caught.value) == f"{worker} is the address of a worker"
    assert caught.value.hint == "give that of its scheduler, which `dask scheduler` prints"


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH_9.6\r\n" * 3], ids=["none", "ssh"])
def test_another_server_at_the_address_is_refused_within_seconds(greeting, monkeypatch):
    monkeypatch.setattr(connecting, "_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.sendall(greeting)
                connection.recv(1 << 20)  # what Dask says
                connection.recv(1)  # until it goes

        threading.Thread(target=serve, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(BratsError) as caught:
            list(in_order(abs, [1], executor=address))
    assert time.monotonic() - started < 10
    assert str(caught.value) == f"no scheduler answers at {address}"


def test_tls_without_a_certificate_says_where_dask_looks_for_one(tmp_path):
    from dask import config

    nothing = str(tmp_path / "no.pem")
    for settings, error in (
        ({}, "there is no certificate to connect to tls://127.0.0.1:1 with"),
        (
            {f"distributed.comm.tls.{key}": nothing for key in ("ca-file", "client.cert")},
            "cannot read Dask's certificate: [Errno 2] No such file or directory",
        ),
    ):
        with config.set(settings), pytest.raises(BratsError) as caught:
            list(in_order(abs, [1], executor="tls://127.0.0.1:1"))
        assert str(caught.value) == error
        assert "distributed.comm.tls.ca-file" in caught.value.hint


def test_an_address_where_no_scheduler_is_is_refused_within_seconds():
    started = time.monotonic()
    with pytest.raises(BratsError) as caught:
        list(in_order(abs, [1], executor="tcp://127.0.0.1:1"))
    assert time.monotonic() - started < 20
    assert str(caught.value) == "no scheduler answers at tcp://127.0.0.1:1"
    assert caught.value.hint.startswith("start one with `dask scheduler`")
