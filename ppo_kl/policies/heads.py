"""What an actor's outputs become: the parameters of its family, within bounds that can be left again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppo_kl.config.policy import PolicyConfig
from ppo_kl.policies.box_families import BetaFamily, FullGaussianFamily, GaussianFamily, TanhGaussianFamily
from ppo_kl.policies.families import BernoulliFamily, CategoricalFamily, Family, JointFamily, MultiCategoricalFamily
from ppo_kl.policies.networks import inward_clamp

BETA_PARAM_MIN, BETA_PARAM_MAX = -10.0, 1e5 - 1
"""A Beta's concentrations 1 + softplus(parameter) stay between 1.00005, where a gradient is left, and 1e5."""


class Head(nn.Module):
    """From the outputs of a network, and numbers that do not depend on the state, to parameters; itself it has none.

    Args:
        bias: how the network's outputs begin, `[outputs]`.
        free: how the numbers begin that are parameters of their own, `[F]`.
    """

    bias: Tensor
    free: Tensor

    def __init__(self, bias: Tensor, free: Tensor) -> None:
        super().__init__()
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("free", free, persistent=False)

    def forward(self, out: Tensor, free: Tensor) -> Tensor:
        """out `[*, outputs]`, free `[*, F]` -> `[*, P]`."""
        raise NotImplementedError

    def with_scale(self, out: Tensor, scale: Tensor | None) -> Tensor:
        """out `[*, outputs]` and the parameters that do not depend on the state, `[F]` or none -> `[*, P]`."""
        free = out[..., :0] if scale is None else scale.expand(*out.shape[:-1], -1)
        params: Tensor = self(out, free)
        return params


class PlainHead(Head):
    """The outputs are the parameters: logits."""

    def __init__(self, family: Family, config: PolicyConfig) -> None:  # noqa: ARG002
        super().__init__(torch.zeros(family.num_params), torch.zeros(0))

    def forward(self, out: Tensor, free: Tensor) -> Tensor:  # noqa: ARG002
        """`[*, P]` as it is."""
        return out


class BetaHead(PlainHead):
    """The outputs are the parameters, kept where the concentrations lie within (1, 1e5]."""

    def forward(self, out: Tensor, free: Tensor) -> Tensor:  # noqa: ARG002
        """`[*, 2 A]`, clamped."""
        return inward_clamp(out, BETA_PARAM_MIN, BETA_PARAM_MAX)


class GaussianHead(Head):
    """Means, then bounded logarithms of the standard deviations, then whatever else the scale has (`num_more`).

    Where `scale_depends_on_state`, all of it are outputs; else means are, and the rest are parameters of their own.
    """

    centre: Tensor
    half_width: Tensor

    def __init__(self, family: GaussianFamily, config: PolicyConfig) -> None:
        self.dims = family.num_action_dims
        std = torch.full((self.dims,), config.log_std_init)
        if config.scale == "softplus":
            std = std.exp().expm1().log()  # softplus(start) is the standard deviation asked for
        start = torch.cat([std, torch.zeros(family.num_params - 2 * self.dims)])
        means, none = torch.zeros(self.dims), torch.zeros(0)
        super().__init__(*((torch.cat([means, start]), none) if config.scale_depends_on_state else (means, start)))
        self.config = config
        low, high = (torch.tensor(bound) for bound in family.sampled_bounds)
        self.register_buffer("centre", (low + high) / 2, persistent=False)
        self.register_buffer("half_width", (high - low) / 2, persistent=False)

    def forward(self, out: Tensor, free: Tensor) -> Tensor:
        """`[*, P]`."""
        config = self.config
        mean, scale = out[..., : self.dims], torch.cat([out[..., self.dims :], free], -1)
        scale, more = scale[..., : self.dims], scale[..., self.dims :]
        if config.mean == "tanh":
            mean = self.centre + self.half_width * mean.tanh()
        # softplus underflows to 0 at about -104; e^-30 lies far below the lower bound.
        log_std = scale if config.scale == "log_std" else functional.softplus(inward_clamp(scale, -30, 30)).log()
        return torch.cat([mean, inward_clamp(log_std, config.log_std_min, config.log_std_max), more], -1)


class JointHead(Head):
    """The parts' heads side by side."""

    def __init__(self, family: JointFamily, config: PolicyConfig) -> None:
        heads = [head_for(part, config) for part in family.families]
        super().__init__(torch.cat([head.bias for head in heads]), torch.cat([head.free for head in heads]))
        self.heads = nn.ModuleList(heads)
        self.outputs = [len(head.bias) for head in heads]
        self.frees = [len(head.free) for head in heads]

    def forward(self, out: Tensor, free: Tensor) -> Tensor:
        """`[*, ΣP]`."""
        split = zip(self.heads, torch.split(out, self.outputs, -1), torch.split(free, self.frees, -1), strict=True)
        return torch.cat([head(x, f) for head, x, f in split], -1)


HEADS: dict[type[Any], Callable[[Any, PolicyConfig], Head]] = {
    CategoricalFamily: PlainHead,
    MultiCategoricalFamily: PlainHead,
    BernoulliFamily: PlainHead,
    GaussianFamily: GaussianHead,
    TanhGaussianFamily: GaussianHead,
    FullGaussianFamily: GaussianHead,
    BetaFamily: BetaHead,
    JointFamily: JointHead,
}
"""Head by family."""


def head_for(family: Family, config: PolicyConfig) -> Head:
    """The head of a family's actor."""
    return HEADS[type(family)](family, config)
