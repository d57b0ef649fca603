"""Running moments: streaming equals batch, and what does not count leaves no trace."""

import numpy as np
import pytest
import torch
from every_family import vector
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_kl.policies.normalize import ObservationNormalizer, RewardScaler, RunningMoments

NAN = float("nan")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def state(module) -> dict[str, torch.Tensor]:
    return {k: x.clone() for k, x in module.state_dict().items()}


def same_bits(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# --- RunningMoments ---------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    offset=st.sampled_from([0.0, -3.0, 1e8]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, derandomize=True)
def test_streaming_equals_batch(sizes, offset, scale, seed):
    x = offset + scale * torch.randn(sum(sizes), 3, dtype=torch.float64, generator=seeded(seed))
    moments = RunningMoments((3,))
    for piece in x.split(sizes):
        moments.update_(piece)
    assert moments.count.item() == len(x)
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-12, atol=1e-10)
    # At an offset of 1e8 float64 itself holds x to 1e-8 only.
    torch.testing.assert_close(moments.var, x.var(0, correction=0), rtol=1e-5, atol=1e-13 + 1e-16 * offset)


def test_the_moments_of_known_numbers():
    moments = RunningMoments(())
    moments.update_(torch.tensor([1.0, 3.0]))
    moments.update_(torch.tensor([8.0]))
    # Mean of 1, 3, 8 is 4; variance (9 + 1 + 16) / 3.
    assert moments.mean.item() == pytest.approx(4.0)
    assert moments.var.item() == pytest.approx(26 / 3)
    assert moments.count.item() == 3


def test_the_first_batch_replaces_the_initial_variance():
    # The variance of 1 that stands there before is no sample.
    moments = RunningMoments((1,))
    moments.update_(torch.full((4, 1), 5.0))
    assert (moments.mean.item(), moments.var.item()) == (5.0, 0.0)


def test_an_update_without_samples_changes_nothing():
    moments = RunningMoments((2,))
    before = state(moments)
    moments.update_(torch.empty(0, 2))
    assert same_bits(state(moments), before)
    moments.update_(torch.randn(5, 2, generator=seeded()))
    before = state(moments)
    moments.update_(torch.empty(0, 2))
    assert same_bits(state(moments), before)


def test_moments_are_kept_in_double_precision_in_place():
    moments = RunningMoments((2,))
    addresses = [x.data_ptr() for x in moments.buffers()]
    moments.update_(torch.ones(3, 2))
    assert [x.data_ptr() for x in moments.buffers()] == addresses
    assert {x.dtype for x in moments.buffers()} == {torch.float64}


# --- ObservationNormalizer --------------------------------------------------------------------------------------------


def test_observations_get_mean_zero_and_unit_scale():
    normalizer = ObservationNormalizer((vector(3),), enabled=True)
    obs = torch.tensor([5.0, -2.0, 100.0]) + torch.tensor([0.1, 1.0, 20.0]) * torch.randn(500, 3, generator=seeded())
    normalizer.update_(obs, torch.ones(500, dtype=torch.bool))
    out = normalizer(obs)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("obs", [[0.3], [-9.5], [11.0], [1e6]])
def test_before_the_first_update_it_is_the_identity(obs):
    assert (
        ObservationNormalizer((vector(1),), enabled=True)(torch.tensor([obs])).tolist() == torch.tensor([obs]).tolist()
    )


def test_where_it_is_not_enabled_it_is_always_the_identity():
    normalizer, obs = ObservationNormalizer((vector(2),), enabled=False), torch.tensor([[0.3, 1e6]])
    normalizer.update_(100 + torch.randn(9, 2, generator=seeded()), torch.ones(9, dtype=torch.bool))
    assert torch.equal(normalizer(obs), obs)
    assert normalizer.state_dict() == {}


def test_outliers_are_clipped_at_ten_standard_deviations():
    normalizer = ObservationNormalizer((vector(1),), enabled=True)
    normalizer.update_(torch.tensor([[-1.0], [1.0]]), torch.ones(2, dtype=torch.bool))
    assert normalizer(torch.tensor([[1e6], [-1e6], [9.5]])).flatten().tolist() == pytest.approx([10.0, -10.0, 9.5])


def test_a_feature_that_never_changes_becomes_zero():
    normalizer = ObservationNormalizer((vector(2),), enabled=True)
    obs = torch.stack([torch.full((50,), 7.3), torch.randn(50, generator=seeded())], -1)
    normalizer.update_(obs, torch.ones(50, dtype=torch.bool))
    out = normalizer(obs)
    assert out.isfinite().all()
    torch.testing.assert_close(out[:, 0], torch.zeros(50), atol=1e-3, rtol=0)


def test_rows_that_do_not_count_leave_no_trace_in_observations():
    obs, valid = torch.randn(20, 3, generator=seeded()), torch.arange(20) % 3 > 0
    kept, spoilt = ObservationNormalizer((vector(3),), enabled=True), ObservationNormalizer((vector(3),), enabled=True)
    kept.update_(obs[valid], torch.ones(int(valid.sum()), dtype=torch.bool))
    spoilt.update_(torch.where(valid[:, None], obs, NAN), valid)
    assert same_bits(state(kept), state(spoilt))
    assert kept.vectors["0"].moments.count.item() == 13


def test_normalising_changes_no_moment():
    # Frozen while a rollout is collected and used: π_old stays π_old.
    normalizer = ObservationNormalizer((vector(2),), enabled=True)
    normalizer.update_(torch.randn(9, 2, generator=seeded()), torch.ones(9, dtype=torch.bool))
    before = state(normalizer)
    normalizer.train()(torch.full((5, 2), 1e5))
    assert same_bits(state(normalizer), before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float64])
def test_observations_of_other_types_are_taken(dtype):
    normalizer, obs = ObservationNormalizer((vector(1),), enabled=True), torch.tensor([[0], [1], [1], [0]]).to(dtype)
    normalizer.update_(obs, torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(normalizer(obs), torch.tensor([[-1.0], [1.0], [1.0], [-1.0]]))


# --- RewardScaler -----------------------------------------------------------------------------------------------------


def rollout(T: int = 40, N: int = 3, seed: int = 0):
    """Rewards, ends of episodes and rows that count, `[T, N]`."""
    generator = seeded(seed)
    reward = 2 + torch.randn(T, N, generator=generator)
    done = torch.rand(T, N, generator=generator) < 0.15
    valid = torch.rand(T, N, generator=generator) < 0.85
    return reward, done, valid


def discounted_returns(reward, done, valid, gamma):
    """By the definition: the discounted sum of what an episode gave so far, at each row that counts."""
    returns = []
    for n in range(reward.shape[1]):
        episode: list[float] = []
        for t in range(len(reward)):
            if not valid[t, n]:
                continue
            episode.append(float(reward[t, n]))
            returns.append(sum(r * gamma**k for k, r in enumerate(reversed(episode))))
            if done[t, n]:
                episode = []
    return np.array(returns)


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_rewards_are_divided_by_the_spread_of_the_discounted_return(gamma):
    reward, done, valid = rollout()
    scaler = RewardScaler(3, gamma, 0.0, 1.0, enabled=True)
    scaler.update_(reward, done, valid)
    returns = discounted_returns(reward, done, valid, gamma)
    assert done[valid].any()
    assert scaler.moments.count.item() == len(returns)
    torch.testing.assert_close(scaler(reward), (reward / returns.std()).float(), rtol=1e-5, atol=1e-6)


def test_an_episode_goes_on_from_one_rollout_to_the_next():
    reward, done, valid = rollout()
    whole, halves = (RewardScaler(3, 0.9, 0.0, 1.0, enabled=True) for _ in range(2))
    whole.update_(reward, done, valid)
    for part in (slice(0, 17), slice(17, None)):
        halves.update_(reward[part], done[part], valid[part])
    torch.testing.assert_close(state(halves), state(whole), rtol=1e-12, atol=1e-12)


def test_the_running_return_starts_anew_after_each_episode():
    # 1, 1 + .5; then a new episode: 1, 1.5, 1.75
    scaler = RewardScaler(1, 0.5, 0.0, 1.0, enabled=True)
    done = torch.tensor([[False], [True], [False], [False], [False]])
    scaler.update_(torch.ones(5, 1), done, torch.ones(5, 1, dtype=torch.bool))
    assert scaler.running.item() == 1.75
    assert scaler.moments.mean.item() == pytest.approx((1 + 1.5 + 1 + 1.5 + 1.75) / 5)


def test_environments_do_not_share_their_running_return():
    scaler = RewardScaler(2, 0.5, 0.0, 1.0, enabled=True)
    scaler.update_(
        torch.tensor([[1.0, 10.0], [1.0, 10.0]]),
        torch.tensor([[False, True], [False, False]]),
        torch.ones(2, 2, dtype=torch.bool),
    )
    assert scaler.running.tolist() == [1.5, 10.0]


@pytest.mark.parametrize("garbage", [NAN, 1e30, 0.0])
def test_rows_that_do_not_count_leave_no_trace_in_rewards(garbage):
    # In the row that only resets, reward and flags mean nothing.
    scaler, spoilt = (RewardScaler(1, 0.5, 0.0, 1.0, enabled=True) for _ in range(2))
    ends, counts = torch.tensor([[False], [True]]), torch.ones(2, 1, dtype=torch.bool)
    scaler.update_(torch.tensor([[1.0], [2.0]]), ends, counts)
    spoilt.update_(
        torch.tensor([[1.0], [garbage], [2.0], [garbage]]),
        torch.tensor([[False], [True], [True], [True]]),
        torch.tensor([[True], [False], [True], [False]]),
    )
    assert same_bits(state(scaler), state(spoilt))


def test_offset_comes_before_scale_and_both_before_the_division():
    reward, done, valid = rollout()
    plain, shaped = RewardScaler(3, 0.9, 0.0, 1.0, enabled=True), RewardScaler(3, 0.9, 1.5, 0.1, enabled=True)
    plain.update_((reward + 1.5) * 0.1, done, valid)
    shaped.update_(reward, done, valid)
    torch.testing.assert_close(shaped(reward), plain((reward + 1.5) * 0.1))


def test_where_the_division_is_off_offset_and_scale_still_count():
    scaler = RewardScaler(1, 0.9, offset=8.0, scale=0.125, enabled=False)
    reward = torch.tensor([[0.0], [-8.0], [1e6]])
    scaler.update_(reward, torch.zeros(3, 1, dtype=torch.bool), torch.ones(3, 1, dtype=torch.bool))
    assert scaler(reward).flatten().tolist() == [1.0, 0.0, (1e6 + 8) / 8]


@pytest.mark.parametrize("enabled", [True, False])
def test_a_scaled_reward_is_float32(enabled):
    scaler = RewardScaler(1, 0.9, 0.0, 1.0, enabled=enabled)
    assert scaler(torch.ones(2, 1, dtype=torch.float64)).dtype == torch.float32


def test_a_scaled_reward_is_clipped_at_ten():
    scaler = RewardScaler(1, 0.0, 0.0, 1.0, enabled=True)
    one = torch.ones(2, 1, dtype=torch.bool)
    scaler.update_(torch.tensor([[-1.0], [1.0]]), ~one, one)
    assert scaler(torch.tensor([[50.0], [-50.0], [5.0]])).flatten().tolist() == pytest.approx([10.0, -10.0, 5.0])


def test_before_the_first_update_rewards_are_shifted_and_scaled_only():
    scaler = RewardScaler(1, 0.9, offset=1.0, scale=0.5, enabled=True)
    assert scaler(torch.tensor([[50.0], [0.2]])).flatten().tolist() == pytest.approx([25.5, 0.6])


def test_rewards_that_never_change_stay_finite():
    scaler = RewardScaler(1, 0.0, 0.0, 1.0, enabled=True)
    reward, one = torch.ones(9, 1), torch.ones(9, 1, dtype=torch.bool)
    scaler.update_(reward, ~one, one)
    assert scaler(reward).isfinite().all()


def test_scaling_changes_no_moment():
    scaler = RewardScaler(3, 0.9, 0.0, 1.0, enabled=True)
    scaler.update_(*rollout())
    before = state(scaler)
    scaler(torch.full((5, 3), 1e5))
    assert same_bits(state(scaler), before)
