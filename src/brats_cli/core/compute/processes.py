"""Work in several processes or threads, and what becomes of it when a process dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import connection
from typing import Any, TypeVar

from ..errors import BratsError, BratsWarning
from ..wording import KILLED
from .machine import available_cpus
from .signals import interrupts_held_back, leave_ctrl_c_to_parent

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# Starting a process takes as long as reading a few cases.
_ITEMS_PER_PROCESS = 4


def process_count(workers: int | None, items: int) -> int:
    """Processes for a number of items: `workers` at most, or as many as pay."""
    wanted = min(available_cpus(), items // _ITEMS_PER_PROCESS) if workers is None else workers
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
        workers: Number of processes; 0 and 1 stay in this one, None is one per CPU, but none for
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
            outcomes = pool.map(partial(_with_warnings, task), items)
        for outcome, warned in outcomes:
            for text in warned:
                warnings.warn(text, BratsWarning, stacklevel=2)
            yield outcome
            done += 1
    except BrokenProcessPool as error:
        raise BratsError(
            f"a process that worked on {name(items[done])} or on one of the next items {KILLED}",
            hint="use fewer processes: --workers 1",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, wait for what was begun and no more


def _with_warnings(task: Callable[[Item], Outcome], item: Item) -> tuple[Outcome, list[str]]:
    """What `task` gives, and what it warned of, which this process has nobody to tell."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", BratsWarning)
        outcome = task(item)
    return outcome, [str(each.message) for each in caught]


def in_threads(task: Callable[[Item], Outcome], items: Sequence[Item]) -> Iterator[Outcome]:
    """`task` of each of `items`, in their order, for tasks that mostly wait or unzip."""
    pool = ThreadPoolExecutor(available_cpus())
    try:
        yield from pool.map(task, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def one_ahead(task: Callable[[Item], Outcome], items: Sequence[Item]) -> Iterator[Outcome]:
    """`task` of each of `items`, in their order, the next in a thread while the last is used."""
    with ThreadPoolExecutor(1) as pool:
        coming: deque[Future[Outcome]] = deque()
        for number in range(len(items) + 1):
            if number < len(items):  # an item of a store is opened in the thread, too
                coming.append(pool.submit(lambda place: task(items[place]), number))
            if number:
                yield coming.popleft().result()


Send = Callable[[Any], None]
"""Sends an object to the process that reads it; from any thread."""


def streamed(
    tasks: Sequence[Callable[[Send], None]], *, ended: Callable[[int, int], Outcome]
) -> Iterator[Any | Outcome]:
    """Whatever `tasks` send, each running in a process of its own, as it comes.

    Args:
        tasks: Functions that travel to other processes; these are spawned.
        ended: What to yield for the task of a number whose process ended with an exit code that is
            not 0.
    """
    context = multiprocessing.get_context("spawn")  # a fork of torch's threads can hang
    processes, ends = [], []
    try:
        for task in tasks:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_send_all, args=(task, there), daemon=True)
            with interrupts_held_back():
                process.start()
                processes.append(process)
            there.close()  # so that the end of the process can be read here
            ends.append(here)
        yield from _received(ends)
        for number, process in enumerate(processes):
            process.join()
            if process.exitcode:
                yield ended(number, process.exitcode)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _received(ends: Sequence[Any]) -> Iterator[Any]:
    """What comes out of pipes, until all are closed at the other end."""
    waiting = list(ends)
    while waiting:
        for end in connection.wait(waiting):
            assert isinstance(end, connection.Connection)
            try:
                received = end.recv()
            except EOFError:
                waiting.remove(end)
                continue
            yield received


def _send_all(task: Callable[[Send], None], end: Any) -> None:
    leave_ctrl_c_to_parent()
    turn = threading.Lock()  # progress is sent from several threads

    def send(content: object) -> None:
        with turn:
            end.send(content)

    with contextlib.suppress(BrokenPipeError):  # the first process was killed
        task(send)


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, even if that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
