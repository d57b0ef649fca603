"""`ppo-kl evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from ppo_kl.errors import CheckpointError
from ppo_kl.imports import import_modules


def evaluate(
    run: Annotated[str, tyro.conf.Positional],
    /,
    episodes: int = 10,
    stochastic: bool = False,
    video: str | None = None,
    best: bool = False,
    device: str | None = None,
    plugin: tuple[str, ...] = (),
) -> int:
    """Play whole episodes with a trained agent, on environments of their own.

    Args:
        run: a run folder (its newest checkpoint) or a checkpoint.
        episodes: how many.
        stochastic: draw actions from the policy instead of taking the most likely ones.
        video: a folder for a video of every episode; needs the extra [video]. One environment then plays them all, so
            that they are other episodes than without.
        best: the checkpoint whose evaluation was best in training (evaluation.every), instead of the newest one.
        device: cpu, cuda, cuda:<index> or auto; none: where it was trained.
        plugin: modules to import first, for an agent whose objective, environment or network is not one of ours.
    """
    import_modules(plugin, "--plugin")
    from ppo_kl.training.agent import Agent

    agent = Agent.load(best_of(run) if best else run, device=device)
    result = agent.evaluate(episodes, deterministic=not stochastic, video=video)
    actions = "sampled" if stochastic else "most likely"
    print(f"{agent.config.env.id}, {agent.config.objective.name}, trained for {agent.steps:,} steps")
    print(
        f"return {result.mean:.2f} ± {result.std:.2f} (mean ± SD of {len(result.returns)} episodes, {actions} actions)"
    )
    if video is not None:
        print(f"Videos: {video}")
    return 0


def best_of(run: str) -> Path:
    """The checkpoint of a run folder that was best in training."""
    from ppo_kl.checkpoint import BEST

    path = Path(run) / "checkpoints" / BEST
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; a run keeps its best one with --evaluation.every 20, say")
    return path


def main(arguments: list[str]) -> int:
    """Play whole episodes."""
    return tyro.cli(evaluate, args=arguments, prog="ppo-kl evaluate")
