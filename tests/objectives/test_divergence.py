"""The exact KL of a policy update: direction, reduction, refusals; and its sample estimators."""

import math

import pytest
import torch
from every_family import BOXES, EVERY_FAMILY
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import (
    AbsTransform,
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
    VonMises,
    kl_divergence,
)

from ppo_kl.objectives import Joint, StableCategorical, k1, k2, k3, policy_kl, require_kl
from ppo_kl.policies.box_families import GaussianFamily, TanhGaussianFamily

families = pytest.mark.parametrize("family", EVERY_FAMILY.values(), ids=EVERY_FAMILY)
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


def params_of(family, seed: int, spread: float, dtype=torch.float32) -> torch.Tensor:
    """Parameters of one state, drawn."""
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(1, family.num_params, generator=generator)).to(dtype)


@families
@directions
@given(seed=st.integers(0, 2**31), spread=st.floats(0, 3), step=st.floats(-6, 1).map(lambda x: 10**x))
@settings(max_examples=40, derandomize=True)
def test_it_is_never_negative_beyond_rounding_and_zero_for_the_same_policy(family, direction, seed, spread, step):
    params = params_of(family, seed, spread)
    old, new = (family.build(x) for x in (params, params + params_of(family, seed + 1, step)))
    kl = policy_kl(old, new, direction)
    assert kl.shape == (1,)
    assert kl.item() >= -1e-6
    assert policy_kl(old, family.build(params.clone()), direction).item() == 0.0


@families
@directions
def test_it_agrees_with_monte_carlo(family, direction):
    n, generator = 100_000, torch.Generator().manual_seed(0)
    params = {"old": params_of(family, 1, 0.5, torch.float64), "new": params_of(family, 2, 0.5, torch.float64)}
    old, new = (family.build(params[k].expand(n, -1)) for k in ("old", "new"))
    first, second = ("old", "new") if direction == "forward" else ("new", "old")
    # The KL is the mean of log p − log q over draws from p.
    action = family.sample(params[first].expand(n, -1), generator)
    p, q = ({"old": old, "new": new}[k].log_prob(action) for k in (first, second))
    log_ratio = p - q
    standard_error = log_ratio.std() / math.sqrt(n)
    exact = policy_kl(old, new, direction)[0]
    assert exact > 20 * standard_error
    assert abs(log_ratio.mean() - exact) < 4 * standard_error


@families
@directions
def test_its_gradients_pass_gradcheck(family, direction):
    old, new = (
        torch.cat([params_of(family, seed + i, 1.0, torch.float64) for i in range(3)]).requires_grad_()
        for seed in (0, 5)
    )
    assert torch.autograd.gradcheck(
        lambda old, new: policy_kl(family.build(old), family.build(new), direction), (old, new)
    )


@families
@directions
def test_of_parameters_in_bfloat16_it_is_that_of_the_numbers_they_are(family, direction):
    # A step of 0.01 in bfloat16, which has steps of 0.004 around 1: computed there, rounding would be all there is.
    old = params_of(family, 1, 1.0, torch.bfloat16)
    new = (old.double() + 0.01 * params_of(family, 2, 1.0).sign()).bfloat16()
    kl = policy_kl(family.build(old), family.build(new), direction)
    exact = policy_kl(family.build(old.double()), family.build(new.double()), direction)
    assert kl.dtype == torch.float32
    assert exact.item() > 1e-6
    assert kl.item() == pytest.approx(exact.item(), rel=0.01)


@families
def test_it_goes_through_torchs_own_dispatch(family):
    old, new = (family.build(params_of(family, seed, 1.0)) for seed in (1, 2))
    assert torch.equal(kl_divergence(old, new), policy_kl(old, new))


@families
@directions
@pytest.mark.parametrize("broken", ["old", "new"])
def test_a_policy_that_is_nan_has_a_kl_that_is_nan(family, direction, broken):
    params = params_of(family, 1, 1.0)
    nan = torch.full_like(params, math.nan)
    old, new = (nan, params) if broken == "old" else (params, nan)
    assert policy_kl(family.build(old), family.build(new), direction).isnan().all()


@pytest.mark.parametrize("kind", [type(family) for family in BOXES.values()])
def test_three_like_dimensions_have_three_times_the_kl_of_one(kind):
    def kl_of(dims: int) -> torch.Tensor:
        family = kind((-1.0,) * dims, (1.0,) * dims, (dims,))
        no_correlation = [0.0] * (family.num_params - 2 * dims)
        old, new = ([first] * dims + [second] * dims + no_correlation for first, second in ((0.3, -0.2), (-0.5, 0.4)))
        return policy_kl(*(family.build(torch.tensor([x])) for x in (old, new)))

    assert kl_of(3).shape == (1,)
    torch.testing.assert_close(kl_of(3), 3 * kl_of(1))


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
        (Categorical(torch.ones(1, 1)), categorical(0.2, 0.3, 0.5)),
        (Independent(Categorical(torch.ones(1, 2, 1)), 1), Independent(Categorical(torch.ones(1, 2, 3)), 1)),
    ],
    ids=["gaussian", "categorical", "theirs and ours", "heads"],
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
            GaussianFamily((-1.0,), (1.0,), (1,)).build(torch.zeros(4, 2)),
            TanhGaussianFamily((-1.0,), (1.0,), (1,)).build(torch.zeros(4, 2)),
            ["Independent", "StableNormal", "TanhNormal"],
        ),
        (
            TransformedDistribution(Normal(torch.zeros(4), torch.ones(4)), [TanhTransform()]),
            TransformedDistribution(Normal(torch.zeros(4), torch.ones(4)), [SigmoidTransform()]),
            ["TransformedDistribution", "TanhTransform", "SigmoidTransform"],
        ),
        (
            Gamma(torch.ones(4), torch.ones(4)),
            StableCategorical(logits=torch.zeros(4, 2)),
            ["Gamma", "StableCategorical"],
        ),
    ],
    ids=["unlike", "full-covariance", "unknown", "squashed", "unlike-transforms", "ours"],
)
@directions
def test_a_pair_without_a_formula_is_refused_by_name(old, new, names, direction):
    with pytest.raises(NotImplementedError) as error:
        policy_kl(old, new, direction)
    assert all(name in str(error.value) for name in names)


@families
def test_a_policy_with_a_formula_is_let_through(family):
    require_kl(family.build(params_of(family, 0, 1.0)))


@pytest.mark.parametrize(
    ("dist", "error", "name"),
    [
        (StudentT(torch.ones(4)), NotImplementedError, "StudentT"),
        (Independent(VonMises(torch.ones(4, 2), torch.ones(4, 2)), 1), NotImplementedError, "VonMises"),
        (Normal(torch.zeros(4, 2), torch.ones(4, 2)), ValueError, "(4, 2)"),
    ],
    ids=["unknown", "unknown within", "several dimensions"],
)
def test_a_policy_without_a_formula_is_refused_at_once_by_name(dist, error, name):
    with pytest.raises(error) as caught:
        require_kl(dist)
    assert name in str(caught.value)


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
    # A step of moderate size: where the new policy is much wider than the old one, the variance of k3 is infinite.
    old, move = params_of(family, 3, 0.5, torch.float64), params_of(family, 4, 0.3, torch.float64)
    new = old - move.abs()
    pi_old, pi = (family.build(x.expand(n, -1)) for x in (old, new))
    action = family.sample(old.expand(n, -1), generator)
    estimates = estimator(pi.log_prob(action) - pi_old.log_prob(action))
    standard_error = estimates.std() / math.sqrt(n)
    exact = policy_kl(pi_old, pi)[0]
    assert exact > 20 * standard_error
    assert abs(estimates.mean() - exact) < 4 * standard_error


def test_k3_is_never_negative_and_k1_is_about_half_the_time():
    log_ratio = 0.05 * torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert (k3(log_ratio) >= 0).all()
    assert 0.45 < (k1(log_ratio) < 0).float().mean() < 0.55


@pytest.mark.parametrize("sizes", [(3, 1), (3, 2)])
def test_joints_whose_parts_differ_in_size_are_refused(sizes):
    # Of 3 and of 1 actions they would be broadcast, to a KL of −log 3.
    old, new = (Joint([StableCategorical(logits=torch.zeros(2, n))]) for n in sizes)
    with pytest.raises(ValueError, match="shapes"):
        policy_kl(old, new)


def test_after_a_transform_that_is_no_bijection_there_is_no_exact_kl():
    # |x| of N(1, 1) and of N(−1, 1) is the same distribution; torch would answer the KL of the two Normals, 2.
    old, new = (TransformedDistribution(Normal(torch.tensor([m]), 1.0), [AbsTransform()]) for m in (1.0, -1.0))
    with pytest.raises(NotImplementedError, match=r"AbsTransform.*bijections"):
        policy_kl(old, new)


@pytest.mark.parametrize("log_std", [-20.0, -5.0, 0.0, 2.0])
@pytest.mark.parametrize("step", [1e-3, 1e-4])
def test_a_small_step_in_scale_loses_no_digits_in_float32(log_std, step):
    old = torch.tensor([log_std], dtype=torch.float64).exp().float()
    new = torch.tensor([log_std + step], dtype=torch.float64).exp().float()
    # Of the very numbers that float32 holds: ½ (x − log(1 + x)), x = (σ_old / σ_new)² − 1, as its series.
    r = old.item() / new.item()
    x = (r - 1) * (r + 1)
    expected = 0.5 * (x**2 / 2 - x**3 / 3 + x**4 / 4)
    scalar = policy_kl(Normal(torch.zeros(1), old), Normal(torch.zeros(1), new))
    tril = (torch.diag_embed(s.expand(1, 2)) for s in (old, new))
    full = policy_kl(*(MultivariateNormal(torch.zeros(1, 2), scale_tril=L) for L in tril))
    assert scalar.item() == pytest.approx(expected, rel=1e-5)
    assert full.item() == pytest.approx(2 * expected, rel=1e-5)
