"""How KL, ratio and actions are spread over a rollout: counted on the device, a few dozen numbers each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ppo_kl.batch import Batch
from ppo_kl.objectives.divergence import policy_kl
from ppo_kl.objectives.objective import MAX_LOG_RATIO
from ppo_kl.policies.actor_critic import Policy, before_and_now
from ppo_kl.policies.families import BernoulliFamily, Family, JointFamily

BUCKETS = 64


class Histogram(NamedTuple):
    """Counts between edges."""

    edges: list[float]
    """Ascending, one more than the counts."""
    counts: list[float]


@torch.no_grad()
def histograms(policy: Policy, family: Family, batch: Batch) -> dict[str, Tensor]:
    """Where the rollout's KLs, ratios and actions lie, by tag.

    Args:
        policy: after the update.
        family: what its parameters mean.
        batch: the one the update used, `[B]`.

    Returns:
        `kl/per_state` (exact forward KL, nats), `ratio/per_sample` and `policy/action_<i>` (as sampled), `[2, K + 1]`
        each: edges, and counts of which the first is nothing; see `from_device`.
    """
    valid = batch.valid
    pi_old, pi = before_and_now(policy, family, batch)
    log_ratio = (pi.log_prob(batch.action) - batch.logp_old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    spread = {
        "kl/per_state": equal_shares(policy_kl(pi_old, pi), valid),
        "ratio/per_sample": equal_shares(log_ratio.exp(), valid),
    }
    columns = batch.action.reshape(len(valid), -1).unbind(-1)
    for i, (column, choices) in enumerate(zip(columns, choices_of(family), strict=True)):
        counted = equal_shares(column, valid) if choices is None else shares_of_choices(column, valid, choices)
        spread[f"policy/action_{i}"] = counted
    return spread


def equal_shares(x: Tensor, valid: Tensor) -> Tensor:
    """Edges between which equally many of the finite values lie, `[2, BUCKETS + 1]`: fine where the values are.

    Args:
        x: `[B]`.
        valid: which rows count, `[B]` bool.
    """
    kept = valid & x.isfinite()
    n = kept.sum()
    ascending = torch.where(kept, x.double(), torch.inf).sort().values
    share = torch.linspace(0, 1, BUCKETS + 1, dtype=torch.float64, device=x.device)
    edges = ascending[(share * (n - 1)).round().long().clamp(min=0)]
    counts = torch.full_like(edges, 1 / BUCKETS) * n
    counts[0] = 0
    return torch.stack([edges, counts])


def shares_of_choices(x: Tensor, valid: Tensor, choices: int) -> Tensor:
    """How often each of 0 … choices − 1 was taken, `[2, choices + 1]`, the edges half-way between.

    Args:
        x: `[B]`, whole numbers.
        valid: which rows count, `[B]` bool.
        choices: how many there are.
    """
    edges = torch.arange(choices + 1, dtype=torch.float64, device=x.device) - 0.5
    counts = torch.zeros_like(edges).index_add_(0, x.long().clamp(0, choices - 1) + 1, valid.double())
    return torch.stack([edges, counts])


def choices_of(family: Family) -> tuple[int | None, ...]:
    """How many choices each number of a stored action is one of; none where it is continuous."""
    if isinstance(family, JointFamily):
        return tuple(choices for part in family.families for choices in choices_of(part))
    if isinstance(family, BernoulliFamily):
        return (2,) * family.num_params
    return family.mask_sizes or (None,) * sum(family.action_shape)


def from_device(numbers: list[float]) -> Histogram | None:
    """A histogram from its `2 · (K + 1)` numbers, buckets without width merged; none where nothing was finite."""
    half = len(numbers) // 2
    edges, counts = numbers[:half], numbers[half:]
    if not sum(counts):
        return None
    merged = Histogram([edges[0]], [])
    waiting = 0.0
    for edge, count in zip(edges[1:], counts[1:], strict=True):
        if edge > merged.edges[-1]:
            merged.edges.append(edge)
            merged.counts.append(count + waiting)
            waiting = 0.0
        elif merged.counts:
            merged.counts[-1] += count
        else:
            waiting += count
    if not merged.counts:  # one value alone
        width = max(abs(edges[0]) * 1e-6, 1e-9)
        return Histogram([edges[0] - width, edges[0] + width], [waiting])
    return merged
