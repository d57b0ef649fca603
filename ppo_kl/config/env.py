"""Which environment, how many of them, and how they are stepped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ppo_kl.config.checked import Settings, require_default, setting
from ppo_kl.errors import ConfigError

Vectorization = Literal["sync", "async", "native"]
MAX_PROCESSES = 1024
"""That step environments: each is an interpreter of its own, which takes 100 MB and more."""


@dataclass(frozen=True)
class EnvConfig(Settings):
    """A Gymnasium environment, several copies at once."""

    id: str = "CartPole-v1"
    """Gymnasium's id; or package.module:Id, an id that the module registers or an Env class in it."""
    kwargs: dict[str, Any] = field(default_factory=dict, hash=False)
    """What the environment is made with, as --env.kwargs.gravity 1.6."""
    wrappers: dict[str, dict[str, Any]] = field(default_factory=dict, hash=False)
    """Wrappers, innermost first: a name in gymnasium.wrappers or package.module:Class, and what each is made with, as
    --env.wrappers.FrameStackObservation.stack_size 4."""
    num_envs: int = setting(8, at_least=1, at_most=65_536)
    """Copies stepped side by side (N)."""
    vectorization: Vectorization = "sync"
    """sync: this process, and those of runtime.workers; async: a process for each copy; native: the environment's own
    vector entry point."""
    timeout: float = setting(60.0, above=0, at_most=1_000_000)
    """Seconds that a process beside this one may take for an answer of one copy before the run ends with an error; time
    in which the run itself was stopped, as by SIGSTOP, does not count."""
    nonfinite: Literal["stop", "truncate"] = "stop"
    """What a NaN or an infinity from an environment does: ends the run, or cuts that episode at its last good step."""
    normalize_obs: bool = False
    """Observations: subtract the running mean, divide by the running standard deviation, clip at ±10."""
    normalize_reward: bool = False
    """Rewards: divide by the running standard deviation of the discounted return, clip at ±10."""
    reward_offset: float = 0.0
    """The learner sees (reward + reward_offset) · reward_scale; logged returns stay the environment's own."""
    reward_scale: float = setting(1.0, above=0)
    """See reward_offset."""
    reward_limit: float | None = setting(None, above=0)
    """The learner sees rewards clipped at ± this, after reward_scale; none: as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.id:
            raise ConfigError("id='': name a Gymnasium environment, as CartPole-v1", "id")
        if self.id.count(":") > 1:
            raise ConfigError(f"id={self.id!r}: expected one colon at most, as in package.module:Id", "id")
        if self.vectorization == "native":
            reason = "belongs to single environments, not to vectorization 'native'; use sync or async"
            require_default(self, ("wrappers", "nonfinite", "timeout"), reason)
        if self.vectorization == "async" and self.num_envs > MAX_PROCESSES:
            message = f"num_envs={self.num_envs!r}: allowed: <= {MAX_PROCESSES} processes with vectorization 'async'"
            raise ConfigError(f"{message}; use sync or native for more", "num_envs")
