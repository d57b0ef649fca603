"""Observe k, answer k: every space is learned, by either family of objectives and with every way to draw a Box."""

import identity
import pytest

from ppo_kl.policies.spaces import BOX_FAMILIES
from ppo_kl.training.agent import Agent

SETTINGS = {
    "env.num_envs": 8,
    "env.normalize_obs": True,
    "policy.hidden_sizes": (32, 32),
    "training.num_steps": 64,
    "training.num_epochs": 10,
    "training.minibatch_size": 128,
    "training.lr": 3e-3,
    "training.gamma": 0.0,
    "runtime.device": "cpu",
    "runtime.workers": 0,
}
MORE = [("Box", {"policy.distribution": kind}) for kind in BOX_FAMILIES if kind != "gaussian"]
MORE += [("Box", {"policy.action_transform": "rescale"}), ("Dict", {"policy.trunk": "shared"})]
JOINT = ("Dict", "Tuple")
"""Take longest; one family of objectives is enough for every day."""


def cases() -> list:
    plain, found = [(name, {}) for name in identity.SPACES], []
    for name, settings in [*plain, *MORE]:
        for objective in ("clip", "kl_adaptive"):
            slow = bool(settings) or (name in JOINT and objective == "clip")
            words = "-".join([name, *settings.values(), objective])
            found.append(pytest.param(name, settings, objective, id=words, marks=pytest.mark.slow if slow else []))
    return found


class UntilSure:
    """Ends the training when the last 100 episodes reach 90 % of the maximum."""

    def on_iteration(self, state):
        return state.metrics.get("rollout/return_last100", 0.0) < 0.9 * identity.LENGTH


@pytest.mark.parametrize(("name", "settings", "objective"), cases())
def test_what_is_observed_is_answered_within_20_000_steps(name, settings, objective):
    agent = Agent(f"toy/Identity{name}-v0", objective, seed=0, overrides={**SETTINGS, **settings})
    before = agent.evaluate(50).mean
    agent.learn(20_000, [UntilSure()])
    assert before < 0.75 * identity.LENGTH
    assert agent.evaluate(50).mean >= 0.9 * identity.LENGTH
