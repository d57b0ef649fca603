"""The KL between an old and a new policy: exact, per sample, direction in the call; and its sample estimators."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

Direction = Literal["forward", "reverse"]


def policy_kl(pi_old: Distribution, pi: Distribution, direction: Direction = "forward") -> Tensor:
    """Exact KL of each sample in nats: forward KL(π_old ‖ π), reverse KL(π ‖ π_old).

    Args:
        pi_old: behaviour policy at collection, batch shape `[B]`; build it from stored parameters without gradient.
        pi: current policy, batch shape `[B]`.
        direction: "forward" or "reverse".

    Returns:
        `[B]`, summed over action dimensions.

    Raises:
        ValueError: the shapes differ, or the batch shape is not `[B]`.
        NotImplementedError: torch knows no KL for this pair; its names are in the message.

    Source: Schulman 2017 (arXiv:1707.06347), eq. 8.
    """
    if pi_old.batch_shape != pi.batch_shape or len(pi.batch_shape) != 1:
        raise ValueError(
            f"policy_kl: batch shapes {tuple(pi_old.batch_shape)} (old) and {tuple(pi.batch_shape)} (new) must both be "
            "(B,); wrap a distribution over several action dimensions in torch.distributions.Independent(pi, 1)"
        )
    sizes = [(tuple(d.event_shape), tuple(getattr(d, "param_shape", ()))) for d in (pi_old, pi)]
    if type(pi_old) is type(pi) and sizes[0] != sizes[1]:
        raise ValueError(f"policy_kl: event and parameter shapes {sizes[0]} (old) and {sizes[1]} (new) must be equal")
    p, q = (pi_old, pi) if direction == "forward" else (pi, pi_old)
    try:
        return kl_divergence(p, q)
    except NotImplementedError:
        raise NotImplementedError(f"policy_kl: torch has no exact KL for {p!r} and {q!r}") from None


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
