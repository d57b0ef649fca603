"""Which actions an environment allows just now, as one flat row of booleans per environment.

A mask comes in `info["action_mask"]` with every reset and step, in the shape of the action space: n entries for
Discrete, a tuple of such (or all of them in a row) for MultiDiscrete, a dict or tuple of masks for Dict and Tuple, in
which a part that is left out or None allows everything. Box and MultiBinary have no single actions to rule out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from ppo_kl.errors import EnvDataError
from ppo_kl.observations import Array


def head_sizes(space: spaces.Space[Any]) -> tuple[int, ...]:
    """How many actions each choice in `space` has, in the order in which the policy's parameters lie."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in space.nvec.ravel())
    inside = _inside(space)
    return tuple(size for _, part in inside for size in head_sizes(part))


def flat_mask(mask: Any, space: spaces.Space[Any]) -> Array:
    """A mask in the shape of the action space as `[Σ head_sizes]` bool.

    Raises:
        EnvDataError: it has another shape, or other numbers than 0 and 1.
    """
    return np.concatenate([np.zeros(0, bool), *_pieces(mask, space)])


def allows_something(masks: Array, sizes: tuple[int, ...]) -> Array:
    """Whether each row of masks, `[N, Σ sizes]` bool, leaves an action in every choice, `[N]` bool."""
    first = np.cumsum([0, *sizes[:-1]])
    return np.asarray(np.logical_or.reduceat(masks, first, axis=1).all(1))


def _pieces(mask: Any, space: spaces.Space[Any]) -> list[Array]:
    sizes = head_sizes(space)
    if mask is None:
        return [np.ones(sum(sizes), bool)]
    inside = _inside(space)
    if inside:
        if not isinstance(mask, (dict, tuple, list)):
            raise EnvDataError(f"action_mask {mask!r}: expected one for each part of the action space {space}")
        keyed = mask if isinstance(mask, dict) else dict(enumerate(mask))
        unknown = keyed.keys() - {key for key, _ in inside}
        if unknown:
            raise EnvDataError(f"action_mask has {sorted(map(str, unknown))}, which the action space {space} has not")
        return [piece for key, part in inside for piece in _pieces(keyed.get(key), part)]
    if not sizes:
        raise EnvDataError(f"action_mask {mask!r}: the action space {space} has no single actions to rule out")
    row = np.concatenate(_leaves(mask))
    if len(row) != sum(sizes) or not np.isin(row, (0, 1)).all():
        raise EnvDataError(
            f"action_mask {mask!r}: expected {sum(sizes)} entries that are 0 or 1, one for each choice in {space}"
        )
    return [row.astype(bool)]


def _leaves(mask: Any) -> list[Array]:
    """The masks of single choices, however deep they lie in tuples."""
    if isinstance(mask, (tuple, list)) and any(isinstance(part, (tuple, list, np.ndarray)) for part in mask):
        return [leaf for part in mask for leaf in _leaves(part)]
    return [np.asarray(mask).ravel()]


def _inside(space: spaces.Space[Any]) -> list[tuple[Any, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    return list(enumerate(space.spaces)) if isinstance(space, spaces.Tuple) else []
