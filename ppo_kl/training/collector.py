"""Collects rollouts: steps the environments with the policy and keeps what happened, as values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppo_kl.batch import Rollout, State
from ppo_kl.envs.autoreset import Environments
from ppo_kl.envs.snapshot import RunningEpisodes, Snapshot, return_to
from ppo_kl.observations import Array, Obs, over_parts, stored
from ppo_kl.policies.acting import RecurrentActor, actor_for
from ppo_kl.policies.actor_critic import Policy
from ppo_kl.policies.families import Family
from ppo_kl.training.data_check import DataCheck
from ppo_kl.training.episodes import EpisodeMeter, EpisodeStats
from ppo_kl.training.storage import Storage


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
        self.nonfinite = 0
        self._check = DataCheck(envs)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._obs: Any = None
        """What is acted on next, as it is stored; none where no episode has begun."""
        self._starts = np.ones(self.envs.num_envs, bool)
        self._state: State | None = None
        self._running = RunningEpisodes(self.envs.num_envs)
        self._episodes = EpisodeMeter(self.envs.num_envs)

    def snapshot(self) -> Snapshot | None:
        """Where the environments stand; none where they stand nowhere yet, or cannot be brought there again."""
        if self._obs is None or not self.envs.replayable:
            return None
        mask = self.envs.action_mask
        return Snapshot(
            list(self._running.actions),
            torch.from_numpy(self._running.steps),
            over_parts(torch.from_numpy, self._obs),
            None if mask is None else torch.from_numpy(mask),
            torch.from_numpy(self._episodes.returns.copy()),
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
        obs = return_to(self.envs, snapshot, lambda row: self.family.to_env(row.numpy()))
        steps = snapshot.steps.numpy()
        self._obs, self._starts, self._state = stored(self.envs.parts, obs), steps == 0, state
        self._running.actions, self._running.steps = list(snapshot.actions), steps
        self._episodes.returns, self._episodes.lengths = snapshot.returns.numpy().copy(), steps.copy()

    @property
    def episodes_run(self) -> bool:
        """Whether episodes are running that the next rollout goes on with."""
        return self._obs is not None

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
            rollout, ended = self._step_through(policy)
        except BaseException:  # Ctrl-C in a notebook too
            self._begin_anew()  # whoever goes on begins new episodes
            raise
        if not rollout.valid.any():
            return self.collect(policy)  # every environment was only reset: nothing to learn from yet
        return rollout, ended

    def _step_through(self, policy: Policy) -> tuple[Rollout, EpisodeStats]:
        T, N, envs, check = self.num_steps, self.envs.num_envs, self.envs, self._check
        told = Storage(T, envs)
        if self._obs is None:
            self._obs = envs.reset()
            check.observations(self._obs, 0)
        told.show(0, self._obs, self._starts)
        state = policy.initial_state(N) if self._state is None else self._state
        noise, device = self.family.draw_noise((T, N), self.generator), self.device
        memory = RecurrentActor(policy, self.family, self.normalize, noise.to(device), state) if state else None
        act = actor_for(policy, self.family, self.normalize, noise, device)
        at_end = dict[tuple[int, int], State]()
        for t in range(T):
            mask = envs.action_mask
            told.allow(t, mask)
            obs = told.shown(t)
            action = act(t, obs, mask) if memory is None else memory.act(t, obs, told.starts[t], mask)
            step = envs.step(self.family.to_env(action))
            told.add(t, action, step)
            check.rewards(step.reward, t)
            check.observations(step.obs, t + 1)
            told.show(t + 1, step.obs, step.begun)
            for i, last in step.final_obs.items():
                if step.truncated[i]:
                    check.observations(over_parts(lambda x: x[None], last), t + 1, i)
                    told.final_obs[t, i] = last
                    at_end[t, i] = () if memory is None else tuple(x[i] for x in memory.state)
        check.warn_of_bounds(over_parts(lambda x: x[:-1], told.obs))
        self._obs, self._starts = over_parts(np.copy, told.shown(T)), told.starts[T].copy()
        self.nonfinite, self._state = told.nonfinite, () if memory is None else memory.state
        rollout = self._rollout(policy, told, memory, at_end)
        if envs.replayable:
            self._running.add(torch.from_numpy(told.action), told.starts[1:])
        return rollout, self._episodes.add(told.reward, told.over, told.valid)

    def _rollout(
        self, policy: Policy, told: Storage, memory: RecurrentActor | None, at_end: dict[tuple[int, int], State]
    ) -> Rollout:
        """The rollout as tensors, with what the policy says of it."""
        T, N = self.num_steps, self.envs.num_envs

        def tensor(x: Array) -> Tensor:
            return torch.from_numpy(x).to(self.device)

        obs, action = over_parts(lambda x: tensor(x[:-1]), told.obs), tensor(told.action)
        if memory is not None:
            params, value = (torch.cat([getattr(out, name) for out in memory.outputs]) for name in ("params", "value"))
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
            starts=None if memory is None else tensor(told.starts[:-1]),
            state=() if memory is None else tuple(torch.stack(x) for x in zip(*memory.before, strict=True)),
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

        followed = (stored(self.envs.parts, final_obs[place]) for place in cut)
        obs = over_parts(successors, self._obs, *followed)
        state = tuple(torch.cat([now, *(at_end[place][k][None] for place in cut)]) for k, now in enumerate(self.state))
        # In the successor of a truncated step no episode begins; where the last row's does, its value is not used.
        starts = torch.zeros(N + len(cut), dtype=torch.bool, device=value.device) if state else None
        bootstrap = policy(self.normalize(obs), state, starts).value
        next_value = torch.cat([value[1:], bootstrap[None, :N]])
        if cut:
            t, i = torch.tensor(cut, device=value.device).T
            next_value[t, i] = bootstrap[N:]
        return next_value
