"""A rollout holds what really happened, and the value of what really came next."""

from __future__ import annotations

import functools
import multiprocessing
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor
from toy_envs import FAULTY_ENV, FAULTY_STEP, MODES, SEED, Transition, env_config, small_agent

from ppo_kl.batch import Rollout, State
from ppo_kl.envs.autoreset import Environments
from ppo_kl.envs.make import make_vector_env
from ppo_kl.errors import EnvDataError, EnvWorkerError
from ppo_kl.policies.actor_critic import PolicyOutput
from ppo_kl.policies.families import CategoricalFamily
from ppo_kl.training.collector import Collector
from ppo_kl.training.episodes import EpisodeStats

HOW = [("sync", mode) for mode in MODES] + [("async", AutoresetMode.SAME_STEP)]
HOW_IDS = [f"{v}-{mode.name}" for v, mode in HOW]
NUM_ENVS, NUM_STEPS, ROLLOUTS = 3, 7, 8
CPU = torch.device("cpu")
TENSORS = [name for name in Rollout._fields if name not in ("action_mask", "starts", "state")]


def value_of(obs: Tensor) -> Tensor:
    """A number from which a `Counter`'s observation (env, episode, step) can be read off."""
    return obs @ torch.tensor([10_000.0, 100.0, 1.0])


def normalize(obs: Tensor) -> Tensor:
    return 2 * obs.float() + 1


class ReadablePolicy:
    """Its value says which observation it was given; its action is all but certain, and a function of that."""

    def actor(self, obs: Tensor) -> Tensor:
        chosen = (((obs - 1) / 2).sum(-1).long() * 7 + 1) % 3
        return 1e4 * torch.nn.functional.one_hot(chosen, 3).float()

    def __call__(self, obs: Tensor, state: State = (), starts: Tensor | None = None) -> PolicyOutput:
        return PolicyOutput(self.actor(obs), value_of((obs - 1) / 2), state)

    def act(self, obs: Tensor) -> tuple[Tensor, State]:
        return self.actor(obs), ()

    def initial_state(self, batch_size: int) -> State:
        return ()


class RandomPolicy(ReadablePolicy):
    """Every action is equally likely."""

    def actor(self, obs: Tensor) -> Tensor:
        return torch.zeros(len(obs), 3)


SURE, RANDOM = ReadablePolicy(), RandomPolicy()


def collector(envs: Environments, num_steps: int = NUM_STEPS, n: int = 3) -> Collector:
    return Collector(envs, CategoricalFamily(n), normalize, num_steps, torch.Generator().manual_seed(0), CPU)


@functools.cache
def collected(
    name: str,
    vectorization: str = "sync",
    mode: AutoresetMode = AutoresetMode.SAME_STEP,
    policy: Any = SURE,
    num_envs: int = NUM_ENVS,
) -> SimpleNamespace:
    """Several rollouts on end, joined; the episodes in them; and what each environment says happened to it."""
    envs = make_vector_env(env_config(name, vectorization=vectorization, num_envs=num_envs), SEED, autoreset=mode)
    try:
        collect = collector(envs)
        parts = [collect.collect(policy) for _ in range(ROLLOUTS)]
        log = envs.env.get_attr("log")
    finally:
        envs.close()
    return SimpleNamespace(
        rollouts=[rollout for rollout, _ in parts],
        all=Rollout(**{name: torch.cat([getattr(rollout, name) for rollout, _ in parts]) for name in TENSORS}),
        episodes=EpisodeStats(*(list(chain(*x)) for x in zip(*(episodes for _, episodes in parts), strict=True))),
        log=log,
    )


def rows_of(rollout: Rollout, i: int) -> list[tuple]:
    """obs, action, reward, terminated and truncated of the rows of environment i that count."""
    return [
        (
            tuple(rollout.obs[t, i].tolist()),
            rollout.action[t, i].item(),
            rollout.reward[t, i].item(),
            rollout.terminated[t, i].item(),
            rollout.truncated[t, i].item(),
        )
        for t in range(len(rollout.obs))
        if rollout.valid[t, i]
    ]


def as_row(told: Transition) -> tuple:
    return (told.obs, told.action, told.reward, told.terminated, told.truncated and not told.terminated)


# --- what happened ---------------------------------------------------------------------------------------------------


def test_the_fixture_cuts_and_ends_episodes_inside_rollouts_and_at_their_last_step():
    run = collected("CopyingCounter")
    assert (run.all.truncated.sum(0) >= 2).all()
    assert (run.all.terminated.sum(0) >= 2).all()
    assert any(rollout.truncated[-1].any() for rollout in run.rollouts)
    assert any((~rollout.truncated & ~rollout.terminated)[-1].any() for rollout in run.rollouts)


@pytest.mark.parametrize(("vectorization", "mode"), HOW, ids=HOW_IDS)
@pytest.mark.parametrize("name", ["CopyingCounter", "Counter"], ids=["copies", "overwrites-in-place"])
@pytest.mark.parametrize("policy", [SURE, RANDOM], ids=["sure", "random"])
def test_rows_that_count_are_what_the_environment_says_happened(name, vectorization, mode, policy):
    run = collected(name, vectorization, mode, policy)
    for i in range(NUM_ENVS):
        assert rows_of(run.all, i) == [as_row(told) for told in run.log[i]]


@pytest.mark.parametrize(("vectorization", "mode"), HOW, ids=HOW_IDS)
def test_every_mode_collects_the_same_transitions(vectorization, mode):
    reference, run = collected("CopyingCounter"), collected("CopyingCounter", vectorization, mode)
    for i in range(NUM_ENVS):
        expected, found = rows_of(reference.all, i), rows_of(run.all, i)
        assert len(found) >= 20
        assert found == expected[: len(found)]


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_rows_that_only_reset_are_not_valid_and_no_other_mode_has_them(mode):
    run = collected("CopyingCounter", mode=mode).all
    ended = run.terminated | run.truncated
    expected = torch.ones_like(run.valid)
    if mode is AutoresetMode.NEXT_STEP:
        expected[1:] = ~ended[
            :-1
        ]  # also where the end is the last row of one rollout, and the reset the next one's first
    assert torch.equal(run.valid, expected)


def test_native_cartpole_marks_the_row_after_each_end_across_rollouts():
    envs = make_vector_env(env_config("CartPole-v1", num_envs=4, vectorization="native"), SEED)
    collect = Collector(envs, CategoricalFamily(2), lambda x: x, 5, torch.Generator().manual_seed(0), CPU)
    policy = small_agent("CartPole-v1").policy
    parts = [collect.collect(policy)[0] for _ in range(30)]
    valid, ended = (torch.cat(x) for x in zip(*((p.valid, p.terminated | p.truncated) for p in parts), strict=True))
    assert any((p.terminated | p.truncated)[-1].any() for p in parts[:-1])
    assert valid[0].all()
    assert torch.equal(valid[1:], ~ended[:-1])


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_no_row_is_both_terminated_and_truncated(mode):
    run = collected("CopyingCounter", mode=mode)
    assert any(told.terminated and told.truncated for of_one_env in run.log for told in of_one_env)
    assert not (run.all.terminated & run.all.truncated).any()


# --- what came next --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vectorization", "mode"), HOW, ids=HOW_IDS)
@pytest.mark.parametrize("name", ["CopyingCounter", "Counter"], ids=["copies", "overwrites-in-place"])
def test_next_value_is_the_value_of_the_true_next_observation_of_that_environment(name, vectorization, mode):
    run = collected(name, vectorization, mode)
    compared = 0
    for i in range(NUM_ENVS):
        found = run.all.next_value[run.all.valid[:, i], i].tolist()
        for value, told in zip(found, run.log[i], strict=True):
            if not told.terminated:  # after which there is nothing whose value could be asked for
                assert value == value_of(torch.tensor(told.next_obs)).item()
                compared += 1
    assert compared >= 40


def test_value_and_parameters_are_the_policys_at_the_normalised_observation():
    run = collected("CopyingCounter").all
    torch.testing.assert_close(run.value, value_of(run.obs), rtol=0, atol=0)
    flat = run.obs.flatten(0, 1)
    torch.testing.assert_close(run.params.flatten(0, 1), ReadablePolicy().actor(normalize(flat)), rtol=0, atol=0)


# --- an environment that overwrites its array in place ---------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_log_probability_and_value_recomputed_from_what_the_environment_really_sent_are_the_stored_ones(mode):
    agent = small_agent("Counter")
    envs = make_vector_env(env_config("Counter"), SEED, autoreset=mode)
    collect = Collector(envs, agent.family, agent.obs_normalizer, 16, torch.Generator().manual_seed(1), CPU)
    rollout, _ = collect.collect(agent.policy)
    for i, told in enumerate(envs.env.get_attr("log")):
        valid = rollout.valid[:, i]
        with torch.no_grad():
            output = agent.policy(torch.tensor([t.obs for t in told]))
            logp = torch.log_softmax(output.params, -1)[range(len(told)), [t.action for t in told]]
        torch.testing.assert_close(rollout.value[valid, i], output.value, rtol=0, atol=1e-6)
        torch.testing.assert_close(rollout.params[valid, i], output.params, rtol=0, atol=1e-6)
        torch.testing.assert_close(rollout.logp[valid, i], logp, rtol=0, atol=1e-6)
    agent.close()


# --- episodes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vectorization", "mode"), HOW, ids=HOW_IDS)
def test_returns_and_lengths_are_the_environments_own_sums(vectorization, mode):
    run = collected("CopyingCounter", vectorization, mode)
    expected = []
    for of_one_env in run.log:
        rewards: list[float] = []
        for told in of_one_env:
            rewards.append(told.reward)
            if told.terminated or told.truncated:
                expected.append((sum(rewards), len(rewards)))
                rewards = []
    assert len(expected) >= 15
    assert sorted(zip(run.episodes.returns, run.episodes.lengths, strict=True)) == sorted(expected)


def test_an_episode_that_spans_five_rollouts_is_counted_once_with_its_whole_return_and_length():
    # 20 steps of reward 1 + ½·step: 20 + ½·(0 + … + 19) = 20 + 95 = 115, in rollouts of 4 steps.
    envs = make_vector_env(env_config("Long"), SEED)
    collect = collector(envs, num_steps=4, n=2)

    class AnyPolicy(RandomPolicy):
        def actor(self, obs: Tensor) -> Tensor:
            return torch.zeros(len(obs), 2)

        def __call__(self, obs: Tensor, *_: Any) -> PolicyOutput:
            return PolicyOutput(self.actor(obs), obs.sum(-1), ())

    seen = [collect.collect(AnyPolicy())[1] for _ in range(10)]
    none, both = EpisodeStats([], []), EpisodeStats([115.0, 115.0], [20, 20])
    assert seen == [none, none, none, none, both] * 2


# --- random streams --------------------------------------------------------------------------------------------------


def test_collecting_draws_from_its_own_stream_alone():
    before = torch.get_rng_state()
    collected.__wrapped__("CopyingCounter", policy=RANDOM)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_actions_differ_between_steps_environments_and_rollouts():
    actions = collected("CopyingCounter", policy=RANDOM).all.action
    assert set(actions.flatten().tolist()) == {0, 1, 2}
    assert not torch.equal(actions[:, 0], actions[:, 1])
    assert not torch.equal(actions[:NUM_STEPS], actions[NUM_STEPS : 2 * NUM_STEPS])


# --- data that is not finite -----------------------------------------------------------------------------------------


def collect_faulty(what: str, value: str, num_steps: int, mode: AutoresetMode = AutoresetMode.SAME_STEP) -> None:
    envs = make_vector_env(env_config(f"Faulty_{what}_{value}"), SEED, autoreset=mode)
    collector(envs, num_steps=num_steps).collect(ReadablePolicy())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("num_steps", [FAULTY_STEP + 1, 12], ids=["last step", "within"])
def test_a_reward_that_is_not_finite_is_refused_naming_value_environment_and_step(value, num_steps):
    pattern = rf"reward of environment {FAULTY_ENV} is {value} at step {FAULTY_STEP} "
    with pytest.raises(EnvDataError, match=pattern):
        collect_faulty("reward", value, num_steps)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_an_observation_that_is_not_finite_is_refused_naming_value_environment_and_step(value):
    # What step 5 answers is what step 6 acts on.
    with pytest.raises(EnvDataError, match=rf"observation\[1\] of environment {FAULTY_ENV} is {value} at step 6 "):
        collect_faulty("obs", value, 12)


def test_a_reward_that_is_finite_but_not_in_float32_is_refused_too():
    # A rollout holds rewards as float32, whose largest number is 3.4e38.
    with pytest.raises(EnvDataError, match=rf"reward of environment {FAULTY_ENV} .*step {FAULTY_STEP} "):
        collect_faulty("reward", "huge", 12)


def test_the_faulty_step_is_inside_an_episode():
    # Environment 1's first episode has 5 steps, so that its sixth step is the first of two of the second episode.
    told = collected("CopyingCounter").log[FAULTY_ENV][FAULTY_STEP]
    assert told.obs == (1.0, 1.0, 0.0)
    assert not told.terminated
    assert not told.truncated


def test_the_last_observation_of_a_rollout_is_refused_naming_its_environment_and_step():
    with pytest.raises(EnvDataError, match=rf"observation\[1\] of environment {FAULTY_ENV} is nan at step 6 "):
        collect_faulty("obs", "nan", FAULTY_STEP + 1)


def test_the_last_observation_of_an_episode_that_was_cut_off_is_refused_naming_its_environment_and_step():
    # Environment 1's first episode is cut off by its fifth step; the environment has reset when the policy acts again.
    assert collected("CopyingCounter").log[1][4].truncated
    with pytest.raises(EnvDataError, match=r"environment 1 .*step [45] "):
        collect_faulty("end", "nan", 12)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_after_an_interrupt_within_a_rollout_new_episodes_begin(vectorization, monkeypatch):
    agent = small_agent("CopyingCounter", env__vectorization=vectorization)
    agent.iterate()
    real, calls = agent.family.to_env, []

    def interrupted(action):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(action)

    with monkeypatch.context() as patch:
        patch.setattr(type(agent.family), "to_env", staticmethod(interrupted))
        with pytest.raises(KeyboardInterrupt):
            agent.iterate()
    rollout, _ = agent._ready_collector().collect(agent.policy)
    agent.close()
    fresh = small_agent("CopyingCounter", env__vectorization=vectorization)
    begun, _ = fresh._ready_collector().collect(fresh.policy)
    fresh.close()
    # A counter says how often it was stepped: at the beginning of an episode, not at all.
    assert torch.equal(rollout.obs[0, :, -1], begun.obs[0, :, -1])


def test_the_returns_of_episodes_that_an_interrupt_gave_up_are_not_those_of_new_ones(monkeypatch):
    agent = small_agent("CopyingCounter", env__normalize_reward=True)
    agent.iterate()
    assert agent.reward_scaler.running.any()

    def interrupted(action):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(agent.family), "to_env", staticmethod(interrupted))
        with pytest.raises(KeyboardInterrupt):
            agent.iterate()
    agent._ready_collector()
    assert not agent.reward_scaler.running.any()


def test_after_a_worker_died_the_agent_goes_on_with_new_ones():
    agent = small_agent(env__vectorization="async")
    agent.iterate()
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(EnvWorkerError, match="SIGKILL"):
        agent.iterate()
    metrics = agent.iterate()
    agent.close()
    assert all(np.isfinite(value) for value in metrics.values())
