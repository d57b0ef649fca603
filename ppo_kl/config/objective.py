"""The policy-update objective as settings: surrogate + λ · penalty, and the controller that moves λ.

The presets are data here; `configs/objective/NAME.yaml` is generated from them (`make configs`).
Formulas and sources stand with the functions in `ppo_kl.objectives`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ppo_kl.config.checked import Settings, nearest, setting
from ppo_kl.errors import ConfigError


@dataclass(frozen=True)
class Part(Settings):
    """One exchangeable part of the objective; `kind` is its name in a config."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Surrogate(Part):
    """What each sample contributes through its probability ratio and advantage."""


@dataclass(frozen=True)
class Penalty(Part):
    """What λ multiplies."""


@dataclass(frozen=True)
class Controller(Part):
    """How λ moves, once per rollout."""


@dataclass(frozen=True)
class Ratio(Surrogate):
    """The importance-weighted advantage, unlimited."""

    kind: ClassVar[str] = "ratio"


@dataclass(frozen=True)
class Clip(Surrogate):
    """The clipped surrogate of PPO."""

    kind: ClassVar[str] = "clip"
    clip_eps: float = setting(0.2, above=0, below=1)
    """Lower edge of the band, 1 - clip_eps; the upper edge too unless clip_eps_high is given."""
    clip_eps_high: float | None = setting(None, above=0)
    """Upper edge of the band, 1 + clip_eps_high; none: the same as clip_eps."""


@dataclass(frozen=True)
class NoPenalty(Penalty):
    """No penalty; the KL is still measured and logged."""

    kind: ClassVar[str] = "none"


@dataclass(frozen=True)
class ForwardKL(Penalty):
    """Exact KL(π_old ‖ π_θ), the PPO paper's."""

    kind: ClassVar[str] = "forward_kl"


@dataclass(frozen=True)
class ReverseKL(Penalty):
    """Exact KL(π_θ ‖ π_old)."""

    kind: ClassVar[str] = "reverse_kl"


@dataclass(frozen=True)
class Fixed(Controller):
    """λ stays where it is."""

    kind: ClassVar[str] = "fixed"
    kl_lambda: float = setting(1.0, at_least=0)
    """Penalty coefficient λ."""


@dataclass(frozen=True)
class Adaptive(Controller):
    """λ grows by `factor` above the target's band and shrinks by it below."""

    kind: ClassVar[str] = "adaptive"
    kl_target: float = setting(0.01, above=0)
    """Wanted KL of one policy update, in nats, summed over action dimensions."""
    kl_lambda: float = setting(1.0, above=0)
    """Penalty coefficient λ at the start."""
    band: float = setting(1.5, at_least=1)
    """λ moves where the KL leaves [kl_target / band, kl_target · band]."""
    factor: float = setting(2.0, above=1)
    """What λ is multiplied or divided by."""
    min: float = setting(1e-4, above=0)
    """λ never falls below."""
    max: float = setting(1e4, above=0)
    """λ never rises above."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.min <= self.kl_lambda <= self.max:
            message = f"kl_lambda={self.kl_lambda!r}: allowed: min <= kl_lambda <= max"
            raise ConfigError(f"{message} (min={self.min!r}, max={self.max!r})", "kl_lambda")


KINDS: dict[type[Part], dict[str, type[Part]]] = {
    Surrogate: {part.kind: part for part in (Ratio, Clip)},
    Penalty: {part.kind: part for part in (NoPenalty, ForwardKL, ReverseKL)},
    Controller: {part.kind: part for part in (Fixed, Adaptive)},
}
"""Every part there is, by family and kind."""


@dataclass(frozen=True)
class ObjectiveConfig(Settings):
    """The policy-update objective: surrogate + λ · penalty, λ moved by a controller."""

    name: str = "kl_adaptive"
    """Names the run's folder and its line in plots; change it when you change the parts."""
    surrogate: Surrogate = field(default_factory=Ratio)
    penalty: Penalty = field(default_factory=ForwardKL)
    controller: Controller = field(default_factory=Adaptive)

    def __post_init__(self) -> None:
        super().__post_init__()
        idle = isinstance(self.controller, Fixed) and self.controller.kl_lambda == 0
        if isinstance(self.penalty, NoPenalty) and not idle:
            raise ConfigError(
                f"controller={self.controller!r}: penalty 'none' leaves it nothing to multiply; use kind 'fixed' with "
                "kl_lambda 0, or another penalty",
                "controller",
            )


def _plain(name: str, surrogate: Surrogate) -> ObjectiveConfig:
    return ObjectiveConfig(name, surrogate, NoPenalty(), Fixed(0.0))


PRESETS: dict[str, ObjectiveConfig] = {
    preset.name: preset
    for preset in (
        _plain("none", Ratio()),
        _plain("clip", Clip()),
        ObjectiveConfig("kl_fixed", Ratio(), ForwardKL(), Fixed()),
        ObjectiveConfig("kl_adaptive", Ratio(), ForwardKL(), Adaptive()),
        ObjectiveConfig("kl_clip", Clip(), ForwardKL(), Adaptive()),
    )
}
"""The published objectives by name."""


def preset(name: str, **settings: Any) -> ObjectiveConfig:
    """The preset `name`, with single settings replaced in whichever part has them.

    Raises:
        ConfigError: unknown preset; no part, or more than one, has the setting; a value out of range.
    """
    if name not in PRESETS:
        raise ConfigError(f"objective={name!r}: unknown preset{nearest(name, PRESETS)}")
    config = PRESETS[name]
    parts: dict[str, Part] = {key: getattr(config, key) for key in ("surrogate", "penalty", "controller")}
    changes: dict[str, dict[str, Any]] = {key: {} for key in parts}
    for setting_name, value in settings.items():
        owners = [key for key, part in parts.items() if setting_name in _names(part)]
        if len(owners) != 1:
            known = [n for part in parts.values() for n in _names(part)]
            hint = nearest(setting_name, known) if not owners else f" (in {' and '.join(owners)}: give the part itself)"
            raise ConfigError(
                f"{setting_name}={value!r}: objective {name!r} has no one such setting{hint}", setting_name
            )
        changes[owners[0]][setting_name] = value
    # All settings of a part at once, so that two that depend on each other may come in any order.
    replaced: dict[str, Any] = {key: dataclasses.replace(part, **changes[key]) for key, part in parts.items()}
    return dataclasses.replace(config, **replaced)


def _names(part: Part) -> list[str]:
    return [f.name for f in dataclasses.fields(part)]
