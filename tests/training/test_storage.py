"""What a rollout leaves lies where it belongs, and rows of which nobody said anything allow everything."""

from __future__ import annotations

import numpy as np
from toy_envs import SEED, env_config

from ppo_kl.envs.make import make_vector_env
from ppo_kl.training.storage import Storage

T, N = 3, 2


def test_an_observation_is_written_as_it_is_stored_and_shown_as_the_same_memory():
    envs = make_vector_env(env_config("Counter"), SEED)
    told = Storage(T, envs)
    told.show(1, envs.reset().astype(np.float64), np.array([True, False]))
    # Counters show (environment, episode, step).
    assert told.shown(1).tolist() == [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    assert told.shown(1).dtype == np.float32
    assert np.shares_memory(told.shown(1), told.obs)
    assert told.starts[1].tolist() == [True, False]
    envs.close()


def test_a_step_is_written_into_its_row():
    envs = make_vector_env(env_config("Counter"), SEED)
    told = Storage(T, envs)
    envs.reset()
    for t in range(T):
        action = np.array([t, 2 - t])
        step = envs.step(action)
        told.add(t, action, step)
        assert told.reward[t].tolist() == step.reward.tolist()
        assert told.terminated[t].tolist() == step.terminated.tolist()
    assert told.action.tolist() == [[0, 2], [1, 1], [2, 0]]
    assert told.valid.all()
    # Counter 0 has episodes of 2 steps, counter 1 one of 5 first.
    assert told.over.tolist() == [[False, False], [True, False], [False, False]]
    envs.close()


def test_before_the_first_mask_and_where_none_is_sent_everything_is_allowed():
    envs = make_vector_env(env_config("Counter"), SEED)
    told = Storage(T, envs)
    told.allow(0, None)
    assert told.action_mask is None
    told.allow(1, np.array([[True, False, False], [False, True, True]]))
    told.allow(2, None)
    assert told.action_mask is not None
    assert told.action_mask.all(-1).all(-1).tolist() == [True, False, True]
    assert told.action_mask[1].tolist() == [[True, False, False], [False, True, True]]
    envs.close()
