"""Environments that end their process, fail, or print, as soon as they are stepped."""

import os

import gymnasium as gym
import numpy as np


class Fails(gym.Env):
    """Not by chance."""

    observation_space, action_space = gym.spaces.Box(0.0, 1.0, (1,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        raise RuntimeError("not by chance")


class Kills(Fails):
    """As the kernel does where memory runs out."""

    def step(self, action):
        os._exit(9)


class Prints(Fails):
    """As libraries do."""

    def step(self, action):
        os.write(1, b"words\n")
        return np.zeros(1, np.float32), 1.0, True, False, {}
