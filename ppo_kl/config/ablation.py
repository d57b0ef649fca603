"""What an ablation compares: objectives × environments × seeds, and any grid of settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ppo_kl.config.checked import Settings, setting
from ppo_kl.errors import ConfigError


@dataclass(frozen=True)
class AblationConfig(Settings):
    """A study. An arm is an objective with whatever is changed of it; every arm meets every environment and seed."""

    name: str = "ablation"
    """Of the study's folder, and of the title of its report."""
    config: str | None = None
    """What every run starts from: a file, or a name in configs/recipes; none: the defaults."""
    envs: tuple[str, ...] = ("cartpole",)
    """Names in configs/env, files, or Gymnasium ids."""
    objectives: tuple[str, ...] = ()
    """Names in configs/objective, or files; each is an arm of that name."""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """More arms: a name, with its `objective` and whatever else is set for it, by dotted key."""
    seeds: int = setting(5, at_least=1, at_most=10_000)
    """How many runs each arm has on each environment."""
    first_seed: int = setting(0, at_least=0, below=2**63)
    """Seeds are counted from here."""
    reference: str = "clip"
    """The arm that others are held against; the first one where there is none of this name."""
    set: dict[str, Any] = field(default_factory=dict)
    """For all runs, by dotted key."""
    for_env: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For the runs of one environment, by its name in `envs`."""
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Dotted key -> values; every combination makes an arm of its own of each arm whose objective has that setting."""
    published: dict[str, float] = field(default_factory=dict)
    """Arm -> its score in a paper, 1 at the best run of an environment, to stand beside the study's own."""
    published_in: str = ""
    """Where, and under which conditions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.envs:
            raise ConfigError("envs=(): name at least one environment", "envs")
        if not self.objectives and not self.arms:
            raise ConfigError("objectives=(): name at least one objective, or give arms", "objectives")
        for key, names in (("envs", self.envs), ("objectives", self.objectives)):
            if twice := [name for i, name in enumerate(names) if name in names[:i]]:
                raise ConfigError(f"{key}: {twice[0]!r} is named twice", key)
        for name in self.for_env:
            if name not in self.envs:
                raise ConfigError(f"for_env.{name}: not one of envs, {', '.join(self.envs)}", "for_env")
        if bool(self.published) != bool(self.published_in):
            raise ConfigError(
                "published: scores, and in published_in where they come from: one without the other", "published"
            )
        for key, values in self.grid.items():
            if not values:
                raise ConfigError(f"grid.{key}: needs at least one value", "grid")
