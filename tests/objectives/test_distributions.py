"""The KL of StableCategorical: torch's own where that is right, and right where torch's is not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from ppo_kl.objectives import StableCategorical, policy_kl

INF, NAN = float("inf"), float("nan")
logit = st.floats(-10, 10, allow_subnormal=False)
pair_of_logits = st.integers(2, 6).flatmap(
    lambda n: st.tuples(*(st.lists(logit, min_size=n, max_size=n) for _ in range(2)))
)


def stable(logits) -> StableCategorical:
    return StableCategorical(logits=torch.as_tensor(logits), validate_args=False)


def exact_kl(p, q) -> np.ndarray:
    """In float64 NumPy, from log-softmax; actions that p cannot take drop out."""
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    log_p, log_q = (x - x.max(-1, keepdims=True) for x in (p, q))
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (log_p, log_q))
    possible = log_p > -INF
    return np.where(possible, np.exp(log_p) * np.where(possible, log_p - log_q, 0.0), 0.0).sum(-1)


def kl_and_gradients(p, q, direction="forward"):
    """KL of one row in the given direction, its gradients in both arguments."""
    p, q = (torch.tensor([x], requires_grad=True) for x in (p, q))
    kl = policy_kl(stable(p), stable(q), direction)
    return kl.item(), *(g[0] for g in torch.autograd.grad(kl.sum(), (p, q)))


@given(pair_of_logits)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_it_equals_torch_where_torch_is_right(logits):
    p, q = (torch.tensor([x], dtype=torch.float64) for x in logits)
    ours = kl_divergence(stable(p), stable(q))
    theirs = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


@given(pair_of_logits)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_in_float32_it_is_right_and_never_negative_beyond_rounding(logits):
    p, q = (torch.tensor([x]) for x in logits)
    kl = kl_divergence(stable(p), stable(q)).item()
    assert kl == pytest.approx(exact_kl(p, q).item(), rel=1e-4, abs=2e-6)
    assert kl >= -1e-6


@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_of_a_policy_with_itself_it_is_exactly_zero(logits):
    assert kl_divergence(stable([logits]), stable([logits])).item() == 0.0


@pytest.mark.parametrize("offset", [0.0, 20.0, 1000.0])
def test_a_small_step_is_never_negative_beyond_rounding_wherever_the_logits_lie(offset):
    # A constant added to all logits changes no probability, so it may not change the KL either.
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(20_000, 6, generator=generator) + offset
    new = old + 1e-4 * torch.randn(20_000, 6, generator=generator)
    assert kl_divergence(stable(old), stable(new)).min() >= -1e-6


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("gap", [50.0, 103.0, 104.0, 200.0, 1e4])
def test_at_any_gap_value_and_gradient_are_right_and_point_back(gap, sign):
    old, new = [0.0, 0.0], [sign * gap, 0.0]
    kl, _, slope = kl_and_gradients(old, new)
    # ½ log(½ / 1) + ½ log(½ / e^-gap) = gap / 2 − log 2
    assert kl == pytest.approx(gap / 2 - np.log(2), rel=1e-5)
    # softmax(new) − softmax(old) = (1, 0) − (½, ½): descending it brings the likely action down and the other up.
    torch.testing.assert_close(slope, torch.tensor([sign * 0.5, -sign * 0.5]))


@pytest.mark.parametrize("gap", [50.0, 104.0, 200.0, 1e4])
def test_an_old_policy_that_is_certain_costs_what_it_should(gap):
    kl, *gradients = kl_and_gradients([gap, 0.0], [0.0, 0.0])
    # all of the old mass on the first action: log(1 / ½)
    assert kl == pytest.approx(np.log(2), rel=1e-6)
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_under_a_shared_mask_it_is_that_of_the_allowed_actions(direction):
    old, new = [0.3, -INF, -1.0, 0.5], [1.0, -INF, 0.2, -0.7]
    kl, *gradients = kl_and_gradients(old, new, direction)
    allowed_kl, *allowed_gradients = kl_and_gradients([0.3, -1.0, 0.5], [1.0, 0.2, -0.7], direction)
    assert kl == pytest.approx(allowed_kl, rel=1e-6)
    assert kl > 0.1
    for gradient, expected in zip(gradients, allowed_gradients, strict=True):
        assert gradient[1] == 0
        torch.testing.assert_close(gradient[[0, 2, 3]], expected)


def test_under_a_mask_that_leaves_one_action_it_is_zero():
    kl, *gradients = kl_and_gradients([-INF, 2.0, -INF], [-INF, -5.0, -INF])
    assert kl == 0.0
    assert all((g == 0).all() for g in gradients)


def test_an_action_that_only_the_new_policy_can_take_costs_nothing():
    # p = (½, ½, 0), q = (⅓, ⅓, ⅓): log(½ / ⅓)
    assert kl_divergence(stable([[0.0, 0.0, -INF]]), stable([[0.0, 0.0, 0.0]])).item() == pytest.approx(np.log(1.5))


@pytest.mark.parametrize("mass", [0.0, -2.0, -50.0, -104.0, -200.0])
def test_an_action_that_only_the_old_policy_can_take_costs_infinitely_much(mass):
    # However rare: e^-200 underflows in float32, but it is no zero.
    assert kl_divergence(stable([[0.0, mass]]), stable([[0.0, -INF]])).item() == INF


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("broken", ["old", "new"])
def test_a_policy_that_is_nan_has_a_kl_that_is_nan(direction, broken):
    # 0 would tell the controller that all is well.
    sound, nan = stable([[0.0, 1.0]]), stable([[NAN, 1.0]])
    pair = (nan, sound) if broken == "old" else (sound, nan)
    assert policy_kl(*pair, direction).isnan().all()


@pytest.mark.parametrize("mask", [[0.0, 0.0, 0.0], [0.0, -INF, 0.0]])
def test_its_gradients_pass_gradcheck(mask):
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    hide = torch.tensor(mask)
    assert torch.autograd.gradcheck(lambda p, q: policy_kl(stable(p + hide), stable(q + hide)), (p, q))


def test_it_keeps_the_batch_shape():
    assert kl_divergence(stable(torch.zeros(2, 5, 3)), stable(torch.zeros(2, 5, 3))).shape == (2, 5)


def test_it_can_be_expanded_as_any_distribution():
    # torch refuses this to a subclass that has a constructor, but no `expand`, of its own.
    p, q = stable([[0.0, 1.0, -INF]]), stable([[2.0, 0.5, -INF]])
    wide_p, wide_q = p.expand((4, 1)), q.expand((4, 1))
    assert isinstance(wide_p, StableCategorical)
    assert wide_p.batch_shape == (4, 1)
    assert torch.equal(kl_divergence(wide_p, wide_q), kl_divergence(p, q).expand(4, 1))


@pytest.mark.parametrize("logits", [[0.5, -1.0, 2.0], [0.5, -INF, 2.0]])
def test_apart_from_its_kl_it_is_torchs_categorical(logits):
    ours, theirs = stable([logits]), Categorical(logits=torch.tensor([logits]))
    torch.testing.assert_close(ours.probs, theirs.probs)
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.log_prob(torch.tensor([2])), theirs.log_prob(torch.tensor([2])))
