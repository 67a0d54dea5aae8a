"""Items over this process, pools of processes, and executors that are given."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from brats_cli.core.compute import executors
from brats_cli.core.compute.executors import as_completed, in_order
from brats_cli.core.compute.processes import in_threads
from brats_cli.core.errors import BratsError, BratsWarning, ConfigError, LabelError

SPAWN = get_context("spawn")


def square(number):
    return number * number


def process(_):
    time.sleep(0.05)
    return os.getpid()


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, and nobody has asked for its status yet


def refuse(number):
    raise LabelError(f"{number} is no label", hint="remedy")


def die(_):
    os._exit(1)


def square_or_die(number, *, deadly, once=None):
    """Squares, but the process dies at one number, or only the first time, which leaves a file."""
    if number == deadly and not (once and once.exists()):
        if once:
            once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def warn(number):
    warnings.warn(f"{number} is odd", BratsWarning, stacklevel=2)
    time.sleep(0.05)
    return number


def warn_in_threads(number):
    return list(in_threads(warn, [number, number + 1]))


@pytest.fixture(params=["here", "pool", "threads", "processes"])
def where(request):
    """The arguments that choose where items are done."""
    if request.param == "here":
        yield {"workers": 0}
    elif request.param == "pool":
        yield {"workers": 2}
    else:
        with (
            ThreadPoolExecutor(3) if request.param == "threads" else ProcessPoolExecutor(2, SPAWN)
        ) as executor:
            yield {"executor": executor}


def test_outcomes_come_in_the_order_of_the_items_wherever_they_are_done(where):
    assert list(in_order(square, range(5), **where)) == [0, 1, 4, 9, 16]
    assert list(in_order(square, [], **where)) == []


def test_a_given_executor_yields_every_outcome_as_completed_too():
    with ThreadPoolExecutor(3) as executor:
        assert sorted(as_completed(square, range(5), executor)) == [0, 1, 4, 9, 16]


def test_the_first_mistake_in_the_order_of_the_items_is_raised_whole(where):
    with pytest.raises(LabelError, match="0 is no label") as caught:
        list(in_order(refuse, range(2), **where))
    assert caught.value.hint == "remedy"


def test_warnings_arrive_from_wherever_they_are_given_also_from_threads(where):
    with pytest.warns(BratsWarning) as caught:
        done = list(in_order(warn_in_threads, [1, 3, 5, 7], **where))
    assert done == [[1, 2], [3, 4], [5, 6], [7, 8]]
    texts = {f"{number} is odd" for number in range(1, 9)}
    assert {str(each.message) for each in caught} == texts


def test_what_is_done_early_comes_early_only_as_completed():
    held = threading.Event()

    def task(number):
        return number if number else held.wait(20)

    with ThreadPoolExecutor(2) as executor:
        early = as_completed(task, range(3), executor)
        assert [next(early), next(early)] == [1, 2]
        held.set()
        assert list(early) == [True]


def test_several_processes_do_the_work():
    assert os.getpid() not in in_order(process, range(4), workers=2)


def test_a_few_items_are_not_worth_a_process():
    assert set(in_order(process, [1, 2])) == {os.getpid()}
    assert set(in_order(process, [1, 2], workers=1)) == {os.getpid()}


def test_a_process_that_is_killed_names_its_item_and_the_remedy():
    with pytest.raises(BratsError) as caught:
        list(in_order(die, range(2), workers=2, name=lambda number: f"case {number}"))
    assert str(caught.value) == (
        "the process that worked on case 0 was killed, most likely because memory ran out"
    )
    assert caught.value.hint == (
        "end other programs, or use a machine with more memory: it was killed again when no "
        "other case was worked on"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_an_item_whose_process_dies_is_done_again(tmp_path):
    task = partial(square_or_die, deadly=3, once=tmp_path / "died")
    assert list(in_order(task, range(9), workers=2)) == [n * n for n in range(9)]
    assert (tmp_path / "died").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_an_item_that_kills_each_process_stops_no_other():
    task = partial(square_or_die, deadly=3)
    lost = []
    outcomes = in_order(task, range(9), workers=2, lost=lambda item, error: lost.append(item))
    assert list(outcomes) == [0, 1, 4, None, 16, 25, 36, 49, 64]
    assert lost == [3]


def test_a_script_without_its_guard_is_told_of_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from brats_cli.core.compute.executors import in_order\n"
        "from brats_cli.core.errors import BratsError\n"
        "try:\n"
        "    list(in_order(abs, range(4), workers=2))\n"
        "except BratsError as error:\n"
        "    print(error, error.hint, sep='|')\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert ended.stdout == (
        "the processes that share the work could not be started|"
        "use --workers 1; a script needs the line `if __name__ == '__main__':`\n"
    )


def test_a_given_pool_that_breaks_is_reported_and_so_is_a_broken_one():
    with ProcessPoolExecutor(2, SPAWN) as executor:
        for _ in range(2):
            with pytest.raises(BratsError) as caught:
                list(in_order(die, range(4), executor=executor))
            assert "executor" in str(caught.value)
        assert str(caught.value) == "the executor no longer works"


def test_a_given_executor_has_so_many_items_at_a_time_and_no_more(monkeypatch):
    monkeypatch.setattr(executors, "_AT_A_TIME", 3)
    most = []

    class Counting(ThreadPoolExecutor):
        def submit(self, *args):
            future = super().submit(*args)
            going.append(future)
            most.append(sum(not each.done() for each in going))
            return future

    going = []
    with Counting(1) as executor:
        assert list(in_order(process, range(10), executor=executor)) == [os.getpid()] * 10
    assert len(going) == 10
    assert max(most) <= 3
    assert max(most) > 1


def test_who_leaves_the_loop_cancels_what_has_not_begun_and_keeps_the_executor():
    begun, held = [], threading.Event()

    def task(number):
        begun.append(number)
        return number if number == 0 else held.wait(20)

    with ThreadPoolExecutor(1) as executor:
        outcomes = in_order(task, range(10), executor=executor)
        assert next(outcomes) == 0
        outcomes.close()
        held.set()
        assert executor.submit(square, 3).result() == 9
    assert set(begun) <= {0, 1}


def test_an_executor_and_a_number_of_processes_exclude_each_other():
    with ThreadPoolExecutor(1) as executor, pytest.raises(ConfigError) as caught:
        list(in_order(square, range(4), executor=executor, workers=2))
    assert caught.value.hint == "leave out --workers, or --scheduler"


def test_a_cluster_without_its_library_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BratsError) as caught:
        list(in_order(square, range(4), executor="tcp://127.0.0.1:8786"))
    assert str(caught.value) == (
        "a Dask cluster needs the library distributed, which is not installed"
    )
    assert caught.value.hint == "pip install 'brats-cli[cluster]'"


@pytest.mark.parametrize("address", ["here", "tcp://host", "http://host:8786", ""])
def test_an_address_that_is_none_is_refused_at_once(monkeypatch, address):
    monkeypatch.setitem(sys.modules, "distributed", object())
    with pytest.raises(ConfigError) as caught:
        list(in_order(square, range(4), executor=address))
    assert str(caught.value) == f"'{address}' is not the address of a scheduler"
    assert caught.value.hint == "give the one that `dask scheduler` prints, such as tcp://HOST:8786"


# --- stops --------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_processes_end_with_the_one_that_started_them(tmp_path):
    # The parent is killed while its two processes sleep; both are gone soon after.
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from brats_cli.core.compute.executors import in_order\n"
        "def sleep(number):\n"
        "    os.write(1, b'%d\\n' % os.getpid())\n"  # at once: lines of two may mix
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    list(in_order(sleep, range(2), workers=2))\n"
    )
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        children = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
    deadline = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, children))


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_ctrl_c_while_a_process_starts_leaves_none_that_is_waited_for_without_end():
    script = (
        "import os, signal, threading, time\n"
        "from multiprocessing.process import BaseProcess\n"
        "from brats_cli.core.compute.executors import in_order\n"
        "start = BaseProcess.start\n"
        "def interrupted(process):\n"
        "    start(process)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(0.2)\n"
        "BaseProcess.start = interrupted\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "list(in_order(abs, range(20), workers=2))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert ended.stderr.endswith("\nKeyboardInterrupt\n")
