"""Everything that can be set: frozen dataclasses with ranges. Standard library only."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ppo_kl.config.checked import Settings, setting
from ppo_kl.config.diagnostics import DiagnosticsConfig
from ppo_kl.config.env import EnvConfig
from ppo_kl.config.evaluation import EvaluationConfig
from ppo_kl.config.objective import ObjectiveConfig
from ppo_kl.config.policy import PolicyConfig
from ppo_kl.config.runtime import RuntimeConfig
from ppo_kl.config.training import MAX_SAMPLES, TrainingConfig
from ppo_kl.errors import ConfigError

__all__ = [
    "DiagnosticsConfig",
    "EnvConfig",
    "EvaluationConfig",
    "ObjectiveConfig",
    "PolicyConfig",
    "RuntimeConfig",
    "TrainConfig",
    "TrainingConfig",
]

if TYPE_CHECKING:  # a configuration always has one: none is replaced when it is made
    Seed = int
else:
    Seed = int | None


@dataclass(frozen=True)
class TrainConfig(Settings):
    """A whole training run."""

    seed: Seed = setting(0, at_least=0, below=2**64)  # noqa: RUF009 (an int is no shared default)
    """Every random stream of the run is derived from it; none: one is drawn, said, and saved in its place."""
    total_steps: int = setting(100_000, at_least=1, at_most=10**15)
    """Environment steps to train for; the last rollout is completed, so a run ends at or just after it."""
    runs_dir: str = "runs"
    """Runs lie in runs_dir/ENV/OBJECTIVE/seedK."""
    init_from: str | None = None
    """A run folder or checkpoint whose weights and observation statistics to begin with, and nothing else of it."""
    env: EnvConfig = field(default_factory=EnvConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbits(32))
        samples = self.rollout_size
        if samples > MAX_SAMPLES:
            raise ConfigError(
                f"training.num_steps={self.training.num_steps!r}: times env.num_envs={self.env.num_envs!r} is "
                f"{samples:,} samples in a rollout; allowed: <= {MAX_SAMPLES:,}",
                "training",
            )
        self._require_workers_for_something()
        length = self.training.sequence_length
        if self.policy.memory == "none" and self.policy.module is None and length != TrainingConfig.sequence_length:
            raise ConfigError(
                f"training.sequence_length={length!r}: would be ignored: policy.memory is none; choose gru or lstm",
                "training",
            )

    @property
    def rollout_size(self) -> int:
        """Samples that an update is made of."""
        return self.env.num_envs * self.training.num_steps

    def planned_gradient_steps(self, num_steps: int) -> int:
        """Iterations · epochs · minibatches in `num_steps` environment steps."""
        training, samples = self.training, self.rollout_size
        return -(-num_steps // samples) * training.num_epochs * -(-samples // training.minibatch_size)

    def _require_workers_for_something(self) -> None:
        workers, env = self.runtime.num_workers, self.env
        if workers == 0:
            return
        if env.vectorization != "sync":
            how = f"env.vectorization {env.vectorization!r} has its own way"
            raise ConfigError(f"runtime.workers={workers}: would be ignored: {how}; use 0, auto, or sync", "runtime")
        if workers >= env.num_envs:
            raise ConfigError(
                f"runtime.workers={workers}: with env.num_envs={env.num_envs}, of which this process steps its share: "
                f"allowed: <= {env.num_envs - 1}",
                "runtime",
            )
