"""Every measured number is what a recomputation in NumPy over the rows that count gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from every_family import vector
from toy_envs import small_agent

from ppo_kl.batch import Batch
from ppo_kl.config import PolicyConfig
from ppo_kl.config.objective import Clip, Fixed, ForwardKL, ObjectiveConfig, Ratio, ReverseKL
from ppo_kl.config.presets import PRESETS, preset
from ppo_kl.diagnostics.glossary import GLOSSARY, HISTOGRAMS, as_markdown, metric_of
from ppo_kl.diagnostics.measure import explained_variance, kl_before, measure
from ppo_kl.objectives.objective import Objective
from ppo_kl.policies.actor_critic import ActorCritic
from ppo_kl.policies.box_families import GaussianFamily
from ppo_kl.policies.families import CategoricalFamily

CATEGORICAL = CategoricalFamily(4)
GAUSSIAN = GaussianFamily((-1.0,) * 3, (1.0,) * 3, (3,))
FAMILIES = pytest.mark.parametrize("family", [CATEGORICAL, GAUSSIAN], ids=["categorical", "gaussian"])
OBJECTIVES = {
    "kl_adaptive": preset("kl_adaptive", kl_lambda=3.0, kl_target=0.02, band=2.0),
    "clip": preset("clip", clip_eps=0.1, clip_eps_high=0.3),
    "reverse": ObjectiveConfig("reverse", Ratio(), ReverseKL(), Fixed(0.7)),
    "kl_clip": ObjectiveConfig("kl_clip", Clip(0.05), ForwardKL(), Fixed(2.0)),
}
B, OBS = 60, 5


def setting(family: Any, seed: int = 0) -> tuple[ActorCritic, Batch]:
    """A policy, and a batch of an older one not far from it; about a third of the rows do not count."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    policy = ActorCritic((vector(OBS),), family, PolicyConfig((8,)), generator)
    obs = normal(B, OBS)
    with torch.no_grad():
        params_old = policy(obs).params + 0.3 * normal(B, family.num_params)
    action = family.sample(params_old, generator)
    logp_old = family.build(params_old).log_prob(action)
    valid = torch.rand(B, generator=generator) < 0.7
    return policy, Batch(obs, action, logp_old, params_old, normal(B), 3 + normal(B), 3 + normal(B), valid)


def by_hand(policy: ActorCritic, family: Any, config: ObjectiveConfig, batch: Batch) -> dict[str, float]:
    """The metrics from their formulas, in float64, on the rows that count."""
    with torch.no_grad():
        new = policy(batch.obs).params.double().numpy()
    rows = batch.valid.numpy()
    old, action = batch.params_old.double().numpy(), batch.action.numpy()
    new, old, action = new[rows], old[rows], action[rows]
    adv, ret, value, logp_old = (
        x.double().numpy()[rows] for x in (batch.adv, batch.ret, batch.value_old, batch.logp_old)
    )
    expected: dict[str, float] = {}
    if family is CATEGORICAL:
        log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (old, new))
        forward = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        reverse = (np.exp(log_q) * (log_q - log_p)).sum(-1)
        entropy = -(np.exp(log_q) * log_q).sum(-1)
        logp = log_q[range(len(action)), action]
    else:
        (mean_p, log_p), (mean_q, log_q) = np.split(old, 2, -1), np.split(new, 2, -1)
        std_p, std_q = np.exp(log_p), np.exp(log_q)
        gap = (mean_p - mean_q) ** 2
        forward = (np.log(std_q / std_p) + (std_p**2 + gap) / (2 * std_q**2) - 0.5).sum(-1)
        reverse = (np.log(std_p / std_q) + (std_q**2 + gap) / (2 * std_p**2) - 0.5).sum(-1)
        entropy = (0.5 * np.log(2 * np.pi * np.e) + log_q).sum(-1)
        logp = (-0.5 * ((action - mean_q) / std_q) ** 2 - log_q - 0.5 * np.log(2 * np.pi)).sum(-1)
        mean_part = (gap / (2 * std_q**2)).sum(-1).mean()
        expected |= {
            "kl/mean_part": mean_part,
            "kl/scale_part": forward.mean() - mean_part,
            "policy/scale_mean": std_q.mean(),
            "policy/std_at_bound": 0.0,
        }
    r = np.exp(logp - logp_old)
    low, high = 0.8, 1.2
    surrogate = -r * adv
    if isinstance(config.surrogate, Clip):
        up = config.surrogate.clip_eps_high
        low, high = 1 - config.surrogate.clip_eps, 1 + (config.surrogate.clip_eps if up is None else up)
        surrogate = -np.minimum(r * adv, r.clip(low, high) * adv)
    controlled = reverse if isinstance(config.penalty, ReverseKL) else forward
    penalty = config.controller.kl_lambda * controlled.mean()
    expected |= {
        "kl/forward": forward.mean(),
        "kl/forward_max": forward.max(),
        "kl/forward_p95": np.quantile(forward, 0.95),
        "kl/reverse": reverse.mean(),
        "kl/k1": -np.log(r).mean(),
        "kl/k2": (np.log(r) ** 2 / 2).mean(),
        "kl/k3": (r - 1 - np.log(r)).mean(),
        "kl/controlled": controlled.mean(),
        "ratio/mean": r.mean(),
        "ratio/min": r.min(),
        "ratio/max": r.max(),
        "ratio/ess": r.mean() ** 2 / (r**2).mean(),
        "ratio/clip_fraction": ((r < low) | (r > high)).mean(),
        "penalty/lambda": config.controller.kl_lambda,
        "penalty/loss": penalty,
        "penalty/share": abs(penalty) / abs(surrogate.mean()),
        "policy/entropy": entropy.mean(),
        "value/explained_variance": 1 - (ret - value).var() / ret.var(),
    }
    if config.name == "kl_adaptive":
        expected |= {"kl/target_ratio": forward.mean() / 0.02, "kl/target_low": 0.01, "kl/target_high": 0.04}
    return {tag: float(x) for tag, x in expected.items()}


@FAMILIES
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_metric_is_its_formula_over_the_rows_that_count(family, name):
    config = OBJECTIVES[name]
    policy, batch = setting(family)
    measured = measure(policy, family, Objective(config), batch)
    expected = by_hand(policy, family, config, batch)
    assert 5 < (~batch.valid).sum() < 30
    assert expected["ratio/clip_fraction"] not in (0, 1)
    assert {tag: x.item() for tag, x in measured.items()} == pytest.approx(expected, rel=2e-4, abs=1e-6)


@FAMILIES
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_what_stands_in_rows_that_do_not_count_changes_nothing(family, poison):
    objective = Objective(OBJECTIVES["kl_adaptive"])
    policy, batch = setting(family)

    def poisoned(x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            return torch.where(batch.valid, x, (x + 1) % 4)
        return torch.where(batch.valid.view(-1, *[1] * (x.dim() - 1)), x, poison)

    bad = Batch(*map(poisoned, batch[:7]), batch.valid)
    clean, dirty = (measure(policy, family, objective, x) for x in (batch, bad))
    for tag, x in clean.items():
        assert torch.equal(x, dirty[tag]), tag
    assert torch.equal(kl_before(policy, family, batch), kl_before(policy, family, bad))


def test_mean_part_and_scale_part_are_the_forward_kl():
    policy, batch = setting(GAUSSIAN)
    m = measure(policy, GAUSSIAN, Objective(PRESETS["none"]), batch)
    assert m["kl/mean_part"] > 0.01
    assert m["kl/scale_part"] > 0.01
    assert (m["kl/mean_part"] + m["kl/scale_part"]).item() == pytest.approx(m["kl/forward"].item(), rel=1e-5)


@FAMILIES
def test_a_policy_that_did_not_move_measures_no_kl_and_ratios_of_1(family):
    policy, batch = setting(family)
    with torch.no_grad():
        params = policy(batch.obs).params
    batch = batch._replace(params_old=params, logp_old=family.build(params).log_prob(batch.action))
    m = measure(policy, family, Objective(PRESETS["kl_adaptive"]), batch)
    for tag in ("kl/forward", "kl/forward_max", "kl/reverse", "kl/controlled", "kl/k1", "kl/k2", "kl/k3"):
        assert abs(m[tag].item()) < 1e-9, tag
    for tag in ("ratio/mean", "ratio/min", "ratio/max", "ratio/ess"):
        assert m[tag].item() == pytest.approx(1, abs=1e-6), tag
    assert kl_before(policy, family, batch).item() == pytest.approx(0, abs=1e-9)


@FAMILIES
def test_kl_before_is_the_forward_kl_to_the_stored_parameters(family):
    policy, batch = setting(family)
    expected = by_hand(policy, family, PRESETS["kl_fixed"], batch)["kl/forward"]
    assert kl_before(policy, family, batch).item() == pytest.approx(expected, rel=1e-4)


@FAMILIES
def test_measuring_changes_neither_policy_nor_objective(family):
    policy, batch = setting(family)
    objective = Objective(OBJECTIVES["kl_adaptive"])
    before = {k: v.clone() for module in (policy, objective) for k, v in module.state_dict().items()}
    random = torch.get_rng_state()
    measure(policy, family, objective, batch)
    after = policy.state_dict() | objective.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert torch.equal(torch.get_rng_state(), random)


def test_measured_values_carry_no_gradient():
    policy, batch = setting(CATEGORICAL)
    m = measure(policy, CATEGORICAL, Objective(PRESETS["kl_adaptive"]), batch)
    assert not [tag for tag, x in m.items() if x.requires_grad or x.dim()]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1.0, 2.0, 6.0, 99.0], 1.0),  # perfect
        ([3.0, 3.0, 3.0, 99.0], 0.0),  # the mean
        ([11.0, 12.0, 16.0, 99.0], 1.0),  # off by a constant, which a variance does not see
        ([0.0, 0.0, 0.0, 99.0], 0.0),  # a constant
        ([-1.0, -2.0, -6.0, 99.0], -3.0),  # ret − value = 2 ret, of four times the variance
    ],
)
def test_explained_variance_by_hand(value, expected):
    ret, valid = torch.tensor([1.0, 2.0, 6.0, -50.0]), torch.tensor([True, True, True, False])
    assert explained_variance(torch.tensor(value), ret, valid).item() == pytest.approx(expected, abs=1e-6)


def test_explained_variance_of_returns_that_do_not_vary_is_0():
    value, ret = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 4.0])
    assert explained_variance(value, ret, torch.ones(2, dtype=torch.bool)).item() == 0.0


# --- the glossary ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("objective", PRESETS)
def test_every_metric_of_an_iteration_stands_in_the_glossary(env, objective):
    num_steps = {"CartPole-v1": 32, "Pendulum-v1": 200}[env]  # enough for an episode to end
    agent = small_agent(env, objective, training__num_steps=num_steps, training__minibatch_size=200)
    metrics = agent.iterate()
    assert "rollout/return_mean" in metrics
    assert not [tag for tag in metrics if metric_of(tag) is None]


def test_the_readme_table_has_a_row_per_tag():
    rows = as_markdown().splitlines()
    assert len(rows) == 2 + len(GLOSSARY) + len(HISTOGRAMS)
    assert all(f"| `{tag}` |" in row for tag, row in zip([*GLOSSARY, *HISTOGRAMS], rows[2:], strict=True))


@pytest.mark.parametrize(("start", "share"), [((2.0, 0.0, -10.0), 2 / 3), ((0.0, 1.9, -9.0), 0.0), ((5.0,) * 3, 1.0)])
def test_scales_that_stand_at_a_bound_are_counted(start, share):
    policy, batch = setting(GAUSSIAN)
    with torch.no_grad():
        policy.actor.scale.copy_(torch.tensor(start))
    metrics = measure(policy, GAUSSIAN, Objective(PRESETS["clip"]), batch)
    assert metrics["policy/std_at_bound"].item() == pytest.approx(share)
