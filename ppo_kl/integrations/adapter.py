"""What every adapter needs: the objective it was given, the step of λ with its log, a word about a missing library."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from ppo_kl.config.objective import ObjectiveConfig
from ppo_kl.config.presets import preset
from ppo_kl.errors import ConfigError
from ppo_kl.objectives.metrics import kl_metrics
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


def adapt_(
    objective: Objective,
    pi_old: Distribution,
    pi: Distribution,
    valid: Tensor | None = None,
    progress: float | None = None,
) -> dict[str, float]:
    """Let λ follow the exact KL of the whole rollout after its update, in place, with one read from the device.

    Args:
        objective: with the λ of this update.
        pi_old: behaviour policy of the whole rollout, batch shape `[B]`, or that of `valid`.
        pi: the same at the new θ.
        valid: which rows count, bool; none: all.
        progress: as in `Objective.adapt_`.

    Returns:
        What there is to log, with the λ of the update that was made.
    """
    metrics = kl_metrics(objective, pi_old, pi, valid)
    objective.adapt_(metrics["kl/controlled"], progress=progress)
    metrics |= objective.controller_metrics()
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))


def missing_library(adapter: str, extra: str, error: ImportError) -> ImportError:
    """What to raise where an adapter's library cannot be imported: which one, why, and the extra that brings it."""
    return ImportError(f'ppo_kl.integrations.{adapter}: {error}; pip install "ppo-kl[{extra}]"', name=error.name)
