"""Running moments of observations and returns: frozen while a rollout is collected and used, updated afterwards."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ppo_kl.observations import Obs, Part, each_part
from ppo_kl.policies.discounting import discounted_sums

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


class VectorNormalizer(nn.Module):
    """(obs − mean) / std, clipped; the identity until the first update."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.moments = RunningMoments(shape)

    @torch.no_grad()
    def forward(self, obs: Tensor) -> Tensor:
        """`[B, *shape]` -> the same, float32."""
        obs = obs.float()
        normalized = ((obs - self.moments.mean) / self.std()).clamp(-CLIP, CLIP).float()
        return torch.where(self.moments.count > 0, normalized, obs)

    def std(self) -> Tensor:
        """What is divided by, `[*shape]` float64; never 0."""
        return (self.moments.var + EPS).sqrt()


class ObservationNormalizer(nn.Module):
    """Normalises the vectors in an observation; images and indices, and everything where not enabled, pass as they are.

    Args:
        parts: of the observation.
        enabled: whether to normalise at all.
    """

    def __init__(self, parts: tuple[Part, ...], enabled: bool) -> None:
        super().__init__()
        vectors = {i: VectorNormalizer(part.shape) for i, part in enumerate(parts) if enabled and part.kind == "vector"}
        self.vectors = nn.ModuleDict({str(i): normalizer for i, normalizer in vectors.items()})

    def forward(self, obs: Obs) -> Obs:
        """`[B, *shape]` of each part -> the same."""
        if not self.vectors:
            return obs
        done = [
            (key, self.vectors[str(i)](x) if str(i) in self.vectors else x) for i, (key, x) in enumerate(each_part(obs))
        ]
        return dict(done) if isinstance(obs, dict) else done[0][1]

    def update_(self, obs: Obs, valid: Tensor) -> None:
        """Take in the observations `[B, *shape]` of the rows that count, `valid` `[B]` bool."""
        for i, (_, x) in enumerate(each_part(obs)):
            if str(i) in self.vectors:
                self.vectors[str(i)].moments.update_(x[valid])  # type: ignore[union-attr, operator]


class RewardScaler(nn.Module):
    """What the learner sees of a reward: (reward + offset) · scale, clipped at ± limit, then divided by the std of the
    discounted return.

    Args:
        num_envs: N.
        gamma: discount of the return whose variance is followed; it starts anew with each episode.
        offset: added first.
        scale: multiplied then.
        limit: clipped at ± this then; none: not clipped.
        enabled: whether to divide by the running standard deviation, and clip.
    """

    running: Tensor

    def __init__(
        self, num_envs: int, gamma: float, offset: float, scale: float, enabled: bool, limit: float | None = None
    ) -> None:
        super().__init__()
        self.gamma, self.offset, self.scale, self.limit = gamma, offset, scale, limit
        self.moments = RunningMoments(()) if enabled else None
        self.register_buffer("running", torch.zeros(num_envs, dtype=torch.float64))

    def _shaped(self, reward: Tensor) -> Tensor:
        reward = (reward + self.offset) * self.scale
        return reward if self.limit is None else reward.clamp(-self.limit, self.limit)

    @torch.no_grad()
    def forward(self, reward: Tensor) -> Tensor:
        """`[T, N]` -> the same, float32."""
        reward = self._shaped(reward)
        if self.moments is None:
            return reward.float()
        normalized = (reward / (self.moments.var + EPS).sqrt()).clamp(-CLIP, CLIP)
        return torch.where(self.moments.count > 0, normalized, reward).float()

    @torch.no_grad()
    def update_(self, reward: Tensor, done: Tensor, valid: Tensor) -> None:
        """Take in a rollout: reward `[T, N]`, done and valid `[T, N]` bool; rows that do not count leave no trace."""
        if self.moments is None:
            return
        reward = self._shaped(reward)
        rewards, ends, counts = (x.cpu().numpy() for x in (reward.double(), done & valid, valid))
        # What is left of the return before each row: nothing after an end, all of it where the row does not count.
        left = np.where(counts, self.gamma, 1.0)
        left[1:][ends[:-1]] = 0.0
        gained = np.where(counts, rewards, 0.0)
        gained[0] += left[0] * self.running.cpu().numpy()
        returns = discounted_sums(gained[::-1], left[::-1])[::-1]
        self.running.copy_(torch.from_numpy(np.where(ends[-1], 0.0, returns[-1])))
        self.moments.update_(torch.from_numpy(returns[counts]).to(self.running.device))
