"""Ctrl-C and SIGTERM: when a stop is obeyed, and which process hears of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

INTERRUPTED = 128 + signal.SIGINT
"""Exit status that Typer gives a command that Ctrl-C ended."""

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a process that SIGTERM ended, as shells report it: 143."""


_heard: list[int] = []
"""The signals that `raise_on_stops` has answered."""


def raise_on_stops() -> None:
    """Let Ctrl-C and SIGTERM end this process by an exception.

    So they leave neither files half written nor processes behind.
    """

    def answer(number: int, _: object) -> None:
        _heard.append(number)
        raise _stop(number)

    signal.signal(signal.SIGTERM, answer)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, answer)


def _stop(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def repeat_dropped_stops() -> None:
    """Stop a moment later, where a stop was raised as Python cleared up an object.

    There it drops every exception, prints it, and goes on as if nothing had been.
    """
    before = sys.unraisablehook

    def answer(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt | SystemExit):
            before(dropped)
            return
        number = signal.SIGINT if dropped.exc_type is KeyboardInterrupt else signal.SIGTERM
        ready = False
        while not ready:  # on a busy machine the signal may come while its thread starts
            try:
                again = threading.Timer(0.05, _send_to_main_thread, [number])
                again.daemon = True
                again.start()
                ready = True
            except (KeyboardInterrupt, SystemExit):
                continue

    sys.unraisablehook = answer


def _send_to_main_thread(number: signal.Signals) -> None:
    # Raised in another thread, it would not wake the main one out of a sleep or a read.
    if sys.platform == "win32":
        signal.raise_signal(number)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, number)


def leave_ctrl_c_to_parent() -> None:
    """In a process that another one started: only SIGTERM ends it.

    Ctrl-C goes to every process of a terminal. The first one then ends the others, which thus
    leave no file half written.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def end_at_once_on_stops() -> None:
    """From here on, when all is written, a stop ends this process without another word.

    As Python exits it waits for threads, and prints a traceback if that is interrupted.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


_clears_up = True
"""Whether Python may clear up when this process ends."""


def end_without_clearing_up() -> None:
    """From here on, `program` ends this process as soon as it has an exit status.

    For connections to processes that may no longer answer: Python would wait for what is still
    on its way to them, and a thread of theirs that then wants to run Python code aborts the
    process, which hides its status.
    """
    global _clears_up
    _clears_up = False


@contextmanager
def program() -> Iterator[None]:
    """Around all that a command does; after `end_without_clearing_up` the process ends with it.

    An error after a stop is that stop: an import that it broke off may have dropped it, and left
    modules that fail later.
    """
    try:
        try:
            yield
        except Exception:
            if not _heard:
                raise
            raise _stop(_heard[0]) from None
    except BaseException as error:
        if _clears_up:
            raise
        status: str | int | None = 1
        if isinstance(error, SystemExit):
            status = error.code
        elif isinstance(error, KeyboardInterrupt):
            status = INTERRUPTED
        else:
            sys.excepthook(type(error), error, error.__traceback__)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # nobody reads any more
                stream.flush()
        if status == INTERRUPTED:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        os._exit(status if isinstance(status, int) else int(status is not None))


class Stops:
    """Ctrl-C and SIGTERM during a long computation, a context.

    A stop raises `KeyboardInterrupt` or `SystemExit` at once, or, within `later`, when its block
    has ended. Python drops an exception that is raised while it clears up an object, and matplotlib
    has many that are cleared up: a stop may be missed anywhere, so the computation calls `ask`
    again and again. Signals reach the main thread alone: in any other, nothing happens here.
    """

    def __init__(self) -> None:
        self._heard: int | None = None
        self._held_back = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: object) -> None:
        self._heard = number
        if not self._held_back:
            self.ask()

    def ask(self) -> None:
        """Stop here, if that was asked for."""
        if self._heard is not None:
            raise _stop(self._heard)

    @contextmanager
    def later(self) -> Iterator[None]:
        """Hold a stop back until the block ends."""
        self._held_back = True
        try:
            yield
        finally:
            self._held_back = False
        self.ask()


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Start processes in here: a stop waits until the block ends, and Ctrl-C never reaches them.

    An interrupt between the steps of a start leaves a process that nobody ends, and that Python
    waits for when it exits. The terminal sends Ctrl-C to all processes; those started here inherit
    that it is blocked, so that they do not answer it while they import either. (Windows has no such
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


def name_of(status: int) -> str:
    """How a process ended, by its exit code in Python: `SIGKILL`, or `exit status 3`."""
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
