"""Acting as one torch graph: observations as they are sent -> actions as they are taken, and what it is tried with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppo_kl.batch import State
from ppo_kl.observations import Array, Obs, Part, by_part, each_part, over_parts
from ppo_kl.policies.box_families import BetaFamily, FullGaussianFamily, GaussianFamily, TanhGaussianFamily
from ppo_kl.policies.families import BernoulliFamily, CategoricalFamily, Family, JointFamily, MultiCategoricalFamily
from ppo_kl.training.agent import Agent

ROWS, STEPS = 64, 4
"""How many observations an export is tried with at a time, and for how many steps of a recurrent policy."""


class Acting(nn.Module):
    """All that an agent does from an observation to the most likely action, in torch alone.

    Args:
        agent: its policy and normaliser are taken as they are, not copied.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.parts, self.family, self.recurrent = agent.parts, agent.family, agent.recurrent
        self.policy, self.normalizer = agent.policy, agent.obs_normalizer

    def forward(
        self, obs: Obs, state: State = (), starts: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor, State]:
        """Observations as sent, by part, `[B, *obs]` -> actions by name as taken, params `[B, P]`, the state after.

        Args:
            obs: an index counts from its first value as it is sent, not from 0.
            state: of a recurrent policy; whatever it is where `starts`.
            starts: where an episode begins, `[B]` bool; none where the policy is not recurrent.
        """
        seen = self.normalizer(over_parts(_from_zero, obs, by_part(self.parts, lambda part: part)))
        params, state = self.policy.act(seen, state, starts)
        return sent(self.family, self.family.mode(params)), params, state


def _from_zero(x: Tensor, part: Part) -> Tensor:
    return x - torch.tensor(part.starts, device=x.device).reshape(part.shape) if part.kind == "index" else x


# --- actions as the environment takes them ----------------------------------------------------------------------------


def leaves(action: Any, name: str = "action") -> dict[str, Any]:
    """What a Dict or Tuple of actions holds, by names as action.arm.0; a plain one is called `name`."""
    if not isinstance(action, dict | tuple):
        return {name: action}
    inside = action.items() if isinstance(action, dict) else enumerate(action)
    return {k: x for key, part in inside for k, x in leaves(part, f"{name}.{key}").items()}


def sent(family: Family, action: Tensor, name: str = "action") -> dict[str, Tensor]:
    """`family.to_env` in torch, its leaves by name. `to_env` itself is NumPy: several times faster in a rollout.

    Args:
        family: of the actions.
        action: as it is stored, `[B]` or `[B, A]`.
        name: of the whole.
    """
    if isinstance(family, JointFamily):
        columns = torch.split(action, [math.prod(part.action_shape) for part in family.families], -1)
        pairs = zip(family.parts, columns, strict=True)
        each = [sent(part, x if part.action_shape else x[..., 0], f"{name}.{key}") for (key, part), x in pairs]
        return {k: x for part in each for k, x in part.items()}
    values, shape, dtype = _SENT[type(family)](family, action)
    return {name: values.reshape(values.shape[0], *shape).to(torch.from_numpy(np.empty(0, dtype)).dtype)}


def _categorical(family: CategoricalFamily, action: Tensor) -> tuple[Tensor, tuple[int, ...], str]:
    return action + family.start, (), family.dtype


def _multi_categorical(family: MultiCategoricalFamily, action: Tensor) -> tuple[Tensor, tuple[int, ...], str]:
    starts = torch.tensor(family.starts, device=action.device)
    return action + starts, family.action_shape if family.shape is None else family.shape, family.dtype


def _bernoulli(family: BernoulliFamily, action: Tensor) -> tuple[Tensor, tuple[int, ...], str]:
    return action, family.shape, "int8"


def _gaussian(family: GaussianFamily, action: Tensor) -> tuple[Tensor, tuple[int, ...], str]:
    values = action.double()
    if family.rescale:
        return _between(family, (1 + values.clamp(-1, 1)) / 2)
    return values.clamp(*_bounds(family, values)), family.shape, family.dtype


def _tanh_gaussian(family: TanhGaussianFamily, action: Tensor) -> tuple[Tensor, tuple[int, ...], str]:
    return _between(family, (1 + action.double().tanh()) / 2)


def _beta(family: BetaFamily, action: Tensor) -> tuple[Tensor, tuple[int, ...], str]:
    return _between(family, action.double())


def _between(family: Any, share: Tensor) -> tuple[Tensor, tuple[int, ...], str]:
    low, high = _bounds(family, share)
    return (low * (1 - share) + high * share).clamp(low, high), family.shape, family.dtype


def _bounds(family: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (torch.tensor(bound, dtype=like.dtype, device=like.device) for bound in (family.low, family.high))
    return low, high


_SENT: dict[type[Any], Callable[[Any, Tensor], tuple[Tensor, tuple[int, ...], str]]] = {
    CategoricalFamily: _categorical,
    MultiCategoricalFamily: _multi_categorical,
    BernoulliFamily: _bernoulli,
    GaussianFamily: _gaussian,
    FullGaussianFamily: _gaussian,
    TanhGaussianFamily: _tanh_gaussian,
    BetaFamily: _beta,
}
"""By family: the action in the environment's numbers `[B, n]`, the shape of one, and the space's dtype."""


# --- what an export is tried with -------------------------------------------------------------------------------------


def trial(agent: Agent) -> list[Obs]:
    """Observations of noise as an environment might send them, by part, `[ROWS, *obs]` for each step."""
    generator = torch.Generator().manual_seed(0)
    steps = STEPS if agent.recurrent else 1
    return [_noise(agent, generator) for _ in range(steps)]


def _noise(agent: Agent, generator: torch.Generator) -> Obs:
    moments: dict[str, Any] = {i: x.moments for i, x in agent.obs_normalizer.vectors.items()}

    def of(part: Part) -> Tensor:
        shape = (ROWS, *part.shape)
        if part.kind == "index":
            sizes, starts = (torch.tensor(x).reshape(part.shape) for x in (part.sizes, part.starts))
            return (torch.rand(shape, generator=generator) * sizes).long() + starts
        if part.kind == "image":
            noise = torch.rand(shape, generator=generator) * part.scale
            return noise.byte() if part.dtype == "uint8" else noise
        noise = torch.randn(shape, generator=generator)
        seen = moments.get(str(agent.parts.index(part)))
        return noise if seen is None else (seen.mean.cpu() + seen.var.cpu().sqrt() * noise).float()

    return by_part(agent.parts, of)


def as_sent(parts: tuple[Part, ...], obs: Obs) -> Any:
    """Observations by part in the nesting in which an environment sends them, as arrays."""
    if parts[0].path == ():
        return each_part(obs)[0][1].numpy()
    whole: dict[Any, Any] = {}
    for part, (_, x) in zip(parts, each_part(obs), strict=True):
        inside = whole
        for key in part.path[:-1]:
            inside = inside.setdefault(key, {})
        inside[part.path[-1]] = x.numpy()
    return whole


def answers(agent: Agent, observations: list[Obs]) -> list[dict[str, Array]]:
    """For each step: the actions by name that the agent takes, and the parameters of its distribution, `params`."""
    memory, acting = agent.new_memory(ROWS), Acting(agent)
    found = []
    for obs in observations:
        here = over_parts(lambda x: x.to(agent.device), obs)
        with torch.inference_mode():
            _, params, _ = acting(here, memory.state, memory.starts)
        actions = leaves(agent.act(as_sent(agent.parts, obs), memory=memory))
        found.append({**actions, "params": params.cpu().numpy()})
    return found
