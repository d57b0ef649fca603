"""Beginning with another run's weights: the policy and what its observations are normalised by, nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppo_kl import checkpoint
from ppo_kl.config.policy import PolicyConfig
from ppo_kl.errors import CheckpointError
from ppo_kl.load import from_yaml

if TYPE_CHECKING:
    from ppo_kl.training.agent import Agent

START = ("log_std_init",)
"""Settings of the policy that only say where it starts, and may differ."""


def init_from(agent: Agent, path: Path) -> None:
    """Give `agent` the weights and observation statistics in a checkpoint, or in the newest one of a run folder.

    The objective, λ, optimiser, schedules, random streams and counts stay those of a new run, so that the same start
    can be trained on with another objective.

    Raises:
        CheckpointError: there is no checkpoint, or what it was trained with does not fit this agent: other spaces,
            network or normalisation.
    """
    state = checkpoint.load_from(path)
    theirs = from_yaml(state["config"], f"{path} (config)")
    for name, ours, other in (
        ("spaces", agent.spaces, state["spaces"]),
        ("policy", _network(agent.config.policy), _network(theirs.policy)),
        ("env.normalize_obs", agent.config.env.normalize_obs, theirs.env.normalize_obs),
    ):
        if ours != other:
            raise CheckpointError(
                f"init_from={str(path)!r}: its {name} {_apart(other, ours)}, this run's {_apart(ours, other)}; nothing "
                "was loaded and nothing created; set them alike"
            )
    agent.learner.load_weights(state["learner"])
    agent.obs_normalizer.load_state_dict(state["obs_normalizer"])


def _apart(one: Any, other: Any) -> Any:
    """Of two dicts what is only in the one; else the one."""
    if not isinstance(one, dict):
        return one
    return {key: value for key, value in one.items() if other.get(key) != value}


def _network(config: PolicyConfig) -> dict[str, Any]:
    """What in the settings says which network it is."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in START}
