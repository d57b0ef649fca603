"""What an observation is made of: named parts in a fixed order, how each is stored, and what may be in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from gymnasium import spaces
from torch import Tensor

from ppo_kl.errors import ConfigError

Array = np.ndarray[Any, Any]
X = TypeVar("X")
Y = TypeVar("Y")
Obs = Tensor | dict[str, Tensor]
"""A tensor where the space is plain, else tensors by the keys of the parts, in their order."""
SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these"


@dataclass(frozen=True)
class Part:
    """One leaf of an observation space.

    Args:
        path: the keys that lead to it; () where the space is plain.
        kind: vector: numbers, stored as float32; index: Discrete and MultiDiscrete, stored from 0; image: stored as it
            is sent, scaled to [0, 1] by its encoder.
        shape: of one observation.
        dtype: as which it is stored.
        sizes: index: how many values each of its numbers has, flattened.
        starts: index: the first value of each as it is sent.
        scale: image: the largest value.
    """

    path: tuple[str | int, ...]
    kind: Literal["vector", "index", "image"]
    shape: tuple[int, ...]
    dtype: str = "float32"
    sizes: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    scale: float = 1.0

    @property
    def key(self) -> str:
        """The path as one word, as `camera.left`."""
        return ".".join(map(str, self.path))

    def pick(self, obs: Any) -> Array:
        """This part of observations as they are sent, `[*, *shape]`, in a dtype that loses nothing; not yet a copy."""
        for key in self.path:
            obs = obs[key]
        values = np.asarray(obs)
        if self.kind == "index":
            values = values - np.array(self.starts, np.int64).reshape(self.shape)
        return values


def parts_of(space: spaces.Space[Any]) -> tuple[Part, ...]:
    """The parts of an observation space, in the order in which the space has them.

    Raises:
        ConfigError: a space that there is no encoder for, or an empty one.
    """
    parts = _parts(space, (), space)
    keys = [part.key for part in parts]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise ConfigError(
            f"observation space {space}: two parts would be called {', '.join(sorted(twice))}; rename one"
        )
    return parts


def _parts(space: spaces.Space[Any], path: tuple[str | int, ...], whole: spaces.Space[Any]) -> tuple[Part, ...]:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        inside = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        found = [part for key, below in inside for part in _parts(below, (*path, key), whole)]
        if not found:
            raise ConfigError(f"observation space {whole}: empty")
        return tuple(found)
    make = next((make for kind, make in _PART_OF.items() if isinstance(space, kind)), None)
    if make is None:
        raise ConfigError(f"observation space {whole}: {space} is not supported; supported are {SUPPORTED}")
    part = make(space, path)
    if 0 in part.shape:
        raise ConfigError(f"observation space {whole}: empty")
    return (part,)


def _box(space: Any, path: tuple[str | int, ...]) -> Part:
    shape = tuple(int(size) for size in space.shape)
    scale = _image_scale(space)
    if scale is None or 0 in shape:
        return Part(path, "vector", shape)
    return Part(path, "image", shape, str(space.dtype) if space.dtype == np.uint8 else "float32", scale=scale)


def _image_scale(space: Any) -> float | None:
    """The largest value of an image: bytes of two dimensions or more, or floats of three from 0 to 1 or to 255."""
    dims = len(space.shape)
    if space.dtype == np.uint8:
        return float(max(space.high.max(initial=1), 1)) if dims >= 2 else None
    if dims < 3 or not np.issubdtype(space.dtype, np.floating) or (space.low != 0).any():
        return None
    return next((high for high in (1.0, 255.0) if (space.high == high).all()), None)


def _discrete(space: Any, path: tuple[str | int, ...]) -> Part:
    return Part(path, "index", (), "int64", (int(space.n),), (int(space.start),))


def _multi_discrete(space: Any, path: tuple[str | int, ...]) -> Part:
    sizes, starts = (tuple(int(x) for x in values.ravel()) for values in (space.nvec, space.start))
    return Part(path, "index", tuple(int(size) for size in space.shape), "int64", sizes, starts)


def _multi_binary(space: Any, path: tuple[str | int, ...]) -> Part:
    return Part(path, "vector", tuple(int(size) for size in space.shape))


_PART_OF: dict[type[spaces.Space[Any]], Callable[[Any, tuple[str | int, ...]], Part]] = {
    spaces.Box: _box,
    spaces.Discrete: _discrete,
    spaces.MultiDiscrete: _multi_discrete,
    spaces.MultiBinary: _multi_binary,
}


# --- one tensor, or a dict of them ------------------------------------------------------------------------------------


def by_part(parts: tuple[Part, ...], make: Callable[[Part], X]) -> X | dict[str, X]:
    """`make` of the one part of a plain space, or of each part by its key."""
    if parts[0].path == ():
        return make(parts[0])
    return {part.key: make(part) for part in parts}


def over_parts(function: Callable[..., Y], obs: X | Mapping[str, X], *more: Any) -> Y | dict[str, Y]:
    """`function` of each part; what else it takes has the same parts."""
    if isinstance(obs, Mapping):
        return {key: function(value, *(m[key] for m in more)) for key, value in obs.items()}
    return function(obs, *more)


def each_part(obs: X | Mapping[str, X]) -> list[tuple[str, X]]:
    """(key, value) of each part; the key is empty where the space is plain."""
    return list(obs.items()) if isinstance(obs, Mapping) else [("", obs)]


def read(parts: tuple[Part, ...], obs: Any) -> Any:
    """Observations as the environments send them, by part; views where they can be."""
    return by_part(parts, lambda part: part.pick(obs))


def stored(parts: tuple[Part, ...], obs: Any) -> Any:
    """Observations by part, in the dtypes in which they are kept."""
    return over_parts(lambda x, part: x.astype(part.dtype), obs, by_part(parts, lambda part: part))


# --- what may be in it ------------------------------------------------------------------------------------------------


def space_of(part: Part, space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The leaf of `space`, the whole observation space, that a part of it is."""
    for key in part.path:
        space = space[key]  # type: ignore[index]
    return space


def bounds_of(part: Part, space: spaces.Space[Any]) -> tuple[Array, Array] | None:
    """The lowest and highest number that `space` declares for a part of it, each `[*shape]`; none where any may be.

    Args:
        part: of kind vector or image; an index outside its range is an error of its own.
        space: the whole observation space.
    """
    space = space_of(part, space)
    if part.kind == "index" or part.dtype == "uint8" or not isinstance(space, spaces.Box):
        return None
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    return None if np.isneginf(low).all() and np.isposinf(high).all() else (low, high)


def describe_parts(parts: tuple[Part, ...]) -> list[dict[str, Any]]:
    """The parts as plain values, for a checkpoint."""
    fields = ("path", "shape", "sizes", "starts")
    return [
        {"kind": p.kind, "dtype": p.dtype, "scale": p.scale, **{f: list(getattr(p, f)) for f in fields}} for p in parts
    ]


def from_parts_description(description: list[dict[str, Any]]) -> tuple[Part, ...]:
    """The inverse of `describe`."""

    def plain(values: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}

    return tuple(Part(**plain(values)) for values in description)
