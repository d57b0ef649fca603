"""Whole episodes with a policy that stands still, on environments of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppo_kl.config import EnvConfig, EvaluationConfig
from ppo_kl.envs.autoreset import Environments
from ppo_kl.errors import ConfigError
from ppo_kl.observations import Array
from ppo_kl.training.data_check import DataCheck


class Evaluation(NamedTuple):
    """Undiscounted returns and lengths of whole episodes, in the environment's own rewards."""

    returns: list[float]
    lengths: list[int]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns."""
        return float(np.std(self.returns))


def evaluated(env: EnvConfig, episodes: int, video: str | Path | None = None, name: str = "agent") -> EnvConfig:
    """The environments on which an agent of `env` is evaluated.

    Args:
        env: what it was trained on.
        episodes: how many will be played.
        video: a folder for a video of every episode.
        name: what the names of its files begin with.

    Raises:
        ConfigError: a vector environment of its own cannot be recorded.
    """
    # A vector environment of its own may show something else than single ones, as Atari's does.
    native = env.vectorization == "native"
    plain = dataclasses.replace(
        env,
        vectorization="native" if native else "sync",
        num_envs=1 if video is not None else min(episodes, 10),
        timeout=type(env).timeout,
    )
    # Recorded are the episodes of training, or those that are asked for here.
    wrappers = {wrapper: kwargs for wrapper, kwargs in env.wrappers.items() if wrapper != "RecordVideo"}
    if video is None:
        return dataclasses.replace(plain, wrappers=wrappers)
    if native:
        raise ConfigError(f"video={str(video)!r}: {env.id} steps its own copies, which no wrapper can record")
    recorder = {"video_folder": str(video), "first": episodes, "name_prefix": name, "disable_logger": True}
    return dataclasses.replace(
        plain,
        kwargs={**env.kwargs, "render_mode": "rgb_array"},
        wrappers={**wrappers, "RecordVideo": recorder},
    )


def evaluate(
    act: Callable[[Any, Array | None, Array], Any],
    envs: Environments,
    episodes: int,
    max_steps: int = EvaluationConfig.max_steps,
) -> Evaluation:
    """The first ⌈episodes / N⌉ or so episodes of each environment, `episodes` in all.

    Each environment contributes a number fixed beforehand: taking whichever episodes end first would favour short ones.

    Args:
        act: observations `[N, *obs]`, the actions that are allowed, `[N, M]` bool or none, and where an episode
            begins, `[N]` bool -> actions as the environments take them.
        envs: N environments; closed by the caller.
        episodes: how many.
        max_steps: of each environment; an episode that is still running then counts as far as it went.

    Raises:
        EnvDataError: an environment sent something that nobody can act on, or a return that is no number.
        EnvWorkerError: an environment failed.
    """
    N = envs.num_envs
    wanted = np.full(N, episodes // N)
    wanted[: episodes % N] += 1
    done_so_far, returns, lengths = np.zeros(N, int), np.zeros(N), np.zeros(N, int)
    result = Evaluation([], [])
    obs, starts, check, steps = envs.reset(), np.ones(N, bool), DataCheck(envs), 0
    check.observations(obs, steps)
    while (done_so_far < wanted).any() and steps < max_steps:
        step = envs.step(act(obs, envs.action_mask, starts))
        obs, starts = step.obs, step.begun
        check.rewards(step.reward, steps)
        steps += 1
        check.observations(obs, steps)
        returns += np.where(step.valid, step.reward, 0.0)
        lengths += step.valid
        for i in np.flatnonzero(step.over):
            if done_so_far[i] < wanted[i]:
                result.returns.append(float(returns[i]))
                result.lengths.append(int(lengths[i]))
            done_so_far[i] += 1
            returns[i], lengths[i] = 0.0, 0
    for i in np.flatnonzero(done_so_far < wanted):
        result.returns.append(float(returns[i]))
        result.lengths.append(int(lengths[i]))
    return result
