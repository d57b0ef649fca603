"""Evaluation takes whole episodes, a number of each environment that is fixed beforehand, in raw rewards."""

from __future__ import annotations

from collections import Counter as Tally

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_envs import MODES, Clock, small_agent

from ppo_kl.envs.autoreset import Environments
from ppo_kl.training.evaluation import Evaluation, evaluate


def clocks(*lengths: int, mode: AutoresetMode = AutoresetMode.SAME_STEP, slope: float = 0.0) -> Environments:
    """One environment per length, whose episodes all have that length."""
    makers = [lambda length=length: Clock(length, slope=slope) for length in lengths]
    return Environments(SyncVectorEnv(makers, autoreset_mode=mode))


def any_action(obs: np.ndarray, action_mask: None, starts: np.ndarray) -> np.ndarray:
    return np.zeros(len(obs), np.int64)


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_short_episodes_are_not_favoured(mode):
    # 6 episodes of 3 environments are 2 of each; the first 6 to end would be 5 of 2 steps and one of 11.
    result = evaluate(any_action, clocks(2, 11, 30, mode=mode), 6)
    assert Tally(result.lengths) == {2: 2, 11: 2, 30: 2}


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_what_does_not_divide_evenly_comes_from_the_first_environments(mode):
    assert Tally(evaluate(any_action, clocks(9, 2, 3, mode=mode), 5).lengths) == {9: 2, 2: 2, 3: 1}


def test_fewer_episodes_than_environments_are_possible():
    assert evaluate(any_action, clocks(9, 2, 3), 2).lengths == [2, 9]


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_returns_are_undiscounted_sums_of_single_episodes(mode):
    # Reward 1 + step / 2: 4 steps give 4 + ½·(0 + 1 + 2 + 3) = 7.
    assert evaluate(any_action, clocks(4, mode=mode, slope=0.5), 3) == Evaluation([7.0] * 3, [4] * 3)


def test_mean_and_standard_deviation_by_hand():
    # Deviations −3, −1, 1, 3 from 4: variance 20 / 4 = 5.
    result = Evaluation([1.0, 3.0, 5.0, 7.0], [1, 1, 1, 1])
    assert result.mean == 4.0
    assert result.std == pytest.approx(5**0.5)


def test_the_actor_sees_what_the_environments_show():
    envs = Environments(SyncVectorEnv([lambda: Clock(3, shows_time=True)] * 2))
    seen: list[list[int]] = []

    def act(obs: np.ndarray, action_mask: None, starts: np.ndarray) -> np.ndarray:
        seen.append(obs.argmax(-1).tolist())
        return any_action(obs, action_mask, starts)

    evaluate(act, envs, 2)
    assert seen == [[0, 0], [1, 1], [2, 2]]


def test_an_agents_evaluation_is_in_raw_rewards_also_where_training_scales_them():
    # toy/Long: 20 steps of reward 1 + step / 2, in all 20 + 95 = 115.
    scaled = small_agent("Long", env__normalize_reward=True, env__reward_offset=-3.0, env__reward_scale=0.1)
    scaled.iterate()
    assert scaled.evaluate(3) == Evaluation([115.0] * 3, [20] * 3)
