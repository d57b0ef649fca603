"""One's own surrogate, penalty or controller: registering adds the function and its settings, by one name.

    @dataclass(frozen=True)
    class Power(Surrogate):
        kind = "power"
        power: float = setting(2.0, above=0)
        \"\"\"Exponent of the ratio.\"\"\"

    def power(ratio, adv, kl, *, power):
        return -(ratio**power) * adv / power

    register_surrogate("power", power, Power)

From then on `surrogate: {kind: power, power: 1.5}` is a configuration like any other, and `--objective power` a preset:
the part with the plainest others. `ppo_kl.testing.check_objective("power")` says whether it keeps the contract.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ppo_kl.config.objective import (
    KINDS,
    Adapting,
    Adaptive,
    Controller,
    Fixed,
    ForwardKL,
    NoPenalty,
    ObjectiveConfig,
    Part,
    Penalty,
    Ratio,
    Surrogate,
)
from ppo_kl.config.presets import PRESETS
from ppo_kl.errors import ConfigError
from ppo_kl.objectives.controllers import CONTROLLERS, Rule
from ppo_kl.objectives.objective import handed_on
from ppo_kl.objectives.penalties import PENALTIES
from ppo_kl.objectives.surrogates import SURROGATES

OFFERED = frozenset({"kl_lambda", "kl", "kl_target", "initial", "progress", "memory"})
"""What a controller's rule may ask for by name, see `ppo_kl.objectives.controllers`."""


def register_surrogate(kind: str, function: Callable[..., Tensor], config: type[Surrogate] | None = None) -> None:
    """Add a surrogate: `function(ratio, adv, kl, *, settings)`, each `[B]`, answers the loss `[B]`, to minimise.

    Args:
        kind: its name in a config, and of the preset (no penalty) that is added with it.
        function: pure, differentiable in `ratio` and `kl`; one that reads `kl` says so in its settings with
            `trusts_forward_kl: ClassVar[bool] = True`, so that it never meets the reverse one.
        config: its settings, a frozen dataclass; none: it has no settings.

    Raises:
        ConfigError: the name is taken, or function and settings do not fit each other.
    """
    tensors = {"ratio", "adv", "kl"}
    _register(
        Surrogate,
        kind,
        function,
        config,
        tensors,
        SURROGATES,
        lambda part: ObjectiveConfig(kind, part(), NoPenalty(), Fixed(0.0)),
    )


def register_penalty(kind: str, function: Callable[..., Tensor], config: type[Penalty] | None = None) -> None:
    """Add a penalty: `function(kl, log_ratio)`, each `[B]`, answers what λ multiplies, `[B]`.

    Args:
        kind: its name in a config, and of the preset (ratio, adaptive λ) that is added with it.
        function: pure, differentiable; `kl` is the exact KL in the direction that `config.direction` names.
        config: its settings, a frozen dataclass, at most `hinge`; none: it has no settings.

    Raises:
        ConfigError: the name is taken, or function and settings do not fit each other.
    """
    tensors = {"kl", "log_ratio"}
    _register(
        Penalty,
        kind,
        function,
        config,
        tensors,
        PENALTIES,
        lambda part: ObjectiveConfig(kind, Ratio(), part(), Adaptive()),
    )


def register_controller(kind: str, function: Rule, config: type[Controller] | None = None) -> None:
    """Add a controller: `function(kl_lambda, kl, kl_target, ..., *, settings)` answers λ, `[]`.

    A rule asks by name for what it wants to know, see `ppo_kl.objectives.controllers`. Settings that inherit from
    `Adapting` have a target, a λ at the start and bounds, which the objective looks after.

    Args:
        kind: its name in a config, and of the preset (ratio, forward KL) that is added with it.
        function: pure and without branches on values, so that nothing is read from the device.
        config: its settings, a frozen dataclass; none: those of `Adapting` alone.

    Raises:
        ConfigError: the name is taken, or function and settings do not fit each other.
    """
    asked = OFFERED & inspect.signature(function).parameters.keys()
    settings = Adapting if config is None else config
    if ("memory" in asked) != (settings.memory > 0):
        raise ConfigError(
            f"controller {kind!r}: memory={settings.memory!r} in {settings.__name__}, but {function!r} "
            f"{'asks' if 'memory' in asked else 'does not ask'} for it; say there how many numbers the rule keeps"
        )
    unknown = {"memory"} if "kl" not in asked else set() if issubclass(settings, Adapting) else {"kl_target"}
    if asked & unknown:
        raise ConfigError(
            f"controller {kind!r}: {function!r} asks for {sorted(asked & unknown)}, which is not there: a target comes "
            "with settings that inherit from Adapting, and only a rule that asks for kl remembers"
        )
    _register(
        Controller,
        kind,
        function,
        settings,
        asked,
        CONTROLLERS,
        lambda part: ObjectiveConfig(kind, Ratio(), ForwardKL(), part()),
    )


def register_preset(config: ObjectiveConfig) -> None:
    """Add an objective under its own name: `--objective NAME`, `Objective.from_preset(NAME)`.

    Raises:
        ConfigError: another objective has that name.
    """
    if PRESETS.get(config.name, config) != config:
        raise ConfigError(f"objective={config.name!r}: there is another preset of that name; choose another name")
    PRESETS[config.name] = config


def _register(
    family: type[Part],
    kind: str,
    function: Callable[..., Any],
    config: type[Part] | None,
    tensors: set[str] | frozenset[str],
    functions: dict[str, Any],
    as_preset: Callable[[type[Any]], ObjectiveConfig],
) -> None:
    """Put function and settings into the tables of their family, and a preset of that name beside them."""
    label = f"{family.__name__.lower()} {kind!r}"
    base = family if config is None else config
    if not (dataclasses.is_dataclass(base) and issubclass(base, family)):
        raise ConfigError(f"{label}: its settings {base!r} must be a dataclass that inherits from {family.__name__}")
    if kind in KINDS[family] and functions.get(kind) is not function:
        raise ConfigError(f"{label}: the name is taken; choose another")
    without = [f.name for f in dataclasses.fields(base) if f.default is f.default_factory is dataclasses.MISSING]
    if without:
        raise ConfigError(f"{label}: {without} in {base.__name__} must have defaults")
    settings = set(handed_on(base))
    asked = {p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD}
    if asked - tensors != settings or not tensors <= asked:
        raise ConfigError(
            f"{label}: {function!r} takes {sorted(asked)}; expected {sorted(tensors)} and one parameter for each "
            f"setting of {base.__name__}, which are {sorted(settings)}"
        )
    # A class of its own where the given one serves another kind, or none.
    named = (
        base
        if vars(base).get("kind") == kind
        else type(base.__name__, (base,), {"kind": kind, "__doc__": base.__doc__})
    )
    offered = as_preset(named)
    if kind in PRESETS and kind not in KINDS[family]:
        raise ConfigError(f"{label}: there is a preset of that name, {PRESETS[kind]}; choose another")
    KINDS[family][kind], functions[kind], PRESETS[kind] = named, function, offered
