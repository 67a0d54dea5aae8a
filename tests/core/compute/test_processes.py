import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from brats_cli.core.compute import processes as parallel
from brats_cli.core.compute.processes import (
    in_threads,
    one_ahead,
    process_count,
    streamed,
)


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
