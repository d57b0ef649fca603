"""EnvPool's own ways end in its adapter. A stand-in that shares them is tested everywhere, the real one where it is."""

import itertools
import sys
import types
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper

from ppo_kl.envs.make import make_vector_env
from ppo_kl.errors import ConfigError
from ppo_kl.load import load_config
from ppo_kl.training.agent import Agent

TINY = np.finfo(np.float32).tiny
SMALL = {"env.num_envs": 2, "training.num_steps": 32, "training.minibatch_size": 32}


class StandIn(VectorWrapper):
    """CartPole as EnvPool would have it: single spaces where batched ones belong, seeds when it is made, a low bound of
    the smallest positive number."""

    def __init__(self, num_envs, seed):
        copies = [lambda: gym.make("CartPole-v1")] * num_envs
        super().__init__(SyncVectorEnv(copies, autoreset_mode=AutoresetMode.NEXT_STEP))
        low = np.full(4, TINY, np.float32)
        self.observation_space = self.single_observation_space = gym.spaces.Box(low, -low + np.float32(np.inf))
        self.action_space = self.single_action_space
        self.seeds = seed

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            warnings.warn("reset(seed=...) is ignored", stacklevel=2)
        return self.env.reset(seed=self.seeds)


@pytest.fixture
def stand_in(monkeypatch):
    module = types.ModuleType("envpool")
    module.list_all_envs = lambda: ["CartPole-v1", "Pong-v5"]
    module.make = lambda name, env_type, **kwargs: StandIn(**kwargs)
    monkeypatch.setitem(sys.modules, "envpool", module)


def config(**settings):
    return load_config(env="envpool/CartPole-v1", overrides={"env.num_envs": 2, **settings}).env


def test_its_spaces_are_those_of_gymnasiums_contract(stand_in):
    envs = make_vector_env(config(), seed=0)
    try:
        assert envs.observation_space == gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        assert envs.env.observation_space == gym.spaces.Box(-np.inf, np.inf, (2, 4), np.float32)
        assert envs.env.action_space == gym.spaces.MultiDiscrete([2, 2])
        obs = envs.reset()
        assert envs.env.observation_space.contains(obs)
    finally:
        envs.close()


def test_every_copy_is_seeded_when_it_is_made_and_reset_is_given_no_seed(stand_in):
    def begun(seed):
        envs = make_vector_env(config(), seed)
        try:
            return envs.reset()
        finally:
            envs.close()

    one, again, other = begun(0), begun(0), begun(1)
    assert np.array_equal(one, again)
    assert not np.array_equal(one[0], one[1])
    assert not np.array_equal(one, other)


def test_its_rows_that_only_reset_are_no_transitions(stand_in):
    envs = make_vector_env(config(), seed=0)
    envs.reset()
    steps = [envs.step(np.ones(2, np.int64)) for _ in range(40)]
    envs.close()
    for before, after in itertools.pairwise(steps):
        assert np.array_equal(before.over, ~after.valid)
    assert sum(step.over.sum() for step in steps) >= 2


def test_an_agent_learns_with_it(stand_in):
    agent = Agent("envpool/CartPole-v1", overrides=SMALL)
    agent.learn(64)
    agent.close()
    assert agent.steps >= 64


@pytest.mark.parametrize(
    ("env", "settings", "told"),
    [
        ("envpool/Cartpole-v1", {}, r"EnvPool has no Cartpole-v1 \(did you mean 'CartPole-v1'"),
        ("envpool/CartPole-v1", {"env.vectorization": "async"}, r"'async': EnvPool steps all copies itself.*native"),
        ("envpool/CartPole-v1", {"env.kwargs.seed": 3}, r"env\.kwargs\.seed=3: set by the run's seed"),
        ("envpool/Pong-v5", {"env.kwargs.reward_clip": True}, r"reward_clip=True: set by env\.reward_limit"),
        ("envpool/CartPole-v1", {"env.kwargs.gravity": 1}, r"unexpected keyword argument 'gravity'.*'gravity': 1"),
    ],
)
def test_what_it_cannot_do_is_refused(stand_in, env, settings, told):
    with pytest.raises(ConfigError, match=told):
        make_vector_env(load_config(env=env, overrides=settings).env, seed=0)


def test_where_it_is_missing_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ConfigError, match=r"extra \[envpool\] installs: pip install"):
        make_vector_env(config(), seed=0)


@pytest.mark.parametrize("name", ["CartPole-v1", "LunarLander-v3", "Pendulum-v1", "HalfCheetah-v5", "Pong-v5"])
def test_the_real_one_is_trained_on(name):
    pytest.importorskip("envpool")
    agent = Agent(f"envpool/{name}", overrides=SMALL)
    agent.learn(128)
    if name != "Pong-v5":  # whose games are long
        agent.evaluate(1)
    agent.close()
    assert agent.steps >= 128
