"""Items over an executor: this process, processes of its own, or any executor that is given."""

from __future__ import annotations

import os
import threading
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from ..errors import BratsError, BratsWarning, ConfigError
from ..wording import KILLED
from .cluster import connected, lost_workers, watch_over
from .processes import process_count, process_pool
from .signals import interrupts_held_back

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# Items that an executor which is given has at a time: enough for the workers of a large cluster,
# and few enough for any scheduler's memory.
_AT_A_TIME = 512

_SECONDS_OF_IDLING = 5


def in_order(
    task: Callable[[Item], Outcome],
    items: Sequence[Item],
    *,
    executor: Executor | str | None = None,
    workers: int | None = None,
    name: Callable[[Item], str] = str,
    lost: Callable[[Item, BratsError], Outcome] | None = None,
) -> Iterator[Outcome]:
    """`task` of each of `items`, in their order, over several processes where that pays.

    An item whose process dies is done again: in a pool once, and alone; on a cluster as often as
    its scheduler allows.

    Args:
        task: A function of a module (or a `partial` of one), as it travels to other processes.
        items: What to do.
        executor: Where to do it, or the address of a Dask scheduler; by default in processes of
            this machine.
        workers: Number of these; 0 and 1 stay in this one, None is one per CPU, but none for a few
            items.
        name: What to call an item, should its process die.
        lost: What to yield for an item whose process died again; by default its error is raised.

    Raises:
        BratsError: If the processes or the scheduler cannot be used, or are gone.
    """
    turn = 0
    early: dict[int, Future[Any]] = {}
    for number, future in _Work(task, items, name, lost).ended(executor, workers):
        early[number] = future
        while turn in early:
            yield _received(early.pop(turn))
            turn += 1


def as_completed(
    task: Callable[[Item], Outcome],
    items: Sequence[Item],
    executor: Executor,
    *,
    name: Callable[[Item], str] = str,
    lost: Callable[[Item, BratsError], Outcome] | None = None,
) -> Iterator[Outcome]:
    """As `in_order` over an executor that is given, but each as soon as it is done."""
    for _, future in _Work(task, items, name, lost).ended(executor, workers=None):
        yield _received(future)


def _received(future: Future[tuple[Outcome, list[str]]]) -> Outcome:
    """What came of an item; its warnings are repeated here, as in its own process they are lost."""
    outcome, warned = future.result()
    for text in warned:
        warnings.warn(text, BratsWarning, stacklevel=3)
    return outcome


Ended = Iterator[tuple[int, "Future[Any]"]]
"""Numbers of items, each with a future that has ended."""


@dataclass(frozen=True)
class _Work(Generic[Item, Outcome]):
    """Items and what to do with them."""

    task: Callable[[Item], Outcome]
    items: Sequence[Item]
    name: Callable[[Item], str]
    lost: Callable[[Item, BratsError], Outcome] | None

    def ended(self, executor: Executor | str | None, workers: int | None) -> Ended:
        """Do the items where that is wanted, or pays."""
        if executor is not None:
            if workers is not None:
                raise ConfigError(
                    "processes of this machine and workers of a scheduler cannot share the work",
                    hint="leave out --workers, or --scheduler",
                )
            with connected(executor) as given:
                yield from self._over_given(given)
            return
        processes = process_count(workers, len(self.items))
        if processes < 2:
            for number, item in enumerate(self.items):
                yield number, _settled(self.task(item))
        else:
            yield from self._over_pools(processes)

    def _over_given(self, executor: Executor) -> Ended:
        """What an executor that is not ours makes of the items.

        Raises:
            BratsError: If it, or the connection to it, is gone.
        """
        sent = _Sent(self.task)
        coming = deque(range(len(self.items)))
        for number, future in _going(
            lambda number: executor.submit(sent, self.items[number]),
            coming,
            _AT_A_TIME,
            idle=watch_over(executor),
        ):
            try:
                error = future.exception()
            except CancelledError as gone:
                raise BratsError(
                    "the connection to the scheduler was lost",
                    hint="see the scheduler's log, and run the same command again",
                ) from gone
            if isinstance(error, BrokenExecutor):
                raise BratsError(
                    f"a process of the executor {KILLED}",
                    hint="give it fewer processes, or leave it out: then cases are done again",
                ) from error
            reason = None if error is None else lost_workers(error, self.name(self.items[number]))
            yield number, future if reason is None else self._dead(number, reason)
        if coming:
            raise BratsError("the executor no longer works", hint="start another one")

    def _over_pools(self, processes: int) -> Ended:
        """What processes of this machine make of the items.

        When one is killed, the pool does not say at which item: those that were begun are done
        again one by one, so that the machine's memory is for each alone, and the one is known.
        """
        coming = deque(range(len(self.items)))
        while coming:
            begun = deque((yield from self._over_pool(processes, coming)))
            while begun:
                for number in (yield from self._over_pool(1, begun)):
                    name = self.name(self.items[number])
                    error = BratsError(
                        f"the process that worked on {name} {KILLED}",
                        hint="end other programs, or use a machine with more memory: it was killed "
                        "again when no other case was worked on",
                    )
                    yield number, self._dead(number, error)

    def _over_pool(
        self, processes: int, coming: deque[int]
    ) -> Generator[tuple[int, Future[Any]], None, list[int]]:
        """Do what is coming until all is done, or a process dies; return what was begun then."""
        sent, begun = _Sent(self.task), []
        pool, started = process_pool(processes)

        def submit(number: int) -> Future[Any]:
            with interrupts_held_back():
                return pool.submit(sent, self.items[number])

        try:
            # The next is at hand when one is done; but alone is alone.
            for number, future in _going(submit, coming, 2 * processes if processes > 1 else 1):
                if isinstance(future.exception(), BrokenExecutor):
                    begun.append(number)
                else:
                    yield number, future
        finally:
            pool.shutdown(cancel_futures=True)  # on Ctrl-C, wait for what was begun and no more
        if begun and not started.is_set():
            raise BratsError(
                "the processes that share the work could not be started",
                hint="use --workers 1; a script needs the line `if __name__ == '__main__':`",
            )
        return sorted(begun)

    def _dead(self, number: int, error: BratsError) -> Future[Any]:
        if self.lost is None:
            raise error
        return _settled(self.lost(self.items[number], error))


def _going(
    submit: Callable[[int], Future[Any]],
    coming: deque[int],
    at_a_time: int,
    *,
    idle: Callable[[], None] = lambda: None,
) -> Ended:
    """Submit what is coming, so much at a time, and yield each when it has ended.

    What has not been submitted when an executor breaks is still coming. `idle` is called now and
    then while none ends.
    """
    ended: SimpleQueue[Future[Any]] = SimpleQueue()
    numbers: dict[Future[Any], int] = {}
    broken = False
    try:
        while numbers or (coming and not broken):
            while coming and len(numbers) < at_a_time and not broken:
                try:
                    future = submit(coming[0])
                except BrokenExecutor:
                    broken = True
                else:
                    numbers[future] = coming.popleft()
                    future.add_done_callback(ended.put)
            if numbers:
                try:
                    future = ended.get(timeout=_SECONDS_OF_IDLING)
                except Empty:
                    idle()
                    continue
                broken = broken or _is_broken(future)
                yield numbers.pop(future), future
    finally:
        for future in numbers:
            future.cancel()


def _is_broken(future: Future[Any]) -> bool:
    return not future.cancelled() and isinstance(future.exception(), BrokenExecutor)


def _settled(outcome: object) -> Future[Any]:
    """What has an outcome, and nothing to warn of."""
    future: Future[Any] = Future()
    future.set_result((outcome, []))
    return future


# --- warnings ----------------------------------------------------------------------------------

_HERE = uuid.uuid4()
_heard: ContextVar[list[str] | None] = ContextVar("_heard", default=None)


def _here() -> tuple[uuid.UUID, int]:
    """This process among those of all machines; a forked copy has another number."""
    return _HERE, os.getpid()


@dataclass(frozen=True)
class _Sent(Generic[Item, Outcome]):
    """A task as it travels: in another process, it brings back what it warned of."""

    task: Callable[[Item], Outcome]
    sender: tuple[uuid.UUID, int] = field(default_factory=_here)

    def __call__(self, item: Item) -> tuple[Outcome, list[str]]:
        if self.sender == _here():
            return self.task(item), []
        _listen()
        heard: list[str] = []
        token = _heard.set(heard)
        try:
            return self.task(item), heard
        finally:
            _heard.reset(token)


_listening = threading.Lock()


def _listen() -> None:
    """Let warnings reach the task that gives them: a worker may have several, each in a thread."""
    with _listening:
        before = warnings.showwarning
        if getattr(before, "listens", False):
            return

        def show(message: Warning | str, category: type[Warning], *more: Any, **named: Any) -> None:
            heard = _heard.get()
            if heard is not None and issubclass(category, BratsWarning):
                heard.append(str(message))
            else:
                before(message, category, *more, **named)

        show.listens = True  # type: ignore[attr-defined]
        warnings.showwarning = show
        warnings.simplefilter("always", BratsWarning)
