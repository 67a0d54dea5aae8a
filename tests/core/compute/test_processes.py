import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from brats_cli.core.compute import processes as parallel
from brats_cli.core.compute.processes import (
    in_threads,
    one_ahead,
    overlapped,
    process_count,
    streamed,
)
from brats_cli.core.errors import BratsError


def square(number):
    return number * number


def test_threads_give_outcomes_in_the_order_of_the_items():
    assert list(in_threads(square, range(5))) == [0, 1, 4, 9, 16]


def send_then_die(name, send):
    send(0.5)
    send(name)
    if name == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    send(name.upper())


@pytest.mark.slow
def test_what_processes_send_comes_as_it_is_sent_and_a_killed_one_is_reported():
    tasks = [partial(send_then_die, name) for name in "ab"]
    *received, last = streamed(tasks, ended=lambda number, status: (number, status))
    assert received.count(0.5) == 2
    assert sorted(each for each in received if each != 0.5) == ["A", "a", "b"]
    assert last == (1, -signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
def test_a_stop_waits_until_a_process_is_started_whichever_thread_takes_it(stop):
    # A thread that does not block the signal takes it, and Python answers in the main thread.
    script = (
        "import os, signal, sys, threading, time\n"
        "from brats_cli.core.compute.signals import interrupts_held_back\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped'))\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "try:\n"
        "    with interrupts_held_back():\n"
        f"        os.kill(os.getpid(), {int(stop)})\n"
        "        time.sleep(0.2)\n"
        "        print('started')\n"
        "    print('went on')\n"
        "except (KeyboardInterrupt, SystemExit):\n"
        "    print('ended', signal.getsignal(signal.SIGINT) is signal.default_int_handler,\n"
        "          signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout == "started\nended True set()\n"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_processes_never_see_ctrl_c_from_their_first_moment():
    script = (
        "import multiprocessing\n"
        "from multiprocessing import resource_tracker\n"
        "from brats_cli.core.compute.signals import interrupts_held_back\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    resource_tracker.ensure_running()  # as a pool does\n"
        "    with interrupts_held_back():\n"
        "        process.start()\n"
        "        with open(f'/proc/{process.pid}/status') as status:\n"
        "            print([line for line in status if line.startswith('SigBlk')])\n"
        "    process.join()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stdout == "['SigBlk:\\t0000000000000002\\n']\n\n"


def test_processes_are_as_many_as_may_run_and_none_for_a_few_items(monkeypatch):
    monkeypatch.setattr(parallel, "available_cpus", lambda: 3)
    assert process_count(None, 1000) == 3
    assert process_count(None, 8) == 2
    assert process_count(None, 7) == 1
    assert process_count(8, 5) == 5
    assert process_count(0, 1000) == 0


# --- one ahead ---------------------------------------------------------------------------------


def test_the_next_is_done_while_one_is_used_and_no_more():
    begun = []

    def task(item):
        begun.append(item)
        return 10 * item

    work = one_ahead(task, [1, 2, 3, 4])
    assert next(work) == 10
    until = time.monotonic() + 20
    while begun != [1, 2]:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert list(work) == [20, 30, 40]
    assert begun == [1, 2, 3, 4]
    assert list(one_ahead(task, [])) == []


def test_an_error_ahead_comes_in_its_turn():
    work = one_ahead(lambda item: 1 / item, [1, 0, 2])
    assert next(work) == 1
    with pytest.raises(ZeroDivisionError):
        next(work)


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
