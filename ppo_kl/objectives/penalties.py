"""Penalties: what λ multiplies, `(kl, log_ratio)` each `[B]` to `[B]`; and the hinge."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ppo_kl.objectives.divergence import k2, k3


def exact(kl: Tensor, log_ratio: Tensor) -> Tensor:  # noqa: ARG001
    """P_i = D_i, the exact KL in the penalty's direction.

    Args:
        kl: `[B]` nats.
        log_ratio: not used.

    Returns:
        `[B]` nats.

    Source: Schulman 2017 (arXiv:1707.06347), eq. 8 (forward); Tomar 2020 (arXiv:2005.09814), on-policy MDPO (reverse).
    """
    return kl


def sampled_k2(kl: Tensor, log_ratio: Tensor) -> Tensor:  # noqa: ARG001
    """P_i = ½ (log r)² on the sampled action; its gradient is biased for the forward KL.

    Args:
        kl: not used.
        log_ratio: logp − logp_old, clamped, `[B]`.

    Returns:
        `[B]` nats.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return k2(log_ratio)


def sampled_k3(kl: Tensor, log_ratio: Tensor) -> Tensor:  # noqa: ARG001
    """P_i = (r − 1) − log r on the sampled action; unbiased for the forward KL, as is its gradient.

    Args:
        kl: not used.
        log_ratio: logp − logp_old, clamped, `[B]`.

    Returns:
        `[B]` nats.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return k3(log_ratio)


def hinge(mean_kl: Tensor, kl_target: float | Tensor, weight: float) -> Tensor:
    """c · max(0, K − 2 d)²: a wall behind the penalty, for an update that goes far beyond its target.

    Args:
        mean_kl: K, exact mean KL of the minibatch, `[]` nats.
        kl_target: d > 0, nats.
        weight: c ≥ 0.

    Returns:
        `[]`.

    Source: pat-coady/trpo (c = 50), after Schulman's modular_rl (c = 1000).
    """
    return weight * (mean_kl - 2 * kl_target).clamp(min=0).square()


PENALTIES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": exact,
    "reverse_kl": exact,
    "k2": sampled_k2,
    "k3": sampled_k3,
}
"""Penalty by `kind`; kind none has no function, its term is left out."""
