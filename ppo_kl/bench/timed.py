"""Our own training under the clock."""

from __future__ import annotations

from ppo_kl.bench.meter import Meter
from ppo_kl.training.iteration import Iteration
from ppo_kl.training.stopwatch import Seconds


class Timed:
    """A callback that tells the meter of every iteration, and ends the training after the last.

    Args:
        meter: is told.
        last: iterations in all; rows that are no transitions would otherwise make more of them.
    """

    def __init__(self, meter: Meter, last: int) -> None:
        self._meter, self._last = meter, last
        self._steps = 0

    def on_iteration(self, state: Iteration) -> bool:
        """Count it in; False after the last."""
        made = state.metrics["optim/steps"] + state.metrics["optim/skipped"]
        self._meter.end_iteration(state.steps - self._steps, round(made), _phases(state.seconds))
        self._steps = state.steps
        return state.number < self._last


def _phases(of: dict[str, Seconds]) -> dict[str, Seconds]:
    """As other libraries cut them: their rollout has the advantages in it."""
    rollout, advantages = of["rollout"], of["advantages"]
    whole = Seconds(rollout.wall + advantages.wall, rollout.cpu + advantages.cpu)
    return {"rollout": whole, "update": of["update"], "measure": of["measure"], "gae": advantages}
