"""The policy: observation -> flat distribution parameters and value."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ppo_kl.config.policy import PolicyConfig
from ppo_kl.policies.families import Family
from ppo_kl.policies.heads import head_for
from ppo_kl.policies.networks import mlp

State = tuple[Tensor, ...]


class PolicyOutput(NamedTuple):
    """What a policy answers for B observations."""

    params: Tensor
    """Flat distribution parameters, `[B, P]`."""
    value: Tensor
    """`[B]`."""
    state: State
    """What a recurrent policy carries to the next step; empty otherwise."""


class Actor(nn.Module):
    """Observation -> flat distribution parameters `[B, P]`: one network, and what its head makes of the outputs."""

    scale: Tensor | None

    def __init__(self, num_inputs: int, family: Family, config: PolicyConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.head = head_for(family, config)
        self.net = mlp(num_inputs, config.hidden_sizes, len(self.head.bias), config.activation, 0.01, generator)
        with torch.no_grad():
            self.net[-1].bias.copy_(self.head.bias)  # type: ignore[operator]
        self.scale = nn.Parameter(self.head.free.clone()) if len(self.head.free) else None

    def forward(self, obs: Tensor) -> Tensor:
        """`[B, *obs]` -> `[B, P]`."""
        out: Tensor = self.net(obs)
        free = out[..., :0] if self.scale is None else self.scale.expand(*out.shape[:-1], -1)
        params: Tensor = self.head(out, free)
        return params


class ActorCritic(nn.Module):
    """Actor and critic, apart; the actor's parameters come first.

    Args:
        num_inputs: numbers in one flattened observation.
        family: what the actor's output means.
        config: sizes, activation, scale.
        generator: on the CPU, the initialisation's own random stream.
    """

    def __init__(self, num_inputs: int, family: Family, config: PolicyConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.actor = Actor(num_inputs, family, config, generator)
        self.log_std_bounds = config.log_std_min, config.log_std_max
        self.critic = mlp(num_inputs, config.hidden_sizes, 1, config.activation, 1.0, generator)

    def forward(self, obs: Tensor, state: State = (), starts: Tensor | None = None) -> PolicyOutput:  # noqa: ARG002
        """`[B, *obs]` normalised -> params `[B, P]`, value `[B]`, state.

        Args:
            obs: `[B, *obs]`.
            state: passed through; this policy remembers nothing.
            starts: where an episode begins, `[B]` bool; of use to recurrent policies.
        """
        return PolicyOutput(self.actor(obs), self.critic(obs).squeeze(-1), state)
