"""The environments that one of several processes steps, and their rows in the arrays that all processes see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector.utils import batch_space

from ppo_kl.envs.serial import copied, each_action, replay_each, reset_each, step_each
from ppo_kl.envs.shared import Rows

Infos = dict[int, dict[str, Any]]


class Share:
    """Environments side by side, whose infos are told by their place among them.

    Args:
        envs: at least one, guarded; see `ppo_kl.envs.serial.reset_each`.
        rows: theirs.
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], rows: Rows) -> None:
        self._envs, self._rows = envs, rows
        self._actions: Any = batch_space(envs[0].action_space, len(envs))

    def reset(self, options: dict[str, Any] | None) -> Infos:
        """Begin an episode everywhere."""
        return reset_each(self._envs, self._rows.answers, options)

    def step(self) -> Infos:
        """Step everywhere by the actions in the rows."""
        # A copy: an environment may keep its action, and the next one is written over it.
        taken = each_action(self._actions, copied(self._rows.action))
        return step_each(self._envs, taken, self._rows.answers)

    def replay(self, actions: Sequence[Sequence[Any]]) -> Infos:
        """Begin an episode everywhere and go on by the actions of each."""
        return replay_each(self._envs, actions, self._rows.answers)

    def get_attr(self, name: str) -> list[Any]:
        """An attribute of each, or of the innermost wrapper that has it."""
        return [env.get_wrapper_attr(name) for env in self._envs]
