"""Collects rollouts: steps the environments with the policy and keeps what happened, as values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppo_kl.batch import Rollout, State
from ppo_kl.envs.autoreset import Environments
from ppo_kl.envs.snapshot import RunningEpisodes, Snapshot, kept, return_to
from ppo_kl.observations import Array, Obs, by_part, over_parts, stored
from ppo_kl.policies.actor_critic import Policy, PolicyOutput, restarted
from ppo_kl.policies.families import Family
from ppo_kl.training.data_check import DataCheck


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
        """One step: reward, where an episode ended, and valid, each `[N]`."""
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


class _Recorder:
    """What is stored step by step; arrays on the host, allocated once per rollout."""

    def __init__(self, num_steps: int, envs: Environments) -> None:
        T, N = num_steps, envs.num_envs
        self.obs = by_part(envs.parts, lambda part: np.empty((T, N, *part.shape), part.dtype))
        self.reward = np.empty((T, N))
        self.terminated, self.truncated, self.valid, self.starts = (np.empty((T, N), bool) for _ in range(4))
        self.action_mask: Array | None = None
        self.final_obs: dict[tuple[int, int], Any] = {}
        self.nonfinite = 0

    def mask_row(self, t: int, mask: Array | None) -> None:
        if mask is None:
            return
        if self.action_mask is None:
            self.action_mask = np.ones((*self.reward.shape, mask.shape[-1]), bool)
        self.action_mask[t] = mask


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
        normalize: Callable[[Obs], Obs],
        num_steps: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.envs, self.family, self.normalize = envs, family, normalize
        self.num_steps, self.generator, self.device = num_steps, generator, device
        self.episodes = EpisodeMeter(envs.num_envs)
        self.nonfinite = 0
        self._check = DataCheck(envs)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._obs: Any = None
        self._starts = np.ones(self.envs.num_envs, bool)
        self._state: State | None = None
        self._running = RunningEpisodes(self.envs.num_envs)

    def snapshot(self) -> Snapshot | None:
        """Where the environments stand; none where they stand nowhere yet, or cannot be brought there again."""
        if self._obs is None or not self.envs.replayable:
            return None
        mask = self.envs.action_mask
        return Snapshot(
            list(self._running.actions),
            torch.from_numpy(self._running.steps),
            kept(self.envs, self._obs),
            None if mask is None else torch.from_numpy(mask),
            torch.from_numpy(self.episodes.returns.copy()),
        )

    def return_to(self, snapshot: Snapshot, state: State) -> None:
        """Go on from where a snapshot was taken, with environments that were made to begin its episodes.

        Args:
            snapshot: where the environments shall stand.
            state: what a recurrent policy remembered there; empty for others.

        Raises:
            EnvDataError: they come to stand somewhere else.
            EnvWorkerError: one failed on the way.
        """
        self._obs = return_to(self.envs, snapshot, lambda row: self.family.to_env(row.to(self.device)))
        steps = snapshot.steps.numpy()
        self._starts, self._state = steps == 0, state
        self._running.actions, self._running.steps = list(snapshot.actions), steps
        self.episodes.returns, self.episodes.lengths = snapshot.returns.numpy().copy(), steps.copy()

    @property
    def state(self) -> State:
        """What a recurrent policy remembers of each environment's episode; empty for others."""
        return self._state or ()

    @torch.no_grad()
    def collect(self, policy: Policy) -> tuple[Rollout, EpisodeStats]:
        """A rollout of T steps, and the episodes that ended in it.

        Acting needs the actor alone: values, log-probabilities and parameters follow in one pass over the whole
        rollout, since the policy does not change meanwhile. A recurrent policy answers everything step by step.

        Raises:
            EnvDataError: an environment sent a non-finite observation or reward, or a mask that allows nothing.
            EnvWorkerError: an environment failed.
        """
        try:
            told = self._step_through(policy)
        except BaseException:  # Ctrl-C in a notebook too
            self._begin_anew()  # whoever goes on begins new episodes
            self.episodes = EpisodeMeter(self.envs.num_envs)
            raise
        if not told.valid.any():
            return self.collect(policy)  # every environment was only reset: nothing to learn from yet
        return told, self.episodes.take()

    def _step_through(self, policy: Policy) -> Rollout:
        T, N, device, envs = self.num_steps, self.envs.num_envs, self.device, self.envs
        obs = envs.reset() if self._obs is None else self._obs
        starts, state = self._starts, self._state
        if state is None:
            state = policy.initial_state(N)
        noise = self.family.draw_noise((T, N), self.generator).to(device)
        told, action_taken = _Recorder(T, envs), list[Tensor]()
        outputs: list[PolicyOutput] = []
        states, at_end = list[State](), dict[tuple[int, int], State]()
        self._check.observations(obs, 0)
        for t in range(T):
            over_parts(lambda stored, x, t=t: stored.__setitem__(t, x), told.obs, obs)
            told.starts[t] = starts
            told.mask_row(t, envs.action_mask)
            seen = self.normalize(over_parts(lambda x, t=t: torch.from_numpy(x[t]).to(device), told.obs))
            if state:
                begins = torch.from_numpy(starts).to(device)
                states.append(restarted(policy, state, begins))
                outputs.append(policy(seen, state, begins))
                params, state = outputs[-1].params, outputs[-1].state
            else:
                params, _ = policy.act(seen)
            mask = None if envs.action_mask is None else torch.from_numpy(envs.action_mask).to(device)
            action = self.family.sample(params, noise[t], mask)
            action_taken.append(action)
            step = envs.step(self.family.to_env(action))
            told.reward[t], told.terminated[t], told.truncated[t] = step.reward, step.terminated, step.truncated
            told.valid[t] = step.valid
            self._check.rewards(step.reward, t)
            self._check.observations(step.obs, t + 1)
            for i, last in step.final_obs.items():
                if step.truncated[i]:
                    self._check.observations(over_parts(lambda x: x[None], last), t + 1, i)
                    told.final_obs[t, i] = last
                    at_end[t, i] = tuple(x[i] for x in state)
            told.nonfinite += step.nonfinite
            self.episodes.add(step.reward, step.over, step.valid)
            obs, starts = step.obs, step.begun
        self._check.warn_of_bounds(told.obs)
        self.nonfinite = told.nonfinite
        self._obs, self._starts, self._state = obs, starts, state
        action = torch.stack(action_taken)
        if envs.replayable:
            self._running.add(action, np.concatenate([told.starts[1:], starts[None]]))
        return self._rollout(policy, told, action, outputs, states, at_end)

    def _rollout(
        self,
        policy: Policy,
        told: _Recorder,
        action: Tensor,
        outputs: list[PolicyOutput],
        states: list[State],
        at_end: dict[tuple[int, int], State],
    ) -> Rollout:
        """The rollout as tensors, with what the policy says of it."""
        T, N, device = self.num_steps, self.envs.num_envs, self.device

        def tensor(x: Array) -> Tensor:
            return torch.from_numpy(x).to(device)

        obs = over_parts(tensor, told.obs)
        if outputs:
            params, value = torch.cat([out.params for out in outputs]), torch.cat([out.value for out in outputs])
        else:
            params, value, _ = policy(self.normalize(over_parts(lambda x: x.flatten(0, 1), obs)))
        value = value.view(T, N)
        mask = None if told.action_mask is None else tensor(told.action_mask)
        pi = self.family.build(params, None if mask is None else mask.flatten(0, 1))
        return Rollout(
            obs=obs,
            action=action,
            reward=tensor(told.reward).to(torch.float32),
            terminated=tensor(told.terminated),
            truncated=tensor(told.truncated),
            value=value,
            next_value=self._next_value(policy, value, told.final_obs, at_end),
            logp=pi.log_prob(action.flatten(0, 1)).view(T, N),
            params=params.view(T, N, -1),
            valid=tensor(told.valid),
            action_mask=mask,
            starts=tensor(told.starts) if states else None,
            state=tuple(torch.stack(x) for x in zip(*states, strict=True)),
        )

    def _next_value(
        self,
        policy: Policy,
        value: Tensor,
        final_obs: dict[tuple[int, int], Any],
        at_end: dict[tuple[int, int], State],
    ) -> Tensor:
        """V of each row's true successor: the next row's, but for the last row and where an episode was truncated."""
        cut, N = list(final_obs), self.envs.num_envs

        def successors(last: Array, *cut_off: Array) -> Tensor:
            return torch.from_numpy(np.concatenate([last, *(x[None] for x in cut_off)])).to(value.device)

        followed = (self._obs, *(final_obs[place] for place in cut))
        obs = over_parts(successors, *(stored(self.envs.parts, x) for x in followed))
        state = tuple(
            torch.cat([now, *(at_end[place][k][None] for place in cut)]) for k, now in enumerate(self._state or ())
        )
        # In the successor of a truncated step no episode begins; where the last row's does, its value is not used.
        starts = torch.zeros(N + len(cut), dtype=torch.bool, device=value.device) if state else None
        bootstrap = policy(self.normalize(obs), state, starts).value
        next_value = torch.cat([value[1:], bootstrap[None, :N]])
        if cut:
            t, i = torch.tensor(cut, device=value.device).T
            next_value[t, i] = bootstrap[N:]
        return next_value
