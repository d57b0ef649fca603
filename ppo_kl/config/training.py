"""Rollout, update and optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ppo_kl.config.checked import Settings, require_default, setting
from ppo_kl.errors import ConfigError

MAX_STEPS = 1_000_000
"""Of a rollout, in each environment."""
MAX_SAMPLES = 100_000_000
"""Of a rollout, in all environments together: it lies in memory, and of the smallest observations this is 10 GB."""
LR_MIN, LR_MAX = 1e-5, 1e-2
"""Between these `lr_schedule: kl_adaptive` moves the actor's learning rate."""


@dataclass(frozen=True)
class KLStop(Settings):
    """Early stop of an update on its KL; off by default, and never the controller's set-point."""

    scope: Literal["off", "before_step", "last_minibatch", "before_full_batch", "after_epoch"] = "off"
    """before_step: each minibatch's KL before its step; last_minibatch: the epoch's last one, looked at when the epoch
    ends; before_full_batch, after_epoch: the whole batch's, before an epoch begins or after it ends."""
    estimator: Literal["exact", "k1", "k3"] = "exact"
    """exact: the forward KL of the distributions; k1, k3: its estimates from the sampled actions."""
    threshold: float | None = setting(None, above=0)
    """Nats; none: the controller's kl_target."""
    multiplier: float = setting(1.0, above=0)
    """The update stops above multiplier · threshold."""
    stops: Literal["all", "actor"] = "all"
    """What stands still for the rest of the update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope == "off":
            require_default(self, ("estimator", "threshold", "multiplier", "stops"), "scope is off; choose one")


KL_STOPS: dict[str, KLStop] = {
    "off": KLStop(),
    "sb3": KLStop("before_step", "k3", multiplier=1.5),
    "cleanrl": KLStop("last_minibatch", "k3"),
    "spinningup": KLStop("before_full_batch", "k1", multiplier=1.5, stops="actor"),
    "omnisafe": KLStop("after_epoch", "exact"),
}
"""The early stops of other libraries by name; `configs/kl_stop/NAME.yaml` is generated from them."""


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """Rollout, update and optimiser."""

    num_steps: int = setting(128, at_least=1, at_most=MAX_STEPS)
    """Steps of each environment in a rollout (T)."""
    num_epochs: int = setting(10, at_least=1, at_most=100_000)
    """Passes over the rollout in one update."""
    minibatch_size: int = setting(256, at_least=1, at_most=MAX_SAMPLES)
    """Largest number of samples in a gradient step (M); a rollout is cut into equal parts no larger than this."""
    sequence_length: int = setting(16, at_least=1, at_most=MAX_STEPS)
    """Recurrent policies: longest stretch of steps through which a gradient flows; minibatches hold whole stretches."""
    gamma: float = setting(0.99, at_least=0, at_most=1)
    """Discount."""
    gae_lambda: float = setting(0.95, at_least=0, at_most=1)
    """Decay of generalised advantage estimation."""
    advantage_norm: Literal["rollout", "minibatch", "none"] = "rollout"
    """Over which samples advantages get mean 0 and standard deviation 1."""
    lr: float = setting(3e-4, above=0, at_most=1)
    """Adam's learning rate of the actor."""
    critic_lr: float | None = setting(None, above=0, at_most=1)
    """Adam's learning rate of the critic; none: the actor's."""
    lr_schedule: Literal["constant", "linear", "kl_adaptive"] = "constant"
    """linear: falls to 0 at the end of training; kl_adaptive: follows the KL, see lr_kl_target."""
    lr_kl_target: float = setting(0.01, above=0)
    """kl_adaptive: above twice this KL, nats, the learning rate is divided by 1.5, below half of it multiplied, between
    1e-5 and 1e-2; never the objective's kl_target."""
    lr_kl_cadence: Literal["minibatch", "epoch"] = "minibatch"
    """kl_adaptive: looks at each minibatch's exact forward KL before its step, or at an epoch's mean of them."""
    adam_eps: float = setting(1e-5, above=0, at_most=1)
    """Adam's ε."""
    max_grad_norm: float | None = setting(0.5, above=0)
    """Largest norm of the gradient; none: unlimited."""
    clip_grad: Literal["joint", "apart"] = "joint"
    """Whether the norm is that of actor and critic together or of each."""
    vf_coef: float = setting(0.5, at_least=0)
    """Weight of the value loss, the mean of (value - ret)²."""
    value_clip: float | None = setting(None, above=0)
    """The value may move this far from its old one before its loss stops falling; none: unlimited."""
    ent_coef: float = setting(0.0, at_least=0)
    """Weight of the entropy bonus."""
    max_skipped_steps: int = setting(100, at_least=1, at_most=1_000_000_000)
    """Stop when this many gradient steps in a row were skipped as non-finite."""
    kl_stop: KLStop = field(default_factory=KLStop)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_schedule != "kl_adaptive":
            names = ("lr_kl_target", "lr_kl_cadence")
            require_default(self, names, f"belongs to lr_schedule 'kl_adaptive', not to {self.lr_schedule!r}")
        elif not LR_MIN <= self.lr <= LR_MAX:
            raise ConfigError(f"lr={self.lr!r}: lr_schedule 'kl_adaptive' keeps it from {LR_MIN:g} to {LR_MAX:g}", "lr")
