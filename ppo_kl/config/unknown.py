"""What to say of a key that a group of settings does not have: whose it is, or which is nearest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ppo_kl.config import TrainConfig
from ppo_kl.config.checked import Settings, nearest, types_of
from ppo_kl.config.objective import KINDS, Part
from ppo_kl.config.presets import PRESETS


def whose(name: str, cls: type[Settings]) -> str:
    """The end of a sentence about the unknown key `name` of `cls`, as `: it belongs to controller adaptive, ...`."""
    there = kinds_with(name)
    family = family_of(cls)
    if family is not None and family in there:
        kinds = there[family]
        part = family.__name__.lower()
        presets = [key for key, preset in PRESETS.items() if getattr(preset, part).kind in kinds]
        as_in = f", or an objective with one: {', '.join(presets)}" if presets else ""
        return (
            f": it belongs to {part} {', '.join(kinds)}, not to {getattr(cls, 'kind', part)!r}; choose "
            f"objective.{part}.kind {kinds[0]}{as_in}"
        )
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    elsewhere = [f"{place}.{name}" for place, group in groups() if group is not cls and name in _names(group)]
    elsewhere += [f"objective.{other.__name__.lower()}.{name}" for other in there]
    if elsewhere:
        return f" (did you mean {' or '.join(elsewhere)}?)"
    return nearest(name, names)


def kinds_with(name: str) -> dict[type[Part], list[str]]:
    """The kinds that have a setting of that name, by family; families without one are left out."""
    found = {family: [k for k, part in parts.items() if name in _names(part)] for family, parts in KINDS.items()}
    return {family: kinds for family, kinds in found.items() if kinds}


def family_of(cls: type[Settings]) -> type[Part] | None:
    """Surrogate, Penalty or Controller, where `cls` is one; else none."""
    return next((family for family in KINDS if issubclass(cls, family)), None)


def groups(cls: type[Settings] = TrainConfig, prefix: str = "") -> Iterator[tuple[str, type[Settings]]]:
    """Every group of settings below `cls` by its dotted name, but for the parts of the objective."""
    for name, kind in types_of(cls).items():
        if isinstance(kind, type) and issubclass(kind, Settings) and kind not in KINDS:
            yield f"{prefix}{name}", kind
            yield from groups(kind, f"{prefix}{name}.")


def _names(cls: type[Settings]) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
