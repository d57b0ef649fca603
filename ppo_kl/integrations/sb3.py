"""Stable-Baselines3: its PPO with the objective as a part you swap.

from ppo_kl.integrations.sb3 import PPOKL as PPO

PPO("MlpPolicy", "CartPole-v1", objective="kl_adaptive").learn(100_000)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Distribution as TorchDistribution
from torch.nn.functional import mse_loss

from ppo_kl.config.objective import ObjectiveConfig
from ppo_kl.integrations.adapter import adapt_, as_objective, missing_library
from ppo_kl.integrations.sb3_distributions import kind_of, torch_distribution
from ppo_kl.objectives.objective import REFERENCE_CLIP_EPS, Objective, takes_clip_eps

try:
    from stable_baselines3 import PPO
    from stable_baselines3.common.buffers import RolloutBuffer
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.type_aliases import GymEnv, RolloutBufferSamples, Schedule
    from stable_baselines3.common.utils import explained_variance
except ImportError as error:
    raise missing_library("sb3", "sb3", error) from error

CHUNK = 512
"""Rows of one pass over the whole rollout; bounds the memory that images take."""
LOSSES = ("loss", "policy_gradient_loss", "penalty_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction")
"""What is logged of every minibatch under `train/`; `policy_gradient_loss` is the objective, its penalty included."""
APPROX_KL = LOSSES.index("approx_kl")
"""SB3's estimate of the KL, k3, on which its `target_kl` stops."""
ON_SCREEN = {"kl/forward", "kl/target_ratio", "penalty/lambda"}
"""What of our metrics is in the table on the terminal; the loggers for files have them all."""


class PPOKL(PPO):
    """`stable_baselines3.PPO` whose policy loss is an objective of ppo_kl; all the rest is its own, bit for bit.

    After each update λ follows the exact KL of the whole rollout. λ and its controller are saved, loaded and in
    `get_parameters()["objective"]`; the log has SB3's keys, `train/penalty_loss`, and ours under `kl/` and `penalty/`.

    Args:
        policy, env, learning_rate, n_steps, batch_size, n_epochs, gamma, gae_lambda: as in `PPO`, as is all else.
        clip_range: ε ≥ 0 or a schedule of it, for an objective with a clip band; none: the objective's own ε.
        objective: a preset's name, an `ObjectiveConfig` or an `Objective`.

    Raises:
        ConfigError: there is no such objective.
        ValueError: `clip_range` for an objective without a band of one constant width.
        NotImplementedError: the policy's action distribution is not one of SB3's, so that its KL is not known.

    Source: Schulman 2017 (arXiv:1707.06347), section 4, in the trainer of Raffin 2021 (JMLR 22/268).
    """

    objective: Objective

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule | None = None,
        *args: Any,
        objective: str | ObjectiveConfig | Objective = "kl_adaptive",
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(  # type: ignore[misc]
            policy,
            env,
            learning_rate,
            n_steps,
            batch_size,
            n_epochs,
            gamma,
            gae_lambda,
            clip_range,  # type: ignore[arg-type]
            *args,
            _init_setup_model=False,
            **kwargs,
        )
        # While a saved model is being loaded there may be no action space yet, and what follows comes from the file.
        self.objective = as_objective(objective, _num_action_dims(getattr(self, "action_space", None)))
        if _init_setup_model:
            self._require_use(clip_range)
            self.objective_config = self.objective.config
            self.objective_action_dims = self.objective.num_action_dims
            self._setup_model()

    def _setup_model(self) -> None:
        if not hasattr(self, "objective_config"):
            raise ValueError(
                "PPOKL.load: the file is of a PPO without an objective. Make a new PPOKL with the objective that you "
                "want, and call set_parameters(PPO.load(path).get_parameters(), exact_match=False)"
            )
        config, num_action_dims = self.objective_config, self.objective_action_dims
        if not isinstance(self.objective, Objective):
            raise ValueError(
                f"PPOKL.load: objective={self.objective!r}: a saved model goes on with its own, {config.name!r}. To "
                "go on with another: make a new PPOKL with it, take parameters = PPOKL.load(path).get_parameters(), "
                "del parameters['objective'], and call set_parameters(parameters, exact_match=False)"
            )
        if (self.objective.config, self.objective.num_action_dims) != (config, num_action_dims):
            self.objective = Objective(config, num_action_dims=num_action_dims)
        clips = takes_clip_eps(config.surrogate)
        if self.clip_range is None or not clips:
            self.clip_range = getattr(config.surrogate, "clip_eps", REFERENCE_CLIP_EPS)
        super()._setup_model()
        if not clips:
            self.clip_range = None  # type: ignore[assignment]
        self.objective.to(self.device)
        kind_of(self.policy.action_dist)

    def _require_use(self, clip_range: float | Schedule | None) -> None:
        """Refuse a clip_range that is none, or that the objective would ignore."""
        config = self.objective.config
        if clip_range is not None and not takes_clip_eps(config.surrogate):
            raise ValueError(
                f"PPOKL: clip_range={clip_range!r}, but objective {config.name!r} has no band of one constant width "
                f"({config.surrogate}); leave clip_range out, or take an objective that clips"
            )
        if isinstance(clip_range, (int, float)) and not 0 <= clip_range < math.inf:
            raise ValueError(f"PPOKL: clip_range={clip_range!r}; give a finite number ≥ 0, or a schedule of it")

    def train(self) -> None:
        """Update the policy on the rollout, and then λ on how far that moved it."""
        policy = self.policy
        policy.set_training_mode(True)
        self._update_learning_rate(policy.optimizer)
        clip_range, clip_range_vf = self._follow_schedules()
        params_old: tuple[Tensor, ...] | None = None
        epochs: list[list[Tensor]] = []
        stopped = False
        while len(epochs) < self.n_epochs and not stopped:
            epochs.append([])
            with _noting_rows(self.rollout_buffer) as rows:
                # In pairs: a buffer may draw its minibatches ahead.
                for data, drawn in zip(self.rollout_buffer.get(self.batch_size), rows, strict=False):
                    if params_old is None:  # nothing has been stepped yet: θ is still θ_old
                        params_old = self._rollout_params()
                    index = torch.as_tensor(drawn, device=self.device)
                    loss, numbers = self._loss(data, self._build([p[index] for p in params_old]), clip_range_vf)
                    epochs[-1].append(numbers)
                    stopped = self._stops(numbers, len(epochs) - 1)
                    if stopped:
                        break
                    policy.optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    torch.nn.utils.clip_grad_norm_(policy.parameters(), self.max_grad_norm)
                    policy.optimizer.step()
            if not rows:
                raise TypeError(
                    f"PPOKL: {type(self.rollout_buffer).__name__}.get draws its minibatches in another way than by "
                    "_get_samples, so that their rows of the rollout are not known; nothing was trained"
                )
            self._n_updates += 1
        if params_old is not None:
            self._log_losses(epochs, clip_range, clip_range_vf)
            self._adapt(self._build(params_old))

    def _stops(self, numbers: Tensor, epoch: int) -> bool:
        """Whether `target_kl` ends the update here, by SB3's estimate and with its words."""
        if self.target_kl is None:
            return False
        approx_kl = numbers[APPROX_KL].cpu().numpy()
        stops = bool(approx_kl > 1.5 * self.target_kl)
        if stops and self.verbose >= 1:
            print(f"Early stopping at step {epoch} due to reaching max kl: {approx_kl:.2f}")
        return stops

    def _follow_schedules(self) -> tuple[float | None, float | None]:
        """Bring what follows the progress of training to where it stands; clip_range and clip_range_vf now."""
        remaining = self._current_progress_remaining
        # The last rollout may go beyond total_timesteps.
        self.objective.schedule_(min(max(1.0 - remaining, 0.0), 1.0))
        clip_range = None if self.clip_range is None else self.clip_range(remaining)  # type: ignore[operator]
        if clip_range is not None:
            self.objective.set_clip_eps_(clip_range)
        return clip_range, None if self.clip_range_vf is None else self.clip_range_vf(remaining)  # type: ignore[operator]

    def _loss(
        self, data: RolloutBufferSamples, pi_old: TorchDistribution, clip_range_vf: float | None
    ) -> tuple[Tensor, Tensor]:
        """The minibatch's loss, `[]`, and the numbers for the log in the order of `LOSSES`, without gradient."""
        actions = data.actions
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        # A policy that answers with another distribution than this must not be measured by the one before.
        vars(self.policy.action_dist).pop("distribution", None)
        values, logp, entropy = self.policy.evaluate_actions(data.observations, actions)
        values = values.flatten()
        adv = data.advantages
        if self.normalize_advantage and len(adv) > 1:
            adv = (adv - adv.mean()) / (adv.std() + 1e-8)
        kl = self.objective.divergence(pi_old, torch_distribution(self.policy.action_dist))
        out = self.objective(logp=logp, logp_old=data.old_log_prob, adv=adv, kl=kl)
        if clip_range_vf is not None:
            values = data.old_values + torch.clamp(values - data.old_values, -clip_range_vf, clip_range_vf)
        value_loss = mse_loss(data.returns, values)
        entropy_loss = -torch.mean(-logp) if entropy is None else -torch.mean(entropy)
        loss = out.loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        with torch.no_grad():
            log_ratio = logp - data.old_log_prob
            approx_kl = torch.mean((torch.exp(log_ratio) - 1) - log_ratio)
            clip_fraction = out.metrics["ratio/clip_fraction"]
            numbers = torch.stack(
                [loss, out.loss, out.penalty, value_loss, entropy_loss, approx_kl, clip_fraction]  # as in LOSSES
            )
        return loss, numbers

    @torch.no_grad()
    def _rollout_params(self) -> tuple[Tensor, ...]:
        """Parameters of the action distribution in every row of the rollout at the present θ, as when acting."""
        policy, buffer = self.policy, self.rollout_buffer
        rows = np.arange(buffer.buffer_size * buffer.n_envs)
        policy.set_training_mode(False)
        kind, chunks = kind_of(policy.action_dist), []
        for start in range(0, len(rows), CHUNK):
            obs = type(buffer)._get_samples(buffer, rows[start : start + CHUNK]).observations
            chunks.append(kind.params(policy.get_distribution(obs)))
        policy.set_training_mode(True)
        return tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))

    def _build(self, params: Sequence[Tensor]) -> TorchDistribution:
        return kind_of(self.policy.action_dist).build(params)

    def _adapt(self, pi_old: TorchDistribution) -> None:
        """Move λ by the KL of the whole rollout at the new θ, and log it."""
        for tag, number in adapt_(self.objective, pi_old, self._build(self._rollout_params())).items():
            self.logger.record(tag, number, exclude=None if tag in ON_SCREEN else "stdout")

    def _log_losses(self, epochs: list[list[Tensor]], clip_range: float | None, clip_range_vf: float | None) -> None:
        """SB3's own keys, and the penalty's; one host read for all minibatches."""
        record = self.logger.record
        numbers = torch.stack([row for epoch in epochs for row in epoch]).double().cpu()
        means = dict(zip(LOSSES, numbers.mean(0).tolist(), strict=True))
        # As SB3 has it: the loss is the last minibatch's, approx_kl the mean over the last epoch.
        means["loss"] = numbers[-1, 0].item()
        means["approx_kl"] = numbers[-len(epochs[-1]) :, APPROX_KL].mean().item()
        for name, mean in means.items():
            record(f"train/{name}", mean)
        buffer = self.rollout_buffer
        record("train/explained_variance", explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
        if hasattr(self.policy, "log_std"):
            record("train/std", torch.exp(self.policy.log_std).mean().item())
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        if clip_range is not None:
            record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            record("train/clip_range_vf", clip_range_vf)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, tensors = super()._get_torch_save_params()
        return [*modules, "objective"], tensors


def _num_action_dims(space: spaces.Space[Any] | None) -> int | None:
    return math.prod(space.shape) if isinstance(space, spaces.Box) else None


@contextmanager
def _noting_rows(buffer: RolloutBuffer) -> Iterator[list[Any]]:
    """Which rows of the rollout each minibatch has, as it is drawn; no buffer of SB3's says so."""
    rows: list[Any] = []
    get_samples = buffer._get_samples

    def noted(batch_inds: Any, *args: Any, **kwargs: Any) -> RolloutBufferSamples:
        rows.append(batch_inds)
        return get_samples(batch_inds, *args, **kwargs)

    buffer._get_samples = noted  # type: ignore[method-assign]
    try:
        yield rows
    finally:
        del buffer._get_samples
