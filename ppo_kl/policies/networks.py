"""Networks and their initialisation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppo_kl.batch import State
from ppo_kl.config.policy import Activation


class Tanh(nn.Module):
    """tanh."""

    by_sigmoid = False
    """As 2 σ(2x) − 1, within 1e-7 of it: on a CPU a third of the work in a graph, half in a pass over many rows."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return 2 * (2 * x).sigmoid() - 1 if self.by_sigmoid else x.tanh()


class FewOutputs(nn.Linear):
    """A linear layer of few outputs."""

    by_columns = False
    """As the transpose of `[k, F] · [F, B]`, which libraries compute up to three times as fast as `[B, F] · [F, k]`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[*, F]` -> `[*, k]`."""
        if not self.by_columns or x.dim() != 2:
            return super().forward(x)
        return (self.weight @ x.T).T + self.bias


class FewInputs(nn.Linear):
    """A linear layer of few inputs."""

    by_rows = False
    """Its gradient as the transpose of `[F, B] · [B, k]`, which libraries compute up to four times as fast."""

    def forward(self, x: Tensor) -> Tensor:
        """`[*, F]` -> `[*, k]`."""
        if not self.by_rows or x.dim() != 2 or not torch.is_grad_enabled():
            return super().forward(x)
        out: Tensor = _LinearOfFewInputs.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out


class _LinearOfFewInputs(torch.autograd.Function):
    """x · Wᵀ + b of `[B, F]`, whose gradient at W is computed as (xᵀ · g)ᵀ rather than gᵀ · x."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The layer."""
        return functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        """Remember what the gradients need."""
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """The gradients, at x only where that is asked for."""
        (grad,) = grad_outputs
        x, weight = ctx.saved_tensors
        return grad @ weight if ctx.needs_input_grad[0] else None, (x.T @ grad).T, grad.sum(0)


FAST: dict[type[nn.Module], str] = {Tanh: "by_sigmoid", FewInputs: "by_rows", FewOutputs: "by_columns"}
"""Module -> its attribute that has it computed in the way that is fastest in graphs on a CPU."""


def prefer_fast(policy: nn.Module) -> None:
    """Let layers compute what they do in the way that is fastest in graphs on a CPU: the same up to rounding."""
    for module in policy.modules():
        if type(module) in FAST:
            setattr(module, FAST[type(module)], True)


ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "tanh": Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}
HIDDEN_GAIN = math.sqrt(2)


def initialised(
    layer: Callable[..., nn.Module], *args: Any, gain: float, generator: torch.Generator, **kwargs: Any
) -> nn.Module:
    """A linear or convolutional layer with orthogonal weights and zero biases.

    Args:
        layer: `nn.Linear` or `nn.Conv2d`.
        args: its sizes.
        gain: of the weights.
        generator: on the CPU, the initialisation's own random stream.
        kwargs: of the layer.
    """
    # The layer's own initialisation would draw from torch's global stream, which belongs to the user.
    made = layer(*args, **kwargs, device="meta").to_empty(device="cpu")
    nn.init.orthogonal_(made.weight, gain, generator=generator)  # type: ignore[arg-type]
    nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made


def hidden_layers(
    num_inputs: int, sizes: Sequence[int], activation: Activation, generator: torch.Generator
) -> list[nn.Module]:
    """Linear layers of these sizes, `activation` after each; orthogonal weights of gain √2."""
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise([num_inputs, *sizes]):
        layer = nn.Linear if layers else FewInputs
        linear = initialised(layer, width, following, gain=HIDDEN_GAIN, generator=generator)
        layers += [linear, ACTIVATIONS[activation]()]
    return layers


class Memory(nn.Module):
    """A GRU or LSTM over features; its state is zero where an episode begins.

    Args:
        kind: `gru` or `lstm`.
        num_inputs: features of one step.
        size: of the state, and of what comes out.
        generator: on the CPU, the initialisation's own random stream.
    """

    def __init__(self, kind: Literal["gru", "lstm"], num_inputs: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.kind, self.size = kind, size
        gates = {"gru": 3, "lstm": 4}[kind]
        self.num_tensors = {"gru": 1, "lstm": 2}[kind]
        self.weight_ih = nn.Parameter(torch.empty(gates * size, num_inputs))
        self.weight_hh = nn.Parameter(torch.empty(gates * size, size))
        self.bias_ih = nn.Parameter(torch.zeros(gates * size))
        self.bias_hh = nn.Parameter(torch.zeros(gates * size))
        for weight in (self.weight_ih, self.weight_hh):
            for gate in weight.detach().chunk(gates):
                nn.init.orthogonal_(gate, generator=generator)

    def initial_state(self, batch_size: int, device: torch.device) -> State:
        """Zeros, `[batch_size, size]` each; an LSTM has two of them."""
        return tuple(torch.zeros(batch_size, self.size, device=device) for _ in range(self.num_tensors))

    def forward(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """S sequences of L steps from `state` on: features `[S, L, F]` -> `[S, L, size]`, and the state after them."""
        # torch's own modules keep a list of their weights, which functional_call does not reach.
        weights: list[Tensor] = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        if features.is_cuda:
            weights = _packed(weights)
        before = [x[None].contiguous() for x in state]
        # Has biases, layers, dropout, train (else cuDNN refuses to go backward), bidirectional, batch first.
        options: tuple[Any, ...] = (True, 1, 0.0, True, False, True)
        if self.kind == "gru":
            out, last = torch.gru(features, before[0], weights, *options)
            return out, (last[0],)
        out, *both = torch.lstm(features, before, weights, *options)
        return out, tuple(x[0] for x in both)


def _packed(weights: list[Tensor]) -> list[Tensor]:
    """Copies that fill one piece of memory, which cuDNN would else make by itself, with a warning in every process."""
    pieces = torch.split(torch.cat([x.reshape(-1) for x in weights]), [x.numel() for x in weights])
    return [piece.view_as(x) for piece, x in zip(pieces, weights, strict=True)]


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
    if not torch.is_grad_enabled():
        return x.clamp(low, high)  # without the cost of a function of our own
    clamped: Tensor = _InwardClamp.apply(x, low, high)  # type: ignore[no-untyped-call]
    return clamped
