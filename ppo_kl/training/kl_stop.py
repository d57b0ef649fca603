"""Early stop of an update on its KL: a flag on the device, raised between steps or between epochs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppo_kl.config.objective import Adapting, ObjectiveConfig
from ppo_kl.config.training import KLStop
from ppo_kl.errors import ConfigError
from ppo_kl.objectives.divergence import k1, k3
from ppo_kl.objectives.objective import Objective
from ppo_kl.objectives.reduction import valid_mean

ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "exact": lambda kl, log_ratio: kl,  # noqa: ARG005
    "k1": lambda kl, log_ratio: k1(log_ratio),  # noqa: ARG005
    "k3": lambda kl, log_ratio: k3(log_ratio),  # noqa: ARG005
}
"""KL of each sample, `[B]`, from the exact forward KL and the log-ratio, by `kl_stop.estimator`."""


def require_threshold(stop: KLStop, objective: ObjectiveConfig) -> None:
    """Refuse a stop that would never stop.

    Raises:
        ConfigError: no threshold is given, and the objective has no target to take.
    """
    if stop.scope != "off" and stop.threshold is None and not isinstance(objective.controller, Adapting):
        raise ConfigError(
            f"training.kl_stop.threshold=None: it is then the objective's kl_target, but {objective.name!r} has none; "
            f"give a threshold in nats, as --training.kl-stop.threshold 0.01, or --kl-stop off (now {stop.scope!r})"
        )


class EarlyStop:
    """Whether the update has moved far enough.

    `scope` says when it is asked: `before_step` at every minibatch, `last_minibatch` when an epoch ends, of its last
    minibatch before its step, `before_full_batch` and `after_epoch` between two epochs, of the whole batch.

    Args:
        config: scope, estimator, threshold.
        objective: whose `kl_target` is the threshold where none is given.
        device: of the flag.
    """

    def __init__(self, config: KLStop, objective: Objective, device: torch.device) -> None:
        self.config, self.objective = config, objective
        self.on = config.scope != "off"
        self.stopped = torch.zeros((), dtype=torch.bool, device=device)
        self._stops = torch.tensor([True, config.stops == "all"], device=device)
        self._last = torch.zeros((), device=device)
        self._reads_each_step = config.scope == "before_step" and config.stops == "all" and device.type == "cpu"

    def begin_(self) -> None:
        """A new update."""
        self.stopped.zero_()
        self._last.zero_()

    def limit(self) -> float | Tensor:
        """Above which KL the update stops, nats."""
        threshold = self.objective.kl_target if self.config.threshold is None else self.config.threshold
        return torch.inf if threshold is None else self.config.multiplier * threshold

    def estimate(self, kl: Tensor, log_ratio: Tensor, valid: Tensor | None) -> Tensor:
        """Mean KL of these samples by the estimator, `[]` nats.

        Args:
            kl: exact forward KL, `[B]`.
            log_ratio: logp − logp_old, `[B]`.
            valid: `[B]` bool; none: all.
        """
        return valid_mean(ESTIMATORS[self.config.estimator](kl, log_ratio), valid)

    def before_step_(self, kl: Tensor) -> None:
        """The minibatch's KL, `[]`, before its step."""
        if self.config.scope == "before_step":
            self.stopped |= kl > self.limit()
        self._last.copy_(kl)

    def between_epochs_(self, whole_batch: Callable[[], Tensor]) -> bool:
        """Whether nothing is left to do in this update; the one place that reads the flag.

        Args:
            whole_batch: measures the KL of the whole batch, `[]`.
        """
        if not self.on:
            return False
        if self.config.scope == "last_minibatch":
            self.stopped |= self._last > self.limit()
        elif self.config.scope != "before_step":
            self.stopped |= whole_batch() > self.limit()
        return self.config.stops == "all" and bool(self.stopped)

    def ends_epoch(self) -> bool:
        """Whether the epoch's other minibatches can be left out, where that costs no wait for a device."""
        return self._reads_each_step and bool(self.stopped)

    def moves(self) -> Tensor:
        """Whether the actor and the critic still move, `[2]` bool."""
        return ~(self.stopped & self._stops)
