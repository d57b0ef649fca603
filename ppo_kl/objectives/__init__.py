"""PPO objectives for anybody's trainer; loads torch and nothing else."""

from ppo_kl.config.objective import ObjectiveConfig
from ppo_kl.config.presets import PRESETS
from ppo_kl.objectives.distributions import (
    Joint,
    StableBernoulli,
    StableBeta,
    StableCategorical,
    StableOneHotCategorical,
)
from ppo_kl.objectives.divergence import k1, k2, k3, policy_kl, require_kl
from ppo_kl.objectives.gaussians import StableMultivariateNormal, StableNormal, TanhNormal
from ppo_kl.objectives.metrics import kl_metrics
from ppo_kl.objectives.objective import Objective, ObjectiveOutput
from ppo_kl.objectives.reduction import valid_mean
from ppo_kl.objectives.registry import register_controller, register_penalty, register_preset, register_surrogate
from ppo_kl.objectives.stabilise import stabilise

__all__ = [
    "PRESETS",
    "Joint",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveOutput",
    "StableBernoulli",
    "StableBeta",
    "StableCategorical",
    "StableMultivariateNormal",
    "StableNormal",
    "StableOneHotCategorical",
    "TanhNormal",
    "k1",
    "k2",
    "k3",
    "kl_metrics",
    "policy_kl",
    "register_controller",
    "register_penalty",
    "register_preset",
    "register_surrogate",
    "require_kl",
    "stabilise",
    "valid_mean",
]
