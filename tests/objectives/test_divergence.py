"""The exact KL of a policy update: direction, reduction, refusals; and its sample estimators."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import (
    Categorical,
    Distribution,
    Gamma,
    Independent,
    MultivariateNormal,
    Normal,
    SigmoidTransform,
    StudentT,
    TanhTransform,
    TransformedDistribution,
)

from ppo_kl.objectives import StableCategorical, k1, k2, k3, policy_kl
from ppo_kl.policies.families import CategoricalFamily, GaussianFamily

numbers = st.lists(st.floats(-3, 3, allow_subnormal=False), min_size=4, max_size=4)
families = pytest.mark.parametrize(
    "family", [CategoricalFamily(4), GaussianFamily((-1.0,) * 2, (1.0,) * 2, (2,))], ids=["categorical", "gaussian"]
)
directions = pytest.mark.parametrize("direction", ["forward", "reverse"])


def categorical(*probs: float) -> Distribution:
    return StableCategorical(logits=torch.tensor([probs]).log(), validate_args=False)


def gaussian(mean: list[float], std: list[float]) -> Distribution:
    return Independent(Normal(torch.tensor([mean]), torch.tensor([std])), 1)


@pytest.mark.parametrize(
    ("old", "new", "forward", "reverse"),
    [
        # ½ log(.5/.25) + ½ log(.5/.75) | ¼ log(.25/.5) + ¾ log(.75/.5)
        (categorical(0.5, 0.5), categorical(0.25, 0.75), 0.1438410, 0.1308120),
        # log 2 + (1 + 1) / (2 · 4) − ½ | log ½ + (4 + 1) / 2 − ½
        (gaussian([0.0], [1.0]), gaussian([1.0], [2.0]), 0.4431472, 1.3068528),
    ],
    ids=["categorical", "gaussian"],
)
def test_forward_is_old_against_new_and_reverse_new_against_old(old, new, forward, reverse):
    assert policy_kl(old, new, "forward").item() == pytest.approx(forward, rel=1e-5)
    assert policy_kl(old, new, "reverse").item() == pytest.approx(reverse, rel=1e-5)
    assert policy_kl(old, new).item() == pytest.approx(forward, rel=1e-5)


def test_it_is_summed_over_action_dimensions():
    one = policy_kl(gaussian([0.0], [1.0]), gaussian([1.0], [2.0]))
    three = policy_kl(gaussian([0.0] * 3, [1.0] * 3), gaussian([1.0] * 3, [2.0] * 3))
    assert three.shape == (1,)
    torch.testing.assert_close(three, 3 * one)


@families
@directions
@given(old=numbers, new=numbers)
@settings(deadline=None, max_examples=50, derandomize=True)
def test_it_is_never_negative_beyond_rounding_and_zero_for_the_same_policy(family, direction, old, new):
    old, new = (family.build(torch.tensor([x])) for x in (old, new))
    assert policy_kl(old, new, direction).item() >= -1e-6
    assert policy_kl(old, old, direction).item() == 0.0


@families
@directions
def test_it_agrees_with_monte_carlo(family, direction):
    n, generator = 100_000, torch.Generator().manual_seed(0)
    params = {
        "old": torch.tensor([0.5, -0.3, 0.2, -0.7], dtype=torch.float64),
        "new": torch.tensor([0.1, 0.4, -0.2, -0.3], dtype=torch.float64),
    }
    old, new = (family.build(params[k].expand(n, 4)) for k in ("old", "new"))
    first, second = ("old", "new") if direction == "forward" else ("new", "old")
    # The KL is the mean of log p − log q over draws from p.
    action = family.sample(params[first].expand(n, 4), generator)
    p, q = ({"old": old, "new": new}[k].log_prob(action) for k in (first, second))
    log_ratio = p - q
    standard_error = log_ratio.std() / math.sqrt(n)
    exact = policy_kl(old, new, direction)[0]
    assert exact > 20 * standard_error
    assert abs(log_ratio.mean() - exact) < 4 * standard_error


@families
@directions
def test_its_gradients_pass_gradcheck(family, direction):
    generator = torch.Generator().manual_seed(0)
    old, new = (torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda old, new: policy_kl(family.build(old), family.build(new), direction), (old, new)
    )


@pytest.mark.parametrize("log_std", [-20.0, -10.0, 0.0, 2.0])
@pytest.mark.parametrize("step", [1e-3, 1.0, 1e3])
def test_a_gaussian_within_its_clamp_has_a_finite_kl_and_gradient(log_std, step):
    family = GaussianFamily((-1.0,), (1.0,), (1,))
    new = torch.tensor([[step, log_std]], requires_grad=True)
    kl = policy_kl(family.build(torch.tensor([[0.0, log_std]])), family.build(new))
    (slope,) = torch.autograd.grad(kl.sum(), new)
    # ½ (step / σ)² and its derivatives step / σ² and −(step / σ)²
    assert kl.item() == pytest.approx(0.5 * (step / math.exp(log_std)) ** 2, rel=1e-4, abs=1e-7)
    torch.testing.assert_close(
        slope[0].double(),
        torch.tensor([step / math.exp(log_std) ** 2, -((step / math.exp(log_std)) ** 2)], dtype=torch.float64),
        rtol=1e-4,
        atol=2e-7,
    )


@pytest.mark.parametrize(
    ("old", "new", "shapes"),
    [
        ((4, 3), (4, 3), ["(4, 3)"]),  # Normal over three dimensions without Independent
        ((4,), (5,), ["(4,)", "(5,)"]),
        ((4, 1), (4,), ["(4, 1)", "(4,)"]),
        ((5, 3), (3,), ["(5, 3)", "(3,)"]),
        ((), (), ["()"]),
    ],
    ids=str,
)
def test_batch_shapes_that_are_not_one_common_b_are_refused(old, new, shapes):
    with pytest.raises(ValueError, match="batch shapes") as error:
        policy_kl(Normal(torch.zeros(old), torch.ones(old)), Normal(torch.zeros(new), torch.ones(new)))
    assert all(shape in str(error.value) for shape in shapes)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (gaussian([0.0], [1.0]), gaussian([0.0] * 3, [1.0] * 3)),
        (categorical(1.0), categorical(0.2, 0.3, 0.5)),
    ],
    ids=["gaussian", "categorical"],
)
def test_policies_over_actions_of_different_size_are_refused(old, new):
    # Broadcast, the one would be compared with each part of the other.
    with pytest.raises(ValueError, match="shape"):
        policy_kl(old, new)


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        (Normal(torch.zeros(4), torch.ones(4)), Categorical(logits=torch.zeros(4, 2)), ["Normal", "Categorical"]),
        (
            gaussian([0.0] * 2, [1.0] * 2),
            MultivariateNormal(torch.zeros(1, 2), torch.eye(2)),
            ["Independent", "MultivariateNormal"],
        ),
        (StudentT(torch.ones(4)), StudentT(torch.ones(4)), ["StudentT"]),
        (
            TransformedDistribution(Normal(torch.zeros(4), torch.ones(4)), [TanhTransform()]),
            TransformedDistribution(Normal(torch.zeros(4), torch.ones(4)), [SigmoidTransform()]),
            ["TransformedDistribution"],
        ),
        (
            Gamma(torch.ones(4), torch.ones(4)),
            StableCategorical(logits=torch.zeros(4, 2)),
            ["Gamma", "StableCategorical"],
        ),
    ],
    ids=["unlike", "full-covariance", "unknown", "unlike-transforms", "ours"],
)
@directions
def test_a_pair_without_a_formula_is_refused_by_name(old, new, names, direction):
    with pytest.raises(NotImplementedError) as error:
        policy_kl(old, new, direction)
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize(
    ("estimator", "log_ratio", "expected"),
    [
        (k1, -0.5, 0.5),
        (k1, 0.5, -0.5),
        (k2, -0.5, 0.125),
        (k2, 0.5, 0.125),
        (k3, math.log(2), 1 - math.log(2)),
        (k3, -math.log(2), -0.5 + math.log(2)),
        (k3, 0.0, 0.0),
        (k3, 1e-3, 5.0016671e-7),  # ½ x² + x³ / 6: exp(x) − 1 − x would be off by an eighth in float32
    ],
)
def test_an_estimator_is_its_formula(estimator, log_ratio, expected):
    assert estimator(torch.tensor(log_ratio)).item() == pytest.approx(expected, rel=1e-3)


@families
@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_are_unbiased_for_the_forward_kl(family, estimator):
    n, generator = 100_000, torch.Generator().manual_seed(1)
    old = torch.tensor([0.5, -0.3, 0.2, -0.7], dtype=torch.float64).expand(n, 4)
    # As scales, narrower than the old ones: wider by more than √2 and the variance of k3 is infinite.
    new = torch.tensor([-0.5, 0.8, -0.4, -1.2], dtype=torch.float64).expand(n, 4)
    action = family.sample(old, generator)
    pi_old, pi = family.build(old), family.build(new)
    estimates = estimator(pi.log_prob(action) - pi_old.log_prob(action))
    standard_error = estimates.std() / math.sqrt(n)
    exact, reverse = policy_kl(pi_old, pi)[0], policy_kl(pi_old, pi, "reverse")[0]
    assert abs(exact - reverse) > 8 * standard_error
    assert abs(estimates.mean() - exact) < 4 * standard_error


def test_k3_is_never_negative_and_k1_is_about_half_the_time():
    log_ratio = 0.05 * torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert (k3(log_ratio) >= 0).all()
    assert 0.45 < (k1(log_ratio) < 0).float().mean() < 0.55
