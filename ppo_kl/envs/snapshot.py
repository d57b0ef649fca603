"""Where environments stand, and how others get there: an episode begins from a seed, so its actions replay it.

No environment need know how to save itself, and what stands in a checkpoint is numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector.utils import iterate
from torch import Tensor

from ppo_kl.envs.autoreset import Environments
from ppo_kl.errors import CheckpointError, EnvDataError
from ppo_kl.observations import Array, Obs, each_part, stored


class Snapshot(NamedTuple):
    """Where N environments stand in their episodes; tensors on the CPU, as a checkpoint holds them."""

    actions: list[Tensor]
    """As sampled, one tensor `[T, N, *A]` for each of the last rollouts, oldest first."""
    steps: Tensor
    """How many of the last of these actions belong to the running episode of each environment, `[N]`."""
    obs: Obs
    """What the actions led to and was not acted on yet, `[N, *obs]`, by part where the space has several."""
    action_mask: Tensor | None
    """Which actions are allowed there, `[N, M]` bool; none where no environment says."""
    returns: Tensor
    """Of the running episodes so far, `[N]`."""

    def require_fit(self, num_envs: int, action_shape: tuple[int, ...]) -> Snapshot:
        """This snapshot, if its actions are those of `num_envs` environments.

        Raises:
            CheckpointError: they are not.
        """
        rows = sum(map(len, self.actions))
        shapes = {tuple(x.shape[1:]) for x in self.actions} | {(num_envs, *action_shape)}
        if len(shapes) > 1 or not all(0 <= steps <= rows for steps in self.steps.tolist()):
            raise CheckpointError(
                f"envs: actions of shapes {sorted(shapes)} and episodes of {self.steps.tolist()} steps, expected "
                f"shape {(num_envs, *action_shape)} and no episode longer than the {rows} steps that are kept"
            )
        if self.steps.shape != (num_envs,) or self.returns.shape != (num_envs,):
            raise CheckpointError(f"envs: {len(self.steps)} episodes, {len(self.returns)} returns, expected {num_envs}")
        return self


class RunningEpisodes:
    """The actions since the oldest running episode began; all of them, where an episode never ends.

    Args:
        num_envs: N.
    """

    def __init__(self, num_envs: int) -> None:
        self.actions: list[Tensor] = []
        self.steps = np.zeros(num_envs, np.int64)

    def add(self, actions: Tensor, begun: Array) -> None:
        """A rollout: its actions `[T, N, *A]`, and after which of them an episode began, `[T, N]` bool."""
        since = np.argmax(begun[::-1], 0)
        self.steps = np.where(begun.any(0), since, self.steps + len(begun))
        self.actions.append(actions.cpu())
        more = sum(map(len, self.actions)) - self.steps.max()
        while self.actions and len(self.actions[0]) <= more:
            more -= len(self.actions.pop(0))


def return_to(envs: Environments, snapshot: Snapshot, to_env: Callable[[Tensor], Any]) -> Any:
    """Bring environments that were made to begin the snapshot's episodes to where it was taken.

    Args:
        envs: freshly made.
        snapshot: where they shall stand.
        to_env: actions as sampled, `[N, *A]` -> as the environments take them.

    Returns:
        What to act on next, as `Environments.reset`.

    Raises:
        EnvDataError: they come to stand somewhere else.
        EnvWorkerError: one failed on the way.
    """
    each: list[list[Any]] = [[] for _ in range(envs.num_envs)]
    left = sum(map(len, snapshot.actions))
    steps = snapshot.steps.tolist()
    for rollout in snapshot.actions:
        for row in rollout:
            # Whole rows, as they were sent: what a tensor operation answers may depend on the tensor's length.
            sent = iterate(envs.env.action_space, to_env(row)) if left <= max(steps) else ()
            for i, action in enumerate(sent):
                if left <= steps[i]:
                    each[i].append(action)
            left -= 1
    obs, returns, over = envs.replay(each)
    seen = stored(envs.parts, obs)
    masks = envs.action_mask, None if snapshot.action_mask is None else snapshot.action_mask.numpy()
    differs = over | (returns != snapshot.returns.numpy()) | _rows_that_differ(*masks, envs.num_envs)
    for (_, now), (_, then) in zip(each_part(seen), each_part(snapshot.obs), strict=True):
        differs |= _rows_that_differ(now, then.numpy(), envs.num_envs)
    if differs.any():
        i = int(differs.argmax())
        raise EnvDataError(
            f"environment {i} of {envs.env} does not stand where it stood, after the same {steps[i]} actions from the "
            "same seed"
        )
    return obs


def _rows_that_differ(now: Array | None, then: Array | None, num_envs: int) -> Array:
    if now is None or then is None or now.shape != then.shape:
        return np.full(num_envs, now is not then)
    return np.asarray((now != then).reshape(num_envs, -1).any(1))
