"""Where the time of an iteration goes: wall and CPU seconds by phase."""

from __future__ import annotations

import time
from typing import NamedTuple


class Seconds(NamedTuple):
    """What a phase took."""

    wall: float
    cpu: float
    """Of this process, all threads together; worker processes are not in it."""


class Stopwatch:
    """Runs from when it is made; every lap belongs to a phase, and the laps of one phase are added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, Seconds] = {}
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self, phase: str) -> None:
        """What passed since the lap before was `phase`."""
        wall, cpu = time.perf_counter(), time.process_time()
        before = self.seconds.get(phase, Seconds(0.0, 0.0))
        self.seconds[phase] = Seconds(before.wall + wall - self._wall, before.cpu + cpu - self._cpu)
        self._wall, self._cpu = wall, cpu
