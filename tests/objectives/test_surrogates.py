"""The per-sample formulas, by hand; and each against a re-derivation in NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_kl.objectives.surrogates import (
    SURROGATES,
    clip,
    drift,
    dual_clip,
    klip,
    ratio,
    rollback,
    soft_clip,
    spo,
    truly,
    trust_gate,
    trust_rollback,
)

KL = torch.zeros(1)
numbers = st.lists(
    st.tuples(st.floats(1e-3, 1e3, allow_subnormal=False), st.floats(-1e3, 1e3, allow_subnormal=False)),
    min_size=1,
    max_size=20,
)


def value_and_slope(surrogate, r, adv, kl=0.0, **kwargs):
    """The loss of one sample, and its derivative in the ratio."""
    r = torch.tensor([r], dtype=torch.float64, requires_grad=True)
    adv, kl = torch.tensor([adv], dtype=torch.float64), torch.tensor([kl], dtype=torch.float64)
    loss = surrogate(r, adv, kl, **kwargs)
    (slope,) = torch.autograd.grad(loss.sum(), r)
    return loss.item(), slope.item()


@pytest.mark.parametrize(("r", "adv", "loss"), [(1.5, 2.0, -3.0), (0.5, 2.0, -1.0), (1.5, -2.0, 3.0), (0.5, -2.0, 1.0)])
def test_ratio_is_minus_ratio_times_advantage(r, adv, loss):
    assert value_and_slope(ratio, r, adv) == pytest.approx((loss, -adv))


@pytest.mark.parametrize(
    ("r", "adv", "loss", "slope"),
    [
        (1.5, 2.0, -2.4, 0.0),  # better action, already likelier: −min(3, 1.2 · 2), no more to gain
        (0.5, 2.0, -1.0, -2.0),  # better action made rarer: −min(1, 0.8 · 2), pulled back
        (1.5, -2.0, 3.0, 2.0),  # worse action made likelier: −min(−3, 1.2 · −2), pulled back
        (0.5, -2.0, 1.6, 0.0),  # worse action, already rarer: −min(−1, 0.8 · −2), no more to gain
        (1.1, 2.0, -2.2, -2.0),  # inside the band
        (0.9, -2.0, 1.8, 2.0),  # inside the band
    ],
)
def test_clip_stops_only_where_leaving_the_band_would_pay(r, adv, loss, slope):
    assert value_and_slope(clip, r, adv, clip_eps=0.2) == pytest.approx((loss, slope))


@pytest.mark.parametrize(
    ("r", "adv", "loss", "slope"),
    [
        (1.25, 2.0, -2.5, -2.0),  # 1.25 < 1 + 0.3
        (1.5, 2.0, -2.6, 0.0),  # 1.3 · 2
        (0.5, -2.0, 1.6, 0.0),  # 0.8 · 2: the lower edge is not the upper one's
        (0.75, -2.0, 1.6, 0.0),
    ],
)
def test_clip_takes_an_upper_edge_of_its_own(r, adv, loss, slope):
    assert value_and_slope(clip, r, adv, clip_eps=0.2, clip_eps_high=0.3) == pytest.approx((loss, slope))


@given(numbers, st.floats(0.01, 0.99), st.none() | st.floats(0.01, 5.0))
@settings(max_examples=50, derandomize=True)
def test_clip_equals_the_published_minimum(samples, low, high):
    r, adv = np.array(samples).T
    expected = -np.minimum(r * adv, np.clip(r, 1 - low, 1 + (low if high is None else high)) * adv)
    loss = clip(torch.tensor(r), torch.tensor(adv), KL, clip_eps=low, clip_eps_high=high)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-12)


@given(numbers, st.floats(0.01, 0.99))
@settings(max_examples=50, derandomize=True)
def test_clip_is_a_pessimistic_bound_on_ratio(samples, eps):
    r, adv = torch.tensor(samples, dtype=torch.float64).T
    assert (clip(r, adv, KL, clip_eps=eps) >= ratio(r, adv, KL)).all()


# --- the bounded and the turning ones ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("r", "adv", "loss", "slope"),
    [
        (5.0, -2.0, 6.0, 0.0),  # −max(min(−10, −2.4), 3 · −2)
        (2.5, -2.0, 5.0, 2.0),  # −max(min(−5, −2.4), −6): not yet at the bound
        (0.5, -2.0, 1.6, 0.0),  # as clip
        (5.0, 2.0, -2.4, 0.0),  # as clip: without the test A < 0 this would be −6
        (0.5, 2.0, -1.0, -2.0),  # as clip
    ],
)
def test_dual_clip_bounds_the_loss_of_a_worse_action_alone(r, adv, loss, slope):
    assert value_and_slope(dual_clip, r, adv, clip_eps=0.2, dual_clip=3.0) == pytest.approx((loss, slope))


@pytest.mark.parametrize(
    ("r", "adv", "loss", "slope"),
    [
        (1.5, 2.0, -2.22, 0.6),  # F = −.3 · 1.5 + 1.3 · 1.2 = 1.11; slope α A
        (0.5, -2.0, 1.78, -0.6),  # F = −.3 · .5 + 1.3 · .8 = .89
        (0.5, 2.0, -1.0, -2.0),  # outside, but not on the improving side
        (1.5, -2.0, 3.0, 2.0),
        (1.1, 2.0, -2.2, -2.0),
    ],
)
def test_rollback_turns_the_slope_round_beyond_the_band(r, adv, loss, slope):
    assert value_and_slope(rollback, r, adv, clip_eps=0.2, rollback=0.3) == pytest.approx((loss, slope))


@pytest.mark.parametrize("surrogate", [clip, rollback, klip, soft_clip, dual_clip])
def test_each_edge_of_the_band_is_its_own(surrogate):
    more = {"dual_clip": {"dual_clip": 3.0}, "rollback": {"rollback": 0.3}, "soft_clip": {"ramp": 1e-6}}
    kwargs = {"clip_eps": 0.2, "clip_eps_high": 0.4, **more.get(surrogate.__name__, {})}
    assert value_and_slope(surrogate, 1.39, 2.0, **kwargs) == pytest.approx((-2.78, -2.0))
    assert value_and_slope(surrogate, 1.41, 2.0, **kwargs)[1] > -1.0
    assert value_and_slope(surrogate, 0.81, -2.0, **kwargs) == pytest.approx((1.62, 2.0))
    assert value_and_slope(surrogate, 0.79, -2.0, **kwargs)[1] < 1.0


# --- the trust region -------------------------------------------------------------------------------------------------

FAR, NEAR = 0.05, 0.02
MOVES_ON = [(1.5, 2.0), (0.5, -2.0)]  # r A > A: 3 > 2, and −1 > −2
COMES_BACK = [(0.5, 2.0), (1.5, -2.0)]


@pytest.mark.parametrize(("r", "adv"), MOVES_ON)
def test_beyond_its_radius_a_sample_that_moves_on_pushes_no_further(r, adv):
    assert value_and_slope(trust_gate, r, adv, FAR, trust_kl=0.035) == pytest.approx((-r * adv, 0.0))


@pytest.mark.parametrize(("r", "adv"), MOVES_ON)
def test_with_rollback_it_is_pulled_back(r, adv):
    # α r A − (1 + α) sg(r A): the value is −r A, the slope α A.
    found = value_and_slope(trust_rollback, r, adv, FAR, trust_kl=0.03, rollback=0.05)
    assert found == pytest.approx((-r * adv, 0.05 * adv))


@pytest.mark.parametrize(("r", "adv", "loss"), [(1.5, 2.0, -2.75), (0.5, -2.0, 1.25)])
def test_truly_makes_it_pay_for_its_kl(r, adv, loss):
    # −(3 − 5 · .05), and −(−1 − 5 · .05)
    kl = torch.tensor([FAR], dtype=torch.float64, requires_grad=True)
    r = torch.tensor([r], dtype=torch.float64, requires_grad=True)
    found = truly(r, torch.tensor([adv], dtype=torch.float64), kl, trust_kl=0.03, trust_penalty=5.0)
    slopes = torch.autograd.grad(found.sum(), [r, kl])
    assert (found.item(), *(x.item() for x in slopes)) == pytest.approx((loss, -adv, 5.0))


TRUST = [
    (trust_gate, {"trust_kl": 0.035}),
    (trust_rollback, {"trust_kl": 0.03, "rollback": 0.05}),
    (truly, {"trust_kl": 0.03, "trust_penalty": 5.0}),
]


@pytest.mark.parametrize(("surrogate", "kwargs"), TRUST, ids=["trust_gate", "trust_rollback", "truly"])
@pytest.mark.parametrize(
    ("r", "adv", "kl"), [*((r, adv, NEAR) for r, adv in MOVES_ON), *((r, adv, FAR) for r, adv in COMES_BACK)]
)
def test_within_the_radius_or_on_the_way_back_it_is_the_plain_ratio(surrogate, kwargs, r, adv, kl):
    assert value_and_slope(surrogate, r, adv, kl, **kwargs) == pytest.approx((-r * adv, -adv))


@pytest.mark.parametrize(("surrogate", "kwargs"), TRUST, ids=["trust_gate", "trust_rollback", "truly"])
def test_the_radius_itself_is_beyond_and_no_advantage_never_is(surrogate, kwargs):
    radius = kwargs["trust_kl"]
    assert value_and_slope(surrogate, 1.5, 2.0, radius, **kwargs) != pytest.approx((-3.0, -2.0))
    assert value_and_slope(surrogate, 1.5, 0.0, FAR, **kwargs) == (0.0, 0.0)


@pytest.mark.parametrize("surrogate", [trust_gate, trust_rollback])
def test_the_gate_gives_no_gradient_to_the_kl(surrogate):
    kl = torch.tensor([FAR, NEAR], requires_grad=True)
    r = torch.tensor([1.5, 1.5], requires_grad=True)
    kwargs = {"rollback": 0.05} if surrogate is trust_rollback else {}
    loss = surrogate(r, torch.ones(2), kl, trust_kl=0.03, **kwargs)
    assert torch.autograd.grad(loss.sum(), kl, allow_unused=True) == (None,)


# --- the smooth ones --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("r", "adv", "loss", "slope"),
    [
        (1.5, 2.0, -1.75, 3.0),  # −(3 − 2 · .25 / .4); slope −2 + 2 · .5 / .2
        (1.2, 2.0, -2.2, 0.0),  # the optimum: −(2.4 − 2 · .04 / .4)
        (0.8, -2.0, 1.8, 0.0),  # −(−1.6 − .2)
        (0.5, -2.0, 2.25, -3.0),  # −(−1 − 1.25); slope 2 − 2 · .5 / .2
        (1.0, 2.0, -2.0, -2.0),
    ],
)
def test_spo_is_a_parabola_around_the_edge_of_the_band(r, adv, loss, slope):
    assert value_and_slope(spo, r, adv, clip_eps=0.2) == pytest.approx((loss, slope), abs=1e-12)


@pytest.mark.parametrize(
    ("r", "adv", "loss", "slope"),
    [
        (1.5, 2.0, -3 + 3 * math.log(1.5), 0.0),  # killed: slope −2 + 3 / 1.5
        (0.5, -2.0, 1 - math.log(0.5), 0.0),  # killed: slope 2 − 1 / .5
        (0.5, 2.0, -1.0, -2.0),  # outside the band, but not killed
        (1.5, -2.0, 3.0, 2.0),
        (1.1, 2.0, -2.2, -2.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_klip_takes_the_gradient_of_the_samples_that_clip_kills(r, adv, loss, slope):
    assert value_and_slope(klip, r, adv, clip_eps=0.2) == pytest.approx((loss, slope), abs=1e-12)


@pytest.mark.parametrize(
    ("r", "adv", "loss", "slope"),
    [
        (1.225, 2.0, -2.45 + 0.5 * 2.45 * math.log(1.225), -1.0),  # h = .025, half of the ramp: half of the slope
        (0.775, -2.0, 1.55 - 0.5 * 1.55 * math.log(0.775), 1.0),
        (1.3, 2.0, -2.6 + 2.6 * math.log(1.3), 0.0),  # beyond the ramp: as klip
        (1.19, 2.0, -2.38, -2.0),
        (0.5, 2.0, -1.0, -2.0),
        (1.5, -2.0, 3.0, 2.0),
        (0.5, 0.0, 0.0, 0.0),
    ],
)
def test_soft_clip_fades_the_gradient_out_over_its_ramp(r, adv, loss, slope):
    assert value_and_slope(soft_clip, r, adv, clip_eps=0.2, ramp=0.05) == pytest.approx((loss, slope), abs=1e-9)


@pytest.mark.parametrize(
    ("r", "adv", "loss", "slope"),
    [
        # x = .5 · 2 = 1; 1 − 2 tanh(.5) = .0757657; slope −2 + 2 tanh²(.5)
        (1.5, 2.0, -2.9242343, -1.5728955),
        # x = −2 log .5 = 1.3862944; x − .6 tanh(x / .6) = .7979910; slope 2 − 2 tanh²(x / .6) / .5
        (0.5, -2.0, 1.7979910, -1.8455649),
        (0.5, 2.0, -1.0, -2.0),  # x < 0: nothing drifts
        (1.5, -2.0, 3.0, 2.0),
        (1.0, 2.0, -2.0, -2.0),
    ],
)
def test_drift_flattens_what_moves_on(r, adv, loss, slope):
    assert value_and_slope(drift, r, adv, drift_up=2.0, drift_down=0.6) == pytest.approx((loss, slope), rel=1e-6)


# --- against other derivations ----------------------------------------------------------------------------------------


def both_sides():
    """Ratios and advantages with samples that clip kills on either side, others outside the band, and some inside."""
    r = torch.tensor([1.5, 1.21, 0.5, 0.79, 1.5, 0.5, 1.1, 0.9, 1.0, 3.0], dtype=torch.float64)
    adv = torch.tensor([2.0, 0.3, -2.0, -0.3, -1.0, 1.0, 1.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    return r.requires_grad_(), adv


def test_the_gradient_of_klip_is_that_of_clip():
    r, adv = both_sides()
    killed_above, killed_below = (adv > 0) & (r > 1.2), (adv < 0) & (r < 0.8)
    alive_outside = ((adv < 0) & (r > 1.2)) | ((adv > 0) & (r < 0.8))
    # A fixture without each of these would prove nothing.
    assert min(killed_above.sum(), killed_below.sum()) >= 2
    assert alive_outside.sum() >= 2
    losses = [f(r, adv, KL, clip_eps=0.2).mean() for f in (klip, clip)]
    ours, theirs = (torch.autograd.grad(loss, r, retain_graph=True)[0] for loss in losses)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    assert losses[0] != losses[1]


@given(numbers, st.floats(0.01, 0.99), st.none() | st.floats(0.01, 5.0))
@settings(max_examples=50, derandomize=True)
def test_the_gradient_of_klip_is_that_of_clip_anywhere(samples, low, high):
    r, adv = torch.tensor(samples, dtype=torch.float64).T
    r = r.contiguous().requires_grad_()
    ours, theirs = (
        torch.autograd.grad(f(r, adv, KL, clip_eps=low, clip_eps_high=high).sum(), r)[0] for f in (klip, clip)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_soft_clip_with_a_ramp_of_nothing_is_klip_and_with_an_endless_one_ratio():
    r, adv = both_sides()

    def slopes(f, **kwargs):
        return torch.autograd.grad(f(r, adv, KL, **kwargs).sum(), r)[0]

    torch.testing.assert_close(slopes(soft_clip, clip_eps=0.2, ramp=1e-9), slopes(klip, clip_eps=0.2))
    torch.testing.assert_close(slopes(soft_clip, clip_eps=0.2, ramp=1e9), slopes(ratio))


def published(kind, r, adv, kl):
    """The loss as its paper or its authors' code writes it, in NumPy; stop-gradients are values here."""
    clipped = np.clip(r, 0.8, 1.2)
    # F^RB of Truly PPO's section 3.1, a function of the ratio alone; the objective takes the minimum of both.
    rolled = np.where(r <= 0.8, -0.3 * r + 1.3 * 0.8, np.where(r >= 1.2, -0.3 * r + 1.3 * 1.2, r))
    beyond = (kl >= 0.03) & (r * adv >= adv) & (adv != 0) & (r != 1)
    up = np.maximum((r - 1) * adv - 2 * np.tanh((r - 1) * adv / 2), 0)
    down = np.maximum(np.log(r) * adv - 0.6 * np.tanh(np.log(r) * adv / 0.6), 0)
    return {
        "dual_clip": -np.where(
            adv < 0, np.maximum(np.minimum(r * adv, clipped * adv), 3 * adv), np.minimum(r * adv, clipped * adv)
        ),
        "rollback": -np.minimum(r * adv, rolled * adv),
        "trust_gate": -r * adv,
        "trust_rollback": -r * adv,
        "truly": -(r * adv - 5 * np.where(beyond, kl, 0)),
        "spo": -(r * adv - np.abs(adv) / (2 * 0.2) * (r - 1) ** 2),
        "drift": -(r * adv - np.where(adv > 0, up, down)),
    }[kind]


SETTINGS = {
    "dual_clip": {"clip_eps": 0.2, "dual_clip": 3.0},
    "rollback": {"clip_eps": 0.2, "rollback": 0.3},
    "trust_gate": {"trust_kl": 0.03},
    "trust_rollback": {"trust_kl": 0.03, "rollback": 0.05},
    "truly": {"trust_kl": 0.03, "trust_penalty": 5.0},
    "spo": {"clip_eps": 0.2},
    "drift": {"drift_up": 2.0, "drift_down": 0.6},
}


@pytest.mark.parametrize("kind", SETTINGS)
@given(numbers, st.floats(0, 0.1))
@settings(max_examples=50, derandomize=True)
def test_the_value_is_that_of_the_published_formula(kind, samples, kl):
    r, adv = np.array(samples).T
    kls = np.full_like(r, kl)
    loss = SURROGATES[kind](*(torch.tensor(x) for x in (r, adv, kls)), **SETTINGS[kind])
    np.testing.assert_allclose(loss.numpy(), published(kind, r, adv, kls), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["dual_clip", "rollback", "truly", "spo", "drift"])
def test_the_slope_is_that_of_the_published_formula(kind):
    # Those without a stop-gradient, against central differences of the NumPy formula.
    generator = np.random.default_rng(0)
    r, adv = generator.lognormal(0, 0.5, 200), generator.normal(0, 2, 200)
    kl, step = np.full(200, 0.05), 1e-6
    x = torch.tensor(r, requires_grad=True)
    loss = SURROGATES[kind](x, torch.tensor(adv), torch.tensor(kl), **SETTINGS[kind])
    (slope,) = torch.autograd.grad(loss.sum(), x)
    expected = (published(kind, r + step, adv, kl) - published(kind, r - step, adv, kl)) / (2 * step)
    smooth = np.abs(np.abs(r - 1) - 0.2) > 1e-5
    np.testing.assert_allclose(slope.numpy()[smooth], expected[smooth], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", SURROGATES)
def test_at_ratio_one_every_surrogate_has_the_slope_of_the_policy_gradient(kind):
    more = {"klip": {"clip_eps": 0.2}, "soft_clip": {"clip_eps": 0.2, "ramp": 0.05}, "clip": {"clip_eps": 0.2}}
    kwargs = {**SETTINGS, **more}.get(kind, {})
    for adv in (2.0, -2.0):
        assert value_and_slope(SURROGATES[kind], 1.0, adv, **kwargs) == pytest.approx((-adv, -adv))
