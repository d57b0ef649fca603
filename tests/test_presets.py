"""Every preset trains, and nothing in its log is anything but a finite number."""

import math

import pytest

from ppo_kl import Agent
from ppo_kl.config.objective import Adapting
from ppo_kl.config.presets import PRESETS


class Watch:
    """Refuses a metric that is not finite and a λ outside its bounds."""

    def __init__(self, name):
        self.controller, self.iterations = PRESETS[name].controller, 0

    def on_iteration(self, state):
        self.iterations += 1
        assert {tag: value for tag, value in state.metrics.items() if not math.isfinite(value)} == {}
        if isinstance(self.controller, Adapting):
            low, high = self.controller.min, self.controller.max
            assert low / (1 + 1e-6) <= state.agent.objective.kl_lambda.item() <= high * (1 + 1e-6)
        return True


def train(name, env, steps, **overrides):
    watch = Watch(name)
    agent = Agent(env, name, seed=0, overrides=overrides)
    agent.learn(steps, callbacks=[watch])
    agent.close()
    return watch.iterations


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("env", ["cartpole", "pendulum"])
def test_every_preset_takes_its_first_updates(name, env):
    small = {"env.num_envs": 2, "training.num_steps": 64, "training.num_epochs": 4}
    assert train(name, env, 3 * 128, **small) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("env", ["cartpole", "pendulum"])
def test_every_preset_trains_for_thirty_thousand_steps(name, env):
    assert train(name, env, 30_000) >= 29
