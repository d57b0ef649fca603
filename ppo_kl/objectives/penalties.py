"""Penalties: what λ multiplies, and the exact parts of a Gaussian KL."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from ppo_kl.objectives.divergence import Direction


class Penalty(NamedTuple):
    """One penalty: the exact KL it belongs to, and what it makes of it per sample."""

    direction: Direction
    """Which exact KL `Objective.divergence` measures and the controller sees."""
    per_sample: Callable[[Tensor], Tensor] | None
    """`[B]` exact KL -> `[B]`; none: the term is left out."""


def exact(kl: Tensor) -> Tensor:
    """P_i = D_i, the exact KL in the penalty's direction.

    Args:
        kl: `[B]` nats.

    Returns:
        `[B]` nats.

    Source: Schulman 2017 (arXiv:1707.06347), eq. 8 (forward); Tomar 2020 (arXiv:2005.09814), on-policy MDPO (reverse).
    """
    return kl


PENALTIES: dict[str, Penalty] = {
    "none": Penalty("forward", None),
    "forward_kl": Penalty("forward", exact),
    "reverse_kl": Penalty("reverse", exact),
}
"""Penalty by `kind`."""


def gaussian_kl_parts(p: Distribution, q: Distribution) -> tuple[Tensor, Tensor] | None:
    """KL(p ‖ q) of diagonal Gaussians, split exactly into what the means and what the scales contribute.

    mean part ½ Σ (Δμ / σ_q)², scale part Σ [log(σ_q / σ_p) + σ_p² / (2 σ_q²) − ½].

    Args:
        p: batch shape `[B]`.
        q: batch shape `[B]`.

    Returns:
        Both `[B]`, in nats, summed over action dimensions; none where p and q are not diagonal Gaussians.
    """
    if not all(isinstance(d, Independent) and isinstance(d.base_dist, Normal) for d in (p, q)):
        return None
    ratio = p.stddev / q.stddev
    mean_part = 0.5 * ((p.mean - q.mean) / q.stddev).square().sum(-1)
    scale_part = (0.5 * (ratio.square() - 1) - ratio.log()).sum(-1)
    return mean_part, scale_part
