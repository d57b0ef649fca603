"""Identity tasks: observe k, answer k, for every kind of space; registered as `toy/Identity…-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LENGTH = 8
"""Steps of an episode, each with a k of its own and a reward of 1 at most."""

SPACES: dict[str, spaces.Space[Any]] = {
    "Discrete": spaces.Discrete(4, start=-1),
    "MultiDiscrete": spaces.MultiDiscrete([3, 4], start=[5, 0]),
    "MultiBinary": spaces.MultiBinary(3),
    "Box": spaces.Box(np.float32([-2.0, 0.0]), np.float32([1.0, 10.0])),
    "Dict": spaces.Dict(turn=spaces.Discrete(3, start=1), arm=spaces.Box(-1.0, 1.0, (1,))),
    "Tuple": spaces.Tuple((spaces.MultiBinary(2), spaces.Discrete(3), spaces.Box(-1.0, 1.0, (), np.float64))),
}
"""Observed and answered alike."""


def likeness(space: spaces.Space[Any], answer: Any, k: Any) -> float:
    """1 where the answer is k: the share of parts that are; of a Box, 1 less twice the error over its width."""
    if isinstance(space, spaces.Dict):
        return float(np.mean([likeness(part, answer[key], k[key]) for key, part in space.spaces.items()]))
    if isinstance(space, spaces.Tuple):
        return float(np.mean([likeness(*parts) for parts in zip(space.spaces, answer, k, strict=True)]))
    if isinstance(space, spaces.Box):
        return float(np.mean(1 - 2 * np.abs(np.asarray(answer, float) - k) / (space.high - space.low)))
    return float(np.mean(np.asarray(answer) == k))


class Identity(gym.Env[Any, Any]):
    """Eight questions, one after the other."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space = self.action_space = space

    def _ask(self) -> Any:
        self.k = self.observation_space.sample()
        return self.k

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.steps = 0
        return self._ask(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = likeness(self.action_space, action, self.k)
        self.steps += 1
        return self._ask(), reward, self.steps == LENGTH, False, {}


for _name, _space in SPACES.items():
    gym.register(f"toy/Identity{_name}-v0", entry_point=Identity, kwargs={"space": _space})
