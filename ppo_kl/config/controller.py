"""Controllers as settings: how λ moves, once per rollout.

Formulas and sources stand with the functions in `ppo_kl.objectives.controllers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ppo_kl.config.checked import setting
from ppo_kl.config.part import Part
from ppo_kl.errors import ConfigError


@dataclass(frozen=True)
class Controller(Part):
    """How λ moves, once per rollout."""

    memory: ClassVar[int] = 0
    """How many numbers the rule keeps from one rollout to the next."""

    @property
    def idle(self) -> bool:
        """Whether λ is 0 for good."""
        return False


@dataclass(frozen=True)
class Fixed(Controller):
    """λ stays where it is."""

    kind: ClassVar[str] = "fixed"
    kl_lambda: float = setting(1.0, at_least=0)
    """Penalty coefficient λ."""

    @property
    def idle(self) -> bool:
        """Whether λ is 0."""
        return self.kl_lambda == 0


@dataclass(frozen=True)
class Schedule(Controller):
    """λ follows the progress of training, whatever the KL does."""

    kind: ClassVar[str] = "schedule"
    kl_lambda: float = setting(1.0, above=0)
    """Penalty coefficient λ at the start."""
    shape: Literal["constant", "linear", "mdpo"] = "linear"
    """linear: straight to kl_lambda_final; mdpo: kl_lambda / (1 - progress), which rises."""
    kl_lambda_final: float | None = setting(None, above=0)
    """λ at the end of training, for linear; none: a hundredth of kl_lambda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_lambda_final is not None and self.shape != "linear":
            message = f"kl_lambda_final={self.kl_lambda_final!r}: belongs to shape 'linear', not to {self.shape!r}"
            raise ConfigError(message, "kl_lambda_final")


@dataclass(frozen=True)
class Adapting(Controller):
    """What the controllers share that steer the KL to a target: the target, and where λ begins and ends."""

    kl_target: float | None = setting(0.01, above=0)
    """Wanted KL of one policy update, in nats, summed over action dimensions; none where kl_target_per_dim is given."""
    kl_target_per_dim: float | None = setting(None, above=0)
    """Box actions: wanted KL in nats for each action dimension, instead of kl_target."""
    kl_target_final: float = setting(1.0, above=0, at_most=1)
    """Share of the target that is left at the end of training; it falls in a straight line."""
    kl_lambda: float = setting(1.0, above=0)
    """Penalty coefficient λ at the start."""
    min: float = setting(1e-4, above=0)
    """λ never falls below."""
    max: float = setting(1e4, above=0)
    """λ never rises above."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.min <= self.kl_lambda <= self.max:
            message = f"kl_lambda={self.kl_lambda!r}: allowed: min <= kl_lambda <= max"
            raise ConfigError(f"{message} (min={self.min!r}, max={self.max!r})", "kl_lambda")
        if (self.kl_target is None) == (self.kl_target_per_dim is None):
            message = f"kl_target={self.kl_target!r} beside kl_target_per_dim={self.kl_target_per_dim!r}"
            raise ConfigError(
                f"{message}: give one of the two; the other is none",
                "kl_target" if self.kl_target is None else "kl_target_per_dim",
            )

    @property
    def dead_zone(self) -> tuple[float, float]:
        """Between which multiples of the target λ stays where it is."""
        return 1.0, 1.0


@dataclass(frozen=True)
class Adaptive(Adapting):
    """λ grows by `factor` above the target's band and shrinks by it below."""

    kind: ClassVar[str] = "adaptive"
    band: float = setting(1.5, at_least=1)
    """λ moves where the KL leaves [kl_target / band, kl_target · band]."""
    factor: float = setting(2.0, above=1)
    """What λ is multiplied or divided by."""

    @property
    def dead_zone(self) -> tuple[float, float]:
        """The band."""
        return 1 / self.band, self.band


@dataclass(frozen=True)
class Banded(Adapting):
    """As adaptive, each side with an edge and a factor of its own; RLlib's by default."""

    kind: ClassVar[str] = "banded"
    kl_lambda: float = setting(0.2, above=0)
    """Penalty coefficient λ at the start."""
    upper: float = setting(2.0, at_least=1)
    """λ grows where the KL lies above upper · kl_target."""
    lower: float = setting(0.5, above=0, at_most=1)
    """λ shrinks where the KL lies below lower · kl_target."""
    up: float = setting(1.5, above=1)
    """What λ is multiplied by to grow."""
    down: float = setting(0.5, above=0, below=1)
    """What λ is multiplied by to shrink."""

    @property
    def dead_zone(self) -> tuple[float, float]:
        """The edges."""
        return self.lower, self.upper


@dataclass(frozen=True)
class PI(Adapting):
    """Proportional and integral control of log λ by the logarithm of KL / target."""

    kind: ClassVar[str] = "pi"
    memory: ClassVar[int] = 2
    k_i: float = setting(0.3, at_least=0)
    """Integral gain: what a lasting error adds to log λ every rollout, per unit of log(KL / kl_target)."""
    k_p: float = setting(0.1, at_least=0)
    """Proportional gain: what a change of the error adds."""
    error_limit: float = setting(4.0, above=1)
    """KL / kl_target counts as no further from 1 than this factor."""
    step_limit: float | None = setting(None, above=1)
    """Largest factor by which λ moves in one rollout; none: as far as the gains say."""


@dataclass(frozen=True)
class Dual(Adapting):
    """Gradient ascent on log λ as the multiplier of the constraint KL <= target."""

    kind: ClassVar[str] = "dual"
    step: float = setting(0.1, above=0)
    """Step size η on log λ, per unit of KL / kl_target - 1."""


@dataclass(frozen=True)
class Proportional(Adapting):
    """λ moves by a share of the clipped relative error; at most 2 % a rollout as it comes."""

    kind: ClassVar[str] = "proportional"
    gain: float = setting(0.1, above=0, below=5)
    """Share of the relative error that λ moves by."""


CONTROLLER_KINDS: dict[str, type[Part]] = {
    part.kind: part for part in (Fixed, Schedule, Adaptive, Banded, PI, Dual, Proportional)
}
"""Every controller by kind."""
