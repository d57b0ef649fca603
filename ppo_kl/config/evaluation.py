"""Evaluation while training goes on."""

from __future__ import annotations

from dataclasses import dataclass

from ppo_kl.config.checked import Settings, require_default, setting


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """Whole episodes on separate environments while training goes on; changes nothing of what is learned."""

    every: int | None = setting(None, at_least=1, at_most=10**9)
    """Iterations between evaluations; none: never. The checkpoint that did best is kept as checkpoints/best.pt."""
    episodes: int = setting(10, at_least=1, at_most=10_000)
    """Episodes of one evaluation."""
    max_steps: int = setting(100_000, at_least=1, at_most=10**12)
    """Steps of each environment in one evaluation; an episode that is still running then counts as far as it went."""
    stochastic: bool = False
    """Whether actions are drawn from the policy, as in training, instead of being the most likely ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every is None:
            require_default(
                self, ("episodes", "max_steps", "stochastic"), "evaluation.every is none; give a number of iterations"
            )
