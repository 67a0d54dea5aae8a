"""A Dask cluster as an executor: connections to its scheduler, and workers that are lost."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import BratsError, ConfigError

# A scheduler answers within a second, or not at all.
_SECONDS = 5


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
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        return distributed.Client(address, timeout=_SECONDS, set_as_default=False)
    except OSError as error:
        raise BratsError(
            f"no scheduler answers at {address}",
            hint="start one with `dask scheduler`, and give the address that it prints",
        ) from error


def _require_workers(client: Any, address: str) -> None:
    import asyncio
    from importlib.metadata import version

    try:
        client.wait_for_workers(1, timeout=_SECONDS)
    except asyncio.TimeoutError as error:  # Python's own from 3.11 on
        raise BratsError(
            f"the scheduler at {address} has no workers",
            hint=f"start some on your machines with `dask worker {address}`",
        ) from error
    wanted = version("brats-cli")
    # A function of Python's, as a worker without brats could not load one of ours.
    for worker, there in client.run(version, "brats-cli", on_error="return").items():
        if there != wanted:
            raise BratsError(
                f"the worker at {worker} has "
                f"{f'brats {there}' if isinstance(there, str) else 'no brats'}, and this machine "
                f"has brats {wanted}",
                hint="install the same version on all machines",
            )


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
