"""EnvPool's environments, C++ that steps all copies in one call: `--env envpool/HalfCheetah-v5`.

Its vector environments are Gymnasium's but for a few ways of their own, which end here.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from ppo_kl.config.checked import nearest
from ppo_kl.config.env import EnvConfig
from ppo_kl.errors import ConfigError, needs_extra
from ppo_kl.observations import Array

PREFIX = "envpool/"
OURS = {
    "num_envs": "env.num_envs",
    "seed": "the run's seed",
    "batch_size": "nothing: every step is one of all copies",
    "env_type": "nothing: it is Gymnasium's",
    "reward_clip": "env.reward_limit, which clips what the learner sees and not what is logged",
    "episodic_life": "nothing: lives would be logged as games; ALE/NAME can do it",
}
"""What EnvPool could be made with -> what sets it here."""
UNBOUNDED = np.finfo(np.float32).tiny
"""What stands for −∞ in some of its spaces: C++'s smallest positive number, taken for the smallest of all."""


def is_envpool(env_id: str) -> bool:
    """Whether it is one of EnvPool's environments."""
    return env_id.startswith(PREFIX)


def make_envpool(config: EnvConfig, seeds: Array) -> VectorEnv[Any, Any, Any]:
    """EnvPool's environments.

    Args:
        config: which, how many, and made with what.
        seeds: one for each copy, `[N]`, of 31 bits; EnvPool takes them here and seeds later episodes itself.

    Raises:
        ConfigError: EnvPool is not installed, has no such environment, or does not take these kwargs.
    """
    if config.vectorization != "native":
        raise ConfigError(
            f"env.vectorization={config.vectorization!r}: EnvPool steps all copies itself; {config.id} takes native",
            "vectorization",
        )
    for name in OURS.keys() & config.kwargs.keys():
        raise ConfigError(f"env.kwargs.{name}={config.kwargs[name]!r}: set by {OURS[name]}", "kwargs")
    try:
        envpool = importlib.import_module("envpool")
    except ImportError as error:
        raise ConfigError(f"env.id={config.id!r}: {needs_extra('envpool')} ({error})", "id") from error
    name, known = config.id.removeprefix(PREFIX), envpool.list_all_envs()
    if name not in known:
        raise ConfigError(f"env.id={config.id!r}: EnvPool has no {name}{nearest(name, known)}", "id")
    ours: dict[str, Any] = {"env_type": "gymnasium", "num_envs": config.num_envs, "seed": [int(x) for x in seeds]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered")  # of float64 bounds that it makes float32
        try:
            return TrueSpaces(envpool.make(name, **ours, **config.kwargs))
        except TypeError as error:
            raise ConfigError(f"env.id={config.id!r}: {error}; it was made with {config.kwargs}", "id") from error


class TrueSpaces(VectorWrapper[Any, Any, Any]):
    """An EnvPool whose spaces are those of Gymnasium's contract, with bounds that hold."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.single_observation_space = _true_bounds(env.single_observation_space)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, env.num_envs)
        self.action_space = gym.vector.utils.batch_space(env.single_action_space, env.num_envs)


def _true_bounds(space: gym.Space[Any]) -> gym.Space[Any]:
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict({key: _true_bounds(part) for key, part in space.spaces.items()})
    if not isinstance(space, gym.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return space
    return gym.spaces.Box(np.where(space.low == UNBOUNDED, -np.inf, space.low), space.high, dtype=space.dtype.type)
