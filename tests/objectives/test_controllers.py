"""The rules by which λ moves, as pure functions; and what they do to a plant."""

import math

import pytest
import torch

from ppo_kl.config.objective import Banded, Dual, ForwardKL, ObjectiveConfig, Proportional, Ratio
from ppo_kl.config.presets import PRESETS
from ppo_kl.objectives import Objective
from ppo_kl.objectives.controllers import adaptive, banded, dual, fixed, pi, proportional, schedule


def moved(kl, *, kl_lambda=1.0, kl_target=0.01, band=1.5, factor=2.0):
    return adaptive(torch.tensor(kl_lambda), torch.tensor(kl), kl_target=kl_target, band=band, factor=factor).item()


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.0, 0.5),
        (0.006, 0.5),  # below 0.01 / 1.5 = 0.00667
        (0.007, 1.0),
        (0.01, 1.0),
        (0.0149, 1.0),
        (0.0151, 2.0),  # above 0.01 · 1.5 = 0.015
        (10.0, 2.0),
        (float("inf"), 2.0),
    ],
)
def test_adaptive_is_the_rule_of_the_paper(kl, expected):
    assert moved(kl) == expected


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(1.0, 1.0), (1.0000001, 2.0), (0.25, 1.0), (0.24999999, 0.5)],
)
def test_on_an_edge_of_the_band_lambda_stays(kl, expected):
    # With d = 0.5 and b = 2 the edges are numbers that float32 holds exactly, 1 and 0.25; the others are neighbours.
    assert moved(kl, kl_target=0.5, band=2.0) == expected


@pytest.mark.parametrize("kl", [0.01 * 1.5, 0.01 / 1.5])
def test_on_an_edge_that_float32_rounds_lambda_stays(kl):
    assert moved(kl) == 1.0


def test_adaptive_multiplies_and_divides_by_its_factor():
    assert moved(1.0, kl_lambda=3.0, factor=1.5) == pytest.approx(4.5)
    assert moved(0.0, kl_lambda=3.0, factor=1.5) == pytest.approx(2.0)


def test_a_band_of_one_always_moves_off_target():
    assert moved(0.0101, band=1.0) == 2.0
    assert moved(0.0099, band=1.0) == 0.5
    assert moved(0.01, band=1.0) == 1.0


def test_fixed_never_moves():
    assert fixed(torch.tensor(3.0)).item() == 3.0


def test_a_rule_leaves_its_arguments_alone():
    kl_lambda, kl = torch.tensor(1.0), torch.tensor(5.0)
    adaptive(kl_lambda, kl, kl_target=0.01, band=1.5, factor=2.0)
    assert (kl_lambda.item(), kl.item()) == (1.0, 5.0)


# --- banded -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.021, 0.3), (0.02, 0.2), (0.01, 0.2), (0.005, 0.2), (0.0049, 0.1), (float("inf"), 0.3), (0.0, 0.1)],
)
def test_banded_is_rllibs_rule(kl, expected):
    # Above 2 · .01: .2 · 1.5; below .5 · .01: .2 · .5; on an edge and between: .2.
    moved = banded(torch.tensor(0.2), torch.tensor(kl), 0.01, upper=2.0, lower=0.5, up=1.5, down=0.5)
    assert moved.item() == pytest.approx(expected)


@pytest.mark.parametrize("kl", [0.0, 0.003, 0.0066, 0.0067, 0.01, 0.0149, 0.0151, 1.0])
def test_adaptive_is_banded_with_reciprocal_edges_and_factors(kl):
    def rllib_style(kl_lambda, sampled_kl, target):  # re-derived from the paper's three lines
        if sampled_kl < target / 1.5:
            return kl_lambda / 2
        if sampled_kl > target * 1.5:
            return kl_lambda * 2
        return kl_lambda

    assert moved(kl, kl_lambda=3.0) == pytest.approx(rllib_style(3.0, kl, 0.01))


# --- pi ---------------------------------------------------------------------------------------------------------------

FIRST = torch.zeros(2)


def test_pi_moves_at_first_by_the_integral_alone():
    # e = log(.02 / .01) = log 2, e_prev = e: λ · 2^.3
    kl_lambda, memory = pi(torch.tensor(1.0), torch.tensor(0.02), 0.01, FIRST, k_i=0.3, k_p=0.1)
    assert kl_lambda.item() == pytest.approx(2**0.3)
    assert memory.tolist() == pytest.approx([math.log(2), 1.0])


def test_pi_then_answers_the_change_of_the_error_too():
    # From e_prev = log 2 to e = log ½: λ · exp(.3 · −log 2 + .1 · (−2 log 2)) = 2^−.5
    memory = torch.tensor([math.log(2), 1.0])
    kl_lambda, memory = pi(torch.tensor(1.0), torch.tensor(0.005), 0.01, memory, k_i=0.3, k_p=0.1)
    assert kl_lambda.item() == pytest.approx(2**-0.5)
    assert memory[0].item() == pytest.approx(-math.log(2))


@pytest.mark.parametrize(("kl", "factor"), [(1e9, 4**0.3), (float("inf"), 4**0.3), (0.0, 4**-0.3), (1e-30, 4**-0.3)])
def test_pi_counts_no_error_beyond_a_factor_of_four(kl, factor):
    kl_lambda, memory = pi(torch.tensor(1.0), torch.tensor(kl), 0.01, FIRST, k_i=0.3, k_p=0.1)
    assert kl_lambda.item() == pytest.approx(factor)
    assert memory.isfinite().all()


@pytest.mark.parametrize(("kl", "factor"), [(0.02, 2**0.5), (0.0025, 0.5), (1e9, 2.0), (0.0, 0.5)])
def test_deadbeat_takes_the_root_of_the_ratio_and_no_more_than_a_factor_of_two(kl, factor):
    kl_lambda, _ = pi(torch.tensor(1.0), torch.tensor(kl), 0.01, FIRST, k_i=0.5, k_p=0.0, step_limit=2.0)
    assert kl_lambda.item() == pytest.approx(factor)


def test_a_step_limit_below_the_gains_own_limit_holds():
    kl_lambda, _ = pi(torch.tensor(1.0), torch.tensor(1.0), 0.01, FIRST, k_i=0.5, k_p=0.0, step_limit=1.25)
    assert kl_lambda.item() == pytest.approx(1.25)


def test_deadbeat_is_on_target_after_one_step_where_kl_goes_with_the_inverse_square():
    c, target = 0.03, 0.01
    kl_lambda, _ = pi(torch.tensor(1.0), torch.tensor(c), target, FIRST, k_i=0.5, k_p=0.0, step_limit=2.0)
    assert c / kl_lambda.item() ** 2 == pytest.approx(target)


# --- dual, proportional -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (0.02, math.exp(0.1)),  # .1 · (2 − 1)
        (0.005, math.exp(-0.05)),
        (0.0, math.exp(-0.1)),
        (1.0, math.exp(1.0)),  # 99, clipped to 10
        (float("inf"), math.exp(1.0)),
    ],
)
def test_dual_climbs_by_the_relative_violation(kl, factor):
    assert dual(torch.tensor(3.0), torch.tensor(kl), 0.01, step=0.1).item() == pytest.approx(3 * factor)


@pytest.mark.parametrize(
    ("kl", "factor"), [(0.011, 1.01), (0.02, 1.02), (float("inf"), 1.02), (0.0, 0.98), (0.01, 1.0)]
)
def test_proportional_moves_two_percent_at_most(kl, factor):
    moved = proportional(torch.tensor(3.0), torch.tensor(kl), 0.01, gain=0.1)
    assert moved.item() == pytest.approx(3 * factor)


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "progress", "expected"),
    [
        ("constant", 0.7, 2.0),
        ("linear", 0.0, 2.0),
        ("linear", 0.25, 3.0),  # 2 + .25 · (6 − 2)
        ("linear", 1.0, 6.0),
    ],
)
def test_a_schedule_is_a_function_of_progress(shape, progress, expected):
    assert schedule(2.0, torch.tensor(progress), shape=shape, kl_lambda_final=6.0).item() == pytest.approx(expected)


def test_mdpos_lambda_is_t_over_what_is_left():
    # T / (T − k + 1) for k = 1 … 5, T = 5, where progress is (k − 1) / T.
    found = [schedule(1.0, torch.tensor((k - 1) / 5), shape="mdpo").item() for k in range(1, 6)]
    assert found == pytest.approx([5 / 5, 5 / 4, 5 / 3, 5 / 2, 5 / 1])


def test_at_the_very_end_it_is_large_but_finite():
    assert schedule(1.0, torch.tensor(1.0), shape="mdpo").item() == pytest.approx(1e4)


# --- on a plant -------------------------------------------------------------------------------------------------------

TRACKERS = {
    **{name: PRESETS[name] for name in ("kl_adaptive", "rllib", "kl_hinge", "kl_pi", "kl_deadbeat")},
    "banded, modular_rl": ObjectiveConfig(
        "mine", Ratio(), ForwardKL(), Banded(upper=1.3, lower=0.7, up=1.5, down=1 / 1.5, kl_lambda=1.0)
    ),
    "dual": ObjectiveConfig("mine", Ratio(), ForwardKL(), Dual()),
    "proportional": ObjectiveConfig("mine", Ratio(), ForwardKL(), Proportional()),
}
# How far from the target the settled KL may lie, as a factor: a controller with a dead zone rests anywhere in it, and
# the doubling rule cycles over a band that its own step, a factor of 4 in KL, does not fit into.
SETTLES_WITHIN = {"kl_adaptive": 2.5, "rllib": 2.0, "kl_hinge": 2.0, "banded, modular_rl": 1.6}


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("wanted", [0.05, 1.0, 25.0])
def test_on_a_plant_whose_kl_is_c_over_lambda_squared_it_settles_at_its_target(name, wanted):
    objective, generator = Objective(TRACKERS[name]), torch.Generator().manual_seed(0)
    controller = TRACKERS[name].controller
    c = controller.kl_target * wanted**2  # λ = wanted is where KL = target
    kls = []
    for _ in range(1000):
        objective.adapt_(c / objective.kl_lambda**2 * (0.1 * torch.randn((), generator=generator)).exp())
        assert controller.min <= objective.kl_lambda.item() <= controller.max * (1 + 1e-6)
        kls.append(c / objective.kl_lambda.item() ** 2 / controller.kl_target)
    settled = torch.tensor(kls[-300:])
    # Noise of 10 % in, little more than that out: nobody may amplify it.
    assert settled.log().median().abs().exp().item() < SETTLES_WITHIN.get(name, 1.05)
    within = SETTLES_WITHIN.get(name, 1.25) * 1.3
    assert (settled.log().abs() < math.log(within)).float().mean() > 0.95


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_pi_is_stable_for_every_power_it_may_meet(exponent):
    # KL ∝ λ^−.5 (few inner steps) … λ^−2 (converged), from a factor of 1000 away and without noise.
    objective, target = Objective.from_preset("kl_pi"), 0.01
    for _ in range(200):
        objective.adapt_(target * (30.0 / objective.kl_lambda) ** exponent)
    assert objective.kl_lambda.item() == pytest.approx(30.0, rel=1e-3)


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("kl", [0.0, 1e30, float("inf")])
def test_held_off_target_for_long_it_rests_on_a_bound_and_leaves_it_at_once(name, kl):
    objective = Objective(TRACKERS[name])
    for _ in range(2000):
        objective.adapt_(torch.tensor(kl))
    bound = TRACKERS[name].controller.min if kl == 0.0 else TRACKERS[name].controller.max
    assert objective.kl_lambda.item() == pytest.approx(bound)
    objective.adapt_(torch.tensor(1e30 if kl == 0.0 else 0.0))
    assert objective.kl_lambda.item() != pytest.approx(bound, rel=1e-3)
