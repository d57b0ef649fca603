"""Anybody's torch distribution, made into the one of ours whose numerics hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    TransformedDistribution,
)
from torch.distributions.kl import _KL_REGISTRY

from ppo_kl.objectives.distributions import (
    Joint,
    StableBernoulli,
    StableBeta,
    StableCategorical,
    StableOneHotCategorical,
)
from ppo_kl.objectives.gaussians import StableMultivariateNormal, StableNormal


def stabilise(dist: Distribution, *, subclasses: bool = False) -> Distribution:
    """The same distribution with a KL that is right wherever torch's is not; gradients reach the original parameters.

    Categorical, OneHotCategorical, Bernoulli, Normal, Beta and MultivariateNormal, in any parametrisation, also inside
    Independent, TransformedDistribution and Joint. Others come back as they are: theirs is their own KL. Parameters in
    half precision are widened to float32.

    Args:
        dist: any shape.
        subclasses: also where `dist` is of a subclass that has no KL of its own, so that torch would take its parent's.
            What it overrides is lost, which is no matter for a KL: `policy_kl` does this.

    Returns:
        of the same batch and event shape, that validates its arguments if `dist` does.
    """
    kind = _torch_type(type(dist)) if subclasses else type(dist)
    if kind in PARTS_OF:
        before = PARTS_OF[kind](dist)
        after = [stabilise(part, subclasses=subclasses) for part in before]
        changed = any(new is not old for new, old in zip(after, before, strict=True))
        stable = REBUILT[kind](dist, after) if changed else dist
    else:
        stable = STABLE.get(kind, _as_it_is)(dist)
    if stable is not dist:
        stable._validate_args = dist._validate_args  # what dist holds has been validated once
    return stable


def _torch_type(cls: type[Distribution]) -> type[Distribution]:
    """The class whose KL torch would take for `cls`: the first of its line that has one."""
    return next((kind for kind in cls.__mro__ if (kind, kind) in _KL_REGISTRY), cls)


def _as_it_is(dist: Distribution) -> Distribution:
    return dist


def _categorical(dist: Any) -> Distribution:
    return StableCategorical(logits=_categorical_logits(dist), validate_args=False)


def _one_hot_categorical(dist: Any) -> Distribution:
    stable = StableOneHotCategorical(logits=_categorical_logits(dist._categorical), validate_args=False)
    stable._categorical._validate_args = dist._validate_args
    return stable


def _categorical_logits(dist: Categorical) -> Tensor:
    if not _holds_probs(dist):
        return dist.logits
    impossible = dist.probs == 0
    if dist._param is dist.probs:
        # dist.logits would be those of probabilities that torch lifted to 1e-7, and impossible no more.
        return torch.where(impossible, -torch.inf, torch.where(impossible, 1.0, dist.probs).log())
    # Either may come from the other here: a probability of 0 that was lifted has a logit that does not underflow.
    return torch.where(impossible & (dist.logits > -LIFTED[dist.logits.dtype]), -torch.inf, dist.logits)


def _bernoulli(dist: Any) -> Distribution:
    return StableBernoulli(logits=_bernoulli_logits(dist), validate_args=False)


def _bernoulli_logits(dist: Bernoulli) -> Tensor:
    if not _holds_probs(dist):
        return dist.logits
    never, always = dist.probs == 0, dist.probs == 1
    if dist._param is dist.probs:
        # The derivative of the logit is infinite at both ends: they are taken out before, not after.
        logits = torch.where(never | always, 0.5, dist.probs).logit()
    else:
        logits, limit = dist.logits, LIFTED[dist.logits.dtype]
        never, always = never & (logits > -limit), always & (logits < limit)
    return torch.where(never, -torch.inf, torch.where(always, torch.inf, logits))


def _holds_probs(dist: Any) -> bool:
    return "probs" in dist.__dict__


def _normal(dist: Any) -> Distribution:
    return StableNormal(dist.loc, dist.scale, validate_args=False)


def _beta(dist: Any) -> Distribution:
    return StableBeta(dist.concentration1, dist.concentration0, validate_args=False)


def _multivariate_normal(dist: Any) -> Distribution:
    return StableMultivariateNormal(dist.loc, dist.scale_tril, validate_args=False)


STABLE: dict[type[Distribution], Callable[[Any], Distribution]] = {
    Categorical: _categorical,
    OneHotCategorical: _one_hot_categorical,
    Bernoulli: _bernoulli,
    Normal: _normal,
    Beta: _beta,
    MultivariateNormal: _multivariate_normal,
}
"""How each of torch's distributions is made stable."""

PARTS_OF: dict[type[Distribution], Callable[[Any], Sequence[Distribution]]] = {
    Independent: lambda dist: [dist.base_dist],
    TransformedDistribution: lambda dist: [dist.base_dist],
    Joint: lambda dist: dist.parts,
}
"""What a distribution made of others holds."""

REBUILT: dict[type[Distribution], Callable[[Any, list[Distribution]], Distribution]] = {
    Independent: lambda dist, of: Independent(of[0], dist.reinterpreted_batch_ndims, validate_args=False),
    TransformedDistribution: lambda dist, of: TransformedDistribution(of[0], dist.transforms, validate_args=False),
    Joint: lambda dist, of: Joint(of, validate_args=False),  # noqa: ARG005
}
"""The same made of other parts."""

LIFTED = {torch.float16: 7.2, torch.bfloat16: 5.0, torch.float32: 16.2, torch.float64: 36.3}
"""Above any logit that torch makes of a probability of 0 or 1 (log 1/eps), below any whose probability rounds to it."""
