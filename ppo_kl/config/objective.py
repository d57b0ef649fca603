"""The policy-update objective as settings: surrogate + λ · penalty, and the controller that moves λ.

The published combinations by name are in `presets`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ppo_kl.config.checked import Settings
from ppo_kl.config.controller import (
    CONTROLLER_KINDS,
    PI,
    Adapting,
    Adaptive,
    Banded,
    Controller,
    Dual,
    Fixed,
    Proportional,
    Schedule,
)
from ppo_kl.config.part import Part
from ppo_kl.config.penalty import K2, K3, PENALTY_KINDS, ForwardKL, Hinged, NoPenalty, Penalty, ReverseKL
from ppo_kl.config.surrogate import (
    SPO,
    SURROGATE_KINDS,
    Band,
    Clip,
    Drift,
    DualClip,
    KLip,
    Ratio,
    Rollback,
    SoftClip,
    Surrogate,
    Truly,
    TrustGate,
    TrustRollback,
)
from ppo_kl.errors import ConfigError

__all__ = [
    "K2",
    "K3",
    "KINDS",
    "PI",
    "SPO",
    "Adapting",
    "Adaptive",
    "Band",
    "Banded",
    "Clip",
    "Controller",
    "Drift",
    "Dual",
    "DualClip",
    "Fixed",
    "ForwardKL",
    "Hinged",
    "KLip",
    "NoPenalty",
    "ObjectiveConfig",
    "Part",
    "Penalty",
    "Proportional",
    "Ratio",
    "ReverseKL",
    "Rollback",
    "Schedule",
    "SoftClip",
    "Surrogate",
    "Truly",
    "TrustGate",
    "TrustRollback",
]

KINDS: dict[type[Part], dict[str, type[Part]]] = {
    Surrogate: SURROGATE_KINDS,
    Penalty: PENALTY_KINDS,
    Controller: CONTROLLER_KINDS,
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
        surrogate, penalty, controller = self.surrogate, self.penalty, self.controller
        if isinstance(penalty, NoPenalty) and not controller.idle:
            raise ConfigError(
                f"controller={controller!r}: penalty 'none' leaves it nothing to multiply; use kind 'fixed' with "
                "kl_lambda 0, or another penalty",
                "controller",
            )
        if surrogate.trusts_forward_kl and penalty.direction != "forward":
            raise ConfigError(
                f"penalty={penalty!r}: surrogate {surrogate.kind!r} reads the forward KL of each sample, which this "
                "penalty does not measure; use penalty 'forward_kl' or 'none'",
                "penalty",
            )
        hinge = getattr(penalty, "hinge", 0.0)
        if hinge > 0 and not isinstance(controller, Adapting):
            raise ConfigError(
                f"penalty.hinge={hinge!r}: it begins at twice kl_target, and controller {controller.kind!r} has none; "
                "use a controller with a target, or hinge 0",
                "penalty",
            )
