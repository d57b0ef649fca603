"""Running moments of observations and returns: frozen while a rollout is collected and used, updated afterwards."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

CLIP = 10.0
"""Normalised observations and rewards are clipped at ± this."""
EPS = 1e-8


class RunningMoments(nn.Module):
    """Mean and variance of everything seen so far, merged batch by batch in float64.

    Args:
        shape: of one sample.

    Source: Chan, Golub & LeVeque 1979, the pairwise update.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update_(self, x: Tensor) -> None:
        """Merge the samples `x`, `[n, *shape]`; n = 0 changes nothing."""
        if len(x) == 0:
            return
        x = x.double()
        mean, var, n = x.mean(0), x.var(0, correction=0), len(x)
        total = self.count + n
        delta = mean - self.mean
        self.var.copy_((self.var * self.count + var * n + delta.square() * self.count * n / total) / total)
        self.mean.add_(delta * n / total)
        self.count.copy_(total)


class ObservationNormalizer(nn.Module):
    """(obs − mean) / std, clipped; the identity until the first update, and always where it is not enabled."""

    def __init__(self, shape: tuple[int, ...], enabled: bool) -> None:
        super().__init__()
        self.moments = RunningMoments(shape) if enabled else None

    @torch.no_grad()
    def forward(self, obs: Tensor) -> Tensor:
        """`[B, *shape]` -> the same, float32."""
        obs = obs.float()
        if self.moments is None:
            return obs
        std = (self.moments.var + EPS).sqrt()
        normalized = ((obs - self.moments.mean) / std).clamp(-CLIP, CLIP).float()
        return torch.where(self.moments.count > 0, normalized, obs)

    def update_(self, obs: Tensor, valid: Tensor) -> None:
        """Take in the observations `[B, *shape]` of the rows that count, `valid` `[B]` bool."""
        if self.moments is not None:
            self.moments.update_(obs[valid])


class RewardScaler(nn.Module):
    """What the learner sees of a reward: (reward + offset) · scale, then divided by the std of the discounted return.

    Args:
        num_envs: N.
        gamma: discount of the return whose variance is followed; it starts anew with each episode.
        offset: added first.
        scale: multiplied then.
        enabled: whether to divide by the running standard deviation, and clip.
    """

    running: Tensor

    def __init__(self, num_envs: int, gamma: float, offset: float, scale: float, enabled: bool) -> None:
        super().__init__()
        self.gamma, self.offset, self.scale = gamma, offset, scale
        self.moments = RunningMoments(()) if enabled else None
        self.register_buffer("running", torch.zeros(num_envs, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, reward: Tensor) -> Tensor:
        """`[T, N]` -> the same, float32."""
        reward = (reward + self.offset) * self.scale
        if self.moments is None:
            return reward.float()
        normalized = (reward / (self.moments.var + EPS).sqrt()).clamp(-CLIP, CLIP)
        return torch.where(self.moments.count > 0, normalized, reward).float()

    @torch.no_grad()
    def update_(self, reward: Tensor, done: Tensor, valid: Tensor) -> None:
        """Take in a rollout: reward `[T, N]`, done and valid `[T, N]` bool; rows that do not count leave no trace."""
        if self.moments is None:
            return
        reward = (reward + self.offset) * self.scale
        # NumPy: a loop over [N] tensors would cost ten times as much.
        rewards, ends, counts = (x.cpu().numpy() for x in (reward.double(), done, valid))
        running = self.running.cpu().numpy().copy()
        returns = np.empty_like(rewards)
        for t in range(len(rewards)):
            returns[t] = running = np.where(counts[t], running * self.gamma + rewards[t], running)
            running = np.where(ends[t] & counts[t], 0.0, running)
        self.running.copy_(torch.from_numpy(running))
        self.moments.update_(torch.from_numpy(returns[counts]).to(self.running.device))
