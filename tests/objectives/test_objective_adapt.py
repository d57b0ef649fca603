"""How λ moves: once per rollout, in place, between its bounds, and never on a number that is none."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_kl.objectives import PRESETS, Objective

NAN, INF = float("nan"), float("inf")
HIGH, LOW, ON_TARGET = 0.02, 0.005, 0.01
adapting = pytest.mark.parametrize("name", ["kl_adaptive", "kl_clip"])
standing = pytest.mark.parametrize("name", ["none", "clip", "kl_fixed"])


def after(*kls: float, name: str = "kl_adaptive", **settings) -> float:
    """λ after these rollouts, from 1."""
    objective = Objective.from_preset(name, **settings)
    for kl in kls:
        objective.adapt_(torch.tensor(kl))
    return objective.kl_lambda.item()


@adapting
@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (HIGH, 2.0),
        (0.0151, 2.0),
        (0.01 * 1.5, 1.0),
        (ON_TARGET, 1.0),
        (0.01 / 1.5, 1.0),
        (0.0066, 0.5),
        (0.0, 0.5),
    ],
)
def test_the_rule_is_the_papers(name, kl, expected):
    # Schulman 2017, section 4: K > 1.5 d doubles λ, K < d / 1.5 halves it; on the edge nothing happens.
    assert after(kl, name=name) == expected


def test_the_steps_add_up_over_rollouts():
    assert after(HIGH, HIGH, HIGH, LOW, ON_TARGET) == 4.0


def test_band_and_factor_are_settings():
    assert after(0.0249, band=2.5, factor=3.0) == 1.0
    assert after(0.0251, band=2.5, factor=3.0) == 3.0
    assert after(0.0041, band=2.5, factor=4.0) == 1.0
    assert after(0.0039, band=2.5, factor=4.0) == 0.25


def test_the_target_is_a_setting():
    assert after(HIGH, kl_target=0.02) == 1.0
    assert after(HIGH, kl_target=0.05) == 0.5


@adapting
def test_lambda_keeps_its_place_in_memory(name):
    # A compiled step or a captured graph reads λ where it was; a new tensor would leave it with the old value for good.
    objective = Objective.from_preset(name)
    buffer, address = objective.kl_lambda, objective.kl_lambda.data_ptr()
    for kl in (HIGH, LOW, NAN, INF, HIGH):
        objective.adapt_(torch.tensor(kl))
    assert objective.kl_lambda is buffer
    assert objective.kl_lambda.data_ptr() == address
    assert buffer.item() == 4.0


def test_below_target_for_long_lambda_rests_on_its_minimum_and_leaves_it_at_once():
    objective = Objective.from_preset("kl_adaptive")
    for _ in range(10_000):
        objective.adapt_(torch.tensor(0.0))
    assert objective.kl_lambda.item() == pytest.approx(1e-4)
    assert objective.controller_metrics()["penalty/saturated"].item() == 1.0
    objective.adapt_(torch.tensor(HIGH))
    assert objective.kl_lambda.item() == pytest.approx(2e-4)
    assert objective.controller_metrics()["penalty/saturated"].item() == 0.0


def test_above_target_for_long_lambda_rests_on_its_maximum_and_the_loss_is_finite():
    objective = Objective.from_preset("kl_adaptive")
    for _ in range(1_000):
        objective.adapt_(torch.tensor(1e30))
    assert objective.kl_lambda.item() == pytest.approx(1e4)
    assert objective.controller_metrics()["penalty/saturated"].item() == 1.0
    x = torch.ones(4)
    assert objective(logp=-x, logp_old=-x, adv=x, kl=100 * x).loss.isfinite()
    objective.adapt_(torch.tensor(0.0))
    assert objective.kl_lambda.item() == pytest.approx(5e3)


def test_the_bounds_are_settings():
    assert after(*[HIGH] * 9, max=3.0) == 3.0
    assert after(*[LOW] * 9, min=0.3) == pytest.approx(0.3)


def test_an_undefined_kl_leaves_lambda_and_is_counted():
    objective = Objective.from_preset("kl_adaptive")
    objective.adapt_(torch.tensor(HIGH))
    objective.adapt_(torch.tensor(NAN))
    assert objective.kl_lambda.item() == 2.0
    assert objective.controller_metrics()["penalty/nonfinite"].item() == 1


def test_an_infinite_kl_is_one_step_up_and_is_counted():
    objective = Objective.from_preset("kl_adaptive")
    objective.adapt_(torch.tensor(INF))
    assert objective.kl_lambda.item() == 2.0
    assert objective.controller_metrics()["penalty/nonfinite"].item() == 1


@pytest.mark.parametrize("kl", [-3e-9, -0.02, -1e30])
def test_a_kl_below_zero_is_taken_as_zero(kl):
    objective = Objective.from_preset("kl_adaptive")
    objective.adapt_(torch.tensor(kl))
    assert objective.kl_lambda.item() == after(0.0) == 0.5
    assert objective.controller_metrics()["penalty/nonfinite"].item() == 0


@adapting
@given(st.lists(st.floats(width=32), max_size=30))
@settings(max_examples=50, derandomize=True)
def test_whatever_it_is_fed_lambda_stays_within_its_bounds(name, kls):
    objective = Objective.from_preset(name, min=0.25, max=8.0)
    for kl in kls:
        objective.adapt_(torch.tensor(kl))
        assert 0.25 <= objective.kl_lambda.item() <= 8.0


@standing
def test_without_an_adapting_controller_lambda_never_moves(name):
    objective = Objective.from_preset(name)
    start = objective.kl_lambda.item()
    for kl in (0.0, LOW, ON_TARGET, HIGH, 1e30, INF, NAN, -1.0):
        objective.adapt_(torch.tensor(kl))
        assert objective.kl_lambda.item() == start
    assert objective.controller_metrics()["penalty/saturated"].item() == 0.0
    assert objective.controller_metrics()["penalty/nonfinite"].item() == 2


def test_a_fixed_lambda_outside_the_usual_bounds_is_left_alone():
    assert after(HIGH, name="kl_fixed", kl_lambda=1e6) == 1e6
    assert after(HIGH, name="kl_fixed", kl_lambda=0.0) == 0.0


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(4,), (1,), (1, 1), (0,)])
def test_a_kl_per_sample_is_refused_with_its_shape_and_moves_nothing(name, shape):
    objective = Objective.from_preset(name)
    before = objective.kl_lambda.item()
    with pytest.raises(ValueError, match="shape") as error:
        objective.adapt_(torch.ones(shape))
    assert str(shape) in str(error.value)
    assert objective.kl_lambda.item() == before
    assert objective.controller_metrics()["penalty/nonfinite"].item() == 0


def test_a_kl_that_still_has_a_graph_leaves_none_on_lambda():
    objective = Objective.from_preset("kl_adaptive")
    objective.adapt_(torch.tensor(HIGH, requires_grad=True) * 1.0)
    assert not objective.kl_lambda.requires_grad
    assert objective.kl_lambda.item() == 2.0


@pytest.mark.parametrize("kl", [HIGH, torch.tensor(HIGH, dtype=torch.float64), torch.tensor(HIGH).bfloat16()])
def test_any_kind_of_number_will_do(kl):
    objective = Objective.from_preset("kl_adaptive")
    objective.adapt_(kl)
    assert objective.kl_lambda.item() == 2.0
    assert objective.kl_lambda.dtype == torch.float32
