"""Penalties as settings: what λ multiplies.

Formulas and sources stand with the functions in `ppo_kl.objectives.penalties`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ppo_kl.config.checked import setting
from ppo_kl.config.part import Part


@dataclass(frozen=True)
class Penalty(Part):
    """What λ multiplies."""

    direction: ClassVar[Literal["forward", "reverse"]] = "forward"
    """Which exact KL is measured beside it, and moves λ."""


@dataclass(frozen=True)
class NoPenalty(Penalty):
    """No penalty; the KL is still measured and logged."""

    kind: ClassVar[str] = "none"


@dataclass(frozen=True)
class Hinged(Penalty):
    """What all penalties share: a second, steep one for an update that goes far beyond its target."""

    hinge: float = setting(0.0, at_least=0)
    """Weight c of c · max(0, K - 2 · kl_target)², K the minibatch's mean exact KL; 0: off."""


@dataclass(frozen=True)
class ForwardKL(Hinged):
    """Exact KL(π_old ‖ π_θ), the PPO paper's."""

    kind: ClassVar[str] = "forward_kl"


@dataclass(frozen=True)
class ReverseKL(Hinged):
    """Exact KL(π_θ ‖ π_old)."""

    kind: ClassVar[str] = "reverse_kl"
    direction: ClassVar[Literal["forward", "reverse"]] = "reverse"


@dataclass(frozen=True)
class K2(Hinged):
    """½ (log r)² on the sampled action."""

    kind: ClassVar[str] = "k2"


@dataclass(frozen=True)
class K3(Hinged):
    """(r - 1) - log r on the sampled action."""

    kind: ClassVar[str] = "k3"


PENALTY_KINDS: dict[str, type[Part]] = {part.kind: part for part in (NoPenalty, ForwardKL, ReverseKL, K2, K3)}
"""Every penalty by kind."""
