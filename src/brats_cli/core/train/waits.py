"""How long a device waits for patches: what a GPU idles, by its own clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Waits:
    """The times that a device waited for what the host fetched meanwhile.

    A CPU waits while it fetches. A GPU may still be busy with what it was given before: it idles
    from the end of that until what was fetched is there, which two events in its queue tell when
    the GPU has passed them, and nobody waits for them.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Fetch something that the device needs next."""
        if self._on_gpu:
            done = _now()
            yield
            self._events.append((done, _now()))
        else:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started

    def seconds(self) -> float:
        """All that was waited; to be asked for when the device has done its work."""
        idle = sum(float(done.elapsed_time(ready)) for done, ready in self._events)
        return self._seconds + idle / 1000


def _now() -> torch.cuda.Event:
    """What a GPU passes when all that it was given until now is done."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
