"""The clock of every benchmark: whole iterations after a warm-up, by phase, and the line of JSON that it ends in."""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppo_kl.training.stopwatch import Seconds, Stopwatch

PER = {"rollout": "env_step", "update": "grad_step"}
"""Phase -> what its microseconds are counted by."""
WITHIN = {"gae": "rollout"}
"""Phase -> the phase whose seconds it is part of."""


class Meter:
    """Times `iterations` whole iterations after `warmup` others; what comes before them is setup.

    Args:
        iterations: that are timed, ≥ 1.
        warmup: before them, ≥ 1.
    """

    def __init__(self, iterations: int, warmup: int) -> None:
        self.iterations, self.warmup = iterations, warmup
        self.total_iterations = warmup + iterations
        self.done = self.steps = self.grad_steps = 0
        self._made = time.perf_counter()
        self._begin()

    def _begin(self) -> None:
        """What is timed begins here."""
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()
        self._phases: dict[str, Seconds] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What runs inside is part of the phase `name` of this iteration."""
        watch = Stopwatch()
        yield
        watch.lap(name)
        self._add(watch.seconds)

    def end_iteration(self, steps: int, grad_steps: int, phases: Mapping[str, Seconds] | None = None) -> None:
        """An iteration is over.

        Args:
            steps: environment steps made in it, rows that are no transitions not counted.
            grad_steps: made in it.
            phases: what its phases took, beside those that ran inside `phase`.
        """
        self._add(phases or {})
        self.done += 1
        if self.done == self.warmup:
            self._begin()
        elif self.warmup < self.done <= self.total_iterations:
            self.steps += steps
            self.grad_steps += grad_steps
        if self.done == self.total_iterations:
            self._wall, self._cpu = time.perf_counter() - self._wall, cpu_seconds() - self._cpu
            self.setup = time.perf_counter() - self._wall - self._made

    def _add(self, phases: Mapping[str, Seconds]) -> None:
        """Count them in, but for what a library does after the last timed iteration."""
        for name, more in phases.items() if self.done < self.total_iterations else ():
            before = self._phases.get(name, Seconds(0.0, 0.0))
            self._phases[name] = Seconds(before.wall + more.wall, before.cpu + more.cpu)

    def result(self, peer: str, workload: str, **more: Any) -> dict[str, Any]:
        """One row: speed, seconds and CPU seconds by phase, microseconds per step.

        Args:
            peer: which library.
            workload: its name.
            more: what else belongs in the row.

        Raises:
            RuntimeError: fewer iterations than were to be timed have run.
        """
        if self.done < self.total_iterations:
            raise RuntimeError(f"{peer}, workload {workload}: {self.done} of {self.total_iterations} iterations ran")
        row: dict[str, Any] = {
            "peer": peer,
            "workload": workload,
            "steps_per_s": round(self.steps / self._wall, 1),
            "rollout_s": None,
            "update_s": None,
            "cpu_s": round(self._cpu, 4),
            "wall_s": round(self._wall, 4),
            "setup_s": round(self.setup, 3),
            "steps_per_cpu_s": round(self.steps / self._cpu, 1),
            "steps": self.steps,
            "grad_steps": self.grad_steps,
        }
        rest = self._wall - sum(seconds.wall for name, seconds in self._phases.items() if name not in WITHIN)
        counts = {"env_step": self.steps, "grad_step": self.grad_steps}
        for name, seconds in self._phases.items():
            row[f"{name}_s"], row[f"{name}_cpu_s"] = round(seconds.wall, 4), round(seconds.cpu, 4)
            per = PER.get(name)
            if per is not None and counts[per]:
                row[f"us_per_{per}"] = round(1e6 * seconds.wall / counts[per], 1)
                row[f"us_cpu_per_{per}"] = round(1e6 * seconds.cpu / counts[per], 1)
        return {**row, "rest_s": round(rest, 4), "python": platform.python_version(), **more}


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children, those that live and those that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = sum(_cpu_of(child.pid) for child in multiprocessing.active_children())
    return time.process_time() + ended.ru_utime + ended.ru_stime + living


def _cpu_of(pid: int | None) -> float:
    """CPU seconds of another process; 0 where the system does not tell, as on macOS."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
