"""Which environment, how many of them, and how they are stepped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ppo_kl.config.checked import Settings, setting
from ppo_kl.errors import ConfigError

Vectorization = Literal["sync", "async", "native"]


@dataclass(frozen=True)
class EnvConfig(Settings):
    """A Gymnasium environment, several copies at once."""

    id: str = "CartPole-v1"
    """Gymnasium's id."""
    num_envs: int = setting(8, at_least=1)
    """Copies stepped side by side (N)."""
    vectorization: Vectorization = "sync"
    """sync: one process; async: one process per copy; native: the environment's own vector entry point."""
    normalize_obs: bool = False
    """Observations: subtract the running mean, divide by the running standard deviation, clip at ±10."""
    normalize_reward: bool = False
    """Rewards: divide by the running standard deviation of the discounted return, clip at ±10."""
    reward_offset: float = 0.0
    """The learner sees (reward + reward_offset) · reward_scale; logged returns stay the environment's own."""
    reward_scale: float = setting(1.0, above=0)
    """See reward_offset."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.id:
            raise ConfigError("id='': name a Gymnasium environment, as CartPole-v1", "id")
