"""PPO objectives for anybody's trainer; loads torch and nothing else."""

from ppo_kl.config.objective import PRESETS, ObjectiveConfig
from ppo_kl.objectives.distributions import StableCategorical
from ppo_kl.objectives.divergence import k1, k2, k3, policy_kl
from ppo_kl.objectives.objective import Objective, ObjectiveOutput
from ppo_kl.objectives.reduction import valid_mean

__all__ = [
    "PRESETS",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveOutput",
    "StableCategorical",
    "k1",
    "k2",
    "k3",
    "policy_kl",
    "valid_mean",
]
