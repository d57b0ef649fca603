"""GAE is its definition, with the end of an episode in the right place; normalised advantages are finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppo_kl.training.advantages import gae, normalize_advantages

ON, TERMINATED, TRUNCATED, RESET = range(4)
"""What a row is: the episode goes on, ends for good, is cut off; or it only resets and is no transition."""

unit = st.floats(0, 1)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def kinds(draw: st.DrawFn, max_steps: int = 8) -> np.ndarray:
    """What each row of a rollout is, `[T, N]`; a row that only resets stands first or follows an end."""
    T, N = draw(st.integers(1, max_steps)), draw(st.integers(1, 3))
    rows = np.empty((T, N), int)
    for i in range(N):
        may_reset = True
        for t in range(T):
            rows[t, i] = draw(st.sampled_from((ON, ON, TERMINATED, TRUNCATED, *([RESET] * may_reset))))
            may_reset = rows[t, i] in (TERMINATED, TRUNCATED)
    return rows


class Rows:
    """A rollout of known kinds of rows and random numbers."""

    def __init__(self, kind: np.ndarray, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.kind = kind
        self.reward, self.value, self.next_value = (
            torch.from_numpy(rng.normal(size=kind.shape).astype(np.float32)) for _ in range(3)
        )
        self.terminated, self.truncated = torch.from_numpy(kind == TERMINATED), torch.from_numpy(kind == TRUNCATED)
        self.valid = torch.from_numpy(kind != RESET)

    def gae(self, gamma: float, gae_lambda: float, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        names = ("reward", "value", "next_value", "terminated", "truncated", "valid")
        return gae(*(getattr(self, n)[rows] for n in names), gamma=gamma, gae_lambda=gae_lambda)


def one_env(reward, value, next_value, kind, *, gamma, gae_lambda):
    """Advantage and return of one environment, as lists."""
    rows = Rows(np.array(kind)[:, None])
    rows.reward, rows.value, rows.next_value = (torch.tensor(x)[:, None] for x in (reward, value, next_value))
    adv, ret = rows.gae(gamma, gae_lambda)
    return adv[:, 0].tolist(), ret[:, 0].tolist()


# --- GAE: the definition ---------------------------------------------------------------------------------------------


def definition(rows: Rows, gamma: float, gae_lambda: float) -> np.ndarray:
    """A_t = Σ_{k ≥ t} (γ λ)^(k − t) δ_k, over k from t to the end of t's episode or of the rollout; O(T²)."""
    reward, value, next_value = (x.double().numpy() for x in (rows.reward, rows.value, rows.next_value))
    T, N = rows.kind.shape
    adv = np.zeros((T, N))
    for i in range(N):
        for t in range(T):
            if rows.kind[t, i] == RESET:
                continue
            for k in range(t, T):
                bootstrap = 0.0 if rows.kind[k, i] == TERMINATED else next_value[k, i]
                adv[t, i] += (gamma * gae_lambda) ** (k - t) * (reward[k, i] + gamma * bootstrap - value[k, i])
                if rows.kind[k, i] != ON:
                    break
    return adv


@settings(max_examples=200)
@given(kinds(), seeds, unit, unit)
def test_gae_is_the_sum_over_the_rest_of_the_episode(kind, seed, gamma, gae_lambda):
    rows = Rows(kind, seed)
    adv, _ = rows.gae(gamma, gae_lambda)
    np.testing.assert_allclose(adv.numpy(), definition(rows, gamma, gae_lambda), rtol=1e-6, atol=1e-6)


@settings(max_examples=50)
@given(kinds(), seeds, unit, unit)
def test_the_return_is_advantage_plus_value_and_0_in_rows_that_do_not_count(kind, seed, gamma, gae_lambda):
    rows = Rows(kind, seed)
    adv, ret = rows.gae(gamma, gae_lambda)
    expected = np.where(kind == RESET, 0.0, (adv + rows.value).numpy())
    np.testing.assert_allclose(ret.numpy(), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=50)
@given(kinds(), seeds, unit)
def test_with_lambda_0_the_advantage_is_the_one_step_error(kind, seed, gamma):
    rows = Rows(kind, seed)
    adv, _ = rows.gae(gamma, 0.0)
    bootstrap = torch.where(rows.terminated, 0.0, rows.next_value)
    expected = torch.where(rows.valid, rows.reward + gamma * bootstrap - rows.value, 0.0)
    np.testing.assert_allclose(adv.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


@settings(max_examples=50)
@given(st.integers(1, 8), seeds, unit, st.sampled_from((ON, TERMINATED, TRUNCATED)))
def test_with_lambda_1_the_return_is_the_discounted_sum_of_rewards(T, seed, gamma, end):
    # λ = 1 telescopes only where each next value is the next row's value, as the collector has it.
    rows = Rows(np.array([[ON]] * (T - 1) + [[end]]), seed)
    rows.next_value[:-1] = rows.value[1:]
    _, ret = rows.gae(gamma, 1.0)
    rewards = rows.reward[:, 0].double().tolist()
    expected = 0.0 if end == TERMINATED else float(rows.next_value[-1, 0])
    for t in reversed(range(T)):
        expected = rewards[t] + gamma * expected
        assert ret[t, 0].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_gae_by_hand():
    # γ = ½, λ = ½, V = 1, next V = 2: δ = r + ½·2 − 1 = r in each row; from the last row back, A = r + ¼ A':
    # 8, then 4 + 2 = 6, then 2 + 1.5 = 3.5; the return is A + 1.
    adv, ret = one_env([2.0, 4.0, 8.0], [1.0] * 3, [2.0] * 3, [ON] * 3, gamma=0.5, gae_lambda=0.5)
    assert adv == [3.5, 6.0, 8.0]
    assert ret == [4.5, 7.0, 9.0]


# --- the end of an episode -------------------------------------------------------------------------------------------


def test_truncation_bootstraps_and_termination_does_not():
    # γ = ½, r = 1, V = 0, next V = 10: 1 + ½·10 = 6 where the episode was cut off, 1 where it ended for good.
    assert one_env([1.0], [0.0], [10.0], [TRUNCATED], gamma=0.5, gae_lambda=1.0) == ([6.0], [6.0])
    assert one_env([1.0], [0.0], [10.0], [TERMINATED], gamma=0.5, gae_lambda=1.0) == ([1.0], [1.0])


def test_the_last_row_of_a_rollout_bootstraps():
    assert one_env([1.0], [0.0], [10.0], [ON], gamma=0.5, gae_lambda=1.0) == ([6.0], [6.0])


@pytest.mark.parametrize("end", [TERMINATED, TRUNCATED])
@pytest.mark.parametrize("between", [[], [RESET]], ids=["same-step", "next-step"])
@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 4), seeds)
def test_what_happens_after_an_episode_ends_does_not_reach_back_into_it(end, between, before, after, seed):
    kind = np.array([ON] * (before - 1) + [end] + between + [ON] * after)[:, None]
    rows, other = Rows(kind, seed), Rows(kind, seed)
    for x in (other.reward, other.value, other.next_value):
        x[before:] += 1000
    episode = slice(0, before)
    for a, b in zip(rows.gae(0.9, 0.9), other.gae(0.9, 0.9), strict=True):
        assert torch.equal(a[episode], b[episode])
        assert not torch.equal(a[before + len(between) :], b[before + len(between) :])


@settings(max_examples=50)
@given(kinds(), seeds, st.data())
def test_an_advantage_is_of_its_own_environment_alone(kind, seed, data):
    i = data.draw(st.integers(0, kind.shape[1] - 1))
    rows, other = Rows(kind, seed), Rows(kind, seed)
    keep = np.arange(kind.shape[1]) == i
    for x in (other.reward, other.value, other.next_value):
        x[:, ~keep] = 1000.0
    adv, other_adv = rows.gae(0.9, 0.9)[0], other.gae(0.9, 0.9)[0]
    assert torch.equal(adv[:, i], other_adv[:, i])


@settings(max_examples=50)
@given(kinds(), seeds, unit, st.data())
def test_a_rollout_cut_in_two_has_the_same_one_step_errors(kind, seed, gamma, data):
    cut = data.draw(st.integers(0, len(kind)))
    rows = Rows(kind, seed)
    whole = rows.gae(gamma, 0.0)
    halves = rows.gae(gamma, 0.0, slice(None, cut)), rows.gae(gamma, 0.0, slice(cut, None))
    for i in range(2):
        assert torch.equal(whole[i], torch.cat([halves[0][i], halves[1][i]]))


@settings(max_examples=50)
@given(kinds(), seeds, unit, unit, st.data())
def test_a_rollout_cut_in_two_has_the_same_returns_where_the_value_at_the_cut_is_that_return(
    kind, seed, gamma, gae_lambda, data
):
    # Given same values: with V(s) = the return from s on, what the first half bootstraps is what the second would add.
    cut = data.draw(st.integers(1, max(1, len(kind) - 1)))
    assume(cut < len(kind))
    rows = Rows(kind, seed)
    _, second = rows.gae(gamma, gae_lambda, slice(cut, None))
    on = torch.from_numpy(kind[cut - 1] == ON)
    rows.next_value[cut - 1] = torch.where(on, second[0], rows.next_value[cut - 1])
    rows.value[cut] = torch.where(on, second[0], rows.value[cut])
    _, whole = rows.gae(gamma, gae_lambda)
    _, first = rows.gae(gamma, gae_lambda, slice(None, cut))
    np.testing.assert_allclose(first.numpy(), whole[:cut].numpy(), rtol=1e-4, atol=1e-5)


@settings(max_examples=50)
@given(kinds(), seeds, st.sampled_from((math.nan, math.inf, -math.inf)))
def test_what_stands_at_masked_places_does_not_leak(kind, seed, poison):
    rows, poisoned = Rows(kind, seed), Rows(kind, seed)
    poisoned.next_value[poisoned.terminated] = poison
    for x in (poisoned.reward, poisoned.value, poisoned.next_value):
        x[~poisoned.valid] = poison
    with np.errstate(invalid="ignore"):  # inf − inf in a row that is then thrown away
        results = poisoned.gae(0.9, 0.9)
    for clean, result in zip(rows.gae(0.9, 0.9), results, strict=True):
        assert torch.equal(clean, result)


@pytest.mark.parametrize("end", [TERMINATED, TRUNCATED])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_value_that_is_not_finite_stays_in_the_episode_it_belongs_to(end, poison):
    # γ = ½: 1 + ½·2 = 2 where the episode was cut off, 1 where it ended; a trace cut by 0 · NaN would be NaN.
    adv, _ = one_env([1.0, 1.0], [0.0, poison], [2.0, 0.0], [end, ON], gamma=0.5, gae_lambda=1.0)
    assert adv[0] == (2.0 if end == TRUNCATED else 1.0)


def test_gae_answers_float32_of_the_rollouts_shape():
    adv, ret = Rows(np.full((4, 3), ON)).gae(0.9, 0.9)
    assert adv.shape == ret.shape == (4, 3)
    assert adv.dtype == ret.dtype == torch.float32


# --- normalisation ---------------------------------------------------------------------------------------------------


def random_rows(n: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Advantages, and which of them count: at least two."""
    rng = np.random.default_rng(seed)
    valid = rng.random(n) < 0.7
    valid[:2] = True
    return torch.from_numpy((scale * (3 + rng.normal(size=n))).astype(np.float32)), torch.from_numpy(valid)


@settings(max_examples=100)
@given(st.integers(2, 100), seeds, st.sampled_from((0.1, 1.0, 1e6)))
def test_normalised_advantages_have_mean_0_and_standard_deviation_1_over_the_rows_that_count(n, seed, scale):
    adv, valid = random_rows(n, seed, scale)
    counted = normalize_advantages(adv, valid)[valid].double()
    assume(adv[valid].std(correction=0) > 0.05 * scale)
    assert counted.mean().item() == pytest.approx(0, abs=1e-3)
    assert counted.std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_normalised_advantages_by_hand():
    # Mean 4, deviations −3, −1, 1, 3: variance (9 + 1 + 1 + 9) / 4 = 5.
    adv = normalize_advantages(torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.ones(4, dtype=torch.bool))
    assert adv.tolist() == pytest.approx([x / 5**0.5 for x in (-3, -1, 1, 3)], rel=1e-6)


@settings(max_examples=50)
@given(st.integers(2, 30), seeds)
def test_normalising_keeps_the_order_of_advantages(n, seed):
    adv, _ = random_rows(n, seed)
    assume(len(adv.unique()) == n)
    normalised = normalize_advantages(adv, torch.ones(n, dtype=torch.bool))
    assert torch.equal(normalised.argsort(), adv.argsort())


@settings(max_examples=50)
@given(st.integers(2, 30), seeds, st.sampled_from((math.nan, math.inf, 1e30)))
def test_rows_that_do_not_count_change_nothing_and_become_0(n, seed, poison):
    adv, valid = random_rows(n, seed)
    normalised = normalize_advantages(torch.where(valid, adv, poison), valid)
    assert torch.equal(normalised, normalize_advantages(torch.where(valid, adv, 0.0), valid))
    assert not normalised[~valid].any()
    alone = normalize_advantages(adv[valid], torch.ones(int(valid.sum()), dtype=torch.bool))
    np.testing.assert_allclose(normalised[valid].numpy(), alone.numpy(), rtol=1e-4, atol=1e-5)


@settings(max_examples=100)
@given(st.integers(1, 100), st.floats(-1e6, 1e6, width=32), st.integers(0, 3))
@example(1, 5.0, 0)
@example(2, 5.0, 0)
@example(3, 7.7, 0)
@example(64, 0.1, 0)
@example(100, 0.0, 2)
def test_equal_advantages_become_0(n, value, ignored):
    # 7.7 + 7.7 + 7.7 divided by 3 is not 7.7 in float32: what rounding leaves must not be blown up to 1.
    adv = torch.cat([torch.full((n,), value), torch.full((ignored,), 99.0)])
    normalised = normalize_advantages(adv, torch.arange(n + ignored) < n)
    assert normalised.abs().max().item() <= 1e-3


def test_advantages_of_which_none_counts_become_0():
    normalised = normalize_advantages(torch.tensor([1.0, math.nan]), torch.zeros(2, dtype=torch.bool))
    assert normalised.tolist() == [0.0, 0.0]
