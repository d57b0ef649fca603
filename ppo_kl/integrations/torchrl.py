"""TorchRL: a loss module whose policy loss is an objective of ppo_kl.

from ppo_kl.integrations.torchrl import ObjectiveLoss

loss_module = ObjectiveLoss(actor, critic, objective="kl_adaptive")
...                                  # every minibatch: loss_module(batch), as with ClipPPOLoss
loss_module.adapt_(rollout)          # once per rollout, after its update: λ follows the exact KL
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ppo_kl.config.objective import ObjectiveConfig
from ppo_kl.integrations.adapter import adapt_, as_objective, missing_library
from ppo_kl.objectives.distributions import Joint
from ppo_kl.objectives.divergence import policy_kl
from ppo_kl.objectives.objective import Objective

try:
    from tensordict import TensorDict, TensorDictBase, is_tensor_collection
    from tensordict.nn import (
        CompositeDistribution,
        ProbabilisticTensorDictModule,
        ProbabilisticTensorDictSequential,
        TensorDictModule,
        dispatch,
    )
    from torchrl.envs.utils import set_exploration_type
    from torchrl.modules import set_recurrent_mode
    from torchrl.objectives import PPOLoss
except ImportError as error:
    raise missing_library("torchrl", "torchrl", error) from error

CHUNK = 4096
"""Samples of one pass over the whole rollout; bounds the memory that images take."""
OF_THE_OBJECTIVE = {
    "clip_epsilon": "give it to the objective: objective=Objective.from_preset('clip', clip_eps=0.1)",
    "beta": "give it to the objective: objective=Objective.from_preset('kl_adaptive', kl_lambda=1.0)",
    "dtarg": "give it to the objective: objective=Objective.from_preset('kl_adaptive', kl_target=0.01)",
    "increment": "the rule is the objective's: objective=Objective.from_preset('kl_adaptive', factor=2.0)",
    "decrement": "the rule is the objective's: objective=Objective.from_preset('kl_adaptive', factor=2.0)",
}
"""Where settings of the host's own losses have gone."""
METRICS = ("kl", "kl_lambda", "penalty", "clip_fraction", "mean_ratio", "kl_approx", "ESS")
"""What stands beside the losses in the output, detached, `[]` each."""


class ObjectiveLoss(PPOLoss):
    """A `LossModule` that is `ClipPPOLoss` or `KLPENPPOLoss` or anything between: the objective is a part you swap.

    The input has what the collector wrote with this actor: action, its log-probability and the distribution's
    parameters (`loc` and `scale`, `logits`, …), which are π_old. The output has `loss_objective`, `loss_critic`,
    `loss_entropy`, and `METRICS`: `kl` is the exact KL of the minibatch in the penalty's direction, `kl_lambda` is λ.
    λ moves in `adapt_` alone, never in `forward`, and is in `state_dict()` under `objective.`.

    Args:
        actor_network: a `ProbabilisticActor`, or another `ProbabilisticTensorDictSequential`.
        critic_network: writes `state_value`.
        objective: a preset's name, an `ObjectiveConfig` or an `Objective`.
        num_action_dims: dim(A) of a Box action space, for a `kl_target_per_dim`.
        kwargs: as in `PPOLoss`, but not `delay_actor`, `max_importance_ratio` and a `reduction` other than "mean".

    Raises:
        ConfigError: there is no such objective.
        TypeError: the actor's distribution cannot be rebuilt from its parameters; or a setting that there is not.
        ValueError: one of the settings that an objective has no place for.

    Source: Schulman 2017 (arXiv:1707.06347), eq. 6 to 8.
    """

    objective: Objective
    _in_keys: list[Any] | None
    _out_keys: list[Any] | None

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential | None = None,
        critic_network: TensorDictModule | None = None,
        *,
        objective: str | ObjectiveConfig | Objective = "kl_adaptive",
        num_action_dims: int | None = None,
        **kwargs: Any,
    ) -> None:
        for name, neutral in (("delay_actor", False), ("max_importance_ratio", None), ("reduction", "mean")):
            if kwargs.get(name) not in (neutral, None):
                raise ValueError(
                    f"ObjectiveLoss: {name}={kwargs[name]!r}: the objective is a mean over samples against the policy "
                    f"that collected them; leave {name} at {neutral!r}, or use TorchRL's own loss"
                )
        for name in kwargs.keys() - inspect.signature(PPOLoss.__init__).parameters.keys():
            remedy = OF_THE_OBJECTIVE.get(name, "see the signature of torchrl.objectives.PPOLoss")
            raise TypeError(f"ObjectiveLoss: {name}={kwargs[name]!r} is no setting of a PPO loss; {remedy}")
        actor = kwargs.get("actor", actor_network)
        if actor is not None and len(_heads(actor)) != 1:
            raise TypeError(
                f"ObjectiveLoss: the actor is a {type(actor).__name__} with {len(_heads(actor))} distributions; to "
                "rebuild π_old it must be a ProbabilisticActor, or another ProbabilisticTensorDictSequential, with one "
                "(a CompositeDistribution for several heads)"
            )
        super().__init__(actor_network, critic_network, **kwargs)
        self.objective = as_objective(objective, num_action_dims).to(self.entropy_coeff.device)

    @property
    def out_keys(self) -> list[Any]:
        """The losses there are, and `METRICS`."""
        if self._out_keys is None:
            keys = ["loss_objective", *(["entropy", "loss_entropy"] if self.entropy_bonus else [])]
            keys += ["loss_critic"] if self._has_critic else []
            keys += ["value_clip_fraction"] if self.clip_value else []
            self._out_keys = [*keys, *METRICS]
        return self._out_keys

    @out_keys.setter
    def out_keys(self, values: list[Any]) -> None:
        self._out_keys = values

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        self._in_keys = list({*(self._in_keys or ()), *self._param_keys})

    @property
    def _param_keys(self) -> list[Any]:
        """Where the parameters of the action distribution stand."""
        return list(_heads(self.actor_network)[0].in_keys)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The losses of a minibatch, and what there is to log. Changes nothing.

        Args:
            tensordict: as collected, `[*]`; the advantage is computed if it is not there.

        Raises:
            KeyError: the parameters of the policy at collection are not in the batch.
            NotImplementedError: the policy's distribution has no exact KL; its name is in the message.
        """
        tensordict = tensordict.clone(False)
        pi_old = self._behaviour(tensordict)  # before the actor writes its present parameters over them
        adv = tensordict.get(self.tensor_keys.advantage, None)
        missing = adv is None
        if missing:
            self.value_estimator(
                tensordict,
                params=self._cached_critic_network_params_detached,
                target_params=self.target_critic_network_params,
            )
            adv = tensordict.get(self.tensor_keys.advantage)
        adv = self._maybe_normalize_advantage(adv, tensordict, update_norm=missing)
        shape = adv.shape[:-1]
        log_ratio, pi, *_ = self._log_weight(tensordict, adv_shape=shape)
        if log_ratio.shape != adv.shape:
            raise ValueError(
                f"ObjectiveLoss: advantage {tuple(adv.shape)} and log-ratio {tuple(log_ratio.shape)} must have one "
                "shape (*batch, 1): one advantage and one summed log-probability per sample"
            )
        log_ratio, valid = log_ratio.reshape(-1), self._valid(tensordict, adv)
        out = self.objective(
            logp=log_ratio,
            logp_old=torch.zeros_like(log_ratio),
            adv=adv.reshape(-1),
            kl=policy_kl(pi_old, _joint(pi), self.objective.direction, batch_shape=shape).reshape(-1),
            valid=valid,
        )
        losses = TensorDict({"loss_objective": out.loss})
        if self.entropy_bonus:
            self._set_entropy(losses, tensordict, pi, shape)
        if self._has_critic:
            self._set_critic(losses, tensordict)
        with torch.no_grad():
            counted = log_ratio if valid is None else log_ratio[valid]
            numbers = (
                out.metrics[f"kl/{self.objective.direction}"],
                out.metrics["penalty/lambda"],
                out.metrics["penalty/loss"],
                out.metrics["ratio/clip_fraction"],
                out.metrics["ratio/mean"],
                -counted.mean(),
                (2 * counted.logsumexp(0) - (2 * counted).logsumexp(0)).exp() / len(counted),
            )
        losses.update(dict(zip(METRICS, numbers, strict=True)))
        self._clear_weakrefs(
            tensordict,
            losses,
            "actor_network_params",
            "critic_network_params",
            "target_actor_network_params",
            "target_critic_network_params",
        )
        return losses

    @torch.no_grad()
    def adapt_(self, tensordict: TensorDictBase, progress: float | None = None) -> dict[str, float]:
        """Let λ follow the exact KL of the whole rollout at the present θ; once per rollout, after its update.

        In a `Trainer`: `trainer.register_op("post_steps_log", loss_module.adapt_)`, which also logs what it returns.

        Args:
            tensordict: the whole rollout as collected, `[*]`.
            progress: share of training that is done, in [0, 1], for what follows a schedule; none: it stays.

        Returns:
            Everything about the KL, under the tags of ppo_kl's own log, with the λ of the update that was made.

        Raises:
            KeyError: the parameters of the policy at collection are not in the rollout.
            ValueError: there is no rollout (a trainer that collects asynchronously hands none to its hooks), or no
                sample in it counts.
        """
        if tensordict is None:
            raise ValueError("ObjectiveLoss.adapt_: there is no rollout; an asynchronous collector hands none on")
        if tensordict.ndim == 0 or 0 in tensordict.shape:
            raise ValueError(f"ObjectiveLoss.adapt_: a rollout of batch shape {tuple(tensordict.shape)} has no samples")
        pi_old = self._behaviour(tensordict)
        # A recurrent actor has is_init in its data, and needs each sequence whole.
        recurrent = tensordict.get("is_init", None) is not None
        rows = len(tensordict) if recurrent else max(1, CHUNK * len(tensordict) // tensordict.numel())
        with self._acting():
            params = [self.actor_network.get_dist_params(part.clone(False)) for part in tensordict.split(rows)]
            pi = self.actor_network.build_dist_from_params(torch.cat([p.select(*self._param_keys) for p in params]))
        valid = torch.ones(pi_old.batch_shape, dtype=torch.bool, device=self.objective.kl_lambda.device)
        mask = self._valid(tensordict, valid.unsqueeze(-1))
        if mask is not None:
            valid = mask.view_as(valid)
            if not valid.any():
                raise ValueError("ObjectiveLoss.adapt_: the masks of the rollout leave no sample to measure the KL on")
        return adapt_(self.objective, pi_old, _joint(pi), valid, progress)

    @contextlib.contextmanager
    def _acting(self) -> Iterator[None]:
        """The actor with its present parameters, in evaluation mode, over sequences as in `forward`."""
        actor, training = self.actor_network, self.actor_network.training
        inside = (
            self.actor_network_params.to_module(actor, preserve_module_state=False)
            if self.functional
            else contextlib.nullcontext()
        )
        actor.eval()
        try:
            with set_recurrent_mode(True), set_exploration_type(self.deterministic_sampling_mode), inside:
                yield
        finally:
            actor.train(training)

    def _behaviour(self, tensordict: TensorDictBase) -> Distribution:
        """π_old, from the parameters that the collector stored."""
        absent = [key for key in self._param_keys if tensordict.get(key, None) is None]
        if absent:
            raise KeyError(
                f"ObjectiveLoss: {absent} of the policy at collection are not in the batch, which has "
                f"{sorted(map(str, tensordict.keys()))}; the exact KL needs them: collect with this actor and keep them"
            )
        with torch.no_grad():
            return _joint(self.actor_network.build_dist_from_params(tensordict))

    def _valid(self, tensordict: TensorDictBase, like: Tensor) -> Tensor | None:
        """Which samples count, `[B]`, by the masks that every TorchRL loss respects; none: all."""
        masks = [tensordict.get(key, default=None) for key in self._loss_mask_keys()]
        expanded = [self._expand_loss_mask(mask, like).reshape(-1) for mask in masks if mask is not None]
        return torch.stack(expanded).all(0) if expanded else None

    def _set_entropy(self, losses: TensorDict, tensordict: TensorDictBase, pi: Any, shape: Sequence[int]) -> None:
        """As `PPOLoss` does."""
        entropy = self._get_entropy(pi, adv_shape=shape)
        if is_tensor_collection(entropy):
            losses.set("composite_entropy", entropy.detach())
            losses.set("entropy", sum(entropy.detach().values(True, True)).mean())
        else:
            losses.set("entropy", entropy.detach().mean())
        losses.set("loss_entropy", self._reduce_loss(self._weighted_loss_entropy(entropy), tensordict).squeeze(-1))

    def _set_critic(self, losses: TensorDict, tensordict: TensorDictBase) -> None:
        """As `PPOLoss` does."""
        loss_critic, clip_fraction, explained_variance = self.loss_critic(tensordict)
        losses.set("loss_critic", self._reduce_loss(loss_critic, tensordict).squeeze(-1))
        for name, number in (("value_clip_fraction", clip_fraction), ("explained_variance", explained_variance)):
            if number is not None:
                losses.set(name, number)


def _heads(actor: Any) -> list[ProbabilisticTensorDictModule]:
    """What makes a distribution of parameters in the actor; nothing if it is not of the kind that has them apart."""
    if not isinstance(actor, ProbabilisticTensorDictSequential):
        return []
    return [module for module in actor.modules() if isinstance(module, ProbabilisticTensorDictModule)]


def _joint(dist: Distribution) -> Distribution:
    """Several heads as one distribution, whose KL is the sum of theirs; any other as it is."""
    return Joint(list(dist.dists.values()), validate_args=False) if isinstance(dist, CompositeDistribution) else dist
