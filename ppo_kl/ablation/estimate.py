"""How long a plan will take, from a look at one run of each kind."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from ppo_kl.ablation.plan import Point, settings_of
from ppo_kl.config import TrainConfig

COMPILING = 6.0
"""Seconds, from the second run of a kind on."""
COMPILED_SHARE = 0.2
"""Of the time of eager gradient steps that compiled ones take, about."""
BESIDE = 4.0
"""Seconds: to make the environments, to evaluate, to save."""


class Seconds(NamedTuple):
    """Of an iteration that is not compiled."""

    update: float
    beside: float


def seconds_of(points: Sequence[Point]) -> float:
    """Processor seconds of all points together, about: two eager iterations are timed of each kind of run.

    Runs that differ in nothing but seed, length and objective are of a kind.
    """
    timed: dict[str, Seconds] = {}
    total = 0.0
    for config in (point.config for point in points):
        kind = _kind(config)
        if kind not in timed:
            timed[kind] = _iteration(config)
        total += _seconds(config, timed[kind])
    return total


def _kind(config: TrainConfig) -> str:
    settings = {k: v for k, v in settings_of(config).items() if k not in ("seed", "total_steps", "runtime.compile")}
    return json.dumps({k: v for k, v in settings.items() if not k.startswith("objective.")}, default=str)


def _iteration(config: TrainConfig) -> Seconds:
    from ppo_kl.training.agent import Agent
    from ppo_kl.training.iteration import Iteration

    class Timer:
        seconds: dict[str, float]

        def on_iteration(self, state: Iteration) -> bool:
            self.seconds = {phase: seconds.wall for phase, seconds in state.seconds.items()}
            return state.number < 2

    timer = Timer()
    agent = Agent(dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, compile="off")))
    try:
        agent.learn(2 * config.rollout_size, [timer])
    finally:
        agent.close()
    update = timer.seconds["update"]
    return Seconds(update, sum(timer.seconds.values()) - update)


def _seconds(config: TrainConfig, iteration: Seconds) -> float:
    compiled = config.runtime.compile == "on"
    one = iteration.beside + iteration.update * (COMPILED_SHARE if compiled else 1.0)
    return math.ceil(config.total_steps / config.rollout_size) * one + BESIDE + (COMPILING if compiled else 0.0)


def in_words(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
