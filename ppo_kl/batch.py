"""What a rollout holds, as values, and how it becomes samples and minibatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Rollout(NamedTuple):
    """What the collector saw in T steps of N environments; every tensor starts with `[T, N]`."""

    obs: Tensor
    """What the policy acted on, before normalisation, `[T, N, *obs]`."""
    action: Tensor
    """As sampled, before it is fitted to the action space, `[T, N]` or `[T, N, A]`."""
    reward: Tensor
    """The environment's own, `[T, N]`."""
    terminated: Tensor
    """The episode ended here for good: nothing is bootstrapped, `[T, N]` bool."""
    truncated: Tensor
    """The episode was cut off here: its last observation is bootstrapped, `[T, N]` bool; never with `terminated`."""
    value: Tensor
    """V(obs), `[T, N]`."""
    next_value: Tensor
    """V of the true successor of `obs`, the final observation where an episode ended, `[T, N]`."""
    logp: Tensor
    """log π_old(action | obs), `[T, N]`."""
    params: Tensor
    """π_old itself, as flat distribution parameters, `[T, N, P]`."""
    valid: Tensor
    """Which rows are transitions; the step that only resets an environment is not, `[T, N]` bool."""


class Batch(NamedTuple):
    """Samples to learn from; every tensor starts with `[B]`."""

    obs: Tensor
    """Normalised, as the policy takes it, `[B, *obs]`."""
    action: Tensor
    """`[B]` or `[B, A]`."""
    logp_old: Tensor
    """`[B]`."""
    params_old: Tensor
    """`[B, P]`."""
    adv: Tensor
    """`[B]`."""
    ret: Tensor
    """What the value is fitted to, `[B]`."""
    value_old: Tensor
    """`[B]`."""
    valid: Tensor
    """`[B]` bool."""

    def rows(self, index: Tensor, valid: Tensor) -> Batch:
        """The rows `index`, of which `valid` count; both `[M]`."""
        return Batch._make([*(x[index] for x in self[:-1]), valid])


def flatten(rollout: Rollout, adv: Tensor, ret: Tensor, normalize: Callable[[Tensor], Tensor]) -> Batch:
    """`[T, N]` becomes `[B]`, B = T·N; observations are normalised once for the whole update.

    Args:
        rollout: `[T, N]`.
        adv: `[T, N]`.
        ret: `[T, N]`.
        normalize: the observation normaliser, frozen since the rollout began.
    """

    def flat(x: Tensor) -> Tensor:
        return x.flatten(0, 1)

    return Batch(
        obs=normalize(flat(rollout.obs)),
        action=flat(rollout.action),
        logp_old=flat(rollout.logp),
        params_old=flat(rollout.params),
        adv=flat(adv),
        ret=flat(ret),
        value_old=flat(rollout.value),
        valid=flat(rollout.valid),
    )


def minibatches(valid_index: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random partition of the valid rows into minibatches of one fixed shape.

    The rows are dealt into ⌈n / size⌉ parts that differ by at most one row, each padded to the largest part, so that no
    small remainder gets a whole gradient step of its own.

    Args:
        valid_index: which rows of the batch count, `[n]`, n ≥ 1.
        size: largest minibatch.
        generator: on the CPU, the update's own random stream.

    Returns:
        index `[parts, M]` and valid `[parts, M]` bool, M = ⌈n / parts⌉ ≤ size, on the device of `valid_index`.
    """
    n = len(valid_index)
    parts = -(-n // size)
    width = -(-n // parts)
    # Part p takes places p, p + parts, p + 2·parts, … of a random order, which deals the rows out evenly.
    place = torch.arange(width)[None, :] * parts + torch.arange(parts)[:, None]
    order = torch.randperm(n, generator=generator)[place.clamp(max=n - 1)]
    device = valid_index.device
    return valid_index[order.to(device)], (place < n).to(device)
