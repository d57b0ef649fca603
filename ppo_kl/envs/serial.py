"""N environments of this process, stepped one after the other straight into arrays that are allocated once.

What it answers is what Gymnasium's SyncVectorEnv with SAME_STEP answers, for a fraction of its own cost: nothing is
collected in lists and joined, nothing is copied deeply, and infos are merged only where there are any.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array, iterate

from ppo_kl.observations import Array, parts_of

Leaf = tuple[tuple[str | int, ...], Array]
"""The keys that lead to one part of an observation, and where it is written, `[N, *shape]`."""


class Answers:
    """Where N environments write what they answer; overwritten by every step.

    Args:
        obs: arrays in the nesting of the observation space, `[N, *obs]` each.
        leaves: the same arrays, flat.
        reward: `[N]` float64.
        terminated: `[N]` bool.
        truncated: `[N]` bool.
    """

    def __init__(self, obs: Any, leaves: Sequence[Leaf], reward: Array, terminated: Array, truncated: Array) -> None:
        self.obs, self.leaves = obs, leaves
        self.reward, self.terminated, self.truncated = reward, terminated, truncated

    def show(self, i: int, obs: Any) -> None:
        """Write an observation as it was sent by environment i."""
        for path, array in self.leaves:
            part = obs
            for key in path:
                part = part[key]
            array[i] = part


def answers_for(space: gym.Space[Any], num_envs: int) -> Answers:
    """Empty arrays for environments of this observation space."""
    obs: Any = create_empty_array(space, num_envs)
    N = num_envs
    return Answers(obs, leaves_of(space, obs), np.zeros(N), np.zeros(N, bool), np.zeros(N, bool))


def leaves_of(space: gym.Space[Any], obs: Any) -> list[Leaf]:
    """The arrays in batched observations, by the keys that lead there; views of them, not copies."""
    leaves = []
    for part in parts_of(space):
        array = obs
        for key in part.path:
            array = array[key]
        leaves.append((part.path, array))
    return leaves


def each_action(space: gym.Space[Any], actions: Any) -> Iterable[Any]:
    """The actions of single environments, from those of all; `space` is that of all."""
    return actions if isinstance(actions, np.ndarray) else iterate(space, actions)


def reset_each(
    envs: Sequence[gym.Env[Any, Any]], into: Answers, options: dict[str, Any] | None = None
) -> dict[int, dict[str, Any]]:
    """Begin an episode in every environment.

    Args:
        envs: n environments that seed themselves and check what they send, as `GuardedEnv`.
        into: n places for what they answer.
        options: of the reset.

    Returns:
        The infos that are not empty, by the environment's place in `envs`.
    """
    infos = {}
    for i, env in enumerate(envs):
        obs, info = env.reset(options=options)
        into.show(i, obs)
        if info:
            infos[i] = info
    return infos


def step_each(envs: Sequence[gym.Env[Any, Any]], actions: Iterable[Any], into: Answers) -> dict[int, dict[str, Any]]:
    """Step every environment; one whose episode ends begins the next within the same step.

    Args:
        envs: n environments, as for `reset_each`, that hand out the last observation of an episode as a copy.
        actions: of each.
        into: n places for what they answer.

    Returns:
        The infos that are not empty, by the environment's place in `envs`. Where an episode ended, its last observation
        is in `final_obs` and its last info in `final_info`; the rest belongs to the new episode.
    """
    infos = {}
    reward, terminated, truncated, show = into.reward, into.terminated, into.truncated, into.show
    for i, (env, action) in enumerate(zip(envs, actions, strict=True)):
        obs, reward[i], terminates, truncates, info = env.step(action)
        terminated[i], truncated[i] = terminates, truncates
        if terminates or truncates:
            last = {"final_obs": obs, "final_info": info}
            obs, info = env.reset()
            info = last | info
        show(i, obs)
        if info:
            infos[i] = info
    return infos


def replay_each(envs: Sequence[Any], actions: Sequence[Sequence[Any]], into: Answers) -> dict[int, dict[str, Any]]:
    """Begin an episode in every environment and go on by the actions of each; see `GuardedEnv.replay`.

    Args:
        envs: n environments, as for `reset_each`.
        actions: of each episode so far.
        into: n places for what they answer: the return so far as reward, whether an episode is over as terminated.

    Returns:
        The infos that are not empty, by the environment's place in `envs`.
    """
    infos = {}
    for i, (env, taken) in enumerate(zip(envs, actions, strict=True)):
        obs, into.reward[i], into.terminated[i], info = env.replay(taken)
        into.show(i, obs)
        if info:
            infos[i] = info
    return infos


class SerialVectorEnv(VectorEnv[Any, Any, Any]):
    """N environments that reset in the step that ends an episode, and can go through their episodes again.

    Args:
        envs: alike, and guarded; see `step_each`.
    """

    answers_fit = True
    """Its arrays have the shapes and types that its spaces promise, and are the caller's own."""

    def __init__(self, envs: Sequence[Any]) -> None:
        self.envs, self.num_envs = list(envs), len(envs)
        self.metadata = {**envs[0].metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.spec, self.render_mode = envs[0].spec, envs[0].render_mode
        self.single_observation_space, self.single_action_space = envs[0].observation_space, envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._into = answers_for(self.single_observation_space, self.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """Begin an episode everywhere; a seed from outside is not used."""
        infos = reset_each(self.envs, self._into, options)
        return copied(self._into.obs), self._merged(infos)

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """Step every environment; the last observation of an episode is in `final_obs`, its info in `final_info`."""
        into = self._into
        infos = step_each(self.envs, each_action(self.action_space, actions), into)
        ends = into.terminated.copy(), into.truncated.copy()
        return copied(into.obs), into.reward.copy(), *ends, self._merged(infos) if infos else {}

    def replay(self, actions: Sequence[Sequence[Any]]) -> tuple[Any, Array, Array, dict[str, Any]]:
        """Begin an episode everywhere and go on by the actions of each; see `GuardedEnv.replay`."""
        into = self._into
        infos = replay_each(self.envs, actions, into)
        return copied(into.obs), into.reward.copy(), into.terminated.copy(), self._merged(infos)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment, or of the innermost wrapper that has it."""
        return tuple(env.get_wrapper_attr(name) for env in self.envs)

    def close_extras(self, **_: Any) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _merged(self, infos: dict[int, dict[str, Any]]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for i, info in infos.items():
            merged = self._add_info(merged, info, i)
        return merged


def copied(obs: Any) -> Any:
    """Batched observations in arrays of the caller's own, in the nesting they came in."""
    if isinstance(obs, np.ndarray):
        return obs.copy()
    return {key: copied(x) for key, x in obs.items()} if isinstance(obs, dict) else tuple(copied(x) for x in obs)
