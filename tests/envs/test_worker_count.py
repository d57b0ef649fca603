"""Worker processes are begun unasked only where they clearly pay, and finding that out leaves no trace."""

from __future__ import annotations

import multiprocessing
import time
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from ppo_kl.config import EnvConfig
from ppo_kl.envs import worker_count
from ppo_kl.envs.worker_count import Cost, best, choose_workers, measured, seconds_of

ID = "count/Takes-v0"


class Takes(gym.Env[np.ndarray, int]):
    """Steps that take some time; it counts how many of its kind were made, and draws from NumPy's global stream."""

    observation_space, action_space = spaces.Box(0.0, 1.0, (1,)), spaces.Discrete(2)
    made: ClassVar[int] = 0

    def __init__(
        self, seconds: float = 0.0, begins: float = 0.0, fails: bool = False, resets: float | None = None
    ) -> None:
        Takes.made += 1
        time.sleep(begins)
        self.seconds, self.fails, self.resets = seconds, fails, resets

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        np.random.random()
        time.sleep(self.resets or 0.0)
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> Any:
        if self.fails:
            raise ValueError("not by chance")
        time.sleep(self.seconds)
        return np.zeros(1, np.float32), 0.0, self.resets is not None, False, {}


@pytest.fixture(autouse=True)
def _with_two_cores(monkeypatch):
    gym.register(ID, entry_point=Takes, disable_env_checker=True)
    monkeypatch.setattr(worker_count, "cores_allowed", lambda: 2)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "fork")
    yield
    gym.registry.pop(ID)
    assert not multiprocessing.active_children()


def takes(num_envs: int = 4, vectorization: str = "sync", **kwargs: Any) -> EnvConfig:
    return EnvConfig(ID, kwargs, num_envs=num_envs, vectorization=vectorization)


# --- the sum ----------------------------------------------------------------------------------------------------------


def test_a_step_takes_as_long_as_the_largest_share_and_the_round_trips():
    cost = Cost(step=30.0, round_trip=50.0)
    assert seconds_of(cost, 16, 0) == 480  # 16 · 30
    assert seconds_of(cost, 16, 1) == 290  # 8 · 30 + 50
    assert seconds_of(cost, 16, 2) == 280  # 6 · 30 + 100
    assert seconds_of(cost, 16, 3) == 270  # 4 · 30 + 150


@pytest.mark.parametrize(
    ("step", "num_envs", "cores", "workers"),
    [
        (30.0, 16, 2, 1),  # 480 -> 290
        (30.0, 16, 16, 3),  # 270, and 290 with four
        (10.0, 8, 2, 0),  # 80 -> 90
        (30.0, 4, 2, 0),  # 120 -> 110, which is not clear
        (1000.0, 4, 16, 3),  # no more than there are environments
        (1000.0, 16, 1, 0),
        (0.0, 16, 16, 0),
    ],
)
def test_the_best_number_clearly_takes_less_than_none(step, num_envs, cores, workers):
    assert best(Cost(step, round_trip=50.0), num_envs, cores) == workers


# --- what is measured -------------------------------------------------------------------------------------------------


def test_dear_steps_are_shared_out_and_the_reason_has_the_numbers():
    workers, why = choose_workers(takes(seconds=0.02), 0)
    assert workers == 1
    assert "a step of 4 copies takes" in why
    assert why.endswith("with 1 more; 2 cores")


def test_a_step_is_measured_where_it_is_made():
    cost = measured(takes(seconds=0.05), 0)
    assert 0.05 <= cost.step < 0.5
    assert cost.round_trip < 0.5


def test_a_reset_that_follows_a_step_is_part_of_what_is_shared_out():
    cost = measured(takes(resets=0.05), 0)
    assert 0.05 <= cost.step < 0.5
    assert cost.round_trip < 0.05


def test_an_environment_that_is_slow_to_begin_is_measured_all_the_same(monkeypatch):
    monkeypatch.setattr(worker_count, "PATIENCE", 0.3)
    assert choose_workers(takes(seconds=0.02, begins=0.6), 0).workers == 1


class Masked(Takes):
    """Takes but one action, which changes, and says so."""

    def __init__(self, heads: int) -> None:
        super().__init__(0.02)
        self.action_space = spaces.Discrete(2) if heads == 1 else spaces.MultiDiscrete([2] * heads)
        self.heads, self.open = heads, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset()[0], {"action_mask": self.mask()}

    def mask(self) -> Any:
        self.open = 1 - self.open
        mask = np.arange(2) == self.open
        return mask if self.heads == 1 else (mask,) * self.heads

    def step(self, action: Any) -> Any:
        if (np.asarray(action) != self.open).any():
            raise ValueError("illegal move")
        return *super().step(action)[:-1], {"action_mask": self.mask()}


@pytest.mark.parametrize("heads", [1, 2])
def test_it_acts_as_the_mask_allows(heads):
    gym.register("count/Masked-v0", entry_point=Masked, disable_env_checker=True)
    try:
        assert choose_workers(EnvConfig("count/Masked-v0", {"heads": heads}, num_envs=4), 0).workers == 1
    finally:
        gym.registry.pop("count/Masked-v0")


def test_cheap_steps_stay_in_one_process():
    assert choose_workers(takes(num_envs=2), 0).workers == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (takes(num_envs=1, seconds=0.02), "there is one environment"),
        (takes(vectorization="async", seconds=0.02), "env.vectorization async has its own way"),
        (takes(vectorization="native"), "env.vectorization native has its own way"),
    ],
)
def test_nothing_is_measured_where_there_is_nothing_to_choose(config, words, monkeypatch):
    monkeypatch.setattr(worker_count, "measured", None)
    assert choose_workers(config, 0) == (0, words)


def test_nothing_is_measured_on_one_core_or_where_processes_are_not_forked(monkeypatch):
    monkeypatch.setattr(worker_count, "measured", None)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    assert "not forked" in choose_workers(takes(), 0).why
    monkeypatch.setattr(worker_count, "cores_allowed", lambda: 1)
    assert choose_workers(takes(), 0) == (0, "this process may use one core")


def test_a_step_longer_than_its_patience_is_dear_enough(monkeypatch):
    monkeypatch.setattr(worker_count, "PATIENCE", 0.3)
    assert choose_workers(takes(seconds=1000.0), 0).workers == 1


@pytest.mark.parametrize(
    ("kwargs", "words"), [({"fails": True}, "not by chance"), ({"begins": 1000.0}, "no answer"), ({"x": 1}, "'x'")]
)
def test_what_cannot_be_measured_is_stepped_here_and_the_reason_is_said(kwargs, words, monkeypatch):
    monkeypatch.setattr(worker_count, "BEGINNING", 0.3)
    workers, why = choose_workers(takes(**kwargs), 0)
    assert workers == 0
    assert why.startswith("no step could be measured (")
    assert words in why
    assert "\n" not in why


def test_it_leaves_no_trace_in_this_process():
    before = np.random.get_state()[1].tolist(), Takes.made
    choose_workers(takes(), 0)
    assert (np.random.get_state()[1].tolist(), Takes.made) == before


def test_what_is_measured_records_no_video(tmp_path):
    wrappers = {"RecordVideo": {"video_folder": str(tmp_path / "videos")}}
    config = EnvConfig("CartPole-v1", {"render_mode": "rgb_array"}, wrappers, num_envs=2)
    choose_workers(config, 0)
    assert not list(tmp_path.iterdir())
