"""Gaussian distributions of ours: KLs in which nothing cancels, and a tanh that can be scored when it is saturated."""

import math

import numpy as np
import pytest
import scipy.integrate
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, Normal, TanhTransform, TransformedDistribution, kl_divergence

from ppo_kl.objectives import StableMultivariateNormal, StableNormal, TanhNormal

INF = float("inf")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Normal -----------------------------------------------------------------------------------------------------------


def normal(mean: float, std: float, dtype=torch.float32) -> StableNormal:
    return StableNormal(*(torch.tensor(x, dtype=dtype) for x in (mean, std)), validate_args=False)


@pytest.mark.parametrize(
    ("old", "new", "true"),
    [
        ((0.0, 1.0), (1e-4, 1.0), 5e-9),  # ½ · 10⁻⁸: torch answers 0
        ((0.0, 1e-23), (0.0, 1.0), 52.4595),  # 23 log 10 − ½: torch answers inf
        ((0.0, 1.0), (0.0, 1e23), 52.4595),
        ((0.0, 1.0), (0.0, 1e-20), INF),  # ½ · 10⁴⁰, more than float32 holds: torch answers NaN
        ((0.0, 1e-8), (1e-3, 1e-8), 5e9),
        ((0.0, 1.0), (0.0, 1.001), 9.98335e-7),  # log 1.001 + 1 / (2 · 1.001²) − ½
        ((0.0, 0.5), (0.0, 1e-3), 124993.285),  # ½ (500² − 1) − log 500
    ],
)
def test_a_normal_where_torch_cancels_or_overflows(old, new, true):
    assert kl_divergence(normal(*old), normal(*new)).item() == pytest.approx(true, rel=2e-4)


def exact_normal_kl(mean, log_std, new_mean, new_log_std):
    """In float64 NumPy; e^x − 1 − x, where x is small, by its own series."""
    x = 2 * (log_std - new_log_std)
    series = sum(x**k / math.factorial(k) for k in range(2, 12))
    scale = np.where(abs(x) < 0.1, series, np.expm1(x) - x)
    return 0.5 * ((mean - new_mean) / np.exp(new_log_std)) ** 2 + 0.5 * scale


number, log_std = st.floats(-10, 10, width=32), st.floats(-20, 2)
step = st.floats(-8, 1).map(lambda exponent: 10**exponent)


@given(number, log_std, step, step, st.sampled_from([1, -1]))
@settings(max_examples=300, derandomize=True)
def test_a_normal_in_float32_is_right_for_steps_of_any_size_and_never_negative(mean, log_std, move, widen, sign):
    std, new_std = np.float32(np.exp(log_std)), np.float32(np.exp(log_std + sign * widen))
    new_mean = np.float32(mean + move * std)
    kl = kl_divergence(normal(mean, std.item()), normal(new_mean.item(), new_std.item())).item()
    exact = exact_normal_kl(
        *(
            x.astype(np.float64)
            for x in (np.float32(mean), np.log(std, dtype=np.float64), new_mean, np.log(new_std, dtype=np.float64))
        )
    )
    # log σ is rounded in its last place, up to 1e-6, which is all there is of so small a step.
    assert kl == pytest.approx(exact, rel=1e-4, abs=4e-6 * abs(widen) + 1e-11)
    assert kl >= 0


@pytest.mark.parametrize(("log_std", "new_log_std"), [(-20.0, 2.0), (2.0, -20.0), (-20.0, -20.0), (2.0, 2.0)])
def test_a_normal_is_right_with_finite_gradients_between_the_ends_of_the_clamp(log_std, new_log_std):
    p, q = (torch.tensor(x, requires_grad=True) for x in (log_std, new_log_std))
    kl = kl_divergence(*(StableNormal(torch.tensor(0.0), x.exp(), validate_args=False) for x in (p, q)))
    slopes = torch.autograd.grad(kl, (p, q))
    # d/dδ ½ (e^2δ − 1 − 2δ) = e^2δ − 1
    delta = log_std - new_log_std
    assert kl.item() == pytest.approx(exact_normal_kl(0, log_std, 0, new_log_std), rel=1e-4)
    assert [s.item() for s in slopes] == pytest.approx([math.expm1(2 * delta), -math.expm1(2 * delta)], rel=1e-4)


@pytest.mark.parametrize("k", [8, 12, 16, 20, 23])
def test_the_smallest_changes_of_scale_are_not_lost(k):
    # ½ (e^2δ − 1 − 2δ) = δ² + ⅔ δ³ for δ = −log(1 + 2^−k); e^x − 1 − x would be off by a tenth from k = 20 on.
    delta = -math.log1p(2.0**-k)
    kl = kl_divergence(normal(0.0, 1.0), normal(0.0, 1 + 2.0**-k)).item()
    assert kl == pytest.approx(delta**2 + 2 / 3 * delta**3, rel=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_its_two_formulas_meet(sign):
    # At |2δ| = 0.02 the series hands over; value and derivative e^2δ − 1 are the same on both sides.
    for offset in (-1e-9, 1e-9):
        delta = torch.tensor(sign * (0.01 + offset), dtype=torch.float64, requires_grad=True)
        one = torch.ones((), dtype=torch.float64)
        kl = kl_divergence(StableNormal(0 * one, delta.exp()), StableNormal(0 * one, one))
        (slope,) = torch.autograd.grad(kl, delta)
        assert kl.item() == pytest.approx(exact_normal_kl(0, delta.item(), 0, 0), rel=1e-8)
        assert slope.item() == pytest.approx(math.expm1(2 * delta.item()), rel=1e-7)


@given(number, st.floats(-3, 2), number, st.floats(-3, 2))
@settings(max_examples=100, derandomize=True)
def test_a_normal_equals_torchs_where_that_is_right(mean, log_std, new_mean, new_log_std):
    ours, theirs = (
        [
            make(torch.tensor(m).double(), torch.tensor(s).double().exp())
            for m, s in ((mean, log_std), (new_mean, new_log_std))
        ]
        for make in (StableNormal, Normal)
    )
    torch.testing.assert_close(kl_divergence(*ours), kl_divergence(*theirs), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(ours[0].entropy(), theirs[0].entropy())
    torch.testing.assert_close(ours[0].log_prob(torch.ones(())), theirs[0].log_prob(torch.ones(())))


# --- tanh of a Normal -------------------------------------------------------------------------------------------------


def squashed(mean, std, dtype=torch.float64) -> TanhNormal:
    return TanhNormal(torch.tensor([mean], dtype=dtype), torch.tensor([std], dtype=dtype), validate_args=False)


def test_a_squashed_normal_takes_and_gives_values_before_the_tanh():
    pi = squashed([5.0, -7.0], [0.1, 0.1])
    sample = pi.sample((1000,))
    assert (pi.batch_shape, pi.event_shape, sample.shape) == ((1,), (2,), (1000, 1, 2))
    torch.testing.assert_close(sample.mean((0, 1)), torch.tensor([5.0, -7.0]).double(), atol=0.02, rtol=0)
    assert pi.rsample().shape == (1, 2)


@given(st.floats(-3, 3), st.floats(-1, 1), st.floats(-3, 3))
@settings(max_examples=50, derandomize=True)
def test_its_density_is_that_of_the_squashed_value(mean, log_std, u):
    theirs = TransformedDistribution(
        Normal(torch.tensor(mean).double(), torch.tensor(log_std).double().exp()), [TanhTransform()]
    )
    u = torch.tensor([u], dtype=torch.float64)
    ours = squashed([mean], [math.exp(log_std)]).log_prob(u)
    torch.testing.assert_close(ours[0], theirs.log_prob(u.tanh())[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("u", [10.0, -10.0, 50.0, -50.0, 1e4])
def test_a_saturated_action_has_a_finite_log_prob_and_gradient(u):
    assert torch.tensor(u).tanh().abs() == 1  # after the tanh, nothing would be left to score
    mean = torch.tensor([[u - 1.0]], requires_grad=True)
    logp = TanhNormal(mean, torch.ones(1, 1), validate_args=False).log_prob(torch.tensor([[u]]))
    # −½ − ½ log 2π − log(1 − tanh² u), where 1 − tanh² u = 4 e^−2|u| to within e^−4|u|
    expected = -0.5 - 0.5 * math.log(2 * math.pi) - math.log(4) + 2 * abs(u)
    assert logp.item() == pytest.approx(expected, rel=1e-5)
    assert torch.autograd.grad(logp.sum(), mean)[0].item() == 1.0


def test_its_kl_is_that_of_the_normals_below_summed():
    p, q = squashed([0.0, 1.0], [1.0, 2.0]), squashed([1.0, 1.0], [2.0, 2.0])
    # log 2 + (1 + 1) / (2 · 4) − ½ in the first dimension, nothing in the second
    assert kl_divergence(p, q).tolist() == pytest.approx([math.log(2) - 0.25])
    assert kl_divergence(p.expand((3, 1)), q.expand((3, 1))).shape == (3, 1)


def exact_entropy(mean: float, std: float) -> float:
    """−E log density, by adaptive integration over u."""

    def integrand(z: float) -> float:
        u = abs(mean + std * z)
        log_slope = 2 * (math.log(2) - u - math.log1p(math.exp(-2 * u)))
        return (0.5 * z * z + 0.5 * math.log(2 * math.pi) + math.log(std) + log_slope) * math.exp(-0.5 * z * z)

    kink = min(max(-mean / std, -11.9), 11.9)
    value, _ = scipy.integrate.quad(integrand, -12, 12, points=[kink], limit=500, epsabs=1e-12)
    return value / math.sqrt(2 * math.pi)


@pytest.mark.parametrize(("std", "error"), [(0.01, 1e-6), (0.3, 1e-6), (1.0, 1e-6), (2.8, 1e-6), (7.4, 3e-4)])
@pytest.mark.parametrize("mean", [0.0, 0.7, -2.0, 5.0])
def test_its_entropy_is_that_of_the_squashed_value_to_the_error_it_states(mean, std, error):
    assert squashed([mean], [std]).entropy().item() == pytest.approx(exact_entropy(mean, std), abs=error, rel=0)


def test_its_entropy_is_largest_for_a_density_that_is_nearly_flat():
    # Over (−1, 1) no density has more than log 2.
    entropies = [squashed([0.0], [std]).entropy().item() for std in (0.3, 0.87, 3.0)]
    assert entropies[1] == max(entropies)
    assert math.log(2) - 0.02 < entropies[1] < math.log(2)


def test_the_gradient_of_its_entropy_is_that_of_its_value():
    mean, log_std = (torch.randn(3, 2, dtype=torch.float64, generator=seeded(), requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda m, s: TanhNormal(m, s.exp()).entropy(), (mean, log_std))


# --- full covariance --------------------------------------------------------------------------------------------------


def trils(size: int, shear: float, n: int = 200, seed: int = 0) -> torch.Tensor:
    below = shear * torch.randn(n, size, size, generator=seeded(seed)).tril(-1)
    return below + torch.diag_embed(torch.exp(0.5 * torch.randn(n, size, generator=seeded(seed + 1))))


def exact_full_kl(mean, tril, new_mean, new_tril):
    """½ (tr(Σ_q⁻¹ Σ_p) + Δμᵀ Σ_q⁻¹ Δμ − A + log det Σ_q / det Σ_p) in float64 NumPy."""
    mean, tril, new_mean, new_tril = (x.double().numpy() for x in (mean, tril, new_mean, new_tril))
    inverse = np.linalg.inv(new_tril)
    ratio, move = inverse @ tril, (inverse @ (mean - new_mean)[..., None])[..., 0]
    logs = [np.log(x.diagonal(axis1=-2, axis2=-1)).sum(-1) for x in (tril, new_tril)]
    return 0.5 * ((ratio**2).sum((-2, -1)) + (move**2).sum(-1) - tril.shape[-1]) + logs[1] - logs[0]


@pytest.mark.parametrize("step", [0.01, 0.1, 1.0])
@pytest.mark.parametrize(("size", "shear"), [(1, 0.0), (2, 10.0), (6, 1.0)])
def test_a_full_gaussian_in_float32_is_right(size, shear, step):
    tril = trils(size, shear)
    new_tril = tril + step * 0.3 * trils(size, 1.0, seed=5)
    mean, new_mean = torch.zeros(200, size), step * torch.randn(200, size, generator=seeded(9))
    kl = kl_divergence(
        StableMultivariateNormal(mean, tril, validate_args=False),
        StableMultivariateNormal(new_mean, new_tril, validate_args=False),
    )
    exact = torch.from_numpy(exact_full_kl(mean, tril, new_mean, new_tril))
    torch.testing.assert_close(kl.double(), exact, rtol=2e-5, atol=1e-9)
    assert (kl >= 0).all()


def test_of_a_full_gaussian_with_itself_it_is_exactly_zero():
    pi = StableMultivariateNormal(torch.ones(200, 6), trils(6, 10.0), validate_args=False)
    assert (kl_divergence(pi, pi) == 0).all()


def test_a_full_gaussian_equals_torchs_where_that_is_right():
    tril, new_tril = trils(3, 0.5).double(), trils(3, 0.5, seed=5).double()
    mean, new_mean = torch.zeros(200, 3).double(), torch.ones(3).double()
    ours, theirs = (
        [make(mean, scale_tril=tril), make(new_mean, scale_tril=new_tril)]
        for make in (StableMultivariateNormal, MultivariateNormal)
    )
    torch.testing.assert_close(kl_divergence(*ours), kl_divergence(*theirs), rtol=1e-6, atol=1e-9)
    assert torch.equal(ours[0].log_prob(new_mean), theirs[0].log_prob(new_mean))
    assert torch.equal(ours[0].entropy(), theirs[0].entropy())


def test_a_full_gaussian_without_correlation_is_a_diagonal_one():
    std, new_std = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 2.0]])
    p = StableMultivariateNormal(torch.zeros(1, 2), torch.diag_embed(std))
    q = StableMultivariateNormal(torch.tensor([[1.0, 3.0]]), torch.diag_embed(new_std))
    # log 2 + (1 + 1) / (2 · 4) − ½, and ½ (3 / 2)²
    assert kl_divergence(p, q).item() == pytest.approx(math.log(2) - 0.25 + 1.125)
    assert kl_divergence(p.expand((3, 1)), q.expand((3, 1))).shape == (3, 1)
