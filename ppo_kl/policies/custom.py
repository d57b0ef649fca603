"""A network of the user's own in the place of ours, and the check that it keeps to the contract.

    class MyNet(nn.Module):
        def __init__(self, obs_shape, num_outputs, config): ...
        def forward(self, obs): return outputs, value

`obs` is `[B, *obs_shape]` float32 (uint8 for images as they come, int64 from 0 for Discrete), or a dict of such where
the space has parts; `outputs` `[B, num_outputs]` are logits, or means and where `policy.scale_depends_on_state` scales;
`value` is `[B]`. Bounds of the scale, and a scale that does not depend on the state, stay ours. The parameters of a
submodule `critic` count as the critic's for `critic_lr`, `clip_grad: apart` and `kl_stop.stops: actor`, all others as
the actor's.

A network that has `initial_state(batch_size) -> tuple of tensors [batch_size, ...]` is recurrent: it is called as
`forward(obs, state)` and answers `outputs, value, state`. States are set to the initial one by us where episodes begin.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ppo_kl.batch import State
from ppo_kl.config.policy import PolicyConfig
from ppo_kl.errors import ConfigError
from ppo_kl.imports import class_named
from ppo_kl.observations import Obs, Part, by_part, each_part, over_parts
from ppo_kl.policies.actor_critic import ActorCritic, PolicyOutput, restarted
from ppo_kl.policies.families import Family
from ppo_kl.policies.heads import head_for

ROWS = 3
"""How many observations the contract is tried with."""


def make_policy(
    parts: tuple[Part, ...], family: Family, config: PolicyConfig, generator: torch.Generator
) -> ActorCritic | CustomPolicy:
    """Our policy, or the user's where `policy.module` names one."""
    make = ActorCritic if config.module is None else CustomPolicy
    return make(parts, family, config, generator)


class CustomPolicy(nn.Module):
    """The user's network with our head on it.

    Args:
        parts: of the observation.
        family: what the outputs mean.
        config: names the class.
        generator: on the CPU, the initialisation's own random stream.

    Raises:
        ConfigError: there is no such class, it cannot be made, or what it answers breaks the contract.
    """

    def __init__(
        self, parts: tuple[Part, ...], family: Family, config: PolicyConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        name = str(config.module)
        make = class_named(name, nn.Module, "policy.module")
        self.log_std_bounds = config.log_std_min, config.log_std_max
        self.head = head_for(family, config)
        self.scale = nn.Parameter(self.head.free.clone()) if len(self.head.free) else None
        shapes = by_part(parts, lambda part: part.shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            try:
                self.module = make(shapes, len(self.head.bias), config)
            except Exception as error:
                raise ConfigError(
                    f"policy.module={name!r}: {name}(obs_shape={shapes}, num_outputs={len(self.head.bias)}, config) "
                    f"raised {type(error).__name__}: {error}",
                    "module",
                ) from error
            self.recurrent = hasattr(self.module, "initial_state")
            _require_contract(self, parts, name)  # lazy layers draw their weights when they see the first observation

    def forward(self, obs: Obs, state: State = (), starts: Tensor | None = None) -> PolicyOutput:
        """As `Policy`: one step, or sequences step by step."""
        if not self.recurrent:
            out, value = self.module(obs)
            return PolicyOutput(self._params(out), value, ())
        if starts is not None:
            return self._step(obs, restarted(self, state, starts))
        params, values = [], []
        for t in range(each_part(obs)[0][1].shape[1]):
            answer = self._step(over_parts(lambda x, t=t: x[:, t], obs), state)
            params.append(answer.params)
            values.append(answer.value)
            state = answer.state
        return PolicyOutput(torch.stack(params, 1).flatten(0, 1), torch.stack(values, 1).flatten(), state)

    def _step(self, obs: Obs, state: State) -> PolicyOutput:
        out, value, state = self.module(obs, state)
        return PolicyOutput(self._params(out), value, state)

    def _params(self, out: Tensor) -> Tensor:
        return self.head.with_scale(out + self.head.bias, self.scale)

    def act(self, obs: Obs, state: State = (), starts: Tensor | None = None) -> tuple[Tensor, State]:
        """The parameters and the state."""
        output = self(obs, state, starts)
        return output.params, output.state

    def initial_state(self, batch_size: int) -> State:
        """The network's own."""
        if not self.recurrent:
            return ()
        device = next(self.parameters()).device
        return tuple(x.to(device) for x in self.module.initial_state(batch_size))


@torch.no_grad()
def _require_contract(policy: CustomPolicy, parts: tuple[Part, ...], name: str) -> None:
    """Try the network on observations of noise, and refuse it by the first thing that would spoil training."""

    def refuse(what: str) -> ConfigError:
        return ConfigError(
            f"policy.module={name!r}: {what}; see docs/policies.md for what is asked of a network", "module"
        )

    for parameter, x in policy.module.named_parameters():
        if x.dtype != torch.float32:
            raise refuse(f"parameter {parameter} has dtype {x.dtype}, expected torch.float32")
        if not x.requires_grad:
            raise refuse(f"parameter {parameter} requires no gradient, but all are trained; make it a buffer")
    generator = torch.Generator().manual_seed(0)
    obs = by_part(parts, lambda part: _noise(part, generator))
    state = _initial_state(policy, refuse)

    def answers(obs: Obs, state: State) -> Any:
        try:
            answer = policy.module(obs, state) if policy.recurrent else policy.module(obs)
        except Exception as error:
            raise refuse(f"forward raised {type(error).__name__}: {error}") from error
        expected = ("outputs", "value", "state")[: 3 if policy.recurrent else 2]
        if not isinstance(answer, tuple) or len(answer) != len(expected):
            raise refuse(f"forward answered {type(answer).__name__}, expected a tuple ({', '.join(expected)})")
        return answer

    answer = answers(obs, state)
    named = [("outputs", answer[0], (ROWS, len(policy.head.bias))), ("value", answer[1], (ROWS,))]
    if policy.recurrent:
        named += [
            (f"state[{k}]", x, tuple(old.shape)) for k, (x, old) in enumerate(zip(answer[2], state, strict=False))
        ]
        if len(answer[2]) != len(state):
            raise refuse(f"forward answered a state of {len(answer[2])} tensors, initial_state has {len(state)}")
    for what, x, shape in named:
        if not isinstance(x, Tensor) or tuple(x.shape) != shape:
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise refuse(f"{what} of {ROWS} observations has shape {found}, expected {shape}")
        if not x.isfinite().all():
            raise refuse(f"{what} is not finite on noise")
    if not all(torch.equal(x, y) for x, y in zip(answers(obs, state)[:2], answer[:2], strict=True)):
        raise refuse(
            "the same observations are answered differently twice (dropout?), so that π_old would not be known"
        )
    alone = answers(over_parts(lambda x: x[:1], obs), tuple(x[:1] for x in state))
    if not all(torch.allclose(x[0], y[0], atol=1e-4) for x, y in zip(alone[:2], answer[:2], strict=True)):
        raise refuse("an observation is answered differently beside others (batch normalisation?)")


def _initial_state(policy: CustomPolicy, refuse: Any) -> State:
    try:
        state = policy.initial_state(ROWS)
    except Exception as error:
        raise refuse(f"initial_state raised {type(error).__name__}: {error}") from error
    if policy.recurrent and not (state and all(isinstance(x, Tensor) and len(x) == ROWS for x in state)):
        raise refuse(f"initial_state({ROWS}) must be a tuple of tensors [{ROWS}, ...], got {state!r}")
    return state


def _noise(part: Part, generator: torch.Generator) -> Tensor:
    shape = (ROWS, *part.shape)
    if part.kind == "index":
        return torch.randint(min(part.sizes), shape, generator=generator)
    if part.dtype == "uint8":
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator)
