"""Which family an action space has, and families as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from ppo_kl.config.policy import BoxDistribution
from ppo_kl.errors import ConfigError
from ppo_kl.policies.box_families import BetaFamily, FullGaussianFamily, GaussianFamily, TanhGaussianFamily
from ppo_kl.policies.families import BernoulliFamily, CategoricalFamily, Family, JointFamily, MultiCategoricalFamily

SUPPORTED = "Discrete, MultiDiscrete, MultiBinary, Box of floats with finite bounds, and Dict and Tuple of these"

BOX_FAMILIES: dict[str, type[GaussianFamily] | type[BetaFamily]] = {
    "gaussian": GaussianFamily,
    "tanh_gaussian": TanhGaussianFamily,
    "beta": BetaFamily,
    "full_gaussian": FullGaussianFamily,
}
"""Family of a Box by `policy.distribution`."""

RESCALABLE: dict[str, type[GaussianFamily]] = {"gaussian": GaussianFamily, "full_gaussian": FullGaussianFamily}
"""Those whose actions may be taken as they are, or stretched from ±1 to the bounds."""

FAMILIES: dict[str, type[Any]] = {
    "categorical": CategoricalFamily,
    "multi_categorical": MultiCategoricalFamily,
    "bernoulli": BernoulliFamily,
    "joint": JointFamily,
    **BOX_FAMILIES,
}
"""Family by its name in a checkpoint."""


class _BoxChoice(NamedTuple):
    distribution: BoxDistribution
    rescale: bool


def family_of(space: spaces.Space[Any], distribution: BoxDistribution = "gaussian", *, rescale: bool = False) -> Family:
    """The family of an action space.

    Args:
        space: of one environment.
        distribution: what every Box in it gets.
        rescale: Gaussians that are not squashed: actions at ±1 are stretched to the bounds.

    Raises:
        ConfigError: no family for this space, with the list of those there are.
    """
    return _family_of(space, _BoxChoice(distribution, rescale))


def _family_of(space: spaces.Space[Any], box: _BoxChoice) -> Family:
    for kind, make in _FAMILY_OF.items():
        if isinstance(space, kind):
            return make(space, box)
    raise ConfigError(f"action space {space}: not supported; supported are {SUPPORTED}")


def _discrete(space: Any, _: _BoxChoice) -> Family:
    return CategoricalFamily(int(space.n), int(space.start), str(space.dtype))


def _multi_discrete(space: Any, _: _BoxChoice) -> Family:
    _refuse_empty(space)
    sizes, starts = (tuple(x.ravel().tolist()) for x in (space.nvec, space.start))
    return MultiCategoricalFamily(sizes, starts, space.shape, str(space.dtype))


def _multi_binary(space: Any, _: _BoxChoice) -> Family:
    _refuse_empty(space)
    return BernoulliFamily(space.shape)


def _box(space: Any, box: _BoxChoice) -> Family:
    if not np.issubdtype(space.dtype, np.floating):
        raise ConfigError(f"action space {space}: not supported; supported are {SUPPORTED}")
    low, high = space.low.ravel(), space.high.ravel()
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ConfigError(f"action space {space}: Box actions need finite bounds on both sides")
    _refuse_empty(space)
    shape = tuple(int(size) for size in space.shape)
    bounds = tuple(low.tolist()), tuple(high.tolist())
    if box.rescale and box.distribution in RESCALABLE:
        return RESCALABLE[box.distribution](*bounds, shape, str(space.dtype), rescale=True)
    return BOX_FAMILIES[box.distribution](*bounds, shape, str(space.dtype))


def _dict(space: Any, box: _BoxChoice) -> Family:
    if not all(isinstance(key, str) for key in space.spaces):
        raise ConfigError(f"action space {space}: the keys of a Dict must be words")
    return _joint(space, list(space.spaces.items()), box)


def _tuple(space: Any, box: _BoxChoice) -> Family:
    return _joint(space, list(enumerate(space.spaces)), box)


def _joint(space: Any, parts: list[tuple[Any, Any]], box: _BoxChoice) -> Family:
    if not parts:
        raise ConfigError(f"action space {space}: empty")
    try:
        return JointFamily(tuple((key, _family_of(part, box)) for key, part in parts))
    except ConfigError as error:
        raise ConfigError(f"{error} (in action space {space})") from None


def _refuse_empty(space: Any) -> None:
    if 0 in space.shape:
        raise ConfigError(f"action space {space}: empty")


_FAMILY_OF: dict[type[spaces.Space[Any]], Callable[[Any, _BoxChoice], Family]] = {
    spaces.Discrete: _discrete,
    spaces.MultiDiscrete: _multi_discrete,
    spaces.MultiBinary: _multi_binary,
    spaces.Box: _box,
    spaces.Dict: _dict,
    spaces.Tuple: _tuple,
}


def describe(family: Family) -> dict[str, Any]:
    """The family as plain values, for a checkpoint."""
    (kind,) = (kind for kind, cls in FAMILIES.items() if type(family) is cls)
    fields = dataclasses.fields(family)  # type: ignore[arg-type]
    return {"kind": kind, **{f.name: _plain(getattr(family, f.name)) for f in fields}}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return describe(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


def from_description(description: dict[str, Any]) -> Family:
    """The inverse of `describe`."""
    values = {key: _rebuilt(value) for key, value in description.items() if key != "kind"}
    family: Family = FAMILIES[description["kind"]](**values)
    return family


def _rebuilt(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_rebuilt(item) for item in value)
    return from_description(value) if isinstance(value, dict) else value
