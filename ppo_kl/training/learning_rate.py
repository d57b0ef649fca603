"""The learning rate by the KL, independent of the objective."""

from __future__ import annotations

import torch
from torch import Tensor

from ppo_kl.config.training import LR_MAX, LR_MIN

FACTOR = 1.5
ROUNDING = 1e-7
"""A KL this small, nats, is float32's rounding: the policy has not moved yet, which says nothing of the step size."""


def kl_adaptive_lr(lr: Tensor, kl: Tensor, kl_target: float) -> Tensor:
    """lr / 1.5 where K > 2 d, lr · 1.5 where 0 < K < d / 2, lr between; the actor's within [1e-5, 1e-2].

    The critic's rate keeps its proportion to the actor's.

    Args:
        lr: learning rates of actor and critic, `[2]`.
        kl: K, exact mean forward KL, `[]` nats; NaN changes nothing.
        kl_target: d > 0, nats.

    Returns:
        `[2]`.

    Source: Rudin 2022 (arXiv:2109.11978), rsl_rl; there and in brax by minibatch, in skrl by epoch.
    """
    slower = torch.where(kl > 2 * kl_target, 1 / FACTOR, 1.0)
    faster = torch.where((kl > ROUNDING) & (kl < kl_target / 2), FACTOR, 1.0)
    return lr * ((lr[0] * slower * faster).clamp(LR_MIN, LR_MAX) / lr[0])
