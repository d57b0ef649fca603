"""How long a plan will take, from a look at one run of each environment."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ppo_kl.ablation.plan import Point
from ppo_kl.config import TrainConfig

COMPILING = 6.0
"""Seconds, from the second run of a kind on."""
COMPILED_SHARE = 0.2
"""Of the time of eager gradient steps that compiled ones take, about."""
BESIDE = 4.0
"""Seconds: to make the environments, to evaluate, to save."""


def seconds_of(points: Sequence[Point]) -> float:
    """Processor seconds of all points together, about: two eager iterations are timed on each environment."""
    measured: dict[str, float] = {}
    total = 0.0
    for point in points:
        if point.env not in measured:
            measured[point.env] = _per_run(point.config)
        total += measured[point.env]
    return total


def _per_run(config: TrainConfig) -> float:
    from ppo_kl.training.agent import Agent
    from ppo_kl.training.iteration import Iteration

    class Timer:
        seconds: dict[str, float]

        def on_iteration(self, state: Iteration) -> bool:
            self.seconds = {phase: seconds.wall for phase, seconds in state.seconds.items()}
            return state.number < 2

    timer = Timer()
    samples = config.env.num_envs * config.training.num_steps
    eager = dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, compile="off"))
    agent = Agent(eager)
    try:
        agent.learn(2 * samples, [timer])
    finally:
        agent.close()
    compiled = config.runtime.compile == "on"
    update = timer.seconds["update"] * (COMPILED_SHARE if compiled else 1.0)
    iteration = sum(timer.seconds.values()) - timer.seconds["update"] + update
    return math.ceil(config.total_steps / samples) * iteration + BESIDE + (COMPILING if compiled else 0.0)


def in_words(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
