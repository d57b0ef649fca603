"""Distributions over a bounded Box: Gaussian, squashed by tanh, Beta, full covariance."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent
from torch.nn import functional

from ppo_kl.objectives.distributions import StableBeta, at_least_float32
from ppo_kl.objectives.gaussians import StableMultivariateNormal, StableNormal, TanhNormal
from ppo_kl.policies.families import Array, Noise, as_dtype, noise_of, on_host, refuse_mask


@dataclass(frozen=True)
class BoxFamily:
    """What every distribution over a bounded Box shares."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...]
    dtype: str = "float32"

    mask_sizes = ()

    @property
    def num_action_dims(self) -> int:
        """A."""
        return len(self.low)

    @property
    def num_params(self) -> int:
        """Two per action dimension."""
        return 2 * self.num_action_dims

    @property
    def num_noise(self) -> int:
        """One number per action dimension."""
        return self.num_action_dims

    @property
    def action_shape(self) -> tuple[int, ...]:
        """One number per action dimension."""
        return (self.num_action_dims,)

    def _clipped(self, values: Array) -> Array:
        """`[*, A]` within the bounds, in the space's own shape and dtype, `[*, *shape]`."""
        # In float64 both the values and the bounds are exact, and rounding to the space's dtype cannot pass a bound.
        low, high, dtype = self._limits
        inside: Array = np.minimum(np.maximum(values, low), high).astype(dtype)  # np.clip is slow for a few numbers
        return inside if len(self.shape) == 1 else inside.reshape(*values.shape[:-1], *self.shape)

    def _between(self, share: Array) -> Array:
        """`[*, A]` float64 in [0, 1], the way from `low` to `high`, as the environment takes it."""
        low, high, _ = self._limits
        return self._clipped(low * (1 - share) + high * share)

    @functools.cached_property
    def _limits(self) -> tuple[Array, Array, np.dtype[Any]]:
        """The bounds in float64, and the space's dtype; made once, since every step of a rollout needs them."""
        return np.array(self.low, np.float64), np.array(self.high, np.float64), np.dtype(self.dtype)


@dataclass(frozen=True)
class GaussianFamily(BoxFamily):
    """Box: P = 2 A, means then logarithms of the standard deviations, independent dimensions.

    The action is clipped to the bounds, or at ±1 and stretched to them, for the environment only: log-probability,
    ratio and KL are those of the sample.
    """

    rescale: bool = False

    @property
    def sampled_bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The bounds in the numbers of the sample: those of the space, or ±1 where it is rescaled."""
        A = self.num_action_dims
        return ((-1.0,) * A, (1.0,) * A) if self.rescale else (self.low, self.high)

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """Independent(Normal(mean, exp(log_std)), 1)."""
        refuse_mask(action_mask)
        mean, log_std = at_least_float32(params).chunk(2, -1)
        return Independent(StableNormal(mean, log_std.exp(), validate_args=False), 1, validate_args=False)

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal, `[*, A]`."""
        return torch.randn((*batch_shape, self.num_noise), generator=generator, device=generator.device)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """Mean + σ · noise."""
        refuse_mask(action_mask)
        mean, log_std = at_least_float32(params).chunk(2, -1)
        return mean + log_std.exp() * noise_of(self, params, noise_or_generator)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The mean."""
        refuse_mask(action_mask)
        return params[..., : self.num_action_dims]

    def to_env(self, action: Tensor | Array) -> Array:
        """Clipped to the bounds, in the space's own shape and dtype, `[*, *shape]`."""
        if self.rescale:
            return self._between((1 + np.clip(_float64(action), -1, 1)) / 2)
        return self._clipped(on_host(action))


@dataclass(frozen=True)
class TanhGaussianFamily(GaussianFamily):
    """Box: tanh of a Gaussian, stretched to the bounds; P = 2 A, mean and log-std before the tanh.

    The action is stored BEFORE the tanh, so that a saturated one keeps a finite log-probability, which is that of the
    squashed action nevertheless. The stretching is for the environment and in no density.
    """

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """TanhNormal(mean, exp(log_std)), over actions before the tanh."""
        refuse_mask(action_mask)
        mean, log_std = at_least_float32(params).chunk(2, -1)
        return TanhNormal(mean, log_std.exp(), validate_args=False)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The mean before the tanh, whose tanh is the median; the density's own peak moves to the bounds as σ grows."""
        return super().mode(params, action_mask)

    def to_env(self, action: Tensor | Array) -> Array:
        """low + (high − low) · (1 + tanh(action)) / 2, which reaches both bounds, `[*, *shape]`."""
        return self._between((1 + np.tanh(_float64(action))) / 2)


ATTEMPTS = 6
"""Proposals per Gamma sample; all are refused less than once in 10⁷ (0.05⁶), and the Gamma's mode is taken then."""


@dataclass(frozen=True)
class BetaFamily(BoxFamily):
    """Box: a Beta in each dimension, stretched to the bounds; α = 1 + softplus of the first half of P, β of the second.

    Neither concentration is below 1, so the density is bounded and has one peak. Stored actions lie strictly within
    (0, 1); the stretching is for the environment and in no density.
    """

    @property
    def num_noise(self) -> int:
        """A normal and a uniform per attempt, for two Gammas per action dimension."""
        return 4 * ATTEMPTS * self.num_action_dims

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """Independent(Beta(α, β), 1) over (0, 1)."""
        refuse_mask(action_mask)
        alpha, beta = (1 + functional.softplus(at_least_float32(params))).chunk(2, -1)
        return Independent(StableBeta(alpha, beta, validate_args=False), 1, validate_args=False)

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Half standard normal, half uniform, `[*, 4 · ATTEMPTS · A]`."""
        shape = (*batch_shape, self.num_noise // 2)
        draws = (draw(shape, generator=generator, device=generator.device) for draw in (torch.randn, torch.rand))
        return torch.cat(list(draws), -1)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """G(α) / (G(α) + G(β)), G Gamma-distributed."""
        refuse_mask(action_mask)
        noise = noise_of(self, params, noise_or_generator)
        normal, uniform = noise.view(*noise.shape[:-1], 2, self.num_params, ATTEMPTS).unbind(-3)
        first, second = _gamma(1 + functional.softplus(at_least_float32(params)), normal, uniform).chunk(2, -1)
        return _within_unit(first / (first + second))

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """(α − 1) / (α + β − 2); ½ where both are 1."""
        refuse_mask(action_mask)
        excess = functional.softplus(at_least_float32(params))
        first, second = (excess + torch.finfo(excess.dtype).tiny).chunk(2, -1)
        return _within_unit(first / (first + second))

    def to_env(self, action: Tensor | Array) -> Array:
        """low + (high − low) · action, `[*, *shape]`."""
        return self._between(_float64(action))


@dataclass(frozen=True)
class FullGaussianFamily(GaussianFamily):
    """Box: a Gaussian with full covariance L Lᵀ; clipped for the environment only, as `GaussianFamily`.

    P = A means, A logarithms of L's diagonal, then L below its diagonal row by row, A (A − 1) / 2.
    """

    @property
    def num_params(self) -> int:
        """A + A (A + 1) / 2."""
        A = self.num_action_dims
        return A + A * (A + 1) // 2

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """MultivariateNormal(mean, scale_tril=L)."""
        refuse_mask(action_mask)
        mean, tril = self._mean_and_tril(at_least_float32(params))
        return StableMultivariateNormal(mean, tril, validate_args=False)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """Mean + L · noise."""
        refuse_mask(action_mask)
        mean, tril = self._mean_and_tril(at_least_float32(params))
        return mean + (tril * noise_of(self, params, noise_or_generator)[..., None, :]).sum(-1)

    def _mean_and_tril(self, params: Tensor) -> tuple[Tensor, Tensor]:
        A = self.num_action_dims
        mean, log_diagonal, below = torch.split(params, [A, A, A * (A - 1) // 2], -1)
        row, column = torch.tril_indices(A, A, -1, device=params.device)
        lower = params.new_zeros(*params.shape[:-1], A * A).index_copy(-1, row * A + column, below)
        return mean, lower.view(*params.shape[:-1], A, A) + torch.diag_embed(log_diagonal.exp())


def _gamma(alpha: Tensor, normal: Tensor, uniform: Tensor) -> Tensor:
    """Gamma(α, 1) for α ≥ 1: the first accepted of the proposals d v, d = α − ⅓, v = (1 + x / √(9d))³; d if none is.

    Args:
        alpha: `[*]`.
        normal: x of each proposal, `[*, ATTEMPTS]`.
        uniform: in [0, 1), accepts where log u < ½ x² + d − d v + d log v, `[*, ATTEMPTS]`.

    Source: Marsaglia & Tsang 2000, "A simple method for generating gamma variables".
    """
    d = (alpha - 1 / 3)[..., None]
    v = (1 + normal / (9 * d).sqrt()) ** 3
    positive = v > 0
    accepted = positive & (uniform.log() < 0.5 * normal.square() + d * (1 - v + torch.where(positive, v, 1.0).log()))
    first = accepted.byte().argmax(-1, keepdim=True)
    return (d * torch.where(accepted, v, 1.0).gather(-1, first)).squeeze(-1)


def _within_unit(x: Tensor) -> Tensor:
    """Kept off 0 and 1, where a Beta's log-density is infinite."""
    limits = torch.finfo(x.dtype)
    return x.clamp(limits.tiny, 1 - limits.eps / 2)


def _float64(action: Tensor | Array) -> Array:
    return as_dtype(on_host(action), "float64")
