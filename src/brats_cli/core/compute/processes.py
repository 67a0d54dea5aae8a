"""Processes and threads of this machine: how many, how they start, and how they end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import copy_context
from multiprocessing import connection
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

from ..errors import BratsError
from .machine import available_cpus
from .signals import interrupts_held_back, leave_ctrl_c_to_parent

Item = TypeVar("Item")
Input = TypeVar("Input")
Answer = TypeVar("Answer")
Outcome = TypeVar("Outcome")

# Starting a process takes as long as reading a few cases.
_ITEMS_PER_PROCESS = 4


def process_count(workers: int | None, items: int) -> int:
    """Processes for a number of items: `workers` at most, or as many as pay."""
    wanted = min(available_cpus(), items // _ITEMS_PER_PROCESS) if workers is None else workers
    return min(wanted, items)


def process_pool(processes: int) -> tuple[ProcessPoolExecutor, Event]:
    """A pool whose processes end with this one, and what is set once one of them has started.

    They are spawned, because a forked copy of a process with threads (torch's, a notebook's) may
    hang. So a script needs the `if __name__ == "__main__":` line.
    """
    spawn = multiprocessing.get_context("spawn")
    started = spawn.Event()
    return ProcessPoolExecutor(processes, spawn, _begin, (started,)), started


def _begin(started: Event) -> None:
    warnings.simplefilter("ignore")  # those about the user's data are sent to the first process
    _end_with_parent()
    started.set()


def in_threads(task: Callable[[Item], Outcome], items: Sequence[Item]) -> Iterator[Outcome]:
    """`task` of each of `items`, in their order, for tasks that mostly wait or unzip."""
    pool = ThreadPoolExecutor(available_cpus())
    # Threads of their own know nothing of who listens to this one's warnings.
    contexts = [copy_context() for _ in items]
    try:
        yield from pool.map(lambda context, item: context.run(task, item), contexts, items)
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


def overlapped(
    items: Sequence[Item],
    load: Callable[[Item], Input],
    compute: Callable[[Input], Answer],
    finish: Callable[[Answer], Outcome],
    *,
    loaders: int = 1,
) -> Iterator[Outcome | BratsError]:
    """`finish(compute(load(item)))` of each item in order, or the error of an item that failed.

    While one item is computed, in this thread, the next `loaders` are loaded and the previous one
    finished.
    """
    with ThreadPoolExecutor(loaders) as loading, ThreadPoolExecutor(1) as finishing:
        coming = deque(loading.submit(load, item) for item in items[:loaders])
        leaving: deque[Future[Outcome]] = deque()
        for number in range(len(items)):
            loaded = coming.popleft()
            behind = number + loaders
            coming.extend(loading.submit(load, item) for item in items[behind : behind + 1])
            try:
                leaving.append(finishing.submit(finish, compute(loaded.result())))
            except (BratsError, MemoryError, OSError) as error:
                leaving.append(Future())
                leaving[-1].set_exception(error)
            del loaded  # a case's images, which take as much as the network
            if len(leaving) > 1:
                yield outcome_of(leaving.popleft().result)
        for last in leaving:
            yield outcome_of(last.result)


def outcome_of(work: Callable[[], Outcome]) -> Outcome | BratsError:
    """What `work` returns, or the error that it ended with, which may be the system's."""
    try:
        return work()
    except BratsError as error:
        return error
    except OSError as error:
        if error.filename is None:
            raise
        return BratsError.of_system(error)
    except MemoryError as error:
        return BratsError(
            ": ".join(filter(None, ["not enough memory", str(error)])),
            hint="end other programs, or use a machine with more memory",
        )


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
