"""The swap point: an objective sees four per-sample tensors and nothing else, in anybody's trainer."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppo_kl.config.objective import Adapting, Band, Controller, NoPenalty, ObjectiveConfig, Part, Penalty, Surrogate
from ppo_kl.config.presets import preset
from ppo_kl.errors import ConfigError
from ppo_kl.objectives.controllers import CONTROLLERS
from ppo_kl.objectives.distributions import at_least_float32
from ppo_kl.objectives.divergence import Direction, policy_kl
from ppo_kl.objectives.penalties import PENALTIES, hinge
from ppo_kl.objectives.reduction import valid_mean
from ppo_kl.objectives.surrogates import SURROGATES

MAX_LOG_RATIO = 20.0
"""log r is clamped to ± this in every row: unclamped, clip's gradient is NaN from 89 in float32."""
REFERENCE_CLIP_EPS = 0.2
"""The band in which objectives that do not clip count their ratios, so that they compare with those that do."""
NARROWEST_BAND = 0.01
"""Share of clip_eps that a linear schedule leaves: ε (1 − p), never 0."""


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


def _of_one_process(mean: Tensor) -> Tensor:
    """The mean over processes where there is but one."""
    return mean


class Objective(nn.Module):
    """PPO's policy-update objective: mean surrogate(r, A, D) + λ · mean P, λ moved by a controller.

        kl  = objective.divergence(pi_old, pi)
        out = objective(logp=pi.log_prob(a), logp_old=logp_old, adv=adv, kl=kl)
        ...                                                        # once per rollout, after its update:
        objective.adapt_(objective.divergence(pi_old_all, pi_all).mean())

    `forward` changes nothing. λ is a 0-dim buffer: it moves with `.to(device)`, is saved in `state_dict` beside what
    its controller remembers and how far training is, and changes only in `adapt_` and `schedule_`, in place.

    Args:
        config: surrogate, penalty and controller; see also `from_preset`.
        num_action_dims: dim(A) of a Box action space, for a `kl_target_per_dim`.
        all_mean: mean of a `[]` tensor over processes, for the hinge's minibatch mean; as it is where there is but one.

    Raises:
        ConfigError: `kl_target_per_dim` without `num_action_dims`.
    """

    kl_lambda: Tensor
    progress: Tensor
    memory: Tensor
    nonfinite: Tensor

    def __init__(
        self,
        config: ObjectiveConfig,
        *,
        num_action_dims: int | None = None,
        all_mean: Callable[[Tensor], Tensor] = _of_one_process,
    ) -> None:
        super().__init__()
        self.config, self.num_action_dims = config, num_action_dims
        surrogate, penalty, controller = config.surrogate, config.penalty, config.controller
        self._surrogate, self._surrogate_settings = SURROGATES[surrogate.kind], _settings(surrogate)
        self._rule, self._rule_settings = CONTROLLERS[controller.kind], _settings(controller)
        self._asked = frozenset(inspect.signature(self._rule).parameters)
        self.direction: Direction = penalty.direction
        self._target_at_start = _target(controller, num_action_dims)
        self._bounds = (controller.min, controller.max) if isinstance(controller, Adapting) else None
        # A λ that is 0 for good leaves the term out: 0 · inf would be NaN.
        idle = isinstance(penalty, NoPenalty) or controller.idle
        self._penalty = None if idle else partial(PENALTIES[penalty.kind], **_settings(penalty))
        self._hinge = float(getattr(penalty, "hinge", 0.0))
        self._all_mean = all_mean
        self.register_buffer("kl_lambda", torch.tensor(float(getattr(controller, "kl_lambda", 0.0))))
        self.register_buffer("progress", torch.tensor(0.0))
        self.register_buffer("memory", torch.zeros(controller.memory))
        self.register_buffer("nonfinite", torch.tensor(0))
        self.schedule_(0.0)

    @classmethod
    def from_preset(cls, name: str, *, num_action_dims: int | None = None, **settings: Any) -> Objective:
        """The preset `name`, single settings replaced: `Objective.from_preset("kl_adaptive", kl_target=0.02)`.

        Raises:
            ConfigError: unknown preset or setting, or a value out of range.
        """
        return cls(preset(name, **settings), num_action_dims=num_action_dims)

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
        surrogate, penalty, ratio, kl, valid = self._parts(logp, logp_old, adv, kl, valid)
        with torch.no_grad():
            low, high = _clip_band(self._surrogate_now())
            outside = (ratio < low) | (ratio > high)
            if penalty is None:
                weight = share = torch.zeros_like(surrogate)
            else:
                weight, share = penalty.detach(), penalty.abs() / surrogate.abs().clamp(min=1e-12)
            metrics = {
                f"kl/{self.direction}": valid_mean(kl, valid),
                "penalty/lambda": self.kl_lambda.clone(),
                "penalty/loss": weight,
                "penalty/share": share,
                "ratio/mean": valid_mean(ratio, valid),
                "ratio/clip_fraction": valid_mean(outside.to(ratio.dtype), valid),
            }
        if penalty is None:
            return ObjectiveOutput(surrogate, surrogate, weight, metrics)
        return ObjectiveOutput(surrogate + penalty, surrogate, penalty, metrics)

    def loss(self, *, logp: Tensor, logp_old: Tensor, adv: Tensor, kl: Tensor, valid: Tensor | None = None) -> Tensor:
        """The loss alone, `[]`, for a trainer that has no use for the rest in every minibatch; see `forward`."""
        surrogate, penalty, *_ = self._parts(logp, logp_old, adv, kl, valid)
        return surrogate if penalty is None else surrogate + penalty

    def _parts(
        self, logp: Tensor, logp_old: Tensor, adv: Tensor, kl: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
        """Surrogate and penalty, `[]`, and what they were computed from: ratio and KL, `[B]`, and which rows count."""
        tensors = {"logp": logp, "logp_old": logp_old, "adv": adv, "kl": kl}
        if valid is not None:
            tensors["valid"] = valid
        _require_one_shape(tensors)
        logp, logp_old, adv, kl = (at_least_float32(x) for x in (logp, logp_old, adv, kl))
        if valid is not None:
            valid = valid.bool()
            logp, logp_old, adv, kl = (torch.where(valid, x, 0.0) for x in (logp, logp_old, adv, kl))
        logp_old, adv = logp_old.detach(), adv.detach()

        log_ratio = (logp - logp_old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        ratio = log_ratio.exp()
        surrogate = valid_mean(self._surrogate(ratio=ratio, adv=adv, kl=kl, **self._surrogate_now()), valid)
        return surrogate, self._penalty_now(kl, log_ratio, valid), ratio, kl, valid

    def _penalty_now(self, kl: Tensor, log_ratio: Tensor, valid: Tensor | None) -> Tensor | None:
        """λ · mean penalty + hinge, `[]`; none where there is neither."""
        penalty = None
        if self._penalty is not None:
            penalty = self.kl_lambda * valid_mean(self._penalty(kl=kl, log_ratio=log_ratio), valid)
        if self._hinge > 0 and self.kl_target is not None:
            mean_kl = valid_mean(kl, valid)
            # The value is that of all processes, the gradient this one's, which the trainer then averages.
            mean_kl = mean_kl + (self._all_mean(mean_kl.detach()) - mean_kl.detach())
            term = hinge(mean_kl, self.kl_target, self._hinge)
            penalty = term if penalty is None else penalty + term
        return penalty

    @torch.no_grad()
    def adapt_(self, kl: Tensor, *, progress: float | Tensor | None = None) -> None:
        """Let the controller move λ, in place; call it once per rollout, after the update.

        A NaN leaves λ as it is and +inf is the largest step up, both counted in `nonfinite`; a KL that rounding made
        negative counts as 0.

        Args:
            kl: `[]` nats, mean of `divergence` over the whole rollout at the new θ.
            progress: as `schedule_`, which is then called for the next rollout; none: it is called by other hands.

        Raises:
            ValueError: `kl` is not one number.
        """
        kl = torch.as_tensor(kl, dtype=self.kl_lambda.dtype, device=self.kl_lambda.device)
        if kl.dim() != 0:
            raise ValueError(f"adapt_: kl has shape {tuple(kl.shape)}; give its mean over the rollout, shape ()")
        self.nonfinite += ~kl.isfinite()
        if self.follows_kl:
            moved, memory = self._ruled(kl.clamp(min=0))
            for buffer, new in ((self.kl_lambda, moved), (self.memory, memory)):
                buffer.copy_(torch.where(kl.isnan(), buffer, new))
        if progress is not None:
            self.schedule_(progress)

    @torch.no_grad()
    def schedule_(self, progress: float | Tensor) -> None:
        """Take what follows a schedule (ε, kl_target, a scheduled λ) to where training stands, in place.

        Args:
            progress: share of training that is done, in [0, 1]; a tensor is clamped to that.

        Raises:
            ValueError: `progress` is a number outside [0, 1].
        """
        if not isinstance(progress, Tensor) and not 0 <= progress <= 1:
            raise ValueError(f"schedule_: progress={progress!r}; give the share of training that is done, in [0, 1]")
        if isinstance(progress, Tensor):
            self.progress.copy_(progress.clamp(0, 1))
        else:
            self.progress.fill_(progress)  # a tensor made of it would have to be waited for on its way to a GPU
        if not self.follows_kl:
            self.kl_lambda.copy_(self._ruled(None)[0])

    def set_clip_eps_(self, clip_eps: float) -> None:
        """Take the half-width ε of the band from other hands, as a trainer's own schedule of it; no gradient, no state.

        Args:
            clip_eps: ε, for both sides; below 0, where a schedule overshoots its end, what `torch.clamp` makes of it.

        Raises:
            ValueError: ε is not finite, or the objective has no band of one constant width to set.
        """
        surrogate = self.config.surrogate
        if not takes_clip_eps(surrogate):
            raise ValueError(f"set_clip_eps_: {surrogate} has no band with one constant ε; change its settings instead")
        if not math.isfinite(clip_eps):
            raise ValueError(f"set_clip_eps_: clip_eps={clip_eps!r}; give a finite number")
        self._surrogate_settings["clip_eps"] = clip_eps

    def _ruled(self, kl: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the controller's rule answers, λ within its bounds, and its memory."""
        known = {
            "kl_lambda": self.kl_lambda,
            "kl": kl,
            "kl_target": self.kl_target,
            "initial": getattr(self.config.controller, "kl_lambda", 0.0),
            "progress": self.progress,
            "memory": self.memory,
        }
        answer = self._rule(**{name: known[name] for name in known.keys() & self._asked}, **self._rule_settings)
        moved, memory = answer if isinstance(answer, tuple) else (answer, self.memory)
        if self._bounds is not None:
            moved = moved.clamp(*self._bounds)
        return moved, memory

    def _surrogate_now(self) -> dict[str, Any]:
        """The surrogate's settings, its band as narrow as the schedule has made it."""
        settings = dict(self._surrogate_settings)
        if isinstance(self.config.surrogate, Band) and self.config.surrogate.clip_eps_schedule == "linear":
            left = (1 - self.progress).clamp(min=NARROWEST_BAND)
            for name in ("clip_eps", "clip_eps_high"):
                settings[name] = None if settings[name] is None else settings[name] * left
        return settings

    def controller_metrics(self) -> dict[str, Tensor]:
        """Whether λ stands at a bound (0 or 1), and how many KLs were not finite so far; each `[]`."""
        low, high = self._bounds or (-torch.inf, torch.inf)
        at_bound = (self.kl_lambda <= low) | (self.kl_lambda >= high)
        return {
            "penalty/saturated": at_bound.to(self.kl_lambda.dtype),
            "penalty/nonfinite": self.nonfinite.to(self.kl_lambda.dtype),
        }

    @property
    def constants(self) -> tuple[Any, ...]:
        """What `forward` reads beside tensors: whoever compiles it does so anew where these have changed."""
        return (*self._surrogate_settings.items(), self.config.penalty, self._target_at_start)

    @property
    def follows_kl(self) -> bool:
        """Whether λ answers the KL; a fixed or scheduled one does not."""
        return "kl" in self._asked

    @property
    def kl_target(self) -> float | Tensor | None:
        """The KL wanted of this rollout's update, in nats: a number, or `[]` where it falls; none without a target."""
        controller = self.config.controller
        if self._target_at_start is None or not isinstance(controller, Adapting) or controller.kl_target_final == 1:
            return self._target_at_start
        return self._target_at_start * (1 - (1 - controller.kl_target_final) * self.progress)

    @property
    def kl_band(self) -> tuple[float | Tensor, float | Tensor] | None:
        """Where the controller leaves λ alone, in nats; the target twice where it never does; none without a target."""
        target, controller = self.kl_target, self.config.controller
        if target is None or not isinstance(controller, Adapting):
            return None
        low, high = controller.dead_zone
        return low * target, high * target

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves with its parent to another device, but stays in float32: in bfloat16 λ could not move by 0.3 %."""
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self

    def extra_repr(self) -> str:
        """The three parts, for `print(objective)`."""
        return f"{self.config.surrogate}, {self.config.penalty}, {self.config.controller}"


def takes_clip_eps(surrogate: Surrogate) -> bool:
    """Whether the surrogate has a band of one constant width, so that another hand can set it."""
    return isinstance(surrogate, Band) and surrogate.clip_eps_high is None and surrogate.clip_eps_schedule == "constant"


KEPT: dict[type[Part], frozenset[str]] = {
    Band: frozenset({"clip_eps_schedule"}),
    Penalty: frozenset({"hinge"}),
    Controller: frozenset({"kl_lambda"}),
    Adapting: frozenset(f.name for f in dataclasses.fields(Adapting)),
}
"""Settings that the objective itself looks after, in parts of that class, and does not hand on to their function."""


def handed_on(part: type[Part]) -> list[str]:
    """Names of the settings that the part's function is called with beside its tensors."""
    kept = {name for cls, names in KEPT.items() if issubclass(part, cls) for name in names}
    return [f.name for f in dataclasses.fields(part) if f.name not in kept]


def _settings(part: Part) -> dict[str, Any]:
    return {name: getattr(part, name) for name in handed_on(type(part))}


def _target(controller: Controller, num_action_dims: int | None) -> float | None:
    """The KL target at the start of training, nats."""
    if not isinstance(controller, Adapting):
        return None
    if controller.kl_target_per_dim is None:
        return controller.kl_target
    if num_action_dims is None:
        raise ConfigError(
            f"objective.controller.kl_target_per_dim={controller.kl_target_per_dim!r}: only Box actions have "
            "dimensions to count; give kl_target instead (in one's own trainer: Objective(config, num_action_dims=3))",
            "kl_target_per_dim",
        )
    return controller.kl_target_per_dim * num_action_dims


def _clip_band(settings: dict[str, Any]) -> tuple[float | Tensor, float | Tensor]:
    low = settings.get("clip_eps", REFERENCE_CLIP_EPS)
    high = settings.get("clip_eps_high")
    return 1 - low, 1 + (low if high is None else high)


def _require_one_shape(tensors: dict[str, Tensor]) -> None:
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    # Compared, not put into a set: a compiler that is to serve any B would have to settle on one.
    if tensors["logp"].dim() != 1 or any(shape != shapes["logp"] for shape in shapes.values()):
        raise ValueError(f"objective: every input must have one common shape (B,); got {shapes}")
