"""One pass without gradient after the update: every number about how far the policy moved, on the device."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ppo_kl.batch import Batch
from ppo_kl.objectives.divergence import diagonal_gaussian, k1, k2, k3, policy_kl
from ppo_kl.objectives.metrics import kl_samples, summarised
from ppo_kl.objectives.objective import MAX_LOG_RATIO, Objective
from ppo_kl.objectives.reduction import valid_mean, valid_means
from ppo_kl.policies.actor_critic import Policy, before_and_now
from ppo_kl.policies.families import Family


@torch.no_grad()
def kl_before(policy: Policy, family: Family, batch: Batch) -> Tensor:
    """Mean KL(π_old ‖ π_θ) before the first step, `[]`; anything but rounding means that π_old was not stored well."""
    return valid_mean(policy_kl(*before_and_now(policy, family, batch)), batch.valid)


@torch.no_grad()
def measure(policy: Policy, family: Family, objective: Objective, batch: Batch) -> dict[str, Tensor]:
    """How far the update moved the policy, over the whole batch at the new θ.

    `kl/controlled` is the number the controller gets. The tags are explained in `glossary`.

    Args:
        policy: after the update.
        family: what the policy's parameters mean.
        objective: with the λ of this update.
        batch: the one the update used, `[B]`.

    Returns:
        `[]` each.
    """
    valid = batch.valid
    pi_old, pi = before_and_now(policy, family, batch)
    kl = kl_samples(pi_old, pi)
    controlled = kl[f"kl/{objective.direction}"]
    logp = pi.log_prob(batch.action)
    log_ratio = (logp - batch.logp_old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    output = objective(logp=logp, logp_old=batch.logp_old, adv=batch.adv, kl=controlled, valid=valid)
    samples = {
        "kl/k1": k1(log_ratio),
        "kl/k2": k2(log_ratio),
        "kl/k3": k3(log_ratio),
        "ratio/mean": ratio,
        "ratio/ess": ratio.square(),
        "policy/entropy": pi.entropy(),
    }
    gaussian = diagonal_gaussian(pi)
    if gaussian is not None:
        samples |= {
            "policy/scale_mean": gaussian.scale.mean(-1),
            "policy/std_at_bound": _at_bound(gaussian.scale.log(), *policy.log_std_bounds).mean(-1),
        }
    means = valid_means(samples, valid)
    return {
        **summarised(objective, kl, valid),
        **means,
        "ratio/min": torch.where(valid, ratio, torch.inf).min(),
        "ratio/max": torch.where(valid, ratio, -torch.inf).max(),
        "ratio/ess": means["ratio/mean"].square() / means["ratio/ess"],
        "value/explained_variance": explained_variance(batch.value_old, batch.ret, valid),
        **{tag: output.metrics[tag] for tag in ("ratio/clip_fraction", "penalty/loss", "penalty/share")},
    }


def _at_bound(log_std: Tensor, low: float, high: float) -> Tensor:
    """1 where the scale stands at a bound, up to rounding, else 0."""
    return ((log_std < low + 1e-4) | (log_std > high - 1e-4)).to(log_std.dtype)


def peak_memory_mb(device: torch.device) -> float:
    """Most memory that PyTorch held on a CUDA device so far, or else this process, MB; NaN where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        # Not getrusage: a process inherits there what the one that started it held.
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    except (OSError, ValueError):
        return float("nan")
    return int(line.split()[1]) * 1024 / 1e6


def explained_variance(value: Tensor, ret: Tensor, valid: Tensor) -> Tensor:
    """1 − Var(ret − V) / Var(ret): 1 is a perfect value function, 0 one that is no better than a constant.

    Args:
        value: `[B]`.
        ret: `[B]`.
        valid: `[B]` bool.

    Returns:
        `[]`; 0 where the returns do not vary.
    """

    samples = {"total": ret, "left": ret - value}
    means = valid_means(samples, valid)
    variance = valid_means({name: (x - means[name]).square() for name, x in samples.items()}, valid)
    return torch.where(variance["total"] > 0, 1 - variance["left"] / variance["total"], 0.0)
