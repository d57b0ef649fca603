"""Environments whose truth is known, registered with Gymnasium as `toy/…-v0`; importing the module registers them.

An environment learns which environment and which episode it is from the seed of its reset, through a table that is
computed here from NumPy alone: a run seeded in any other way than `SeedSequence(seed, spawn_key=(env, episode))` fails.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ppo_kl.config import EnvConfig
from ppo_kl.training.agent import Agent

SEED = 7
"""Seed of every run that uses a `Counter`."""


def seed_of(seed: int, env: int, episode: int) -> int:
    """The contract of the design page, written again."""
    return int(np.random.SeedSequence(seed, spawn_key=(env, episode)).generate_state(1, np.uint64)[0])


@functools.cache
def _places() -> dict[int, tuple[int, int]]:
    return {seed_of(SEED, env, episode): (env, episode) for env in range(4) for episode in range(100)}


def place_of(seed: int | None) -> tuple[int, int]:
    """Which environment and which of its episodes a seed belongs to, in a run seeded with `SEED`."""
    if seed not in _places():
        raise AssertionError(f"a reset with seed {seed!r}, which no episode of a run seeded with {SEED} has")
    return _places()[seed]


class Transition(NamedTuple):
    """One thing that happened in one environment."""

    obs: tuple[float, ...]
    action: int
    reward: float
    next_obs: tuple[float, ...]
    terminated: bool
    truncated: bool


class Counter(gym.Env[np.ndarray, int]):
    """obs = (env, episode, step). Episodes of 2 to 6 steps, staggered over the environments, with three kinds of end.

    It overwrites the one array in which it sends its observations at every step and every reset, and it logs what
    really happened to it.
    """

    ENDS: ClassVar = {0: (True, False), 1: (False, True), 2: (True, True)}

    def __init__(self, in_place: bool = True) -> None:
        self.observation_space = spaces.Box(-1.0, 1e6, (3,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.log: list[Transition] = []
        self._in_place = in_place
        self._buffer = np.zeros(3, np.float32)

    def _send(self) -> np.ndarray:
        self._buffer[:] = self.env, self.episode, self.steps
        return self._buffer if self._in_place else self._buffer.copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.env, self.episode = place_of(seed)
        self.steps = 0
        return self._send(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        before = (float(self.env), float(self.episode), float(self.steps))
        self.steps += 1
        over = self.steps == episode_length(self.env, self.episode)
        terminated, truncated = self.ENDS[(self.env + self.episode) % 3] if over else (False, False)
        reward = 100.0 * self.env + 10.0 * self.episode + self.steps + int(action) / 4
        obs = self._send()
        self.log.append(Transition(before, int(action), reward, tuple(obs.tolist()), terminated, truncated))
        return obs, reward, terminated, truncated, {}


def episode_length(env: int, episode: int) -> int:
    """Steps of a `Counter`'s episode: 2 to 6, different between neighbouring environments."""
    return 2 + (3 * env + 2 * episode) % 5


class Clock(gym.Env[np.ndarray, int]):
    """Reward 1 + step · `slope`; ends after `length` steps (never: None). Shows a constant, or the time as one-hot."""

    def __init__(
        self, length: int | None = 8, terminates: bool = False, shows_time: bool = False, slope: float = 0.0
    ) -> None:
        self.length, self.terminates, self.shows_time, self.slope = length, terminates, shows_time, slope
        size = (length or 0) + 1 if shows_time else 1
        self.observation_space = spaces.Box(0.0, 1.0, (size,), np.float32)
        self.action_space = spaces.Discrete(2)

    def _obs(self) -> np.ndarray:
        obs = np.zeros(self.observation_space.shape, np.float32)
        obs[self.steps if self.shows_time else 0] = 1.0
        return obs

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self._obs(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = 1.0 + self.slope * self.steps
        self.steps += 1
        over = self.length is not None and self.steps >= self.length
        return self._obs(), reward, over and self.terminates, over and not self.terminates, {}


class Bandit(gym.Env[np.ndarray, int]):
    """One step, whose reward is 1 for action 2 and 0 for the others."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.ones(1, np.float32), float(action == 2), True, False, {}


ACTION_SPACES = {
    "Discrete": spaces.Discrete(3, start=-1),
    "OneAction": spaces.Discrete(1),
    "MultiDiscrete": spaces.MultiDiscrete([2, 5, 3], start=[0, -1, 7]),
    "MultiBinary": spaces.MultiBinary((2, 2)),
    "Box": spaces.Box(np.float32([-2.0, 0.0]), np.float32([1.0, 1000.0])),
    "Scalar": spaces.Box(-0.1, 0.3, (), np.float64),
    "Dict": spaces.Dict(
        {
            "turn": spaces.Discrete(3, start=1),
            "arm": spaces.Box(-1.0, 2.0, (2, 1)),
            "more": spaces.Tuple((spaces.MultiBinary(2), spaces.MultiDiscrete([2, 4]))),
        }
    ),
    "Tuple": spaces.Tuple((spaces.Box(-0.1, 0.3, (2,), np.float16), spaces.Discrete(4))),
}
"""One of each kind of action space there is a policy for."""


class Strict(gym.Env[np.ndarray, Any]):
    """Three steps, and an error for an action that is not in the space, by `contains`."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return np.ones(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        # Gymnasium's vector environments send a number where the shape is (), and its Box warns of it.
        if not self.action_space.contains(np.asarray(action) if isinstance(action, np.floating) else action):
            raise AssertionError(f"{action!r} is not in {self.action_space}")
        self.steps += 1
        return np.ones(2, np.float32), float(self.steps), self.steps == 3, False, {}


FAULTY_ENV, FAULTY_STEP = 1, 5
"""Where a `Faulty` sends its fault: at the sixth step of environment 1."""


class Faulty(Counter):
    """A `Counter` in which one reward or one number of an observation is not finite."""

    def __init__(self, what: str, value: float, at: int = FAULTY_STEP) -> None:
        super().__init__(in_place=False)
        self.what, self.value, self.at = what, value, at

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.env == FAULTY_ENV and len(self.log) == self.at + 1:
            if self.what == "reward":
                reward = self.value
            else:
                obs[1] = self.value
        return obs, reward, terminated, truncated, info


class BareVectorEnv(VectorEnv):
    """A vector environment that says about itself what it is told to say, and nothing of how it resets by default."""

    def __init__(self, num_envs: int = 2, metadata: dict[str, Any] | None = None, **_: Any) -> None:
        self.metadata = metadata or {}
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = spaces.Box(0.0, 1.0, (1,)), spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)


def _register(name: str, entry_point: Any, **kwargs: Any) -> None:
    if f"toy/{name}-v0" not in gym.registry:
        gym.register(f"toy/{name}-v0", entry_point=entry_point, disable_env_checker=True, kwargs=kwargs)


_register("Counter", Counter)
_register("CopyingCounter", Counter, in_place=False)
_register("Truncated", Clock)
_register("Terminated", Clock, terminates=True, shows_time=True)
_register("Bandit", Bandit)
_register("OneStep", Clock, length=1, terminates=True)
_register("Endless", Clock, length=None)
_register("Long", Clock, length=20, slope=0.5)
for _name, _space in ACTION_SPACES.items():
    _register(f"Strict{_name}", Strict, action_space=_space)
for _what in ("reward", "obs"):
    for _value in (np.nan, np.inf, -np.inf):
        _register(f"Faulty_{_what}_{_value}", Faulty, what=_what, value=_value)
_register("Faulty_reward_huge", Faulty, what="reward", value=1e39)
_register("Faulty_end_nan", Faulty, what="obs", value=np.nan, at=4)
if "toy/Bare-v0" not in gym.registry:
    gym.register("toy/Bare-v0", vector_entry_point=BareVectorEnv)

MODES = (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED)


def env_config(name: str, **settings: Any) -> EnvConfig:
    """Two copies of `toy/NAME-v0`, or of the Gymnasium environment of that id."""
    return EnvConfig(**{"id": name if name[-3:-1] == "-v" else f"toy/{name}-v0", "num_envs": 2, **settings})


SMALL = {
    "env.num_envs": 2,
    "policy.hidden_sizes": (8,),
    "training.num_steps": 16,
    "training.num_epochs": 2,
    "training.minibatch_size": 8,
    "runtime.device": "cpu",
    "runtime.workers": 0,
}


def small_agent(name: str = "CartPole-v1", objective: Any = None, *, seed: int = SEED, **overrides: Any) -> Agent:
    """An agent that learns fast and badly; `training__lr=1` overrides training.lr."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return Agent(env_config(name).id, objective, seed=seed, overrides={**SMALL, **dotted})


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics without what the clock on the wall and the machine say."""
    return {tag: value for tag, value in metrics.items() if not tag.startswith(("time/", "system/"))}
