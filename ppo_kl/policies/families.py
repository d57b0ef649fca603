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

from ppo_kl.objectives.distributions import Joint, StableBernoulli, StableCategorical, at_least_float32

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
    def mask_sizes(self) -> tuple[int, ...]:
        """How many entries an action mask has for each choice; none where there are no single actions to rule out."""

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

    def to_env(self, action: Tensor | Array) -> Any:
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

    @property
    def mask_sizes(self) -> tuple[int, ...]:
        """One entry per action."""
        return (self.n,)

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> StableCategorical:
        """Categorical over the actions that `action_mask` (`[*, n]` bool) allows."""
        return StableCategorical(logits=_masked(params, action_mask), validate_args=False)

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Exponential(1) of each action, `[*, n]`."""
        return _exponential((*batch_shape, self.num_noise), generator)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """argmax(logits − log e), e ~ Exponential(1): the Gumbel trick."""
        return (_masked(params, action_mask) - noise_of(self, params, noise_or_generator).log()).argmax(-1)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The action with the largest logit."""
        return _masked(params, action_mask).argmax(-1)

    def to_env(self, action: Tensor | Array) -> Array:
        """`[*]` integers in [start, start + n), in the space's dtype."""
        return as_dtype(on_host(action) + self.start, self.dtype)


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
    def mask_sizes(self) -> tuple[int, ...]:
        """One entry per action of each head."""
        return self.sizes

    @property
    def action_shape(self) -> tuple[int, ...]:
        """One number per head."""
        return (len(self.sizes),)

    def build(self, params: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """Independent Categoricals over the actions that `action_mask` (`[*, Σn]` bool) allows."""
        heads = StableCategorical(logits=self._heads(_masked(params, action_mask)), validate_args=False)
        return Independent(heads, 1, validate_args=False)

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Exponential(1) of each action of each head, `[*, Σn]`."""
        return _exponential((*batch_shape, self.num_noise), generator)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """argmax(logits − log e) of each head, e ~ Exponential(1), `[*, heads]`."""
        return self._heads(_masked(params, action_mask) - noise_of(self, params, noise_or_generator).log()).argmax(-1)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The action with the largest logit of each head, `[*, heads]`."""
        return self._heads(_masked(params, action_mask)).argmax(-1)

    def to_env(self, action: Tensor | Array) -> Array:
        """`[*, *shape]` integers, head i in [start_i, start_i + n_i)."""
        shape = (len(self.sizes),) if self.shape is None else self.shape
        return as_dtype((on_host(action) + np.array(self.starts)).reshape(*action.shape[:-1], *shape), self.dtype)

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
    mask_sizes = ()

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
        refuse_mask(action_mask)
        return Independent(StableBernoulli(logits=params, validate_args=False), 1, validate_args=False)

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Exponential(1) of each outcome, `[*, 2A]`: first of the ones."""
        return _exponential((*batch_shape, self.num_noise), generator)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """1 where logit − log e₁ > −log e₀: the Gumbel trick, which resolves probabilities that one uniform cannot."""
        refuse_mask(action_mask)
        one, zero = noise_of(self, params, noise_or_generator).log().chunk(2, -1)
        return at_least_float32(params - one > -zero)

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """1 where the logit is positive."""
        refuse_mask(action_mask)
        return at_least_float32(params > 0)

    def to_env(self, action: Tensor | Array) -> Array:
        """`[*, *shape]` int8."""
        return as_dtype(on_host(action).reshape(*action.shape[:-1], *self.shape), "int8")


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
    def mask_sizes(self) -> tuple[int, ...]:
        """Those of the parts, one after the other."""
        return tuple(size for family in self.families for size in family.mask_sizes)

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
        """Joint of the parts' distributions; `action_mask` has the parts' masks side by side, `[*, M]` bool."""
        parts = [family.build(x, mask) for family, x, mask in self._split(params, action_mask)]
        return Joint(parts, validate_args=False)

    def draw_noise(self, batch_shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """That of each part, side by side."""
        return torch.cat([family.draw_noise(batch_shape, generator) for family in self.families], -1)

    def sample(self, params: Tensor, noise_or_generator: Noise, action_mask: Tensor | None = None) -> Tensor:
        """A sample of each part, side by side."""
        widths = [family.num_noise for family in self.families]
        noise = torch.split(noise_of(self, params, noise_or_generator), widths, -1)
        split = self._split(params, action_mask)
        return self._beside([family.sample(x, e, mask) for (family, x, mask), e in zip(split, noise, strict=True)])

    def mode(self, params: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """The mode of each part, side by side."""
        return self._beside([family.mode(x, mask) for family, x, mask in self._split(params, action_mask)])

    def to_env(self, action: Tensor | Array) -> Any:
        """A dict or a tuple of what the parts send, each `[*, ...]`."""
        columns = np.split(on_host(action), np.cumsum(self._widths)[:-1], -1)
        sent = {
            key: family.to_env(x if family.action_shape else x[..., 0])
            for (key, family), x in zip(self.parts, columns, strict=True)
        }
        return sent if isinstance(self.parts[0][0], str) else tuple(sent.values())

    @property
    def _widths(self) -> list[int]:
        return [math.prod(family.action_shape) for family in self.families]

    def _split(self, params: Tensor, action_mask: Tensor | None) -> list[tuple[Family, Tensor, Tensor | None]]:
        """Of each part: the family, its parameters, and its mask where it can have one."""
        widths = [family.num_params for family in self.families]
        masks: list[Tensor | None] = [None] * len(widths)
        if action_mask is not None:
            pieces = torch.split(action_mask, [sum(family.mask_sizes) for family in self.families], -1)
            masks = [piece if piece.shape[-1] else None for piece in pieces]
        return list(zip(self.families, torch.split(params, widths, -1), masks, strict=True))

    def _beside(self, actions: list[Tensor]) -> Tensor:
        columns = [x if f.action_shape else x[..., None] for f, x in zip(self.families, actions, strict=True)]
        return at_least_float32(torch.cat(columns, -1))


# --- shared -----------------------------------------------------------------------------------------------------------


def noise_of(family: Family, params: Tensor, noise_or_generator: Noise) -> Tensor:
    """The noise itself, drawn here where a generator is given."""
    if isinstance(noise_or_generator, torch.Generator):
        return family.draw_noise(tuple(params.shape[:-1]), noise_or_generator).to(params.device)
    return noise_or_generator


def _exponential(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.empty(shape, device=generator.device).exponential_(generator=generator)


def _masked(params: Tensor, action_mask: Tensor | None) -> Tensor:
    return params if action_mask is None else params.masked_fill(~action_mask, -torch.inf)


def refuse_mask(action_mask: Tensor | None) -> None:
    """For families without single actions to rule out."""
    if action_mask is not None:
        raise ValueError("action_mask: only the choices of Discrete and MultiDiscrete can be masked; give none")


def on_host(action: Tensor | Array) -> Array:
    """Actions as an array, without a copy where they are on the CPU."""
    return action if isinstance(action, np.ndarray) else action.cpu().numpy()


def as_dtype(values: Array, dtype: str) -> Array:
    """What is sent, in the space's own dtype."""
    cast: Array = values.astype(dtype)
    return cast
