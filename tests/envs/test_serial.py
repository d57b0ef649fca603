"""Environments stepped into arrays answer what Gymnasium's own vector environment of one process answers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from faulty_envs import Masked, Sends
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_envs import SEED, Counter

from ppo_kl.envs.guard import GuardedEnv
from ppo_kl.envs.serial import Answers, SerialVectorEnv, answers_for, leaves_of, reset_each, step_each

N = 3
MAKERS = {
    "overwrites its array": Counter,
    "Discrete": lambda: gym.make("FrozenLake-v1", disable_env_checker=True),
    "Box": lambda: gym.make("Pendulum-v1", max_episode_steps=7, disable_env_checker=True),
    "Dict": lambda: Sends(parts=True, length=5),
    "masks": Masked,
    "masks now and then": lambda: Masked(every=3),
}


def guarded(make: Any) -> list[GuardedEnv]:
    return [GuardedEnv(make(), "toy", SEED, i, 0) for i in range(N)]


def serial(make: Any) -> SerialVectorEnv:
    return SerialVectorEnv(guarded(make))


def gymnasiums(make: Any) -> SyncVectorEnv:
    return SyncVectorEnv([lambda env=env: env for env in guarded(make)], autoreset_mode=AutoresetMode.SAME_STEP)


def actions_for(env: Any, info: dict[str, Any], rng: np.random.Generator) -> Any:
    """One for each environment that its mask allows."""
    if isinstance(env.single_action_space, spaces.Box):
        return rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
    actions = rng.integers(0, env.single_action_space.n, N)
    for i in np.flatnonzero(info.get("_action_mask", np.zeros(N, bool))):
        actions[i] = rng.choice(np.flatnonzero(info["action_mask"][i]))
    return actions


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, tuple) or (isinstance(expected, np.ndarray) and expected.dtype == np.object_):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("name", MAKERS)
def test_every_step_is_answered_as_gymnasiums_own_answers_it(name):
    ours, theirs = serial(MAKERS[name]), gymnasiums(MAKERS[name])
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    assert_equal(ours.reset(), theirs.reset())
    info: dict[str, Any] = {}
    rng, ended = np.random.default_rng(0), 0
    if name.startswith("masks"):
        info = {"_action_mask": np.ones(N, bool), "action_mask": np.stack(ours.get_attr("allowed"))}
    for _ in range(40):
        actions = actions_for(ours, info, rng)
        answer = ours.step(actions)
        assert_equal(answer, theirs.step(actions))
        ended += int((answer[2] | answer[3]).sum())
        if name.startswith("masks"):
            info["action_mask"] = np.stack(ours.get_attr("allowed"))
    assert ended >= 3
    ours.close()
    theirs.close()


def test_the_next_step_leaves_what_was_answered_before():
    env = serial(Counter)
    obs, _ = env.reset()
    answers = [obs, *env.step(np.zeros(N, np.int64))[:4]]
    kept = [x.copy() for x in answers]
    for _ in range(6):
        env.step(np.ones(N, np.int64))
    for array, copy in zip(answers, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_a_slice_of_the_environments_writes_into_a_slice_of_the_arrays_and_returns_what_is_rare():
    # Counters 1 and 2 of three write into the rows 1 and 2; episodes of counter 2 have 3 steps and end with both.
    envs = guarded(Counter)
    space = envs[0].observation_space
    whole = answers_for(space, N)
    rows = slice(1, 3)
    obs = whole.obs[rows]
    part = Answers(obs, leaves_of(space, obs), whole.reward[rows], whole.terminated[rows], whole.truncated[rows])
    assert reset_each(envs[rows], part) == {}
    assert [step_each(envs[rows], [0, 0], part) for _ in range(2)] == [{}, {}]
    infos = step_each(envs[rows], [0, 0], part)
    assert list(infos) == [1]
    assert infos[1]["final_info"] == {}
    assert infos[1]["final_obs"].tolist() == [2.0, 0.0, 3.0]
    # (environment, episode, step): counter 1 goes on, counter 2 has begun its next episode.
    assert whole.obs.tolist() == [[0.0, 0.0, 0.0], [1.0, 0.0, 3.0], [2.0, 1.0, 0.0]]
    assert whole.terminated.tolist() == [False, False, True]


def test_too_few_actions_are_refused():
    env = serial(Counter)
    env.reset()
    with pytest.raises(ValueError, match="shorter"):
        env.step(np.zeros(N - 1, np.int64))


def test_closing_closes_every_environment():
    env = serial(Sends)
    closed: list[int] = []
    for i, each in enumerate(env.envs):
        each.env.close = lambda i=i: closed.append(i)
    env.close()
    assert closed == [0, 1, 2]
    assert env.closed
