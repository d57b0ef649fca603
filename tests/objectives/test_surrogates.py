"""The per-sample formulas, by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_kl.objectives.surrogates import clip, ratio

KL = torch.zeros(1)
numbers = st.lists(
    st.tuples(st.floats(1e-3, 1e3, allow_subnormal=False), st.floats(-1e3, 1e3, allow_subnormal=False)),
    min_size=1,
    max_size=20,
)


def value_and_slope(surrogate, r, adv, **kwargs):
    """The loss of one sample, and its derivative in the ratio."""
    r = torch.tensor([r], requires_grad=True)
    loss = surrogate(r, torch.tensor([adv]), KL, **kwargs)
    (slope,) = torch.autograd.grad(loss.sum(), r)
    return loss.item(), slope.item()


@pytest.mark.parametrize(("r", "adv", "loss"), [(1.5, 2.0, -3.0), (0.5, 2.0, -1.0), (1.5, -2.0, 3.0), (0.5, -2.0, 1.0)])
def test_ratio_is_minus_ratio_times_advantage(r, adv, loss):
    assert value_and_slope(ratio, r, adv) == pytest.approx((loss, -adv))


@pytest.mark.parametrize(
    ("r", "adv", "loss", "slope"),
    [
        (1.5, 2.0, -2.4, 0.0),  # better action, already likelier: −min(3, 1.2 · 2), no more to gain
        (0.5, 2.0, -1.0, -2.0),  # better action made rarer: −min(1, 0.8 · 2), pulled back
        (1.5, -2.0, 3.0, 2.0),  # worse action made likelier: −min(−3, 1.2 · −2), pulled back
        (0.5, -2.0, 1.6, 0.0),  # worse action, already rarer: −min(−1, 0.8 · −2), no more to gain
        (1.1, 2.0, -2.2, -2.0),  # inside the band
        (0.9, -2.0, 1.8, 2.0),  # inside the band
    ],
)
def test_clip_stops_only_where_leaving_the_band_would_pay(r, adv, loss, slope):
    assert value_and_slope(clip, r, adv, clip_eps=0.2) == pytest.approx((loss, slope))


@pytest.mark.parametrize(
    ("r", "adv", "loss", "slope"),
    [
        (1.25, 2.0, -2.5, -2.0),  # 1.25 < 1 + 0.3
        (1.5, 2.0, -2.6, 0.0),  # 1.3 · 2
        (0.5, -2.0, 1.6, 0.0),  # 0.8 · 2: the lower edge is not the upper one's
        (0.75, -2.0, 1.6, 0.0),
    ],
)
def test_clip_takes_an_upper_edge_of_its_own(r, adv, loss, slope):
    assert value_and_slope(clip, r, adv, clip_eps=0.2, clip_eps_high=0.3) == pytest.approx((loss, slope))


@given(numbers, st.floats(0.01, 0.99), st.none() | st.floats(0.01, 5.0))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_clip_equals_the_published_minimum(samples, low, high):
    r, adv = np.array(samples).T
    expected = -np.minimum(r * adv, np.clip(r, 1 - low, 1 + (low if high is None else high)) * adv)
    loss = clip(torch.tensor(r), torch.tensor(adv), KL, clip_eps=low, clip_eps_high=high)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-12)


@given(numbers, st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_clip_is_a_pessimistic_bound_on_ratio(samples, eps):
    r, adv = torch.tensor(samples, dtype=torch.float64).T
    assert (clip(r, adv, KL, clip_eps=eps) >= ratio(r, adv, KL)).all()
