"""The policy as a whole: shapes, order, how it begins, and that its scale can neither vanish nor explode."""

import math

import pytest
import torch
from every_family import BOXES, EVERY_FAMILY, vector

from ppo_kl.config.policy import PolicyConfig
from ppo_kl.errors import ConfigError
from ppo_kl.policies.actor_critic import ActorCritic
from ppo_kl.policies.box_families import BetaFamily, FullGaussianFamily, GaussianFamily
from ppo_kl.policies.families import CategoricalFamily, JointFamily
from ppo_kl.training.parameters import FlatParameters

CATEGORICAL = CategoricalFamily(3)
GAUSSIAN = GaussianFamily((-1.0, 0.0), (1.0, 10.0), (2,))
every = pytest.mark.parametrize("family", EVERY_FAMILY.values(), ids=EVERY_FAMILY)
scales = pytest.mark.parametrize("scale", ["log_std", "softplus"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(family, seed=0, **settings) -> ActorCritic:
    return ActorCritic((vector(4),), family, PolicyConfig(hidden_sizes=(8,), **settings), seeded(seed))


WB = ("weight", "bias")
OBS = torch.randn(5, 4, generator=seeded(9))


@every
def test_it_answers_flat_parameters_and_a_value_per_observation(family):
    out = make(family)(OBS)
    assert out.params.shape == (5, family.num_params)
    assert out.value.shape == (5,)
    assert out.state == ()


@every
def test_the_same_generator_gives_the_same_policy(family):
    first, again = make(family).state_dict(), make(family).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)


@every
def test_making_one_leaves_torchs_own_random_stream_alone(family):
    before = torch.get_rng_state()
    make(family)
    assert torch.equal(torch.get_rng_state(), before)


@every
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
        policy.actor.last.bias.copy_(torch.tensor([50.0, -50.0]))
    torch.testing.assert_close(policy(OBS).params[:, :2], torch.tensor([1.0, 0.0]).expand(5, 2))


@scales
@pytest.mark.parametrize("depends", [False, True])
@pytest.mark.parametrize("extreme", [-1e4, -200.0, 200.0, 1e4])
def test_whatever_the_parameters_the_scale_is_within_its_bounds_and_its_gradient_finite(scale, depends, extreme):
    policy = make(GAUSSIAN, scale=scale, scale_depends_on_state=depends, log_std_min=-10.0, log_std_max=2.0)
    with torch.no_grad():
        if depends:
            policy.actor.last.bias[2:] = extreme
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


# --- heads ------------------------------------------------------------------------------------------------------------


def test_the_weights_of_a_seed_are_what_they_have_always_been():
    # The README's measured runs began from these.
    policy = make(GAUSSIAN, log_std_init=-0.5)
    names = [f"{net}.{layer}.{w}" for net in ("actor", "critic") for layer in ("body.layers.0", "last") for w in WB]
    assert [name for name, _ in policy.named_parameters()] == ["actor.scale", *names]
    by_hand = seeded(0)
    for net, last_gain in ((policy.actor, 0.01), (policy.critic, 1.0)):
        for layer, gain in ((net.body.layers[0], math.sqrt(2)), (net.last, last_gain)):
            expected = torch.nn.init.orthogonal_(torch.empty(layer.weight.shape), gain, generator=by_hand)
            assert torch.equal(layer.weight, expected)


@every
@pytest.mark.parametrize("depends", [False, True])
def test_at_the_start_every_policy_is_about_the_same_in_all_states(family, depends):
    policy = make(family, scale_depends_on_state=depends)
    params = policy(OBS).params
    pi, first = family.build(params), family.build(params[:1].expand_as(params))
    assert torch.distributions.kl_divergence(pi, first).max() < 0.01
    assert set(policy.state_dict()) == {name for name, _ in policy.named_parameters()}  # no buffer is saved


@every
def test_every_parameter_of_the_actor_moves_the_distribution(family):
    policy = make(family)
    # The squares, so that no parameter's part cancels.
    slopes = torch.autograd.grad((policy(OBS).params + 1).square().sum(), list(policy.actor.parameters()))
    assert all((slope != 0).any() for slope in slopes)


@pytest.mark.parametrize("kind", [family for family in BOXES if family != "beta"])
@pytest.mark.parametrize("depends", [False, True])
def test_every_gaussian_begins_with_the_scale_it_was_asked_for_and_no_correlation(kind, depends):
    family = BOXES[kind]
    A = family.num_action_dims
    params = make(family, scale_depends_on_state=depends, log_std_init=-1.5)(OBS).params
    torch.testing.assert_close(params[:, A : 2 * A], torch.full((5, A), -1.5), atol=0.05, rtol=0)
    assert params[:, 2 * A :].abs().sum() < 0.5


@pytest.mark.parametrize("depends", [False, True])
def test_the_correlations_of_a_full_gaussian_depend_on_the_state_where_its_scale_does(depends):
    family = FullGaussianFamily((-1.0,) * 3, (1.0,) * 3, (3,))
    policy = make(family, scale_depends_on_state=depends)
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=seeded(2))
    below = policy(OBS).params[:, 6:]
    assert below.shape == (5, 3)
    assert (below == below[0]).all().item() is not depends
    assert policy.actor.scale is None if depends else policy.actor.scale.shape == (6,)


@pytest.mark.parametrize(("bias", "concentration"), [(1e7, 1e5), (-1e7, 1 + 4.5398e-5)])
def test_the_concentrations_of_a_beta_stay_within_bounds_that_can_be_left(bias, concentration):
    policy = make(BetaFamily((-1.0,), (1.0,), (1,)))
    with torch.no_grad():
        policy.actor.last.bias[:] = bias
    params = policy(OBS).params
    pi = BetaFamily((-1.0,), (1.0,), (1,)).build(params).base_dist
    torch.testing.assert_close(pi.concentration1, torch.full((5, 1), concentration))
    back = torch.autograd.grad(math.copysign(1, bias) * params.sum(), list(policy.actor.parameters()))
    assert all(g.isfinite().all() for g in back)
    assert any((g != 0).any() for g in back)


def test_a_joint_has_the_heads_of_its_parts_side_by_side():
    family = JointFamily((("a", GAUSSIAN), ("b", CATEGORICAL), ("c", BetaFamily((-1.0,), (1.0,), (1,)))))
    policy = make(family, log_std_init=-1.0, log_std_max=0.5)
    assert policy.actor.last.out_features == 2 + 3 + 2
    with torch.no_grad():
        policy.actor.last.weight.zero_()
        policy.actor.last.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1e7]))
        policy.actor.scale.copy_(torch.tensor([-1.0, 9.0]))
    expected = [1.0, 2.0, -1.0, 0.5, 3.0, 4.0, 5.0, 6.0, 1e5 - 1]
    assert policy(OBS[:1]).params[0].tolist() == expected


@pytest.mark.parametrize("distribution", ["tanh_gaussian", "beta"])
def test_a_mean_squashed_twice_is_refused(distribution):
    with pytest.raises(ConfigError, match="mean='tanh'"):
        PolicyConfig(mean="tanh", distribution=distribution)


# --- trunk and memory -------------------------------------------------------------------------------------------------

trunks = pytest.mark.parametrize("trunk", ["separate", "shared"])
memories = pytest.mark.parametrize("memory", ["gru", "lstm"])
NEVER, ALWAYS = torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)


def test_a_shared_trunk_is_there_once_and_counts_as_the_actors():
    policy = make(GAUSSIAN, trunk="shared")
    names = [name for name, _ in policy.named_parameters()]
    assert [n for n in names if n.endswith("weight")] == [
        "trunk.layers.0.weight",
        "actor.last.weight",
        "critic.last.weight",
    ]
    from_value = torch.autograd.grad(policy(OBS).value.sum(), policy.trunk.layers[0].weight)[0]
    from_params = torch.autograd.grad(policy(OBS).params.sum(), policy.trunk.layers[0].weight)[0]
    assert (from_value != 0).any()
    assert (from_params != 0).any()
    parameters = FlatParameters(policy)
    assert len(parameters.flat) - parameters.num_actor == 8 + 1
    assert parameters.names[-2:] == ["critic.last.weight", "critic.last.bias"]


@trunks
@pytest.mark.parametrize("memory", ["none", "gru", "lstm"])
def test_acting_needs_the_actor_alone_and_answers_the_same(trunk, memory):
    policy = remembering(trunk, memory)
    state = tuple(torch.randn(x.shape, generator=seeded(3)) for x in policy.initial_state(5))
    out = policy(OBS, state, NEVER)
    params, after = policy.act(OBS, state, NEVER)
    assert torch.equal(params, out.params)
    own = len(state) if trunk == "shared" else len(state) // 2  # the critic's half stays as it was
    assert all(torch.equal(x, y) for x, y in zip(after[:own], out.state[:own], strict=True))
    assert all(torch.equal(x, y) for x, y in zip(after[own:], state[own:], strict=True))


def remembering(trunk, memory, family=GAUSSIAN) -> ActorCritic:
    size = {} if memory == "none" else {"memory_size": 6}
    return make(family, trunk=trunk, memory=memory, **size)


@trunks
@memories
def test_a_state_is_as_large_as_its_memories(trunk, memory):
    state = remembering(trunk, memory).initial_state(5)
    tensors = {"gru": 1, "lstm": 2}[memory] * {"shared": 1, "separate": 2}[trunk]
    assert [tuple(x.shape) for x in state] == [(5, 6)] * tensors
    assert not any(x.any() for x in state)


@trunks
@memories
def test_sequences_are_answered_as_their_steps_are(trunk, memory):
    policy, obs = remembering(trunk, memory), torch.randn(5, 7, 4, generator=seeded(4))
    before = tuple(torch.randn(x.shape, generator=seeded(3)) for x in policy.initial_state(5))
    whole = policy(obs, before)
    state, params, values = before, [], []
    for t in range(7):
        out = policy(obs[:, t], state, NEVER)
        state, _, _ = out.state, params.append(out.params), values.append(out.value)
    torch.testing.assert_close(whole.params.view(5, 7, -1), torch.stack(params, 1))
    torch.testing.assert_close(whole.value.view(5, 7), torch.stack(values, 1))
    for x, y in zip(whole.state, state, strict=True):
        torch.testing.assert_close(x, y)


@trunks
@memories
def test_where_an_episode_begins_nothing_is_remembered(trunk, memory):
    policy = remembering(trunk, memory)
    state = tuple(torch.randn(x.shape, generator=seeded(3)) for x in policy.initial_state(5))
    mixed = torch.tensor([True, False, True, False, False])
    fresh, old, both = (policy(OBS, state, starts) for starts in (ALWAYS, NEVER, mixed))
    initial = policy(OBS, policy.initial_state(5), NEVER)
    assert torch.equal(fresh.params, initial.params)
    assert torch.equal(fresh.value, initial.value)
    assert not torch.equal(fresh.params, old.params)
    torch.testing.assert_close(both.params, torch.where(mixed[:, None], fresh.params, old.params))
    torch.testing.assert_close(both.value, torch.where(mixed, fresh.value, old.value))


@memories
def test_every_parameter_of_a_memory_receives_a_gradient_through_functional_call(memory):
    policy = remembering("separate", memory)
    weights = {name: x.detach().clone().requires_grad_() for name, x in policy.named_parameters()}
    obs = torch.randn(5, 7, 4, generator=seeded(4))
    out = torch.func.functional_call(policy, weights, (obs, policy.initial_state(5)))
    grads = torch.autograd.grad((out.params + 1).square().sum() + out.value.square().sum(), list(weights.values()))
    assert all((grad != 0).any() for grad in grads)
