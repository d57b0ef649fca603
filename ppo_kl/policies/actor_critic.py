"""The policy: observation -> flat distribution parameters and value."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppo_kl.batch import Batch, State
from ppo_kl.config.policy import PolicyConfig
from ppo_kl.observations import Obs, Part, each_part
from ppo_kl.policies.encoders import Encoder
from ppo_kl.policies.families import Family
from ppo_kl.policies.heads import head_for
from ppo_kl.policies.networks import FewOutputs, Memory, hidden_layers, initialised


class PolicyOutput(NamedTuple):
    """What a policy answers for B observations."""

    params: Tensor
    """Flat distribution parameters, `[B, P]`."""
    value: Tensor
    """`[B]`."""
    state: State
    """What a recurrent policy carries to the next step; empty otherwise."""


class Policy(Protocol):
    """What training needs of a policy; an `nn.Module` whose critic's parameters are named `critic.…`.

    A recurrent policy is called in two ways, that of one step with `starts`, and that of sequences without: then
    observations are `[S, L, *obs]`, `state` is that before the first step of each sequence, no episode begins within
    one, and the answer is flat, B = S·L.
    """

    log_std_bounds: tuple[float, float]

    def __call__(self, obs: Obs, state: State = (), starts: Tensor | None = None) -> PolicyOutput:
        """`[B, *obs]` normalised, the state before, where episodes begin `[B]` bool -> params, value, state after."""

    def act(self, obs: Obs, state: State = (), starts: Tensor | None = None) -> tuple[Tensor, State]:
        """The parameters alone, for acting; what only the critic remembers may stay as it was."""

    def initial_state(self, batch_size: int) -> State:
        """What a recurrent policy remembers when an episode begins, `[batch_size, ...]` each; empty otherwise."""


def restarted(policy: Policy, state: State, starts: Tensor) -> State:
    """`state` with the initial one where an episode begins, `starts` `[B]` bool."""
    initial = policy.initial_state(len(starts))
    return tuple(
        torch.where(starts.view(-1, *[1] * (old.dim() - 1)), new, old) for new, old in zip(initial, state, strict=True)
    )


def old_and_new(family: Family, batch: Batch, output: PolicyOutput) -> tuple[Distribution, Distribution]:
    """π_old and π of a batch, over the actions that were allowed when it was collected: one mask serves both."""
    mask = batch.action_mask
    return family.build(batch.params_old, mask), family.build(output.params, mask)


def before_and_now(policy: Policy, family: Family, batch: Batch) -> tuple[Distribution, Distribution]:
    """π_old and π of a whole batch at the present θ; where there is no memory, without the critic's work."""
    if batch.state:
        return old_and_new(family, batch, policy(batch.obs, batch.state))
    params, state = policy.act(batch.obs)
    return old_and_new(family, batch, PolicyOutput(params, batch.value_old, state))


class Body(nn.Module):
    """Observation -> features: encoder, hidden layers, and a memory where one is asked for."""

    def __init__(self, parts: tuple[Part, ...], config: PolicyConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.encoder = Encoder(parts, config, generator)
        layers = hidden_layers(self.encoder.num_features, config.hidden_sizes, config.activation, generator)
        self.layers = nn.Sequential(*layers)
        self.num_features = config.hidden_sizes[-1] if config.hidden_sizes else self.encoder.num_features
        self.memory = None
        if config.memory != "none":
            self.memory = Memory(config.memory, self.num_features, config.memory_size, generator)
            self.num_features = config.memory_size

    def forward(self, obs: Obs, state: State, steps: bool) -> tuple[Tensor, State]:
        """`[B, *obs]`, or `[S, L, *obs]` where not `steps` -> features `[B, F]` or `[S·L, F]`, and the state after."""
        if self.memory is None:
            features: Tensor = self.layers(self.encoder(obs))
            return features, ()
        first = each_part(obs)[0][1]
        S, L = (len(first), 1) if steps else first.shape[:2]
        if not steps:
            obs = {k: x.flatten(0, 1) for k, x in obs.items()} if isinstance(obs, dict) else obs.flatten(0, 1)
        out, state = self.memory(self.layers(self.encoder(obs)).view(S, L, -1), state)
        return out.flatten(0, 1), state

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """The memory's, if there is one."""
        return () if self.memory is None else self.memory.initial_state(batch_size, device)


class Actor(nn.Module):
    """Features -> flat distribution parameters `[B, P]`: the last layer, and what the head makes of its outputs.

    Args:
        body: the actor's own; none where it shares the critic's.
        num_features: that come in.
        family: what the parameters mean.
        config: scale, bounds.
        generator: on the CPU, the initialisation's own random stream.
    """

    scale: Tensor | None

    def __init__(
        self, body: Body | None, num_features: int, family: Family, config: PolicyConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.body = body
        self.head = head_for(family, config)
        # Andrychowicz 2020 (arXiv:2006.05990), section 3.2: a small last layer, all actions about as likely.
        self.last = initialised(FewOutputs, num_features, len(self.head.bias), gain=0.01, generator=generator)
        with torch.no_grad():
            self.last.bias.copy_(self.head.bias)  # type: ignore[operator]
        self.scale = nn.Parameter(self.head.free.clone()) if len(self.head.free) else None

    def forward(self, features: Tensor) -> Tensor:
        """`[B, F]` -> `[B, P]`."""
        params: Tensor = self.head.with_scale(self.last(features), self.scale)
        return params


class Critic(nn.Module):
    """Features -> value `[B]`."""

    def __init__(self, body: Body | None, num_features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.body = body
        self.last = initialised(nn.Linear, num_features, 1, gain=1.0, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, F]` -> `[B]`."""
        value: Tensor = self.last(features).squeeze(-1)
        return value


class ActorCritic(nn.Module):
    """Actor and critic, apart or on one trunk; see `Policy` for how it is called.

    Args:
        parts: of the observation.
        family: what the actor's output means.
        config: sizes, activation, trunk, memory, scale.
        generator: on the CPU, the initialisation's own random stream.
    """

    def __init__(
        self, parts: tuple[Part, ...], family: Family, config: PolicyConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.log_std_bounds = config.log_std_min, config.log_std_max
        body = Body(parts, config, generator)
        shared = config.trunk == "shared"
        self.trunk = body if shared else None
        self.actor = Actor(None if shared else body, body.num_features, family, config, generator)
        own = None if shared else Body(parts, config, generator)
        self.critic = Critic(own, body.num_features, generator)

    def forward(self, obs: Obs, state: State = (), starts: Tensor | None = None) -> PolicyOutput:
        """Params `[B, P]`, value `[B]`, state."""
        state = self._begin(state, starts)
        steps = starts is not None
        if self.trunk is not None:
            features, state = self.trunk(obs, state, steps)
            return PolicyOutput(self.actor(features), self.critic(features), state)
        half = len(state) // 2
        for_actor, of_actor = self.actor.body(obs, state[:half], steps)  # type: ignore[misc]
        for_critic, of_critic = self.critic.body(obs, state[half:], steps)  # type: ignore[misc]
        return PolicyOutput(self.actor(for_actor), self.critic(for_critic), (*of_actor, *of_critic))

    def act(self, obs: Obs, state: State = (), starts: Tensor | None = None) -> tuple[Tensor, State]:
        """Params `[B, P]` alone, and the state; the critic's own half of it stays as it was."""
        state = self._begin(state, starts)
        if self.trunk is not None:
            features, state = self.trunk(obs, state, True)
            return self.actor(features), state
        half = len(state) // 2
        features, of_actor = self.actor.body(obs, state[:half], True)  # type: ignore[misc]
        return self.actor(features), (*of_actor, *state[half:])

    def initial_state(self, batch_size: int) -> State:
        """Of the trunk; or of the actor, then of the critic."""
        device = next(self.parameters()).device
        bodies = (self.trunk,) if self.trunk is not None else (self.actor.body, self.critic.body)
        return tuple(x for body in bodies for x in body.initial_state(batch_size, device))  # type: ignore[union-attr]

    def _begin(self, state: State, starts: Tensor | None) -> State:
        return restarted(self, state, starts) if state and starts is not None else state
