"""How long a device waits for patches: the idle time of a GPU, by its own clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Waits:
    """The times that a device waited for data.

    A CPU waits while it reads. A GPU may still be busy with work queued before: it idles from the
    end of that until the data have arrived. Two CUDA events in its queue record both times, without
    synchronisation.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Time a block that fetches what the device needs next."""
        if self._on_gpu:
            done = _now()
            yield
            self._events.append((done, _now()))
        else:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started

    def seconds(self) -> float:
        """The total; ask for it when the device has done its work."""
        idle = sum(float(done.elapsed_time(ready)) for done, ready in self._events)
        return self._seconds + idle / 1000


def _now() -> torch.cuda.Event:
    """An event that a GPU records when all work queued until now is done."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
