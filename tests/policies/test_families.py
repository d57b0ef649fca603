"""From an action space to a distribution over it, and from its samples to what the environment takes."""

import json
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_kl.errors import ConfigError
from ppo_kl.policies.families import (
    CategoricalFamily,
    GaussianFamily,
    describe,
    family_of,
    from_description,
    shape_of_observation,
)

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
both = pytest.mark.parametrize(
    "family", [CategoricalFamily(4), GaussianFamily((-1.0,) * 2, (1.0,) * 2, (2,))], ids=["categorical", "gaussian"]
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def within(frequency, probability, n) -> bool:
    """Whether frequencies of n draws lie within 4 standard errors of their probabilities."""
    return bool(((frequency - probability).abs() <= 4 * (probability * (1 - probability) / n).sqrt()).all())


# --- which family a space has -----------------------------------------------------------------------------------------


def test_a_discrete_space_has_a_categorical_family():
    assert family_of(spaces.Discrete(3)) == CategoricalFamily(3, 0)
    assert family_of(spaces.Discrete(3, start=-2)) == CategoricalFamily(3, -2)
    assert CategoricalFamily(3).num_params == 3


def test_a_box_has_a_gaussian_family_with_a_mean_and_a_scale_per_dimension():
    family = family_of(BOXES["matrix"])
    assert family == GaussianFamily((-1.0, -2.0, -3.0, -4.0, -5.0, -6.0), (0.5,) * 6, (2, 3), "float32")
    assert family.num_params == 12
    assert family_of(BOXES["scalar"]) == GaussianFamily((-1.0,), (2.0,), (), "float32")
    assert family_of(BOXES["double"]) == GaussianFamily((-0.1,) * 3, (0.1,) * 3, (3,), "float64")


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(4),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Graph(spaces.Discrete(2), None),
        spaces.Box(0, 255, (2,), np.uint8),
        spaces.Box(-3, 3, (2,), np.int64),
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32)),
        spaces.Box(-np.inf, 1.0, (1,)),
        spaces.Box(-1.0, 1.0, (0,)),
    ],
    ids=str,
)
def test_an_action_space_without_a_family_is_refused_by_name(space):
    with pytest.raises(ConfigError) as error:
        family_of(space)
    assert str(space) in str(error.value)


@pytest.mark.parametrize(
    "space",
    [spaces.Text(4), spaces.Sequence(spaces.Discrete(2)), spaces.Box(0.0, 1.0, (3, 0)), spaces.Box(0.0, 1.0, ())],
    ids=str,
)
def test_an_observation_space_without_an_encoder_is_refused_by_name(space):
    with pytest.raises(ConfigError) as error:
        shape_of_observation(space)
    assert str(space) in str(error.value)


def test_the_shape_of_an_observation_is_that_of_its_box():
    assert shape_of_observation(spaces.Box(0.0, 1.0, (3, 2))) == (3, 2)
    assert shape_of_observation(spaces.Box(0.0, 1.0, (1,))) == (1,)


@pytest.mark.parametrize("family", [CategoricalFamily(3, -2), *map(family_of, BOXES.values())], ids=str)
def test_a_description_survives_json_and_gives_the_same_family(family):
    assert from_description(json.loads(json.dumps(describe(family)))) == family


# --- samples ----------------------------------------------------------------------------------------------------------


@both
def test_stored_noise_gives_the_sample_that_its_generator_would_have_given(family):
    params = torch.randn(50, family.num_params, generator=seeded(1))
    noise = family.draw_noise((50,), seeded())
    assert torch.equal(family.sample(params, noise), family.sample(params, seeded()))


@both
def test_noise_for_a_whole_rollout_gives_the_samples_of_its_steps(family):
    params = torch.randn(7, 3, family.num_params, generator=seeded(1))
    noise = family.draw_noise((7, 3), seeded())
    together = family.sample(params, noise)
    assert together.shape[:2] == (7, 3)
    for t in range(7):
        assert torch.equal(family.sample(params[t], noise[t]), together[t])


@both
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
    n, family = 100_000, GaussianFamily((-1.0,) * 2, (1.0,) * 2, (2,))
    mean, std = torch.tensor([0.5, -30.0]), torch.tensor([0.1, 5.0])
    sample = family.sample(torch.cat([mean, std.log()]).expand(n, 4), seeded())
    assert sample.shape == (n, 2)
    # Standard errors of a mean, σ / √n, and of a standard deviation, σ / √(2 n).
    assert ((sample.mean(0) - mean).abs() < 4 * std / math.sqrt(n)).all()
    assert ((sample.std(0) - std).abs() < 4 * std / math.sqrt(2 * n)).all()
    assert abs(torch.corrcoef(sample.T)[0, 1]) < 4 / math.sqrt(n)


def test_the_mode_is_the_likeliest_action():
    categorical, gaussian = CategoricalFamily(3), GaussianFamily((-1.0,) * 2, (1.0,) * 2, (2,))
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert categorical.mode(logits).tolist() == [1, 0]
    assert categorical.mode(logits, torch.tensor([[True, False, True], [False, False, True]])).tolist() == [2, 2]
    assert gaussian.mode(torch.tensor([[5.0, -7.0, 0.1, 0.2]])).tolist() == [[5.0, -7.0]]


# --- the distribution -------------------------------------------------------------------------------------------------


@both
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
    pi = GaussianFamily((-1.0,) * 2, (1.0,) * 2, (2,)).build(torch.tensor([[1.0, 2.0, math.log(0.5), math.log(3.0)]]))
    # Σ −½ ((a − μ) / σ)² − log σ − ½ log 2π at a = (2, 2)
    expected = -0.5 * 4 - math.log(0.5) - math.log(3.0) - math.log(2 * math.pi)
    assert pi.log_prob(torch.tensor([[2.0, 2.0]])).item() == pytest.approx(expected)


def test_a_masked_action_has_no_probability_and_the_rest_share_it():
    pi = CategoricalFamily(3).build(torch.zeros(1, 3), torch.tensor([[True, False, True]]))
    assert pi.probs.tolist() == [[0.5, 0.0, 0.5]]
    assert pi.log_prob(torch.tensor([1])).item() == -INF
    assert pi.entropy().item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("use", ["build", "mode", "sample"])
def test_a_mask_over_a_box_is_refused(use):
    family = GaussianFamily((-1.0,), (1.0,), (1,))
    arguments = [torch.zeros(1, 2), *([seeded()] if use == "sample" else []), torch.ones(1, 1, dtype=torch.bool)]
    with pytest.raises(ValueError, match="action_mask"):
        getattr(family, use)(*arguments)


@both
def test_parameters_that_are_nan_give_a_log_prob_that_is_nan(family):
    # Not an exception in the middle of a step, nor a number: the learner's own gate looks for NaN.
    pi = family.build(torch.full((2, family.num_params), float("nan")))
    assert pi.log_prob(family.mode(torch.zeros(2, family.num_params))).isnan().all()


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
@settings(deadline=None, max_examples=50, derandomize=True)
def test_whatever_the_sample_the_environment_can_take_it(action):
    space = BOXES["matrix"]
    (sent,) = family_of(space).to_env(torch.tensor([action]))
    assert space.contains(sent)
