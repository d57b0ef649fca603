"""The networks of actor and critic, and the shape of the action distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ppo_kl.config.checked import Settings, require_default, setting
from ppo_kl.errors import ConfigError

Activation = Literal["tanh", "relu", "elu", "silu", "gelu"]
BoxDistribution = Literal["gaussian", "tanh_gaussian", "beta", "full_gaussian"]


@dataclass(frozen=True)
class PolicyConfig(Settings):
    """Separate multilayer perceptrons for actor and critic."""

    hidden_sizes: tuple[int, ...] = setting((64, 64), at_least=1)
    """Units of each hidden layer, of the actor and of the critic."""
    activation: Activation = "tanh"
    """Between the layers."""
    distribution: BoxDistribution = "gaussian"
    """Box actions: a Gaussian clipped to the bounds, one squashed into them by tanh, a Beta stretched to them, or a
    clipped Gaussian with full covariance."""
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
        if self.mean == "tanh" and self.distribution in ("tanh_gaussian", "beta"):
            raise ConfigError(
                f"mean='tanh': distribution {self.distribution!r} keeps to the action bounds by itself; "
                "use mean 'linear', or distribution 'gaussian' or 'full_gaussian'",
                "mean",
            )
        if self.distribution == "beta":
            names = ("scale", "scale_depends_on_state", "log_std_init", "log_std_min", "log_std_max")
            require_default(self, names, "distribution 'beta' has no standard deviation of its own")
        if not self.log_std_min <= self.log_std_init <= self.log_std_max:
            raise ConfigError(
                f"log_std_init={self.log_std_init!r}: allowed: log_std_min <= log_std_init <= log_std_max "
                f"(log_std_min={self.log_std_min!r}, log_std_max={self.log_std_max!r})",
                "log_std_init",
            )
