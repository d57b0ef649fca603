"""Everything that can be set: frozen dataclasses with ranges. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

from ppo_kl.config.checked import Settings, setting
from ppo_kl.config.diagnostics import DiagnosticsConfig
from ppo_kl.config.env import EnvConfig
from ppo_kl.config.objective import ObjectiveConfig
from ppo_kl.config.policy import PolicyConfig
from ppo_kl.config.runtime import RuntimeConfig
from ppo_kl.config.training import TrainingConfig
from ppo_kl.errors import ConfigError

__all__ = [
    "DiagnosticsConfig",
    "EnvConfig",
    "ObjectiveConfig",
    "PolicyConfig",
    "RuntimeConfig",
    "TrainConfig",
    "TrainingConfig",
]


@dataclass(frozen=True)
class TrainConfig(Settings):
    """A whole training run."""

    seed: int = setting(0, at_least=0, below=2**64)
    """Every random stream of the run is derived from it."""
    total_steps: int = setting(100_000, at_least=1)
    """Environment steps to train for; the last rollout is completed, so a run ends at or just after it."""
    runs_dir: str = "runs"
    """Runs lie in runs_dir/ENV/OBJECTIVE/seedK."""
    env: EnvConfig = field(default_factory=EnvConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        length = self.training.sequence_length
        if self.policy.memory == "none" and self.policy.module is None and length != TrainingConfig.sequence_length:
            raise ConfigError(
                f"training.sequence_length={length!r}: would be ignored: policy.memory is none; choose gru or lstm",
                "training",
            )
