"""Rollout, update and optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ppo_kl.config.checked import Settings, setting


@dataclass(frozen=True)
class KLStop(Settings):
    """Early stop of an update on its KL; off by default, and never the controller's set-point."""

    scope: Literal["off", "last_minibatch"] = "off"
    """last_minibatch: the exact KL of the epoch's last minibatch, before its step, looked at when the epoch ends."""
    threshold: float | None = setting(None, above=0)
    """Nats; none: the controller's kl_target, and no stop where the objective has none."""
    multiplier: float = setting(1.0, above=0)
    """The update stops above multiplier · threshold."""
    stops: Literal["all", "actor"] = "all"
    """What stands still for the rest of the update."""


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """Rollout, update and optimiser."""

    num_steps: int = setting(128, at_least=1)
    """Steps of each environment in a rollout (T)."""
    num_epochs: int = setting(10, at_least=1)
    """Passes over the rollout in one update."""
    minibatch_size: int = setting(256, at_least=1)
    """Largest number of samples in a gradient step (M); a rollout is cut into equal parts no larger than this."""
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
    lr_schedule: Literal["constant", "linear"] = "constant"
    """linear: falls to 0 at the end of training."""
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
    max_skipped_steps: int = setting(100, at_least=1)
    """Stop when this many gradient steps in a row were skipped as non-finite."""
    kl_stop: KLStop = field(default_factory=KLStop)
