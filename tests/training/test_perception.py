"""Pictures are learned by either CNN, and what must be remembered by a policy with a memory and by no other."""

import perception  # noqa: F401
import pytest

from ppo_kl.training.agent import Agent

FAMILIES = pytest.mark.parametrize("objective", ["clip", "kl_adaptive"])


class Until:
    def __init__(self, enough):
        self.enough = enough

    def on_iteration(self, state):
        return state.metrics.get("rollout/return_last100", 0.0) < self.enough


def trained(env, objective, steps, enough, **settings):
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    common = {"env.num_envs": 8, "training.num_steps": 64, "training.minibatch_size": 128, "runtime.device": "cpu"}
    agent = Agent(env, objective, seed=0, overrides={**common, **dotted})
    return agent.learn(steps, [Until(enough)])


@pytest.mark.slow
@FAMILIES
@pytest.mark.parametrize("image_encoder", ["nature", "impala"])
@pytest.mark.parametrize("trunk", ["shared", "separate"])
def test_a_square_in_noise_is_found(objective, image_encoder, trunk):
    policy = {"policy__image_encoder": image_encoder, "policy__hidden_sizes": (), "policy__trunk": trunk}
    agent = trained("toy/Square-v0", objective, 30_000, 9.5, **policy, training__lr=1e-3, training__num_epochs=4)
    assert agent.evaluate(50).mean > 9  # of 10; 2.5 by chance


def with_memory(memory, objective, steps, trunk):
    settings = {"training__lr": 3e-3, "training__num_epochs": 6, "training__ent_coef": 0.01, "policy__trunk": trunk}
    if memory != "none":
        settings["policy__memory_size"] = 32
    return trained(
        "toy/Recall-v0", objective, steps, 0.97, **settings, policy__memory=memory, policy__hidden_sizes=(32,)
    )


@FAMILIES
@pytest.mark.parametrize("memory", ["gru", "lstm"])
@pytest.mark.parametrize("trunk", ["shared", "separate"])
def test_what_was_shown_is_remembered(objective, memory, trunk):
    assert with_memory(memory, objective, 10_000, trunk).evaluate(50).mean > 0.95


@FAMILIES
def test_without_a_memory_it_cannot_be(objective):
    # Right half of the time: of 200 episodes between 0.36 and 0.64 with a probability of more than 0.9999.
    assert with_memory("none", objective, 10_000, "shared").evaluate(200).mean < 0.64
