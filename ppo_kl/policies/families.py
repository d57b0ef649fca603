"""From an action space to a distribution over it: flat parameters `[*, P]` <-> torch Distribution."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from ppo_kl.errors import ConfigError
from ppo_kl.objectives.distributions import StableCategorical

Noise = Tensor | torch.Generator


class Family(Protocol):
    """A distribution over one action space, as a function of flat parameters."""

    @property
    def num_params(self) -> int:
        """P, how many numbers describe the distribution in one state."""

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """The distribution; `[*, P]` -> batch shape `[*]`."""

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """What `sample` needs for `batch_shape` actions, on the generator's device."""

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """An action from each row; `[*, P]` -> `[*]` or `[*, A]`."""

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The most likely action of each row."""

    def to_env(self, action: Tensor) -> np.ndarray[Any, Any]:
        """The action as the environment takes it; what is stored and scored stays as sampled."""


@dataclass(frozen=True)
class CategoricalFamily:
    """Discrete(n, start): P = n logits; actions are stored as 0 … n − 1 and sent as start … start + n − 1."""

    n: int
    start: int = 0

    @property
    def num_params(self) -> int:
        """One logit per action."""
        return self.n

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> StableCategorical:
        """Categorical over the actions that `action_mask` (`[*, n]` bool) allows."""
        logits = params if action_mask is None else params.masked_fill(~action_mask, -torch.inf)
        return StableCategorical(logits=logits, validate_args=False)

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Exponential(1) of each action, `[*, n]`."""
        shape = (*batch_shape, self.n)
        return torch.empty(shape, device=generator.device).exponential_(generator=generator)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """argmax(logits − log e), e ~ Exponential(1): the Gumbel trick."""
        logits = params if action_mask is None else params.masked_fill(~action_mask, -torch.inf)
        return (logits - _noise(self, params, noise_or_generator).log()).argmax(-1)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The action with the largest logit."""
        return (params if action_mask is None else params.masked_fill(~action_mask, -torch.inf)).argmax(-1)

    def to_env(self, action: Tensor) -> np.ndarray[Any, Any]:
        """`[*]` int64 in [start, start + n)."""
        sent: np.ndarray[Any, Any] = action.cpu().numpy() + self.start
        return sent


@dataclass(frozen=True)
class GaussianFamily:
    """Box: P = 2 A, means then logarithms of the standard deviations, independent dimensions.

    The action is clipped to the bounds for the environment only: log-probability, ratio and KL are those of the sample.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def num_params(self) -> int:
        """A mean and a log-std per action dimension."""
        return 2 * len(self.low)

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """Independent(Normal(mean, exp(log_std)), 1)."""
        _refuse_mask(action_mask)
        mean, log_std = params.chunk(2, -1)
        return Independent(Normal(mean, log_std.exp(), validate_args=False), 1, validate_args=False)

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard normal, `[*, A]`."""
        return torch.randn((*batch_shape, len(self.low)), generator=generator, device=generator.device)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """Mean + σ · noise."""
        _refuse_mask(action_mask)
        mean, log_std = params.chunk(2, -1)
        return mean + log_std.exp() * _noise(self, params, noise_or_generator)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The mean."""
        _refuse_mask(action_mask)
        return params.chunk(2, -1)[0]

    def to_env(self, action: Tensor) -> np.ndarray[Any, Any]:
        """Clipped to the bounds, in the space's own shape and dtype, `[*, *shape]`."""
        # In float64 both the sample and the bounds are exact, and rounding to the space's dtype cannot pass a bound.
        clipped = np.clip(action.cpu().numpy().astype(np.float64), self.low, self.high).astype(self.dtype)
        sent: np.ndarray[Any, Any] = clipped.reshape(*action.shape[:-1], *self.shape)
        return sent


FAMILIES: dict[str, type[CategoricalFamily] | type[GaussianFamily]] = {
    "categorical": CategoricalFamily,
    "gaussian": GaussianFamily,
}
"""Family by its name in a checkpoint."""


def describe(family: CategoricalFamily | GaussianFamily) -> dict[str, Any]:
    """The family as plain values, for a checkpoint."""
    (kind,) = (kind for kind, cls in FAMILIES.items() if isinstance(family, cls))
    fields = dataclasses.asdict(family)
    return {"kind": kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}}


def from_description(description: dict[str, Any]) -> CategoricalFamily | GaussianFamily:
    """The inverse of `describe`."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items() if k != "kind"}
    return FAMILIES[description["kind"]](**values)


def _noise(family: Family, params: Tensor, noise_or_generator: Noise) -> Tensor:
    if isinstance(noise_or_generator, torch.Generator):
        return family.draw_noise(tuple(params.shape[:-1]), noise_or_generator).to(params.device)
    return noise_or_generator


def _refuse_mask(action_mask: Tensor | None) -> None:
    if action_mask is not None:
        raise ValueError("action_mask: a Box action space has no actions to mask; give none")


def family_of(space: spaces.Space[Any]) -> CategoricalFamily | GaussianFamily:
    """The family of an action space.

    Raises:
        ConfigError: no family for this space, with the list of those there are.
    """
    if isinstance(space, spaces.Discrete):
        return CategoricalFamily(int(space.n), int(space.start))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = space.low.ravel(), space.high.ravel()
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ConfigError(f"action space {space}: Box actions need finite bounds on both sides")
        shape = tuple(int(size) for size in space.shape)
        if 0 in shape:
            raise ConfigError(f"action space {space}: empty")
        return GaussianFamily(tuple(low.tolist()), tuple(high.tolist()), shape, str(space.dtype))
    raise ConfigError(f"action space {space}: not supported; supported are Discrete and Box of floats")


def shape_of_observation(space: spaces.Space[Any]) -> tuple[int, ...]:
    """The shape of one observation.

    Raises:
        ConfigError: no encoder for this space, or an empty one.
    """
    if not isinstance(space, spaces.Box):
        raise ConfigError(f"observation space {space}: not supported; supported is Box")
    if space.shape == () or 0 in space.shape:
        raise ConfigError(f"observation space {space}: empty or a scalar; supported are vectors and arrays")
    return tuple(int(size) for size in space.shape)
