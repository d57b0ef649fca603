"""Controllers: how λ moves, once per rollout, on the exact KL measured after the update.

Pure and branch-free on 0-dim tensors, so that no value has to leave the device. `Objective.adapt_` treats the edges
that all rules share (NaN, negative rounding) before, and clamps to [min, max] after.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def fixed(kl_lambda: Tensor, kl: Tensor) -> Tensor:  # noqa: ARG001
    """λ ← λ.

    Args:
        kl_lambda: `[]`.
        kl: not used.

    Returns:
        `[]`.

    Source: Schulman 2017 (arXiv:1707.06347), eq. 5, and "fixed KL" in table 1.
    """
    return kl_lambda


def adaptive(kl_lambda: Tensor, kl: Tensor, *, kl_target: float, band: float, factor: float) -> Tensor:
    """λ·f where K > b·d, λ/f where K < d/b, λ between; on an edge λ stays.

    Args:
        kl_lambda: λ, `[]`.
        kl: K, `[]` nats, not negative.
        kl_target: d > 0, nats.
        band: b ≥ 1.
        factor: f > 1.

    Returns:
        `[]`.

    Source: Schulman 2017 (arXiv:1707.06347), section 4.
    """
    up = torch.where(kl > kl_target * band, factor, 1.0)
    down = torch.where(kl < kl_target / band, factor, 1.0)
    return kl_lambda * up / down


CONTROLLERS: dict[str, Callable[..., Tensor]] = {"fixed": fixed, "adaptive": adaptive}
"""Controller by `kind`."""
