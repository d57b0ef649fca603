"""Arrays that several processes see: what environments are sent, and what they answer.

Their memory has no name: it lies in no folder, and it is gone with the last process that has it, however that ends.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector.utils import create_empty_array

from ppo_kl.envs.serial import Answers, leaves_of
from ppo_kl.errors import ConfigError
from ppo_kl.observations import SUPPORTED, Array

ALIGNMENT = 64
"""Bytes: an array begins on a cache line of its own."""

Spaces = tuple[Space[Any], Space[Any]]
"""Of observations and of actions."""


class Rows(NamedTuple):
    """A row for each environment."""

    action: Any
    """`[N, ...]`, in a dict or tuple where the space is one."""
    answers: Answers
    """What the environments answer."""

    def of(self, share: range, made_for: Spaces) -> Rows:
        """Those of some environments, as views."""

        def mine(x: Array) -> Array:
            return x[share.start : share.stop]

        obs, told = _over_arrays(mine, self.answers.obs), self.answers
        ends = mine(told.terminated), mine(told.truncated)
        answers = Answers(obs, leaves_of(made_for[0], obs), mine(told.reward), *ends)
        return Rows(_over_arrays(mine, self.action), answers)


def shared_memory(made_for: Spaces, num_envs: int) -> int:
    """Memory for the rows of `num_envs` environments, as the descriptor of a file without a name.

    Raises:
        ConfigError: what a space holds is no array of numbers.
    """
    for kind, space in zip(("observation", "action"), made_for, strict=True):
        _require_numbers(kind, space)
    pieces = _Pieces(None)
    _rows(pieces, made_for, num_envs)
    if sys.platform == "linux":
        memory = os.memfd_create("ppo_kl")
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.ftruncate(memory, pieces.end)
    return memory


def rows_in(memory: int, made_for: Spaces, num_envs: int) -> Rows:
    """The rows in memory from `shared_memory`, of the same spaces and number; the descriptor stays open."""
    action, obs, *ends = _rows(_Pieces(mmap.mmap(memory, 0)), made_for, num_envs)
    return Rows(action, Answers(obs, leaves_of(made_for[0], obs), *ends))


class _Pieces:
    """Hands out one array behind the other; without memory, it only counts how much they take."""

    def __init__(self, memory: mmap.mmap | None) -> None:
        self._memory, self.end = memory, 0

    def __call__(self, shape: tuple[int, ...], dtype: Any) -> Array:
        begin, size = self.end, int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.end += -(-size // ALIGNMENT) * ALIGNMENT
        return np.zeros(0) if self._memory is None else np.ndarray(shape, dtype, self._memory, begin)


def _rows(pieces: _Pieces, made_for: Spaces, num_envs: int) -> tuple[Any, Any, Array, Array, Array]:
    obs, action = (create_empty_array(space, num_envs, pieces) for space in made_for)
    return action, obs, *(pieces((num_envs,), dtype) for dtype in (float, bool, bool))  # type: ignore[return-value]


def _require_numbers(kind: str, space: Space[Any]) -> None:
    inside = space.spaces if isinstance(space, (spaces.Dict, spaces.Tuple)) else None
    if inside is not None:
        for part in inside.values() if isinstance(inside, dict) else inside:
            _require_numbers(kind, part)
    elif not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise ConfigError(f"{kind} space {space}: not supported; supported are {SUPPORTED}")


# --- arrays in dicts and tuples ---------------------------------------------------------------------------------------


def _over_arrays(function: Callable[[Array], Array], nested: Any) -> Any:
    if isinstance(nested, dict):
        return {key: _over_arrays(function, part) for key, part in nested.items()}
    return tuple(_over_arrays(function, part) for part in nested) if isinstance(nested, tuple) else function(nested)


def put(into: Any, values: Any) -> None:
    """Write `values` into arrays of the same structure.

    Raises:
        ValueError: they are of another shape, or of a type that loses something.
    """
    if isinstance(into, dict):
        for key, part in into.items():
            put(part, values[key])
    elif isinstance(into, tuple):
        for part, value in zip(into, values, strict=True):
            put(part, value)
    elif np.shape(values) != into.shape:
        raise ValueError(f"shape {np.shape(values)}, expected {into.shape}")
    else:
        np.copyto(into, values, casting="same_kind")
