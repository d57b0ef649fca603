"""Whatever a vector environment does when an episode ends, the same transitions come out, and only real ones."""

from __future__ import annotations

import functools
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_envs import MODES, SEED, BareVectorEnv, Counter, Transition, env_config, episode_length

from ppo_kl.envs.autoreset import Environments, Step
from ppo_kl.envs.make import make_vector_env
from ppo_kl.errors import ConfigError, EnvDataError, EnvWarning, EnvWorkerError

LENGTH = 30
"""Transitions compared per environment; with episodes of 2 to 6 steps, at least four of them end."""
HOW = [("sync", mode) for mode in MODES] + [("async", AutoresetMode.SAME_STEP)]
HOW_IDS = [f"{v}-{mode.name}" for v, mode in HOW]


class Seen(NamedTuple):
    transitions: list[list[Transition]]
    """Per environment, the first LENGTH rows that count."""
    log: list[list[Transition]]
    """Per environment, what it says really happened to it, as far."""
    valid: np.ndarray
    done: np.ndarray
    rewards: np.ndarray
    flagged: np.ndarray


def choose(obs: np.ndarray) -> np.ndarray:
    """An action that is a function of the observation alone."""
    return (obs.sum(-1).astype(np.int64) * 7 + 1) % 3


def as_told(told: Transition) -> Transition:
    """An environment that says both terminated and truncated has terminated."""
    return told._replace(truncated=told.truncated and not told.terminated)


@functools.cache
def seen(name: str, vectorization: str, mode: AutoresetMode) -> Seen:
    envs = make_vector_env(env_config(name, vectorization=vectorization, num_envs=3), SEED, autoreset=mode)
    try:
        transitions: list[list[Transition]] = [[] for _ in range(3)]
        steps: list[Step] = []
        obs = envs.reset()
        while min(map(len, transitions)) < LENGTH:
            action = choose(obs)
            step = envs.step(action)
            for i in np.flatnonzero(step.valid):
                after = step.final_obs[i] if i in step.final_obs else step.obs[i]
                transitions[i].append(
                    Transition(
                        tuple(obs[i].tolist()),
                        int(action[i]),
                        float(step.reward[i]),
                        tuple(after.tolist()),
                        bool(step.terminated[i]),
                        bool(step.truncated[i]),
                    )
                )
            steps.append(step)
            obs = step.obs
        log = [[as_told(t) for t in told[:LENGTH]] for told in envs.env.get_attr("log")]
    finally:
        envs.close()
    done = np.array([[i in s.final_obs for i in range(3)] for s in steps])
    return Seen(
        [t[:LENGTH] for t in transitions],
        log,
        np.array([s.valid for s in steps]),
        done,
        np.array([s.reward for s in steps]),
        np.array([s.terminated | s.truncated for s in steps]),
    )


def test_the_fixture_crosses_episode_ends_of_every_kind_in_every_environment():
    for of_one_env in seen("CopyingCounter", "sync", AutoresetMode.SAME_STEP).log:
        ends = [(t.terminated, t.truncated) for t in of_one_env if t.terminated or t.truncated]
        assert len(ends) >= 3
        assert {(True, False), (False, True)} == set(ends)


def test_the_fixture_ends_episodes_at_different_steps_in_different_environments():
    done = seen("CopyingCounter", "sync", AutoresetMode.SAME_STEP).done
    assert (done.any(1) & ~done.all(1)).sum() >= 3


@pytest.mark.parametrize(("vectorization", "mode"), HOW, ids=HOW_IDS)
@pytest.mark.parametrize("name", ["CopyingCounter", "Counter"], ids=["copies", "overwrites-in-place"])
def test_rows_that_count_are_what_the_environment_says_happened(name, vectorization, mode):
    transitions, log, *_ = seen(name, vectorization, mode)
    assert transitions == log


@pytest.mark.parametrize(("vectorization", "mode"), HOW, ids=HOW_IDS)
def test_every_mode_gives_the_same_transitions(vectorization, mode):
    reference = seen("CopyingCounter", "sync", AutoresetMode.SAME_STEP).transitions
    assert seen("CopyingCounter", vectorization, mode).transitions == reference


@pytest.mark.parametrize(("vectorization", "mode"), HOW, ids=HOW_IDS)
def test_rows_that_only_reset_exist_in_next_step_mode_alone_and_there_after_each_end(vectorization, mode):
    run = seen("CopyingCounter", vectorization, mode)
    follows_an_end = np.vstack([np.zeros((1, 3), bool), run.done[:-1]])
    expected = ~follows_an_end if mode is AutoresetMode.NEXT_STEP else np.ones_like(run.valid)
    np.testing.assert_array_equal(run.valid, expected)


def test_a_row_that_only_resets_has_no_reward_and_ends_nothing():
    run = seen("CopyingCounter", "sync", AutoresetMode.NEXT_STEP)
    assert (~run.valid).sum() >= 9
    assert not run.rewards[~run.valid].any()
    assert not run.flagged[~run.valid].any()
    assert not run.done[~run.valid].any()


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_terminated_and_truncated_at_once_counts_as_terminated(mode):
    # Environment 2's first episode, of 2 + 6 % 5 = 3 steps, ends with both flags.
    assert Counter.ENDS[2] == (True, True)
    assert episode_length(2, 0) == 3
    end = seen("CopyingCounter", "sync", mode).transitions[2][2]
    assert (end.terminated, end.truncated) == (True, False)


@pytest.mark.parametrize(("vectorization", "mode"), HOW, ids=HOW_IDS)
def test_what_a_step_answered_stays_as_it_was_while_the_environments_go_on(vectorization, mode):
    envs = make_vector_env(env_config("CopyingCounter", vectorization=vectorization), SEED, autoreset=mode)
    try:
        arrays = [envs.reset()]
        kept = [arrays[0].copy()]
        for _ in range(12):
            step = envs.step(choose(arrays[-1]))
            new = [step.reward, step.terminated, step.truncated, step.valid, *step.final_obs.values(), step.obs]
            arrays += new
            kept += [x.copy() for x in new]
    finally:
        envs.close()
    for array, copy in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_episodes_begun_counts_the_resets_of_each_environment(mode):
    envs = make_vector_env(env_config("Counter"), SEED, autoreset=mode)
    obs = envs.reset()
    assert envs.episodes_begun.tolist() == [1, 1]
    for _ in range(40):
        obs = envs.step(choose(obs)).obs
        # A Counter shows the number of its episode, and its second reset begins episode 1; a final observation that
        # NEXT_STEP still shows is of the episode before.
        assert envs.episodes_begun.tolist() == (obs[:, 1] + 1).tolist()
    envs.close()


def test_a_second_reset_forgets_that_an_episode_had_ended():
    envs = make_vector_env(env_config("Counter"), SEED, autoreset=AutoresetMode.NEXT_STEP)
    obs = envs.reset()
    for _ in range(episode_length(0, 0)):
        step = envs.step(choose(obs))
        obs = step.obs
    assert 0 in step.final_obs
    obs = envs.reset()
    assert envs.step(choose(obs)).valid.all()
    envs.close()


# --- CartPole's own vector environment, which knows NEXT_STEP alone ---------------------------------------------------


def native_cartpole(steps: int) -> list[Step]:
    envs = make_vector_env(env_config("CartPole-v1", num_envs=4, vectorization="native"), SEED)
    assert envs.mode is AutoresetMode.NEXT_STEP
    rng = np.random.default_rng(0)
    envs.reset()
    return [envs.step(rng.integers(0, 2, 4)) for _ in range(steps)]


def test_native_cartpole_has_rows_that_do_not_count_exactly_after_an_end():
    steps = native_cartpole(300)
    done = np.array([s.terminated | s.truncated for s in steps])
    valid = np.array([s.valid for s in steps])
    assert done.sum(0).min() >= 3
    np.testing.assert_array_equal(valid[0], True)
    np.testing.assert_array_equal(valid[1:], ~done[:-1])


def test_native_cartpole_ends_each_episode_out_of_bounds_and_begins_the_next_near_the_middle():
    for before, after in zip(native_cartpole(100), native_cartpole(100)[1:], strict=False):
        for i, last in before.final_obs.items():
            assert abs(last[0]) > 2.4 or abs(last[2]) > 0.2094  # 12° = 0.20944 rad
            assert np.abs(after.obs[i]).max() <= 0.05


# --- environments that do not say how they reset ----------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [{}, {"autoreset_mode": None}, {"autoreset_mode": "NextStep"}])
def test_a_vector_environment_that_does_not_declare_its_mode_is_refused(metadata):
    with pytest.raises(ConfigError, match="autoreset_mode"):
        Environments(BareVectorEnv(metadata=metadata))


def test_a_vector_environment_that_declares_its_mode_is_taken():
    assert Environments(BareVectorEnv(metadata={"autoreset_mode": AutoresetMode.NEXT_STEP})).num_envs == 2


@pytest.mark.filterwarnings("ignore:.*missing AutoresetMode metadata")  # Gymnasium's own word on it
def test_a_native_environment_that_does_not_declare_its_mode_is_refused():
    with pytest.raises(ConfigError, match="autoreset_mode"):
        make_vector_env(env_config("Bare", vectorization="native"), SEED)


# --- vector environments of others, whose single environments nobody guards -------------------------------------------


class Foreign(SyncVectorEnv):
    """Two CartPoles, of which `faults` replaces parts of what `step` answers; a callable one is called."""

    def __init__(self, **faults):
        super().__init__([lambda: gym.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
        self.faults = faults

    def step(self, actions):
        names = ("obs", "reward", "terminated", "truncated", "info")
        answer = dict(zip(names, super().step(actions), strict=True))
        answer |= {name: fault() if callable(fault) else fault for name, fault in self.faults.items()}
        return tuple(answer.values())


def raises():
    raise RuntimeError("simulator lost")


@pytest.mark.parametrize(
    ("faults", "error", "words"),
    [
        ({"obs": raises}, EnvWorkerError, ["raised in step after step 0", "RuntimeError: simulator lost", "Traceback"]),
        ({"obs": np.zeros((1, 4))}, EnvDataError, ["observation has shape (1, 4)", "expected (2, 4)"]),
        ({"obs": np.zeros((2, 4), complex)}, EnvDataError, ["dtype complex128"]),
        ({"obs": None}, EnvDataError, ["observation has shape () and dtype object"]),
        ({"reward": 1.0}, EnvDataError, ["reward has shape ()", "expected (2,)"]),
        ({"reward": np.ones((2, 1))}, EnvDataError, ["reward has shape (2, 1)"]),
        ({"reward": ["a", "b"]}, EnvDataError, ["reward is ['a', 'b']"]),
        ({"terminated": np.zeros(3, bool)}, EnvDataError, ["terminated has shape (3,)"]),
        ({"truncated": np.ones(2, bool), "info": {}}, EnvDataError, ["environment 0 ended", "'final_obs'"]),
    ],
    ids=["raises", "broadcast", "complex", "nothing", "scalar", "column", "words", "longer", "no final_obs"],
)
def test_what_a_vector_environment_answers_is_refused_where_it_does_not_fit(faults, error, words):
    envs = Environments(Foreign(**faults))
    envs.reset()
    with pytest.raises(error) as told:
        envs.step(np.zeros(2, np.int64))
    envs.close()
    for word in ("weights and checkpoints are as before", *words):
        assert word in str(told.value)


def test_a_vector_environment_that_cannot_be_closed_is_warned_of(monkeypatch):
    envs = Environments(Foreign())
    monkeypatch.setattr(envs.env, "close", raises)
    with pytest.warns(EnvWarning, match="raised in close: RuntimeError: simulator lost"):
        envs.close()
