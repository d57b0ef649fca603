"""The policy as a whole: shapes, order, how it begins, and that its scale can neither vanish nor explode."""

import math

import pytest
import torch

from ppo_kl.config.policy import PolicyConfig
from ppo_kl.policies.actor_critic import ActorCritic
from ppo_kl.policies.families import CategoricalFamily, GaussianFamily

CATEGORICAL = CategoricalFamily(3)
GAUSSIAN = GaussianFamily((-1.0, 0.0), (1.0, 10.0), (2,))
both = pytest.mark.parametrize("family", [CATEGORICAL, GAUSSIAN], ids=["categorical", "gaussian"])
scales = pytest.mark.parametrize("scale", ["log_std", "softplus"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(family, seed=0, **settings) -> ActorCritic:
    return ActorCritic(4, family, PolicyConfig(hidden_sizes=(8,), **settings), seeded(seed))


OBS = torch.randn(5, 4, generator=seeded(9))


@both
def test_it_answers_flat_parameters_and_a_value_per_observation(family):
    out = make(family)(OBS)
    assert out.params.shape == (5, family.num_params)
    assert out.value.shape == (5,)
    assert out.state == ()


@both
def test_a_state_is_handed_through(family):
    state = (torch.ones(5, 2),)
    assert make(family)(OBS, state).state is state


@both
def test_the_same_generator_gives_the_same_policy(family):
    first, again = make(family).state_dict(), make(family).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)


@both
def test_making_one_leaves_torchs_own_random_stream_alone(family):
    before = torch.get_rng_state()
    make(family)
    assert torch.equal(torch.get_rng_state(), before)


@both
def test_actor_and_critic_share_nothing(family):
    policy = make(family)
    out = policy(OBS)
    from_value = torch.autograd.grad(out.value.sum(), list(policy.actor.parameters()), allow_unused=True)
    assert all(g is None for g in from_value)
    out = policy(OBS)
    from_params = torch.autograd.grad(out.params.sum(), list(policy.critic.parameters()), allow_unused=True)
    assert all(g is None for g in from_params)


def test_at_the_start_all_actions_are_about_as_likely():
    # The gain of the actor's last layer is 0.01: exploration does not depend on the seed.
    probs = CATEGORICAL.build(make(CATEGORICAL)(OBS).params).probs
    torch.testing.assert_close(probs, torch.full((5, 3), 1 / 3), atol=0.02, rtol=0)


@scales
@pytest.mark.parametrize("depends", [False, True])
@pytest.mark.parametrize("start", [-3.0, 0.0, 1.5])
def test_the_scale_begins_where_it_was_asked_to(scale, depends, start):
    policy = make(GAUSSIAN, scale=scale, scale_depends_on_state=depends, log_std_init=start)
    mean, log_std = policy(OBS).params.chunk(2, -1)
    torch.testing.assert_close(log_std, torch.full((5, 2), start), atol=0.05, rtol=0)
    assert mean.abs().max() < 0.05


@pytest.mark.parametrize("depends", [False, True])
def test_only_a_scale_that_is_asked_to_differs_between_states(depends):
    log_std = make(GAUSSIAN, scale_depends_on_state=depends)(OBS).params.chunk(2, -1)[1]
    assert torch.equal(log_std[0], log_std[1]) is not depends


def test_a_tanh_mean_spans_the_action_bounds():
    policy = make(GAUSSIAN, mean="tanh")
    centre = policy(OBS).params[:, :2]
    torch.testing.assert_close(centre, torch.tensor([0.0, 5.0]).expand(5, 2), atol=0.1, rtol=0)
    with torch.no_grad():
        policy.actor.net[-1].bias.copy_(torch.tensor([50.0, -50.0]))
    torch.testing.assert_close(policy(OBS).params[:, :2], torch.tensor([1.0, 0.0]).expand(5, 2))


@scales
@pytest.mark.parametrize("depends", [False, True])
@pytest.mark.parametrize("extreme", [-1e4, -200.0, 200.0, 1e4])
def test_whatever_the_parameters_the_scale_is_within_its_bounds_and_its_gradient_finite(scale, depends, extreme):
    policy = make(GAUSSIAN, scale=scale, scale_depends_on_state=depends, log_std_min=-10.0, log_std_max=2.0)
    with torch.no_grad():
        if depends:
            policy.actor.net[-1].bias[2:] = extreme
        else:
            policy.actor.scale[:] = extreme
    params = policy(OBS).params
    log_std = params.chunk(2, -1)[1]
    torch.testing.assert_close(log_std, torch.full((5, 2), math.copysign(6, extreme) - 4))
    # Descending this leads back inside, so a finite gradient must arrive that is not 0.
    back = torch.autograd.grad(math.copysign(1, extreme) * log_std.sum(), list(policy.actor.parameters()))
    assert all(g.isfinite().all() for g in back)
    assert any((g != 0).any() for g in back)


@scales
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_scale_driven_against_its_bound_stays_there_and_comes_back_when_the_gradient_turns(scale, sign):
    family = GaussianFamily((-1.0,), (1.0,), (1,))
    policy, obs = make(family, scale=scale, log_std_min=-5.0, log_std_max=2.0), OBS[:1]
    optimizer = torch.optim.SGD([policy.actor.scale], lr=0.1)
    bound = 2.0 if sign > 0 else -5.0

    def step(direction: float) -> float:
        optimizer.zero_grad()
        log_std = policy(obs).params[:, 1]
        (-direction * log_std).sum().backward()
        optimizer.step()
        return policy(obs).params[0, 1].item()

    for _ in range(2000):  # unbounded, the parameter would end at ±200
        step(sign)
    assert step(sign) == bound
    assert policy.actor.scale.isfinite().all()
    # Inside within two steps: one may be spent on the overshoot of the step that reached the bound.
    step(-sign)
    assert sign * step(-sign) < sign * bound
