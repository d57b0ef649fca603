"""What every adapter needs: the objective it was given by name, and a word about a library that is not there."""

from __future__ import annotations

from ppo_kl.config.objective import ObjectiveConfig
from ppo_kl.config.presets import preset
from ppo_kl.errors import ConfigError
from ppo_kl.objectives.objective import Objective


def as_objective(objective: str | ObjectiveConfig | Objective, num_action_dims: int | None = None) -> Objective:
    """The objective that a preset's name, a config or an `Objective` stands for; an `Objective` comes back as it is.

    Args:
        objective: what the user gave.
        num_action_dims: dim(A) of a Box action space, for a `kl_target_per_dim`.

    Raises:
        ConfigError: there is no such preset, or it is none of the three.
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str):
        objective = preset(objective)
    if not isinstance(objective, ObjectiveConfig):
        raise ConfigError(
            f"objective={objective!r}: give a preset's name such as 'kl_adaptive', an ObjectiveConfig or an Objective"
        )
    return Objective(objective, num_action_dims=num_action_dims)


def missing_library(adapter: str, extra: str, error: ImportError) -> ImportError:
    """What to raise where an adapter's library cannot be imported: which one, why, and the extra that brings it."""
    return ImportError(f'ppo_kl.integrations.{adapter}: {error}; pip install "ppo-kl[{extra}]"', name=error.name)
