"""The update: epochs × minibatches of loss -> gradient -> clip -> Adam. The objective is the swap point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from ppo_kl.batch import Batch, minibatches
from ppo_kl.config.training import TrainingConfig
from ppo_kl.errors import CheckpointError
from ppo_kl.objectives.divergence import policy_kl
from ppo_kl.objectives.objective import Objective
from ppo_kl.objectives.reduction import valid_mean
from ppo_kl.policies.actor_critic import ActorCritic, PolicyOutput
from ppo_kl.policies.families import Family
from ppo_kl.training.advantages import normalize_advantages
from ppo_kl.training.engine import ENGINES
from ppo_kl.training.parameters import FlatParameters

BETA1, BETA2 = 0.9, 0.999
MEANS = ("loss/policy", "loss/value", "loss/entropy", "loss/total", "optim/grad_norm")
"""What is averaged over the gradient steps of an update."""


class Learner:
    """Owns the parameters and the optimiser, and makes them better with a batch.

    Args:
        policy: actor and critic; its parameters become views of one flat vector.
        family: what the actor's output means.
        objective: the policy's loss.
        config: epochs, minibatches, optimiser.
        generator: on the CPU, the minibatches' own random stream.
        engine: name of how a step is run.
    """

    def __init__(
        self,
        policy: ActorCritic,
        family: Family,
        objective: Objective,
        config: TrainingConfig,
        generator: torch.Generator,
        engine: str = "eager",
    ) -> None:
        self.policy, self.family, self.objective, self.config = policy, family, objective, config
        self.generator = generator
        self.parameters = FlatParameters(policy)
        flat = self.parameters.flat.detach()
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(flat), torch.zeros_like(flat)
        self.adam_steps = flat.new_zeros(2)
        critic_lr = config.lr if config.critic_lr is None else config.critic_lr
        self._base_lr = flat.new_tensor([config.lr, critic_lr])
        self._lr = self._base_lr.clone()
        self.skipped_in_a_row = flat.new_zeros(())
        stop = config.kl_stop
        threshold = objective.kl_target if stop.threshold is None else stop.threshold
        self._stop_above = None if stop.scope == "off" or threshold is None else stop.multiplier * threshold
        self._stops = torch.tensor([True, stop.stops == "all"], device=flat.device)
        self._stopped = torch.zeros((), dtype=torch.bool, device=flat.device)
        self._last_kl = flat.new_zeros(())
        self._sums = flat.new_zeros(len(MEANS))
        self._applied, self._skipped = flat.new_zeros(()), flat.new_zeros(())
        self._step = ENGINES[engine](self.step)

    def update(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Epochs × minibatches over the batch.

        Args:
            batch: `[B]`; its advantages already normalised, unless that is done by minibatch.
            progress: share of training that is done, in [0, 1); moves a linear learning rate.

        Returns:
            Means over the gradient steps made, and counts, each `[]` on the device.
        """
        config = self.config
        for buffer in (self._stopped, self._sums, self._applied, self._skipped):
            buffer.zero_()
        torch.mul(self._base_lr, 1 - progress if config.lr_schedule == "linear" else 1.0, out=self._lr)
        valid_index = batch.valid.nonzero().squeeze(-1)
        for epoch in range(config.num_epochs if len(valid_index) else 0):
            for index, valid in zip(*minibatches(valid_index, config.minibatch_size, self.generator), strict=True):
                self._step(batch, index, valid)
            more_to_come = epoch + 1 < config.num_epochs
            if self._stop_above is not None and more_to_come:
                self._stopped |= self._last_kl > self._stop_above
                if config.kl_stop.stops == "all" and self._stopped:
                    break
        return {
            **dict(zip(MEANS, self._sums / self._applied, strict=True)),
            "optim/lr": self._lr[0].clone(),
            "optim/steps": self._applied.clone(),
            "optim/skipped": self._skipped.clone(),
            "optim/stopped_early": self._stopped.float(),
        }

    def step(self, batch: Batch, index: Tensor, valid: Tensor) -> None:
        """One gradient step on the rows `index`, of which `valid` count; all on the device, nothing is read.

        A non-finite loss or gradient leaves weights and optimiser as they are and is counted.
        """
        flat = self.parameters.flat
        minibatch = batch.rows(index, valid)
        loss, kl, parts = self.loss(
            functional_call(self.policy, self.parameters.split(flat), (minibatch.obs,)), minibatch
        )
        (grad,) = torch.autograd.grad(loss, flat)
        with torch.no_grad():
            moves = ~(self._stopped & self._stops)
            if self._stop_above is not None:
                # What stands still has no part in the norm either.
                grad = torch.where(self.parameters.by_part(moves), grad, 0.0)
            grad, norm = self._clip(grad)
            finite = loss.isfinite() & norm.isfinite()
            self._adam(grad, finite & moves)
            self._last_kl.copy_(kl)
            means = torch.stack([*parts, loss, norm])
            self._sums += torch.where(finite, means, 0.0)
            self._applied += finite
            self._skipped += ~finite
            self.skipped_in_a_row.copy_(torch.where(finite, 0.0, self.skipped_in_a_row + 1))

    def loss(self, output: PolicyOutput, batch: Batch) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """What a step minimises: objective + vf_coef · value loss − ent_coef · entropy.

        Args:
            output: of the policy at the current θ for the batch's observations.
            batch: a minibatch, `[M]`.

        Returns:
            the loss `[]`; the mean exact KL(π_old ‖ π_θ) `[]`; policy loss, value loss and entropy loss, each `[]`.
        """
        config, valid = self.config, batch.valid
        pi_old, pi = self.family.build(batch.params_old), self.family.build(output.params)
        adv = normalize_advantages(batch.adv, valid) if config.advantage_norm == "minibatch" else batch.adv
        kl = self.objective.divergence(pi_old, pi)
        policy = self.objective(
            logp=pi.log_prob(batch.action), logp_old=batch.logp_old, adv=adv, kl=kl, valid=valid
        ).loss
        value = valid_mean(value_loss(output.value, batch.value_old, batch.ret, config.value_clip), valid)
        entropy = -valid_mean(pi.entropy(), valid)
        total = policy + config.vf_coef * value
        if config.ent_coef > 0:
            total = total + config.ent_coef * entropy
        with torch.no_grad():
            forward = kl if self.objective.direction == "forward" else policy_kl(pi_old, pi)
            mean_kl = valid_mean(forward, valid)
        return total, mean_kl, (policy, value, entropy)

    def _clip(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient, clipped, and its norm before."""
        limit = self.config.max_grad_norm
        norm = grad.norm()
        if limit is None:
            return grad, norm
        if self.config.clip_grad == "joint":
            return grad * (limit / (norm + 1e-6)).clamp(max=1.0), norm
        actor, critic = grad[: self.parameters.num_actor], grad[self.parameters.num_actor :]
        norms = torch.stack([actor.norm(), critic.norm()])
        return grad * self.parameters.by_part((limit / (norms + 1e-6)).clamp(max=1.0)), norm

    def _adam(self, grad: Tensor, moves: Tensor) -> None:
        """Adam on the flat vector, of actor and critic where `moves` (`[2]` bool).

        Source: Kingma & Ba 2015 (arXiv:1412.6980), algorithm 1.
        """
        flat, spread = self.parameters.flat, self.parameters.by_part
        self.adam_steps += moves
        bias1, bias2 = 1 - BETA1**self.adam_steps, 1 - BETA2**self.adam_steps
        exp_avg = torch.lerp(self.exp_avg, grad, 1 - BETA1)
        exp_avg_sq = torch.lerp(self.exp_avg_sq, grad.square(), 1 - BETA2)
        denominator = exp_avg_sq.sqrt() / spread(bias2.sqrt()) + self.config.adam_eps
        moved = flat - spread(self._lr / bias1) * exp_avg / denominator
        where = spread(moves)
        for old, new in ((self.exp_avg, exp_avg), (self.exp_avg_sq, exp_avg_sq), (flat, moved)):
            old.copy_(torch.where(where, new, old))

    def state_dict(self) -> dict[str, Any]:
        """Weights and Adam moments by parameter name, and the minibatches' random stream."""

        def named(vector: Tensor) -> dict[str, Tensor]:
            return {name: x.detach().cpu().clone() for name, x in self.parameters.split(vector).items()}

        return {
            "policy": named(self.parameters.flat),
            "exp_avg": named(self.exp_avg),
            "exp_avg_sq": named(self.exp_avg_sq),
            "adam_steps": self.adam_steps.cpu().clone(),
            "skipped_in_a_row": self.skipped_in_a_row.cpu().clone(),
            "generator": self.generator.get_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; all of it or nothing.

        Raises:
            CheckpointError: names or shapes are not this learner's.
        """
        new = {
            "policy": (self.parameters.flat, self.parameters.join(state["policy"])),
            "exp_avg": (self.exp_avg, self.parameters.join(state["exp_avg"])),
            "exp_avg_sq": (self.exp_avg_sq, self.parameters.join(state["exp_avg_sq"])),
            "adam_steps": (self.adam_steps, state["adam_steps"]),
            "skipped_in_a_row": (self.skipped_in_a_row, state["skipped_in_a_row"]),
        }
        for name, (old, value) in new.items():
            if old.shape != value.shape:
                raise CheckpointError(f"{name}: shape {tuple(value.shape)}, expected {tuple(old.shape)}")
        generator = torch.Generator()
        generator.set_state(state["generator"])
        self.generator = generator
        for old, value in new.values():
            old.copy_(value)


def value_loss(value: Tensor, value_old: Tensor, ret: Tensor, value_clip: float | None) -> Tensor:
    """(V − ret)², or max of it and (V_old + clip(V − V_old, ± c) − ret)².

    Args:
        value: V at the current θ, `[B]`.
        value_old: V at collection, `[B]`.
        ret: `[B]`.
        value_clip: c > 0; none: not clipped.

    Returns:
        `[B]`.

    Source: Schulman 2016 (arXiv:1506.02438), section 5; the clipping is that of OpenAI's baselines (ppo2).
    """
    loss = (value - ret).square()
    if value_clip is None:
        return loss
    clipped = value_old + (value - value_old).clamp(-value_clip, value_clip)
    return torch.maximum(loss, (clipped - ret).square())
