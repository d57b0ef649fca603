"""An actor in NumPy takes the actions that torch takes with the same noise, and stands aside where it has no form."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ppo_kl.config import PolicyConfig
from ppo_kl.observations import parts_of
from ppo_kl.policies.acting import _torch_actor, actor_for
from ppo_kl.policies.custom import make_policy
from ppo_kl.policies.normalize import ObservationNormalizer
from ppo_kl.policies.numpy_actor import numpy_actor
from ppo_kl.policies.spaces import family_of

T, N = 20, 4
OBS, BOX, DISCRETE = spaces.Box(-9.0, 9.0, (5,)), spaces.Box(-2.0, 3.0, (3,)), spaces.Discrete(6, start=2)


def made(action_space: gym.Space, obs_space: gym.Space = OBS, num_envs: int = N, normalized: bool = True, **settings):
    """Policy, family, normaliser and noise, of a policy whose weights are large enough to matter."""
    config = PolicyConfig(**settings)
    rescale = config.action_transform == "rescale"
    parts, family = parts_of(obs_space), family_of(action_space, config.distribution, rescale=rescale)
    policy = make_policy(parts, family, config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    normalize = ObservationNormalizer(parts, normalized)
    if normalized:
        seen = 3 + 2 * torch.randn(50, *parts[0].shape, generator=torch.Generator().manual_seed(2))
        normalize.update_(seen, torch.ones(50, dtype=torch.bool))
    return policy, family, normalize, family.draw_noise((T, num_envs), torch.Generator().manual_seed(3))


def observations(num_envs: int = N) -> np.ndarray:
    return np.random.default_rng(0).normal(2, 3, (T, num_envs, 5)).astype(np.float32)


@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    ("space", "settings"),
    [
        *((DISCRETE, {"activation": name}) for name in ("tanh", "relu", "elu", "silu")),
        (DISCRETE, {"trunk": "shared"}),
        (DISCRETE, {"hidden_sizes": ()}),
        (BOX, {}),
        (BOX, {"action_transform": "rescale", "log_std_init": -1.0}),
        (BOX, {"mean": "tanh", "scale": "softplus"}),
        (BOX, {"distribution": "tanh_gaussian", "log_std_max": 0.1}),
    ],
    ids=lambda x: " ".join(map(str, x.values())) if isinstance(x, dict) else type(x).__name__,
)
@torch.no_grad()
def test_the_same_noise_gives_the_actions_of_torch_up_to_rounding(space, settings, normalized, num_envs):
    parts = made(space, num_envs=num_envs, normalized=normalized, **settings)
    quick, slow = numpy_actor(*parts), _torch_actor(*parts)
    assert quick is not None
    seen = observations(num_envs)
    for t in range(T):
        found, expected = quick(t, seen[t], None), slow(t, seen[t], None)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_a_mask_rules_out_is_never_taken():
    parts = made(DISCRETE)
    quick, slow, seen = numpy_actor(*parts), _torch_actor(*parts), observations()
    masks = np.random.default_rng(1).random((T, N, 6)) < 0.4
    masks[..., 0] |= ~masks.any(-1)
    for t in range(T):
        taken = quick(t, seen[t], masks[t])
        assert masks[t][range(N), taken].all()
        np.testing.assert_array_equal(taken, slow(t, seen[t], masks[t]))


@torch.no_grad()
def test_it_acts_with_the_weights_that_an_update_has_written_into_the_same_memory():
    parts = made(BOX)
    before = numpy_actor(*parts)(0, observations()[0], None)
    parts[0].actor.last.bias += 1.0
    after = numpy_actor(*parts)(0, observations()[0], None)
    np.testing.assert_allclose(after, before + 1, atol=1e-5)


@torch.no_grad()
def test_observations_beyond_the_clip_are_clipped_as_in_torch():
    parts = made(BOX)
    far = np.full((N, 5), [1e30, -1e30, 1e6, 0.0, -500.0], np.float32)
    np.testing.assert_allclose(
        numpy_actor(*parts)(0, far, None), _torch_actor(*parts)(0, far, None), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("space", "obs_space", "settings"),
    [
        (DISCRETE, OBS, {"activation": "gelu"}),
        (DISCRETE, OBS, {"memory": "gru"}),
        (DISCRETE, OBS, {"hidden_sizes": (512, 512)}),
        (DISCRETE, spaces.Discrete(5), {}),
        (DISCRETE, spaces.Dict({"a": OBS, "b": OBS}), {}),
        (DISCRETE, spaces.Box(0, 255, (8, 8, 3), np.uint8), {"image_encoder": "flat"}),
        (BOX, OBS, {"scale_depends_on_state": True}),
        (BOX, OBS, {"distribution": "beta"}),
        (BOX, OBS, {"distribution": "full_gaussian"}),
        (spaces.MultiBinary(3), OBS, {}),
    ],
    ids=str,
)
def test_what_has_no_form_in_numpy_acts_in_torch(space, obs_space, settings):
    assert numpy_actor(*made(space, obs_space, normalized=False, **settings)) is None


def test_a_policy_or_normaliser_of_the_users_own_acts_in_torch():
    policy, family, normalize, noise = made(DISCRETE)

    class Mine(type(policy)):
        pass

    mine = Mine(parts_of(OBS), family, PolicyConfig(), torch.Generator().manual_seed(0))
    assert numpy_actor(mine, family, normalize, noise) is None
    assert numpy_actor(policy, family, lambda obs: obs, noise) is None
    assert actor_for(mine, family, normalize, noise, torch.device("cpu"))(0, observations()[0], None).shape == (N,)


def test_what_torch_does_as_fast_acts_in_torch():
    # The largest layer has 64 · 64 = 2¹² products for one environment: 32 environments have 2¹⁷, and 33 more.
    assert numpy_actor(*made(DISCRETE, num_envs=32, hidden_sizes=(64, 64))) is not None
    assert numpy_actor(*made(DISCRETE, num_envs=33, hidden_sizes=(64, 64))) is None


def test_a_family_that_is_like_one_in_the_table_but_is_not_acts_in_torch():
    policy, family, normalize, noise = made(DISCRETE)

    @dataclasses.dataclass(frozen=True)
    class Shifted(type(family)):
        pass

    assert numpy_actor(policy, Shifted(6), normalize, noise) is None
