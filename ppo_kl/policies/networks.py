"""Networks and their initialisation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppo_kl.config.policy import Activation

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
HIDDEN_GAIN = math.sqrt(2)


def mlp(
    num_inputs: int,
    hidden_sizes: Sequence[int],
    num_outputs: int,
    activation: Activation,
    last_gain: float,
    generator: torch.Generator,
) -> nn.Sequential:
    """Flatten, then linear layers with `activation` between; orthogonal weights, zero biases.

    Args:
        num_inputs: numbers in one flattened input.
        hidden_sizes: units of each hidden layer.
        num_outputs: units of the last layer.
        activation: between the layers.
        last_gain: gain of the last layer's weights; √2 before it.
        generator: on the CPU, the initialisation's own random stream.

    Source: Andrychowicz 2020 (arXiv:2006.05990), section 3.2, for the small last layer of the actor.
    """
    sizes = [num_inputs, *hidden_sizes, num_outputs]
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (width, following) in enumerate(itertools.pairwise(sizes)):
        last = i == len(hidden_sizes)
        # Linear's own initialisation would draw from torch's global stream, which belongs to the user.
        linear = nn.Linear(width, following, device="meta").to_empty(device="cpu")
        nn.init.orthogonal_(linear.weight, last_gain if last else HIDDEN_GAIN, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


class _InwardClamp(torch.autograd.Function):
    """clamp(x, low, high) whose gradient outside the range still passes where a step would lead back inside."""

    @staticmethod
    def forward(x: Tensor, low: float, high: float) -> Tensor:
        """The clamped value."""
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:  # noqa: ARG004
        """Remember where x lay."""
        x, ctx.low, ctx.high = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, but 0 where descending it would lead further outside."""
        (grad,) = grad_outputs
        (x,) = ctx.saved_tensors
        outward = ((x < ctx.low) & (grad > 0)) | ((x > ctx.high) & (grad < 0))
        return torch.where(outward, 0.0, grad), None, None


def inward_clamp(x: Tensor, low: float, high: float) -> Tensor:
    """clamp(x, low, high) that can be left again: at a bound, only the gradient that leads further out is cut.

    A plain clamp has no gradient outside its range, so a parameter that once stepped over a bound would stay there.

    Args:
        x: any shape.
        low: lower bound.
        high: upper bound.
    """
    clamped: Tensor = _InwardClamp.apply(x, low, high)  # type: ignore[no-untyped-call]
    return clamped
