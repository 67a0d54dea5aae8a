"""A Dask cluster as an executor: connections to its scheduler, and workers that are lost."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import BratsError, ConfigError

# A scheduler answers within a second, or not at all.
_SECONDS = 5

# A worker answers while it computes, unless one of its libraries keeps Python from running.
_SECONDS_OF_A_WORKER = 30

# For which a cluster may be without workers: one that was lost is started again within seconds.
_SECONDS_WITHOUT_WORKERS = 60

# Looks are no farther apart while nothing comes of a cluster.
_SECONDS_OF_A_GAP = 15


def paths_for(executor: Executor | str | None) -> Callable[[str | Path], Path]:
    """How to read paths for an executor: whoever does the work may be in another folder."""
    return Path if executor is None else lambda path: Path(path).absolute()


@contextmanager
def connected(executor: Executor | str) -> Iterator[Executor]:
    """An executor that is given, or that of the scheduler at an address while the block runs.

    Raises:
        BratsError: If `distributed` is not installed, the scheduler does not answer, or it has no
            workers with this version of brats.
    """
    if isinstance(executor, Executor):
        yield executor
        return
    client = _client(executor)
    try:
        _require_workers(client, executor)
        given: Executor = client.get_executor(pure=False)
        yield given
    finally:
        client.close(timeout=_SECONDS)


def _client(address: str) -> Any:
    try:
        import distributed
    except ImportError as error:
        raise BratsError(
            "a Dask cluster needs the library distributed, which is not installed",
            hint="pip install 'brats-cli[cluster]'",
        ) from error
    if not re.fullmatch(r"(tcp|tls)://\S+:\d+", address):
        raise ConfigError(
            f"'{address}' is not the address of a scheduler",
            hint="give the one that `dask scheduler` prints, such as tcp://HOST:8786",
        )
    # What it logs of lost connections is reported once, as an error.
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _require_scheduler(distributed, address)
    try:
        return distributed.Client(address, timeout=_SECONDS, set_as_default=False)
    except OSError as error:  # it ended just now
        raise _no_answer(address) from error


def _require_scheduler(distributed: Any, address: str) -> None:
    """Check that a scheduler is who answers: a client waits without end for who says nothing."""
    arguments = _connection_arguments(distributed, address)

    async def kind() -> str:
        async with distributed.rpc(address, timeout=_SECONDS, connection_args=arguments) as other:
            return str((await other.identity())["type"])

    try:
        found = _answer(asyncio.wait_for(kind(), 2 * _SECONDS))
    except Exception as error:  # whatever else is there answers anything, which fails anyhow
        raise _no_answer(address) from error
    if found != "Scheduler":
        raise ConfigError(
            f"{address} is the address of a {found.lower()}",
            hint="give that of its scheduler, which `dask scheduler` prints",
        )


def _connection_arguments(distributed: Any, address: str) -> Any:
    """What Dask's configuration has for connections, such as certificates."""
    where = "Dask's configuration names it: distributed.comm.tls.ca-file and .client.cert"
    try:
        arguments = distributed.Security().get_connection_args("client")
    except OSError as error:  # also of a file that holds none
        raise ConfigError(f"cannot read Dask's certificate: {error}", hint=where) from error
    if address.startswith("tls") and arguments.get("ssl_context") is None:
        raise ConfigError(f"there is no certificate to connect to {address} with", hint=where)
    return arguments


def _no_answer(address: str) -> BratsError:
    return BratsError(
        f"no scheduler answers at {address}",
        hint="start one with `dask scheduler`, and give the address that it prints",
    )


def _answer(question: Coroutine[Any, Any, str]) -> str:
    """What comes of a question: asked in a thread, as a notebook's own has a loop already."""
    answer: Future[str] = Future()

    def ask() -> None:
        try:
            answer.set_result(asyncio.run(question))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()  # nobody waits for it after Ctrl-C
    return answer.result()


def _require_workers(client: Any, address: str) -> None:
    from importlib.metadata import version

    try:
        client.wait_for_workers(1, timeout=_SECONDS)
    except asyncio.TimeoutError as error:  # Python's own from 3.11 on
        raise BratsError(
            f"the scheduler at {address} has no workers",
            hint=f"start some on your machines with `dask worker {address}`",
        ) from error
    wanted = version("brats-cli")
    for worker, there in client.sync(_versions, client).items():
        if isinstance(there, asyncio.TimeoutError):
            raise BratsError(
                f"the worker at {worker} does not answer",
                hint="see its log, and end it or start it again",
            )
        if isinstance(there, OSError):  # it ended just now, and gets no case
            continue
        if there != wanted:
            raise BratsError(
                f"the worker at {worker} has "
                f"{f'brats {there}' if isinstance(there, str) else 'no brats'}, and this machine "
                f"has brats {wanted}",
                hint="install the same version on all machines",
            )


async def _versions(client: Any) -> dict[str, object]:
    """The version of brats on every worker, or the error in its place."""
    from importlib.metadata import version

    async def ask(worker: str) -> object:
        # A function of Python's, as a worker without brats could not load one of ours.
        asked = client.run(version, "brats-cli", workers=[worker], on_error="return")
        return (await asyncio.wait_for(asked, _SECONDS_OF_A_WORKER))[worker]

    workers = list((await client.scheduler.identity())["workers"])
    found = await asyncio.gather(*map(ask, workers), return_exceptions=True)
    return dict(zip(workers, found, strict=True))


def watch_over(executor: Executor) -> Callable[[], None]:
    """What to call while nothing comes of an executor: a cluster without workers does not end.

    The function that is returned raises a `BratsError` when the scheduler has had no workers, or
    has not answered, for a minute.
    """
    client = getattr(executor, "_client", None)
    if client is None or not _is_of_dask(executor):
        return lambda: None
    seen = looked = time.monotonic()

    def look() -> None:
        nonlocal seen, looked
        if time.monotonic() - looked > _SECONDS_OF_A_GAP:  # results came, or nobody asked for them
            seen = time.monotonic()
        if client.status != "running":  # it has lost the scheduler, and cancels all
            return
        state = "had no workers"
        try:
            if client.sync(client.scheduler.identity, callback_timeout=_SECONDS)["workers"]:
                seen = time.monotonic()
        except (OSError, asyncio.TimeoutError):
            state = "not answered"
        looked = time.monotonic()
        if looked - seen > _SECONDS_WITHOUT_WORKERS:
            raise BratsError(
                f"the scheduler has {state} for {_SECONDS_WITHOUT_WORKERS} seconds",
                hint="see its log and those of the workers, and run the same command again",
            )

    return look


def _is_of_dask(executor: Executor) -> bool:
    return type(executor).__module__.split(".")[0] == "distributed"


def lost_workers(error: BaseException, name: str) -> BratsError | None:
    """What to report if a scheduler gave an item up because its workers died; else None."""
    distributed = sys.modules.get("distributed")
    if distributed is None or not isinstance(error, distributed.KilledWorker):
        return None
    return BratsError(
        f"{error.allowed_failures + 1} workers died while they worked on {name}, the last at "
        f"{error.last_worker.address}",
        hint="see its log; give each worker more memory, or start fewer on each machine",
    )
