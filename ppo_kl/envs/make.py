"""From settings to environments: made, wrapped and seeded."""

from __future__ import annotations

import contextlib
import functools
import os
import traceback
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from ppo_kl.config.env import EnvConfig
from ppo_kl.envs.atari import WholeGames, atari_kwargs, is_atari
from ppo_kl.envs.autoreset import Environments
from ppo_kl.envs.build import build, cannot_make, prepare
from ppo_kl.envs.envpool import is_envpool, make_envpool
from ppo_kl.envs.guard import GuardedEnv, episode_seed
from ppo_kl.envs.serial import SerialVectorEnv
from ppo_kl.envs.workers import WorkerVectorEnv, require_alike
from ppo_kl.errors import ConfigError, EnvWorkerError, PPOKLError
from ppo_kl.imports import attribute_named, import_modules, module_of

EVALUATION = 1_000_000
"""First environment index of evaluation, far from training's, so that no random stream serves both."""

MEASURED = 2_000_000
"""Index of the environment whose steps are timed before a run, see `ppo_kl.envs.worker_count`."""

VIDEO = {0: "", EVALUATION: "-evaluation"}
"""The copies that record a video, if any do, and how its files are told apart."""


class MakeEnv:
    """Makes one seeded environment, in this process or in a worker.

    Args:
        config: which.
        seed: the run's.
        index: of the environment.
        episode: how many it began in an earlier part of the run.
    """

    def __init__(self, config: EnvConfig, seed: int, index: int, episode: int) -> None:
        self.config, self.seed, self.index, self.episode = config, seed, index, episode
        self._parent = os.getpid()

    def __call__(self) -> gym.Env[Any, Any]:
        """The environment, guarded."""
        if os.getpid() != self._parent:
            # In the parent they are imported, or `build` would have refused; a process that was not forked has not.
            import_modules(filter(None, map(module_of, (self.config.id, *self.config.wrappers))), "env")
        truncates = self.config.nonfinite == "truncate"
        try:
            env = build(self.config, VIDEO.get(self.index))
        except PPOKLError:
            raise
        except Exception as error:
            raise EnvWorkerError(
                f"environment {self.index} ({self.config.id}) could not be made: {type(error).__name__}: {error}; it "
                f"was made with env.kwargs {self.config.kwargs}, env.wrappers {self.config.wrappers}; nothing was run\n"
                f"{traceback.format_exc()}"
            ) from error
        return GuardedEnv(env, self.config.id, self.seed, self.index, self.episode, truncates=truncates)


def require_imported(config: EnvConfig) -> None:
    """Refuse an environment or wrapper of a module that nobody imported here: before a process begins, which would.

    Raises:
        ConfigError: it names the module.
    """
    for name in filter(module_of, (config.id, *config.wrappers)):
        attribute_named(name, "env.id" if name == config.id else "env.wrappers")


def make_vector_env(
    config: EnvConfig,
    seed: int,
    *,
    first_env: int = 0,
    first_episode: Sequence[int] | None = None,
    autoreset: AutoresetMode = AutoresetMode.SAME_STEP,
    workers: int = 0,
) -> Environments:
    """The environments of a run.

    Args:
        config: which and how many.
        seed: the run's.
        first_env: index of the first environment, see `EVALUATION`.
        first_episode: how many episodes each environment began in an earlier part of the run, `[N]`; none: 0.
        autoreset: of sync environments that are all stepped here, SAME_STEP in training; those in workers reset in the
            same step, and a native one has its own way.
        workers: how many processes beside this one step a share of sync environments.

    Returns:
        Environments whose every episode is seeded by `episode_seed`; a native vector environment only at its start.

    Raises:
        ConfigError: there is no such environment, or it cannot be made.
        EnvWorkerError: the process of one failed while it was made.
    """
    episodes = list(first_episode) if first_episode is not None else [0] * config.num_envs
    if len(episodes) != config.num_envs:
        raise ConfigError(f"num_envs={config.num_envs}: this run was begun with {len(episodes)} environments")
    if config.vectorization == "native" or is_envpool(config.id):
        made = _native(config, [episode_seed(seed, first_env + i, episode) for i, episode in enumerate(episodes)])
    else:
        require_imported(config)
        makers = [MakeEnv(config, seed, first_env + i, episode) for i, episode in enumerate(episodes)]
        processes = None if config.vectorization == "async" else workers
        if processes != 0:
            made = Environments(WorkerVectorEnv(makers, timeout=config.timeout, name=config.id, workers=processes))
        else:
            made = Environments(_sync(makers, autoreset))
    made.episodes_begun[:] = episodes
    return made


def _sync(makers: list[MakeEnv], autoreset: AutoresetMode) -> VectorEnv[Any, Any, Any]:
    with contextlib.ExitStack() as unfinished:
        envs = []
        for make in makers:
            envs.append(make())
            unfinished.callback(envs[-1].close)
        require_alike([(env.observation_space, env.action_space) for env in envs], makers[0].config.id)
        made: VectorEnv[Any, Any, Any]
        if autoreset is AutoresetMode.SAME_STEP:
            made = SerialVectorEnv(envs)
        else:
            made = SyncVectorEnv([functools.partial(_itself, env) for env in envs], autoreset_mode=autoreset)
        unfinished.pop_all()
    return made


def _itself(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return env


def _native(config: EnvConfig, seeds: list[int]) -> Environments:
    of_31_bits = np.array([seed % 2**31 for seed in seeds])  # integers are smaller in C++
    if is_envpool(config.id):
        return Environments(make_envpool(config, of_31_bits))
    prepare(config.id)
    atari = is_atari(config.id)
    kwargs = atari_kwargs(config.kwargs) if atari else config.kwargs
    try:
        env = gym.make_vec(config.id, config.num_envs, vectorization_mode="vector_entry_point", **kwargs)
        return Environments(WholeGames(env), of_31_bits) if atari else Environments(env, seeds[0])
    except (gym.error.Error, ImportError, TypeError) as error:
        raise cannot_make(config, error) from error
