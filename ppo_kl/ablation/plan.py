"""What is to be run: every point of a study as a checked configuration with an id that stays."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ppo_kl.config import TrainConfig
from ppo_kl.config.ablation import AblationConfig
from ppo_kl.config.checked import Settings, nearest
from ppo_kl.config.part import Part
from ppo_kl.errors import ConfigError
from ppo_kl.load import flat, load_config

COMPILED_FROM = 4_000
"""Gradient steps from which they are compiled: in fewer, the time to compile would not come back. Fixed, not measured:
the same study shall give the same numbers anywhere, and compiled steps round otherwise than eager ones."""
ELSEWHERE = ("objective.name", "runs_dir", "runtime.checkpoint_every", "runtime.keep_checkpoints")
"""Settings by which two runs are not different ones."""


class Point(NamedTuple):
    """One run of a study."""

    id: str
    """A function of the settings alone."""
    arm: str
    env: str
    """As the study names it."""
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """Of its files: who reads it knows what it is, who looks for it has the id."""
        return ".".join([as_name(self.env), as_name(self.arm), f"seed{self.seed}", self.id])


Cell = tuple[str, str, int]
"""Arm, environment, seed."""


class Plan(NamedTuple):
    """All runs of a study, in the order in which they are begun."""

    study: AblationConfig
    points: tuple[Point, ...]
    cells: dict[Cell, str]
    """What a report reads where: two arms may come to the same run."""
    notices: tuple[str, ...]
    """What of the study was merged or left out, in sentences."""

    @property
    def arms(self) -> list[str]:
        """In the study's order."""
        return list(dict.fromkeys(arm for arm, _, _ in self.cells))


def plan(study: AblationConfig) -> Plan:
    """Every point, checked; seed by seed, so that a study that is interrupted has something of everything.

    Raises:
        ConfigError: a name, key or value is wrong; it says where.
    """
    notices: list[str] = []
    arms = dict(_arms(study, notices))
    configs = {(env, arm): _config(study, env, arm, changes) for env in study.envs for arm, changes in arms.items()}
    points: dict[str, Point] = {}
    cells: dict[Cell, str] = {}
    for seed in range(study.first_seed, study.first_seed + study.seeds):
        for (env, arm), config in configs.items():
            seeded = dataclasses.replace(config, seed=seed)
            point = Point(id_of(seeded), arm, env, seed, seeded)
            other = points.setdefault(point.id, point)
            cells[arm, env, seed] = point.id
            if other is not point and seed == study.first_seed:
                notices.append(f"{arm!r} on {env} is {other.arm!r} once more: run once, as {other.arm!r}")
    for arm in study.published:
        if arm not in arms:
            raise ConfigError(f"published.{arm}: there is no such arm{nearest(arm, arms)}")
    return Plan(study, tuple(points.values()), cells, tuple(notices))


def _arms(study: AblationConfig, notices: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each arm with what is set for it; those of the grid have its values in their names."""
    named: dict[str, dict[str, Any]] = {name: {"objective": name} for name in study.objectives}
    for name, settings in study.arms.items():
        if name in named:
            raise ConfigError(f"arms.{name}: there is an objective of that name in `objectives`; give it another name")
        if not isinstance(settings.get("objective"), str):
            raise ConfigError(
                f"arms.{name}: needs an objective, as objective: clip, and in quotes where that is 'none'"
            )
        named[name] = settings
    applied = dict.fromkeys(study.grid, False)
    for name, settings in named.items():
        objective = load_config(objective=settings["objective"]).objective
        axes = {key: values for key, values in study.grid.items() if _has(objective, key)}
        applied |= dict.fromkeys(axes, True)
        if left := [key for key in study.grid if key not in axes]:
            notices.append(f"{name!r} has no {' or '.join(left)}: run without")
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            yield (
                " ".join([name, *(f"{_short(k, study.grid)}={_shown(v)}" for k, v in chosen.items())]),
                settings | chosen,
            )
    if unused := [key for key, used in applied.items() if not used]:
        raise ConfigError(f"grid.{unused[0]}: no arm has such a setting")


def _has(objective: Settings, key: str) -> bool:
    """Whether a setting of the grid applies: one of another group always does, or is refused by name later."""
    group, _, rest = key.partition(".")
    if group != "objective":
        return True
    value: Any = objective
    for name in rest.split("."):
        if not isinstance(value, Settings) or not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True


def _short(key: str, grid: Mapping[str, Any]) -> str:
    """A setting's last word, where the grid has no other that ends so."""
    last = key.rpartition(".")[2]
    return key if sum(other.rpartition(".")[2] == last for other in grid) > 1 else last


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _config(study: AblationConfig, env: str, arm: str, changes: Mapping[str, Any]) -> TrainConfig:
    settings = {**study.set, **study.for_env.get(env, {}), **changes}
    objective = settings.pop("objective")
    if "seed" in settings:
        raise ConfigError(f"{study.name}: seed={settings['seed']!r}: seeds are counted by `seeds` and `first_seed`")
    try:
        asked = load_config(config=study.config, env=env, objective=objective, overrides=settings)
    except ConfigError as error:
        raise ConfigError(f"{study.name}: {arm!r} on {env}: {error}; nothing was run") from error
    return _alike_anywhere(asked)


def _alike_anywhere(config: TrainConfig) -> TrainConfig:
    """With nothing left that a run would choose by a measurement; runs side by side take one thread each."""
    compiled = config.runtime.compile
    if compiled == "auto":
        compiled = "on" if config.planned_gradient_steps(config.total_steps) >= COMPILED_FROM else "off"
    # Small networks are no faster elsewhere, and a GPU rounds otherwise.
    device = "cpu" if config.runtime.device == "auto" else config.runtime.device
    workers = config.runtime.num_workers
    runtime = dataclasses.replace(config.runtime, device=device, compile=compiled, workers=workers)
    return dataclasses.replace(config, runtime=runtime)


def id_of(config: TrainConfig) -> str:
    """Ten digits that two runs share where every setting that matters is the same.

    Settings at the defaults of their own group have no part in it, so that a new one does not make old results those of
    other runs. Where a default has changed since, `settings_of` tells them apart; see `ppo_kl.ablation.result`.
    """
    text = json.dumps(_chosen(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _chosen(config: Settings, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of what is not at its default, and the kind of every part."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if isinstance(value, Settings):
            found |= {f"{key}.kind": value.kind} if isinstance(value, Part) else {}
            found |= _chosen(value, f"{key}.")
            continue
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if value != default and key not in ELSEWHERE:
            found[key] = list(value) if isinstance(value, tuple) else value
    return found


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """All settings that matter, by dotted key."""
    return {key: value for key, value in flat(config).items() if key not in ELSEWHERE}


def as_name(text: str) -> str:
    """`text` as one word of a file's name."""
    return re.sub(r"[^A-Za-z0-9=_-]+", "-", text).strip("-") or "unnamed"
