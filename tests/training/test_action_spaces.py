"""An agent acts in, learns in, and is saved from every kind of action space, with every distribution over a Box."""

import numpy as np
import pytest
import torch
from toy_envs import ACTION_SPACES, small_agent

from ppo_kl.errors import CheckpointError
from ppo_kl.policies.spaces import BOX_FAMILIES
from ppo_kl.training.agent import Agent

OBS = np.ones(2, np.float32)
cases = pytest.mark.parametrize(
    ("name", "distribution"),
    [(name, "gaussian") for name in ACTION_SPACES]
    + [(name, kind) for name in ("Box", "Dict") for kind in BOX_FAMILIES if kind != "gaussian"],
)


@cases
def test_it_learns_for_two_iterations_and_nothing_leaves_its_space(name, distribution):
    # The environment raises for an action that is not in its space.
    agent = small_agent(f"Strict{name}", policy__distribution=distribution, training__ent_coef=0.01)
    before = [parameter.clone() for parameter in agent.policy.actor.parameters()]
    metrics = [agent.iterate(), agent.iterate()]
    assert all(np.isfinite(value) for m in metrics for value in m.values())
    assert all(m["kl/before_update"] <= 1e-6 for m in metrics)
    moved = [(x != y).any().item() for x, y in zip(before, agent.policy.actor.parameters(), strict=True)]
    if name == "OneAction":  # there is nothing to learn
        assert {m[tag] for m in metrics for tag in ("kl/forward", "policy/entropy")} == {0.0}
        assert not any(moved)
    else:
        assert all(m["kl/forward"] > 0 for m in metrics)
        assert all(moved)


@cases
def test_what_it_acts_is_in_the_space_for_one_observation_and_several(name, distribution):
    agent, space = small_agent(f"Strict{name}", policy__distribution=distribution), ACTION_SPACES[name]
    for deterministic in (True, False):
        action = agent.act(OBS, deterministic=deterministic)
        # A Box warns of a number where its shape is ().
        assert space.contains(np.asarray(action) if name == "Scalar" else action)
    drawn = agent.act(np.stack([OBS] * 3), deterministic=False)
    leaf = drawn
    while not isinstance(leaf, np.ndarray):
        leaf = next(iter(leaf.values() if isinstance(leaf, dict) else leaf))
    assert len(leaf) == 3
    # Episodes have three steps, with rewards 1, 2 and 3.
    assert agent.evaluate(2).returns == [6.0, 6.0]


@pytest.mark.parametrize(
    ("name", "distribution"), [("Dict", "beta"), ("Tuple", "full_gaussian"), ("MultiDiscrete", "beta")]
)
def test_it_comes_back_from_its_checkpoint(tmp_path, name, distribution):
    agent = small_agent(f"Strict{name}", policy__distribution=distribution)
    agent.learn(32)
    agent.save(tmp_path / "agent.pt")
    again = Agent.load(tmp_path / "agent.pt")
    assert again.family == agent.family
    obs = torch.ones(1, 2)
    assert torch.equal(again.policy(obs).params, agent.policy(obs).params)
    again.iterate()  # its environments are made anew, and have the spaces it was trained with


def test_another_distribution_does_not_fit():
    beta, gaussian = (small_agent("StrictBox", policy__distribution=kind) for kind in ("beta", "gaussian"))
    with pytest.raises(CheckpointError, match="spaces"):
        gaussian.load_state_dict(beta.state_dict())


def test_the_parts_of_a_squashed_gaussians_kl_are_measured_below_the_tanh():
    metrics = small_agent("StrictBox", policy__distribution="tanh_gaussian").iterate()
    assert metrics["kl/mean_part"] + metrics["kl/scale_part"] == pytest.approx(metrics["kl/forward"], rel=1e-4)
    assert metrics["policy/scale_mean"] == pytest.approx(1.0, abs=0.2)
    assert "kl/mean_part" not in small_agent("StrictBox", policy__distribution="beta").iterate()
