"""YAML layers become one checked TrainConfig; a saved config reloads byte for byte.

Scalars are read by the type that their field declares, so `1e-3` is a number and `no` a word; every complaint names
file, line, column and key.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from ppo_kl.config import TrainConfig
from ppo_kl.config.ablation import AblationConfig
from ppo_kl.config.checked import Settings, nearest, plain_kind, types_of, words_in
from ppo_kl.config.objective import KINDS, ObjectiveConfig, Part
from ppo_kl.config.presets import part_named, preset_named
from ppo_kl.config.unknown import whose
from ppo_kl.errors import ConfigError
from ppo_kl.imports import import_modules_in

_HERE = Path(__file__).parent
SHIPPED = next(p for p in (_HERE / "configs", _HERE.parent / "configs") if p.is_dir())
"""The configs that come with the package: inside it once installed, beside it in a checkout."""
MAX_BYTES = 1_000_000
NULL = ("", "~", "null", "none", "None")
"""How nothing is written where a setting may be nothing."""


class Located(NamedTuple):
    """A YAML value and where it stands."""

    value: dict[str, Located] | list[Located] | str
    where: str
    quoted: bool = False
    """A scalar in quotes is a word, whatever it looks like."""


def load_config(
    *,
    config: str | None = None,
    env: str | None = None,
    objective: str | ObjectiveConfig | None = None,
    kinds: Mapping[str, str] | None = None,
    kl_stop: str | None = None,
    runtime: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    base: TrainConfig | None = None,
) -> TrainConfig:
    """One checked configuration from layers; later arguments win over earlier ones.

    Args:
        config: a whole configuration: a file, or a name in configs/recipes; none: the defaults.
        env: a file, a name in configs/env, a Gymnasium id, or package.module:Id, which is imported; none, and no
            config: cartpole.
        objective: a file, a name in configs/objective, or the objective's config itself.
        kinds: a part of the objective -> another kind of it, as {"penalty": "k3"}, whose name the objective's then has.
        kl_stop: early stop, a file or a name in configs/kl_stop.
        runtime: a file, or a name in configs/runtime.
        overrides: dotted key -> value, as {"training.gamma": 0.98}.
        base: settings of a saved run to start from, in the place of `config`; the modules it names are not imported.

    Raises:
        ConfigError: an unknown name or key, a wrong type, a value out of range.
    """
    if kinds and isinstance(objective, ObjectiveConfig):
        raise ConfigError(f"kinds={dict(kinds)!r}: beside an ObjectiveConfig they have no place; set its parts instead")
    if config is None and env is None and base is None:
        env = "cartpole"
    layers = [] if base is None else [_compose(to_yaml(base), "the saved run")]
    layers += [] if config is None else [read_yaml(_find("recipes", config, "--config"))]
    if env is not None:
        layers.append(_env_layer(env))
    if isinstance(objective, str):
        layers.append(_objective_layer(objective))
    if kl_stop is not None:
        layers.append(read_yaml(_find("kl_stop", kl_stop, "--kl-stop")))
    if runtime is not None:
        layers.append(read_yaml(_find("runtime", runtime, "--runtime")))
    merged = Located({}, "config")
    for layer in layers:
        merged = _merge(merged, layer)
    if kinds:
        merged = _merge(merged, _kinds_layer(merged, kinds))
    loaded: TrainConfig = _decode(merged, TrainConfig, "")
    if kinds:
        _require_weight(loaded.objective, kinds)
    if isinstance(objective, ObjectiveConfig):
        loaded = dataclasses.replace(loaded, objective=objective)
    overridden: TrainConfig = _override(loaded, overrides or {})
    import_modules_in(overridden, base)
    return overridden


def from_yaml(text: str, where: str) -> TrainConfig:
    """The configuration in `text`; `where` names it in complaints."""
    loaded: TrainConfig = _decode(_compose(text, where), TrainConfig, "")
    return loaded


def read_config(path: Path) -> TrainConfig:
    """The whole configuration in a file, as `to_yaml` wrote it; nothing that it names is imported.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    loaded: TrainConfig = _decode(read_yaml(path), TrainConfig, "")
    return loaded


def load_study(name: str) -> AblationConfig:
    """The study in a file, or of that name in configs/ablation.

    Raises:
        ConfigError: there is none, or something in it is wrong.
    """
    study: AblationConfig = _decode(read_yaml(_find("ablation", name, "--config")), AblationConfig, "")
    return study


def to_yaml(config: Settings) -> str:
    """The whole configuration as text that `from_yaml` reads back to an equal one."""
    text: str = yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


class _Dumper(yaml.SafeDumper):
    """Puts words in quotes that would be read as something else."""


def _write_word(dumper: yaml.SafeDumper, word: str) -> yaml.ScalarNode:
    style = "'" if _free(Located(word, "")) != word else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", word, style=style if word.isprintable() else '"')


_Dumper.add_representer(str, _write_word)


def to_dict(config: Settings) -> dict[str, Any]:
    """The configuration as plain dicts, lists and scalars."""
    kind = {"kind": config.kind} if isinstance(config, Part) else {}
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    return kind | {key: _plain(value) for key, value in values.items()}


def differing(one: Settings, other: Settings) -> dict[str, tuple[Any, Any]]:
    """The settings that are not the same in both: dotted key -> its value in each; None where one has no such key."""
    ours, theirs = flat(one), flat(other)
    pairs = {key: (ours.get(key), theirs.get(key)) for key in ours | theirs}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def flat(config: Settings) -> dict[str, Any]:
    """The configuration as dotted key -> value."""
    found: dict[str, Any] = {}
    left: list[tuple[str, Any]] = [("", to_dict(config))]
    while left:
        prefix, values = left.pop()
        for key, value in values.items():
            if isinstance(value, dict) and value:
                left.append((f"{prefix}{key}.", value))
            else:
                found[f"{prefix}{key}"] = value
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return to_dict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


# --- which files -----------------------------------------------------------------------------------------------------


def _find(group: str, name: str, option: str) -> Path:
    """The file that `name` means: a path as it is, a bare name in the shipped folder `group`."""
    path = Path(name) if _is_path(name) else SHIPPED / group / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"{option} {name}: no such file or name{nearest(name, shipped(group))}")
    return path


def _is_path(name: str) -> bool:
    path = Path(name)
    return path.suffix in (".yaml", ".yml") or path.name != name


def shipped(group: str) -> list[str]:
    """The names of the files in a folder of the shipped configs, as `env`."""
    return sorted(p.stem for p in (SHIPPED / group).glob("*.yaml"))


def _objective_layer(objective: str) -> Located:
    """The YAML named `objective`, or the preset of that name that a plug-in or an installed package added."""
    if _is_path(objective) or objective in shipped("objective"):
        return read_yaml(_find("objective", objective, "--objective"))
    preset = preset_named(objective, "--objective")
    return _compose(yaml.safe_dump({"objective": to_dict(preset)}), f"preset {objective}")


def _kinds_layer(config: Located, kinds: Mapping[str, str]) -> Located:
    """The parts of the objective that are to be of another kind, with its defaults, and a name that says so."""
    named = config.value.get("objective") if isinstance(config.value, dict) else None
    name = named.value.get("name") if named is not None and isinstance(named.value, dict) else None
    base = ObjectiveConfig().name if name is None else str(name.value)
    parts: dict[str, Located] = {"name": Located("-".join([base, *kinds.values()]), "--objective")}
    for part, kind in kinds.items():
        where = f"--objective.{part}.kind {kind}"
        parts[part] = Located({"kind": Located(kind, where)}, where)
    return Located({"objective": Located(parts, "--objective")}, "--objective")


def _require_weight(objective: ObjectiveConfig, kinds: Mapping[str, str]) -> None:
    """Refuse a penalty put into an objective whose λ is 0 for good: nothing of it would be left in the loss."""
    if objective.controller.idle and kinds.get("penalty", "none") != "none":
        raise ConfigError(
            f"--objective.penalty.kind {kinds['penalty']}: λ is 0 in {objective.name!r}, so that the penalty would do "
            "nothing; say how λ moves as well, as --objective.controller.kind adaptive"
        )


def _env_layer(env: str) -> Located:
    """The YAML named `env`, or the one whose environment has that id, or a layer that names just the id.

    Atari's games have one setting: without its preprocessing they are another environment.
    """
    if re.search(r"-v\d+$|:\w", env):
        for name in shipped("env"):
            layer = read_yaml(SHIPPED / "env" / f"{name}.yaml")
            settings = layer.value.get("env") if isinstance(layer.value, dict) else None
            if settings and isinstance(settings.value, dict) and _is_plain(settings.value, env):
                return layer
        where = f"--env {env}"
        own = {"id": env, "vectorization": "native"} if env.startswith("envpool/") else {"id": env}
        named = Located({"env": Located({key: Located(value, where) for key, value in own.items()}, where)}, where)
        return _merge(read_yaml(SHIPPED / "env" / "atari.yaml"), named) if env.startswith("ALE/") else named
    try:
        path = _find("env", env, "--env")
    except ConfigError as error:
        raise ConfigError(f"{error}; a Gymnasium id without a version: --env.id {env}") from None
    return read_yaml(path)


def _is_plain(settings: dict[str, Located], env: str) -> bool:
    """Whether it is that environment as it comes, not a variant of it."""
    return settings["id"].value == env and "kwargs" not in settings


# --- YAML, with places ------------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> Located:
    """The file's mapping, every value with its place."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes, which no configuration is")
        return _compose(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _compose(text: str, where: str) -> Located:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ConfigError(f"{where}: lists or groups nested too deep, which no configuration is") from None
    if root is None:
        return Located({}, where)
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{where}:1:1: expected 'key: value' lines")
    return _locate(root, where, set())


def _locate(node: yaml.Node, file: str, seen: set[int]) -> Located:
    where = f"{file}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
    if id(node) in seen:
        raise ConfigError(f"{where}: anchors and aliases are not read; write the value out")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        items: dict[str, Located] = {}
        for key, value in node.value:
            at_key = f"{file}:{key.start_mark.line + 1}:{key.start_mark.column + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{at_key}: a key must be a word")
            if key.value in items:
                raise ConfigError(f"{at_key}: duplicate key {key.value!r}")
            located = _locate(value, file, seen)
            items[key.value] = located._replace(where=at_key) if isinstance(value, yaml.MappingNode) else located
        return Located(items, where)
    if isinstance(node, yaml.SequenceNode):
        return Located([_locate(item, file, seen) for item in node.value], where)
    return Located(node.value, where, quoted=getattr(node, "style", None) in ("'", '"'))


def _merge(base: Located, over: Located) -> Located:
    """`over` on top of `base`, key by key; a part of another kind replaces the whole part."""
    old, new = base.value, over.value
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return over
    if "kind" in new and "kind" in old and old["kind"].value != new["kind"].value:
        return over
    merged = {key: _merge(old[key], value) if key in old else value for key, value in new.items()}
    return Located({**old, **merged}, over.where)


# --- from places to settings ------------------------------------------------------------------------------------------


def _decode(node: Located, kind: Any, key: str) -> Any:
    """The value that `node` means where `kind` is declared; `key` is its dotted name."""
    if isinstance(kind, type) and issubclass(kind, Settings):
        return _decode_settings(node, kind, key)
    if kind is Any:
        return _free(node)
    if typing.get_origin(kind) is dict:
        if node.value in NULL:
            return {}
        if not isinstance(node.value, dict):
            raise ConfigError(f"{node.where}: {key}: expected a group of keys, got {node.value!r}")
        return {name: _decode(item, typing.get_args(kind)[1], f"{key}.{name}") for name, item in node.value.items()}
    options = typing.get_args(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        if type(None) in options and node.value in NULL:
            return None
        return node.value if node.value in words_in(options) else _decode(node, plain_kind(options), key)
    if typing.get_origin(kind) is tuple:
        if not isinstance(node.value, list):
            raise ConfigError(f"{node.where}: {key}: expected a list, as [64, 64]")
        return tuple(_decode(item, options[0], key) for item in node.value)
    if not isinstance(node.value, str):
        expected = "a word" if typing.get_origin(kind) is Literal else getattr(kind, "__name__", str(kind))
        raise ConfigError(f"{node.where}: {key}: expected {expected}, got {_describe(node)}")
    return _scalar(node.value, kind, node.where, key)


def value_of(text: str) -> Any:
    """What `text` means where no type is declared: a number, true, false, none, a list, or a word."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return text
    if node is None:  # nothing, or what YAML takes for a comment
        return text or None
    return _free(_locate(node, text, set()))


def _free(node: Located) -> Any:
    if isinstance(node.value, list):
        return [_free(item) for item in node.value]
    if isinstance(node.value, dict):
        raise ConfigError(f"{node.where}: expected a value, got a group of keys")
    text = node.value
    if node.quoted:
        return text
    if text in NULL:
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?\d+(_\d+)*", text):
        return _free_whole(node)
    if re.fullmatch(r"[+-]?\.inf|\.nan", text):
        return float(text.replace(".", ""))
    return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) else text


def _free_whole(node: Located) -> int:
    try:
        return int(str(node.value))
    except ValueError as error:
        raise ConfigError(f"{node.where}: {error}") from None


def _scalar(text: str, kind: Any, where: str, key: str) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{where}: {key}: expected true or false, got {text!r}")
        return text.lower() == "true"
    if kind not in (int, float):
        return text
    try:
        number = float(text) if kind is float else _whole(text)
    except (ValueError, OverflowError):
        raise ConfigError(f"{where}: {key}: expected {kind.__name__}, got {text!r}") from None
    return number


def _whole(text: str) -> int:
    """An integer, also written as 1e5 or 100_000."""
    if re.fullmatch(r"[+-]?[\d_]+", text):
        return int(text)
    number = float(text)
    if not number.is_integer():
        raise ValueError(text)
    return int(number)


def _describe(node: Located) -> str:
    return "a list" if isinstance(node.value, list) else "a group of keys"


def _decode_settings(node: Located, cls: type[Settings], key: str) -> Settings:
    items = node.value
    if not isinstance(items, dict):
        raise ConfigError(f"{node.where}: {key or 'config'}: expected a group of keys, got {items!r}")
    items = dict(items)
    if cls in KINDS:
        cls = _part(cls, items.pop("kind", None), node, key)
    declared = types_of(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values = {}
    for name, value in items.items():
        dotted = f"{key}.{name}" if key else name
        if name not in names:
            raise ConfigError(f"{value.where}: {dotted}: unknown key{whose(name, cls)}")
        values[name] = _decode(value, declared[name], dotted)
    try:
        return cls(**values)
    except ConfigError as error:
        where = items[error.key].where if error.key in items else node.where
        raise ConfigError(f"{where}: {key + '.' if key else ''}{error}", error.key) from None


def _part(family: Any, kind: Located | None, node: Located, key: str) -> type[Settings]:
    known = KINDS[family]
    if kind is None:
        raise ConfigError(f"{node.where}: {key}: needs a kind (known: {', '.join(sorted(known))})")
    try:
        return part_named(family, str(kind.value))
    except ConfigError as error:
        raise ConfigError(f"{kind.where}: {key}.kind: {error}", "kind") from None


def _override(config: Any, changes: Mapping[str, Any], prefix: str = "") -> Any:
    """A copy of `config` with settings replaced, all of a group at once, so that their order does not matter.

    Args:
        config: a group of settings.
        changes: dotted key -> value, below this group.
        prefix: the group's own dotted name, with a dot.
    """
    names = [f.name for f in dataclasses.fields(config)]
    values: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        name, _, rest = key.partition(".")
        if name not in names:
            raise ConfigError(f"{prefix}{key}={value!r}: unknown key{whose(name, type(config))}")
        if rest and isinstance(getattr(config, name), dict):
            values[name] = _with_entry(values.get(name, getattr(config, name)), rest, value, f"{prefix}{name}.")
            continue
        if rest and not isinstance(getattr(config, name), Settings):
            raise ConfigError(f"{prefix}{key}={value!r}: {prefix}{name} is a value, not a group")
        if rest:
            groups.setdefault(name, {})[rest] = value
        else:
            values[name] = value
    for name, below in groups.items():
        values[name] = _override(values.get(name, getattr(config, name)), below, f"{prefix}{name}.")
    try:
        return dataclasses.replace(config, **values)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}", error.key) from None


def _with_entry(entries: dict[str, Any], key: str, value: Any, prefix: str) -> dict[str, Any]:
    """A copy of `entries` with `key`, or `name.key` inside the entry `name`; a name may be package.module:Class."""
    match = re.fullmatch(r"(?P<name>[\w.]+:\w+|\w+)(?:\.(?P<inside>\w+))?", key)
    if match is None:
        raise ConfigError(f"{prefix}{key}={value!r}: {key!r} is not a name")
    name, inside = match["name"], match["inside"]
    if inside is None:
        return {**entries, name: value}
    below = entries.get(name, {})
    if not isinstance(below, dict):
        raise ConfigError(f"{prefix}{key}={value!r}: {prefix}{name} is {below!r}, not a group")
    return {**entries, name: {**below, inside: value}}
