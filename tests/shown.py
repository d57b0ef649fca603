"""Environments that show samples of every kind of observation space, registered as `toy/Shows…-v0`."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

NESTED = spaces.Dict(
    {
        "z": spaces.Box(-1.0, 1.0, (2, 3)),
        "a": spaces.Tuple((spaces.Discrete(4, start=2), spaces.MultiBinary(2))),
        "cam": spaces.Box(0, 255, (40, 40, 3), np.uint8),
        "m": spaces.MultiDiscrete([2, 5], start=[1, 0]),
    }
)


class Shows(gym.Env):
    """Sends samples of a space; three steps."""

    def __init__(self, space):
        self.observation_space, self.action_space = space, spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 3, False, {}


SHOWN = {
    "Nested": NESTED,
    "Scalar": spaces.Box(-1.0, 1.0, ()),
    "Bool": spaces.Box(0, 1, (3,), np.bool_),
    "Float64": spaces.Box(-1.0, 1.0, (2, 2), np.float64),
    "Discrete": spaces.Discrete(5, start=5),
    "MultiBinary": spaces.MultiBinary((2, 2)),
    "Image": spaces.Box(0, 255, (3, 40, 40), np.uint8),
    "Tuple": spaces.Tuple((spaces.Discrete(2), spaces.Box(-1.0, 1.0, (2,)))),
}
for _name, _space in SHOWN.items():
    gym.register(f"toy/Shows{_name}-v0", entry_point=Shows, kwargs={"space": _space})
