"""Surrogates: what each sample contributes to the loss through its ratio r and advantage A. All are minimised.

Every function takes `(ratio, adv, kl)`, each `[B]`, and its settings by keyword, and returns the loss `[B]`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def ratio(ratio: Tensor, adv: Tensor, kl: Tensor) -> Tensor:  # noqa: ARG001
    """−r A: the importance-weighted advantage.

    Args:
        ratio: r = π_θ(a|s) / π_old(a|s), `[B]`.
        adv: A, `[B]`.
        kl: not used.

    Returns:
        `[B]`.

    Source: Schulman 2017 (arXiv:1707.06347), eq. 6.
    """
    return -ratio * adv


def clip(ratio: Tensor, adv: Tensor, kl: Tensor, *, clip_eps: float, clip_eps_high: float | None = None) -> Tensor:  # noqa: ARG001
    """−min(r A, clip(r, 1 − ε_low, 1 + ε_high) A): no reward for leaving the band on the improving side.

    Args:
        ratio: r = π_θ(a|s) / π_old(a|s), `[B]`.
        adv: A, `[B]`.
        kl: not used.
        clip_eps: ε_low in (0, 1).
        clip_eps_high: ε_high > 0; none: ε_low.

    Returns:
        `[B]`.

    Source: Schulman 2017 (arXiv:1707.06347), eq. 7.
    """
    high = clip_eps if clip_eps_high is None else clip_eps_high
    return -torch.minimum(ratio * adv, ratio.clamp(1 - clip_eps, 1 + high) * adv)


SURROGATES: dict[str, Callable[..., Tensor]] = {"ratio": ratio, "clip": clip}
"""Surrogate by `kind`."""
