"""One vector behind actor and critic."""

import pytest
import torch
from every_family import vector
from torch import nn

from ppo_kl.config.policy import PolicyConfig
from ppo_kl.errors import CheckpointError
from ppo_kl.policies.actor_critic import ActorCritic
from ppo_kl.policies.box_families import GaussianFamily
from ppo_kl.training.parameters import FlatParameters


@pytest.fixture
def policy() -> ActorCritic:
    family = GaussianFamily((-1.0, -1.0), (1.0, 1.0), (2,))
    return ActorCritic((vector(3),), family, PolicyConfig(hidden_sizes=(4,)), torch.Generator().manual_seed(0))


@pytest.fixture
def parameters(policy) -> FlatParameters:
    return FlatParameters(policy)


OBS = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def test_laying_them_out_changes_no_value(policy):
    before = {name: x.clone() for name, x in policy.state_dict().items()}
    parameters = FlatParameters(policy)
    assert all(torch.equal(x, before[name]) for name, x in policy.state_dict().items())
    assert len(parameters.flat) == sum(x.numel() for x in policy.parameters())
    assert parameters.flat.dtype == torch.float32
    assert parameters.flat.is_leaf


def test_the_module_acts_with_what_is_written_into_the_vector(policy, parameters):
    before = policy(OBS).value
    with torch.no_grad():
        parameters.flat.mul_(2)
    assert not torch.equal(policy(OBS).value, before)
    for name, view in parameters.split(parameters.flat).items():
        assert policy.get_parameter(name).data_ptr() == view.data_ptr()


def test_what_is_written_into_the_module_is_in_the_vector(policy, parameters):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(7.0)
    assert (parameters.flat == 7).all()


def test_the_actor_comes_first(policy, parameters):
    actor = sum(x.numel() for x in policy.actor.parameters())
    assert parameters.num_actor == actor
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter.fill_(1.0)
        for parameter in policy.critic.parameters():
            parameter.fill_(2.0)
    assert (parameters.flat[:actor] == 1).all()
    assert (parameters.flat[actor:] == 2).all()


def test_the_actor_comes_first_even_where_the_module_names_the_critic_first():
    parameters = FlatParameters(nn.ModuleDict({"critic": nn.Linear(2, 1), "actor": nn.Linear(2, 3)}))
    assert parameters.names == ["actor.weight", "actor.bias", "critic.weight", "critic.bias"]
    assert parameters.num_actor == 9


def test_split_and_join_are_inverse(parameters):
    vector = torch.arange(float(len(parameters.flat)))
    named = parameters.split(vector)
    assert {name: x.shape for name, x in named.items()} == dict(zip(parameters.names, parameters.shapes, strict=True))
    assert torch.equal(parameters.join(named), vector)
    assert torch.equal(parameters.join(dict(reversed(named.items()))), vector)


def test_a_gradient_goes_through_the_split(policy, parameters):
    loss = sum((x * k).sum() for k, x in enumerate(parameters.split(parameters.flat).values()))
    (grad,) = torch.autograd.grad(loss, parameters.flat)
    expected = torch.cat([torch.full((size,), float(k)) for k, size in enumerate(parameters.sizes)])
    assert torch.equal(grad, expected)


def test_a_number_of_each_part_is_spread_over_its_parameters(parameters):
    spread, actor = parameters.by_part(torch.tensor([3.0, 5.0])), parameters.num_actor
    assert spread.shape == parameters.flat.shape
    assert (spread[:actor] == 3).all()
    assert (spread[actor:] == 5).all()


def test_parameters_of_other_shapes_are_refused_with_both(parameters):
    named = parameters.split(parameters.flat.detach())
    named["actor.body.layers.0.weight"] = torch.zeros(4, 9)
    before = parameters.flat.detach().clone()
    with pytest.raises(CheckpointError, match=r"actor\.body\.layers\.0\.weight") as error:
        parameters.join(named)
    assert "(4, 3)" in str(error.value)
    assert "(4, 9)" in str(error.value)
    assert "actor.scale" not in str(error.value)  # that one fits
    assert torch.equal(parameters.flat, before)


@pytest.mark.parametrize("change", ["missing", "extra", "renamed", "transposed"])
def test_parameters_that_do_not_fit_are_refused_by_name(parameters, change):
    named = dict(parameters.split(parameters.flat.detach()))
    culprit = "critic.last.weight"
    if change == "extra":
        culprit = "critic.9.bias"
        named[culprit] = torch.zeros(2)
    elif change == "transposed":
        named[culprit] = named[culprit].T
    else:
        x = named.pop(culprit)
        if change == "renamed":
            culprit = "elsewhere.critic.last.weight"
            named[culprit] = x
    with pytest.raises(CheckpointError) as error:
        parameters.join(named)
    assert culprit in str(error.value)


def test_joined_parameters_take_the_vectors_own_type(parameters):
    named = {name: x.double() for name, x in parameters.split(parameters.flat.detach()).items()}
    assert parameters.join(named).dtype == torch.float32
