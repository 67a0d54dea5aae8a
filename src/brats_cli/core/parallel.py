"""How many processes there may be, and what becomes of a task when one of them dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from .errors import BratsError

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# Starting a process takes as long as reading a few cases.
_ITEMS_A_PROCESS = 4


def available_cpus() -> int:
    """The processors this process may use, which a batch system limits, not the machine's."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def in_processes(
    task: Callable[[Item], Outcome], items: Sequence[Item], *, workers: int | None = None
) -> Iterator[Outcome]:
    """`task` of each of `items`, in their order, over several processes where that pays.

    Args:
        task: A function of a module (or a `partial` of one), as it travels to other processes.
        items: What to do.
        workers: Processes; by default as many as processors, but none for a few items.

    Raises:
        BratsError: If a process was killed.
    """
    wanted = workers or min(available_cpus(), len(items) // _ITEMS_A_PROCESS)
    if min(wanted, len(items)) < 2:
        yield from map(task, items)
        return
    # Spawned, because a forked copy of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(wanted, len(items)), context, initializer=_leave_interrupts)
    try:
        yield from pool.map(task, items)
    except BrokenProcessPool as error:
        raise BratsError(
            "a process that read the data was killed, most likely for lack of memory",
            hint="use fewer processes: --workers 1",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_threads(task: Callable[[Item], Outcome], items: Sequence[Item]) -> Iterator[Outcome]:
    """`task` of each of `items`, in their order, for tasks that mostly wait or unzip."""
    pool = ThreadPoolExecutor(available_cpus())
    try:
        yield from pool.map(task, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts() -> None:
    """Let the parent alone answer Ctrl-C, which the terminal sends to every process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
