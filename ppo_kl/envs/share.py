"""Some environments, stepped one after the other, that answer into rows of arrays; each resets in the step that ends it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import batch_space, concatenate, iterate

from ppo_kl.envs.shared import Rows, over_arrays
from ppo_kl.errors import EnvWorkerError

Infos = list[dict[str, Any]]


class Share:
    """The environments that one process steps.

    Args:
        envs: at least one.
        rows: of all environments of the run.
        first: the row of the first of them.
        who: the process, for messages.
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], rows: Rows, first: int, who: str) -> None:
        self._envs, self._who = envs, who
        self._space: Any = envs[0].observation_space
        self._actions: Any = batch_space(envs[0].action_space, len(envs))
        mine = slice(first, first + len(envs))
        self._rows = Rows(*(over_arrays(lambda x: x[mine], each) for each in rows))
        self._places = [over_arrays(lambda x, i=i: x[i : i + 1], self._rows.obs) for i in range(len(envs))]

    def reset(self, arguments: Sequence[tuple[int | None, dict[str, Any] | None]]) -> Infos:
        """Begin an episode everywhere, each from its (seed, options)."""
        infos = []
        for i, (env, (seed, options)) in enumerate(zip(self._envs, arguments, strict=True)):
            obs, info = env.reset(seed=seed, options=options)
            self._show(i, obs, "reset")
            infos.append(dict(info))
        return infos

    def step(self) -> Infos:
        """Step everywhere by the actions in the rows."""
        infos, rows = [], self._rows
        # A copy: an environment may keep its action, and the next one is written over it.
        actions = iterate(self._actions, over_arrays(np.copy, rows.action))
        for i, (env, action) in enumerate(zip(self._envs, actions, strict=True)):
            obs, reward, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                # A copy: the reset may write into the same array.
                last = {"final_obs": copy.deepcopy(obs), "final_info": dict(info)}
                obs, info = env.reset()
                info = last | info
            self._show(i, obs, "step")
            rows.reward[i], rows.terminated[i], rows.truncated[i] = float(reward), bool(terminated), bool(truncated)
            infos.append(dict(info))
        return infos

    def replay(self, actions: Sequence[Sequence[Any]]) -> Infos:
        """Begin an episode everywhere and go on by the actions of each; returns and ends so far are in the rows."""
        infos, rows = [], self._rows
        for i, (env, taken) in enumerate(zip(self._envs, actions, strict=True)):
            guarded: Any = env
            obs, rows.reward[i], rows.terminated[i], info = guarded.replay(taken)
            self._show(i, obs, "replay")
            infos.append(dict(info))
        return infos

    def get_attr(self, names: Sequence[str]) -> list[Any]:
        """An attribute of each, or of the innermost wrapper that has it."""
        return [env.get_wrapper_attr(name) for env, name in zip(self._envs, names, strict=True)]

    def _show(self, i: int, obs: Any, call: str) -> None:
        place = self._places[i]
        if isinstance(obs, np.ndarray) and obs.dtype == getattr(place, "dtype", None) and obs.shape == place.shape[1:]:
            place[0] = obs
            return
        try:
            concatenate(self._space, [obs], place)
        except Exception as error:
            raise EnvWorkerError(
                f"{self._who}: the observation from {call} does not fit {self._space}: {obs!r:.200}. No update was made "
                "with it; what was saved before stays. Correct the environment, then go on from the last checkpoint "
                "with --resume"
            ) from error
