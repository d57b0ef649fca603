"""Surrogates: what each sample contributes to the loss through its ratio r and advantage A. All are minimised.

Every function takes `(ratio, adv, kl)`, each `[B]`, and its settings by keyword, and returns the loss `[B]`. `adv` has
no gradient; `kl` is the exact forward KL wherever it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def clip(
    ratio: Tensor,
    adv: Tensor,
    kl: Tensor,  # noqa: ARG001
    *,
    clip_eps: float | Tensor,
    clip_eps_high: float | Tensor | None = None,
) -> Tensor:
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
    low, high = _edges(clip_eps, clip_eps_high)
    return -torch.minimum(ratio * adv, torch.clamp(ratio, low, high) * adv)


def dual_clip(
    ratio: Tensor,
    adv: Tensor,
    kl: Tensor,
    *,
    clip_eps: float | Tensor,
    clip_eps_high: float | Tensor | None = None,
    dual_clip: float,
) -> Tensor:
    """As `clip`; for A < 0 −max(min(r A, clip(r) A), c A): no loss beyond c |A|, however large the ratio.

    Args:
        ratio: r = π_θ(a|s) / π_old(a|s), `[B]`.
        adv: A, `[B]`.
        kl: not used.
        clip_eps: ε_low in (0, 1).
        clip_eps_high: ε_high > 0; none: ε_low.
        dual_clip: c > 1.

    Returns:
        `[B]`.

    Source: Ye 2020 (arXiv:1912.09729).
    """
    loss = clip(ratio, adv, kl, clip_eps=clip_eps, clip_eps_high=clip_eps_high)
    # Only for A < 0: for A > 0 the bound c A would let through what lies beyond the band.
    return torch.where(adv < 0, torch.minimum(loss, -dual_clip * adv), loss)


def rollback(
    ratio: Tensor,
    adv: Tensor,
    kl: Tensor,  # noqa: ARG001
    *,
    clip_eps: float | Tensor,
    clip_eps_high: float | Tensor | None = None,
    rollback: float,
) -> Tensor:
    """−F A outside the band on the improving side, F = −α r + (1 + α)(1 ± ε); else −r A (PPO-RB).

    Args:
        ratio: r = π_θ(a|s) / π_old(a|s), `[B]`.
        adv: A, `[B]`.
        kl: not used.
        clip_eps: ε_low in (0, 1).
        clip_eps_high: ε_high > 0; none: ε_low.
        rollback: α > 0.

    Returns:
        `[B]`.

    Source: Wang 2020 (arXiv:1903.07940).
    """
    low, high = _edges(clip_eps, clip_eps_high)
    rolled_back = (1 + rollback) * torch.clamp(ratio, low, high) - rollback * ratio
    return -torch.where(_beyond(ratio, adv, low, high), rolled_back, ratio) * adv


def trust_gate(ratio: Tensor, adv: Tensor, kl: Tensor, *, trust_kl: float) -> Tensor:
    """sg(−r A) where the sample left the trust region and moves on (D ≥ δ and r A > A), else −r A (TR-PPO).

    Args:
        ratio: r = π_θ(a|s) / π_old(a|s), `[B]`.
        adv: A, `[B]`.
        kl: D = KL(π_old ‖ π_θ) of each sample, `[B]` nats; gives no gradient.
        trust_kl: δ > 0, nats.

    Returns:
        `[B]`.

    Source: Wang 2020 (arXiv:1903.07940); δ as in the authors' code.
    """
    loss = -ratio * adv
    return torch.where(_distrusted(ratio, adv, kl, trust_kl), loss.detach(), loss)


def trust_rollback(ratio: Tensor, adv: Tensor, kl: Tensor, *, trust_kl: float, rollback: float) -> Tensor:
    """α r A + sg(−(1 + α) r A) where the sample left the trust region and moves on, else −r A (TR-PPO-RB).

    Args:
        ratio: r = π_θ(a|s) / π_old(a|s), `[B]`.
        adv: A, `[B]`.
        kl: D = KL(π_old ‖ π_θ) of each sample, `[B]` nats; gives no gradient.
        trust_kl: δ > 0, nats.
        rollback: α > 0.

    Returns:
        `[B]`; its value is −r A everywhere, up to rounding.

    Source: Wang 2020 (arXiv:1903.07940).
    """
    gain = ratio * adv
    rolled_back = rollback * gain - ((1 + rollback) * gain).detach()
    return torch.where(_distrusted(ratio, adv, kl, trust_kl), rolled_back, -gain)


def truly(ratio: Tensor, adv: Tensor, kl: Tensor, *, trust_kl: float, trust_penalty: float) -> Tensor:
    """−(r A − α D) where the sample left the trust region and moves on (D ≥ δ and r A > A), else −r A (Truly PPO).

    Args:
        ratio: r = π_θ(a|s) / π_old(a|s), `[B]`.
        adv: A, `[B]`.
        kl: D = KL(π_old ‖ π_θ) of each sample, `[B]` nats, with its gradient.
        trust_kl: δ > 0, nats.
        trust_penalty: α > 0.

    Returns:
        `[B]`.

    Source: Wang 2020 (arXiv:1903.07940); r A > A, since r > 1 would be the wrong side for A < 0.
    """
    return torch.where(_distrusted(ratio, adv, kl, trust_kl), trust_penalty * kl, 0.0) - ratio * adv


def spo(ratio: Tensor, adv: Tensor, kl: Tensor, *, clip_eps: float) -> Tensor:  # noqa: ARG001
    """−(r A − |A| (r − 1)² / (2 ε)): a parabola whose optimum lies at r = 1 ± ε.

    Args:
        ratio: r = π_θ(a|s) / π_old(a|s), `[B]`.
        adv: A, `[B]`.
        kl: not used.
        clip_eps: ε in (0, 1).

    Returns:
        `[B]`.

    Source: Xie 2024 (arXiv:2401.16025).
    """
    return adv.abs() * (ratio - 1).square() / (2 * clip_eps) - ratio * adv


def klip(
    ratio: Tensor,
    adv: Tensor,
    kl: Tensor,  # noqa: ARG001
    *,
    clip_eps: float | Tensor,
    clip_eps_high: float | Tensor | None = None,
) -> Tensor:
    """−r A + sg(r A) log r on the samples whose gradient `clip` kills, else −r A. Its gradient is that of `clip`.

    Killed are (A > 0 and r > 1 + ε_high) and (A < 0 and r < 1 − ε_low). The values differ from `clip`'s.

    Args:
        ratio: r = π_θ(a|s) / π_old(a|s), `[B]`.
        adv: A, `[B]`.
        kl: not used.
        clip_eps: ε_low in (0, 1).
        clip_eps_high: ε_high > 0; none: ε_low.

    Returns:
        `[B]`.

    Source: Colletti & Holzinger 2026 (arXiv:2606.23932).
    """
    gain = ratio * adv
    killed = _beyond(ratio, adv, *_edges(clip_eps, clip_eps_high))
    return torch.where(killed, gain.detach() * ratio.log(), 0.0) - gain


def soft_clip(
    ratio: Tensor,
    adv: Tensor,
    kl: Tensor,  # noqa: ARG001
    *,
    clip_eps: float | Tensor,
    clip_eps_high: float | Tensor | None = None,
    ramp: float,
) -> Tensor:
    """−r A + sg(g r A) log r: the gradient of −r A, faded out by g over a linear ramp beyond the band.

    g = clamp(h / τ, 0, 1), h = r − (1 + ε_high) for A > 0 and (1 − ε_low) − r for A < 0; g = 0 for A = 0.

    Args:
        ratio: r = π_θ(a|s) / π_old(a|s), `[B]`.
        adv: A, `[B]`.
        kl: not used.
        clip_eps: ε_low in (0, 1).
        clip_eps_high: ε_high > 0; none: ε_low.
        ramp: τ > 0.

    Returns:
        `[B]`.

    Source: Colletti & Holzinger 2026 (arXiv:2606.23932), linear ramp.
    """
    low, high = _edges(clip_eps, clip_eps_high)
    gain = ratio * adv
    beyond = torch.where(adv > 0, ratio - high, low - ratio)
    faded = (beyond / ramp).clamp(0, 1)  # where A = 0 there is no gain to fade
    return (faded * gain).detach() * ratio.log() - gain


def drift(ratio: Tensor, adv: Tensor, kl: Tensor, *, drift_up: float, drift_down: float) -> Tensor:  # noqa: ARG001
    """−r A + relu(x − s tanh(x / s)): x = (r − 1) A, s = α for A ≥ 0; x = log(r) A, s = β for A < 0 (DPO).

    Args:
        ratio: r = π_θ(a|s) / π_old(a|s), `[B]`.
        adv: A, `[B]`.
        kl: not used.
        drift_up: α > 0.
        drift_down: β > 0.

    Returns:
        `[B]`.

    Source: Lu 2022 (arXiv:2210.05639).
    """
    up, down = (ratio - 1) * adv, ratio.log() * adv
    drifted = torch.where(
        adv < 0,
        down - drift_down * torch.tanh(down / drift_down),
        up - drift_up * torch.tanh(up / drift_up),
    )
    return torch.relu(drifted) - ratio * adv


SURROGATES: dict[str, Callable[..., Tensor]] = {
    "ratio": ratio,
    "clip": clip,
    "dual_clip": dual_clip,
    "rollback": rollback,
    "trust_gate": trust_gate,
    "trust_rollback": trust_rollback,
    "truly": truly,
    "spo": spo,
    "klip": klip,
    "soft_clip": soft_clip,
    "drift": drift,
}
"""Surrogate by `kind`."""


def _edges(clip_eps: float | Tensor, clip_eps_high: float | Tensor | None) -> tuple[Any, Any]:
    """The band's lower and upper edge, numbers or tensors as they come."""
    return 1 - clip_eps, 1 + (clip_eps if clip_eps_high is None else clip_eps_high)


def _beyond(ratio: Tensor, adv: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Where the ratio has left the band on the side on which the sample improves, `[B]` bool."""
    return ((adv > 0) & (ratio > high)) | ((adv < 0) & (ratio < low))


def _distrusted(ratio: Tensor, adv: Tensor, kl: Tensor, trust_kl: float) -> Tensor:
    """Where a sample left the trust region and would move on, `[B]` bool, without gradient."""
    return (kl >= trust_kl) & (ratio * adv > adv)
