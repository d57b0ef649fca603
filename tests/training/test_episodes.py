"""Returns and lengths of episodes are the sums over their own steps, in the order in which these came."""

from __future__ import annotations

import numpy as np

from ppo_kl.training.episodes import EpisodeMeter, EpisodeStats

T, F = True, False


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_two_episodes_end_in_one_rollout_and_a_third_goes_on_in_the_next():
    meter = EpisodeMeter(1)
    every = np.ones((6, 1), bool)
    # 1 + 2 | 4 + 8 + 16 | 32, then 64 + 128 |
    ended = meter.add(column(1.0, 2.0, 4.0, 8.0, 16.0, 32.0), column(F, T, F, F, T, F), every)
    assert ended == EpisodeStats([3.0, 28.0], [2, 3])
    assert (meter.returns.tolist(), meter.lengths.tolist()) == ([32.0], [1])
    assert meter.add(column(64.0, 128.0), column(F, T), every[:2]) == EpisodeStats([224.0], [3])
    assert (meter.returns.tolist(), meter.lengths.tolist()) == ([0.0], [0])


def test_episodes_are_told_in_the_order_in_which_they_end_whichever_environment_they_are_of():
    meter = EpisodeMeter(2)
    reward = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    over = np.array([[F, T], [T, F], [F, T]])
    assert meter.add(reward, over, np.ones((3, 2), bool)) == EpisodeStats([10.0, 3.0, 50.0], [1, 2, 2])
    assert (meter.returns.tolist(), meter.lengths.tolist()) == ([3.0, 0.0], [1, 0])


def test_rows_that_do_not_count_add_neither_reward_nor_length():
    meter = EpisodeMeter(1)
    valid = column(T, T, F, T, T).astype(bool)
    ended = meter.add(column(1.0, 2.0, 99.0, 4.0, 8.0), column(F, T, F, F, T), valid)
    assert ended == EpisodeStats([3.0, 12.0], [2, 2])


def test_a_return_is_the_sum_of_single_steps_to_the_last_bit_however_rollouts_cut_the_episode():
    # 0.1 added a thousand times is not what pairwise sums make of it.
    rewards = np.random.default_rng(0).normal(0, 1, (1000, 1)) + 0.1
    over, every = np.zeros((1000, 1), bool), np.ones((1000, 1), bool)
    over[-1] = True
    total = 0.0
    for reward in rewards[:, 0].tolist():
        total += reward
    assert total != rewards.sum()
    for parts in (1, 4, 1000):
        meter, ended = EpisodeMeter(1), EpisodeStats([], [])
        for reward, o, v in zip(*(np.split(x, parts) for x in (rewards, over, every)), strict=True):
            ended = meter.add(reward, o, v)
        assert ended == EpisodeStats([total], [1000])
    meter = EpisodeMeter(1)
    meter.add(rewards[:-1], over[:-1], every[:-1])
    assert meter.returns[0] + rewards[-1, 0] == total
