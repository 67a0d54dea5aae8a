"""How many processes there may be, and what becomes of a task when one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import TypeVar

from ..errors import BratsError
from .machine import available_cpus

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# Starting a process takes as long as reading a few cases.
_ITEMS_A_PROCESS = 4


def process_count(workers: int | None, items: int) -> int:
    """Processes for a number of items: `workers` at most, or as many as pay."""
    wanted = min(available_cpus(), items // _ITEMS_A_PROCESS) if workers is None else workers
    return min(wanted, items)


def in_processes(
    task: Callable[[Item], Outcome],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    name: Callable[[Item], str] = str,
) -> Iterator[Outcome]:
    """`task` of each of `items`, in their order, over several processes where that pays.

    Args:
        task: A function of a module (or a `partial` of one), as it travels to other processes.
            These are spawned, so a script needs the `if __name__ == "__main__":` line.
        items: What to do.
        workers: Processes; 0 and 1 stay in this one, None is as many as processors, but none for
            a few items.
        name: What to call an item, should its process be killed.

    Raises:
        BratsError: If a process was killed.
    """
    processes = process_count(workers, len(items))
    if processes < 2:
        yield from map(task, items)
        return
    # Spawned, because a forked copy of a process with threads (torch's, a notebook's) may hang.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, spawn, initializer=_end_with_parent)
    done = 0
    try:
        with interrupts_held_back():
            outcomes = pool.map(task, items)
        for outcome in outcomes:
            yield outcome
            done += 1
    except BrokenProcessPool as error:
        raise BratsError(
            f"a process that worked on {name(items[done])} or one of the next was killed, "
            "most likely for lack of memory",
            hint="use fewer processes: --workers 1",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, wait for what was begun and no more


def in_threads(task: Callable[[Item], Outcome], items: Sequence[Item]) -> Iterator[Outcome]:
    """`task` of each of `items`, in their order, for tasks that mostly wait or unzip."""
    pool = ThreadPoolExecutor(available_cpus())
    try:
        yield from pool.map(task, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, even if that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Start processes in here: a stop waits until the block ends, and Ctrl-C never reaches them.

    An interrupt between the steps of a start leaves a process that nobody ends, and that Python
    waits for when it exits. The terminal sends Ctrl-C to all processes; those of here inherit that
    it is blocked, so that they do not answer it while they import either. (Windows has no such
    thing: its processes print tracebacks.)
    """
    heard: list[int] = []
    # Blocking is not enough for this process: another of its threads then takes the signal, and
    # Python answers in the main thread all the same.
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not None:  # else Python cannot put it back
                handlers[number] = signal.signal(number, lambda stop, _: heard.append(stop))
    blocks = hasattr(signal, "pthread_sigmask")
    if blocks:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if blocks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for stop in heard:
            signal.raise_signal(stop)
