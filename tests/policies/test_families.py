"""From flat parameters to a distribution, and from its samples to what the environment takes."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from every_family import EVERY_FAMILY
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_envs import ACTION_SPACES

from ppo_kl.objectives.divergence import policy_kl
from ppo_kl.policies.box_families import BetaFamily, FullGaussianFamily, GaussianFamily, TanhGaussianFamily
from ppo_kl.policies.families import BernoulliFamily, CategoricalFamily, JointFamily, MultiCategoricalFamily
from ppo_kl.policies.spaces import BOX_FAMILIES, family_of

INF = float("inf")
BOXES = {
    "scalar": spaces.Box(-1.0, 2.0, (), np.float32),
    "one": spaces.Box(-1.0, 2.0, (1,), np.float32),
    "matrix": spaces.Box(-np.arange(1, 7, dtype=np.float32).reshape(2, 3), np.float32(0.5), (2, 3), np.float32),
    "double": spaces.Box(-0.1, 0.1, (3,), np.float64),
    "half": spaces.Box(-0.1, 0.3, (2,), np.float16),
    "huge": spaces.Box(0.0, 1000.0, (2,), np.float32),
}
boxes = pytest.mark.parametrize("space", BOXES.values(), ids=BOXES)
every = pytest.mark.parametrize("family", EVERY_FAMILY.values(), ids=EVERY_FAMILY)
TWO = ((-1.0,) * 2, (1.0,) * 2, (2,))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def within(frequency, probability, n) -> bool:
    """Whether frequencies of n draws lie within 4 standard errors of their probabilities."""
    return bool(((frequency - probability).abs() <= 4 * (probability * (1 - probability) / n).sqrt()).all())


# --- samples ----------------------------------------------------------------------------------------------------------


@every
def test_stored_noise_gives_the_sample_that_its_generator_would_have_given(family):
    params = torch.randn(50, family.num_params, generator=seeded(1))
    noise = family.draw_noise((50,), seeded())
    assert torch.equal(family.sample(params, noise), family.sample(params, seeded()))


@every
def test_noise_for_a_whole_rollout_gives_the_samples_of_its_steps(family):
    params = torch.randn(7, 3, family.num_params, generator=seeded(1))
    noise = family.draw_noise((7, 3), seeded())
    together = family.sample(params, noise)
    assert together.shape[:2] == (7, 3)
    for t in range(7):
        # Vectorised, a logarithm may differ in its last bit with the place of a number in the array.
        torch.testing.assert_close(family.sample(params[t], noise[t]), together[t], rtol=1e-6, atol=0)


@every
def test_sampling_leaves_torchs_own_random_stream_alone(family):
    before = torch.get_rng_state()
    family.sample(torch.zeros(5, family.num_params), seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_categorical_sample_comes_as_often_as_it_should():
    n, probs = 100_000, torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0001])
    action = CategoricalFamily(5).sample(probs.log().expand(n, 5), seeded())
    assert action.shape == (n,)
    assert action.dtype == torch.int64
    assert within(action.bincount(minlength=5) / n, probs / probs.sum(), n)


def test_a_masked_sample_comes_as_often_as_it_should_among_the_rest():
    n, logits = 100_000, torch.tensor([1.0, 3.0, 0.0, -1.0])
    mask = torch.tensor([True, False, True, True])
    action = CategoricalFamily(4).sample(logits.expand(n, 4), seeded(), mask.expand(n, 4))
    probs = torch.where(mask, logits.exp(), 0.0) / logits.exp()[mask].sum()
    assert within(action.bincount(minlength=4) / n, probs, n)


def test_a_masked_action_is_never_drawn_in_a_million():
    n = 1_000_000
    mask = torch.rand(n, 4, generator=seeded(1)) < 0.5
    mask[~mask.any(-1), 2] = True
    # The forbidden actions are those the policy likes best.
    logits = torch.where(mask, -50.0, 50.0)
    action = CategoricalFamily(4).sample(logits, seeded(), mask)
    assert mask.gather(1, action[:, None]).all()


def test_a_gaussian_sample_has_the_mean_and_scale_of_its_parameters():
    n, family = 100_000, GaussianFamily(*TWO)
    mean, std = torch.tensor([0.5, -30.0]), torch.tensor([0.1, 5.0])
    sample = family.sample(torch.cat([mean, std.log()]).expand(n, 4), seeded())
    assert sample.shape == (n, 2)
    # Standard errors of a mean, σ / √n, and of a standard deviation, σ / √(2 n).
    assert ((sample.mean(0) - mean).abs() < 4 * std / math.sqrt(n)).all()
    assert ((sample.std(0) - std).abs() < 4 * std / math.sqrt(2 * n)).all()
    assert abs(torch.corrcoef(sample.T)[0, 1]) < 4 / math.sqrt(n)


def test_samples_of_several_heads_come_as_often_as_they_should_and_independently():
    n, probs = 100_000, torch.tensor([0.7, 0.3, 0.1, 0.6, 0.3])
    action = MultiCategoricalFamily((2, 3), (0, 0)).sample(probs.log().expand(n, 5), seeded())
    assert action.shape == (n, 2)
    assert action.dtype == torch.int64
    together = (3 * action[:, 0] + action[:, 1]).bincount(minlength=6) / n
    assert within(together, torch.outer(probs[:2], probs[2:]).flatten(), n)


def test_masked_actions_of_several_heads_are_never_drawn():
    n = 100_000
    family = MultiCategoricalFamily((2, 3), (0, 0))
    mask = torch.tensor([False, True, True, False, True]).expand(n, 5)
    params = torch.where(mask, -50.0, 50.0)  # the forbidden actions are those the policy likes best
    action = family.sample(params, seeded(), mask)
    assert action[:, 0].unique().tolist() == [1]
    assert within(action[:, 1].bincount(minlength=3) / n, torch.tensor([0.5, 0.0, 0.5]), n)
    assert family.mode(params, mask)[0].tolist() == [1, 0]
    pi = family.build(params, mask)
    assert pi.log_prob(torch.tensor([1, 2]).expand(n, 2))[0].item() == pytest.approx(math.log(0.5))
    assert pi.log_prob(torch.tensor([0, 2]).expand(n, 2))[0].item() == -INF
    assert pi.entropy()[0].item() == pytest.approx(math.log(2))


def test_a_bernoulli_sample_comes_as_often_as_it_should_however_rare():
    n, probs = 1_000_000, torch.tensor([0.3, 0.9, 1e-5])
    action = BernoulliFamily((3,)).sample(probs.logit().expand(n, 3), seeded())
    assert action.dtype == torch.float32
    assert within(action.mean(0), probs, n)
    certain = BernoulliFamily((2,)).sample(torch.tensor([INF, -INF]).expand(1000, 2), seeded())
    assert certain.unique(dim=0).tolist() == [[1.0, 0.0]]
    # e^−25 = 1.4e-11 of the time; a uniform number of 24 bits is 0 once in 17 million.
    assert (BernoulliFamily((1,)).sample(torch.full((1, 1), -25.0), torch.tensor([[1e-7, 1.0]])) == 0).all()


def test_a_squashed_sample_is_a_gaussian_one_before_the_tanh():
    params = torch.randn(50, 4, generator=seeded(1))
    before = GaussianFamily(*TWO).sample(params, seeded())
    assert torch.equal(TanhGaussianFamily(*TWO).sample(params, seeded()), before)


@pytest.mark.parametrize(
    ("alpha", "beta"), [(1.0001, 1.0001), (1.3, 4.0), (2.0, 2.0), (50.0, 3.0), (1e3, 1e3), (1e5, 2e4)]
)
def test_a_beta_sample_has_the_distribution_of_its_parameters(alpha, beta):
    n, concentration = 100_000, torch.tensor([alpha, beta], dtype=torch.float64)
    excess = concentration - 1
    params = torch.where(excess < 30, excess.clamp(max=30).expm1().log(), excess)  # 1 + softplus, turned round
    sample = BetaFamily((-1.0,), (1.0,), (1,)).sample(params.expand(n, 2), seeded())[:, 0]
    # The largest distance from the true distribution function is below 1.95 / √n in 999 of 1000 cases.
    assert scipy.stats.kstest(sample.numpy(), scipy.stats.beta(alpha, beta).cdf).statistic < 1.95 / math.sqrt(n)


def test_the_dimensions_of_a_beta_sample_are_independent():
    n = 20_000
    sample = BetaFamily(*TWO).sample(torch.zeros(n, 4), seeded())
    assert abs(torch.corrcoef(sample.T)[0, 1]) < 4 / math.sqrt(n)


@pytest.mark.parametrize("extreme", [-1e4, -100.0, 0.0, 100.0, 1e5, 1e8])
@pytest.mark.parametrize("other", [-100.0, 1e5])
def test_a_beta_sample_stays_strictly_within_and_has_a_finite_log_prob(extreme, other):
    family = BetaFamily((-1.0,), (1.0,), (1,))
    params = torch.tensor([extreme, other]).expand(2000, 2)
    for action in (family.sample(params, seeded()), family.mode(params)):
        assert ((action > 0) & (action < 1)).all()
        assert family.build(params).log_prob(action).isfinite().all()


def test_a_beta_whose_proposals_are_all_refused_still_has_a_sample():
    family = BetaFamily((-1.0,), (1.0,), (1,))
    # At −5 the cube (1 − 5 / √(9d))³ is negative, which is no Gamma's.
    never = torch.full((1, family.num_noise), -5.0)
    never[:, family.num_noise // 2 :] = 0.5
    params = torch.tensor([[math.log(math.expm1(1.0)), math.log(math.expm1(0.5))]])
    # Gamma(2) and Gamma(1.5) at d = α − ⅓
    assert family.sample(params, never).item() == pytest.approx((2 - 1 / 3) / (3.5 - 2 / 3))


def test_a_full_gaussian_sample_has_the_covariance_of_its_parameters():
    n, family = 100_000, FullGaussianFamily((-1.0,) * 3, (1.0,) * 3, (3,))
    assert family.num_params == 9
    mean, log_diagonal, below = [1.0, 2.0, 3.0], [0.0, math.log(2), math.log(0.5)], [0.5, -1.0, 2.0]
    # Below the diagonal row by row: L₂₁, L₃₁, L₃₂.
    tril = torch.tensor([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-1.0, 2.0, 0.5]])
    params = torch.tensor(mean + log_diagonal + below).expand(n, 9)
    torch.testing.assert_close(family.build(params[:1]).scale_tril[0], tril)
    sample = family.sample(params, seeded())
    torch.testing.assert_close(sample.mean(0), torch.tensor(mean), atol=4 * 2.3 / math.sqrt(n), rtol=0)
    torch.testing.assert_close(sample.T.cov(), tril @ tril.T, atol=0.1, rtol=0)


def test_a_joint_sample_is_that_of_its_parts_side_by_side():
    family = JointFamily(((0, GaussianFamily(*TWO)), (1, CategoricalFamily(3)), (2, BernoulliFamily((1,)))))
    params = torch.randn(50, 8, generator=seeded(1))
    noise = family.draw_noise((50,), seeded())
    assert noise.shape == (50, family.num_noise) == (50, 2 + 3 + 2)
    sample = family.sample(params, noise)
    gaussian, categorical, bernoulli = family.families
    assert torch.equal(sample[:, :2], gaussian.sample(params[:, :4], noise[:, :2]))
    assert torch.equal(sample[:, 2], categorical.sample(params[:, 4:7], noise[:, 2:5]).float())
    assert torch.equal(sample[:, 3:], bernoulli.sample(params[:, 7:], noise[:, 5:]))
    assert torch.equal(family.mode(params)[:, 2], params[:, 4:7].argmax(-1).float())


@every
def test_it_says_the_shapes_of_what_it_draws(family):
    params = torch.zeros(5, family.num_params)
    assert family.draw_noise((5,), seeded()).shape == (5, family.num_noise)
    assert family.sample(params, seeded()).shape == (5, *family.action_shape)
    assert family.mode(params).shape == (5, *family.action_shape)


def test_only_a_box_has_continuous_dimensions():
    dims = {name: family.num_action_dims for name, family in EVERY_FAMILY.items()}
    assert dims == {
        "categorical": None,
        "multi_categorical": None,
        "bernoulli": None,
        "gaussian": 2,
        "tanh_gaussian": 2,
        "beta": 2,
        "full_gaussian": 3,
        "joint": None,
    }
    assert JointFamily((("a", GaussianFamily(*TWO)), ("b", BetaFamily(*TWO)))).num_action_dims == 4


def test_other_modes():
    # α − 1 = 2, β − 1 = 6: the peak of a Beta lies at 2 / 8.
    raw = [math.log(math.expm1(2.0)), math.log(math.expm1(6.0))]
    assert BetaFamily((-1.0,), (1.0,), (1,)).mode(torch.tensor([raw])).item() == pytest.approx(0.25)
    assert TanhGaussianFamily((-1.0,), (1.0,), (1,)).mode(torch.tensor([[0.7, 0.0]])).item() == pytest.approx(0.7)
    assert BernoulliFamily((2,)).mode(torch.tensor([[0.1, -0.1]])).tolist() == [[1.0, 0.0]]
    assert MultiCategoricalFamily((2, 3), (5, 5)).mode(torch.tensor([[0.0, 1.0, 3.0, 9.0, 4.0]])).tolist() == [[1, 1]]


def test_the_mode_is_the_likeliest_action():
    categorical, gaussian = CategoricalFamily(3), GaussianFamily(*TWO)
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert categorical.mode(logits).tolist() == [1, 0]
    assert categorical.mode(logits, torch.tensor([[True, False, True], [False, False, True]])).tolist() == [2, 2]
    assert gaussian.mode(torch.tensor([[5.0, -7.0, 0.1, 0.2]])).tolist() == [[5.0, -7.0]]


# --- the distribution -------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("batch", [(5,), (2, 5)])
def test_a_distribution_has_the_batch_shape_of_its_parameters_and_one_log_prob_per_action(family, batch):
    params = torch.randn(*batch, family.num_params, generator=seeded(1))
    pi = family.build(params)
    assert pi.batch_shape == batch
    assert pi.log_prob(family.sample(params, seeded())).shape == batch
    assert pi.entropy().shape == batch


def test_a_categorical_log_prob_is_the_log_softmax():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    pi = CategoricalFamily(2).build(logits)
    assert pi.log_prob(torch.tensor([0])).item() == pytest.approx(math.log(0.25))
    assert pi.log_prob(torch.tensor([1])).item() == pytest.approx(math.log(0.75))


def test_a_gaussian_log_prob_is_summed_over_dimensions_with_the_second_half_as_log_scales():
    pi = GaussianFamily(*TWO).build(torch.tensor([[1.0, 2.0, math.log(0.5), math.log(3.0)]]))
    # Σ −½ ((a − μ) / σ)² − log σ − ½ log 2π at a = (2, 2)
    expected = -0.5 * 4 - math.log(0.5) - math.log(3.0) - math.log(2 * math.pi)
    assert pi.log_prob(torch.tensor([[2.0, 2.0]])).item() == pytest.approx(expected)


def test_a_masked_action_has_no_probability_and_the_rest_share_it():
    pi = CategoricalFamily(3).build(torch.zeros(1, 3), torch.tensor([[True, False, True]]))
    assert pi.probs.tolist() == [[0.5, 0.0, 0.5]]
    assert pi.log_prob(torch.tensor([1])).item() == -INF
    assert pi.entropy().item() == pytest.approx(math.log(2))


@every
@pytest.mark.parametrize("use", ["build", "mode", "sample"])
def test_a_mask_over_what_has_no_single_actions_is_refused(use, family):
    if family.mask_sizes:
        return
    noise = [seeded()] if use == "sample" else []
    with pytest.raises(ValueError, match="action_mask"):
        getattr(family, use)(torch.zeros(1, family.num_params), *noise, torch.ones(1, 1, dtype=torch.bool))


@every
def test_parameters_that_are_nan_give_a_log_prob_that_is_nan(family):
    # Not an exception in the middle of a step, nor a number: the learner's own gate looks for NaN.
    pi = family.build(torch.full((2, family.num_params), float("nan")))
    assert pi.log_prob(family.mode(torch.zeros(2, family.num_params))).isnan().all()


@every
def test_half_precision_is_widened(family):
    params = torch.randn(3, family.num_params, generator=seeded(1)).bfloat16()
    action = family.sample(params.float(), seeded())
    assert family.build(params).log_prob(action).dtype == torch.float32
    torch.testing.assert_close(family.sample(params, seeded()), action)


def test_several_heads_are_scored_by_the_sum():
    pi = MultiCategoricalFamily((2, 3), (7, 7)).build(torch.tensor([[0.0, math.log(3), 0.0, 0.0, math.log(2)]]))
    # ¾ for the second of two, ¼ for the first of three with weights 1, 1, 2
    assert pi.log_prob(torch.tensor([[1, 0]])).item() == pytest.approx(math.log(3 / 16))
    assert pi.entropy().item() == pytest.approx(
        -0.25 * math.log(0.25) - 0.75 * math.log(0.75) + 0.5 * math.log(4) + 0.5 * math.log(2)
    )


def test_a_stored_squashed_action_has_a_finite_log_prob_however_saturated():
    family = TanhGaussianFamily((-2.0,), (1.0,), (1,))
    params = torch.tensor([[30.0, 0.0]])
    action = family.sample(params, seeded())
    assert family.to_env(action).item() == 1.0  # at the bound
    assert family.build(params).log_prob(action).isfinite()


# --- what the environment gets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1, 5, -1, -7])
def test_a_discrete_space_gets_its_own_numbers(start):
    space = spaces.Discrete(3, start=start)
    family = family_of(space)
    action = family.sample(torch.zeros(200, 3), seeded())
    sent = family.to_env(action)
    assert all(space.contains(a) for a in sent)
    assert set(sent.tolist()) == {start, start + 1, start + 2}
    assert set(action.tolist()) == {0, 1, 2}  # what is stored and scored


@boxes
@pytest.mark.parametrize("scale", [0.01, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_box_gets_actions_it_contains_in_its_own_shape_and_dtype(space, scale, dtype):
    family = family_of(space)
    params = torch.randn(100, family.num_params, generator=seeded(1), dtype=dtype).mul(3).clamp(max=5)
    sent = family.to_env(scale * family.sample(params, seeded()))
    assert sent.shape == (100, *space.shape)
    assert sent.dtype == space.dtype
    assert all(space.contains(np.asarray(a)) for a in sent)


@boxes
def test_a_box_is_reached_up_to_its_bounds(space):
    family = family_of(space)
    dims = len(family.low)
    sent = family.to_env(torch.tensor([[INF] * dims, [-INF] * dims]))
    np.testing.assert_array_equal(sent[0], space.high)
    np.testing.assert_array_equal(sent[1], space.low)


def test_an_action_within_the_bounds_is_sent_as_it_is_in_the_order_of_the_space():
    action = torch.tensor([[-0.5, -1.5, -2.5, -3.5, -4.5, -5.5]])
    sent = family_of(BOXES["matrix"]).to_env(action)
    np.testing.assert_array_equal(sent, [[[-0.5, -1.5, -2.5], [-3.5, -4.5, -5.5]]])


def test_clipping_is_for_the_environment_only():
    family = GaussianFamily((-1.0,), (1.0,), (1,))
    params = torch.tensor([[3.0, math.log(0.5)]]).expand(100, 2)
    action = family.sample(params, seeded())
    stored = action.clone()
    assert (action > 1).any()
    assert (family.to_env(action) <= 1).all()
    assert torch.equal(action, stored)
    # The score is that of the sample: at the clipped action, 4 σ from the mean, it would be −8 and a constant.
    expected = -0.5 * ((action[:, 0] - 3) / 0.5) ** 2 - math.log(0.5) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(family.build(params).log_prob(action), expected)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=6, max_size=6))
@settings(max_examples=50, derandomize=True)
def test_whatever_the_sample_the_environment_can_take_it(action):
    space = BOXES["matrix"]
    (sent,) = family_of(space).to_env(torch.tensor([action]))
    assert space.contains(sent)


def rows(sent, n):
    """What each of n environments gets of a batch."""
    if isinstance(sent, dict):
        parts = {key: rows(part, n) for key, part in sent.items()}
        return [{key: part[i] for key, part in parts.items()} for i in range(n)]
    if isinstance(sent, tuple):
        return list(zip(*(rows(part, n) for part in sent), strict=True))
    return [np.asarray(row) for row in sent]


@pytest.mark.parametrize("distribution", BOX_FAMILIES)
@pytest.mark.parametrize("space", ACTION_SPACES.values(), ids=ACTION_SPACES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0, 1e6])
def test_whatever_the_parameters_the_environment_can_take_the_action(space, distribution, scale):
    family = family_of(space, distribution)
    params = scale * torch.randn(200, family.num_params, generator=seeded(1))
    for action in (family.sample(params, seeded()), family.mode(params)):
        finite = action.nan_to_num(0.0)  # e^1e6 times noise; a policy's scale is bounded
        assert all(space.contains(row) for row in rows(family.to_env(finite), 200))


@pytest.mark.parametrize("distribution", ["tanh_gaussian", "beta"])
@boxes
def test_a_bounded_distribution_reaches_from_bound_to_bound(space, distribution):
    family = family_of(space, distribution)
    ends, middle = {"tanh_gaussian": ([-40.0, 40.0], 0.0), "beta": ([1e-30, 1 - 2**-24], 0.5)}[distribution]
    dims = len(family.low)
    low, high, between = family.to_env(torch.tensor([*ends, middle])[:, None].expand(3, dims))
    lowest, highest = space.low.astype(float), space.high.astype(float)
    width = (highest - lowest).max()
    np.testing.assert_allclose(low, lowest, rtol=0, atol=1e-7 * width)
    np.testing.assert_allclose(high, highest, rtol=0, atol=1e-7 * width)
    np.testing.assert_allclose(between, (lowest + highest) / 2, rtol=0, atol=1e-3 * width)
    if distribution == "tanh_gaussian":
        np.testing.assert_array_equal(np.stack([low, high]), np.stack([space.low, space.high]))


def test_several_heads_get_their_own_numbers_in_the_shape_of_the_space():
    space = spaces.MultiDiscrete(np.array([[2, 3], [1, 4]]), start=np.array([[0, -1], [5, 7]]), dtype=np.int16)
    sent = family_of(space).to_env(torch.tensor([[1, 2, 0, 3], [0, 0, 0, 0]]))
    assert sent.dtype == np.int16
    np.testing.assert_array_equal(sent, [[[1, 1], [5, 10]], [[0, -1], [5, 7]]])


def test_a_discrete_space_of_small_integers_gets_them_small():
    space = spaces.Discrete(3, start=1, dtype=np.uint8)
    sent = family_of(space).to_env(torch.tensor([0, 2]))
    assert sent.tolist() == [1, 3]
    assert all(space.contains(a) for a in sent)


def test_a_dict_and_a_tuple_get_their_own_structure():
    family = family_of(ACTION_SPACES["Dict"])
    # arm (2 numbers), more (2 bits, 2 heads), turn (1 of 3, from 1 on)
    sent = family.to_env(torch.tensor([[9.0, -0.5, 1.0, 0.0, 1.0, 3.0, 2.0]]))
    assert list(sent) == ["arm", "more", "turn"]
    assert sent["arm"].tolist() == [[[2.0], [-0.5]]]
    bits, heads = sent["more"]
    assert (bits.tolist(), heads.tolist()) == ([[1, 0]], [[1, 3]])
    assert sent["turn"].tolist() == [3]


# --- what is sent, and masks ------------------------------------------------------------------------------------------

SENT = {**ACTION_SPACES, "Nested": spaces.Dict(a=spaces.Dict(b=spaces.Tuple((spaces.Discrete(3, start=-4),))))}
WAYS = [(name, kind, False) for name in SENT for kind in BOX_FAMILIES] + [
    (name, kind, True) for name in ("Box", "Scalar", "Dict", "Tuple") for kind in ("gaussian", "full_gaussian")
]


@pytest.mark.parametrize(("name", "kind", "rescale"), WAYS)
def test_a_thousand_random_policies_send_only_what_the_space_contains(name, kind, rescale):
    space = SENT[name]
    family = family_of(space, kind, rescale=rescale)
    # From flat to saturated: parameters of sizes from 0.1 to 1,000; log-stds stay where a policy's bounds keep them.
    size = torch.logspace(-1, 3, 1000)[:, None]
    params = size * torch.randn(1000, family.num_params, generator=seeded())
    params = torch.where(log_std_places(family), params.clamp(-10, 2), params)
    for action in (family.sample(params, seeded(1)), family.mode(params)):
        sent = list(rows(family.to_env(action), 1000))
        assert all(space.contains(np.asarray(a) if isinstance(a, np.floating) else a) for a in sent)


def log_std_places(family) -> torch.Tensor:
    """Which parameters are logarithms of a standard deviation, `[P]` bool."""
    if isinstance(family, JointFamily):
        return torch.cat([log_std_places(part) for part in family.families])
    places = torch.zeros(family.num_params, dtype=torch.bool)
    if isinstance(family, GaussianFamily):
        places[family.num_action_dims : 2 * family.num_action_dims] = True
    return places


@pytest.mark.parametrize("kind", ["gaussian", "full_gaussian"])
def test_rescaled_actions_reach_the_bounds_at_one_and_the_middle_at_zero(kind):
    space = spaces.Box(np.float32([-2.0, 0.0]), np.float32([1.0, 1000.0]))
    family = family_of(space, kind, rescale=True)
    sent = family.to_env(torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [-9.0, 9.0], [0.5, -0.5]]))
    expected = [[-2, 0], [-0.5, 500], [1, 1000], [-2, 1000], [0.25, 250]]
    assert sent.tolist() == expected
    # The density is that of the sample, whatever becomes of it.
    params = torch.randn(1, family.num_params, generator=seeded())
    plain = family_of(space, kind)
    action = torch.tensor([[0.3, -0.2]])
    assert torch.equal(family.build(params).log_prob(action), plain.build(params).log_prob(action))


MASKABLE = {
    "categorical": CategoricalFamily(5),
    "multi_categorical": MultiCategoricalFamily((2, 4, 3), (0, 0, 0)),
    "joint": JointFamily((("arm", GaussianFamily((-1.0,), (1.0,), (1,))), ("turn", CategoricalFamily(4)))),
    "nested": JointFamily(
        ((0, JointFamily((("a", MultiCategoricalFamily((2, 3), (0, 0))),))), (1, BernoulliFamily((2,))))
    ),
}
maskable = pytest.mark.parametrize("family", MASKABLE.values(), ids=MASKABLE)


def choices(family) -> list[int]:
    """How many actions each choice has that a mask can rule out."""
    if isinstance(family, JointFamily):
        return [n for part in family.families for n in choices(part)]
    if isinstance(family, MultiCategoricalFamily):
        return list(family.sizes)
    return [family.n] if isinstance(family, CategoricalFamily) else []


def chosen(family, action) -> torch.Tensor:
    """The choices in stored actions, side by side, `[*, choices]`."""
    if isinstance(family, JointFamily):
        widths = [math.prod(part.action_shape) for part in family.families]
        pieces = zip(family.families, torch.split(action, widths, -1), strict=True)
        return torch.cat([chosen(part, x) for part, x in pieces], -1)
    if isinstance(family, CategoricalFamily):
        return action.reshape(*action.shape[: action.dim() - (action.dim() > 1)], 1).long()
    return action.long() if isinstance(family, MultiCategoricalFamily) else action[..., :0].long()


def a_mask(family, seed: int = 0) -> torch.Tensor:
    """About half of the actions of every choice, one at least."""
    heads = []
    for k, n in enumerate(choices(family)):
        head = torch.rand(n, generator=seeded(seed + 10 * k)) < 0.5
        head[seed % n] = True
        heads.append(head)
    return torch.cat(heads)


@maskable
def test_a_masked_action_is_never_drawn_in_a_million_samples(family):
    n = 1_000_000
    mask = a_mask(family)
    assert sum(family.mask_sizes) == len(mask) == sum(choices(family))
    assert not mask.all()
    # The masked ones have the largest logits by far.
    places = torch.zeros(family.num_params)
    places[logit_places(family)] = torch.where(mask, 0.0, 50.0)
    start = torch.tensor([0, *choices(family)[:-1]]).cumsum(0)
    for first in range(0, n, 100_000):
        params, masks = places.expand(100_000, -1), mask.expand(100_000, -1)
        drawn = chosen(family, family.sample(params, seeded(first), masks))
        assert mask[start + drawn].all()
    assert mask[start + chosen(family, family.mode(places[None], mask[None]))].all()


def logit_places(family) -> torch.Tensor:
    """Which parameters are logits that a mask can rule out, `[P]` bool."""
    if isinstance(family, JointFamily):
        return torch.cat([logit_places(part) for part in family.families])
    return torch.full((family.num_params,), len(family.mask_sizes) > 0)


@maskable
def test_with_one_mask_on_both_sides_density_entropy_and_kl_are_finite_and_so_are_their_gradients(family):
    mask = a_mask(family, seed=1).expand(20, -1)
    old = torch.randn(20, family.num_params, generator=seeded(2))
    new = (old + 0.3 * torch.randn(20, family.num_params, generator=seeded(3))).requires_grad_()
    pi_old, pi = family.build(old, mask), family.build(new, mask)
    action = family.sample(old, seeded(4), mask)
    kl = policy_kl(pi_old, pi)
    assert (kl > 0).all()
    assert policy_kl(pi_old, family.build(old, mask)).eq(0).all()
    (grad,) = torch.autograd.grad((kl + pi.log_prob(action) + pi.entropy()).sum(), new)
    assert grad.isfinite().all()
    ruled_out = torch.zeros(family.num_params, dtype=torch.bool)
    ruled_out[logit_places(family)] = ~mask[0]
    assert (grad[:, ruled_out] == 0).all()
    assert (grad[:, ~ruled_out] != 0).any()


@pytest.mark.parametrize("name", ["joint", "nested"])
def test_a_masked_joint_is_its_masked_parts(name):
    family = MASKABLE[name]
    params, mask = torch.randn(6, family.num_params, generator=seeded()), a_mask(family).expand(6, -1)
    parts = [part.build(x, m).entropy() for part, x, m in family._split(params, mask)]
    torch.testing.assert_close(family.build(params, mask).entropy(), torch.stack(parts).sum(0))
