"""How a policy that stands still acts through one rollout: in NumPy where it can, in torch, or with a memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppo_kl.batch import State
from ppo_kl.observations import Array, Obs, over_parts
from ppo_kl.policies.actor_critic import Policy, PolicyOutput, restarted
from ppo_kl.policies.families import Family, on_host
from ppo_kl.policies.numpy_actor import Act, numpy_actor


def actor_for(
    policy: Policy, family: Family, normalize: Callable[[Obs], Obs], noise: Tensor, device: torch.device
) -> Act:
    """How a policy without a memory acts.

    Args:
        policy: whose actor alone is asked.
        family: what its parameters mean.
        normalize: the observation normaliser.
        noise: of the whole rollout, `[T, N, num_noise]`, on the CPU.
        device: where the policy lives.
    """
    quick = numpy_actor(policy, family, normalize, noise)
    return _torch_actor(policy, family, normalize, noise.to(device)) if quick is None else quick


def _torch_actor(policy: Policy, family: Family, normalize: Callable[[Obs], Obs], noise: Tensor) -> Act:
    device = noise.device

    def act(t: int, obs: Any, action_mask: Array | None) -> Array:
        params, _ = policy.act(normalize(_tensors(obs, device)))
        return on_host(family.sample(params, noise[t], _tensor(action_mask, device)))

    return act


class RecurrentActor:
    """A policy with a memory answers everything step by step, and what it answered is kept.

    Args:
        policy: the policy.
        family: what its parameters mean.
        normalize: the observation normaliser.
        noise: of the whole rollout, `[T, N, num_noise]`, where the policy lives.
        state: what the policy remembers before the first step, `[N, ...]` each.
    """

    def __init__(
        self, policy: Policy, family: Family, normalize: Callable[[Obs], Obs], noise: Tensor, state: State
    ) -> None:
        self._policy, self._family, self._normalize, self._noise = policy, family, normalize, noise
        self.state = state
        self.before: list[State] = []
        """What was remembered before each step."""
        self.outputs: list[PolicyOutput] = []
        """What was answered in each step."""

    def act(self, t: int, obs: Any, starts: Array, action_mask: Array | None) -> Array:
        """As `Act`; `starts` says where an episode begins, `[N]` bool."""
        device = self._noise.device
        begins = torch.from_numpy(starts).to(device)
        self.before.append(restarted(self._policy, self.state, begins))
        output = self._policy(self._normalize(_tensors(obs, device)), self.state, begins)
        self.outputs.append(output)
        self.state = output.state
        return on_host(self._family.sample(output.params, self._noise[t], _tensor(action_mask, device)))


def _tensors(obs: Any, device: torch.device) -> Any:
    return over_parts(lambda x: torch.from_numpy(x).to(device), obs)


def _tensor(mask: Array | None, device: torch.device) -> Tensor | None:
    return None if mask is None else torch.from_numpy(mask).to(device)
