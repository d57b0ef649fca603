"""The swap point: an objective sees four per-sample tensors and nothing else, in anybody's trainer."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppo_kl.config.objective import ObjectiveConfig, Part, preset
from ppo_kl.objectives.controllers import CONTROLLERS
from ppo_kl.objectives.divergence import Direction, policy_kl
from ppo_kl.objectives.penalties import PENALTIES
from ppo_kl.objectives.reduction import valid_mean
from ppo_kl.objectives.surrogates import SURROGATES

MAX_LOG_RATIO = 20.0
"""log r is clamped to ± this in every row: unclamped, clip's gradient is NaN from 89 in float32."""
REFERENCE_CLIP_EPS = 0.2
"""The band in which objectives that do not clip count their ratios, so that they compare with those that do."""


class ObjectiveOutput(NamedTuple):
    """What one call of an objective answers."""

    loss: Tensor
    """`[]` to minimise, differentiable: surrogate + penalty."""
    surrogate: Tensor
    """`[]` differentiable part."""
    penalty: Tensor
    """`[]` differentiable part, λ included."""
    metrics: dict[str, Tensor]
    """Detached `[]` means over valid rows, the same keys in every call."""


class Objective(nn.Module):
    """PPO's policy-update objective: mean surrogate(r, A, D) + λ · mean P, λ moved by a controller.

        kl  = objective.divergence(pi_old, pi)
        out = objective(logp=pi.log_prob(a), logp_old=logp_old, adv=adv, kl=kl)
        ...                                                        # once per rollout, after its update:
        objective.adapt_(objective.divergence(pi_old_all, pi_all).mean())

    `forward` changes nothing. λ is a 0-dim buffer: it moves with `.to(device)`, is saved in `state_dict`, and changes
    only in `adapt_`, in place.

    Args:
        config: surrogate, penalty and controller; see also `from_preset`.
    """

    kl_lambda: Tensor
    nonfinite: Tensor

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        surrogate, penalty, controller = config.surrogate, config.penalty, config.controller
        self._surrogate = partial(SURROGATES[surrogate.kind], **_settings(surrogate))
        self._rule = partial(CONTROLLERS[controller.kind], **_settings(controller, without=_SHARED_BY_CONTROLLERS))
        self.direction: Direction = PENALTIES[penalty.kind].direction
        self.kl_target: float | None = getattr(controller, "kl_target", None)
        start = float(getattr(controller, "kl_lambda", 0.0))
        self._adapts = hasattr(controller, "min")
        self._bounds = (getattr(controller, "min", start), getattr(controller, "max", start))
        # A λ that is 0 for good leaves the term out: 0 · inf would be NaN.
        self._penalty = PENALTIES[penalty.kind].per_sample if self._adapts or start > 0 else None
        self._band = _clip_band(surrogate)
        self.register_buffer("kl_lambda", torch.tensor(start))
        self.register_buffer("nonfinite", torch.tensor(0))

    @classmethod
    def from_preset(cls, name: str, **settings: Any) -> Objective:
        """The preset `name`, single settings replaced: `Objective.from_preset("kl_adaptive", kl_target=0.02)`.

        Raises:
            ConfigError: unknown preset or setting, or a value out of range.
        """
        return cls(preset(name, **settings))

    def divergence(self, pi_old: Distribution, pi: Distribution) -> Tensor:
        """Exact KL of each sample in the penalty's direction (forward where there is no penalty).

        Args:
            pi_old: behaviour policy, from stored parameters, batch shape `[B]`.
            pi: current policy, batch shape `[B]`.

        Returns:
            `[B]` nats, differentiable with respect to `pi`.

        Raises:
            ValueError: the batch shapes differ or are not `[B]`.
        """
        return policy_kl(pi_old, pi, self.direction)

    def forward(
        self, *, logp: Tensor, logp_old: Tensor, adv: Tensor, kl: Tensor, valid: Tensor | None = None
    ) -> ObjectiveOutput:
        """The loss of a minibatch: mean surrogate + λ · mean penalty. Changes nothing.

        Args:
            logp: log π_θ(a|s), `[B]`, summed over action dimensions.
            logp_old: log π_old(a|s) at collection, `[B]`.
            adv: advantage, `[B]`.
            kl: `divergence(pi_old, pi)`, `[B]` nats.
            valid: which rows count, `[B]` bool; none: all.

        Returns:
            loss, its two parts, and detached means for the log.

        Raises:
            ValueError: the shapes are not one common `[B]`.
        """
        tensors = {"logp": logp, "logp_old": logp_old, "adv": adv, "kl": kl}
        if valid is not None:
            tensors["valid"] = valid
        _require_one_shape(tensors)
        logp, logp_old, adv, kl = (_at_least_float32(x) for x in (logp, logp_old, adv, kl))
        if valid is not None:
            valid = valid.bool()
            logp, logp_old, adv, kl = (torch.where(valid, x, 0.0) for x in (logp, logp_old, adv, kl))
        logp_old, adv = logp_old.detach(), adv.detach()

        ratio = (logp - logp_old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        surrogate = valid_mean(self._surrogate(ratio, adv, kl), valid)
        if self._penalty is None:
            penalty = torch.zeros_like(surrogate)
        else:
            penalty = self.kl_lambda * valid_mean(self._penalty(kl), valid)
        with torch.no_grad():
            outside = (ratio < self._band[0]) | (ratio > self._band[1])
            metrics = {
                f"kl/{self.direction}": valid_mean(kl, valid).detach(),
                "penalty/lambda": self.kl_lambda.clone(),
                "penalty/loss": penalty.detach(),
                "penalty/share": (penalty.abs() / surrogate.abs().clamp(min=1e-12)).detach(),
                "ratio/mean": valid_mean(ratio, valid),
                "ratio/clip_fraction": valid_mean(outside.to(ratio.dtype), valid),
            }
        return ObjectiveOutput(surrogate + penalty, surrogate, penalty, metrics)

    @torch.no_grad()
    def adapt_(self, kl: Tensor, *, progress: float | Tensor = 0.0) -> None:  # noqa: ARG002
        """Let the controller move λ, in place; call it once per rollout, after the update.

        A NaN leaves λ as it is and +inf is the largest step up, both counted in `nonfinite`; a KL that rounding made
        negative counts as 0.

        Args:
            kl: `[]` nats, mean of `divergence` over the whole rollout at the new θ.
            progress: share of training that is done, in [0, 1], for settings that follow a schedule.

        Raises:
            ValueError: `kl` is not one number.
        """
        kl = torch.as_tensor(kl, dtype=self.kl_lambda.dtype, device=self.kl_lambda.device)
        if kl.dim() != 0:
            raise ValueError(f"adapt_: kl has shape {tuple(kl.shape)}; give its mean over the rollout, shape ()")
        self.nonfinite += ~kl.isfinite()
        moved = self._rule(self.kl_lambda, kl.clamp(min=0))
        if self._adapts:
            moved = moved.clamp(*self._bounds)
        self.kl_lambda.copy_(torch.where(kl.isnan(), self.kl_lambda, moved))

    def controller_metrics(self) -> dict[str, Tensor]:
        """Whether λ stands at a bound (0 or 1), and how many KLs were not finite so far; each `[]`."""
        low, high = self._bounds
        at_bound = ((self.kl_lambda <= low) | (self.kl_lambda >= high)) & self._adapts
        return {
            "penalty/saturated": at_bound.to(self.kl_lambda.dtype),
            "penalty/nonfinite": self.nonfinite.to(self.kl_lambda.dtype),
        }

    @property
    def kl_band(self) -> tuple[float, float] | None:
        """Where the controller leaves λ alone, in nats; none where nothing is controlled."""
        band = getattr(self.config.controller, "band", None)
        return None if self.kl_target is None or band is None else (self.kl_target / band, self.kl_target * band)

    def extra_repr(self) -> str:
        """The three parts, for `print(objective)`."""
        return f"{self.config.surrogate}, {self.config.penalty}, {self.config.controller}"


_SHARED_BY_CONTROLLERS = frozenset({"kl_lambda", "min", "max"})


def _settings(part: Part, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    return {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.name not in without}


def _clip_band(surrogate: Part) -> tuple[float, float]:
    low = getattr(surrogate, "clip_eps", REFERENCE_CLIP_EPS)
    high = getattr(surrogate, "clip_eps_high", None)
    return 1 - low, 1 + (low if high is None else high)


def _require_one_shape(tensors: dict[str, Tensor]) -> None:
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    if len(set(shapes.values())) != 1 or tensors["logp"].dim() != 1:
        raise ValueError(f"objective: every input must have one common shape (B,); got {shapes}")


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
