"""Every symptom is recognised in a run that has it, and a run that has none is told what it did."""

import numpy as np
import pytest
from told_runs import free, run, steered

from ppo_kl.diagnostics.story import tell
from ppo_kl.diagnostics.verdict import RULES, judge

N = 100
IN_BAND = np.tile([0.009, 0.011], N // 2)
LEARNING = np.linspace(10, 200, N)
RETURNS = {"rollout/return_last100": LEARNING, "rollout/return_mean": LEARNING}
WITH_END = np.concatenate([np.linspace(10, 200, N // 2), np.linspace(200, 20, N // 2)])


def saturated(columns, bound):
    """λ at a bound, 1e-4 or 1e4, in the second half of the run."""
    at = np.arange(N) >= N / 2
    return columns | {"penalty/lambda": np.where(at, bound, 1.0), "penalty/saturated": at.astype(float)}


CASES = {
    "_failed": (run(steered(IN_BAND), state="failed: exit status 4"), "The run failed: exit status 4, at step 25,600"),
    "_nonfinite": (
        run(steered(IN_BAND, **{"optim/skipped": 2.0})),
        "Numbers were not finite: 200 gradient steps were skipped",
    ),
    "_stale": (run(free(0.01, **{"kl/before_update": 1e-3})), "The KL before an update was up to 0.001 nats, not 0"),
    "_tiny_target": (
        run(steered(np.full(N, 1e-9)) | {"kl/target_ratio": np.full(N, 1.0)}),
        "The target of 1e-09 nats is near what float32 leaves of 0",
    ),
    "_did_not_move": (run(free(np.zeros(N))), "The KL was 0 (below 1e-08) after 100% of the updates"),
    "_at_max": (
        run(saturated(steered(np.full(N, 0.04)), 1e4)),
        "λ stood at its max of 1e+04 after 50% of the updates, and yet the KL was 4.0 times its target",
    ),
    "_cycle": (
        run(steered(np.tile([0.0025, 0.04], N // 2), np.tile([1.0, 4.0], N // 2))),
        "λ oscillates: 100% of its moves undo the one before",
    ),
    "_exploded": (
        run(steered(np.where(np.arange(N) % 10 == 0, 0.3, 0.01))),
        "The KL exploded: 10 of 100 updates went beyond 10 times the target, the worst with 0.3 nats at step 256",
    ),
    "_return_fell": (
        run(steered(IN_BAND, **{"rollout/return_last100": WITH_END, "rollout/return_mean": WITH_END})),
        "The return fell from its best, 200 at step 12,800, to 20",
    ),
    "_learned_nothing": (
        run(steered(IN_BAND, **{"rollout/return_last100": 9.0, "rollout/return_mean": 9.0})),
        "The return did not rise: 9 at first, 9 at the end",
    ),
    "_at_min": (
        run(saturated(steered(np.full(N, 0.002)), 1e-4)),
        "λ fell to its min of 0.0001 and stood there after 50% of the updates",
    ),
    "_off_target": (run(steered(np.full(N, 0.04))), "The KL lies above its target, off by a factor of 4.0 on average"),
    "_some_spikes": (
        run(steered(np.where(np.arange(N) == 7, 0.2, 0.01))),
        "1 of 100 updates went beyond 10 times the target, the worst with 0.2 nats at step 2,048",
    ),
    "_stopped_early": (
        run(steered(IN_BAND, **{"optim/stopped_early": 1.0})),
        "The early stop ended 100% of the updates",
    ),
    "_std_at_bound": (
        run(free(0.01, **{"policy/std_at_bound": np.linspace(0, 1, N)})),
        "100% of the standard deviations stand at log_std_min or log_std_max at the end",
    ),
    "_collapsed": (
        run(free(0.01, **{"policy/entropy": np.linspace(1, 0.01, N)})),
        "The entropy collapsed from 1 to 0.01 nats",
    ),
    "_blind_critic": (
        run(free(0.01, **{"value/explained_variance": -0.1})),
        "The value function is no better than a constant",
    ),
}


def test_every_rule_has_a_case_here():
    assert set(CASES) == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize("name", CASES)
def test_a_symptom_is_found_where_it_is_and_told_with_its_numbers(name):
    case, sentence = CASES[name]
    (rule,) = (rule for rule in RULES if rule.__name__ == name)
    finding = rule(tell(case))
    assert finding.sentence.startswith(sentence)
    assert finding in judge(tell(case))
    assert finding.advice.endswith(".")


HEALTHY = {
    "held": run(steered(IN_BAND, **RETURNS)),
    "clip": run(free(IN_BAND, **RETURNS), objective="clip"),
    "fixed": run(free(IN_BAND, **RETURNS) | {"penalty/lambda": 0.5}, objective="kl_fixed"),
    "none": run(free(IN_BAND, **RETURNS), objective="none"),
    "bare": run({"kl/forward": IN_BAND}),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_symptom_is_seen_in_a_run_that_has_none(name):
    (finding,) = judge(tell(HEALTHY[name]))
    assert finding.level == "well"


def test_a_run_that_was_held_is_told_as_such():
    (finding,) = judge(tell(HEALTHY["held"]))
    assert finding.sentence == (
        "The KL was held at its target of 0.01 nats, within a factor of 1.1 on average. The return went from 10 to 200."
    )


@pytest.mark.parametrize(
    ("name", "begin"),
    [("clip", "With clipping alone"), ("fixed", "With λ at 0.5"), ("none", "With nothing to hold it")],
)
def test_without_a_target_it_is_told_what_held_the_kl_and_how_to_hold_it_there(name, begin):
    (finding,) = judge(tell(HEALTHY[name]))
    assert finding.sentence.startswith(f"{begin}, the KL of an update was 0.01 nats (median; quartiles 0.009 to 0.011)")
    assert finding.advice.endswith("--objective kl_adaptive --objective.controller.kl-target 0.01")


def test_what_is_no_matter_of_the_kl_comes_after_what_the_kl_was():
    held, critic = judge(tell(run(steered(IN_BAND, **RETURNS, **{"value/explained_variance": -0.1}))))
    assert (held.level, critic.level) == ("well", "note")


def test_the_gravest_comes_first():
    case = run(saturated(steered(np.full(N, 0.04)), 1e4), state="failed: exit status 4", nonfinite={"loss/total": 3})
    sentences = [finding.sentence for finding in judge(tell(case))]
    assert [sentence.split()[0] for sentence in sentences[:3]] == ["The", "Numbers", "λ"]
    assert "loss/total had 3" in sentences[1]


def test_a_bound_that_explains_the_missed_target_is_said_once():
    levels = [finding.sentence for finding in judge(tell(CASES["_at_min"][0]))]
    assert not any("off by a factor" in sentence for sentence in levels)


def test_updates_that_went_too_far_are_no_explosion_where_the_return_came_to_its_best():
    risen = np.linspace(20.0, 500.0, N)
    kl = np.where(np.arange(N) % 10 == 0, 0.3, 0.01)
    found = judge(tell(run(steered(kl, **{"rollout/return_last100": risen, "rollout/return_mean": risen}))))[0]
    assert found.level == "watch"
    assert found.sentence.startswith("Single updates went far too far: 10 of 100 updates")
    fallen = np.minimum(risen, risen[::-1])
    found = judge(tell(run(steered(kl, **{"rollout/return_last100": fallen, "rollout/return_mean": fallen}))))[0]
    assert found.level == "bad"
    assert found.sentence.startswith("The KL exploded")


def test_an_explosion_without_a_penalty_is_answered_by_another_objective():
    free_run = judge(tell(run(free(np.where(np.arange(N) == 3, 0.9, 0.01)), objective="none")))[0]
    assert free_run.sentence == "The KL exploded, the worst with 0.9 nats at step 1,024."
    assert "kl_adaptive or clip" in free_run.advice
