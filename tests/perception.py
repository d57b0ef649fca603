"""A task that is seen in pixels and one that must be remembered; registered as `toy/Square-v0` and `toy/Recall-v0`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

SIDE, SQUARE = 40, 10
DELAY = 4
"""Steps between what `Recall` shows and what it asks."""


class Square(gym.Env[Any, Any]):
    """Say in which quarter of a noisy picture the bright square is; ten pictures, a point for each right answer.

    No pixel by itself tells the quarter: the square lies anywhere within it, and is dimmer than the brightest noise.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8)
        self.action_space = spaces.Discrete(4)

    def _show(self) -> np.ndarray:
        picture = self.np_random.integers(0, 200, (SIDE, SIDE, 1), dtype=np.uint8)
        self.quarter = int(self.np_random.integers(4))
        half = SIDE // 2
        top, left = self.np_random.integers(half - SQUARE + 1, size=2) + half * np.array(divmod(self.quarter, 2))
        picture[top : top + SQUARE, left : left + SQUARE] = 160
        return picture

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._show(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.quarter)
        self.steps += 1
        return self._show(), reward, self.steps == 10, False, {}


class Recall(gym.Env[Any, Any]):
    """A sign is shown once, then nothing for some steps; the reward is 1 for the action that names it at the end.

    Whoever sees the last observation alone is right half of the time.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def _obs(self) -> np.ndarray:
        shown = 2.0 * self.sign - 1 if self.steps == 0 else 0.0
        return np.array([shown, float(self.steps == DELAY)], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.sign, self.steps = int(self.np_random.integers(2)), 0
        return self._obs(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        asked = self.steps == DELAY
        self.steps += 1
        return self._obs(), float(asked and action == self.sign), asked, False, {}


for _name, _make in {"Square": Square, "Recall": Recall}.items():
    gym.register(f"toy/{_name}-v0", entry_point=_make)
