"""The update: epochs × minibatches of loss -> gradient -> clip -> Adam. The objective is the swap point."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppo_kl.batch import Batch, cut, layout, minibatches, tensors_in
from ppo_kl.config.training import TrainingConfig
from ppo_kl.errors import CheckpointError
from ppo_kl.objectives.divergence import policy_kl, require_kl
from ppo_kl.objectives.objective import Objective
from ppo_kl.objectives.reduction import valid_mean
from ppo_kl.policies.actor_critic import ActorCritic, Policy, PolicyOutput, old_and_new
from ppo_kl.policies.families import Family
from ppo_kl.policies.networks import prefer_fast
from ppo_kl.training.advantages import normalize_advantages
from ppo_kl.training.engine import CompiledStep, Guards, ReplayedStep, Step, gradients_are_traced, of_any_length
from ppo_kl.training.kl_stop import EarlyStop
from ppo_kl.training.learning_rate import kl_adaptive_lr
from ppo_kl.training.parameters import FlatParameters, name_in_checkpoint

BETA1, BETA2 = 0.9, 0.999
MEANS = ("loss/policy", "loss/value", "loss/entropy", "loss/total", "optim/grad_norm")
"""What is averaged over the gradient steps of an update."""
SHOWN_EPOCHS = 10
"""Of more epochs the log has these many, evenly spaced, the first and the last among them."""


class Losses(NamedTuple):
    """What a minibatch says: what a step minimises, its parts, and how far the policy is from π_old; each `[]`."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    kl: Tensor
    """Exact mean KL(π_old ‖ π_θ), nats."""
    stop_kl: Tensor
    """The same by the estimator of `kl_stop`."""


class Learner:
    """Owns the parameters and the optimiser, and makes them better with a batch.

    Args:
        policy: actor and critic; its parameters become views of one flat vector.
        family: what the actor's output means.
        objective: the policy's loss.
        config: epochs, minibatches, optimiser.
        generator: on the CPU, the minibatches' own random stream.

    Raises:
        NotImplementedError: the family's distribution has no exact KL; its name is in the message.
    """

    def __init__(
        self,
        policy: Policy,
        family: Family,
        objective: Objective,
        config: TrainingConfig,
        generator: torch.Generator,
    ) -> None:
        self.policy, self.family, self.objective, self.config = policy, family, objective, config
        self._module = cast(nn.Module, policy)
        self.generator = generator
        self.parameters = FlatParameters(self._module)
        flat = self.parameters.flat.detach()
        require_kl(family.build(flat.new_zeros(1, family.num_params)))  # here, by name, and not in the first update
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(flat), torch.zeros_like(flat)
        self.adam_steps = flat.new_zeros(2)
        critic_lr = config.lr if config.critic_lr is None else config.critic_lr
        self._base_lr = flat.new_tensor([config.lr, critic_lr])
        self._lr = self._base_lr.clone()
        self.skipped_in_a_row = flat.new_zeros(())
        self.early_stop = EarlyStop(config.kl_stop, objective, flat.device)
        self._apart = config.critic_lr is not None or self.early_stop.on or config.lr_schedule == "kl_adaptive"
        self._kl_by_minibatch = config.lr_schedule == "kl_adaptive" and config.lr_kl_cadence == "minibatch"
        self._kl_by_epoch = config.lr_schedule == "kl_adaptive" and config.lr_kl_cadence == "epoch"
        self._epoch_kl = flat.new_zeros(2)
        self._shown_epochs = _shown_epochs(config.num_epochs)
        self._sums = flat.new_zeros(len(MEANS))
        self._applied, self._skipped = flat.new_zeros(()), flat.new_zeros(())
        self.compiled: CompiledStep | None = None
        self.replayed: ReplayedStep | None = None
        self._functional_gradient = False

    def compile(self) -> None:
        """From now on run gradient steps as one compiled graph; what they compute stays the same, up to rounding."""
        device = self.parameters.flat.device
        if device.type == "cpu":
            prefer_fast(self._module)
        self.compiled = CompiledStep(self.step, device, self._guards())
        if self.replayed is not None:
            self.replayed = ReplayedStep(device)  # of compiled steps from now on

    def replay(self) -> None:
        """From now on replay gradient steps as CUDA graphs, where they are on a GPU and always the same."""
        device = self.parameters.flat.device
        if device.type == "cuda" and self._guards() == "none":
            self.replayed = ReplayedStep(device)

    def _guards(self) -> Guards:
        # A network of the user's may look at what changes, and of sequences there are as many as episodes have it.
        if not isinstance(self.policy, ActorCritic):
            return "all"
        return "shapes" if self.policy.initial_state(1) else "none"

    def update(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Epochs × minibatches over the batch.

        Args:
            batch: `[B]`; its advantages already normalised, unless that is done by minibatch.
            progress: share of training that is done, in [0, 1); moves a linear learning rate.

        Returns:
            Means over the gradient steps made, counts, and the mean KL that the minibatches of an epoch met, of at most
            `SHOWN_EPOCHS` epochs; each `[]` on the device.
        """
        config, stop = self.config, self.early_stop
        stop.begin_()
        for buffer in (self._sums, self._applied, self._skipped, self._epoch_kl):
            buffer.zero_()
        if config.lr_schedule != "kl_adaptive":
            torch.mul(self._base_lr, 1 - progress if config.lr_schedule == "linear" else 1.0, out=self._lr)
        profile: dict[str, Tensor] = {}
        units = batch.units()
        num_rows = int(batch.valid.sum()) if batch.state else len(units)
        # A graph is for one shape, also in rollouts in which some rows are no transitions.
        as_graphs = self.compiled is not None or self.replayed is not None
        varies = as_graphs and num_rows < len(batch.valid) and not batch.state
        width = min(config.minibatch_size, len(batch.valid)) if varies else None
        for epoch in range(config.num_epochs if num_rows else 0):
            if epoch > 0 and stop.between_epochs_(lambda: self._stop_kl(batch)):
                break
            dealt = minibatches(units, config.minibatch_size, self.generator, num_rows, width)
            all_count = dealt[0].numel() == len(units) and not batch.state
            step: Step | None = None
            for minibatch in cut(batch, *dealt, all_count=all_count):
                step = self._step_for(minibatch) if step is None else step
                step(minibatch)
                if stop.ends_epoch():
                    break
            mean_kl = self._epoch_kl[0] / self._epoch_kl[1]
            self._epoch_kl.zero_()
            if self._kl_by_epoch:
                self._adapt_lr(mean_kl)
            if epoch + 1 in self._shown_epochs:
                profile[f"kl/epoch_{epoch + 1}"] = mean_kl
        return {
            **profile,
            **dict(zip(MEANS, self._sums / self._applied, strict=True)),
            "optim/lr": self._lr[0].clone(),
            "optim/steps": self._applied.clone(),
            "optim/skipped": self._skipped.clone(),
            "optim/stopped_early": stop.stopped.float(),
        }

    def _step_for(self, minibatch: Batch) -> Step:
        """How a step on minibatches like this one is run."""
        if self.compiled is None and self.replayed is None:
            return self.step
        autocast = torch.is_autocast_enabled(self.parameters.flat.device.type)
        key = layout(minibatch, sizes=not minibatch.state), self.objective.constants, autocast
        step: Step = self.step
        if self.compiled is not None:
            self._functional_gradient = not gradients_are_traced()
            step = self.compiled.of(key)
        if self.replayed is not None and not autocast:  # which keeps what it casts, from one step to the next
            return self.replayed.of(key, step)
        if not minibatch.state or len(minibatch.state[0]) == 1:
            return step

        def of_any_number(minibatch: Batch) -> None:
            of_any_length(x for _, x in tensors_in(minibatch))
            step(minibatch)

        return of_any_number

    def step(self, minibatch: Batch) -> None:
        """One gradient step; all on the device, nothing is read.

        A non-finite loss or gradient leaves weights and optimiser as they are and is counted.
        """
        losses, grad = self._losses_and_gradient(minibatch)
        with torch.no_grad():
            self.early_stop.before_step_(losses.stop_kl)
            moves = self.early_stop.moves()
            if self.early_stop.on:
                # What stands still has no part in the norm either.
                grad = torch.where(self.parameters.by_part(moves), grad, 0.0)
            grad, norm = self._clip(grad)
            if self._kl_by_minibatch:
                self._adapt_lr(losses.kl)
            self._epoch_kl += torch.stack([losses.kl, torch.ones_like(losses.kl)])
            finite, made = losses.total.isfinite() & norm.isfinite(), moves.any()
            self._adam(grad, finite & moves)
            means = torch.stack([losses.policy, losses.value, losses.entropy, losses.total, norm])
            applied = finite & made
            self._sums += torch.where(applied, means, 0.0)
            self._applied += applied
            self._skipped += ~finite & made
            in_a_row = torch.where(finite, 0.0, self.skipped_in_a_row + 1)
            self.skipped_in_a_row.copy_(torch.where(made, in_a_row, self.skipped_in_a_row))

    def _losses_and_gradient(self, minibatch: Batch) -> tuple[Losses, Tensor]:
        """What the minibatch says at the present θ, and the gradient of its total, `[n]`."""
        if not torch.compiler.is_compiling():
            losses = self.loss(self.policy(minibatch.obs, minibatch.state), minibatch)
            return losses, self.parameters.gradient(losses.total)

        def losses_at(flat: Tensor) -> tuple[Tensor, Losses]:
            given = (minibatch.obs, minibatch.state)
            output = functional_call(self._module, self.parameters.split(flat), given)
            params_old = _laid_out_as(output.params, minibatch.params_old)
            losses = self.loss(output, minibatch._replace(params_old=params_old))
            return losses.total, losses

        # One tensor goes in and is written to; a graph would have to find out which of many share its memory.
        flat = self.parameters.flat
        if self._functional_gradient:
            grad, losses = torch.func.grad(losses_at, has_aux=True)(flat)
        else:
            total, losses = losses_at(flat)
            (grad,) = torch.autograd.grad(total, flat)
        return losses, grad

    def _adapt_lr(self, kl: Tensor) -> None:
        """Move the learning rates by the KL, but not once the actor stands still."""
        moved = kl_adaptive_lr(self._lr, kl, self.config.lr_kl_target)
        self._lr.copy_(torch.where(self.early_stop.stopped, self._lr, moved))

    @torch.no_grad()
    def _stop_kl(self, batch: Batch) -> Tensor:
        """The whole batch's KL by the estimator of `kl_stop`, `[]` nats."""
        pi_old, pi = old_and_new(self.family, batch, self.policy(batch.obs, batch.state))
        log_ratio = pi.log_prob(batch.action) - batch.logp_old
        return self.early_stop.estimate(policy_kl(pi_old, pi), log_ratio, batch.valid)

    def loss(self, output: PolicyOutput, batch: Batch) -> Losses:
        """What a step minimises: objective + vf_coef · value loss − ent_coef · entropy.

        Args:
            output: of the policy at the current θ for the batch's observations.
            batch: a minibatch, `[M]`.

        Returns:
            the loss, its parts, and how far the policy is from π_old.
        """
        config, valid = self.config, None if batch.all_count else batch.valid
        pi_old, pi = old_and_new(self.family, batch, output)
        adv = normalize_advantages(batch.adv, valid) if config.advantage_norm == "minibatch" else batch.adv
        kl, logp = self.objective.divergence(pi_old, pi), pi.log_prob(batch.action)
        policy = self.objective.loss(logp=logp, logp_old=batch.logp_old, adv=adv, kl=kl, valid=valid)
        value = valid_mean(value_loss(output.value, batch.value_old, batch.ret, config.value_clip), valid)
        entropy = -valid_mean(pi.entropy(), valid)
        total = policy + config.vf_coef * value
        if config.ent_coef > 0:
            total = total + config.ent_coef * entropy
        with torch.no_grad():
            forward = kl if self.objective.direction == "forward" else policy_kl(pi_old, pi)
            mean_kl = stop_kl = valid_mean(forward, valid)
            if self.early_stop.on:
                stop_kl = self.early_stop.estimate(forward, logp - batch.logp_old, valid)
        return Losses(total, policy, value, entropy, mean_kl, stop_kl)

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
        flat, spread = self.parameters.flat, self._spread
        self.adam_steps += moves
        steps = self.adam_steps.clamp(min=1)
        # Where nothing moves, everything is moved by 0: cheaper than to choose between before and after.
        share = moves.to(flat.dtype)
        size, scale = share * self._lr / (1 - BETA1**steps), (1 - BETA2**steps).sqrt()
        # Side by side in memory: else a graph would compute them anew, powers and all, for every eight parameters.
        share, size, scale = map(spread, torch.stack([share, size, scale]))
        grad = torch.where(spread(moves), grad, 0.0)
        self.exp_avg.lerp_(grad, (1 - BETA1) * share)
        self.exp_avg_sq.lerp_(grad.square(), (1 - BETA2) * share)
        flat -= size * self.exp_avg / (self.exp_avg_sq.sqrt() / scale + self.config.adam_eps)

    def _spread(self, actor_critic: Tensor) -> Tensor:
        """`[2]` over the parameters, `[n]`; one number where actor and critic are always moved alike."""
        return self.parameters.by_part(actor_critic) if self._apart else actor_critic[0]

    def state_dict(self) -> dict[str, Any]:
        """Weights and Adam moments by parameter name, and the minibatches' random stream."""

        def named(vector: Tensor) -> dict[str, Tensor]:
            split = self.parameters.split(vector)
            return {name_in_checkpoint(name): x.detach().cpu().clone() for name, x in split.items()}

        return {
            "policy": named(self.parameters.flat),
            "exp_avg": named(self.exp_avg),
            "exp_avg_sq": named(self.exp_avg_sq),
            "adam_steps": self.adam_steps.cpu().clone(),
            "lr": self._lr.cpu().clone(),
            "skipped_in_a_row": self.skipped_in_a_row.cpu().clone(),
            "buffers": {name: x.detach().cpu().clone() for name, x in self._buffers().items()},
            "generator": self.generator.get_state(),
        }

    def _buffers(self) -> dict[str, Tensor]:
        """What the policy saves beside its parameters: of use to networks of the user's."""
        parameters = set(self.parameters.names)
        state = self._module.state_dict()
        return {name_in_checkpoint(name): x for name, x in state.items() if name not in parameters}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; all of it or nothing.

        Raises:
            CheckpointError: names or shapes are not this learner's.
        """
        new = self._weights_in(state) | {
            "exp_avg": (self.exp_avg, self.parameters.join(state["exp_avg"])),
            "exp_avg_sq": (self.exp_avg_sq, self.parameters.join(state["exp_avg_sq"])),
            "adam_steps": (self.adam_steps, state["adam_steps"]),
            "lr": (self._lr, state["lr"]),
            "skipped_in_a_row": (self.skipped_in_a_row, state["skipped_in_a_row"]),
        }
        _require_shapes(new)
        generator = torch.Generator()
        generator.set_state(state["generator"])
        self.generator = generator
        for old, value in new.values():
            old.copy_(value)

    @torch.no_grad()
    def load_weights(self, state: dict[str, Any]) -> None:
        """Take over the policy alone of what `state_dict` gave; optimiser and random stream stay.

        Raises:
            CheckpointError: names or shapes are not this learner's; nothing was loaded.
        """
        new = self._weights_in(state)
        _require_shapes(new)
        for old, value in new.values():
            old.copy_(value)

    def _weights_in(self, state: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """By name: what the policy is made of, and what is to be put in its place."""
        buffers = self._buffers()
        if buffers.keys() != state["buffers"].keys():
            raise CheckpointError(f"buffers {sorted(state['buffers'])}, expected {sorted(buffers)}")
        weights = {"policy": (self.parameters.flat, self.parameters.join(state["policy"]))}
        return weights | {name: (old, state["buffers"][name]) for name, old in buffers.items()}


def _require_shapes(new: dict[str, tuple[Tensor, Tensor]]) -> None:
    for name, (old, value) in new.items():
        if old.shape != value.shape:
            raise CheckpointError(f"{name}: shape {tuple(value.shape)}, expected {tuple(old.shape)}")


FEW = 16
"""Columns at most that a graph copies one by one."""


def _laid_out_as(params: Tensor, params_old: Tensor) -> Tensor:
    """The old policy's parameters, column by column in memory where the new ones are: then one loop goes over both."""
    by_columns = params.stride(0) == 1 and params.shape[1] <= FEW
    # Joined from copies, since of a mere change of order nothing would be left in the graph.
    return torch.stack([x.clone() for x in params_old.unbind(1)]).T if by_columns else params_old


def _shown_epochs(num_epochs: int) -> set[int]:
    shown = min(num_epochs, SHOWN_EPOCHS)
    return {1 + round(i * (num_epochs - 1) / max(shown - 1, 1)) for i in range(shown)}


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
