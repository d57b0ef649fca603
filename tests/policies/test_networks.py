"""How networks begin, and the clamp that can be left again."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ppo_kl.policies.networks import (
    ACTIVATIONS,
    FewInputs,
    FewOutputs,
    Memory,
    hidden_layers,
    initialised,
    inward_clamp,
    prefer_fast,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(*sizes, gain=1.0, seed=0) -> nn.Linear:
    return initialised(nn.Linear, *sizes, gain=gain, generator=seeded(seed))


@pytest.mark.parametrize("gain", [0.01, 1.0, math.sqrt(2)])
@pytest.mark.parametrize("sizes", [(3, 16), (16, 8)])
def test_weights_begin_orthogonal_with_their_gain_and_biases_at_zero(gain, sizes):
    layer = linear(*sizes, gain=gain)
    w = layer.weight if layer.in_features >= layer.out_features else layer.weight.T
    # Rows (of a tall matrix: columns) of length `gain`, each orthogonal to the others.
    torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(len(w)), atol=1e-5 * gain**2, rtol=1e-5)
    assert (layer.bias == 0).all()


def test_the_same_generator_gives_the_same_layer_and_another_seed_another():
    first, again, other = (linear(3, 8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_torchs_own_random_stream_is_neither_used_nor_moved():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = linear(3, 8)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(linear(3, 8).weight, first.weight)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_stands_behind_each_hidden_layer(activation):
    layers = hidden_layers(3, (16, 8), activation, seeded())
    assert [type(layer) for layer in layers] == [FewInputs, ACTIVATIONS[activation], nn.Linear, ACTIVATIONS[activation]]
    assert [tuple(layer.weight.shape) for layer in layers[::2]] == [(16, 3), (8, 16)]
    w = layers[2].weight
    torch.testing.assert_close(w @ w.T, 2 * torch.eye(8), atol=1e-5, rtol=1e-5)  # gain √2


def test_there_may_be_no_hidden_layer():
    assert hidden_layers(3, (), "tanh", seeded()) == []


def test_what_is_preferred_in_graphs_is_the_same_up_to_rounding():
    net = nn.Sequential(
        *hidden_layers(3, (16,), "tanh", seeded()), initialised(FewOutputs, 16, 2, gain=1.0, generator=seeded())
    )
    obs = 3 * torch.randn(50, 3, generator=seeded(1))
    before = net(obs)
    prefer_fast(net)
    assert net[1].by_sigmoid
    assert net[-1].by_columns
    torch.testing.assert_close(net(obs), before, rtol=0, atol=1e-6)
    assert not torch.equal(net(obs), before)  # but by another way
    torch.testing.assert_close(net(obs.view(5, 10, 3)), before.view(5, 10, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("where", ["a layer of observations", "a layer behind another one"])
def test_the_gradient_of_a_first_layer_is_the_same_the_fast_way(where):
    layer = initialised(FewInputs, 3, 16, gain=1.0, generator=seeded())
    x = torch.randn(50, 3, generator=seeded(1), requires_grad=where != "a layer of observations")
    wanted = [p for p in (x, layer.weight, layer.bias) if p.requires_grad]
    before = torch.autograd.grad(layer(x).square().sum(), wanted)
    prefer_fast(layer)
    out = layer(x)
    assert out.grad_fn.name() == "_LinearOfFewInputsBackward"
    for slow, fast in zip(before, torch.autograd.grad(out.square().sum(), wanted), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
        assert fast.shape == slow.shape


# --- Memory -----------------------------------------------------------------------------------------------------------


def theirs(memory: Memory) -> nn.RNNBase:
    """Torch's own recurrent layer with the same weights."""
    layer = {"gru": nn.GRU, "lstm": nn.LSTM}[memory.kind](memory.weight_ih.shape[1], memory.size, batch_first=True)
    with torch.no_grad():
        for name, weight in memory.named_parameters():
            getattr(layer, f"{name}_l0").copy_(weight)
    return layer


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_memory_is_torchs_own_recurrent_layer(kind):
    memory, x = Memory(kind, 3, 5, seeded()), torch.randn(4, 7, 3, generator=seeded(1))
    with torch.no_grad():
        memory.bias_ih.normal_(generator=seeded(2))
    state = tuple(torch.randn(4, 5, generator=seeded(3)) for _ in memory.initial_state(4, x.device))
    out, last = memory(x, state)
    given = state[0][None] if kind == "gru" else tuple(s[None] for s in state)
    expected, end = theirs(memory)(x, given)
    torch.testing.assert_close(out, expected)
    for ours, reference in zip(last, (end,) if kind == "gru" else end, strict=True):
        torch.testing.assert_close(ours, reference[0])


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_step_by_step_is_the_whole_sequence(kind):
    memory, x = Memory(kind, 3, 5, seeded()), torch.randn(4, 7, 3, generator=seeded(1))
    whole, end = memory(x, memory.initial_state(4, x.device))
    state, steps = memory.initial_state(4, x.device), []
    for t in range(7):
        out, state = memory(x[:, t : t + 1], state)
        steps.append(out)
    torch.testing.assert_close(torch.cat(steps, 1), whole)
    for a, b in zip(state, end, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_each_gate_of_a_memory_begins_orthogonal_without_touching_torchs_random_stream(kind):
    before = torch.get_rng_state()
    memory = Memory(kind, 5, 5, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    for weight in (memory.weight_ih, memory.weight_hh):
        for gate in weight.chunk({"gru": 3, "lstm": 4}[kind]):
            torch.testing.assert_close(gate @ gate.T, torch.eye(5), atol=1e-5, rtol=1e-5)


# --- inward_clamp -----------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=10))
@settings(max_examples=50, derandomize=True)
def test_the_value_is_that_of_a_clamp(x):
    x = torch.tensor(x)
    assert torch.equal(inward_clamp(x, -2.0, 3.0), x.clamp(-2.0, 3.0))


@pytest.mark.parametrize(
    ("x", "grad", "passed"),
    [
        (0.0, 1.0, 1.0),  # inside: everything passes
        (0.0, -1.0, -1.0),
        (-5.0, 1.0, 0.0),  # below: descending +1 would lead further down
        (-5.0, -1.0, -1.0),  # below: descending −1 leads back up
        (5.0, -1.0, 0.0),  # above: descending −1 would lead further up
        (5.0, 1.0, 1.0),  # above: descending +1 leads back down
    ],
)
def test_outside_only_the_gradient_that_leads_back_passes(x, grad, passed):
    x = torch.tensor(x, requires_grad=True)
    (slope,) = torch.autograd.grad(inward_clamp(x, -2.0, 2.0), x, torch.tensor(grad))
    assert slope.item() == passed


def test_inside_its_gradient_passes_gradcheck():
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: inward_clamp(x, -2.0, 2.0).square(), x)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_parameter_driven_against_a_bound_stays_there_and_leaves_at_once_when_the_gradient_turns(sign):
    x = torch.tensor([0.0], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)

    def step(direction: float) -> float:
        optimizer.zero_grad()
        (-direction * inward_clamp(x, -2.0, 2.0)).sum().backward()
        optimizer.step()
        return x.item()

    for _ in range(2000):  # unbounded, this would end at ±200
        step(sign)
    assert 2.0 <= sign * x.item() <= 2.0 + 0.11
    assert sign * step(-sign) < 2.02
    assert sign * step(-sign) < 1.92
