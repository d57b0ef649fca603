"""Agents learn, with either family of objective; without advantages they do not."""

import pytest
import torch

from ppo_kl.load import load_config
from ppo_kl.training import iteration
from ppo_kl.training.agent import Agent

FAMILIES = ("kl_adaptive", "clip")
SEEDS = range(5)
"""None of them was used for tuning."""


class Best:
    """The best mean return of the last 100 episodes so far, once there are 100; ends the training at `enough`."""

    def __init__(self, enough=float("inf")):
        self.enough, self.best, self.at = enough, float("-inf"), None

    def on_iteration(self, state):
        if len(state.agent.last100) == 100 and state.metrics["rollout/return_last100"] > self.best:
            self.best, self.at = state.metrics["rollout/return_last100"], state.steps
        return self.best < self.enough


def best_return(env, objective, seed, steps, enough=float("inf")):
    best, agent = Best(enough), Agent(env, objective=objective, seed=seed)
    agent.learn(steps, [best])
    agent.close()
    return best.best


def without_advantages(monkeypatch):
    real = iteration.gae
    monkeypatch.setattr(iteration, "gae", lambda *a, **k: (torch.zeros_like(a[0]), real(*a, **k)[1]))


@pytest.mark.parametrize("objective", FAMILIES)
def test_cartpole_gets_better_within_seconds(objective):
    # A random policy keeps the pole up for about 22 steps.
    assert best_return("CartPole-v1", objective, seed=0, steps=20_000, enough=100) >= 100


@pytest.mark.parametrize("objective", FAMILIES)
def test_with_advantages_of_zero_nothing_is_learned(objective, monkeypatch):
    without_advantages(monkeypatch)
    assert best_return("CartPole-v1", objective, seed=0, steps=15_000) < 40


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("objective", FAMILIES)
def test_cartpole_is_solved_by_100_000_steps(objective, seed):
    assert best_return("CartPole-v1", objective, seed, steps=100_000, enough=475) >= 475


@pytest.mark.slow
@pytest.mark.parametrize("objective", FAMILIES)
def test_with_advantages_of_zero_nothing_is_learned_in_a_whole_run(objective, monkeypatch):
    without_advantages(monkeypatch)
    assert best_return("CartPole-v1", objective, seed=0, steps=100_000) < 60


class Note:
    """Keeps the iteration it was given last."""

    def on_iteration(self, state):
        self.last = state


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "kl_stop"), [(None, None), ("clip", "off")])
def test_the_classic_recipe_learns_with_both_of_its_methods(objective, kl_stop):
    agent = Agent(load_config(config="morvan_pendulum", objective=objective, kl_stop=kl_stop))
    agent.learn(agent.config.total_steps, [note := Note()])
    agent.close()
    # A random policy gets about −1,200.
    assert note.last.metrics["rollout/return_last100"] >= -700


@pytest.mark.slow
@pytest.mark.parametrize("objective", FAMILIES)
@pytest.mark.parametrize(
    ("env", "steps", "enough"),
    [("acrobot", 200_000, -100), ("pendulum", 300_000, -250), ("lunarlander", 1_000_000, 200)],
)
def test_a_tuned_file_reaches_what_the_readme_says_it_does(env, steps, enough, objective):
    # At random: about −500, −1,200 and −180.
    assert best_return(env, objective, seed=0, steps=steps, enough=enough) >= enough
