"""Distributions of ours: torch's own where that is right, and right where torch's is not."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Beta, Categorical, Independent, Normal, OneHotCategorical, kl_divergence

from ppo_kl.objectives import (
    Joint,
    StableBernoulli,
    StableBeta,
    StableCategorical,
    StableNormal,
    StableOneHotCategorical,
    policy_kl,
)

INF, NAN = float("inf"), float("nan")
logit = st.floats(-10, 10, allow_subnormal=False)
pair_of_logits = st.integers(2, 6).flatmap(
    lambda n: st.tuples(*(st.lists(logit, min_size=n, max_size=n) for _ in range(2)))
)


# --- Categorical ------------------------------------------------------------------------------------------------------


def stable(logits) -> StableCategorical:
    return StableCategorical(logits=torch.as_tensor(logits), validate_args=False)


def test_what_torchs_categorical_has_it_has_too():
    logits = 3 * torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    ours, theirs = StableCategorical(logits=logits), Categorical(logits=logits)
    action = torch.arange(50) % 5
    for said in (
        lambda d: d.logits,
        lambda d: d.mode,
        lambda d: d.expand((2, 50)).log_prob(action),
    ):
        torch.testing.assert_close(said(ours), said(theirs))
    assert (ours.batch_shape, ours.event_shape, ours.param_shape) == ((50,), (), (50, 5))
    with pytest.raises(ValueError, match="at least one dimension"):
        StableCategorical(logits=torch.tensor(0.0))
    with pytest.raises(ValueError, match="within the support"):
        ours.log_prob(torch.full((50,), 5))


def exact_kl(p, q) -> np.ndarray:
    """In float64 NumPy, from log-softmax; actions that p cannot take drop out."""
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    log_p, log_q = (x - x.max(-1, keepdims=True) for x in (p, q))
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (log_p, log_q))
    possible = log_p > -INF
    return np.where(possible, np.exp(log_p) * np.where(possible, log_p - log_q, 0.0), 0.0).sum(-1)


def kl_and_gradients(p, q, direction="forward"):
    """KL of one row in the given direction, its gradients in both arguments."""
    p, q = (torch.tensor([x], requires_grad=True) for x in (p, q))
    kl = policy_kl(stable(p), stable(q), direction)
    return kl.item(), *(g[0] for g in torch.autograd.grad(kl.sum(), (p, q)))


@given(pair_of_logits)
@settings(max_examples=100, derandomize=True)
def test_it_equals_torch_where_torch_is_right(logits):
    p, q = (torch.tensor([x], dtype=torch.float64) for x in logits)
    ours = kl_divergence(stable(p), stable(q))
    theirs = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


@given(pair_of_logits)
@settings(max_examples=100, derandomize=True)
def test_in_float32_it_is_right_and_never_negative_beyond_rounding(logits):
    p, q = (torch.tensor([x]) for x in logits)
    kl = kl_divergence(stable(p), stable(q)).item()
    assert kl == pytest.approx(exact_kl(p, q).item(), rel=1e-4, abs=2e-6)
    assert kl >= -1e-6


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8))
@settings(max_examples=50, derandomize=True)
def test_of_a_policy_with_itself_it_is_exactly_zero(logits):
    assert kl_divergence(stable([logits]), stable([logits])).item() == 0.0


@pytest.mark.parametrize("offset", [0.0, 20.0, 1000.0])
def test_a_small_step_is_never_negative_beyond_rounding_wherever_the_logits_lie(offset):
    # A constant added to all logits changes no probability, so it may not change the KL either.
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(20_000, 6, generator=generator) + offset
    new = old + 1e-4 * torch.randn(20_000, 6, generator=generator)
    assert kl_divergence(stable(old), stable(new)).min() >= -1e-6


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("gap", [50.0, 103.0, 104.0, 200.0, 1e4])
def test_at_any_gap_value_and_gradient_are_right_and_point_back(gap, sign):
    old, new = [0.0, 0.0], [sign * gap, 0.0]
    kl, _, slope = kl_and_gradients(old, new)
    # ½ log(½ / 1) + ½ log(½ / e^-gap) = gap / 2 − log 2
    assert kl == pytest.approx(gap / 2 - np.log(2), rel=1e-5)
    # softmax(new) − softmax(old) = (1, 0) − (½, ½): descending it brings the likely action down and the other up.
    torch.testing.assert_close(slope, torch.tensor([sign * 0.5, -sign * 0.5]))


@pytest.mark.parametrize("gap", [50.0, 104.0, 200.0, 1e4])
def test_an_old_policy_that_is_certain_costs_what_it_should(gap):
    kl, *gradients = kl_and_gradients([gap, 0.0], [0.0, 0.0])
    # all of the old mass on the first action: log(1 / ½)
    assert kl == pytest.approx(np.log(2), rel=1e-6)
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_under_a_shared_mask_it_is_that_of_the_allowed_actions(direction):
    old, new = [0.3, -INF, -1.0, 0.5], [1.0, -INF, 0.2, -0.7]
    kl, *gradients = kl_and_gradients(old, new, direction)
    allowed_kl, *allowed_gradients = kl_and_gradients([0.3, -1.0, 0.5], [1.0, 0.2, -0.7], direction)
    assert kl == pytest.approx(allowed_kl, rel=1e-6)
    assert kl > 0.1
    for gradient, expected in zip(gradients, allowed_gradients, strict=True):
        assert gradient[1] == 0
        torch.testing.assert_close(gradient[[0, 2, 3]], expected)


def test_under_a_mask_that_leaves_one_action_it_is_zero():
    kl, *gradients = kl_and_gradients([-INF, 2.0, -INF], [-INF, -5.0, -INF])
    assert kl == 0.0
    assert all((g == 0).all() for g in gradients)


def test_an_action_that_only_the_new_policy_can_take_costs_nothing():
    # p = (½, ½, 0), q = (⅓, ⅓, ⅓): log(½ / ⅓)
    assert kl_divergence(stable([[0.0, 0.0, -INF]]), stable([[0.0, 0.0, 0.0]])).item() == pytest.approx(np.log(1.5))


@pytest.mark.parametrize("mass", [0.0, -2.0, -50.0, -104.0, -200.0])
def test_an_action_that_only_the_old_policy_can_take_costs_infinitely_much(mass):
    # However rare: e^-200 underflows in float32, but it is no zero.
    assert kl_divergence(stable([[0.0, mass]]), stable([[0.0, -INF]])).item() == INF


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("broken", ["old", "new"])
def test_a_policy_that_is_nan_has_a_kl_that_is_nan(direction, broken):
    # 0 would tell the controller that all is well.
    sound, nan = stable([[0.0, 1.0]]), stable([[NAN, 1.0]])
    pair = (nan, sound) if broken == "old" else (sound, nan)
    assert policy_kl(*pair, direction).isnan().all()


@pytest.mark.parametrize("mask", [[0.0, 0.0, 0.0], [0.0, -INF, 0.0]])
def test_its_gradients_pass_gradcheck(mask):
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    hide = torch.tensor(mask)
    assert torch.autograd.gradcheck(lambda p, q: policy_kl(stable(p + hide), stable(q + hide)), (p, q))


def test_it_keeps_the_batch_shape():
    assert kl_divergence(stable(torch.zeros(2, 5, 3)), stable(torch.zeros(2, 5, 3))).shape == (2, 5)


def test_it_can_be_expanded_as_any_distribution():
    # torch refuses this to a subclass that has a constructor, but no `expand`, of its own.
    p, q = stable([[0.0, 1.0, -INF]]), stable([[2.0, 0.5, -INF]])
    wide_p, wide_q = p.expand((4, 1)), q.expand((4, 1))
    assert isinstance(wide_p, StableCategorical)
    assert wide_p.batch_shape == (4, 1)
    assert torch.equal(kl_divergence(wide_p, wide_q), kl_divergence(p, q).expand(4, 1))


@pytest.mark.parametrize("logits", [[0.5, -1.0, 2.0], [0.5, -INF, 2.0]])
def test_apart_from_its_kl_it_is_torchs_categorical(logits):
    ours, theirs = stable([logits]), Categorical(logits=torch.tensor([logits]))
    torch.testing.assert_close(ours.probs, theirs.probs)
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.log_prob(torch.tensor([2])), theirs.log_prob(torch.tensor([2])))


@pytest.mark.parametrize("validating", ["first", "second"])
def test_where_arguments_are_validated_a_lost_action_is_an_error_that_says_where(validating):
    p = StableCategorical(logits=torch.zeros(5, 3), validate_args=validating == "first")
    logits = torch.zeros(5, 3)
    logits[3, 2] = logits[4, 0] = -INF
    q = StableCategorical(logits=logits, validate_args=validating == "second")
    with pytest.raises(ValueError, match="row 3, action 2: possible under the first policy, impossible under the sec"):
        kl_divergence(p, q)
    # The other way round nothing is lost: q = (½, ½), p = (⅓, ⅓, ⅓) in the two rows that differ.
    torch.testing.assert_close(kl_divergence(q, p), torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]) * math.log(1.5))


def test_an_action_lost_in_one_of_several_heads_is_named_with_its_head():
    logits = torch.zeros(4, 2, 3)
    logits[1, 1, 0] = -INF
    p, q = (Independent(StableCategorical(logits=x), 1) for x in (torch.zeros(4, 2, 3), logits))
    with pytest.raises(ValueError, match="row 1, 1, action 0"):
        kl_divergence(p, q)


def test_with_one_action_there_is_nothing_to_choose():
    p, q = stable([[3.0], [-1e4]]), stable([[-5.0], [7.0]])
    assert kl_divergence(p, q).tolist() == [0.0, 0.0]
    assert p.entropy().tolist() == [0.0, 0.0]


def test_a_one_hot_categorical_has_the_kl_of_its_categorical():
    old, new = torch.tensor([[0.3, -INF, -1.0]]), torch.tensor([[150.0, -INF, 0.2]])
    p, q = (StableOneHotCategorical(logits=x, validate_args=False) for x in (old, new))
    assert torch.equal(kl_divergence(p, q), kl_divergence(stable(old), stable(new)))
    assert kl_divergence(p.expand((4, 1)), q.expand((4, 1))).shape == (4, 1)
    assert p.log_prob(torch.tensor([[1.0, 0.0, 0.0]])) == stable(old).log_prob(torch.tensor([0]))
    torch.testing.assert_close(p.entropy(), OneHotCategorical(probs=old.softmax(-1)).entropy())
    with pytest.raises(ValueError, match="row 0, action 0"):
        kl_divergence(
            StableOneHotCategorical(logits=torch.zeros(1, 2)),
            StableOneHotCategorical(logits=torch.tensor([[-INF, 0.0]])),
        )


# --- Bernoulli --------------------------------------------------------------------------------------------------------


def bernoulli(*logits: float, dtype=torch.float32) -> StableBernoulli:
    return StableBernoulli(logits=torch.tensor(logits, dtype=dtype), validate_args=False)


def bernoulli_kl_and_gradients(p: float, q: float):
    p, q = (torch.tensor(x, requires_grad=True) for x in (p, q))
    kl = kl_divergence(*(StableBernoulli(logits=x, validate_args=False) for x in (p, q)))
    return kl.item(), *(g.item() for g in torch.autograd.grad(kl, (p, q)))


@pytest.mark.parametrize("logit", [17.0, 50.0, 104.0, 1e4])
def test_a_bernoulli_is_right_at_any_logit_and_symmetric_under_a_change_of_sign(logit):
    up, *_, slope_up = bernoulli_kl_and_gradients(0.0, logit)
    down, *_, slope_down = bernoulli_kl_and_gradients(0.0, -logit)
    # ½ log(½ / σ(l)) + ½ log(½ / σ(−l)) = ½ (sp(−l) + sp(l)) − log 2, and its derivative σ(l) − ½
    assert up == pytest.approx(logit / 2 + math.log1p(math.exp(-logit)) - math.log(2), rel=1e-6)
    assert down == up
    assert (slope_up, slope_down) == pytest.approx((0.5, -0.5))


@pytest.mark.parametrize(
    ("p", "q", "true"),
    [(5.0, 17.0, 0.0735990), (17.0, 18.0, 1.5230e-8), (-17.0, -18.0, 1.5230e-8), (50.0, 0.0, math.log(2))],
)
def test_a_bernoulli_near_certainty(p, q, true):
    kl, *gradients = bernoulli_kl_and_gradients(p, q)
    assert kl == pytest.approx(true, rel=1e-4)
    assert all(math.isfinite(g) for g in gradients)


@pytest.mark.parametrize(
    ("p", "q", "true"),
    [
        (INF, INF, 0.0),
        (-INF, -INF, 0.0),
        (INF, 0.0, math.log(2)),
        (-INF, 0.0, math.log(2)),
        (0.0, INF, INF),
        (0.0, -INF, INF),
        (INF, -INF, INF),
    ],
)
def test_a_bernoulli_that_is_certain(p, q, true):
    kl, *gradients = bernoulli_kl_and_gradients(p, q)
    assert kl == pytest.approx(true)
    assert all(math.isfinite(g) for g in gradients)


def test_a_certain_bernoulli_has_log_probabilities_and_no_entropy():
    logits = torch.tensor([INF, INF, -INF, -INF], requires_grad=True)
    pi = StableBernoulli(logits=logits, validate_args=False)
    logp = pi.log_prob(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert logp.tolist() == [0.0, -INF, -INF, 0.0]
    assert pi.entropy().tolist() == [0.0] * 4
    (slope,) = torch.autograd.grad(logp[[0, 3]].sum() + pi.entropy().sum(), logits)
    assert slope.tolist() == [0.0] * 4
    assert pi.sample((9,)).unique(dim=0).tolist() == [[1.0, 1.0, 0.0, 0.0]]


@given(st.floats(-12, 12), st.floats(-12, 12))
@settings(max_examples=100, derandomize=True)
def test_a_bernoulli_equals_torchs_where_that_is_right(p, q):
    ours, theirs = (
        (make(p), make(q))
        for make in (
            lambda x: bernoulli(x, dtype=torch.float64),
            lambda x: Bernoulli(logits=torch.tensor([x], dtype=torch.float64)),
        )
    )
    torch.testing.assert_close(kl_divergence(*ours), kl_divergence(*theirs), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(ours[0].entropy(), theirs[0].entropy())
    for value in (torch.zeros(1).double(), torch.ones(1).double()):
        torch.testing.assert_close(ours[0].log_prob(value), theirs[0].log_prob(value))


@given(st.floats(-110, 110, width=32), st.floats(-110, 110, width=32))
@settings(max_examples=200, derandomize=True)
def test_a_bernoulli_in_float32_is_right(p, q):
    kl = kl_divergence(bernoulli(p), bernoulli(q)).item()
    # σ(p) (sp(−q) − sp(−p)) + σ(−p) (sp(q) − sp(p)), sp(x) = log(1 + e^x)
    one = scipy.special.expit(p) * (np.logaddexp(0, -q) - np.logaddexp(0, -p))
    zero = scipy.special.expit(-p) * (np.logaddexp(0, q) - np.logaddexp(0, p))
    assert kl == pytest.approx(one + zero, rel=1e-4, abs=1e-6)
    assert kl >= -1e-6


def test_a_bernoulli_that_is_nan_has_a_kl_that_is_nan():
    assert kl_divergence(bernoulli(NAN, 0.0), bernoulli(0.0, NAN)).isnan().all()


# --- Beta -------------------------------------------------------------------------------------------------------------


def beta(a: float, b: float) -> StableBeta:
    return StableBeta(torch.tensor([a]), torch.tensor([b]), validate_args=False)


def exact_beta_kl(a, b, c, d) -> float:
    betaln, psi = scipy.special.betaln, scipy.special.digamma
    return betaln(c, d) - betaln(a, b) + (a - c) * (psi(a) - psi(a + b)) + (b - d) * (psi(b) - psi(a + b))


concentration = st.floats(0, 5).map(lambda exponent: float(np.float32(10**exponent)))


@given(concentration, concentration, concentration, concentration)
@settings(max_examples=200, derandomize=True)
def test_a_beta_is_right_up_to_concentrations_of_1e5(a, b, c, d):
    kl = kl_divergence(beta(a, b), beta(c, d))
    assert kl.dtype == torch.float32
    assert kl.item() == pytest.approx(exact_beta_kl(a, b, c, d), rel=1e-3, abs=1e-8)


@pytest.mark.parametrize(
    ("old", "new", "true"),
    [
        ((1e3, 1e3), (1e3, 1001.0), 2.49875e-4),
        ((1e5, 1e5), (1e5, 100010.0), 2.49989e-4),
        ((1.0, 1.0), (2.0, 1.0), 1 - math.log(2)),  # −∫ log 2x dx
    ],
)
def test_a_small_step_of_a_sharp_beta(old, new, true):
    # torch answers 0.00199 and −0.0685 to the first two.
    assert kl_divergence(beta(*old), beta(*new)).item() == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (1.5, 4.0), (300.0, 2.0), (1e5, 3e4)])
def test_a_betas_density_and_entropy_are_scipys(a, b):
    x = torch.tensor([a / (a + b) - 1e-3])
    expected = scipy.stats.beta.logpdf(x.double().item(), a, b)
    assert beta(a, b).log_prob(x).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert beta(a, b).entropy().item() == pytest.approx(scipy.stats.beta.entropy(a, b), rel=1e-5, abs=1e-6)


def test_a_uniform_beta_is_uniform_up_to_its_ends():
    assert beta(1.0, 1.0).log_prob(torch.tensor([0.0, 1.0])).tolist() == [0.0, 0.0]


def test_a_beta_can_be_expanded_and_equals_torchs_where_that_is_right():
    ours, theirs = (
        (make(1.5, 4.0), make(2.0, 2.5)) for make in (beta, lambda *x: Beta(*(torch.tensor([c]) for c in x)))
    )
    torch.testing.assert_close(kl_divergence(*ours), kl_divergence(*theirs), rtol=1e-5, atol=0)
    assert kl_divergence(*(x.expand((3, 1)) for x in ours)).shape == (3, 1)


# --- Joint ------------------------------------------------------------------------------------------------------------


def joint(logits, mean) -> Joint:
    """A choice and a two-dimensional move, in one state."""
    move = Independent(StableNormal(torch.tensor([mean]), torch.ones(1, 2), validate_args=False), 1)
    return Joint([stable([logits]), move], validate_args=False)


def test_a_joint_sums_over_its_parts():
    p, q = joint([0.0, 0.0, -INF], [0.0, 0.0]), joint([0.0, math.log(3), -INF], [1.0, 2.0])
    # ½ log(½ / ¼) + ½ log(½ / ¾), and ½ (1 + 4)
    assert kl_divergence(p, q).item() == pytest.approx(0.1438410 + 2.5, rel=1e-6)
    # log ½ for the choice; −½ · 4 − log 2π for a move two units off
    assert p.log_prob(torch.tensor([[1.0, 2.0, 0.0]])).item() == pytest.approx(-math.log(2) - 2 - math.log(2 * math.pi))
    assert p.entropy().item() == pytest.approx(math.log(2) + 1 + math.log(2 * math.pi))
    assert (p.batch_shape, p.event_shape) == ((1,), (3,))


def test_a_sample_of_a_joint_is_one_row_of_floats_that_it_can_score():
    p = Joint(joint([0.0, 0.0, -INF], [0.0, 9.0]).parts, validate_args=True)
    sample = p.sample((1000,))
    assert sample.shape == (1000, 1, 3)
    assert sample[..., 0].unique().tolist() == [0.0, 1.0]
    assert abs(sample[..., 2].mean() - 9) < 4 / math.sqrt(1000)
    assert p.log_prob(sample).shape == (1000, 1)
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.tensor([[0.5, 0.0, 0.0]]))
    assert p.expand((4, 1)).entropy().shape == (4, 1)


def test_a_joint_of_choices_alone_is_of_floats_too():
    assert Joint([stable([[0.0, 1.0]])] * 2).sample().dtype == torch.float32


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [stable([[0.0, 1.0]]), stable([[0.0, 1.0]] * 2)],
        [Independent(Normal(torch.zeros(1, 2, 2), torch.ones(1, 2, 2)), 2)],
    ],
    ids=["none", "batches", "matrix"],
)
def test_parts_that_do_not_fit_side_by_side_are_refused(parts):
    with pytest.raises(ValueError, match="Joint: batch and event shapes"):
        Joint(parts)


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (Joint([stable([[0.0]]), Independent(StableBernoulli(logits=torch.ones(1, 2)), 1)]), ["part 1", "Bernoulli"]),
        (Joint([stable([[0.0]])]), ["[1, 2]", "[1]"]),
    ],
    ids=["another kind", "another number"],
)
def test_joints_whose_parts_do_not_pair_up_are_refused_by_part(other, names):
    with pytest.raises(NotImplementedError) as error:
        kl_divergence(joint([0.0], [0.0, 0.0]), other)
    assert all(name in str(error.value) for name in names)


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_parameters_in_half_precision_are_widened(half):
    x = torch.full((2, 3), 1.5, dtype=half)
    made = [
        StableCategorical(logits=x),
        StableOneHotCategorical(logits=x),
        StableBernoulli(logits=x),
        StableBeta(x, x),
        StableNormal(x, x),
    ]
    assert {kl_divergence(pi, pi).dtype for pi in made} == {torch.float32}
    assert {pi.entropy().dtype for pi in made} == {torch.float32}
