"""Environments that are made anew come to stand where others stood, or it is told that they do not."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from short_runs import Everywhere
from toy_envs import MODES, SEED, env_config

from ppo_kl.envs.autoreset import Environments
from ppo_kl.envs.make import make_vector_env
from ppo_kl.envs.snapshot import RunningEpisodes, Snapshot, return_to
from ppo_kl.envs.workers import WorkerVectorEnv
from ppo_kl.errors import EnvDataError, EnvWorkerError
from ppo_kl.observations import each_part, over_parts, stored

N = 2
NAMES = ["Counter", "CartPole-v1", "Pendulum-v1", "Everywhere-v0"]
BOTH = pytest.mark.parametrize("vectorization", ["sync", "async"])


class Drifts(gym.Wrapper):
    """CartPole whose rewards tell how many of its kind were made before, and nothing else does."""

    made = 0

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        Drifts.made += 1
        self.number = Drifts.made

    def step(self, action: Any) -> Any:
        obs, _, *rest = self.env.step(action)
        return (obs, float(self.number), *rest)


class EndsOnce(gym.Wrapper):
    """CartPole that ends at its second step, but for the first two that are made."""

    made = 0

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        EndsOnce.made += 1
        self.ends = EndsOnce.made > N

    def step(self, action: Any) -> Any:
        self.steps = getattr(self, "steps", 0) + 1
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated or (self.ends and self.steps == 2), truncated, info


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Any:
    gym.register("Everywhere-v0", entry_point=Everywhere, disable_env_checker=True)
    for wrapper in (Drifts, EndsOnce):
        gym.register(f"{wrapper.__name__}-v0", entry_point=lambda wrapper=wrapper: wrapper(gym.make("CartPole-v1")))
    yield
    for name in ("Everywhere-v0", "Drifts-v0", "EndsOnce-v0"):
        gym.registry.pop(name)


def made(name: str, vectorization: str = "sync", episodes: Any = None, **how: Any) -> Environments:
    return make_vector_env(env_config(name, vectorization=vectorization), SEED, first_episode=episodes, **how)


def as_sampled(envs: Environments, rng: np.random.Generator) -> torch.Tensor:
    """Actions that `to_env` makes what a Discrete, a Box or the Dict of `Everywhere` takes."""
    return torch.from_numpy(rng.integers(0, 2, envs.num_envs))


def to_env(envs: Environments) -> Any:
    def sent(actions: torch.Tensor) -> Any:
        numbers = actions.numpy()
        if isinstance(envs.action_space, gym.spaces.Dict):
            go = np.repeat(numbers[:, None], 2, 1).astype(np.float32)
            return {"door": numbers + 1, "go": go}
        return numbers[:, None].astype(np.float32) if isinstance(envs.action_space, gym.spaces.Box) else numbers

    return sent


def stepped(envs: Environments, obs: Any, steps: int, rng: np.random.Generator) -> tuple[Any, Snapshot, list[Any]]:
    """Random steps in rollouts of 5; the last observation, where that is, and all that was sent."""
    running, returns, told = RunningEpisodes(envs.num_envs), np.zeros(envs.num_envs), []
    for _ in range(steps // 5):
        actions, begun = [], []
        for _ in range(5):
            actions.append(as_sampled(envs, rng))
            step = envs.step(to_env(envs)(actions[-1]))
            obs, returns = step.obs, np.where(step.begun, 0.0, returns + step.reward)
            begun.append(step.begun)
            told.append([step.reward, step.terminated, *(x for _, x in each_part(step.obs))])
        running.add(torch.stack(actions), np.stack(begun))
    steps_done, kept = torch.from_numpy(running.steps), over_parts(torch.from_numpy, stored(envs.parts, obs))
    return obs, Snapshot(list(running.actions), steps_done, kept, None, torch.from_numpy(returns)), told


@BOTH
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [5, 35])
def test_others_come_to_stand_where_they_stood_and_go_on_alike(name, vectorization, steps):
    first = made(name, vectorization)
    obs, snapshot, _ = stepped(first, first.reset(), steps, np.random.default_rng(steps))
    second = made(name, vectorization, [n - 1 for n in first.episodes_begun])
    again = return_to(second, snapshot, to_env(second))
    for (_, x), (_, y) in zip(each_part(again), each_part(obs), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype
    assert (second.episodes_begun == first.episodes_begun).all()
    later = [stepped(envs, obs, 40, np.random.default_rng(0))[2] for envs in (first, second)]
    for one, other in zip(*later, strict=True):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y)
    first.close()
    second.close()


@BOTH
@pytest.mark.parametrize("name", ["Drifts-v0", "EndsOnce-v0"])
def test_those_that_come_to_stand_somewhere_else_are_named(name, vectorization, monkeypatch):
    monkeypatch.setattr(Drifts, "made", 0)
    monkeypatch.setattr(EndsOnce, "made", 0)
    first = made(name, vectorization)
    _, snapshot, _ = stepped(first, first.reset(), 5, np.random.default_rng(0))
    first.close()
    Drifts.made = EndsOnce.made = N  # processes count for themselves
    second = made(name, vectorization, [n - 1 for n in first.episodes_begun])
    with pytest.raises(EnvDataError, match=r"environment 0 of .* does not stand where it stood, after the same 5 act"):
        return_to(second, snapshot, to_env(second))
    second.close()


@pytest.mark.parametrize("what", ["obs", "returns", "action_mask"])
def test_whatever_differs_is_seen(what):
    first = made("CartPole-v1")
    _, snapshot, _ = stepped(first, first.reset(), 10, np.random.default_rng(0))
    wrong: Any = {
        "obs": snapshot.obs + torch.tensor([[0.0], [1e-7]]),
        "returns": snapshot.returns + torch.tensor([0.0, 1e-9]),
        "action_mask": torch.ones(N, 2, dtype=torch.bool),
    }
    second = made("CartPole-v1", episodes=[n - 1 for n in first.episodes_begun])
    at = 0 if what == "action_mask" else 1  # it sent none at all
    with pytest.raises(EnvDataError, match=f"environment {at} of"):
        return_to(second, snapshot._replace(**{what: wrong[what]}), to_env(second))


@pytest.mark.parametrize("mode", MODES)
def test_only_where_an_end_and_a_beginning_are_one_step_can_they_be_replayed(mode):
    assert made("Counter", autoreset=mode).replayable is (mode is AutoresetMode.SAME_STEP)
    native = made("CartPole-v1", "native")
    assert not native.replayable


def test_no_more_is_kept_than_the_oldest_running_episode_needs():
    running = RunningEpisodes(2)
    begun = np.zeros((4, 2), bool)
    for _ in range(3):
        running.add(torch.zeros(4, 2), begun)
    assert (running.steps.tolist(), len(running.actions)) == ([12, 12], 3)
    begun = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], bool)
    running.add(torch.zeros(4, 2), begun)
    assert (running.steps.tolist(), len(running.actions)) == ([1, 16], 4)
    running.add(torch.zeros(4, 2), begun[:, ::-1])
    assert (running.steps.tolist(), len(running.actions)) == ([5, 1], 2)
    running.add(torch.zeros(4, 2), np.ones((4, 2), bool))
    assert (running.steps.tolist(), running.actions) == ([0, 0], [])


# --- an answer to many actions ---------------------------------------------------------------------------------------


class Slow(gym.Env[np.ndarray, int]):
    """Each step takes a third of a second."""

    observation_space, action_space = gym.spaces.Box(0.0, 1.0, (1,)), gym.spaces.Discrete(2)

    def reset(self, **_: Any) -> Any:
        return np.ones(1, np.float32), {}

    def step(self, action: int) -> Any:
        time.sleep(1 / 3)
        return np.ones(1, np.float32), 1.0, False, False, {}

    def replay(self, actions: Any) -> Any:
        for action in actions:
            self.step(action)
        return np.ones(1, np.float32), float(len(actions)), False, {}


def test_a_replay_may_take_as_long_as_its_steps_may():
    env = WorkerVectorEnv([Slow, Slow], timeout=1.0, name="slow")
    _, returns, _, _ = env.replay([[0, 0, 0, 0], [0]])
    env.close()
    assert returns.tolist() == [4.0, 1.0]


class Asleep:
    """Selectors of a process that was stopped while it waited: the first wait comes back late, with nothing."""

    def __init__(self, real: Any) -> None:
        self.real, self.waits = real, []

    def select(self, timeout: float) -> Any:
        self.waits.append(timeout)
        return [] if len(self.waits) == 1 else self.real.select(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def test_the_time_in_which_the_process_itself_was_stopped_does_not_count_as_a_worker_that_hangs():
    env = WorkerVectorEnv([Slow, Slow], timeout=30.0, name="slow")
    env.reset()
    env._workers._signs = asleep = Asleep(env._workers._signs)
    env.step(np.zeros(2, np.int64))
    env.close()
    assert len(asleep.waits) > 1
    assert max(asleep.waits) <= 1.0


def test_a_worker_that_hangs_is_told_after_the_timeout_however_it_is_cut():
    env = WorkerVectorEnv([Slow, Slow], timeout=0.1, name="slow")
    env.reset()
    with pytest.raises(EnvWorkerError, match=r"no answer from step within env.timeout=0\.1 s"):
        env.step(np.zeros(2, np.int64))
