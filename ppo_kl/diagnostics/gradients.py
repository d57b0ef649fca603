"""What pulls the policy, and what holds it back: the gradients of surrogate, penalty and KL side by side."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ppo_kl.batch import Batch
from ppo_kl.objectives.objective import MAX_LOG_RATIO, Objective
from ppo_kl.objectives.reduction import valid_mean
from ppo_kl.observations import each_part
from ppo_kl.policies.actor_critic import Policy, before_and_now
from ppo_kl.policies.families import Family

PART_NUMBERS = 2**18
"""In the observations of a part that is larger than a minibatch; of HalfCheetah's this is 15,000 rows."""
TINY = 1e-12
"""A norm below this is taken for it, so that where nothing moved the ratios below are 0, not NaN."""


@torch.enable_grad()
def gradient_anatomy(
    policy: Policy, family: Family, objective: Objective, batch: Batch, minibatch_size: int
) -> dict[str, Tensor]:
    """Norms and directions of the policy's gradients over the whole batch, at the present θ.

        penalty/grad_norm_ratio   ‖∇ penalty‖ / ‖∇ surrogate‖, λ included
        penalty/grad_cosine       cos(∇ surrogate, ∇ KL)
        penalty/implied_lambda    ⟨∇ loss − ∇ L_ratio, ∇ KL⟩ / ‖∇ KL‖²,   L_ratio = −mean(r · A)

    The last is the λ that a KL penalty on the plain surrogate would need to pull as this objective does along ∇ KL:
    exactly λ for the ratio surrogate with a KL penalty, and what clipping amounts to for `clip`. KL is exact, in the
    objective's direction.

    The gradients are added up over parts that fit into memory: as large as a minibatch, as training's do, or, where
    observations are small, larger. A hinge, which is not linear in the mean KL, is that of a minibatch, as in training.

    Args:
        policy: after the update.
        family: what its parameters mean.
        objective: with the λ of this update.
        batch: the one the update used, `[B]`.
        minibatch_size: of training, rows.

    Returns:
        `[]` each.
    """
    parameters = [x for x in cast(nn.Module, policy).parameters() if x.requires_grad]
    units, total = batch.units(), batch.valid.sum()
    rows_per_unit = len(batch.valid) / max(len(batch.state[0]), 1) if batch.state else 1
    sums = [torch.zeros((), device=batch.valid.device)] * 4
    rows_per_part = _rows_per_part(objective, batch, minibatch_size)
    for part in torch.split(units, max(1, round(rows_per_part / rows_per_unit))):
        rows = batch.rows(part, torch.ones_like(part, dtype=torch.bool))
        weight = rows.valid.sum() / total
        losses = _losses(policy, family, objective, rows)
        sums = [s + _gradient(weight * x, parameters) for s, x in zip(sums, losses, strict=True)]
    surrogate, penalty, ratio, kl = sums
    return {
        "penalty/grad_norm_ratio": penalty.norm() / surrogate.norm().clamp(min=TINY),
        "penalty/grad_cosine": (surrogate * kl).sum() / (surrogate.norm() * kl.norm()).clamp(min=TINY),
        "penalty/implied_lambda": ((surrogate + penalty - ratio) * kl).sum() / kl.square().sum().clamp(min=TINY**2),
    }


def _rows_per_part(objective: Objective, batch: Batch, minibatch_size: int) -> int:
    """A minibatch's; or more, which takes less time, where no part's mean matters and observations are small."""
    if getattr(objective.config.penalty, "hinge", 0.0) > 0:
        return minibatch_size
    numbers = sum(x.numel() for _, x in each_part(batch.obs))
    return max(minibatch_size, PART_NUMBERS * len(batch.valid) // max(numbers, 1))


def _losses(policy: Policy, family: Family, objective: Objective, batch: Batch) -> tuple[Tensor, ...]:
    """Surrogate, penalty, L_ratio and mean KL, `[]` each."""
    valid = batch.valid
    pi_old, pi = before_and_now(policy, family, batch)
    kl, logp = objective.divergence(pi_old, pi), pi.log_prob(batch.action)
    output = objective(logp=logp, logp_old=batch.logp_old, adv=batch.adv, kl=kl, valid=valid)
    log_ratio = torch.where(valid, logp - batch.logp_old, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = -valid_mean(log_ratio.exp() * torch.where(valid, batch.adv, 0.0), valid)
    return output.surrogate, output.penalty, ratio, valid_mean(kl, valid)


def _gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """∇ loss as one vector, `[n]`; 0 for what the loss does not depend on."""
    if not loss.requires_grad:
        return torch.zeros((), device=loss.device)
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    pairs = zip(grads, parameters, strict=True)
    return torch.cat([(torch.zeros_like(x) if g is None else g).flatten() for g, x in pairs])
