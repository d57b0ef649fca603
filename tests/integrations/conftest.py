"""An environment of any two spaces, for trainers that bring their own loop."""

import os
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

# Tianshou compiles its GAE for 8 s when it is imported: longer than all that runs here.
os.environ["NUMBA_DISABLE_JIT"] = "1"


class AnySpaces(gym.Env):
    """Random observations, a reward that depends on the action, episodes of 3 to 9 steps with both kinds of end."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.left = int(self.np_random.integers(3, 10))
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.left -= 1
        over = self.left == 0
        terminated = over and bool(self.np_random.integers(2))
        return self.observation_space.sample(), float(np.mean(action)), terminated, over and not terminated, {}


@pytest.fixture
def any_spaces():
    return AnySpaces


@pytest.fixture
def said_without():
    """What importing an adapter says where a library that it needs is not installed; importing ppo_kl says nothing."""

    def said(library: str, adapter: str) -> str:
        code = (
            "import sys\n"
            f"sys.modules[{library!r}] = None\n"
            "import ppo_kl, ppo_kl.integrations\n"
            "try:\n"
            f"    import ppo_kl.integrations.{adapter}\n"
            "except ImportError as error:\n"
            "    print(error)\n"
        )
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    return said
