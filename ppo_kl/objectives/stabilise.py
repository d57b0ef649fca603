"""Anybody's torch distribution, made into the one of ours whose numerics hold."""

from __future__ import annotations

from collections.abc import Callable
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

from ppo_kl.objectives.distributions import (
    StableBernoulli,
    StableBeta,
    StableCategorical,
    StableOneHotCategorical,
)
from ppo_kl.objectives.gaussians import StableMultivariateNormal, StableNormal


def stabilise(dist: Distribution) -> Distribution:
    """The same distribution with a KL that is right wherever torch's is not; gradients reach the original parameters.

    Categorical, OneHotCategorical, Bernoulli, Normal, Beta and MultivariateNormal, in any parametrisation, also inside
    Independent and TransformedDistribution. Others, subclasses included, come back as they are: theirs is their own KL.
    Parameters in half precision are widened to float32; but torch has normalised, and rounded, a Categorical's logits
    in half precision before they get here: use `StableCategorical` itself for those.

    Args:
        dist: any shape.

    Returns:
        of the same batch and event shape, that validates its arguments if `dist` does.
    """
    stable = STABLE.get(type(dist), _as_it_is)(dist)
    if stable is not dist:
        stable._validate_args = dist._validate_args  # what dist holds has been validated once
    return stable


def _as_it_is(dist: Distribution) -> Distribution:
    return dist


def _categorical(dist: Any) -> Distribution:
    return StableCategorical(_categorical_logits(dist), validate_args=False)


def _one_hot_categorical(dist: Any) -> Distribution:
    stable = StableOneHotCategorical(_categorical_logits(dist._categorical), validate_args=False)
    stable._categorical._validate_args = dist._validate_args
    return stable


def _categorical_logits(dist: Categorical) -> Tensor:
    if not _has_probs(dist):
        return dist.logits
    # dist.logits would be those of probabilities that torch lifted to 1e-7, and impossible no more.
    impossible = dist.probs == 0
    return torch.where(impossible, -torch.inf, torch.where(impossible, 1.0, dist.probs).log())


def _bernoulli(dist: Any) -> Distribution:
    return StableBernoulli(_bernoulli_logits(dist), validate_args=False)


def _bernoulli_logits(dist: Bernoulli) -> Tensor:
    if not _has_probs(dist):
        return dist.logits
    never, always = dist.probs == 0, dist.probs == 1
    # The derivative of the logit is infinite at both ends: they are taken out before, not after.
    logits = torch.where(never | always, 0.5, dist.probs).logit()
    return torch.where(never, -torch.inf, torch.where(always, torch.inf, logits))


def _has_probs(dist: Any) -> bool:
    return dist._param is dist.__dict__.get("probs")


def _normal(dist: Any) -> Distribution:
    return StableNormal(dist.loc, dist.scale, validate_args=False)


def _beta(dist: Any) -> Distribution:
    return StableBeta(dist.concentration1, dist.concentration0, validate_args=False)


def _multivariate_normal(dist: Any) -> Distribution:
    return StableMultivariateNormal(dist.loc, dist.scale_tril, validate_args=False)


def _independent(dist: Any) -> Distribution:
    base = stabilise(dist.base_dist)
    if base is dist.base_dist:
        return _as_it_is(dist)
    return Independent(base, dist.reinterpreted_batch_ndims, validate_args=False)


def _transformed(dist: Any) -> Distribution:
    base = stabilise(dist.base_dist)
    if base is dist.base_dist:
        return _as_it_is(dist)
    return TransformedDistribution(base, dist.transforms, validate_args=False)


STABLE: dict[type[Distribution], Callable[[Any], Distribution]] = {
    Categorical: _categorical,
    OneHotCategorical: _one_hot_categorical,
    Bernoulli: _bernoulli,
    Normal: _normal,
    Beta: _beta,
    MultivariateNormal: _multivariate_normal,
    Independent: _independent,
    TransformedDistribution: _transformed,
}
"""How each of torch's distributions is made stable."""
