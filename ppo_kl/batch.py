"""What a rollout holds, as values, and how it becomes samples and minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppo_kl.observations import Obs, each_part, over_parts

State = tuple[Tensor, ...]


class Rollout(NamedTuple):
    """What the collector saw in T steps of N environments; every tensor starts with `[T, N]`."""

    obs: Obs
    """What the policy acted on, before normalisation, `[T, N, *obs]`; by part where the space has several."""
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
    action_mask: Tensor | None = None
    """Which actions the environment allowed, `[T, N, M]` bool; none where it never said."""
    starts: Tensor | None = None
    """Where `obs` begins an episode, `[T, N]` bool; recurrent policies alone."""
    state: State = ()
    """What a recurrent policy remembered before it saw `obs`, `[T, N, ...]` each."""


class Batch(NamedTuple):
    """Samples to learn from; every tensor starts with `[B]`.

    Recurrent policies learn from S sequences of L steps each, B = S·L, padded with rows that do not count: `obs` is
    then `[S, L, *obs]` and `state` `[S, ...]`. A *unit* is what minibatches are made of, a row or a whole sequence.
    """

    obs: Obs
    """Normalised, as the policy takes it, `[B, *obs]` or `[S, L, *obs]`."""
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
    action_mask: Tensor | None = None
    """The mask the action was drawn with, `[B, M]` bool."""
    state: State = ()
    """What the policy remembered before each sequence, `[S, ...]` each; empty where it remembers nothing."""
    all_count: bool = False
    """Whether it is known that all rows count, so that none need be left out of a mean."""

    def units(self) -> Tensor:
        """The indices of the units that a minibatch may hold: the rows that count, or every sequence."""
        if self.state:
            return torch.arange(len(self.state[0]), device=self.valid.device)
        return self.valid.nonzero().squeeze(-1)

    def rows(self, index: Tensor, valid: Tensor) -> Batch:
        """The units `index`, of which `valid` count; both `[M]`."""
        if not self.state:
            return self._at(index, index)._replace(valid=valid)
        length = len(self.valid) // len(self.state[0])
        rows = (index[:, None] * length + torch.arange(length, device=index.device)).flatten()
        taken = self._at(index, rows)
        return taken._replace(valid=taken.valid & valid.repeat_interleave(length))

    def copied(self) -> Batch:
        """The same in memory of its own."""
        return self._over(Tensor.clone, Tensor.clone)

    def _at(self, units: Tensor, rows: Tensor) -> Batch:
        # Indexing in brackets, which can do more, takes three times as long.
        return self._over(lambda x: x.index_select(0, units), lambda x: x.index_select(0, rows))

    def _over(self, of_units: Callable[[Tensor], Tensor], of_rows: Callable[[Tensor], Tensor]) -> Batch:
        """With other observations and states, of which a unit has one each, and other values, one for each row."""
        tensors = {name: x for name, x in self._asdict().items() if isinstance(x, Tensor) and name != "obs"}
        values: dict[str, Any] = {name: of_rows(x) for name, x in tensors.items()}
        return self._replace(**values, obs=over_parts(of_units, self.obs), state=tuple(map(of_units, self.state)))


def flatten(
    rollout: Rollout, adv: Tensor, ret: Tensor, normalize: Callable[[Obs], Obs], sequence_length: int = 1
) -> Batch:
    """`[T, N]` becomes `[B]`; observations are normalised once for the whole update.

    Args:
        rollout: `[T, N]`.
        adv: `[T, N]`.
        ret: `[T, N]`.
        normalize: the observation normaliser, frozen since the rollout began.
        sequence_length: of recurrent policies: the longest sequence.

    Returns:
        B = T·N rows; or sequences, where the rollout has a state.
    """

    def flat(x: Tensor) -> Tensor:
        return x.flatten(0, 1)

    batch = Batch(
        obs=normalize(over_parts(flat, rollout.obs)),
        action=flat(rollout.action),
        logp_old=flat(rollout.logp),
        params_old=flat(rollout.params),
        adv=flat(adv),
        ret=flat(ret),
        value_old=flat(rollout.value),
        valid=flat(rollout.valid),
        action_mask=None if rollout.action_mask is None else flat(rollout.action_mask),
    )
    if not rollout.state or rollout.starts is None:
        return batch
    index, valid = sequences(rollout.starts, rollout.valid, sequence_length)
    rows = index.flatten()
    taken = batch._at(rows, rows)
    obs = over_parts(lambda x: x.unflatten(0, index.shape), taken.obs)
    return taken._replace(obs=obs, valid=valid.flatten(), state=tuple(flat(x)[index[:, 0]] for x in rollout.state))


def sequences(starts: Tensor, valid: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Stretches of consecutive steps of one environment, of `length` at most, in none of which an episode begins.

    Args:
        starts: where an episode begins, `[T, N]` bool.
        valid: which rows count; those that do not are in no stretch, `[T, N]` bool.
        length: of the longest stretch.

    Returns:
        index into the flattened rows and valid, both `[S, L]`, L = min(length, T); shorter stretches are padded at
        their ends with their last row.
    """
    T, N = valid.shape
    counts, begins = valid.T.cpu().numpy(), starts.T.cpu().numpy().copy()  # [N, T]: an environment's steps in a row
    begins[:, 0] = True
    begins[:, 1:] |= ~counts[:, :-1]
    step = np.arange(T)[None, :]
    since = step - np.maximum.accumulate(np.where(begins, step, 0), 1)
    env, first = np.nonzero(counts & (since % length == 0))
    # A stretch ends before the next one, or before a row that does not count.
    ends_here = np.concatenate([(since[:, 1:] % length == 0) | ~counts[:, 1:], np.ones((N, 1), bool)], 1)
    last = np.flip(np.minimum.accumulate(np.flip(np.where(ends_here, step, T), 1), 1), 1)[env, first]
    sizes = last - first + 1
    # Not the longest there is: programs are compiled for an L.
    place = np.arange(min(length, T))[None, :]
    index = (first[:, None] + np.minimum(place, sizes[:, None] - 1)) * N + env[:, None]
    device = valid.device
    return torch.from_numpy(index).to(device), torch.from_numpy(place < sizes[:, None]).to(device)


def layout(batch: Batch, *, sizes: bool = True) -> tuple[Any, ...]:
    """What tells batches apart for which different programs are compiled: which tensors there are, and of what kind.

    Args:
        batch: any.
        sizes: how many rows too; else only whether there are more than one.
    """

    def kind(x: Tensor) -> tuple[Any, ...]:
        return (x.dtype, x.shape, x.stride()) if sizes else (x.dtype, len(x) == 1, x.shape[1:])

    return batch.all_count, *((name, kind(x)) for name, x in tensors_in(batch))


def tensors_in(batch: Batch) -> list[tuple[str | int, Tensor]]:
    """All of them, with the name of each within its field."""
    named = [(name, x) for name, x in batch._asdict().items() if isinstance(x, Tensor) and name != "obs"]
    return [*each_part(batch.obs), *named, *enumerate(batch.state)]


def minibatches(
    units: Tensor, size: int, generator: torch.Generator, num_rows: int | None = None, width: int | None = None
) -> tuple[Tensor, Tensor]:
    """A random partition of the units into minibatches of one fixed shape.

    The units are dealt into ⌈rows / size⌉ parts that differ by at most one unit, each padded to the largest part, so
    that no small remainder gets a whole gradient step of its own.

    Args:
        units: which rows of the batch count, or its sequences, `[n]`, n ≥ 1.
        size: rows of the largest minibatch; with sequences, of a mean one.
        generator: on the CPU, the update's own random stream.
        num_rows: that count in all the units together; none: one per unit.
        width: M, where it shall not depend on n; at least ⌈n / parts⌉.

    Returns:
        index `[parts, M]` and valid `[parts, M]` bool, on the device of `units`; without a width M = ⌈n / parts⌉.
    """
    n = len(units)
    parts = min(n, -(-(n if num_rows is None else num_rows) // size))
    width = -(-n // parts) if width is None else width
    # Part p takes places p, p + parts, p + 2·parts, … of a random order, which deals the rows out evenly.
    place = torch.arange(width)[None, :] * parts + torch.arange(parts)[:, None]
    order = torch.randperm(n, generator=generator)[place.clamp(max=n - 1)]
    device = units.device
    return units[order.to(device)], (place < n).to(device)


MOST_ROWS = 65_536
"""That are copied at a time when minibatches are cut, or one minibatch where that has more."""


def cut(batch: Batch, index: Tensor, valid: Tensor, *, all_count: bool = False) -> Iterator[Batch]:
    """The minibatches that were dealt: views of copies in which their rows lie one after the other.

    Args:
        batch: `[B]`.
        index: units of each minibatch, `[parts, M]`.
        valid: which of them count, `[parts, M]` bool.
        all_count: whether all of them do.

    Yields:
        one minibatch after the other, of M units.
    """
    rows_per_unit = len(batch.valid) // max(len(batch.state[0]), 1) if batch.state else 1
    at_once = max(1, MOST_ROWS // (index.shape[1] * rows_per_unit))
    for indices, valids in zip(torch.split(index, at_once), torch.split(valid, at_once), strict=True):
        rows = batch.rows(indices.flatten(), valids.flatten())._replace(all_count=all_count)
        yield from _equal_parts(rows, len(indices))


def _equal_parts(batch: Batch, parts: int) -> Iterator[Batch]:
    def each(x: Any) -> Sequence[Any]:
        if isinstance(x, Tensor):
            return x.view(parts, -1, *x.shape[1:]).unbind()
        if isinstance(x, dict):
            return [dict(zip(x, row, strict=True)) for row in zip(*map(each, x.values()), strict=True)]
        return list(zip(*map(each, x), strict=True)) if isinstance(x, tuple) and x else [x] * parts

    return map(Batch, *map(each, batch))
