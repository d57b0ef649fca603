"""One iteration of training, as values: collect, estimate, update, measure, adapt λ, update the normalisers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ppo_kl.batch import Rollout, flatten
from ppo_kl.diagnostics.gradients import gradient_anatomy
from ppo_kl.diagnostics.histograms import Histogram, from_device, histograms
from ppo_kl.diagnostics.measure import kl_before, measure, peak_memory_mb
from ppo_kl.errors import EnvDataError
from ppo_kl.observations import over_parts
from ppo_kl.training.advantages import gae, normalize_advantages
from ppo_kl.training.collector import Collector
from ppo_kl.training.episodes import EpisodeStats
from ppo_kl.training.stopwatch import Seconds, Stopwatch

if TYPE_CHECKING:
    from ppo_kl.training.agent import Agent


RETURN_LIMIT = 1e18
"""Returns beyond this are refused; float32 ends at 3.4e38, and the value loss is a square."""


class Iteration(NamedTuple):
    """What one iteration of training answers, and what a callback is given."""

    agent: Agent
    number: int
    """Iterations done, this one included."""
    steps: int
    """Environment steps done."""
    total_steps: int
    """Environment steps wanted."""
    metrics: dict[str, float]
    """By tag; see `ppo_kl.diagnostics.glossary`."""
    histograms: dict[str, Histogram]
    """By tag, in the iterations that have them."""
    seconds: dict[str, Seconds]
    """By phase: rollout, advantages, update (the gradient steps), measure."""


class Callback(Protocol):
    """Called after every iteration; training ends when one answers False."""

    def on_iteration(self, state: Iteration) -> bool:
        """Look at the iteration; False ends the training."""


def all_go_on(callbacks: Sequence[Callback], state: Iteration) -> bool:
    """Whether no callback wants to end the training; every one is asked."""
    wishes = [callback.on_iteration(state) for callback in callbacks]
    return not any(wish is False for wish in wishes)


class Outcome(NamedTuple):
    """What `iterate` answers, read from the device once."""

    metrics: dict[str, float]
    histograms: dict[str, Histogram]
    episodes: EpisodeStats
    seconds: dict[str, Seconds]
    """By phase."""
    steps: int
    """Environment steps, rows that are no transitions not counted."""
    skipped_in_a_row: int
    """Gradient steps without a finite result, up to now."""


def iterate(agent: Agent, collector: Collector, progress: float) -> Outcome:
    """One iteration of training.

    The order is what makes the KL mean something: π_old is stored at collection and never recomputed, the numbers
    that are plotted are those that move λ, and the normalisers move when nothing of this rollout is used any more.

    Args:
        agent: whose policy, objective, learner and normalisers are used and moved.
        collector: of the agent's environments.
        progress: share of training that is done, in [0, 1); moves schedules.

    Raises:
        EnvDataError: an environment sent something that cannot be trained on.
        EnvWorkerError: an environment failed.
    """
    watch = Stopwatch()
    training, policy, family, objective = agent.config.training, agent.policy, agent.family, agent.objective
    objective.schedule_(progress)
    rollout, episodes = collector.collect(policy)
    watch.lap("rollout")
    adv, ret = gae(
        agent.reward_scaler(rollout.reward),
        rollout.value,
        rollout.next_value,
        rollout.terminated,
        rollout.truncated,
        rollout.valid,
        gamma=training.gamma,
        gae_lambda=training.gae_lambda,
    )
    _require_representable(rollout, ret)
    raw = flatten(rollout, adv, ret, agent.obs_normalizer, training.sequence_length)
    normalized = raw._replace(adv=normalize_advantages(raw.adv, raw.valid))
    watch.lap("advantages")

    before = kl_before(policy, family, raw)
    watch.lap("measure")
    updated = agent.learner.update(normalized if training.advantage_norm == "rollout" else raw, progress)
    watch.lap("update")
    used = raw if training.advantage_norm == "none" else normalized
    measured = measure(policy, family, objective, used)
    diagnostics = agent.config.diagnostics
    if _is_due(diagnostics.gradient_every, agent.iterations):
        measured |= gradient_anatomy(policy, family, objective, used, training.minibatch_size)
    spread = histograms(policy, family, used) if _is_due(diagnostics.histogram_every, agent.iterations) else {}
    objective.adapt_(measured["kl/controlled"])
    agent.obs_normalizer.update_(over_parts(lambda x: x.flatten(0, 1), rollout.obs), rollout.valid.flatten())
    agent.reward_scaler.update_(rollout.reward, rollout.terminated | rollout.truncated, rollout.valid)

    on_device = {
        "kl/before_update": before,
        **updated,
        **objective.controller_metrics(),
        **measured,
        "steps": rollout.valid.sum(),
        "skipped_in_a_row": agent.learner.skipped_in_a_row,
    }
    numbers = _read({**on_device, **spread})
    metrics = {tag: numbers[tag][0] for tag in on_device}
    shown = {tag: found for tag in spread if (found := from_device(numbers[tag])) is not None}
    watch.lap("measure")
    steps, skipped = int(metrics.pop("steps")), int(metrics.pop("skipped_in_a_row"))
    wall = {phase: seconds.wall for phase, seconds in watch.seconds.items()}
    times = {
        "time/steps_per_second": steps / sum(wall.values()),
        "time/rollout_seconds": wall["rollout"] + wall["advantages"],
        "time/update_seconds": wall["update"] + wall["measure"],
    }
    memory = peak_memory_mb(agent.device)
    if math.isfinite(memory):
        times["system/memory_mb"] = memory
    if agent.config.env.nonfinite == "truncate":
        metrics["env/nonfinite"] = float(collector.nonfinite)
    return Outcome(metrics | _of_episodes(episodes) | times, shown, episodes, watch.seconds, steps, skipped)


def _is_due(every: int | None, iterations: int) -> bool:
    """Whether what is measured every so many iterations is measured after so many, the first time at once."""
    return every is not None and iterations % every == 0


def _read(tensors: dict[str, Tensor]) -> dict[str, list[float]]:
    """Every number of each tensor; the device is waited for once."""
    flat = torch.cat([x.double().flatten() for x in tensors.values()]).tolist()
    ends = np.cumsum([x.numel() for x in tensors.values()]).tolist()
    return {tag: flat[end - x.numel() : end] for (tag, x), end in zip(tensors.items(), ends, strict=True)}


def _require_representable(rollout: Rollout, ret: Tensor) -> None:
    """Refuse returns whose square is infinite in float32: the value loss would be, and every step be skipped."""
    too_large = (ret.abs() > RETURN_LIMIT) & rollout.value.isfinite()
    if too_large.any():
        t, i = too_large.nonzero()[0].tolist()
        raise EnvDataError(
            f"the return of environment {i} from step {t} of this rollout is {ret[t, i].item():g}, beyond "
            f"±{RETURN_LIMIT:g}, whose square float32 cannot hold; no update was made with it, weights and checkpoints "
            "are as before; make rewards smaller with env.reward_scale, or clip them with env.reward_limit"
        )


def _of_episodes(episodes: EpisodeStats) -> dict[str, float]:
    """Without return and length where no episode ended: a mean of nothing is no number."""
    metrics = {"rollout/episodes": float(len(episodes.returns))}
    if episodes.returns:
        metrics["rollout/return_mean"] = float(np.mean(episodes.returns))
        metrics["rollout/length_mean"] = float(np.mean(episodes.lengths))
    return metrics
