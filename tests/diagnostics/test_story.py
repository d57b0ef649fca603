"""The numbers that are told of a run, by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from told_runs import free, history, run, steered

from ppo_kl.diagnostics.story import band_of, kl_of, tell, tracking_factor

RATIOS = st.lists(st.floats(0, 1e6), min_size=1, max_size=50).map(np.array)


def test_quartiles_mean_and_worst_of_the_kl():
    kl = tell(run(free([0.01, 0.02, 0.03, 0.04, 0.10]), n=5, objective="clip")).kl
    assert (kl.low, kl.median, kl.high, kl.mean) == pytest.approx((0.02, 0.03, 0.04, 0.04))
    assert (kl.worst, kl.worst_at) == (pytest.approx(0.10), 5 * 256)


def test_the_kl_is_the_one_the_controller_saw_where_it_saw_one():
    columns = {"kl/controlled": [0.1, np.nan], "kl/forward": [0.2, 0.3]}
    assert kl_of(history(columns, n=2)).tolist() == [0.1, 0.3]


def test_rounding_below_0_is_a_kl_of_0_and_counts_as_one():
    story = tell(run(free([-1e-9, 5e-9, 0.01, 0.02]), n=4, objective="clip"))
    assert story.kl.zero == 0.5
    assert kl_of(story.run.history).min() == 0


def test_shares_in_above_and_below_the_band():
    # The band of 0.01 is 0.0067 to 0.015.
    t = tell(run(steered([0.005, 0.007, 0.014, 0.016, 0.2]), n=5)).tracking
    assert (t.inside, t.above, t.below) == pytest.approx((0.4, 0.4, 0.2))
    assert (t.ratio, t.worst, t.far_above) == (pytest.approx(1.4), pytest.approx(20), 1)
    assert t.target == pytest.approx(0.01)


def test_a_controller_that_never_rests_is_judged_by_a_factor_of_one_and_a_half():
    columns = steered([0.0066, 0.0068, 0.0149, 0.0151]) | {"kl/target_low": 0.01, "kl/target_high": 0.01}
    t = tell(run(columns, n=4, objective="kl_pi")).tracking
    assert (t.inside, t.above, t.below) == (0.5, 0.25, 0.25)


def test_the_target_is_known_where_the_kl_was_0_too():
    columns = steered([0.0, 0.02, 0.0]) | {"kl/target_low": 0.01, "kl/target_high": 0.01}
    target, _, _ = band_of(history(columns, n=3))
    assert target.tolist() == pytest.approx([0.01] * 3)


def test_a_target_that_falls_is_followed():
    kl, target = np.array([0.02, 0.02]), np.array([0.02, 0.01])
    columns = {"kl/controlled": kl, "kl/target_ratio": kl / target, "kl/target_low": target, "kl/target_high": target}
    t = tell(run(columns, n=2)).tracking
    assert (t.target, t.inside, t.above) == (pytest.approx(0.01), 0.5, 0.5)


def test_the_tracking_error_is_the_mean_factor_after_the_first_tenth():
    # Twice, half, four times and a quarter of the target: ln 2 + ln 2 + 2 ln 2 + 2 ln 2 over 4 is 1.5 ln 2.
    ratio = np.array([2, 0.5, 4, 0.25] * 9)
    kl = np.concatenate([[5.0] * 4, 0.01 * ratio])
    assert tell(run(steered(kl), n=40)).tracking.factor == pytest.approx(2**1.5)


@given(RATIOS)
def test_the_tracking_factor_is_1_to_1000_and_the_same_for_too_high_and_too_low(ratio):
    factor = tracking_factor(ratio)
    assert 1 <= factor <= 1000 * (1 + 1e-12)
    with np.errstate(divide="ignore", over="ignore"):
        assert tracking_factor(1 / ratio) == pytest.approx(factor, rel=1e-6)


def test_no_target_no_tracking_and_no_penalty_no_steering():
    story = tell(run(free(0.01), objective="clip"))
    assert (story.tracking, story.steering) == (None, None)


def test_moves_of_lambda_are_counted():
    s = tell(run(steered([0.01] * 6, [1, 2, 4, 4, 2, 4]), n=6)).steering
    assert (s.raised, s.lowered, s.kept) == (3, 1, 1)
    assert (s.first, s.last, s.lowest, s.highest) == (1, 4, 1, 4)
    # Of the moves up, up, down, up, the third turned, and the fourth turned back.
    assert s.alternating == pytest.approx(2 / 3)


def test_saturation_is_told_by_its_side():
    # `penalty/saturated` is of the λ after the update: the next one's. The bounds are 1e-4 and 1e4.
    columns = steered([0.01] * 5, [1, 1e4, 1, 1e-4, 1e-4])
    columns["penalty/saturated"] = [1, 0, 1, 1, 1]
    s = tell(run(columns, n=5)).steering
    assert (s.at_max, s.at_min) == (pytest.approx(0.2), pytest.approx(0.6))


def test_without_a_configuration_the_side_is_seen_from_where_lambda_began():
    columns = steered([0.01] * 4, [1, 2, 2, 2])
    columns["penalty/saturated"] = [1, 1, 1, 1]
    s = tell(run(columns, n=4, config=False)).steering
    assert (s.at_max, s.at_min) == (1, 0)


@given(st.lists(st.floats(1e-4, 1e4), min_size=2, max_size=30))
def test_every_step_of_lambda_is_a_raise_a_fall_or_neither(values):
    s = tell(run(steered(np.full(len(values), 0.01), values), n=len(values))).steering
    assert s.raised + s.lowered + s.kept == len(values) - 1
    assert 0 <= s.alternating <= 1


def test_the_return_first_last_and_best():
    columns = free(0.01) | {"rollout/return_last100": [np.nan, 10, 50, 40], "rollout/return_mean": [np.nan, 10, 90, 30]}
    columns["kl/forward"], columns["eval/return_mean"] = [0.01] * 4, [np.nan, 20, np.nan, 45]
    r = tell(run(columns, n=4)).returns
    assert (r.first, r.last, r.best, r.best_at, r.evaluated) == (10, 40, 50, 3 * 256, 45)


def test_a_run_in_which_no_episode_ended_has_no_return():
    assert tell(run(free(0.01))).returns is None


def test_trouble_is_summed():
    columns = free(0.01, **{"optim/skipped": 0.0, "penalty/nonfinite": 0.0, "optim/stopped_early": 0.0})
    columns["optim/skipped"] = [0, 3, 2, 0]
    columns["penalty/nonfinite"] = [0, 1, 2, 2]  # so far, not in this update
    columns["optim/stopped_early"] = [1, 0, 1, 1]
    t = tell(run(columns, n=4, nonfinite={"ratio/max": 2})).trouble
    assert (t.skipped, t.controller, t.metrics, t.stopped_early) == (5, 2, {"ratio/max": 2}, 0.75)


def test_a_run_whose_every_kl_is_not_finite_is_told_of_nevertheless():
    story = tell(run({"kl/forward": np.nan, "kl/before_update": 0.0}, nonfinite={"kl/forward": 100}))
    assert math.isnan(story.kl.median)
    assert story.trouble.metrics == {"kl/forward": 100}
