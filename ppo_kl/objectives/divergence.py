"""The KL between an old and a new policy: exact, per sample, direction in the call; and its sample estimators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, TransformedDistribution, kl_divergence

from ppo_kl.objectives.distributions import Joint
from ppo_kl.objectives.gaussians import TanhNormal, normal_kl_parts
from ppo_kl.objectives.stabilise import stabilise

Direction = Literal["forward", "reverse"]


def policy_kl(
    pi_old: Distribution,
    pi: Distribution,
    direction: Direction = "forward",
    *,
    batch_shape: Sequence[int] | None = None,
) -> Tensor:
    """Exact KL of each sample in nats: forward KL(π_old ‖ π), reverse KL(π ‖ π_old); by way of `stabilise`.

    Args:
        pi_old: behaviour policy at collection, batch shape `[B]`; build it from stored parameters without gradient.
        pi: current policy, batch shape `[B]`.
        direction: "forward" or "reverse".
        batch_shape: what both must have, where a trainer has sequences or agents; none: any `[B]`.

    Returns:
        `[B]`, summed over action dimensions.

    Raises:
        ValueError: the shapes differ, or the batch shape is not the one that is wanted.
        NotImplementedError: there is no formula for this pair; both names are in the message.

    Source: Schulman 2017 (arXiv:1707.06347), eq. 8.
    """
    shapes = tuple(pi_old.batch_shape), tuple(pi.batch_shape)
    fits = len(shapes[1]) == 1 if batch_shape is None else shapes[1] == tuple(batch_shape)
    if shapes[0] != shapes[1] or not fits:
        wanted = "(B,)" if batch_shape is None else tuple(batch_shape)
        raise ValueError(
            f"policy_kl: batch shapes {shapes[0]} (old) and {shapes[1]} (new) must both be {wanted}; wrap "
            "a distribution over several action dimensions in torch.distributions.Independent(pi, 1)"
        )
    pi_old, pi = stabilise(pi_old, subclasses=True), stabilise(pi, subclasses=True)
    sizes = [(tuple(d.event_shape), _param_shape(d)) for d in (pi_old, pi)]
    if type(pi_old) is type(pi) and sizes[0] != sizes[1]:
        raise ValueError(f"policy_kl: event and parameter shapes {sizes[0]} (old) and {sizes[1]} (new) must be equal")
    for dist in (pi_old, pi):
        _require_bijection(dist)
    p, q = (pi_old, pi) if direction == "forward" else (pi, pi_old)
    try:
        return kl_divergence(p, q)
    except NotImplementedError as error:
        reason = f": {error}" if str(error) else ""
        raise NotImplementedError(f"policy_kl: there is no exact KL for {_named(p)} and {_named(q)}{reason}") from None


def _named(dist: Distribution) -> str:
    """The distribution in words, with its transforms, which torch leaves out."""
    return f"{dist!r} after {dist.transforms}" if isinstance(dist, TransformedDistribution) else repr(dist)


def _require_bijection(dist: Distribution) -> None:
    """Refuse a transform that is none: torch takes the KL of the base, which only a bijection leaves as it is."""
    if type(dist) is TransformedDistribution and not all(transform.bijective for transform in dist.transforms):
        raise NotImplementedError(
            f"policy_kl: there is no exact KL after {dist.transforms}, of which not all are bijections; the KL of the "
            "base is another one"
        )


def _param_shape(dist: Distribution) -> tuple[Any, ...]:
    """How many actions a Categorical has, which no event shape tells; of the innermost distributions."""
    if isinstance(dist, Independent):
        return _param_shape(dist.base_dist)
    if isinstance(dist, Joint):
        return tuple(_param_shape(part) for part in dist.parts)
    return tuple(getattr(dist, "param_shape", ()))


def require_kl(dist: Distribution) -> None:
    """Refuse a policy whose KL with its like has no formula: at construction, before anything was collected with it.

    A transform with parameters of the policy in it passes here; `policy_kl` refuses it as soon as they differ.

    Args:
        dist: as `family.build` makes it, batch shape `[B]`.

    Raises:
        ValueError: the batch shape is not `[B]`.
        NotImplementedError: there is no exact KL; the distribution's name is in the message.
    """
    with torch.no_grad():
        policy_kl(dist, dist)


def diagonal_gaussian(dist: Distribution) -> Normal | None:
    """The Normals of the action dimensions, batch shape `[*, A]`, of u where the action is tanh(u); none of others."""
    if isinstance(dist, TanhNormal):
        dist = dist.base_dist
    base = getattr(dist, "base_dist", None)
    return base if isinstance(dist, Independent) and isinstance(base, Normal) else None


def gaussian_kl_parts(p: Distribution, q: Distribution) -> tuple[Tensor, Tensor] | None:
    """KL(p ‖ q) of diagonal Gaussians, split exactly into what the means and what the scales contribute.

    mean part ½ Σ (Δμ / σ_q)², scale part Σ [log(σ_q / σ_p) + σ_p² / (2 σ_q²) − ½]; squashed by tanh, those of the base.

    Args:
        p: batch shape `[B]`.
        q: batch shape `[B]`.

    Returns:
        Both `[B]`, in nats, summed over action dimensions; none where p and q are not both diagonal Gaussians, or both
        squashed ones.
    """
    base_p, base_q = diagonal_gaussian(p), diagonal_gaussian(q)
    if base_p is None or base_q is None or type(p) is not type(q):
        return None
    mean_part, scale_part = normal_kl_parts(base_p, base_q)
    return mean_part.reshape(*p.batch_shape, -1).sum(-1), scale_part.reshape(*p.batch_shape, -1).sum(-1)


def k1(log_ratio: Tensor) -> Tensor:
    """−log r: unbiased for the forward KL on π_old's actions, negative on about half the samples.

    Args:
        log_ratio: logp − logp_old, any shape.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return -log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """½ (log r)²: never negative, biased, low variance.

    Args:
        log_ratio: logp − logp_old, any shape.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return 0.5 * log_ratio.square()


def k3(log_ratio: Tensor) -> Tensor:
    """(r − 1) − log r: never negative and unbiased for the forward KL on π_old's actions.

    Args:
        log_ratio: logp − logp_old, any shape.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return torch.expm1(log_ratio) - log_ratio
