import time
from types import SimpleNamespace

import pytest
import torch

from brats_cli.core.train.waits import Waits


def test_a_cpu_waits_while_it_fetches():
    waits = Waits(torch.device("cpu"))
    for _ in range(2):
        with waits.measured():
            time.sleep(0.05)
        time.sleep(0.05)
    assert 0.1 <= waits.seconds() < 0.15 + 0.1  # a busy machine sleeps longer


def test_a_gpu_waits_from_the_end_of_its_work_until_there_is_more(monkeypatch):
    # Events on the GPU's clock, in ms: it is done at 100, and has what comes next at 103; the
    # second time it is still busy when that is there, until 240.
    clock = iter([100, 103, 240, 240])

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time = next(clock)

        def elapsed_time(self, later):
            return later.time - self.time

    monkeypatch.setattr(torch.cuda, "Event", Event)
    waits = Waits(SimpleNamespace(type="cuda"))
    for _ in range(2):
        with waits.measured():
            pass
    assert waits.seconds() == pytest.approx(0.003)
