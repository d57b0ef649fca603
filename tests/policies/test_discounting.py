"""A discounted sum is what the loop over time makes of it, also where that is long, cut, or not finite."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppo_kl.policies.discounting import discounted_sums


def by_loop(x: np.ndarray, decay: np.ndarray) -> np.ndarray:
    y, after = np.zeros_like(x), np.zeros(x.shape[1:])
    for t in reversed(range(len(x))):
        y[t] = after = x[t] + np.where(decay[t] > 0, decay[t] * after, 0.0)
    return y


def test_three_steps_by_hand():
    # 4; 2 + ½·4 = 4; 1 + ½·4 = 3.
    assert discounted_sums(np.array([[1.0], [2.0], [4.0]]), np.full((3, 1), 0.5)).tolist() == [[3.0], [4.0], [4.0]]


@given(
    st.integers(1, 70),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.5, 0.95 * 0.99, 1.0]),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_it_is_the_loop_whatever_the_length_and_wherever_it_is_cut(T, N, factor, cuts, seed):
    rng = np.random.default_rng(seed)
    x, decay = rng.normal(size=(T, N)), np.where(rng.random((T, N)) < cuts, 0.0, factor)
    np.testing.assert_allclose(discounted_sums(x, decay), by_loop(x, decay), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [1e-300, 0.5, 0.9405, 0.9999, 1.0])
def test_ten_thousand_steps_neither_overflow_nor_lose_precision(factor):
    x = np.random.default_rng(0).normal(size=(10_000, 2))
    decay = np.full_like(x, factor)
    found = discounted_sums(x, decay)
    np.testing.assert_allclose(found, by_loop(x, decay), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_on_its_side_of_a_zero_and_in_its_column(bad):
    x, decay = np.ones((9, 2)), np.ones((9, 2))
    x[5, 0], decay[3, 0] = bad, 0.0
    y = discounted_sums(x, decay)
    # Column 0: steps 6 to 8 come after it, 4 and 5 sum over it, 0 to 3 end before it.
    assert np.isfinite(y[:, 0]).tolist() == [True] * 4 + [False] * 2 + [True] * 3
    assert y[:4, 0].tolist() == [4.0, 3.0, 2.0, 1.0]
    assert y[:, 1].tolist() == [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]


def test_what_is_given_stays_as_it_is():
    x, decay = np.ones((5, 1)), np.full((5, 1), 0.5)
    discounted_sums(x, decay)
    assert (x == 1).all()
    assert (decay == 0.5).all()
