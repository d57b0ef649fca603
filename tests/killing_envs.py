"""Environments that end their process, fail, print, or can no longer be stopped, as soon as they are stepped."""

import os
import signal
from pathlib import Path

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


class Deaf(Prints):
    """Nobody but SIGKILL ends its process, whose number is in $DEAF as soon as that holds for good."""

    steps = 0

    def step(self, action):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.steps += 1
        if self.steps == 1000:  # the initial policy has been played by then, and the handlers of training are in place
            Path(os.environ["DEAF"]).write_text(str(os.getpid()))
        return super().step(action)
