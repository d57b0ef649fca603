"""Every setting as a Markdown page: key, what is allowed, default and meaning, read from the dataclasses."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from ppo_kl.config import TrainConfig
from ppo_kl.config.checked import Settings, allowed, plain_kind, types_of, words_in
from ppo_kl.config.objective import KINDS, Part
from ppo_kl.config.presets import PUBLISHED
from ppo_kl.config.unknown import groups

HEAD = ("| key | allowed | default | meaning |", "|---|---|---|---|")


def as_markdown() -> str:
    """A table for each group of settings, then one for each part of the objective by kind."""
    sections = [_section("Top level", "", TrainConfig)]
    sections += [_section(f"`{name}`", f"{name}.", group) for name, group in groups()]
    for family, parts in KINDS.items():
        name = f"objective.{family.__name__.lower()}"
        sections.append(f"## `{name}`\n\n{_sentence(family)} One of these kinds:")
        sections += [_kind(name, kind, part) for kind, part in parts.items()]
    return "\n\n".join(sections)


def meanings(cls: type) -> dict[str, str]:
    """The docstring under each attribute of a class, those of its parents included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _written_under(base)
    return found


@functools.cache
def _written_under(cls: type) -> dict[str, str]:
    (tree,) = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    found = {}
    for attribute, text in itertools.pairwise(body):
        match attribute, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                found[name] = " ".join(words.split())
    return found


def _section(title: str, prefix: str, cls: type[Settings]) -> str:
    return "\n".join([f"## {title}", "", _sentence(cls), "", *_table(prefix, cls)])


def _kind(name: str, kind: str, part: type[Part]) -> str:
    """A kind of a part: what it is, which presets have it, and its settings."""
    family = name.rpartition(".")[2]
    presets = [f"`{make.__name__}`" for make in PUBLISHED if getattr(make(), family).kind == kind]
    used = f" In {', '.join(presets)}." if presets else " In no preset."
    return "\n".join(
        [f"### `{kind}`", "", _sentence(part) + used, *(["", *rows] if (rows := _table("", part)) else [])]
    )


def _sentence(cls: type) -> str:
    return " ".join((cls.__doc__ or "").partition("\n\n")[0].split())


def _table(prefix: str, cls: type[Settings]) -> list[str]:
    """The settings of a group that are values; empty where there are none."""
    declared, said = types_of(cls), meanings(cls)
    rows = [
        row([f"`{prefix}{field.name}`", _allowed(field, declared[field.name]), _default(field), said[field.name]])
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if not (isinstance(declared[field.name], type) and issubclass(declared[field.name], Settings))
    ]
    return [*HEAD, *rows] if rows else []


def row(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _allowed(field: dataclasses.Field[Any], kind: Any) -> str:
    bounds = allowed(field.metadata)
    return f"{_type(kind)} {bounds}" if bounds else _type(kind)


def _type(kind: Any) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in args)
    if origin in (types.UnionType, typing.Union):
        instead = [*(f"`{word}`" for word in words_in(args)), *(["none"] if type(None) in args else [])]
        return " or ".join([*instead, _type(plain_kind(args))])
    if origin is tuple:
        return f"list of {_type(args[0])}"
    if origin is dict:
        return "names with values"
    return {int: "int", float: "float", bool: "`true`, `false`", str: "word"}[kind]


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(value, tuple):
        return f"`[{', '.join(map(repr, value))}]`"
    if isinstance(value, bool) or value is None:
        return f"`{str(value).lower()}`"
    return f"`{value!r}`" if isinstance(value, dict) else f"`{value}`"
