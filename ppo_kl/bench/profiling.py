"""Where the time of one iteration goes, as tables: by phase, by Python function, by tensor operation."""

from __future__ import annotations

import cProfile
import io
import pstats
from collections.abc import Mapping

from torch.profiler import ProfilerActivity, profile

from ppo_kl.training.iteration import Iteration
from ppo_kl.training.stopwatch import Seconds

TOP = 25
"""Rows of a table."""


class Profiler:
    """A callback that looks at the two iterations after `after`: Python's functions in one, operations in the other.

    Args:
        after: iterations before it begins, which stay unprofiled and so as fast as they are.
    """

    def __init__(self, after: int) -> None:
        self._after = after
        self._functions = cProfile.Profile()
        self._operations = profile(activities=[ProfilerActivity.CPU])
        self.tables: list[str] = []

    def on_iteration(self, state: Iteration) -> bool:
        """Begin or end what is due; False after the last."""
        since = state.number - self._after
        if since == 0:
            self.tables.append(_table_of_phases(state.seconds))
            self._functions.enable()
        elif since == 1:
            self._functions.disable()
            self.tables.append(_table_of_functions(self._functions))
            self._operations.start()
        elif since == 2:
            self._operations.stop()
            averages = self._operations.key_averages()
            table = averages.table(sort_by="self_cpu_time_total", row_limit=TOP, max_name_column_width=40)
            self.tables.append(f"Tensor operations, by self time\n{table}")
        return since < 2


def _table_of_phases(phases: Mapping[str, Seconds]) -> str:
    lines = [f"{name:12} {1e3 * wall:9.1f} {1e3 * cpu:9.1f}" for name, (wall, cpu) in phases.items()]
    return "\n".join(["One iteration, not profiled", f"{'phase':12} {'wall ms':>9} {'CPU ms':>9}", *lines])


def _table_of_functions(profile: cProfile.Profile) -> str:
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(TOP)
    return "Python functions, by self time" + text.getvalue().rstrip()
