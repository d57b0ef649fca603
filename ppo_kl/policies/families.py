"""A distribution over one action space, as a function of flat parameters: `[*, P]` <-> torch Distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent
from torch.nn import functional

from ppo_kl.objectives.distributions import Joint, StableBernoulli, StableBeta, StableCategorical, at_least_float32
from ppo_kl.objectives.gaussians import StableMultivariateNormal, StableNormal, TanhNormal

Array = np.ndarray[Any, Any]
Noise = Tensor | torch.Generator


class Family(Protocol):
    """A distribution over one action space, as a function of flat parameters."""

    @property
    def num_params(self) -> int:
        """P, how many numbers describe the distribution in one state."""

    @property
    def num_action_dims(self) -> int | None:
        """dim(A), how many continuous numbers an action is; none where it is anything else."""

    @property
    def num_noise(self) -> int:
        """How many random numbers `sample` takes per action."""

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Of one action as it is stored: () or (A,)."""

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """The distribution; `[*, P]` -> batch shape `[*]`."""

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """What `sample` needs for `batch_shape` actions, `[*, num_noise]`, on the generator's device."""

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """An action from each row; `[*, P]` -> `[*]` or `[*, A]`."""

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The most likely action of each row."""

    def to_env(self, action: Tensor) -> Any:
        """The actions as the environment takes them: an array, or a dict or tuple of them, each `[*, ...]`."""


# --- Discrete, MultiDiscrete, MultiBinary -----------------------------------------------------------------------------


@dataclass(frozen=True)
class CategoricalFamily:
    """Discrete(n, start): P = n logits; actions are stored as 0 … n − 1 and sent as start … start + n − 1."""

    n: int
    start: int = 0
    dtype: str = "int64"

    num_action_dims = None
    action_shape = ()

    @property
    def num_params(self) -> int:
        """One logit per action."""
        return self.n

    @property
    def num_noise(self) -> int:
        """One number per action."""
        return self.n

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> StableCategorical:
        """Categorical over the actions that `action_mask` (`[*, n]` bool) allows."""
        return StableCategorical(logits=_masked(params, action_mask), validate_args=False)

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Exponential(1) of each action, `[*, n]`."""
        return _exponential((*batch_shape, self.num_noise), generator)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """argmax(logits − log e), e ~ Exponential(1): the Gumbel trick."""
        return (_masked(params, action_mask) - _noise(self, params, noise_or_generator).log()).argmax(-1)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The action with the largest logit."""
        return _masked(params, action_mask).argmax(-1)

    def to_env(self, action: Tensor) -> Array:
        """`[*]` integers in [start, start + n), in the space's dtype."""
        return _array(action.cpu().numpy() + self.start, self.dtype)


@dataclass(frozen=True)
class MultiCategoricalFamily:
    """MultiDiscrete: independent Categoricals, P = Σ n logits head by head; stored from 0, sent from each head's start.

    Args:
        sizes: n of each head.
        starts: first action of each head, as it is sent.
        shape: of the space; none: one dimension.
        dtype: of the space.
    """

    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    shape: tuple[int, ...] | None = None
    dtype: str = "int64"

    num_action_dims = None

    @property
    def num_params(self) -> int:
        """One logit per action of each head."""
        return sum(self.sizes)

    @property
    def num_noise(self) -> int:
        """One number per action of each head."""
        return sum(self.sizes)

    @property
    def action_shape(self) -> tuple[int, ...]:
        """One number per head."""
        return (len(self.sizes),)

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """Independent Categoricals over the actions that `action_mask` (`[*, Σn]` bool) allows."""
        heads = StableCategorical(self._heads(_masked(params, action_mask)), validate_args=False)
        return Independent(heads, 1, validate_args=False)

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Exponential(1) of each action of each head, `[*, Σn]`."""
        return _exponential((*batch_shape, self.num_noise), generator)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """argmax(logits − log e) of each head, e ~ Exponential(1), `[*, heads]`."""
        return self._heads(_masked(params, action_mask) - _noise(self, params, noise_or_generator).log()).argmax(-1)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The action with the largest logit of each head, `[*, heads]`."""
        return self._heads(_masked(params, action_mask)).argmax(-1)

    def to_env(self, action: Tensor) -> Array:
        """`[*, *shape]` integers, head i in [start_i, start_i + n_i)."""
        shape = (len(self.sizes),) if self.shape is None else self.shape
        return _array((action.cpu().numpy() + np.array(self.starts)).reshape(*action.shape[:-1], *shape), self.dtype)

    def _heads(self, flat: Tensor) -> Tensor:
        """`[*, Σn]` -> `[*, heads, largest n]`, what a head does not have filled with −inf."""
        largest = max(self.sizes)
        heads = torch.split(flat, list(self.sizes), -1)
        return torch.stack([functional.pad(h, (0, largest - h.shape[-1]), value=-torch.inf) for h in heads], -2)


@dataclass(frozen=True)
class BernoulliFamily:
    """MultiBinary of any shape: independent Bernoullis, one logit each; actions are 0.0 or 1.0, sent as int8."""

    shape: tuple[int, ...]

    num_action_dims = None

    @property
    def num_params(self) -> int:
        """One logit per number of the action."""
        return math.prod(self.shape)

    @property
    def num_noise(self) -> int:
        """Two per number of the action."""
        return 2 * self.num_params

    @property
    def action_shape(self) -> tuple[int, ...]:
        """One number per place of the space."""
        return (self.num_params,)

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """Independent(Bernoulli(logits), 1)."""
        _refuse_mask(action_mask)
        return Independent(StableBernoulli(params, validate_args=False), 1, validate_args=False)

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Exponential(1) of each outcome, `[*, 2A]`: first of the ones."""
        return _exponential((*batch_shape, self.num_noise), generator)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """1 where logit − log e₁ > −log e₀: the Gumbel trick, which resolves probabilities that one uniform cannot."""
        _refuse_mask(action_mask)
        one, zero = _noise(self, params, noise_or_generator).log().chunk(2, -1)
        return at_least_float32(params - one > -zero)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """1 where the logit is positive."""
        _refuse_mask(action_mask)
        return at_least_float32(params > 0)

    def to_env(self, action: Tensor) -> Array:
        """`[*, *shape]` int8."""
        return _array(action.cpu().numpy().reshape(*action.shape[:-1], *self.shape), "int8")


# --- Box --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoxFamily:
    """What every distribution over a bounded Box shares."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...]
    dtype: str = "float32"

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
        """`[*, A]` float64 within the bounds, in the space's own shape and dtype, `[*, *shape]`."""
        # In float64 both the values and the bounds are exact, and rounding to the space's dtype cannot pass a bound.
        return _array(np.clip(values, self.low, self.high).reshape(*values.shape[:-1], *self.shape), self.dtype)

    def _between(self, share: Array) -> Array:
        """`[*, A]` float64 in [0, 1], the way from `low` to `high`, as the environment takes it."""
        return self._clipped(np.array(self.low) * (1 - share) + np.array(self.high) * share)


@dataclass(frozen=True)
class GaussianFamily(BoxFamily):
    """Box: P = 2 A, means then logarithms of the standard deviations, independent dimensions.

    The action is clipped to the bounds for the environment only: log-probability, ratio and KL are those of the sample.
    """

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """Independent(Normal(mean, exp(log_std)), 1)."""
        _refuse_mask(action_mask)
        mean, log_std = at_least_float32(params).chunk(2, -1)
        return Independent(StableNormal(mean, log_std.exp(), validate_args=False), 1, validate_args=False)

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal, `[*, A]`."""
        return torch.randn((*batch_shape, self.num_noise), generator=generator, device=generator.device)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """Mean + σ · noise."""
        _refuse_mask(action_mask)
        mean, log_std = at_least_float32(params).chunk(2, -1)
        return mean + log_std.exp() * _noise(self, params, noise_or_generator)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The mean."""
        _refuse_mask(action_mask)
        return params[..., : self.num_action_dims]

    def to_env(self, action: Tensor) -> Array:
        """Clipped to the bounds, in the space's own shape and dtype, `[*, *shape]`."""
        return self._clipped(_float64(action))


@dataclass(frozen=True)
class TanhGaussianFamily(GaussianFamily):
    """Box: tanh of a Gaussian, stretched to the bounds; P = 2 A, mean and log-std before the tanh.

    The action is stored BEFORE the tanh, so that a saturated one keeps a finite log-probability, which is that of the
    squashed action nevertheless. The stretching is for the environment and in no density.
    """

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """TanhNormal(mean, exp(log_std)), over actions before the tanh."""
        _refuse_mask(action_mask)
        mean, log_std = at_least_float32(params).chunk(2, -1)
        return TanhNormal(mean, log_std.exp(), validate_args=False)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The mean before the tanh, whose tanh is the median; the density's own peak moves to the bounds as σ grows."""
        return super().mode(params, action_mask)

    def to_env(self, action: Tensor) -> Array:
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
        _refuse_mask(action_mask)
        alpha, beta = (1 + functional.softplus(at_least_float32(params))).chunk(2, -1)
        return Independent(StableBeta(alpha, beta, validate_args=False), 1, validate_args=False)

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Half standard normal, half uniform, `[*, 4 · ATTEMPTS · A]`."""
        shape = (*batch_shape, self.num_noise // 2)
        draws = (draw(shape, generator=generator, device=generator.device) for draw in (torch.randn, torch.rand))
        return torch.cat(list(draws), -1)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """G(α) / (G(α) + G(β)), G Gamma-distributed."""
        _refuse_mask(action_mask)
        noise = _noise(self, params, noise_or_generator)
        normal, uniform = noise.view(*noise.shape[:-1], 2, self.num_params, ATTEMPTS).unbind(-3)
        first, second = _gamma(1 + functional.softplus(at_least_float32(params)), normal, uniform).chunk(2, -1)
        return _within_unit(first / (first + second))

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """(α − 1) / (α + β − 2); ½ where both are 1."""
        _refuse_mask(action_mask)
        excess = functional.softplus(at_least_float32(params))
        first, second = (excess + torch.finfo(excess.dtype).tiny).chunk(2, -1)
        return _within_unit(first / (first + second))

    def to_env(self, action: Tensor) -> Array:
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
        _refuse_mask(action_mask)
        mean, tril = self._mean_and_tril(at_least_float32(params))
        return StableMultivariateNormal(mean, tril, validate_args=False)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """Mean + L · noise."""
        _refuse_mask(action_mask)
        mean, tril = self._mean_and_tril(at_least_float32(params))
        return mean + (tril * _noise(self, params, noise_or_generator)[..., None, :]).sum(-1)

    def _mean_and_tril(self, params: Tensor) -> tuple[Tensor, Tensor]:
        A = self.num_action_dims
        mean, log_diagonal, below = torch.split(params, [A, A, A * (A - 1) // 2], -1)
        row, column = torch.tril_indices(A, A, -1, device=params.device)
        lower = params.new_zeros(*params.shape[:-1], A * A).index_copy(-1, row * A + column, below)
        return mean, lower.view(*params.shape[:-1], A, A) + torch.diag_embed(log_diagonal.exp())


# --- Dict, Tuple ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JointFamily:
    """Dict or Tuple: independent parts; parameters, noise and actions of the parts lie side by side, as floats.

    Args:
        parts: (key, family) in the order of the space; the keys are words for a Dict and 0, 1, … for a Tuple.
    """

    parts: tuple[tuple[str | int, Family], ...]

    @property
    def num_params(self) -> int:
        """Σ P of the parts."""
        return sum(family.num_params for family in self.families)

    @property
    def num_noise(self) -> int:
        """Σ of the parts."""
        return sum(family.num_noise for family in self.families)

    @property
    def action_shape(self) -> tuple[int, ...]:
        """The parts' numbers side by side."""
        return (sum(self._widths),)

    @property
    def num_action_dims(self) -> int | None:
        """Σ of the parts where each of them is a Box."""
        dims = [family.num_action_dims for family in self.families]
        known = [A for A in dims if A is not None]
        return sum(known) if len(known) == len(dims) else None

    @property
    def families(self) -> list[Family]:
        """Of the parts, in order."""
        return [family for _, family in self.parts]

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> Joint:
        """Joint of the parts' distributions."""
        _refuse_mask(action_mask)
        return Joint([family.build(x) for family, x in self._split(params)], validate_args=False)

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """That of each part, side by side."""
        return torch.cat([family.draw_noise(batch_shape, generator) for family in self.families], -1)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """A sample of each part, side by side."""
        _refuse_mask(action_mask)
        widths = [family.num_noise for family in self.families]
        noise = torch.split(_noise(self, params, noise_or_generator), widths, -1)
        return self._beside([family.sample(x, e) for (family, x), e in zip(self._split(params), noise, strict=True)])

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The mode of each part, side by side."""
        _refuse_mask(action_mask)
        return self._beside([family.mode(x) for family, x in self._split(params)])

    def to_env(self, action: Tensor) -> Any:
        """A dict or a tuple of what the parts send, each `[*, ...]`."""
        columns = torch.split(action, self._widths, -1)
        sent = {
            key: family.to_env(x if family.action_shape else x[..., 0])
            for (key, family), x in zip(self.parts, columns, strict=True)
        }
        return sent if isinstance(self.parts[0][0], str) else tuple(sent.values())

    @property
    def _widths(self) -> list[int]:
        return [math.prod(family.action_shape) for family in self.families]

    def _split(self, params: Tensor) -> list[tuple[Family, Tensor]]:
        widths = [family.num_params for family in self.families]
        return list(zip(self.families, torch.split(params, widths, -1), strict=True))

    def _beside(self, actions: list[Tensor]) -> Tensor:
        columns = [x if f.action_shape else x[..., None] for f, x in zip(self.families, actions, strict=True)]
        return at_least_float32(torch.cat(columns, -1))


# --- shared -----------------------------------------------------------------------------------------------------------


def _noise(family: Family, params: Tensor, noise_or_generator: Noise) -> Tensor:
    if isinstance(noise_or_generator, torch.Generator):
        return family.draw_noise(tuple(params.shape[:-1]), noise_or_generator).to(params.device)
    return noise_or_generator


def _exponential(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape, device=generator.device).exponential_(generator=generator)


def _masked(params: Tensor, action_mask: Tensor | None) -> Tensor:
    return params if action_mask is None else params.masked_fill(~action_mask, -torch.inf)


def _refuse_mask(action_mask: Tensor | None) -> None:
    if action_mask is not None:
        raise ValueError("action_mask: only Discrete and MultiDiscrete actions can be masked; give none")


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


def _float64(x: Tensor) -> Array:
    values: Array = x.cpu().numpy().astype(np.float64)
    return values


def _array(values: Array, dtype: str) -> Array:
    cast: Array = values.astype(dtype)
    return cast
