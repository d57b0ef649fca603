"""How networks begin, and the clamp that can be left again."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ppo_kl.policies.networks import ACTIVATIONS, inward_clamp, mlp


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linears(net: nn.Module) -> list[nn.Linear]:
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("last_gain", [0.01, 1.0])
def test_weights_begin_orthogonal_with_their_gain_and_biases_at_zero(last_gain):
    layers = linears(mlp(3, (16, 8), 4, "tanh", last_gain, seeded()))
    assert [tuple(layer.weight.shape) for layer in layers] == [(16, 3), (8, 16), (4, 8)]
    for layer, gain in zip(layers, [math.sqrt(2), math.sqrt(2), last_gain], strict=True):
        w = layer.weight if layer.in_features >= layer.out_features else layer.weight.T
        # Rows (of a tall matrix: columns) of length `gain`, each orthogonal to the others.
        torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(len(w)), atol=1e-5 * gain**2, rtol=1e-5)
        assert (layer.bias == 0).all()


def test_the_same_generator_gives_the_same_network_and_another_seed_another():
    first, again, other = (linears(mlp(3, (8,), 2, "tanh", 1.0, seeded(s))) for s in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a.weight, b.weight)
        assert not torch.equal(a.weight, c.weight)


def test_torchs_own_random_stream_is_neither_used_nor_moved():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = linears(mlp(3, (8,), 2, "tanh", 1.0, seeded()))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(linears(mlp(3, (8,), 2, "tanh", 1.0, seeded()))[0].weight, first[0].weight)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_stands_between_the_layers_and_not_after_the_last(activation):
    net = mlp(3, (8, 8), 2, activation, 1.0, seeded())
    kinds = [type(layer) for layer in net]
    between = ACTIVATIONS[activation]
    assert kinds == [nn.Flatten, nn.Linear, between, nn.Linear, between, nn.Linear]


def test_without_hidden_layers_it_is_linear():
    net = mlp(3, (), 2, "tanh", 1.0, seeded())
    x, y = torch.randn(2, 1, 3, generator=seeded(1))
    torch.testing.assert_close(net(x) + net(y), net(x + y))


def test_observations_of_any_shape_are_flattened():
    net, obs = mlp(6, (8,), 2, "tanh", 1.0, seeded()), torch.randn(5, 2, 3, generator=seeded(1))
    assert net(obs).shape == (5, 2)
    assert torch.equal(net(obs), net(obs.reshape(5, 6)))


# --- inward_clamp -----------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=10))
@settings(deadline=None, max_examples=50, derandomize=True)
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
