"""What environments send: refused where it cannot be trained on, before anybody acts on it; warned of where odd."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ppo_kl.envs.autoreset import Environments
from ppo_kl.envs.guard import all_usable, is_usable
from ppo_kl.errors import EnvDataError, EnvWarning
from ppo_kl.observations import Array, Part, bounds_of, each_part


class DataCheck:
    """The checks of one set of environments.

    Args:
        envs: their parts and bounds.
    """

    def __init__(self, envs: Environments) -> None:
        self.parts = envs.parts
        self._bounds = {part.key: bounds_of(part, envs.observation_space) for part in envs.parts}
        self._warned: set[str] = set()

    def observations(self, obs: Any, step: int, first_env: int = 0) -> None:
        """Refuse observations `[n, *obs]`, of the environments from `first_env` on, at `step` of the rollout.

        Raises:
            EnvDataError: a number is not finite in float32, or an index is not in its space.
        """
        if isinstance(obs, np.ndarray) and obs.dtype.kind == "f" and all_usable(obs):
            return  # of most steps
        for part, (_, x) in zip(self.parts, each_part(obs), strict=True):
            kind = x.dtype.kind
            if kind == "i" or (kind == "f" and not all_usable(x)):
                _require_usable(part, x, step, first_env)

    def rewards(self, reward: Array, step: int) -> None:
        """Refuse rewards `[N]` that are not finite in float32.

        Raises:
            EnvDataError: one is not.
        """
        if all_usable(reward):
            return
        usable = is_usable(reward)
        if not usable.all():
            i = int(usable.argmin())
            raise _fault(f"reward of environment {i} is {reward[i]}", step, truncatable=True)

    def warn_of_bounds(self, obs: Any) -> None:
        """Say once what lies outside of what the observation space declares, `[T, N, *obs]`; nothing is changed."""
        for key, x in each_part(obs):
            bounds = self._bounds[key]
            if bounds is None or key in self._warned:
                continue
            outside = int(((x < bounds[0]) | (x > bounds[1])).sum())
            if outside:
                self._warned.add(key)
                called = f"observation {key!r}" if key else "the observations"
                warnings.warn(
                    f"{outside} numbers of {called} in this rollout lie outside the bounds that the space declares, "
                    f"the lowest {x.min():g}, the highest {x.max():g}; they are used as they are",
                    EnvWarning,
                    stacklevel=2,
                )


def _require_usable(part: Part, obs: Array, step: int, first_env: int) -> None:
    bad = _bad(part, obs)
    if not bad.any():
        return
    i = int(bad.reshape(len(obs), -1).any(1).argmax())
    place = int(bad[i].argmax())
    at = np.unravel_index(place, part.shape)
    what = str(obs[i][at])
    if part.kind == "index":
        size, start = part.sizes[place], part.starts[place]
        what = f"{obs[i][at] + start}, outside of its space from {start} to {start + size - 1}"
    name = f"observation {part.key!r}" if part.path else "observation"
    index = "".join(f"[{int(k)}]" for k in at)
    raise _fault(f"{name}{index} of environment {first_env + i} is {what}", step, truncatable=part.kind != "index")


def _bad(part: Part, x: Array) -> Array:
    if part.kind == "index":
        return np.asarray((x < 0) | (x >= np.array(part.sizes).reshape(part.shape)))
    return np.asarray(~is_usable(x))


def _fault(what: str, step: int, *, truncatable: bool) -> EnvDataError:
    instead = "; a new run with env.nonfinite=truncate cuts the episode instead" if truncatable else ""
    return EnvDataError(
        f"{what} at step {step} of this rollout; no update was made with it, weights and checkpoints are as before; "
        f"mend the environment, then go on with --resume where a checkpoint was saved{instead}"
    )
