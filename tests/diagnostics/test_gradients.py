"""The gradients of surrogate, penalty and KL, by theorems and by a numerical derivative."""

from __future__ import annotations

import pytest
import torch
from learner_parts import FAMILIES, batch_of, make, seeded
from toy_envs import small_agent

from ppo_kl.config.objective import Adaptive, Clip, Fixed, ForwardKL, NoPenalty, ObjectiveConfig, Ratio, ReverseKL
from ppo_kl.diagnostics import gradients
from ppo_kl.diagnostics.gradients import gradient_anatomy
from ppo_kl.objectives.objective import Objective

BOTH = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def moved(family, config, n=60):
    """A policy some way from the one its samples are of, about a third of which do not count."""
    learner = make(family, Objective(config))
    batch = batch_of(learner, n)
    with torch.no_grad():
        learner.parameters.flat += 0.1 * torch.randn(len(learner.parameters.flat), generator=seeded(9))
    return learner.policy, learner.objective, batch._replace(valid=torch.rand(n, generator=seeded(8)) < 0.7)


def anatomy(family, config, size=1000):
    policy, objective, batch = moved(family, config)
    return {k: x.item() for k, x in gradient_anatomy(policy, family, objective, batch, size).items()}


@BOTH
@pytest.mark.parametrize("kl_lambda", [0.3, 7.0])
@pytest.mark.parametrize("penalty", [ForwardKL(), ReverseKL()], ids=["forward", "reverse"])
def test_the_ratio_surrogate_with_a_kl_penalty_implies_its_own_lambda(family, kl_lambda, penalty):
    found = anatomy(family, ObjectiveConfig("x", Ratio(), penalty, Fixed(kl_lambda)))
    assert found["penalty/implied_lambda"] == pytest.approx(kl_lambda, rel=1e-4)


@BOTH
def test_the_plain_surrogate_implies_no_penalty_and_has_none(family):
    found = anatomy(family, ObjectiveConfig("x", Ratio(), NoPenalty(), Fixed(0.0)))
    assert found["penalty/implied_lambda"] == pytest.approx(0, abs=1e-6)
    assert found["penalty/grad_norm_ratio"] == 0
    assert 0 < abs(found["penalty/grad_cosine"]) <= 1


@BOTH
def test_the_norm_ratio_is_proportional_to_lambda_and_the_cosine_does_not_know_it(family):
    one, five = (anatomy(family, ObjectiveConfig("x", Ratio(), ForwardKL(), Fixed(x))) for x in (1.0, 5.0))
    assert one["penalty/grad_norm_ratio"] > 0
    assert five["penalty/grad_norm_ratio"] == pytest.approx(5 * one["penalty/grad_norm_ratio"], rel=1e-5)
    assert five["penalty/grad_cosine"] == pytest.approx(one["penalty/grad_cosine"], rel=1e-5)


@BOTH
def test_the_three_numbers_are_those_of_the_gradients_of_the_written_out_losses(family):
    policy, objective, batch = moved(family, ObjectiveConfig("x", Clip(0.05), ForwardKL(), Fixed(0.7)))
    rows, parameters = batch.valid, list(policy.parameters())
    pi, pi_old = family.build(policy(batch.obs).params), family.build(batch.params_old)
    r, adv = (pi.log_prob(batch.action) - batch.logp_old).exp()[rows], batch.adv[rows]

    def gradient(loss):
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return torch.cat([g.flatten() for g in grads if g is not None]).double()

    g_clip = gradient(-torch.minimum(r * adv, r.clamp(0.95, 1.05) * adv).mean())
    g_kl = gradient(torch.distributions.kl_divergence(pi_old, pi)[rows].mean())
    g_ratio = gradient(-(r * adv).mean())
    expected = {
        "penalty/grad_norm_ratio": 0.7 * g_kl.norm() / g_clip.norm(),
        "penalty/grad_cosine": g_clip @ g_kl / (g_clip.norm() * g_kl.norm()),
        "penalty/implied_lambda": (g_clip + 0.7 * g_kl - g_ratio) @ g_kl / (g_kl @ g_kl),
    }
    assert abs(expected["penalty/implied_lambda"] - 0.7) > 0.01  # the clipping adds to λ
    found = gradient_anatomy(policy, family, objective, batch, 1000)
    for tag, value in expected.items():
        assert found[tag].item() == pytest.approx(value.item(), rel=1e-3), tag


@BOTH
def test_parts_as_small_as_a_minibatch_add_up_to_the_whole(family, monkeypatch):
    config = ObjectiveConfig("x", Clip(0.1), ForwardKL(), Fixed(2.0))
    whole = anatomy(family, config, size=7)  # small observations: in one part, whatever the minibatch
    assert whole == anatomy(family, config)
    monkeypatch.setattr(gradients, "PART_NUMBERS", 0)
    parts = anatomy(family, config, size=7)
    assert parts != whole
    assert parts == pytest.approx(whole, rel=1e-4)


def test_a_hinge_is_that_of_a_minibatch_though_larger_parts_would_fit():
    config = ObjectiveConfig("x", Clip(0.1), ForwardKL(hinge=50.0), Adaptive(kl_target=0.001))
    family = next(iter(FAMILIES.values()))
    assert anatomy(family, config, size=7) != pytest.approx(anatomy(family, config), rel=1e-4)


@BOTH
def test_where_nothing_moved_the_numbers_are_finite(family):
    learner = make(family, Objective(ObjectiveConfig("x", Ratio(), ForwardKL(), Fixed(1.0))))
    found = gradient_anatomy(learner.policy, family, learner.objective, batch_of(learner), 64)
    assert all(x.isfinite() for x in found.values())
    assert found["penalty/grad_norm_ratio"] < 1e-3


@BOTH
def test_what_stands_in_rows_that_do_not_count_changes_nothing(family):
    policy, objective, batch = moved(family, ObjectiveConfig("x", Clip(0.1), ForwardKL(), Fixed(2.0)))
    bad = batch._replace(
        adv=torch.where(batch.valid, batch.adv, torch.nan), logp_old=torch.where(batch.valid, batch.logp_old, torch.inf)
    )
    clean, dirty = (gradient_anatomy(policy, family, objective, x, 16) for x in (batch, bad))
    assert {k: x.item() for k, x in clean.items()} == {k: x.item() for k, x in dirty.items()}


@BOTH
def test_measuring_leaves_parameters_and_their_gradients_alone(family):
    policy, objective, batch = moved(family, ObjectiveConfig("x", Ratio(), ForwardKL(), Fixed(1.0)))
    before = {k: x.clone() for k, x in policy.state_dict().items()}
    gradient_anatomy(policy, family, objective, batch, 16)
    assert all(torch.equal(x, before[k]) for k, x in policy.state_dict().items())
    assert all(x.grad is None for x in policy.parameters())


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("trunk", ["separate", "shared"])
def test_it_comes_with_the_first_iteration_and_then_as_often_as_asked(memory, trunk):
    agent = small_agent(
        "CartPole-v1", "clip", diagnostics__gradient_every=2, policy__memory=memory, policy__trunk=trunk
    )
    tags = [{tag for tag in agent.iterate() if "grad_" in tag or "implied" in tag} for _ in range(4)]
    always = {"optim/grad_norm"}
    measured = always | {"penalty/grad_norm_ratio", "penalty/grad_cosine", "penalty/implied_lambda"}
    assert tags == [measured, always, measured, always]


def test_never_means_never():
    agent = small_agent("CartPole-v1", "clip", diagnostics__gradient_every=None, diagnostics__histogram_every=None)
    assert "penalty/implied_lambda" not in agent.iterate()


def test_what_is_measured_changes_nothing_of_what_is_learned():
    agents = [
        small_agent("CartPole-v1", "kl_adaptive", diagnostics__gradient_every=x, diagnostics__histogram_every=x)
        for x in (None, 1)
    ]
    for agent in agents:
        agent.learn(3 * agent.config.env.num_envs * agent.config.training.num_steps)
    plain, measured = (agent.learner.parameters.flat for agent in agents)
    assert torch.equal(plain, measured)
