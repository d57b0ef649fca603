"""Numbers about scores, against hand arithmetic, other implementations, and made-up studies whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from ppo_kl.ablation import statistics as s
from ppo_kl.ablation.statistics import Scale


def array(*values):
    return np.array(values, float)


def quick_interval(statistic, *tables):
    """Without its coverage, which takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s, "coverage", lambda *_, seed: 0.5)
        return s.interval(statistic, *tables)


# --- aggregates -------------------------------------------------------------------------------------------------------


def test_the_iqm_is_the_mean_of_the_middle_half():
    # of eight values the middle four: (3 + 4 + 5 + 6) / 4
    assert s.iqm(array(1, 2, 3, 4, 5, 6, 7, 1000)) == 4.5


def test_the_optimality_gap_does_not_credit_what_lies_above_1():
    assert s.optimality_gap(array(0.5, 1.0, 3.0)) == pytest.approx(0.5 / 3)


def test_aggregates_go_over_all_runs_of_all_environments():
    table = {"a": array(0, 2), "b": array(4, 6, 8)}
    assert s.over_all(s.mean)(table) == 4.0


finite = st.floats(-10, 10)


@given(arrays(float, (3, 8), elements=finite))
def test_aggregates_are_those_of_each_made_up_study(x):
    for aggregate in s.AGGREGATES.values():
        np.testing.assert_allclose(aggregate(x), [aggregate(row) for row in x])


@given(arrays(float, st.integers(2, 20), elements=finite))
def test_an_interval_lies_around_its_estimate_and_within_the_scores(x):
    found = quick_interval(s.over_all(s.mean), {"a": x})
    assert x.min() - 1e-9 <= found.low <= found.high <= x.max() + 1e-9


def test_resampling_stays_within_an_environment():
    drawn = s.resampled({"a": array(1, 2), "b": array(10, 20, 30)}, np.random.default_rng(0), 50)
    assert {env: x.shape for env, x in drawn.items()} == {"a": (50, 2), "b": (50, 3)}
    assert set(drawn["a"].flat) == {1, 2}
    assert set(drawn["b"].flat) == {10, 20, 30}


def test_the_interval_of_a_mean_is_scipys_where_there_is_one_environment():
    x = np.random.default_rng(0).normal(size=30)
    ours = s.interval(s.over_all(s.mean), {"a": x})
    theirs = stats.bootstrap((x,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=0.03), pytest.approx(theirs.high, abs=0.03))


def test_a_difference_is_as_uncertain_as_both_of_its_sides():
    generator = np.random.default_rng(0)
    x, y = ({"a": generator.normal(m, 1, 200)} for m in (0.5, 0.0))
    found = s.interval(s.difference(s.mean), x, y)
    # 1.96 · √(1 / 200 + 1 / 200)
    assert found.estimate == pytest.approx(x["a"].mean() - y["a"].mean())
    assert (found.high - found.low) / 2 == pytest.approx(0.196, rel=0.15)


def test_a_single_run_has_no_interval():
    alone = {"a": array(1, 2, 3), "b": array(4)}
    found = s.interval(s.over_all(s.mean), alone)
    assert (found.estimate, found.known, math.isnan(found.coverage)) == (2.5, False, True)
    spread = {"a": array(1, 2, 3), "b": array(4, 5)}
    for statistic in (s.difference(s.mean), s.probability_of_improvement):
        assert not s.interval(statistic, alone, spread).known
        assert not s.interval(statistic, spread, alone).known
        assert math.isnan(s.coverage(statistic, spread, alone))


def test_the_same_study_has_the_same_interval():
    table = {"a": array(1, 2, 3, 5)}
    assert s.interval(s.over_all(s.iqm), table) == s.interval(s.over_all(s.iqm), table)


@pytest.mark.filterwarnings("ignore")
def test_they_are_those_of_rliable():
    from rliable import library, metrics  # here, for it takes a while to import and warns

    scores = np.random.default_rng(7).gamma(4, 0.25, (10, 4))  # runs × environments
    table = {str(i): scores[:, i] for i in range(4)}
    theirs = {
        "IQM": metrics.aggregate_iqm,
        "mean": metrics.aggregate_mean,
        "optimality gap": metrics.aggregate_optimality_gap,
    }
    points, bounds = library.get_interval_estimates(
        {"x": scores},
        lambda x: np.array([f(x) for f in theirs.values()]),
        reps=2000,
        random_state=np.random.RandomState(0),
    )
    for i, name in enumerate(theirs):
        ours = s.interval(s.over_all(s.AGGREGATES[name]), table)
        assert ours.estimate == pytest.approx(points["x"][i], abs=5e-4)
        assert (ours.low, ours.high) == pytest.approx(tuple(bounds["x"][:, i]), abs=0.02)
    other = np.random.default_rng(8).gamma(4, 0.3, (10, 4))
    better = s.probability_of_improvement(table, {str(i): other[:, i] for i in range(4)})
    assert better == pytest.approx(metrics.probability_of_improvement(scores, other), abs=5e-4)
    thresholds = np.linspace(0, 2, 9)
    (profile,), _ = (list(x.values()) for x in library.create_performance_profile({"x": scores}, thresholds, reps=10))
    np.testing.assert_allclose(s.performance_profile(table, thresholds), profile, atol=5e-4)


# --- comparisons ------------------------------------------------------------------------------------------------------


def test_the_probability_of_improvement_counts_pairs_and_ties_half():
    # a: of 4 pairs X wins 3 (1 > 0, 3 > 0, 3 > 2); b: all ties
    x, y = {"a": array(1, 3), "b": array(5)}, {"a": array(0, 2), "b": array(5)}
    assert s.probability_of_improvement(x, y) == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_it_is_mann_and_whitneys_u_over_the_number_of_pairs():
    generator = np.random.default_rng(0)
    x, y = generator.normal(0.5, 1, 12), generator.normal(0, 1, 9)
    u = stats.mannwhitneyu(x, y).statistic
    assert s.probability_of_improvement({"a": x}, {"a": y}) == pytest.approx(u / (12 * 9))


@given(arrays(float, 4, elements=finite), arrays(float, 5, elements=finite))
def test_what_one_arm_wins_the_other_loses(x, y):
    p, q = (s.probability_of_improvement({"a": a}, {"a": b}) for a, b in ((x, y), (y, x)))
    assert p + q == pytest.approx(1)


def test_the_profile_is_the_share_of_runs_above_each_threshold():
    profile = s.performance_profile({"a": array(0, 1), "b": array(2, 3)}, array(-1, 0, 1.5, 3))
    assert profile.tolist() == [1.0, 0.75, 0.5, 0.0]


def test_holms_correction():
    # sorted: 0.01 · 4, 0.02 · 3, 0.03 · 2, 0.5 · 1, none below the one before it
    assert s.holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert s.holm([0.9, 0.8]) == [1.0, 1.0]


def test_what_is_no_test_is_not_corrected_for():
    corrected = s.holm([math.nan, 0.04])
    assert math.isnan(corrected[0])
    assert corrected[1] == 0.04


def test_one_run_allows_no_test():
    difference, p = s.welch(array(3), array(1, 2))
    assert (difference, math.isnan(p)) == (1.5, True)


def test_tests_are_of_each_arm_and_environment_against_the_reference():
    generator = np.random.default_rng(0)
    arms = {name: {"a": generator.normal(i, 0.1, 10), "b": generator.normal(0, 1, 10)} for i, name in enumerate("xyz")}
    found = s.tests(arms, "x")
    assert set(found) == {("y", "a"), ("y", "b"), ("z", "a"), ("z", "b")}
    assert found["z", "a"].difference == pytest.approx(2, abs=0.2)
    assert found["z", "a"].p == pytest.approx(stats.ttest_ind(arms["z"]["a"], arms["x"]["a"], equal_var=False).pvalue)
    assert all(test.p_holm >= test.p for test in found.values())


def test_the_overall_test_is_welchs_where_there_is_one_environment():
    generator = np.random.default_rng(0)
    x, y = generator.normal(0.5, 1, 8), generator.normal(0, 2, 5)
    difference, p = s.overall({"a": x}, {"a": y})
    assert difference == pytest.approx(x.mean() - y.mean())
    assert p == pytest.approx(stats.ttest_ind(x, y, equal_var=False).pvalue)


def test_it_calls_two_arms_different_that_are_not_as_often_as_it_says():
    generator = np.random.default_rng(0)

    def made_up_p():
        x, y = ({env: generator.normal(0, 1, 3) for env in "ab"} for _ in range(2))
        return s.overall(x, y)[1]

    assert np.mean([made_up_p() < 0.05 for _ in range(2000)]) == pytest.approx(0.045, abs=0.02)


def test_one_run_allows_no_overall_test():
    assert math.isnan(s.overall({"a": array(1), "b": array(1, 2)}, {"a": array(1, 2), "b": array(1, 2)})[1])


# --- how far to trust them --------------------------------------------------------------------------------------------


def test_intervals_of_many_runs_hold_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(1)
    table = {env: generator.normal(i, 0.2, 40) for i, env in enumerate("ab")}
    other = {env: generator.normal(i + 0.1, 0.2, 40) for i, env in enumerate("ab")}
    assert s.coverage(s.over_all(s.mean), table, simulations=1500) == pytest.approx(0.95, abs=0.04)
    for statistic in (s.difference(s.iqm), s.probability_of_improvement):
        assert s.coverage(statistic, table, other, simulations=1500) == pytest.approx(0.95, abs=0.04)


def test_those_of_three_runs_hold_it_less_often():
    generator = np.random.default_rng(1)
    x, y = ({"a": generator.normal(0, 1, 3)} for _ in range(2))
    assert s.coverage(s.over_all(s.mean), x, simulations=300) < 0.85
    for statistic in (s.difference(s.mean), s.probability_of_improvement):
        assert s.coverage(statistic, x, y, simulations=300) < 0.93


def test_an_interval_brings_its_coverage():
    x, y = {"a": array(1, 2, 3, 5), "b": array(2, 4)}, {"a": array(2, 2, 3, 7), "b": array(1, 4)}
    for statistic, tables in ((s.over_all(s.iqm), [x]), (s.difference(s.iqm), [x, y])):
        assert s.interval(statistic, *tables).coverage == s.coverage(statistic, *tables)


def test_the_smallest_difference_that_can_be_seen():
    # the protocol's figure: SD 0.11, seven environments, three seeds: 2.80 · 0.11 · √(2 / 21) = 0.095
    unit = array(-1, 0, 1)  # SD 1
    arms = {name: {str(env): 0.11 * unit for env in range(7)} for name in "xy"}
    assert s.smallest_detectable(arms) == pytest.approx(0.095, abs=5e-4)
    assert math.isnan(s.smallest_detectable({"x": {"a": array(1)}}))


# --- normalisation ----------------------------------------------------------------------------------------------------

RETURNS = {"clip": {"a": array(10, 20), "b": array(-5, -3)}, "kl": {"a": array(30, 10), "b": array(-2, -2)}}
INITIAL = {"a": array(0.0), "b": array(-10.0)}


def test_1_is_the_best_run_the_best_arm_or_the_reference():
    assert s.scales(RETURNS, INITIAL, s.best_run) == {"a": Scale(0, 30), "b": Scale(-10, -2)}
    assert s.scales(RETURNS, INITIAL, s.best_arm) == {"a": Scale(0, 20), "b": Scale(-10, -2)}
    assert s.scales(RETURNS, INITIAL, s.anchored_at("clip")) == {"a": Scale(0, 15), "b": Scale(-10, -4)}


def test_anchored_scores_of_the_reference_have_mean_1():
    anchored = s.scored(RETURNS, s.scales(RETURNS, INITIAL, s.anchored_at("clip")))
    for scores in anchored["clip"].values():
        assert scores.mean() == pytest.approx(1)
    # (30 − 0) / (15 − 0), (10 − 0) / (15 − 0)
    assert anchored["kl"]["a"] == pytest.approx([2, 2 / 3])


def test_where_nobody_learned_anything_there_is_no_scale():
    assert s.scales({"clip": {"a": array(-1, 0)}}, {"a": array(0.0)}, s.best_run) == {}
    # 1 lies above 0, but within three standard errors of it: 3 · √2 / √2
    assert s.scales({"clip": {"a": array(2.9)}}, {"a": array(-1, 1)}, s.best_run) == {}
    assert s.scales({"clip": {"a": array(3.1)}}, {"a": array(-1, 1)}, s.best_run) == {"a": Scale(0, 3.1)}
    assert s.scored({"clip": {"a": array(1)}}, {}) == {"clip": {}}
