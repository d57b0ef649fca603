"""The networks of actor and critic, and the shape of the action distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ppo_kl.config.checked import Settings, require_default, setting
from ppo_kl.errors import ConfigError

Activation = Literal["tanh", "relu", "elu", "silu", "gelu"]
BoxDistribution = Literal["gaussian", "tanh_gaussian", "beta", "full_gaussian"]
MAX_UNITS, MAX_LAYERS = 16_384, 64
"""Two layers of the widest have 268 million weights between them, with Adam's moments 3 GB."""


@dataclass(frozen=True)
class PolicyConfig(Settings):
    """Encoders by the kind of observation, then multilayer perceptrons for actor and critic."""

    hidden_sizes: tuple[int, ...] = setting((64, 64), at_least=1, at_most=MAX_UNITS)
    """Units of each hidden layer, of the actor and of the critic; behind the encoder where observations are images."""
    activation: Activation = "tanh"
    """Between the layers."""
    trunk: Literal["separate", "shared"] = "separate"
    """shared: actor and critic have all but the last layer in common; it moves with the actor's learning rate."""
    image_encoder: Literal["nature", "impala", "flat"] = "nature"
    """Images: the CNN of the DQN paper, IMPALA's residual one, or no CNN: the pixels as a vector in [0, 1]."""
    image_layout: Literal["auto", "chw", "hwc"] = "auto"
    """Images: whether channels are the first or the last axis; auto: last where that is the smallest of the three."""
    memory: Literal["none", "gru", "lstm"] = "none"
    """A recurrent layer behind the hidden ones, of the actor and of the critic."""
    memory_size: int = setting(64, at_least=1, at_most=MAX_UNITS)
    """Its units."""
    module: str | None = None
    """A network of your own, package.module:Class, in the place of all of these; see docs/policies.md."""
    distribution: BoxDistribution = "gaussian"
    """Box actions: a Gaussian clipped to the bounds, one squashed into them by tanh, a Beta stretched to them, or a
    clipped Gaussian with full covariance."""
    action_transform: Literal["clip", "rescale"] = "clip"
    """Box actions of a Gaussian that is not squashed: clipped at the bounds as they are, or at ±1 and stretched to
    them."""
    mean: Literal["linear", "tanh"] = "linear"
    """Box actions: mean of the Gaussian, the last layer's output, or tanh of it stretched to the action bounds."""
    scale: Literal["log_std", "softplus"] = "log_std"
    """Box actions: standard deviation, exp or softplus of its parameter."""
    scale_depends_on_state: bool = False
    """Box actions: the scale is an output of the actor rather than a parameter of its own."""
    log_std_init: float = 0.0
    """Box actions: logarithm of the standard deviation at the start, where it is a parameter of its own."""
    log_std_min: float = setting(-10.0, at_least=-20, at_most=2)
    """Box actions: lower bound of the logarithm of the standard deviation."""
    log_std_max: float = setting(2.0, at_least=-20, at_most=2)
    """Box actions: upper bound of the logarithm of the standard deviation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.hidden_sizes) > MAX_LAYERS:
            message = f"hidden_sizes=<{len(self.hidden_sizes)} layers>: allowed: <= {MAX_LAYERS} layers"
            raise ConfigError(message, "hidden_sizes")
        if self.mean == "tanh" and self.distribution in ("tanh_gaussian", "beta"):
            raise ConfigError(
                f"mean='tanh': distribution {self.distribution!r} keeps to the action bounds by itself; "
                "use mean 'linear', or distribution 'gaussian' or 'full_gaussian'",
                "mean",
            )
        if self.distribution in ("tanh_gaussian", "beta"):
            reason = f"distribution {self.distribution!r} keeps to the action bounds by itself"
            require_default(self, ("action_transform",), reason)
        if self.memory == "none":
            require_default(self, ("memory_size",), "memory is none; choose gru or lstm")
        if self.module is not None:
            require_default(
                self, ("trunk", "memory", "image_encoder", "image_layout"), "module has networks of its own"
            )
            package, _, name = self.module.partition(":")
            if not package or not name:
                raise ConfigError(f"module={self.module!r}: expected package.module:Class", "module")
        if self.distribution == "beta":
            names = ("scale", "scale_depends_on_state", "log_std_init", "log_std_min", "log_std_max")
            require_default(self, names, "distribution 'beta' has no standard deviation of its own")
        if not self.log_std_min <= self.log_std_init <= self.log_std_max:
            raise ConfigError(
                f"log_std_init={self.log_std_init!r}: allowed: log_std_min <= log_std_init <= log_std_max "
                f"(log_std_min={self.log_std_min!r}, log_std_max={self.log_std_max!r})",
                "log_std_init",
            )
