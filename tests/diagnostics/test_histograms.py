"""Histograms of a rollout hold every row that counts, once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_parts import batch_of, make, seeded
from toy_envs import small_agent

from ppo_kl.diagnostics.histograms import BUCKETS, choices_of, equal_shares, from_device, histograms, shares_of_choices
from ppo_kl.policies.box_families import GaussianFamily
from ppo_kl.policies.families import BernoulliFamily, CategoricalFamily, JointFamily, MultiCategoricalFamily

NUMBERS = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, math.nan, math.inf]), min_size=1, max_size=50)


def counted(tensor):
    return from_device(tensor.flatten().tolist())


@given(NUMBERS, st.randoms(use_true_random=False))
def test_every_finite_value_that_counts_is_counted_and_edges_ascend(values, random):
    valid = [random.random() < 0.7 for _ in values]
    kept = [x for x, v in zip(values, valid, strict=True) if v and math.isfinite(x)]
    found = counted(equal_shares(torch.tensor(values, dtype=torch.float64), torch.tensor(valid)))
    if not kept:
        assert found is None
        return
    assert sum(found.counts) == pytest.approx(len(kept))
    assert len(found.edges) == len(found.counts) + 1
    assert all(a < b for a, b in zip(found.edges, found.edges[1:], strict=False))
    assert found.edges[0] <= min(kept)
    assert max(kept) <= found.edges[-1]


def test_between_two_edges_lie_equally_many():
    x = torch.randn(6400, generator=seeded()).exp()  # skewed, as a KL is
    edges, counts = counted(equal_shares(x, torch.ones(6400, dtype=torch.bool)))
    inside, _ = np.histogram(x.numpy(), edges)
    assert counts == [100.0] * BUCKETS
    assert abs(inside - 100).max() <= 1


def test_a_value_that_is_the_only_one_has_a_bucket_around_it():
    edges, counts = counted(equal_shares(torch.zeros(10), torch.ones(10, dtype=torch.bool)))
    assert edges[0] < 0 < edges[1]
    assert counts == [10.0]


def test_choices_are_counted_one_by_one():
    x, valid = torch.tensor([0, 2, 2, 1, 2]), torch.tensor([True, True, True, False, True])
    assert counted(shares_of_choices(x, valid, 4)) == ([-0.5, 0.5, 1.5, 2.5, 3.5], [1.0, 0.0, 3.0, 0.0])


def test_each_number_of_an_action_is_a_choice_or_continuous():
    box = GaussianFamily((-1.0,) * 2, (1.0,) * 2, (2,))
    assert choices_of(CategoricalFamily(5)) == (5,)
    assert choices_of(MultiCategoricalFamily((3, 4), (0, 0))) == (3, 4)
    assert choices_of(BernoulliFamily((2, 2))) == (2, 2, 2, 2)
    assert choices_of(JointFamily((("a", CategoricalFamily(3)), ("b", box)))) == (3, None, None)


def test_kl_ratio_and_actions_are_those_of_the_rows_that_count():
    learner = make()
    batch = batch_of(learner, 200)
    with torch.no_grad():
        learner.parameters.flat += 0.1 * torch.randn(len(learner.parameters.flat), generator=seeded(9))
        pi, pi_old = learner.family.build(learner.policy(batch.obs).params), learner.family.build(batch.params_old)
    batch = batch._replace(valid=torch.rand(200, generator=seeded(8)) < 0.7)
    found = {tag: counted(x) for tag, x in histograms(learner.policy, learner.family, batch).items()}
    kl = torch.distributions.kl_divergence(pi_old, pi)[batch.valid]
    ratio = (pi.log_prob(batch.action) - batch.logp_old).exp()[batch.valid]
    expected = {"kl/per_state": kl, "ratio/per_sample": ratio}
    expected |= {f"policy/action_{i}": batch.action[batch.valid, i] for i in range(2)}
    assert found.keys() == expected.keys()
    for tag, values in expected.items():
        assert sum(found[tag].counts) == pytest.approx(len(values)), tag
        assert found[tag].edges[0] == pytest.approx(values.min().item(), rel=1e-4), tag
        assert found[tag].edges[-1] == pytest.approx(values.max().item(), rel=1e-4), tag
        middle = found[tag].edges[len(found[tag].edges) // 2]
        assert middle == pytest.approx(values.median().item(), abs=0.05 * values.std().item()), tag


def test_they_come_with_the_first_iteration_and_then_as_often_as_asked():
    agent = small_agent("CartPole-v1", "clip", diagnostics__histogram_every=3)
    samples = agent.config.env.num_envs * agent.config.training.num_steps
    shown = [state.histograms for state in agent.iterations_until(4 * samples)]
    assert [bool(x) for x in shown] == [True, False, False, True]
    assert shown[0].keys() == {"kl/per_state", "ratio/per_sample", "policy/action_0"}
    assert sum(shown[0]["policy/action_0"].counts) == samples
