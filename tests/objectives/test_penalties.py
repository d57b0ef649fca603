"""What λ multiplies, by hand; and the hinge behind it."""

import math

import pytest
import torch

from ppo_kl.config.objective import (
    K2,
    K3,
    Adaptive,
    Fixed,
    ForwardKL,
    ObjectiveConfig,
    Ratio,
    ReverseKL,
    Truly,
    TrustGate,
    TrustRollback,
)
from ppo_kl.errors import ConfigError
from ppo_kl.objectives import Objective
from ppo_kl.objectives.penalties import exact, hinge, sampled_k2, sampled_k3
from ppo_kl.policies.families import CategoricalFamily

LOG2 = math.log(2)


@pytest.mark.parametrize(
    ("penalty", "log_ratio", "expected", "slope"),
    [
        (sampled_k2, LOG2, 0.5 * LOG2**2, LOG2),  # ½ (log 2)², slope log r
        (sampled_k2, -LOG2, 0.5 * LOG2**2, -LOG2),
        (sampled_k3, LOG2, 1 - LOG2, 1.0),  # (2 − 1) − log 2, slope r − 1
        (sampled_k3, -LOG2, LOG2 - 0.5, -0.5),
        (exact, LOG2, 0.3, 0.0),
    ],
)
def test_a_penalty_is_its_formula(penalty, log_ratio, expected, slope):
    x = torch.tensor([log_ratio], requires_grad=True)
    found = penalty(torch.tensor([0.3]), x)
    assert found.item() == pytest.approx(expected)
    grad = torch.autograd.grad(found.sum() + 0 * x.sum(), x)[0]
    assert grad.item() == pytest.approx(slope)


@pytest.mark.parametrize(
    ("mean_kl", "expected", "slope"),
    [(0.05, 50 * 0.03**2, 100 * 0.03), (0.02, 0.0, 0.0), (0.0, 0.0, 0.0), (1.02, 50.0, 100.0)],
)
def test_the_hinge_rises_from_twice_the_target(mean_kl, expected, slope):
    # 50 (K − 2 · .01)², slope 100 (K − .02)
    x = torch.tensor(mean_kl, requires_grad=True)
    found = hinge(x, 0.01, 50.0)
    found.backward()
    assert (found.item(), x.grad.item()) == pytest.approx((expected, slope), abs=1e-7)


def with_penalty(penalty, controller=None) -> Objective:
    return Objective(ObjectiveConfig("mine", Ratio(), penalty, controller or Fixed(2.0)))


@pytest.mark.parametrize(("penalty", "value"), [(K2(), 0.5 * LOG2**2), (K3(), 1 - LOG2)])
def test_an_estimate_is_penalised_while_the_exact_kl_is_measured(penalty, value):
    # Two samples with r = 2: the loss has λ = 2 times the estimate, the log the exact forward KL it was given.
    logp_old = torch.tensor([-1.0, -1.0])
    out = with_penalty(penalty)(logp=logp_old + LOG2, logp_old=logp_old, adv=torch.zeros(2), kl=torch.full((2,), 0.3))
    assert out.penalty.item() == pytest.approx(2 * value)
    assert out.metrics["kl/forward"].item() == pytest.approx(0.3)


@pytest.mark.parametrize("penalty", [K2(), K3(), ForwardKL(), ReverseKL()], ids=lambda p: p.kind)
def test_the_controller_sees_the_exact_kl_in_the_penaltys_direction(penalty):
    family = CategoricalFamily(2)
    pi_old, pi = (family.build(torch.tensor([[x, 0.0]])) for x in (0.0, 1.0))
    # KL(½, ½ ‖ σ(1), σ(−1)) = −log 2 − ½ log σ(1) σ(−1); and the other way round.
    p = 1 / (1 + math.exp(-1))
    forward = -LOG2 - 0.5 * (math.log(p) + math.log(1 - p))
    reverse = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    expected = reverse if penalty.kind == "reverse_kl" else forward
    assert abs(forward - reverse) > 0.005
    assert with_penalty(penalty).divergence(pi_old, pi).item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_k3_is_unbiased_for_the_forward_kl_and_that_of_k2_is_not():
    # All actions of π_old at once, weighted by their probability, is the expectation.
    family = CategoricalFamily(3)
    old = torch.tensor([[0.2, -0.5, 0.4]], dtype=torch.float64)
    new = torch.tensor([[1.0, 0.3, -0.6]], dtype=torch.float64, requires_grad=True)
    pi_old, pi = family.build(old), family.build(new)
    log_ratio = torch.log_softmax(new, -1)[0] - pi_old.logits[0]
    exact_slope = torch.autograd.grad(with_penalty(ForwardKL()).divergence(pi_old, pi).sum(), new, retain_graph=True)[0]
    k3_slope, k2_slope = (
        torch.autograd.grad((pi_old.probs[0] * f(log_ratio, log_ratio)).sum(), new, retain_graph=True)[0]
        for f in (sampled_k3, sampled_k2)
    )
    torch.testing.assert_close(k3_slope, exact_slope)
    assert not torch.allclose(k2_slope, exact_slope, rtol=0.05)


def test_the_hinge_acts_on_the_mean_of_the_minibatch_and_adds_to_the_penalty():
    objective = with_penalty(ForwardKL(hinge=50.0), Adaptive(kl_target=0.01))
    kl = torch.tensor([0.0, 0.1, 7.0], requires_grad=True)
    valid = torch.tensor([True, True, False])
    x = torch.zeros(3)
    out = objective(logp=x, logp_old=x, adv=x, kl=kl, valid=valid)
    # λ K + 50 (K − .02)² with λ = 1 and K = .05, though one sample lies far above and one does not count
    assert out.penalty.item() == pytest.approx(0.05 + 50 * 0.03**2)
    (slope,) = torch.autograd.grad(out.loss, kl)
    # (λ + 100 · .03) / 2 each
    assert slope.tolist() == pytest.approx([2.0, 2.0, 0.0])


def test_over_processes_the_hinge_takes_their_common_mean():
    # Two ranks with K = .01 and .05; together .03 lies .01 above 2 d. Averaged over ranks, as a trainer does with
    # gradients, they give the slope of the common loss.
    means = {0: 0.01, 1: 0.05}
    slopes = []
    for own in means.values():
        config = ObjectiveConfig("mine", Ratio(), ForwardKL(hinge=50.0), Adaptive(kl_target=0.01))
        objective = Objective(config, all_mean=lambda x: torch.full_like(x, sum(means.values()) / 2))
        kl, x = torch.full((4,), own, requires_grad=True), torch.zeros(4)
        out = objective(logp=x, logp_old=x, adv=x, kl=kl)
        assert out.penalty.item() == pytest.approx(own + 50 * 0.01**2)
        slopes.append(torch.autograd.grad(out.loss, kl)[0].sum().item())
    assert slopes == pytest.approx([1 + 100 * 0.01] * 2)


def test_a_hinge_without_a_target_is_refused():
    with pytest.raises(ConfigError, match=r"penalty\.hinge=50\.0.*'fixed' has none"):
        ObjectiveConfig("mine", Ratio(), ForwardKL(hinge=50.0), Fixed())


@pytest.mark.parametrize("surrogate", [TrustGate(), TrustRollback(), Truly()], ids=lambda s: s.kind)
def test_a_trust_region_beside_a_penalty_of_the_other_direction_is_refused(surrogate):
    with pytest.raises(ConfigError, match="reads the forward KL") as error:
        ObjectiveConfig("mine", surrogate, ReverseKL(), Adaptive())
    assert error.value.key == "penalty"
    for penalty in (ForwardKL(), K2(), K3()):
        assert ObjectiveConfig("mine", surrogate, penalty, Adaptive()).surrogate == surrogate
