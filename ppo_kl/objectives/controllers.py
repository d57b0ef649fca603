"""Controllers: how λ moves, once per rollout, on the exact KL measured after the update.

Pure and branch-free on 0-dim tensors, so that no value has to leave the device. A rule names what it wants to know:

- `kl_lambda`: λ as it is, `[]`;
- `kl`: K, the update's KL, `[]` nats, not negative, may be +inf; a rule that does not ask is a schedule;
- `kl_target`: d, nats, a number or `[]`;
- `initial`: λ at the start, a number;
- `progress`: share of training that is done, `[]` in [0, 1];
- `memory`: what it answered last time, `[m]`, zeros at first; it then answers `(λ, memory)`.

`Objective.adapt_` treats the edges that all rules share (NaN, negative rounding) before, and clamps to [min, max]
after.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Rule = Callable[..., Tensor | tuple[Tensor, Tensor]]

SMALLEST_REMAINDER = 1e-4
"""Share of training that counts as left at its very end, where mdpo's λ would be infinite."""


def fixed(kl_lambda: Tensor) -> Tensor:
    """λ ← λ.

    Args:
        kl_lambda: `[]`.

    Returns:
        `[]`.

    Source: Schulman 2017 (arXiv:1707.06347), eq. 5, and "fixed KL" in table 1.
    """
    return kl_lambda


def schedule(
    initial: float, progress: Tensor, *, shape: str = "linear", kl_lambda_final: float | None = None
) -> Tensor:
    """λ₀; λ₀ + p (λ₁ − λ₀); or λ₀ / (1 − p), which is T / (T − k + 1) in update k = 1 … T, p = (k − 1) / T.

    Args:
        initial: λ₀ > 0.
        progress: p, `[]` in [0, 1].
        shape: constant, linear or mdpo.
        kl_lambda_final: λ₁ > 0, for linear; none: λ₀ / 100.

    Returns:
        `[]`.

    Source: Tomar 2020 (arXiv:2005.09814) for mdpo.
    """
    end = initial / 100 if kl_lambda_final is None else kl_lambda_final
    share = {
        "constant": torch.zeros_like(progress),
        "linear": progress * (end / initial - 1),
        "mdpo": 1 / (1 - progress).clamp(min=SMALLEST_REMAINDER) - 1,
    }
    return initial * (1 + share[shape])


def adaptive(
    kl_lambda: Tensor, kl: Tensor, kl_target: float | Tensor, *, band: float = 1.5, factor: float = 2.0
) -> Tensor:
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
    return banded(kl_lambda, kl, kl_target, upper=band, lower=1 / band, up=factor, down=1 / factor)


def banded(
    kl_lambda: Tensor,
    kl: Tensor,
    kl_target: float | Tensor,
    *,
    upper: float = 2.0,
    lower: float = 0.5,
    up: float = 1.5,
    down: float = 0.5,
) -> Tensor:
    """λ·u where K > upper·d, λ·v where K < lower·d, λ between; on an edge λ stays.

    Args:
        kl_lambda: λ, `[]`.
        kl: K, `[]` nats, not negative.
        kl_target: d > 0, nats.
        upper: ≥ 1.
        lower: in (0, 1].
        up: u > 1.
        down: v in (0, 1).

    Returns:
        `[]`.

    Source: RLlib's PPO by default; 1.3, 0.7, 1.5, 1/1.5 in Schulman's modular_rl and in batch-ppo.
    """
    factor = torch.where(kl > upper * kl_target, up, 1.0) * torch.where(kl < lower * kl_target, down, 1.0)
    return kl_lambda * factor


def pi(
    kl_lambda: Tensor,
    kl: Tensor,
    kl_target: float | Tensor,
    memory: Tensor,
    *,
    k_i: float = 0.3,
    k_p: float = 0.1,
    error_limit: float = 4.0,
    step_limit: float | None = None,
) -> tuple[Tensor, Tensor]:
    """log λ ← log λ + k_i e + k_p (e − e_prev), e = clip(log(K / d), ± log error_limit).

    The velocity form keeps no sum of errors, so nothing winds up while λ stands at a bound. The first time e_prev = e.

    Args:
        kl_lambda: λ, `[]`.
        kl: K, `[]` nats, not negative.
        kl_target: d > 0, nats.
        memory: e_prev, and 1 once there is one, `[2]`.
        k_i: ≥ 0.
        k_p: ≥ 0.
        error_limit: > 1.
        step_limit: largest factor on λ, > 1; none: no limit.

    Returns:
        `[]`, and the new memory.

    Source: Åström & Hägglund, "PID Controllers", velocity form, here on log λ.
    """
    bound = math.log(error_limit)
    error = (kl / kl_target).log().clamp(-bound, bound)
    previous = torch.where(memory[1] > 0, memory[0], error)
    step = k_i * error + k_p * (error - previous)
    if step_limit is not None:
        step = step.clamp(-math.log(step_limit), math.log(step_limit))
    return kl_lambda * step.exp(), torch.stack([error, torch.ones_like(error)])


def dual(kl_lambda: Tensor, kl: Tensor, kl_target: float | Tensor, *, step: float = 0.1) -> Tensor:
    """log λ ← log λ + η clip(K / d − 1, −1, 10).

    Args:
        kl_lambda: λ, `[]`.
        kl: K, `[]` nats, not negative.
        kl_target: d > 0, nats.
        step: η > 0.

    Returns:
        `[]`.

    Source: gradient ascent on the multiplier of K ≤ d, in log λ so that it stays positive.
    """
    return kl_lambda * (step * (kl / kl_target - 1).clamp(-1, 10)).exp()


def proportional(kl_lambda: Tensor, kl: Tensor, kl_target: float | Tensor, *, gain: float = 0.1) -> Tensor:
    """λ · (1 + gain · clip(K / d − 1, ± 0.2)).

    Args:
        kl_lambda: λ, `[]`.
        kl: K, `[]` nats, not negative.
        kl_target: d > 0, nats.
        gain: in (0, 5).

    Returns:
        `[]`.

    Source: Ziegler 2019 (arXiv:1909.08593).
    """
    return kl_lambda * (1 + gain * (kl / kl_target - 1).clamp(-0.2, 0.2))


CONTROLLERS: dict[str, Rule] = {
    "fixed": fixed,
    "schedule": schedule,
    "adaptive": adaptive,
    "banded": banded,
    "pi": pi,
    "dual": dual,
    "proportional": proportional,
}
"""Controller by `kind`."""
