"""From settings to environments: made, wrapped and seeded."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from ppo_kl.config.env import EnvConfig
from ppo_kl.envs.autoreset import Environments
from ppo_kl.errors import ConfigError

EVALUATION = 1_000_000
"""First environment index of evaluation, far from training's, so that no random stream serves both."""


def episode_seed(seed: int, env: int, episode: int) -> int:
    """The seed of one episode: a function of the run's seed, the environment's index and the episode's number.

    Args:
        seed: the run's.
        env: index of the environment.
        episode: how many episodes this environment began before.

    Source: numpy.random.SeedSequence; neighbouring seeds share no stream, as `seed + i` would.
    """
    return int(np.random.SeedSequence(seed, spawn_key=(env, episode)).generate_state(1, np.uint64)[0])


class EpisodeSeeds(gym.Wrapper[Any, Any, Any, Any]):
    """Resets episode k of environment i from `episode_seed(seed, i, k)`, also where the reset is automatic.

    The last observation of an episode is handed out as a copy: with SAME_STEP the next episode begins before anybody
    has read it, in an environment that may write all its observations into one array.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int, index: int, episode: int) -> None:
        super().__init__(env)
        self._seed, self._index, self._episode = seed, index, episode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """Begin the next episode; a seed from outside is not used."""
        this_episode = episode_seed(self._seed, self._index, self._episode)
        self._episode += 1
        return self.env.reset(seed=this_episode, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return np.array(obs) if terminated or truncated else obs, reward, terminated, truncated, info


class _MakeEnv:
    """Makes one seeded environment, in this process or in a worker."""

    def __init__(self, env_id: str, seed: int, index: int, episode: int) -> None:
        self.env_id, self.seed, self.index, self.episode = env_id, seed, index, episode
        self._parent = os.getpid()

    def __call__(self) -> gym.Env[Any, Any]:
        if os.getpid() != self._parent:
            # A signal to the process group, as Ctrl-C, is the parent's to answer: it still needs its workers to finish
            # the iteration. And a forked worker would inherit the parent's handlers.
            os.setpgid(0, 0)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return EpisodeSeeds(gym.make(self.env_id), self.seed, self.index, self.episode)


def make_vector_env(
    config: EnvConfig,
    seed: int,
    *,
    first_env: int = 0,
    first_episode: Sequence[int] | None = None,
    autoreset: AutoresetMode = AutoresetMode.SAME_STEP,
) -> Environments:
    """The environments of a run.

    Args:
        config: which and how many.
        seed: the run's.
        first_env: index of the first environment, see `EVALUATION`.
        first_episode: how many episodes each environment began in an earlier part of the run, `[N]`; none: 0.
        autoreset: of sync and async environments; a native one has its own.

    Returns:
        Environments whose every episode is seeded by `episode_seed`; a native vector environment only at its start.

    Raises:
        ConfigError: there is no such environment, or it cannot be made.
    """
    episodes = list(first_episode) if first_episode is not None else [0] * config.num_envs
    if len(episodes) != config.num_envs:
        raise ConfigError(f"num_envs={config.num_envs}: this run was begun with {len(episodes)} environments")
    if config.vectorization == "native":
        env: VectorEnv[Any, Any, Any] = _make(
            config, lambda: gym.make_vec(config.id, config.num_envs, vectorization_mode="vector_entry_point")
        )
        made = Environments(env, reset_seed=episode_seed(seed, first_env, episodes[0]))
    else:
        makers = [_MakeEnv(config.id, seed, first_env + i, episode) for i, episode in enumerate(episodes)]
        vector = SyncVectorEnv if config.vectorization == "sync" else AsyncVectorEnv
        made = Environments(_make(config, lambda: vector(makers, autoreset_mode=autoreset)))
    made.episodes_begun[:] = episodes
    return made


def _make(config: EnvConfig, make: Any) -> Any:
    try:
        return make()
    except (gym.error.Error, ImportError) as error:
        raise ConfigError(f"env.id={config.id!r} ({config.vectorization}): {error}", "id") from error
