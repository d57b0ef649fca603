"""Generalised advantage estimation, and the normalisation of advantages."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ppo_kl.objectives.reduction import valid_mean
from ppo_kl.policies.discounting import discounted_sums


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """A_t = Σ_k (γ λ)^k δ_{t+k} within an episode, δ_t = r_t + γ V(s_{t+1}) − V(s_t); the return is A_t + V(s_t).

    Termination stops the bootstrap (V(s_{t+1}) is taken as 0), the end of an episode of either kind stops the trace.

    Args:
        reward: `[T, N]`.
        value: V(s_t), `[T, N]`.
        next_value: V of the true successor, the final observation where an episode ended, `[T, N]`.
        terminated: `[T, N]` bool.
        truncated: `[T, N]` bool.
        valid: `[T, N]` bool; rows that are no transitions get 0.
        gamma: γ in [0, 1].
        gae_lambda: λ in [0, 1].

    Returns:
        advantage and return, both `[T, N]` float32 on the device of `reward`.

    Source: Schulman 2016 (arXiv:1506.02438), eq. 16; Pardo 2018 (arXiv:1712.00378) for truncation.
    """
    r, v, following = (x.double().cpu().numpy() for x in (reward, value, next_value))
    ends_for_good, counts = terminated.cpu().numpy(), valid.cpu().numpy()
    goes_on = ~(ends_for_good | truncated.cpu().numpy()) & counts
    # `where` and not a product: a value that is not finite must not leak through 0 · NaN into another episode.
    with np.errstate(invalid="ignore"):
        delta = np.where(counts, r + gamma * np.where(ends_for_good, 0.0, following) - v, 0.0)
        adv = discounted_sums(delta, np.where(goes_on, gamma * gae_lambda, 0.0))
        ret = np.where(counts, adv + v, 0.0)
    advantages, returns = (torch.from_numpy(x).to(reward.device, torch.float32) for x in (adv, ret))
    return advantages, returns


def normalize_advantages(adv: Tensor, valid: Tensor | None) -> Tensor:
    """(A − mean) / std over the rows that count; 0 where they are all equal.

    Args:
        adv: `[B]`.
        valid: `[B]` bool; none: all.

    Returns:
        `[B]`; 0 in rows that do not count.
    """
    # float64, and an ε that grows with the mean: what rounding leaves of equal advantages must not be blown up to 1.
    wide = adv.double()
    mean = valid_mean(wide, valid)
    centred = wide - mean if valid is None else torch.where(valid, wide - mean, 0.0)
    std = valid_mean(centred.square(), valid).sqrt()
    return (centred / (std + 1e-8 * (1 + mean.abs()))).to(adv.dtype)
