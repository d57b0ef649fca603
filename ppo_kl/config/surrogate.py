"""Surrogates as settings: what each sample contributes through its ratio and advantage.

Formulas and sources stand with the functions in `ppo_kl.objectives.surrogates`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ppo_kl.config.checked import setting
from ppo_kl.config.part import Part


@dataclass(frozen=True)
class Surrogate(Part):
    """What each sample contributes through its probability ratio and advantage."""

    trusts_forward_kl: ClassVar[bool] = False
    """Whether it reads the forward KL of each sample, which a penalty of the other direction does not measure."""


@dataclass(frozen=True)
class Ratio(Surrogate):
    """The importance-weighted advantage, unlimited."""

    kind: ClassVar[str] = "ratio"


@dataclass(frozen=True)
class Band(Surrogate):
    """What the surrogates with a band around ratio 1 share."""

    clip_eps: float = setting(0.2, above=0, below=1)
    """Lower edge of the band, 1 - clip_eps; the upper edge too unless clip_eps_high is given."""
    clip_eps_high: float | None = setting(None, above=0)
    """Upper edge of the band, 1 + clip_eps_high; none: the same as clip_eps."""
    clip_eps_schedule: Literal["constant", "linear"] = "constant"
    """linear: the band narrows to a hundredth of itself over training."""


@dataclass(frozen=True)
class Clip(Band):
    """The clipped surrogate of PPO."""

    kind: ClassVar[str] = "clip"


@dataclass(frozen=True)
class DualClip(Band):
    """Clipped, and bounded as well for a negative advantage with a large ratio."""

    kind: ClassVar[str] = "dual_clip"
    dual_clip: float = setting(3.0, above=1)
    """For A < 0 the loss of a sample stays below dual_clip · |A|."""


@dataclass(frozen=True)
class Rollback(Band):
    """Outside the band the slope turns round instead of vanishing (PPO-RB)."""

    kind: ClassVar[str] = "rollback"
    rollback: float = setting(0.3, above=0)
    """Slope outside the band, α; it pulls the ratio back."""


@dataclass(frozen=True)
class Trust(Surrogate):
    """What the surrogates with a trust region around each sample share."""

    trusts_forward_kl: ClassVar[bool] = True
    trust_kl: float = setting(0.03, above=0)
    """Radius δ of the trust region, forward KL of one sample, nats."""


@dataclass(frozen=True)
class TrustGate(Trust):
    """A sample whose KL left the trust region gives no further push (TR-PPO)."""

    kind: ClassVar[str] = "trust_gate"
    trust_kl: float = setting(0.035, above=0)
    """Radius δ of the trust region, forward KL of one sample, nats."""


@dataclass(frozen=True)
class TrustRollback(Trust):
    """A sample whose KL left the trust region is pulled back (TR-PPO-RB)."""

    kind: ClassVar[str] = "trust_rollback"
    rollback: float = setting(0.05, above=0)
    """Slope outside the trust region, α."""


@dataclass(frozen=True)
class Truly(Trust):
    """A sample whose KL left the trust region pays for its KL (Truly PPO)."""

    kind: ClassVar[str] = "truly"
    trust_penalty: float = setting(5.0, above=0)
    """Weight α of the KL outside the trust region."""


@dataclass(frozen=True)
class SPO(Surrogate):
    """A parabola in the ratio, steepest where the advantage is largest (Simple Policy Optimization)."""

    kind: ClassVar[str] = "spo"
    clip_eps: float = setting(0.2, above=0, below=1)
    """The sample's optimum lies at ratio 1 ± clip_eps."""


@dataclass(frozen=True)
class KLip(Band):
    """Clipping written as a penalty on log r, with the gradient of `clip`."""

    kind: ClassVar[str] = "klip"


@dataclass(frozen=True)
class SoftClip(Band):
    """Clipping whose gradient fades out along a ramp instead of at an edge."""

    kind: ClassVar[str] = "soft_clip"
    ramp: float = setting(0.05, above=0)
    """Width τ of the ramp beyond the band, in units of the ratio."""


@dataclass(frozen=True)
class Drift(Surrogate):
    """A learned drift function that flattens the ratio's reward on either side (DPO)."""

    kind: ClassVar[str] = "drift"
    drift_up: float = setting(2.0, above=0)
    """Scale α for A >= 0."""
    drift_down: float = setting(0.6, above=0)
    """Scale β for A < 0."""


SURROGATE_KINDS: dict[str, type[Part]] = {
    part.kind: part
    for part in (
        Ratio,
        Clip,
        DualClip,
        Rollback,
        TrustGate,
        TrustRollback,
        Truly,
        SPO,
        KLip,
        SoftClip,
        Drift,
    )
}
"""Every surrogate by kind."""
