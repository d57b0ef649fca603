"""The policy: observation -> flat distribution parameters and value."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppo_kl.config.policy import PolicyConfig
from ppo_kl.policies.families import CategoricalFamily, GaussianFamily
from ppo_kl.policies.networks import inward_clamp, mlp

State = tuple[Tensor, ...]


class PolicyOutput(NamedTuple):
    """What a policy answers for B observations."""

    params: Tensor
    """Flat distribution parameters, `[B, P]`."""
    value: Tensor
    """`[B]`."""
    state: State
    """What a recurrent policy carries to the next step; empty otherwise."""


class CategoricalActor(nn.Module):
    """Observation -> logits `[B, n]`."""

    def __init__(
        self, num_inputs: int, family: CategoricalFamily, config: PolicyConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.net = mlp(num_inputs, config.hidden_sizes, family.n, config.activation, 0.01, generator)

    def forward(self, obs: Tensor) -> Tensor:
        """`[B, *obs]` -> `[B, n]`."""
        logits: Tensor = self.net(obs)
        return logits


class GaussianActor(nn.Module):
    """Observation -> means and bounded logarithms of the standard deviations, `[B, 2 A]`."""

    centre: Tensor
    half_width: Tensor

    def __init__(
        self, num_inputs: int, family: GaussianFamily, config: PolicyConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config = config
        dims = len(family.low)
        outputs = 2 * dims if config.scale_depends_on_state else dims
        self.net = mlp(num_inputs, config.hidden_sizes, outputs, config.activation, 0.01, generator)
        start = torch.full((dims,), config.log_std_init)
        if config.scale == "softplus":
            start = start.exp().expm1().log()  # softplus(start) is the standard deviation asked for
        if config.scale_depends_on_state:
            with torch.no_grad():
                self.net[-1].bias[dims:].copy_(start)  # type: ignore[index]
        else:
            self.scale = nn.Parameter(start)
        low, high = torch.tensor(family.low), torch.tensor(family.high)
        self.register_buffer("centre", (low + high) / 2, persistent=False)
        self.register_buffer("half_width", (high - low) / 2, persistent=False)

    def forward(self, obs: Tensor) -> Tensor:
        """`[B, *obs]` -> `[B, 2 A]`."""
        out: Tensor = self.net(obs)
        if self.config.scale_depends_on_state:
            mean, scale = out.chunk(2, -1)
        else:
            mean, scale = out, self.scale.expand_as(out)
        if self.config.mean == "tanh":
            mean = self.centre + self.half_width * mean.tanh()
        # softplus underflows to 0 at about -104; e^-30 lies far below the lower bound.
        log_std = scale if self.config.scale == "log_std" else functional.softplus(inward_clamp(scale, -30, 30)).log()
        return torch.cat([mean, inward_clamp(log_std, self.config.log_std_min, self.config.log_std_max)], -1)


class ActorCritic(nn.Module):
    """Actor and critic, apart; the actor's parameters come first.

    Args:
        num_inputs: numbers in one flattened observation.
        family: what the actor's output means.
        config: sizes, activation, scale.
        generator: on the CPU, the initialisation's own random stream.
    """

    def __init__(
        self,
        num_inputs: int,
        family: CategoricalFamily | GaussianFamily,
        config: PolicyConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.actor: CategoricalActor | GaussianActor
        if isinstance(family, CategoricalFamily):
            self.actor = CategoricalActor(num_inputs, family, config, generator)
        else:
            self.actor = GaussianActor(num_inputs, family, config, generator)
        self.critic = mlp(num_inputs, config.hidden_sizes, 1, config.activation, 1.0, generator)

    def forward(self, obs: Tensor, state: State = (), starts: Tensor | None = None) -> PolicyOutput:  # noqa: ARG002
        """`[B, *obs]` normalised -> params `[B, P]`, value `[B]`, state.

        Args:
            obs: `[B, *obs]`.
            state: passed through; this policy remembers nothing.
            starts: where an episode begins, `[B]` bool; of use to recurrent policies.
        """
        return PolicyOutput(self.actor(obs), self.critic(obs).squeeze(-1), state)
