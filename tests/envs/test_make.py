"""Every episode of every environment of every run has a random stream of its own."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from toy_envs import MODES, SEED, env_config, seed_of

from ppo_kl.envs.make import EVALUATION, episode_seed, make_vector_env
from ppo_kl.errors import ConfigError


def first_obs(seed: int, num_envs: int = 2, **settings) -> np.ndarray:
    envs = make_vector_env(env_config("CartPole-v1", num_envs=num_envs, **settings), seed)
    try:
        return envs.reset()
    finally:
        envs.close()


def lone_cartpole(seed: int, env: int, episode: int) -> np.ndarray:
    """The first observation of one episode, from an environment of its own."""
    alone = gym.make("CartPole-v1")
    obs, _ = alone.reset(seed=seed_of(seed, env, episode))
    alone.close()
    return obs


def test_an_episodes_seed_is_numpys_seed_sequence_of_run_environment_and_episode():
    for place in [(0, 0, 0), (0, 1, 0), (1, 0, 0), (3, 2, 17), (2**64 - 1, EVALUATION, 5)]:
        assert episode_seed(*place) == seed_of(*place)


def test_no_two_episodes_of_seeds_0_to_99_share_a_seed():
    places = [(s, i, k) for s in range(100) for i in (*range(6), EVALUATION) for k in range(6)]
    assert len({episode_seed(*place) for place in places}) == len(places)


def test_no_two_environments_of_seeds_0_to_99_begin_alike():
    begun = [tuple(obs) for seed in range(100) for obs in first_obs(seed)]
    assert len(begun) == 200
    assert len(set(begun)) == 200


def test_no_two_native_environments_of_seeds_0_to_99_begin_alike():
    begun = [tuple(obs) for seed in range(100) for obs in first_obs(seed, vectorization="native")]
    assert len(begun) == 200
    assert len(set(begun)) == 200


@pytest.mark.parametrize("vectorization", ["sync", "async", "native"])
def test_the_same_seed_begins_alike(vectorization):
    np.testing.assert_array_equal(first_obs(3, vectorization=vectorization), first_obs(3, vectorization=vectorization))


@pytest.mark.parametrize(
    ("vectorization", "mode"),
    [*(("sync", mode) for mode in MODES), ("async", AutoresetMode.SAME_STEP)],
    ids=lambda x: getattr(x, "name", x),
)
def test_episode_k_of_environment_i_begins_as_its_own_seed_says_also_where_the_reset_is_automatic(vectorization, mode):
    envs = make_vector_env(env_config("CartPole-v1", vectorization=vectorization), 5, autoreset=mode)
    try:
        begun = [[obs] for obs in envs.reset()]
        while min(map(len, begun)) < 4:
            number = envs.episodes_begun.copy()
            step = envs.step(np.ones(2, np.int64))
            for i in np.flatnonzero(envs.episodes_begun > number):
                begun[i].append(step.obs[i])
    finally:
        envs.close()
    for i, of_one_env in enumerate(begun):
        for k, obs in enumerate(of_one_env):
            np.testing.assert_array_equal(obs, lone_cartpole(5, i, k))


def test_a_seed_from_outside_does_not_replace_the_episodes_own():
    envs = make_vector_env(env_config("CartPole-v1"), 5)
    obs, _ = envs.env.reset(seed=123)
    np.testing.assert_array_equal(obs, [lone_cartpole(5, 0, 0), lone_cartpole(5, 1, 0)])


def test_environments_of_a_run_that_goes_on_begin_with_the_episodes_that_are_next():
    envs = make_vector_env(env_config("CartPole-v1"), 5, first_episode=[4, 9])
    np.testing.assert_array_equal(envs.reset(), [lone_cartpole(5, 0, 4), lone_cartpole(5, 1, 9)])
    assert envs.episodes_begun.tolist() == [5, 10]


@pytest.mark.parametrize("first", [None, [4, 4]], ids=["new", "goes-on"])
def test_a_native_environment_begins_as_the_seed_of_its_first_episode_says(first):
    alone = gym.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point")
    expected, _ = alone.reset(seed=seed_of(5, 0, first[0] if first else 0))
    envs = make_vector_env(env_config("CartPole-v1", vectorization="native"), 5, first_episode=first)
    np.testing.assert_array_equal(envs.reset(), expected)


def test_environments_may_begin_at_a_later_index():
    envs = make_vector_env(env_config("CartPole-v1"), 5, first_env=EVALUATION)
    np.testing.assert_array_equal(envs.reset(), [lone_cartpole(5, EVALUATION, 0), lone_cartpole(5, EVALUATION + 1, 0)])


def test_a_run_cannot_go_on_with_another_number_of_environments():
    with pytest.raises(ConfigError, match=r"num_envs=2.*3 environments"):
        make_vector_env(env_config("Counter"), SEED, first_episode=[1, 1, 1])


@pytest.mark.parametrize("vectorization", ["sync", "async", "native"])
def test_an_environment_that_does_not_exist_is_refused_by_its_id(vectorization):
    with pytest.raises(ConfigError, match="NoSuchThing-v0"):
        make_vector_env(env_config("NoSuchThing-v0", vectorization=vectorization), SEED)


def test_an_environment_without_a_vector_entry_point_is_refused_as_native():
    with pytest.raises(ConfigError, match=r"toy/Counter-v0.*native"):
        make_vector_env(env_config("Counter", vectorization="native"), SEED)
