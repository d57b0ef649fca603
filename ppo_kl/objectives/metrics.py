"""How far an update moved the policy: every number about the KL that a log shows, under the tags of `glossary`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from ppo_kl.objectives.divergence import gaussian_kl_parts, policy_kl
from ppo_kl.objectives.objective import Objective
from ppo_kl.objectives.reduction import valid_means


@torch.no_grad()
def kl_metrics(
    objective: Objective, pi_old: Distribution, pi: Distribution, valid: Tensor | None = None
) -> dict[str, Tensor]:
    """The exact KL of a rollout after its update: what to log, and what to adapt λ on.

        metrics = kl_metrics(objective, pi_old_all, pi_all)        # once per rollout, after its update
        objective.adapt_(metrics["kl/controlled"])

    Args:
        objective: with the λ of this update.
        pi_old: behaviour policy of the whole rollout, from stored parameters, batch shape `[B]`.
        pi: the same at the new θ.
        valid: which rows count, `[B]` bool; none: all. Given, it may also have a sequence's or agents' shape.

    Returns:
        `[]` each, in nats but for the ratios: `kl/forward` with its maximum and 95th percentile, `kl/reverse`,
        `kl/controlled` (in the penalty's direction), `penalty/lambda`; of Gaussians `kl/mean_part` and
        `kl/scale_part`; with a target `kl/target_ratio`, `kl/target_low` and `kl/target_high`.

    Raises:
        ValueError: the batch shapes differ or are not `[B]`, or not that of `valid`.
        NotImplementedError: there is no exact KL for this pair.
    """
    return summarised(objective, kl_samples(pi_old, pi, None if valid is None else valid.shape), valid)


def kl_samples(pi_old: Distribution, pi: Distribution, batch_shape: Sequence[int] | None = None) -> dict[str, Tensor]:
    """What `kl_metrics` tells of, sample by sample: `kl/forward`, `kl/reverse`, and of Gaussians the two parts.

    Args:
        pi_old: as `kl_metrics`.
        pi: as `kl_metrics`.
        batch_shape: as `policy_kl`.

    Returns:
        `[B]` each, nats.
    """
    samples = {
        "kl/forward": policy_kl(pi_old, pi, "forward", batch_shape=batch_shape),
        "kl/reverse": policy_kl(pi_old, pi, "reverse", batch_shape=batch_shape),
    }
    parts = gaussian_kl_parts(pi_old, pi)
    return samples if parts is None else samples | {"kl/mean_part": parts[0], "kl/scale_part": parts[1]}


def summarised(objective: Objective, samples: dict[str, Tensor], valid: Tensor | None) -> dict[str, Tensor]:
    """`kl_metrics` of a rollout whose `kl_samples` are known.

    Args:
        objective: as `kl_metrics`.
        samples: `[B]` each.
        valid: as `kl_metrics`.

    Returns:
        `[]` each.
    """
    forward = samples["kl/forward"]
    kept = torch.ones_like(forward, dtype=torch.bool) if valid is None else valid.bool()
    means = valid_means(samples, kept)
    controlled = means[f"kl/{objective.direction}"]
    metrics = {
        **means,
        "kl/forward_max": torch.where(kept, forward, -torch.inf).max(),
        "kl/forward_p95": torch.where(kept, forward, torch.nan).nanquantile(0.95),
        "kl/controlled": controlled.clone(),
        "penalty/lambda": objective.kl_lambda.clone(),
    }
    if objective.kl_target is not None:
        metrics["kl/target_ratio"] = controlled / objective.kl_target
    if objective.kl_band is not None:
        one = torch.ones_like(controlled)
        metrics |= {f"kl/target_{which}": one * x for which, x in zip(("low", "high"), objective.kl_band, strict=True)}
    return metrics
