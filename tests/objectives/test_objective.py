"""One call of an objective: the numbers, the rows that count, the extremes, and that nothing is changed."""

import copy
import math
import pickle

import pytest
import torch

from ppo_kl.config.objective import Adaptive, Clip, Fixed, ForwardKL, ObjectiveConfig, Ratio, ReverseKL
from ppo_kl.errors import ConfigError
from ppo_kl.objectives import PRESETS, Objective, policy_kl
from ppo_kl.policies.box_families import GaussianFamily
from ppo_kl.policies.families import CategoricalFamily

NAN, INF = float("nan"), float("inf")
INPUTS = ("logp", "logp_old", "adv", "kl")
everything = pytest.mark.parametrize("name", PRESETS)


def rows(n: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    """What an objective takes, with ratios on both sides of the usual band."""
    generator = torch.Generator().manual_seed(seed)
    logp_old = -torch.rand(n, generator=generator) - 1
    return {
        "logp": logp_old + 0.5 * torch.randn(n, generator=generator),
        "logp_old": logp_old,
        "adv": torch.randn(n, generator=generator),
        "kl": torch.rand(n, generator=generator),
    }


def by_hand(ratio, adv, kl) -> dict[str, torch.Tensor]:
    """Rows with these ratios."""
    logp_old = torch.full((len(ratio),), -1.0)
    return {
        "logp": logp_old + torch.tensor(ratio).log(),
        "logp_old": logp_old,
        "adv": torch.tensor(adv),
        "kl": torch.tensor(kl),
    }


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("surrogate", "expected"),
    [
        # −(1.5 · 2 + 0.5 · −1) / 2
        (Ratio(), -1.25),
        # −(min(3, 1.2 · 2) + min(−0.5, 0.8 · −1)) / 2
        (Clip(0.2), -0.8),
        # −(min(3, 1.4 · 2) + min(−0.5, 0.8 · −1)) / 2
        (Clip(0.2, 0.4), -1.0),
    ],
)
def test_the_loss_is_the_mean_surrogate_plus_lambda_times_the_mean_kl(surrogate, expected):
    objective = Objective(ObjectiveConfig("mine", surrogate, ForwardKL(), Fixed(2.0)))
    out = objective(**by_hand([1.5, 0.5], [2.0, -1.0], [0.1, 0.3]))
    assert out.surrogate.item() == pytest.approx(expected)
    assert out.penalty.item() == pytest.approx(2.0 * 0.2)
    assert out.loss.item() == pytest.approx(expected + 0.4)


def test_the_metrics_are_means_over_the_rows():
    objective = Objective(ObjectiveConfig("mine", Ratio(), ForwardKL(), Fixed(2.0)))
    metrics = objective(**by_hand([1.5, 0.7, 1.1, 0.9], [2.0, -1.0, 0.0, 1.0], [0.1, 0.3, 0.0, 0.4])).metrics
    assert {k: v.item() for k, v in metrics.items()} == pytest.approx(
        {
            "kl/forward": 0.2,
            "penalty/lambda": 2.0,
            "penalty/loss": 0.4,
            "penalty/share": 0.4 / 0.8,  # the surrogate is −(3 − 0.7 + 0 + 0.9) / 4
            "ratio/mean": 1.05,
            "ratio/clip_fraction": 0.5,  # 1.5 and 0.7 lie outside 1 ± 0.2
        },
        rel=1e-5,
    )


@pytest.mark.parametrize(
    ("surrogate", "expected"), [(Ratio(), 0.75), (Clip(0.05), 1.0), (Clip(0.25), 0.5), (Clip(0.25, 0.6), 0.25)]
)
def test_the_clip_fraction_counts_ratios_outside_the_objectives_own_band(surrogate, expected):
    objective = Objective(ObjectiveConfig("mine", surrogate, ForwardKL(), Fixed()))
    metrics = objective(**by_hand([1.5, 0.7, 1.1, 0.79], [1.0] * 4, [0.0] * 4)).metrics
    assert metrics["ratio/clip_fraction"].item() == expected


def test_the_clip_fraction_of_an_unclipped_objective_compares_with_that_of_clip():
    inputs = rows(100)
    fractions = {
        name: Objective.from_preset(name)(**inputs).metrics["ratio/clip_fraction"].item() for name in ("clip", "none")
    }
    assert fractions["clip"] == fractions["none"] > 0


def test_a_penalty_kind_decides_which_kl_is_measured():
    family = CategoricalFamily(2)
    pi_old, pi = family.build(torch.tensor([[0.0, 0.0]])), family.build(torch.tensor([[0.0, math.log(3)]]))
    forward, reverse = (Objective(ObjectiveConfig("mine", Ratio(), p(), Fixed())) for p in (ForwardKL, ReverseKL))
    # ½ log(.5/.25) + ½ log(.5/.75) and ¼ log(.25/.5) + ¾ log(.75/.5)
    assert forward.divergence(pi_old, pi).item() == pytest.approx(0.1438410, rel=1e-5)
    assert reverse.divergence(pi_old, pi).item() == pytest.approx(0.1308120, rel=1e-5)
    assert Objective.from_preset("none").divergence(pi_old, pi).item() == pytest.approx(0.1438410, rel=1e-5)
    assert "kl/forward" in forward(**rows()).metrics
    assert "kl/reverse" in reverse(**rows()).metrics


def test_loss_and_parts_are_differentiable_and_add_up():
    inputs = rows()
    inputs["logp"].requires_grad_()
    inputs["kl"].requires_grad_()
    out = Objective.from_preset("kl_clip", kl_lambda=3.0)(**inputs)
    assert torch.equal(out.loss, out.surrogate + out.penalty)
    (slope,) = torch.autograd.grad(out.penalty, inputs["kl"], retain_graph=True)
    torch.testing.assert_close(slope, torch.full((6,), 3.0 / 6))
    (slope,) = torch.autograd.grad(out.surrogate, inputs["logp"])
    assert (slope != 0).any()


@everything
def test_no_gradient_reaches_what_was_stored(name):
    inputs = {k: x.requires_grad_() for k, x in rows().items()}
    Objective.from_preset(name)(**inputs).loss.backward()
    assert inputs["logp"].grad is not None
    assert inputs["logp_old"].grad is None
    assert inputs["adv"].grad is None


# --- nothing is changed -----------------------------------------------------------------------------------------------


@everything
@pytest.mark.parametrize("training", [True, False])
def test_a_call_leaves_state_inputs_and_random_streams_as_they_were(name, training):
    objective = Objective.from_preset(name).train(training)
    inputs = rows()
    inputs["kl"][0], inputs["adv"][1] = INF, NAN
    state = {k: x.clone() for k, x in objective.state_dict().items()}
    copies, stream = {k: x.clone() for k, x in inputs.items()}, torch.get_rng_state()
    valid = torch.tensor([True, False, True, True, True, True])
    objective(**inputs)
    with torch.no_grad():
        objective(**inputs, valid=valid)
    assert same_bits(objective.state_dict(), state)
    assert torch.equal(torch.get_rng_state(), stream)
    for k, x in inputs.items():
        torch.testing.assert_close(x, copies[k], rtol=0, atol=0, equal_nan=True)


@everything
def test_a_call_answers_the_same_in_training_in_evaluation_and_without_gradient(name):
    objective, inputs = Objective.from_preset(name), rows()
    first = objective.train()(**inputs)
    second = objective.eval()(**inputs)
    with torch.no_grad():
        third = objective(**inputs)
    for other in (second, third):
        assert torch.equal(other.loss, first.loss)
        assert same_bits(other.metrics, first.metrics)


@everything
def test_the_metrics_are_detached_numbers_under_the_same_names_in_every_call(name):
    objective = Objective.from_preset(name)
    inputs = {k: x.requires_grad_() for k, x in rows().items()}
    plain = objective(**inputs).metrics
    masked = objective(**inputs, valid=torch.arange(6) < 4).metrics
    with torch.no_grad():
        after = objective(**rows(3, seed=1)).metrics
    assert list(plain) == list(masked) == list(after)
    for value in [*plain.values(), *masked.values(), *after.values()]:
        assert value.shape == ()
        assert not value.requires_grad


def test_lambda_in_the_metrics_is_that_of_the_call_even_after_it_moves():
    objective = Objective.from_preset("kl_adaptive")
    metrics = objective(**rows()).metrics
    objective.adapt_(torch.tensor(1.0))
    assert objective.kl_lambda.item() == 2.0
    assert metrics["penalty/lambda"].item() == 1.0


# --- rows that count --------------------------------------------------------------------------------------------------


@everything
@pytest.mark.parametrize("garbage", [NAN, INF, -INF])
@pytest.mark.parametrize("where", [*INPUTS, "everywhere"])
def test_garbage_in_an_invalid_row_changes_nothing(name, garbage, where):
    objective, valid = Objective.from_preset(name), torch.tensor([True, False, True, True, False, True])
    kept = {k: x[valid].requires_grad_() for k, x in rows().items()}
    spoilt = rows()
    for k in INPUTS if where == "everywhere" else [where]:
        spoilt[k][~valid] = garbage
    spoilt = {k: x.requires_grad_() for k, x in spoilt.items()}

    expected, out = objective(**kept), objective(**spoilt, valid=valid)

    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(out.metrics, expected.metrics)
    (expected_slope,) = torch.autograd.grad(expected.loss, kept["logp"], retain_graph=True)
    (slope,) = torch.autograd.grad(out.loss, spoilt["logp"], retain_graph=True)
    torch.testing.assert_close(slope[valid], expected_slope)
    assert (slope[~valid] == 0).all()
    (expected_slope,) = torch.autograd.grad(expected.loss, kept["kl"], allow_unused=True, materialize_grads=True)
    (slope,) = torch.autograd.grad(out.loss, spoilt["kl"], allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(slope[valid], expected_slope)
    assert (slope[~valid] == 0).all()


@everything
def test_where_no_row_counts_the_loss_is_zero(name):
    inputs = {k: torch.full_like(x, NAN).requires_grad_() for k, x in rows().items()}
    out = Objective.from_preset(name)(**inputs, valid=torch.zeros(6, dtype=torch.bool))
    out.loss.backward()
    assert out.loss.item() == 0.0
    assert (inputs["logp"].grad == 0).all()
    assert all(value.isfinite() for value in out.metrics.values())


@everything
def test_rows_that_all_count_need_no_mask(name):
    objective, inputs = Objective.from_preset(name), rows()
    expected, out = objective(**inputs), objective(**inputs, valid=torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(out.metrics, expected.metrics)


@pytest.mark.parametrize("odd", [*INPUTS, "valid"])
def test_a_column_among_rows_is_refused_with_both_shapes(odd):
    # Broadcast, [4, 1] against [4] would be a [4, 4] of every row with every other.
    inputs = {**rows(4), "valid": torch.ones(4, dtype=torch.bool)}
    inputs[odd] = inputs[odd][:, None]
    with pytest.raises(ValueError, match=odd) as error:
        Objective.from_preset("kl_adaptive")(**inputs)
    assert "(4, 1)" in str(error.value)
    assert "(4,)" in str(error.value)


@pytest.mark.parametrize("odd", [*INPUTS, "valid"])
def test_a_tensor_of_another_length_is_refused_with_both_shapes(odd):
    inputs = {**rows(4), "valid": torch.ones(4, dtype=torch.bool)}
    inputs[odd] = inputs[odd][:1]
    with pytest.raises(ValueError, match=odd) as error:
        Objective.from_preset("kl_adaptive")(**inputs)
    assert "(1,)" in str(error.value)
    assert "(4,)" in str(error.value)


@pytest.mark.parametrize("shape", [(), (4, 1), (2, 2)])
def test_samples_that_are_not_in_one_row_are_refused(shape):
    with pytest.raises(ValueError, match="one common shape"):
        Objective.from_preset("clip")(**{k: x[0].expand(shape) for k, x in rows(4).items()})


# --- the extremes -----------------------------------------------------------------------------------------------------


@everything
@pytest.mark.parametrize("log_ratio", [100.0, -100.0])
@pytest.mark.parametrize("adv", [1.0, -1.0])
def test_an_overflowing_ratio_leaves_loss_and_gradient_finite(name, log_ratio, adv):
    logp = torch.full((3,), log_ratio, requires_grad=True)
    kl = torch.full((3,), 50.0, requires_grad=True)
    out = Objective.from_preset(name)(logp=logp, logp_old=torch.zeros(3), adv=torch.full((3,), adv), kl=kl)
    out.loss.backward()
    assert out.loss.isfinite()
    assert logp.grad.isfinite().all()
    assert out.metrics["ratio/clip_fraction"].item() == 1.0
    assert all(value.isfinite() for value in out.metrics.values())


@everything
def test_the_log_ratio_counts_as_twenty_from_twenty_on(name):
    objective = Objective.from_preset(name)

    def loss(log_ratio):
        x = torch.tensor([log_ratio])
        return objective(logp=x, logp_old=torch.zeros(1), adv=-torch.ones(1), kl=torch.zeros(1)).loss.item()

    assert loss(20.0) == loss(21.0) == loss(500.0)
    if name == "none":
        assert loss(20.0) == pytest.approx(math.exp(20))
        assert loss(19.0) == pytest.approx(math.exp(19))


@pytest.mark.parametrize("name", ["kl_fixed", "none", "clip"])
def test_a_lambda_of_zero_leaves_an_infinite_kl_out(name):
    # 0 · inf would be NaN, in the loss or in the gradient.
    objective = Objective.from_preset(name, kl_lambda=0.0)
    family = GaussianFamily((-1.0,), (1.0,), (1,))
    params_old = torch.tensor([[0.0, math.log(1e-3)]])
    params = torch.tensor([[1e17, math.log(1e-3)]], requires_grad=True)
    pi_old, pi = family.build(params_old), family.build(params)
    kl = objective.divergence(pi_old, pi)
    assert kl.item() == INF  # ½ (1e17 / 1e-3)²
    logp = pi.log_prob(params.detach()[:, :1])
    out = objective(logp=logp, logp_old=logp.detach() - 0.1, adv=torch.ones(1), kl=kl)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(-math.exp(0.1))
    assert out.penalty.item() == 0.0
    assert params.grad.isfinite().all()
    assert (params.grad != 0).any()
    assert out.metrics["kl/forward"].item() == INF


@everything
def test_where_there_is_a_penalty_an_infinite_kl_is_not_hidden(name):
    objective, inputs = Objective.from_preset(name), rows()
    inputs["kl"][0] = INF
    assert objective(**inputs).loss.isfinite() == (objective.kl_lambda.item() == 0)


@everything
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    objective = Objective.from_preset(name)
    inputs = {k: x.to(dtype) for k, x in rows().items()}
    inputs["logp"][0], inputs["adv"][0] = inputs["logp_old"][0] + 15, -1.0  # e^15 overflows float16
    out, expected = objective(**inputs), objective(**{k: x.float() for k, x in inputs.items()})
    assert out.loss.dtype == torch.float32
    assert out.loss.isfinite()
    assert torch.equal(out.loss, expected.loss)
    assert same_bits(out.metrics, expected.metrics)
    assert all(value.dtype == torch.float32 for value in out.metrics.values())


@everything
def test_double_precision_stays_double(name):
    inputs = {k: x.double() for k, x in rows().items()}
    assert Objective.from_preset(name)(**inputs).loss.dtype == torch.float64


# --- construction and state -------------------------------------------------------------------------------------------


def test_from_preset_replaces_single_settings():
    objective = Objective.from_preset("kl_clip", kl_target=0.02, kl_lambda=0.5, clip_eps=0.1)
    assert objective.config == ObjectiveConfig(
        "kl_clip", Clip(0.1), ForwardKL(), Adaptive(kl_target=0.02, kl_lambda=0.5)
    )
    assert objective.kl_target == 0.02
    assert objective.kl_lambda.item() == 0.5


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("kl_adaptve", {}, "did you mean 'kl_adaptive'"),
        ("kl_adaptive", {"kl_traget": 0.1}, "did you mean 'kl_target'"),
        ("kl_adaptive", {"kl_target": 0.0}, "kl_target=0.0"),
        ("clip", {"clip_eps": 1.0}, "clip_eps=1.0"),
        ("kl_adaptive", {"clip_eps": 0.2}, "clip_eps=0.2"),
    ],
)
def test_from_preset_refuses_what_it_does_not_know(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        Objective.from_preset(name, **settings)


@pytest.mark.parametrize(
    ("name", "band"), [("kl_adaptive", (0.01, 0.04)), ("kl_fixed", None), ("clip", None), ("none", None)]
)
def test_the_band_is_where_the_controller_leaves_lambda_alone(name, band):
    settings = {"kl_target": 0.02, "band": 2.0} if band else {}
    assert Objective.from_preset(name, **settings).kl_band == pytest.approx(band)


def test_a_saved_lambda_is_restored_bit_for_bit_and_goes_on_from_there():
    first = Objective.from_preset("kl_adaptive", factor=1.7)
    for kl in (1.0, 1.0, 0.0, NAN, 1.0):
        first.adapt_(torch.tensor(kl))
    second = Objective.from_preset("kl_adaptive", factor=1.7)
    buffer = second.kl_lambda
    second.load_state_dict({k: x.clone() for k, x in first.state_dict().items()})
    assert second.kl_lambda is buffer
    assert second.kl_lambda.item() > 2
    for kl in (1.0, 0.0, INF):
        first.adapt_(torch.tensor(kl))
        second.adapt_(torch.tensor(kl))
        assert same_bits(first.state_dict(), second.state_dict())
    assert second.controller_metrics()["penalty/nonfinite"].item() == 2


def test_lambda_its_memory_counter_and_progress_are_all_the_state_there_is():
    objective = Objective.from_preset("kl_adaptive")
    assert objective.state_dict().keys() == {"kl_lambda", "memory", "nonfinite", "progress"}
    assert not list(objective.parameters())


def test_a_moved_lambda_is_what_the_next_loss_uses():
    objective, inputs = Objective.from_preset("kl_adaptive"), rows()
    before = objective(**inputs).penalty.item()
    objective.adapt_(torch.tensor(1.0))
    assert objective(**inputs).penalty.item() == pytest.approx(2 * before)


def test_divergence_is_policy_kl_per_sample():
    family = GaussianFamily((-1.0,) * 2, (1.0,) * 2, (2,))
    old, new = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    pi_old, pi = family.build(old), family.build(new)
    kl = Objective.from_preset("kl_adaptive").divergence(pi_old, pi)
    assert kl.shape == (5,)
    assert torch.equal(kl, policy_kl(pi_old, pi, "forward"))


# --- as a module ------------------------------------------------------------------------------------------------------


@everything
def test_it_can_be_copied_and_sent_to_another_process(name):
    objective = Objective.from_preset(name)
    objective.adapt_(torch.tensor(0.05), progress=0.5)
    for other in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert same_bits(dict(other.state_dict()), dict(objective.state_dict()))
        assert torch.equal(other(**rows()).loss, objective(**rows()).loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_in_a_parent_that_is_cast_lambda_stays_in_float32(dtype):
    # In bfloat16 a λ of 1 has no neighbour nearer than .4 %: fifty steps of .3 % would leave it where it is.
    objective, plain = Objective.from_preset("kl_pi"), Objective.from_preset("kl_pi")
    torch.nn.ModuleDict({"objective": objective, "layer": torch.nn.Linear(1, 1)}).to(dtype)
    for _ in range(50):
        for o in (objective, plain):
            o.adapt_(torch.tensor(0.0101))
    assert objective.kl_lambda.dtype == torch.float32
    assert torch.equal(objective.kl_lambda, plain.kl_lambda)
    assert plain.kl_lambda > 1.1
    assert objective.to("meta").kl_lambda.device.type == "meta"
