"""What a rollout leaves step by step, in arrays on the host that are allocated at its beginning."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppo_kl.envs.autoreset import Environments, Step
from ppo_kl.observations import Array, by_part


class Storage:
    """T steps of N environments, and what they show after the last.

    Args:
        num_steps: T.
        envs: N of them.
    """

    def __init__(self, num_steps: int, envs: Environments) -> None:
        T, N = num_steps, envs.num_envs
        self.obs = by_part(envs.parts, lambda part: np.empty((T + 1, N, *part.shape), part.dtype))
        """What was acted on, and what is next, `[T + 1, N, *obs]`, by part where the space has several."""
        self.starts = np.empty((T + 1, N), bool)
        """Where it begins an episode."""
        self.reward = np.empty((T, N))
        self.terminated, self.truncated, self.valid, self.over = (np.empty((T, N), bool) for _ in range(4))
        self.action: Array = np.empty(0)
        """As sampled, `[T, N, *A]`; made by the first step, which knows the type."""
        self.action_mask: Array | None = None
        """`[T, N, M]` bool; none where no environment said so far in this rollout."""
        self.final_obs: dict[tuple[int, int], Any] = {}
        """The last observation of each episode that was cut off, by step and environment."""
        self.nonfinite = 0
        """Episodes that were cut because of what is not finite."""

    def show(self, t: int, obs: Any, starts: Array) -> None:
        """Write down what step t acts on, as `Environments` hands it out, and where it begins an episode."""
        if isinstance(self.obs, dict):
            for key, x in self.obs.items():
                x[t] = obs[key]
        else:
            self.obs[t] = obs
        self.starts[t] = starts

    def shown(self, t: int) -> Any:
        """What step t acts on, `[N, *obs]`, by part; views."""
        return {key: x[t] for key, x in self.obs.items()} if isinstance(self.obs, dict) else self.obs[t]

    def allow(self, t: int, mask: Array | None) -> None:
        """Write down which actions step t may take, `[N, M]` bool or none."""
        if mask is None:
            return
        if self.action_mask is None:
            self.action_mask = np.ones((*self.reward.shape, mask.shape[-1]), bool)
        self.action_mask[t] = mask

    def add(self, t: int, action: Array, step: Step) -> None:
        """Write down what step t did and what was answered, but for the observation."""
        if t == 0:
            self.action = np.empty((len(self.reward), *action.shape), action.dtype)
        self.action[t] = action
        self.reward[t], self.terminated[t], self.truncated[t] = step.reward, step.terminated, step.truncated
        self.valid[t], self.over[t] = step.valid, step.over
        self.nonfinite += step.nonfinite
