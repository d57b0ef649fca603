"""What must hold for every objective, checked by autograd through real policies."""

import pytest
import torch

from ppo_kl.objectives import PRESETS, Objective

everything = pytest.mark.parametrize("name", PRESETS)


@everything
def test_at_the_old_policy_the_gradient_is_the_policy_gradient(name, samples):
    objective = Objective.from_preset(name)
    inputs = samples.inputs(objective)
    expected = samples.gradient(-(inputs["logp"] * samples.adv).mean())
    assert (expected != 0).all()
    gradient = samples.gradient(objective(**samples.inputs(objective)).loss)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@everything
def test_at_the_old_policy_the_loss_is_the_mean_negative_advantage(name, samples):
    # r = 1 and KL = 0 in every row, whatever the surrogate and λ.
    objective = Objective.from_preset(name)
    torch.testing.assert_close(objective(**samples.inputs(objective)).loss, -samples.adv.mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "same",
    [
        Objective.from_preset("none"),
        Objective.from_preset("clip", clip_eps=0.999, clip_eps_high=1e6),
    ],
    ids=["none", "clip-with-a-boundless-band"],
)
def test_without_lambda_the_penalised_objective_equals(same, samples):
    objective = Objective.from_preset("kl_fixed", kl_lambda=0.0)
    samples.move(0.1)
    ours, theirs = (o(**samples.inputs(o)) for o in (objective, same))
    # A fixture whose policy did not move would prove nothing.
    assert ours.metrics["kl/forward"] > 0.01
    assert ours.metrics["ratio/clip_fraction"] > 0.2
    assert torch.equal(ours.loss, theirs.loss)
    assert torch.equal(samples.gradient(ours.loss), samples.gradient(theirs.loss))


@pytest.mark.parametrize("high", [None, 0.4])
def test_the_gradient_of_klip_is_that_of_clip_through_a_policy(high, samples):
    samples.move(0.3)
    klip, clip = (Objective.from_preset(name, clip_eps_high=high) for name in ("klip", "clip"))
    inputs = samples.inputs(clip)
    ratio, adv = (inputs["logp"] - inputs["logp_old"]).exp(), samples.adv
    upper = 1.2 if high is None else 1.4
    for killed in ((adv > 0) & (ratio > upper), (adv < 0) & (ratio < 0.8)):
        assert killed.sum() >= 3  # a fixture in which nothing is clipped would prove nothing
    ours, theirs = (samples.gradient(o(**samples.inputs(o)).loss) for o in (klip, clip))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_boundless_band_matters(samples):
    # The counterpart of the test above: with the usual band the two do differ on the same samples.
    samples.move(0.1)
    none, clip = Objective.from_preset("none"), Objective.from_preset("clip")
    ours, theirs = (samples.gradient(o(**samples.inputs(o)).loss) for o in (none, clip))
    assert not torch.allclose(ours, theirs, rtol=0.01)


def test_lambda_adds_its_multiple_of_the_kl_gradient(samples):
    samples.move(0.1)
    penalised, plain = Objective.from_preset("kl_fixed", kl_lambda=3.0), Objective.from_preset("none")
    inputs = samples.inputs(plain)
    expected = samples.gradient(plain(**inputs).loss + 3.0 * inputs["kl"].mean())
    gradient = samples.gradient(penalised(**samples.inputs(penalised)).loss)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_a_penalty_pulls_the_policy_back_to_the_old_one(samples):
    # With no advantage at all only the penalty is left: descending it must lower the KL.
    samples.adv.zero_()
    samples.move(0.1)
    objective = Objective.from_preset("kl_fixed")
    before = samples.inputs(objective)["kl"].mean().detach()
    optimizer = torch.optim.SGD(samples.policy.actor.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        objective(**samples.inputs(objective)).loss.backward()
        optimizer.step()
    assert samples.inputs(objective)["kl"].mean() < 0.5 * before
