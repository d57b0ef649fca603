"""The exact parts of a Gaussian KL."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, Normal

from ppo_kl.objectives import TanhNormal, policy_kl
from ppo_kl.objectives.divergence import gaussian_kl_parts

value = st.floats(-3, 3, allow_subnormal=False)
gaussian = st.lists(st.tuples(value, value), min_size=3, max_size=3)


def diagonal(mean, std):
    """One state, as many dimensions as numbers."""
    return Independent(Normal(torch.tensor([mean]), torch.tensor([std])), 1)


@pytest.mark.parametrize(
    ("direction", "mean_part", "scale_part"),
    [
        # p = N(0, 1), q = N(1, 2): ½ (1 / 2)²; log 2 + 1 / (2 · 4) − ½.
        ("forward", 0.125, math.log(2) + 0.125 - 0.5),
        # The other way round: ½ (1 / 1)²; log ½ + 4 / 2 − ½.
        ("reverse", 0.5, -math.log(2) + 2 - 0.5),
    ],
)
def test_the_parts_of_a_known_pair(direction, mean_part, scale_part):
    p, q = diagonal([0.0], [1.0]), diagonal([1.0], [2.0])
    parts = gaussian_kl_parts(p, q) if direction == "forward" else gaussian_kl_parts(q, p)
    assert [x.item() for x in parts] == pytest.approx([mean_part, scale_part], rel=1e-6)


@given(gaussian, gaussian)
@settings(max_examples=50, derandomize=True)
def test_the_parts_add_up_to_the_kl_in_both_directions(old, new):
    def build(numbers):
        mean, log_std = torch.tensor(numbers, dtype=torch.float64).T
        return Independent(Normal(mean[None], log_std[None].exp()), 1)

    p, q = build(old), build(new)
    for direction, pair in (("forward", (p, q)), ("reverse", (q, p))):
        total = sum(gaussian_kl_parts(*pair))
        torch.testing.assert_close(total, policy_kl(p, q, direction), rtol=1e-9, atol=1e-12)


def test_a_step_of_the_means_alone_has_no_scale_part():
    mean_part, scale_part = gaussian_kl_parts(diagonal([0.0, 1.0], [0.5, 3.0]), diagonal([2.0, -1.0], [0.5, 3.0]))
    assert scale_part.item() == 0
    # ½ ((2 / 0.5)² + (2 / 3)²)
    assert mean_part.item() == pytest.approx(0.5 * (16 + 4 / 9))


def test_the_parts_are_summed_over_dimensions():
    parts = gaussian_kl_parts(diagonal([0.0] * 3, [1.0] * 3), diagonal([1.0] * 3, [2.0] * 3))
    assert [x.shape for x in parts] == [(1,), (1,)]
    assert [x.item() for x in parts] == pytest.approx([3 * 0.125, 3 * (math.log(2) - 0.375)], rel=1e-6)


def test_other_distributions_have_no_such_parts():
    categorical, gaussian = Categorical(logits=torch.zeros(1, 2)), diagonal([0.0], [1.0])
    assert gaussian_kl_parts(categorical, categorical) is None
    assert gaussian_kl_parts(gaussian, categorical) is None
    assert gaussian_kl_parts(Normal(torch.zeros(1), torch.ones(1)), gaussian) is None


def test_a_squashed_gaussian_has_the_parts_of_the_gaussian_below():
    p, q = diagonal([0.0, 1.0], [1.0, 2.0]), diagonal([1.0, 1.0], [2.0, 2.0])
    squashed = [TanhNormal(d.mean, d.stddev) for d in (p, q)]
    for ours, below in zip(gaussian_kl_parts(*squashed), gaussian_kl_parts(p, q), strict=True):
        assert torch.equal(ours, below)
    assert gaussian_kl_parts(squashed[0], q) is None


def test_a_small_change_of_scale_does_not_cancel():
    # δ² for a small δ = log σ_p − log σ_q: in float32, ½ (σ_p² / σ_q² − 1) − δ would be off by half.
    parts = gaussian_kl_parts(diagonal([0.0], [1.0]), diagonal([0.0], [1.0 + 2**-12]))
    assert parts[1].item() == pytest.approx(2**-24, rel=1e-3)
