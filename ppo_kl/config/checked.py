"""What makes a dataclass of settings safe: declared ranges, checked at construction.

Every group of settings is a frozen dataclass that inherits from `Settings`. A field states its range with
`setting(...)`; a wrong type, a NaN or a value outside the range raises `ConfigError` before anything else happens.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from ppo_kl.errors import ConfigError

SMALLEST, LARGEST = 1e-30, 1e30
"""What a number with a point may measure, apart from 0: training computes in single precision, where squares of
anything beyond are 0 or infinite."""


def setting(
    default: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A dataclass field with a range: open bounds are `above` and `below`, closed ones `at_least` and `at_most`.

    An upper bound far beyond what anybody means is there for a slip of the keyboard, which would otherwise end a run
    in a crash or for want of memory.
    """
    bounds = {">": above, ">=": at_least, "<": below, "<=": at_most}
    return dataclasses.field(default=default, metadata={k: v for k, v in bounds.items() if v is not None})


def nearest(name: str, words: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the list of what there is where nothing is near."""
    known = {word.lower(): word for word in sorted(words)}
    close = difflib.get_close_matches(name.lower(), known, n=1)
    if close:
        return f" (did you mean {known[close[0]]!r}?)"
    return f" (known: {', '.join(known.values())})" if len(known) <= 50 else f" ({len(known)} are known)"


class Settings:
    """Base of every frozen dataclass of settings: checks each field's type and range when it is made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            checked = check_value(field.name, value, types_of(type(self))[field.name], field.metadata)
            if checked is not value:
                object.__setattr__(self, field.name, checked)


def require_default(config: Settings, names: Iterable[str], reason: str) -> None:
    """Refuse a setting that would be ignored as things stand, unless it was left alone."""
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name in names and value != default:
            raise ConfigError(f"{field.name}={value!r}: would be ignored: {reason}", field.name)


types_of: Callable[[type], dict[str, Any]] = functools.cache(typing.get_type_hints)
"""The resolved type of each field of a settings class."""


def check_value(key: str, value: Any, kind: Any, bounds: Mapping[str, float]) -> Any:
    """`value` as `kind`, an int as a float where that is declared; or a `ConfigError` that says what is allowed."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        words = words_in(args)
        if value is None and type(None) in args:
            return None
        if isinstance(value, str) and words:
            if value not in words:
                raise ConfigError(f"{key}={value!r}: allowed: {', '.join(words)}, or a number", key)
            return value
        return check_value(key, value, plain_kind(args), bounds)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{key}={value!r}: unknown{nearest(str(value), map(str, args))}", key)
        return value
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{key}={value!r}: expected a list", key)
        return tuple(check_value(key, item, args[0], bounds) for item in value)
    if kind is Any:
        return _plain(key, value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}={value!r}: expected names with values", key)
        return {_word(key, k): check_value(f"{key}.{k}", v, args[1], bounds) for k, v in value.items()}
    if kind is float and type(value) is int:
        value = float(value) if abs(value) <= LARGEST else math.inf if value > 0 else -math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{key}={value!r}: expected {kind.__name__}, got {type(value).__name__}", key)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_range(key, value, bounds)
    return value


def words_in(options: Iterable[Any]) -> tuple[str, ...]:
    """The words that a setting takes in the place of its plain kind, as `auto`; `options` are the parts of its type."""
    return tuple(word for option in options if typing.get_origin(option) is Literal for word in typing.get_args(option))


def plain_kind(options: Iterable[Any]) -> Any:
    """What a setting is where it is neither nothing nor one of its words."""
    (kind,) = (o for o in options if o is not type(None) and typing.get_origin(o) is not Literal)
    return kind


def _word(key: str, name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{key}: {name!r} is not a name", key)
    return name


def _plain(key: str, value: Any) -> Any:
    """A value of no declared type, which must be one that a file can hold."""
    if isinstance(value, (list, tuple)):
        return [_plain(key, item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"{key}={value!r}: expected a number, a word, true, false, none, or a list of these", key)


_HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def _check_range(key: str, value: float, bounds: Mapping[str, float]) -> None:
    finite = isinstance(value, int) or math.isfinite(value)
    if not finite or not all(_HOLDS[sign](value, bound) for sign, bound in bounds.items()):
        raise ConfigError(f"{key}={value!r}: allowed: {allowed(bounds) or 'a finite number'}", key)
    if isinstance(value, float) and value != 0 and not SMALLEST <= abs(value) <= LARGEST:
        raise ConfigError(f"{key}={value!r}: allowed: from {SMALLEST:g} to {LARGEST:g} in magnitude", key)


def allowed(bounds: Mapping[str, float]) -> str:
    """The declared range in words, as `> 0 and <= 1`; empty where there is none."""
    return " and ".join(f"{sign} {_bound(bound)}" for sign, bound in bounds.items())


def _bound(bound: float) -> str:
    """Short where that is exact, as 1e+06; else in full."""
    short = f"{bound:g}"
    return short if float(short) == bound else str(bound)
