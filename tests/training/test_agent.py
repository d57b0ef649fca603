"""The agent, end to end: what it learns, that a run repeats bit for bit, and that faults cost it nothing."""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from faulty_envs import agent_in
from forged import forge
from gymnasium.vector import AutoresetMode
from toy_envs import FAULTY_ENV, FAULTY_STEP, SEED, small_agent, without_times

from ppo_kl import checkpoint
from ppo_kl.batch import Rollout
from ppo_kl.config import TrainConfig
from ppo_kl.config.presets import PRESETS
from ppo_kl.envs.make import EVALUATION, episode_seed, make_vector_env
from ppo_kl.errors import CheckpointError, ConfigError, DivergedError, EnvDataError
from ppo_kl.training.agent import Agent, Iteration
from ppo_kl.training.collector import Collector

EVERYTHING_ON = {"env__normalize_obs": True, "env__normalize_reward": True, "training__lr_schedule": "linear"}


@pytest.fixture
def rollouts(monkeypatch) -> list[Rollout]:
    """Every rollout that any agent collects in this test."""
    seen: list[Rollout] = []
    collect = Collector.collect

    def spy(self: Collector, policy: Any) -> Any:
        result = collect(self, policy)
        seen.append(result[0])
        return result

    monkeypatch.setattr(Collector, "collect", spy)
    return seen


@pytest.fixture
def resets_by(monkeypatch) -> Callable[[AutoresetMode], None]:
    """Make agents' environments reset in another mode than their own choice."""

    def choose(mode: AutoresetMode) -> None:
        monkeypatch.setattr("ppo_kl.training.agent.make_vector_env", functools.partial(make_vector_env, autoreset=mode))

    return choose


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two states differ in a single bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list):
        assert len(a) == len(b)
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes() else [where]
    return [] if a == b else [where]


def metrics_of(agent: Agent, iterations: int = 3) -> list[dict[str, float]]:
    return [without_times(agent.iterate()) for _ in range(iterations)]


# --- what the critic learns ------------------------------------------------------------------------------------------

CRITIC_ONLY = {
    "env__num_envs": 4,
    "policy__hidden_sizes": (16,),
    "training__gamma": 0.9,
    "training__gae_lambda": 0.95,
    "training__num_steps": 72,  # whole episodes: 9 of 8 steps, or 8 of 8 steps and a reset
    "training__minibatch_size": 96,
    "training__num_epochs": 8,
    "training__lr": 1e-2,
    "training__max_grad_norm": None,
}
BOTH_MODES = pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP], ids=lambda m: m.name)


def learned_values(name: str, obs: np.ndarray, iterations: int, **overrides: Any) -> list[float]:
    agent = small_agent(name, **CRITIC_ONLY, **overrides)
    for _ in range(iterations):
        agent.iterate()
    with torch.no_grad():
        return agent.policy(torch.from_numpy(obs)).value.tolist()


@BOTH_MODES
def test_the_value_of_an_episode_that_is_only_cut_off_is_that_of_going_on_for_ever(mode, resets_by):
    # Reward 1 in a state that always looks the same, γ = 0.9: V = 1 / (1 − 0.9) = 10.
    resets_by(mode)
    assert learned_values("Truncated", np.ones((1, 1), np.float32), 12) == [pytest.approx(10, rel=0.05)]


@BOTH_MODES
def test_the_value_of_an_episode_that_ends_is_its_finite_sum(mode, resets_by):
    # With 8 − t steps to go: V_t = 1 + 0.9 + … + 0.9^(7 − t) = (1 − 0.9^(8 − t)) / (1 − 0.9), from 5.70 down to 1.
    resets_by(mode)
    expected = [(1 - 0.9 ** (8 - t)) / (1 - 0.9) for t in range(8)]
    assert learned_values("Terminated", np.eye(8, 9, dtype=np.float32), 12) == pytest.approx(expected, rel=0.05)


def test_the_critic_learns_the_rewards_that_offset_and_scale_make():
    # (1 − 3) · ½ = −1 each step: the finite sums from above, negative.
    expected = [-(1 - 0.9 ** (8 - t)) / (1 - 0.9) for t in range(8)]
    scaled = {"env__reward_offset": -3.0, "env__reward_scale": 0.5}
    values = learned_values("Terminated", np.eye(8, 9, dtype=np.float32), 12, **scaled)
    assert values == pytest.approx(expected, rel=0.05)


# --- what the actor learns -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", PRESETS)
def test_the_policy_comes_to_prefer_what_is_rewarded(objective):
    agent = small_agent("Bandit", objective, training__lr=0.03, training__num_steps=32, training__minibatch_size=32)
    before, *_, after = (agent.iterate()["rollout/return_mean"] for _ in range(10))
    assert before < 0.6
    assert after > 0.75
    assert agent.act(np.ones(1)) == 2


# --- one iteration ---------------------------------------------------------------------------------------------------


def test_the_first_rollout_is_the_same_bit_for_bit_whatever_the_objective(rollouts):
    for objective in PRESETS:
        small_agent("CartPole-v1", objective).iterate()
    assert len(rollouts) == len(PRESETS)
    rollouts = [{k: x for k, x in rollout._asdict().items() if isinstance(x, torch.Tensor)} for rollout in rollouts]
    for rollout in rollouts[1:]:
        assert rollout.keys() == rollouts[0].keys()
        for name, first in rollouts[0].items():
            assert torch.equal(first, rollout[name]), name


def test_the_second_rollout_is_not_for_the_objective_made_a_difference(rollouts):
    for objective in ("clip", "kl_fixed"):
        metrics_of(small_agent("CartPole-v1", objective, training__lr=0.05), 2)
    _, clip, _, kl_fixed = rollouts
    assert not torch.equal(clip.params, kl_fixed.params)


def exact_kl(logits_old: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL of each row between two categoricals, in float64."""
    log_p, log_q = (x.double().log_softmax(-1) for x in (logits_old, logits))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize(("num_epochs", "minibatch_size"), [(1, 1000), (2, 8), (3, 5)])
@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_the_controller_is_called_once_an_iteration_with_the_exact_kl_of_the_whole_rollout_after_the_update(
    num_epochs, minibatch_size, vectorization, rollouts, monkeypatch
):
    agent = small_agent(
        "CartPole-v1",
        "kl_adaptive",
        env__vectorization=vectorization,
        env__normalize_obs=True,
        training__num_steps=40,
        training__num_epochs=num_epochs,
        training__minibatch_size=minibatch_size,
        training__lr=2e-2,
    )
    given: list[float] = []
    expected: list[float] = []
    adapt = agent.objective.adapt_

    def spy(kl: torch.Tensor, **settings: Any) -> None:
        rollout = rollouts[-1]
        with torch.no_grad():
            new = agent.policy(agent.obs_normalizer(rollout.obs[rollout.valid])).params
        given.append(kl.item())
        expected.append(exact_kl(rollout.params[rollout.valid], new).mean().item())
        adapt(kl, **settings)

    monkeypatch.setattr(agent.objective, "adapt_", spy)
    metrics = metrics_of(agent, 3)
    assert len(given) == 3
    assert min(expected) > 1e-5
    assert given == pytest.approx(expected, rel=1e-3, abs=1e-8)
    assert [m["kl/controlled"] for m in metrics] == given


def test_the_lambda_in_the_metrics_is_the_one_the_update_used():
    agent = small_agent("CartPole-v1", "kl_adaptive")
    used = []
    for _ in range(3):
        used.append((agent.objective.kl_lambda.item(), agent.iterate()["penalty/lambda"]))
    assert all(before == logged for before, logged in used)
    assert len({before for before, _ in used}) > 1


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Counter"])
@pytest.mark.parametrize("normalize_obs", [False, True])
def test_before_the_update_the_policy_is_the_one_that_acted(name, normalize_obs):
    agent = small_agent(name, env__normalize_obs=normalize_obs, training__lr=1e-2)
    for metrics in metrics_of(agent, 4):
        assert abs(metrics["kl/before_update"]) < 1e-9
        assert metrics["kl/forward"] > 1e-6


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_the_observation_normaliser_takes_in_real_transitions_alone(vectorization, rollouts):
    agent = small_agent("CartPole-v1", env__vectorization=vectorization, env__normalize_obs=True)
    metrics_of(agent, 8)
    real = torch.cat([rollout.obs[rollout.valid] for rollout in rollouts]).double().numpy()
    dummies = sum((~rollout.valid).sum().item() for rollout in rollouts)
    assert (dummies > 0) == (vectorization == "native")
    moments = agent.obs_normalizer.vectors["0"].moments
    assert moments.count.item() == agent.steps == len(real) == 8 * 32 - dummies
    np.testing.assert_allclose(moments.mean.numpy(), real.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(moments.var.numpy(), real.var(0), rtol=1e-9)


def test_the_reward_normaliser_takes_in_real_transitions_alone():
    agent = small_agent("CartPole-v1", env__vectorization="native", env__normalize_reward=True)
    metrics_of(agent, 8)
    assert agent.reward_scaler.moments.count.item() == agent.steps < 8 * 32


def test_where_environments_begin_anew_so_does_the_discounted_return_that_scales_rewards():
    # toy/Long pays 1, 1.5, 2, 2.5, …; with γ = ½ the return after 4 steps is 2.5 + 1 + 0.375 + 0.125 = 4.
    agent = small_agent("Long", env__normalize_reward=True, training__num_steps=4, training__gamma=0.5)
    agent.iterate()
    assert agent.reward_scaler.running.tolist() == [4.0, 4.0]
    agent._collector.envs.close()  # as an error would
    agent.iterate()
    assert agent.reward_scaler.running.tolist() == [4.0, 4.0]


def test_logged_returns_are_the_environments_own_whatever_the_learner_sees():
    # toy/Long: 20 steps of reward 1 + step / 2, in all 20 + 95 = 115; four episodes in 40 steps of two environments.
    scaled = {"env__normalize_reward": True, "env__reward_offset": -3.0, "env__reward_scale": 0.1}
    agent = small_agent("Long", training__num_steps=40, **scaled)
    first, second = metrics_of(agent, 2)
    assert agent.reward_scaler.moments.var.item() != 1
    for metrics in (first, second):
        assert metrics["rollout/return_mean"] == metrics["rollout/return_last100"] == 115
        assert (metrics["rollout/length_mean"], metrics["rollout/episodes"]) == (20, 4)


def test_an_episode_that_spans_five_rollouts_is_logged_when_it_ends():
    metrics = metrics_of(small_agent("Long", training__num_steps=4), 10)
    for i, of_one_iteration in enumerate(metrics, start=1):
        ended = i % 5 == 0
        assert of_one_iteration["rollout/episodes"] == (2 if ended else 0)
        assert ("rollout/return_mean" in of_one_iteration) == ended
        assert of_one_iteration.get("rollout/return_mean", 115) == 115
        assert of_one_iteration.get("rollout/length_mean", 20) == 20
        assert ("rollout/return_last100" in of_one_iteration) == (i >= 5)


def test_episodes_of_one_step_are_all_counted():
    for metrics in metrics_of(small_agent("OneStep"), 3):
        assert metrics["rollout/episodes"] == 2 * 16
        assert metrics["rollout/length_mean"] == metrics["rollout/return_mean"] == 1
        assert all(map(math.isfinite, metrics.values()))


def test_where_no_episode_ends_returns_are_absent():
    for metrics in metrics_of(small_agent("Endless"), 3):
        assert metrics["rollout/episodes"] == 0
        assert not {"rollout/return_mean", "rollout/return_last100", "rollout/length_mean"} & metrics.keys()
        assert all(map(math.isfinite, metrics.values()))


def test_a_rollout_in_which_nothing_but_a_reset_happens_is_survived():
    # One native environment, one step a rollout: after each end, the only row does not count, and the next is taken.
    agent = small_agent("CartPole-v1", env__vectorization="native", env__num_envs=1, training__num_steps=1)
    metrics = metrics_of(agent, 60)
    assert sum(m["rollout/episodes"] for m in metrics) >= 1
    assert agent.steps == agent.iterations == 60


# --- the same seed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_the_same_seed_gives_the_same_run_bit_for_bit(name):
    first, second = (small_agent(name, **EVERYTHING_ON) for _ in range(2))
    assert metrics_of(first) == metrics_of(second)
    assert not differences(first.state_dict(), second.state_dict())


def test_another_seed_gives_another_run():
    first, second = (small_agent(seed=seed) for seed in (0, 1))
    assert differences(first.state_dict()["learner"], second.state_dict()["learner"])
    for a, b in zip(metrics_of(first), metrics_of(second), strict=True):
        assert a["kl/forward"] != b["kl/forward"]


def test_sync_and_async_environments_give_the_same_run_bit_for_bit():
    sync, asynchronous = (small_agent(env__vectorization=v, **EVERYTHING_ON) for v in ("sync", "async"))
    try:
        assert metrics_of(sync) == metrics_of(asynchronous)
        a, b = sync.state_dict(), asynchronous.state_dict()
        assert a.pop("config") != b.pop("config")
        assert not differences(a, b)
    finally:
        asynchronous.close()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_run_bit_for_bit(workers):
    alone, shared = (small_agent(env__num_envs=4, runtime__workers=n, **EVERYTHING_ON) for n in (0, workers))
    try:
        assert metrics_of(alone) == metrics_of(shared)
        a, b = alone.state_dict(), shared.state_dict()
        assert a.pop("config") != b.pop("config")
        assert not differences(a, b)
    finally:
        shared.close()


def test_an_agent_made_by_hand_steps_all_environments_itself_unless_it_is_told_otherwise():
    agent = small_agent(runtime__workers="auto")
    agent.learn(1)
    assert not multiprocessing.active_children()
    agent = small_agent(runtime__workers=1)
    assert len(multiprocessing.active_children()) == 1
    agent.evaluate(2)
    agent.close()
    assert not multiprocessing.active_children()


def test_no_two_random_streams_of_a_run_are_the_same(monkeypatch):
    seeds: list[int] = [episode_seed(SEED, i, k) for i in (0, 1, EVALUATION) for k in range(10)]
    seed = torch.Generator.manual_seed

    class Spy(torch.Generator):
        def manual_seed(self, number: int) -> torch.Generator:
            seeds.append(number)
            return seed(self, number)

    monkeypatch.setattr(torch, "Generator", Spy)
    small_agent().evaluate(1, deterministic=False)
    assert len(seeds) == 30 + 4  # initialisation, actions, minibatches, evaluation
    assert len(set(seeds)) == len(seeds)


def test_the_users_random_state_neither_matters_nor_moves():
    torch.manual_seed(1)
    np.random.seed(1)
    first = metrics_of(small_agent())
    torch.manual_seed(2)
    np.random.seed(2)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert metrics_of(small_agent()) == first
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_evaluating_acting_and_saving_in_between_change_nothing(tmp_path):
    alone, looked_at = small_agent(**EVERYTHING_ON), small_agent(**EVERYTHING_ON)
    for i in range(3):
        assert without_times(alone.iterate()) == without_times(looked_at.iterate())
        looked_at.evaluate(2)
        looked_at.evaluate(2, deterministic=False)
        looked_at.act(np.zeros(4))
        looked_at.act(np.zeros((3, 4)), deterministic=False)
        looked_at.save(tmp_path / f"{i}.pt")
    assert not differences(alone.state_dict(), looked_at.state_dict())


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluating_leaves_lambda_normalisers_and_every_random_stream_alone(deterministic):
    agent = small_agent(**EVERYTHING_ON)
    agent.iterate()
    before, random = agent.state_dict(), torch.get_rng_state()
    agent.evaluate(3, deterministic=deterministic)
    assert not differences(before, agent.state_dict())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluating_twice_answers_the_same(deterministic):
    agent = small_agent()
    assert agent.evaluate(4, deterministic=deterministic) == agent.evaluate(4, deterministic=deterministic)


def test_evaluation_does_not_see_the_episodes_of_training(monkeypatch):
    agent, seen = small_agent(), []
    act = agent._act
    monkeypatch.setattr(agent, "_act", lambda obs, *how: seen.append(obs) or act(obs, *how))
    agent.evaluate(2)
    begun = make_vector_env(agent.config.env, agent.config.seed).reset()
    assert not set(map(tuple, seen[0].tolist())) & set(map(tuple, begun.tolist()))


def test_pythons_hash_seed_does_not_matter():
    program = (
        "import torch; torch.set_num_threads(1)\n"
        "from toy_envs import small_agent, without_times\n"
        "agent = small_agent(env__normalize_obs=True)\n"
        "print([sorted(without_times(agent.iterate()).items()) for _ in range(2)])"
    )
    here = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    agent = small_agent(env__normalize_obs=True)
    assert done.stdout.strip() == str([sorted(m.items()) for m in metrics_of(agent, 2)])


# --- making one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "beside", [{"objective": "clip"}, {"seed": 1}, {"overrides": {"training.gamma": 0.9}}], ids=lambda x: next(iter(x))
)
def test_a_whole_configuration_leaves_no_room_for_other_settings(beside):
    with pytest.raises(ConfigError, match="TrainConfig"):
        Agent(TrainConfig(), **beside)


def test_a_whole_configuration_is_used_as_it_is():
    config = small_agent("Counter", "clip").config
    assert Agent(config).config == config


def test_settings_beside_a_name_are_in_the_configuration():
    config = Agent("CartPole-v1", "kl_clip", seed=3, overrides={"training.gamma": 0.5, "env.num_envs": 1}).config
    assert (config.seed, config.training.gamma, config.env.num_envs) == (3, 0.5, 1)
    assert config.objective == PRESETS["kl_clip"]


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"env": "NoSuchThing-v0"}, "NoSuchThing-v0"),
        ({"objective": "clipp"}, "clipp"),
        ({"overrides": {"training.gama": 0.9}}, "training.gama"),
        ({"overrides": {"training.gamma": 1.5}}, "1.5"),
        ({"overrides": {"runtime.device": "cuda:99"}}, "cuda:99"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name_or_value(how, named):
    with pytest.raises(ConfigError, match=named):
        Agent(**how)


# --- acting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_an_action_is_one_the_environment_takes(name, deterministic):
    agent = small_agent(name)
    env = gym.make(name)
    obs, _ = env.reset(seed=0)
    for _ in range(20):
        action = agent.act(obs, deterministic=deterministic)
        assert env.action_space.contains(action)
        obs, _, terminated, *_ = env.step(action)
        if terminated:
            obs, _ = env.reset()
    env.close()


@pytest.mark.parametrize(("name", "obs_size", "shape"), [("CartPole-v1", 4, ()), ("Pendulum-v1", 3, (1,))])
def test_a_batch_of_observations_gives_a_batch_of_the_same_actions(name, obs_size, shape):
    agent = small_agent(name)
    obs = np.random.default_rng(0).normal(size=(6, obs_size)).astype(np.float32)
    actions = agent.act(obs)
    assert actions.shape == (6, *shape)
    np.testing.assert_allclose(actions, [agent.act(x) for x in obs], rtol=1e-5)


def test_the_deterministic_action_is_the_most_likely_one():
    agent = small_agent()
    obs = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    with torch.no_grad():
        likely = agent.policy(torch.from_numpy(obs)).params.argmax(-1)
    assert set(likely.tolist()) == {0, 1}
    np.testing.assert_array_equal(agent.act(obs), likely.numpy())


def test_sampled_actions_vary_and_repeat_with_their_generator():
    agent = small_agent()
    obs = np.zeros((100, 4), np.float32)

    def sample(seed: int) -> list[int]:
        return agent.act(obs, deterministic=False, generator=torch.Generator().manual_seed(seed)).tolist()

    assert set(sample(0)) == {0, 1}
    assert sample(0) == sample(0)
    assert sample(0) != sample(1)


def test_sampled_actions_without_a_generator_follow_torchs_own_seed():
    agent = small_agent()
    obs = np.zeros((100, 4), np.float32)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(agent.act(obs, deterministic=False).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_observation_is_normalised_as_in_training():
    agent = small_agent("Pendulum-v1", env__normalize_obs=True)
    metrics_of(agent, 2)
    mean, var = (
        agent.obs_normalizer.vectors["0"].moments.mean.numpy(),
        agent.obs_normalizer.vectors["0"].moments.var.numpy(),
    )
    normalised = np.array([[1.0, -0.5, 2.0]])
    with torch.no_grad():
        params = agent.policy(torch.from_numpy(normalised).float()).params
    np.testing.assert_allclose(agent.act(mean + np.sqrt(var) * normalised[0]), params[0, :1].numpy(), rtol=1e-4)


@pytest.mark.parametrize("like", [lambda x: x.tolist(), lambda x: x.astype(np.float64), lambda x: torch.from_numpy(x)])
def test_an_observation_may_be_a_list_of_float64_or_a_tensor(like):
    agent = small_agent("Pendulum-v1")
    obs = np.array([0.5, -0.5, 4.0], np.float32)
    np.testing.assert_allclose(agent.act(like(obs)), agent.act(obs), rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (5,), (2, 3), (1, 2, 4), (4, 1)])
def test_an_observation_of_another_shape_is_refused_with_both_shapes(shape):
    with pytest.raises(ValueError, match=r"\(4,\)") as error:
        small_agent().act(np.zeros(shape))
    assert str(shape) in str(error.value)


# --- learning --------------------------------------------------------------------------------------------------------


class Notes:
    """A callback that remembers, and ends the training after `last` iterations."""

    def __init__(self, last: int | None = None) -> None:
        self.last, self.states = last, []

    def on_iteration(self, state: Iteration) -> bool:
        self.states.append(state)
        return state.number != self.last


@pytest.mark.parametrize(("wanted", "done"), [(1, 32), (32, 32), (33, 64), (90, 96)])
def test_learning_rounds_up_to_whole_rollouts(wanted, done):
    assert small_agent().learn(wanted).steps == done


def test_learning_again_goes_on():
    agent = small_agent().learn(32).learn(40)
    assert (agent.steps, agent.iterations) == (96, 3)


def test_steps_are_real_transitions():
    agent = small_agent(env__vectorization="native").learn(300)
    assert 300 <= agent.steps < agent.iterations * 32


def test_callbacks_see_every_iteration():
    notes = Notes()
    agent = small_agent()
    agent.learn(96, [notes])
    assert [(s.number, s.steps, s.total_steps) for s in notes.states] == [(1, 32, 96), (2, 64, 96), (3, 96, 96)]
    assert all(s.agent is agent and "kl/forward" in s.metrics for s in notes.states)


def test_a_callback_ends_the_training_and_the_others_are_still_asked():
    first, second = Notes(last=2), Notes()
    assert small_agent().learn(1000, [first, second]).iterations == 2
    assert len(first.states) == len(second.states) == 2


def test_a_callback_that_answers_nothing_ends_nothing():
    class Silent:
        def on_iteration(self, state: Iteration) -> None:
            pass

    assert small_agent().learn(96, [Silent()]).iterations == 3


def test_a_linear_learning_rate_falls_with_the_share_of_training_done():
    # 96 steps in 3 rollouts: 0, 1/3 and 2/3 are done when an update begins.
    notes = Notes()
    agent = small_agent(training__lr=0.03, training__lr_schedule="linear").learn(96, [notes])
    assert [s.metrics["optim/lr"] for s in notes.states] == pytest.approx([0.03, 0.02, 0.01])
    agent.learn(64, [notes])  # schedules are those of this call
    assert [s.metrics["optim/lr"] for s in notes.states[3:]] == pytest.approx([0.03, 0.015])


# --- saving and loading ----------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path) -> tuple[Agent, Path]:
    """An agent whose every number has moved, and its checkpoint."""
    agent = small_agent("CartPole-v1", "kl_adaptive", **EVERYTHING_ON)
    metrics_of(agent, 4)
    agent.save(tmp_path / "agent.pt")
    return agent, tmp_path / "agent.pt"


def test_everything_that_training_goes_on_from_is_loaded_bit_for_bit(saved):
    agent, path = saved
    loaded = Agent.load(path)
    state = agent.state_dict()
    assert not differences(state, loaded.state_dict())
    for moments in (state["learner"]["exp_avg"], state["learner"]["exp_avg_sq"]):
        assert all(x.any() for x in moments.values())
    assert state["obs_normalizer"]["vectors.0.moments.count"] == 128
    assert state["reward_scaler"]["moments.var"] != 1
    assert (loaded.steps, loaded.iterations) == (128, 4)


def test_lambda_is_loaded_bit_for_bit(saved):
    agent, path = saved
    assert agent.objective.kl_lambda != agent.config.objective.controller.kl_lambda
    assert torch.equal(Agent.load(path).objective.kl_lambda, agent.objective.kl_lambda)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_a_loaded_agent_acts_bit_for_bit_as_before(name, deterministic, tmp_path):
    agent = small_agent(name, env__normalize_obs=True)
    metrics_of(agent, 2)
    agent.save(tmp_path / "agent.pt")
    obs = np.random.default_rng(0).normal(size=(200, *agent.parts[0].shape))
    actions = [
        a.act(obs, deterministic=deterministic, generator=torch.Generator().manual_seed(0))
        for a in (agent, Agent.load(tmp_path / "agent.pt"))
    ]
    assert len(np.unique(actions[0])) > 1
    np.testing.assert_array_equal(*actions)


def test_a_loaded_agent_evaluates_as_before(saved):
    agent, path = saved
    assert Agent.load(path).evaluate(3) == agent.evaluate(3)


def test_a_loaded_agent_learns_on_and_repeats_it_bit_for_bit(saved):
    _, path = saved
    first, second = Agent.load(path), Agent.load(path)
    assert metrics_of(first) == metrics_of(second)
    assert (first.steps, first.iterations) == (224, 7)
    assert not differences(first.state_dict(), second.state_dict())


def test_a_loaded_agent_goes_on_with_the_episodes_that_were_running(tmp_path, rollouts):
    agent = small_agent("Counter")
    metrics_of(agent, 2)
    agent.save(tmp_path / "agent.pt")
    rollouts.clear()
    agent.iterate()
    Agent.load(tmp_path / "agent.pt").iterate()
    for one, other in zip(*rollouts, strict=True):
        assert (one is None and other is None) or torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_a_closed_agent_learns_on_where_it_stood(rollouts):
    agent, other = small_agent("Counter"), small_agent("Counter")
    agent.iterate()
    agent.close()
    agent.iterate()
    other.iterate()
    other.iterate()
    _, second, _, unclosed = (rollout.obs for rollout in rollouts)
    assert torch.equal(second, unclosed)


def test_an_agent_whose_environments_an_error_closed_learns_on_in_new_episodes(rollouts):
    agent = small_agent("Counter")
    agent.iterate()
    agent._collector.envs.close()
    agent.iterate()
    (first, second) = (rollout.obs[..., 1] for rollout in rollouts)
    assert (second[0] == first[-1] + 1).all()


def test_a_run_folder_means_its_newest_checkpoint(saved, tmp_path):
    agent, path = saved
    (tmp_path / "checkpoints").mkdir()
    path.rename(checkpoint.path_at(tmp_path / "checkpoints", 64))
    agent.iterate()
    agent.save(checkpoint.path_at(tmp_path / "checkpoints", 160))
    assert Agent.load(tmp_path).steps == 160


def test_a_checkpoint_can_be_loaded_to_another_device_than_it_was_made_for(saved):
    _, path = saved
    assert Agent.load(path, device="cpu").device.type == "cpu"
    with pytest.raises(ConfigError, match="cuda:99"):
        Agent.load(path, device="cuda:99")


def test_a_truncated_file_is_refused(saved):
    _, path = saved
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="damaged"):
        Agent.load(path)


def test_code_in_a_checkpoint_is_not_run(saved, tmp_path):
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    agent, path = saved
    forge(path, {"format": checkpoint.FORMAT_VERSION, **agent.state_dict(), "last100": Payload()})
    with pytest.raises(CheckpointError, match=str(path)):
        Agent.load(path)
    assert not (tmp_path / "executed").exists()


def test_parameters_that_are_not_finite_are_not_saved_over_a_checkpoint(saved):
    agent, path = saved
    before = path.read_bytes()
    with torch.no_grad():
        next(agent.policy.actor.parameters()).view(-1)[3] = math.nan
    with pytest.raises(CheckpointError, match=r"actor\..* not finite"):
        agent.save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_another_agents_spaces_are_refused_naming_both():
    cartpole, pendulum = small_agent("CartPole-v1"), small_agent("Pendulum-v1")
    before = cartpole.state_dict()
    with pytest.raises(CheckpointError, match=r"categorical.*gaussian"):
        cartpole.load_state_dict(pendulum.state_dict())
    assert not differences(before, cartpole.state_dict())


@pytest.mark.parametrize(
    "other",
    [
        {"policy__hidden_sizes": (4, 4)},
        {"env__normalize_obs": True},
        {"env__normalize_reward": True},
        {"env__num_envs": 3},
        {"objective__controller__kl_target": 0.02},
    ],
    ids=lambda x: next(iter(x)),
)
def test_a_state_that_does_not_fit_is_refused_and_not_half_loaded(other):
    agent, different = small_agent(), small_agent(seed=1, **other)
    metrics_of(different, 2)
    before = agent.state_dict()
    with pytest.raises(CheckpointError):
        agent.load_state_dict(different.state_dict())
    assert not differences(before, agent.state_dict())


@pytest.mark.parametrize("key", ["config", "spaces", "learner", "objective", "obs_normalizer", "action_generator"])
def test_a_checkpoint_in_which_something_is_missing_is_refused_by_its_name(saved, key):
    agent, path = saved
    state = agent.state_dict()
    del state[key]
    forge(path, {"format": checkpoint.FORMAT_VERSION, **state})
    with pytest.raises(CheckpointError, match=key):
        Agent.load(path)


def test_learning_on_where_the_environment_has_become_another_is_refused_naming_both_spaces(saved):
    agent, path = saved
    state = agent.state_dict()
    state["config"] = state["config"].replace("CartPole-v1", "Pendulum-v1")
    checkpoint.save(path, state)
    with pytest.raises(CheckpointError, match=r"Pendulum-v1.*Box.*categorical"):
        Agent.load(path).iterate()


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("what", ["reward", "obs"])
@pytest.mark.parametrize("normalizes", [False, True])
def test_data_that_is_not_finite_ends_learning_naming_environment_and_step_and_changes_nothing(what, value, normalizes):
    # Rollouts of 4 steps: the fault at the sixth comes in the second, as its step 1; step 2 acts on what it answered.
    how = {"env__normalize_obs": normalizes, "env__normalize_reward": normalizes}
    agent = small_agent(f"Faulty_{what}_{value}", training__num_steps=4, **how)
    agent.iterate()
    before = agent.state_dict()
    assert FAULTY_STEP == 5
    with pytest.raises(EnvDataError, match=rf"environment {FAULTY_ENV} is .*{value}.* step [12] "):
        agent.iterate()
    after = agent.state_dict()
    assert after.pop("envs") is None  # whoever goes on begins new episodes
    del before["envs"]
    assert differences(before, after) == ["/action_generator"]


def test_a_loss_that_stays_nan_ends_learning_with_weights_and_optimiser_as_before(monkeypatch):
    # 32 samples in minibatches of 8, twice over: 8 gradient steps an iteration, so that 10 in a row take two.
    agent = small_agent(training__max_skipped_steps=10)
    agent.iterate()
    before = agent.state_dict()
    loss = agent.objective.loss
    monkeypatch.setattr(agent.objective, "loss", lambda **tensors: loss(**tensors) * math.nan)
    assert agent.iterate()["optim/skipped"] == 8
    with pytest.raises(DivergedError, match=r"16 gradient steps.*max_skipped_steps=10"):
        agent.iterate()
    after = agent.state_dict()
    assert set(differences(before["learner"], after["learner"])) == {"/skipped_in_a_row", "/generator"}


def test_skipped_steps_are_counted_in_a_row(monkeypatch):
    agent = small_agent(training__max_skipped_steps=10)
    loss = agent.objective.loss
    factor = itertools.cycle([math.nan, 1.0])
    monkeypatch.setattr(agent.objective, "loss", lambda **tensors: loss(**tensors) * next(factor))
    skipped = [agent.iterate()["optim/skipped"] for _ in range(4)]
    assert sum(skipped) == 16


# --- the controller at work ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_adaptive_penalty_holds_the_kl_near_its_target_on_cartpole(seed):
    agent = Agent("CartPole-v1", "kl_adaptive", seed=seed, overrides={"training.lr_schedule": "constant"})
    ratios = [agent.iterate()["kl/target_ratio"] for _ in range(50)]
    assert 0.5 <= statistics.median(ratios) <= 2


def test_random_streams_are_drawn_on_the_cpu_so_that_a_seed_means_the_same_on_every_device():
    agent = small_agent()
    assert agent._action_generator.device.type == "cpu"
    assert agent.learner.generator.device.type == "cpu"
    params = torch.zeros(3, 2, device="meta")
    assert agent.family.sample(params, torch.Generator()).device.type == "meta"


def test_learning_again_begins_the_schedules_again():
    agent = small_agent(training__lr_schedule="linear")
    rates = []

    class Note:
        def on_iteration(self, state):
            rates.append(state.metrics["optim/lr"])

    per_iteration = agent.config.env.num_envs * agent.config.training.num_steps
    agent.learn(2 * per_iteration, [Note()])
    agent.learn(2 * per_iteration, [Note()])
    lr = agent.config.training.lr
    assert rates == pytest.approx([lr, lr / 2, lr, lr / 2])


@pytest.mark.parametrize("episodes", [0, -1])
def test_evaluating_less_than_one_episode_is_refused(episodes):
    with pytest.raises(ConfigError, match="episodes"):
        small_agent().evaluate(episodes)


def test_a_state_of_another_objective_is_refused_naming_both():
    with pytest.raises(CheckpointError, match=r"Adaptive.*Clip|Clip.*Adaptive"):
        small_agent(objective="clip").load_state_dict(small_agent().state_dict())


@pytest.mark.parametrize(
    "mask", [[1, 1, 0, 0, 0], [1, 1, 1], ([1, 1], [0, 0, 1])], ids=["a choice without", "short", "tuple"]
)
def test_acting_refuses_a_mask_that_does_not_leave_something_of_every_choice(mask):
    agent = agent_in("Choices")
    with pytest.raises(ValueError, match=r"expected shape \(1, 5\), choices of \(2, 3\) actions side by side"):
        agent.act(np.zeros(2, np.float32), action_mask=mask)
    assert agent.act(np.zeros(2, np.float32), action_mask=[0, 1, 0, 0, 1]).tolist() == [1, 2]
    agent.close()
