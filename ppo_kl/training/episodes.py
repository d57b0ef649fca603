"""The returns and lengths of whole episodes, however many rollouts they span."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ppo_kl.observations import Array


class EpisodeStats(NamedTuple):
    """The episodes that ended in one rollout, in the environment's own rewards."""

    returns: list[float]
    lengths: list[int]


class EpisodeMeter:
    """Adds up each environment's episode.

    Rewards are added one after the other and in no other order, so that the same episode always has the same return,
    bit for bit: by that, replayed environments are told from others.
    """

    def __init__(self, num_envs: int) -> None:
        self.returns = np.zeros(num_envs)
        """Of the running episodes, `[N]`."""
        self.lengths = np.zeros(num_envs, np.int64)

    def add(self, reward: Array, over: Array, valid: Array) -> EpisodeStats:
        """Go on by a rollout.

        Args:
            reward: `[T, N]`.
            over: where an episode ended, `[T, N]` bool.
            valid: `[T, N]` bool; other rows do not count.

        Returns:
            The episodes that ended, in the order in which they did.
        """
        counted = np.where(valid, reward, 0.0)
        counted[0] += self.returns
        # With the first step first, so that 0 + r is r.
        steps = np.cumsum(valid, 0)
        ended = EpisodeStats([], [])
        begins, before = np.zeros(len(self.returns), np.int64), -self.lengths
        for t, i in np.argwhere(over):
            ended.returns.append(float(np.add.accumulate(counted[begins[i] : t + 1, i])[-1]))
            ended.lengths.append(int(steps[t, i] - before[i]))
            begins[i], before[i] = t + 1, steps[t, i]
        running = np.arange(len(reward))[:, None] >= begins
        self.returns = np.add.accumulate(np.where(running, counted, 0.0), 0)[-1]
        self.lengths = steps[-1] - before
        return ended
