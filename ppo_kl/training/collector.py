"""Collects rollouts: steps the environments with the policy and keeps what happened, as values."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppo_kl.batch import Rollout
from ppo_kl.envs.autoreset import Array, Environments
from ppo_kl.errors import EnvDataError
from ppo_kl.policies.actor_critic import ActorCritic
from ppo_kl.policies.families import Family


class EpisodeStats(NamedTuple):
    """The episodes that ended in one rollout, in the environment's own rewards."""

    returns: list[float]
    lengths: list[int]


class EpisodeMeter:
    """Adds up each environment's episode, however many rollouts it spans."""

    def __init__(self, num_envs: int) -> None:
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, np.int64)
        self.finished = EpisodeStats([], [])

    def add(self, reward: Array, done: Array, valid: Array) -> None:
        """One step: reward, done and valid, each `[N]`."""
        self.returns += np.where(valid, reward, 0.0)
        self.lengths += valid
        for i in np.flatnonzero(done):
            self.finished.returns.append(float(self.returns[i]))
            self.finished.lengths.append(int(self.lengths[i]))
        self.returns[done] = 0.0
        self.lengths[done] = 0

    def take(self) -> EpisodeStats:
        """The episodes that ended since the last call."""
        taken, self.finished = self.finished, EpisodeStats([], [])
        return taken


class Collector:
    """Steps N environments T times with a policy that stands still meanwhile.

    Args:
        envs: the environments; reset at the first `collect`.
        family: what the policy's parameters mean.
        normalize: the observation normaliser.
        num_steps: T.
        generator: the action noise's own random stream, on the CPU, so that a seed draws the same noise on any device.
        device: where the policy lives.
    """

    def __init__(
        self,
        envs: Environments,
        family: Family,
        normalize: Callable[[Tensor], Tensor],
        num_steps: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.envs, self.family, self.normalize = envs, family, normalize
        self.num_steps, self.generator, self.device = num_steps, generator, device
        self.episodes = EpisodeMeter(envs.num_envs)
        self._obs: Array | None = None

    @torch.no_grad()
    def collect(self, policy: ActorCritic) -> tuple[Rollout, EpisodeStats]:
        """A rollout of T steps, and the episodes that ended in it.

        Acting needs the actor alone: values, log-probabilities and parameters follow in one pass over the whole
        rollout, since the policy does not change meanwhile.

        Raises:
            EnvDataError: an environment sent a non-finite observation or reward.
        """
        T, N, device = self.num_steps, self.envs.num_envs, self.device
        obs = self.envs.reset() if self._obs is None else self._obs
        noise = self.family.draw_noise((T, N), self.generator).to(device)
        obs_seen = np.empty((T, *obs.shape), np.float32)
        action_taken: list[Tensor] = []
        reward = np.empty((T, N))
        terminated, truncated, valid = (np.empty((T, N), bool) for _ in range(3))
        final_obs: dict[tuple[int, int], Array] = {}
        for t in range(T):
            obs_seen[t] = obs
            params = policy.actor(self.normalize(torch.from_numpy(obs_seen[t]).to(device)))
            action = self.family.sample(params, noise[t])
            action_taken.append(action)
            step = self.envs.step(self.family.to_env(action))
            reward[t], terminated[t], truncated[t], valid[t] = step.reward, step.terminated, step.truncated, step.valid
            final_obs.update({(t, i): last for i, last in step.final_obs.items() if truncated[t, i]})
            self.episodes.add(step.reward, (step.terminated | step.truncated) & step.valid, step.valid)
            obs = step.obs
        fault = _first_fault(obs_seen, reward, obs, final_obs)
        if fault is not None:
            self._obs, self.episodes = None, EpisodeMeter(N)  # whoever goes on begins new episodes
            raise EnvDataError(
                f"{fault} of this rollout; no update was made with it, weights and checkpoints are as before; mend the "
                "environment, then go on with --resume where a checkpoint was saved"
            )
        self._obs = obs
        if not valid.any():
            return self.collect(policy)  # every environment was only reset: nothing to learn from yet

        flat_obs = torch.from_numpy(obs_seen).to(device)
        params, value, _ = policy(self.normalize(flat_obs.flatten(0, 1)))
        value = value.view(T, N)
        action = torch.stack(action_taken)
        logp = self.family.build(params).log_prob(action.flatten(0, 1)).view(T, N)
        rollout = Rollout(
            obs=flat_obs,
            action=action,
            reward=torch.from_numpy(reward).to(device, torch.float32),
            terminated=torch.from_numpy(terminated).to(device),
            truncated=torch.from_numpy(truncated).to(device),
            value=value,
            next_value=self._next_value(policy, value, obs, final_obs),
            logp=logp,
            params=params.view(T, N, -1),
            valid=torch.from_numpy(valid).to(device),
        )
        return rollout, self.episodes.take()

    def _next_value(
        self, policy: ActorCritic, value: Tensor, last: Array, final_obs: dict[tuple[int, int], Array]
    ) -> Tensor:
        """V of each row's true successor: the next row's, but for the last row and where an episode was truncated."""
        cut = list(final_obs)
        successors = np.concatenate([last, *(final_obs[place][None] for place in cut)]).astype(np.float32)
        bootstrap = policy(self.normalize(torch.from_numpy(successors).to(value.device))).value
        next_value = torch.cat([value[1:], bootstrap[None, : len(last)]])
        if cut:
            t, i = torch.tensor(cut, device=value.device).T
            next_value[t, i] = bootstrap[len(last) :]
        return next_value


def _first_fault(obs: Array, reward: Array, last: Array, final_obs: dict[tuple[int, int], Array]) -> str | None:
    """What is first not finite in float32, as training sees it, with environment and step; none if nothing is."""
    T, N = reward.shape
    with np.errstate(over="ignore"):
        answered = np.concatenate([obs, last[None].astype(np.float32)]).reshape(T + 1, N, -1)
        seen_reward = reward.astype(np.float32)
    faults = [("reward", t, i, reward[t, i]) for t, i in np.argwhere(~np.isfinite(seen_reward))]
    faults += [("observation", t, i, answered[t, i]) for t, i in np.argwhere(~np.isfinite(answered).all(-1))]
    faults += [("observation", t + 1, i, x) for (t, i), x in final_obs.items() if not np.isfinite(x).all()]
    return next((f"{name} of environment {i} is {value} at step {t}" for name, t, i, value in faults), None)
