"""How a rollout becomes samples, and samples minibatches."""

import pytest
import torch

from ppo_kl.batch import Batch, Rollout, flatten, minibatches


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- minibatches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(2, 66))
def test_every_valid_row_comes_exactly_once_in_parts_of_even_size(size):
    generator = seeded(size)
    for n in range(2, 66):
        rows = torch.arange(n) * 3 + 5  # the valid rows of a longer batch
        index, valid = minibatches(rows, size, generator)
        counts = valid.sum(-1)
        assert index.shape == valid.shape == (-(-n // size), counts.max())
        assert counts.max() <= size
        assert counts.max() - counts.min() <= 1
        assert torch.equal(index[valid].sort().values, rows)
        # What pads a part is a row that counts elsewhere, so that nothing in it can be NaN.
        assert torch.isin(index, rows).all()


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_minibatch_larger_than_the_batch_is_the_batch(n):
    index, valid = minibatches(torch.arange(n), 1000, seeded())
    assert index.shape == (1, n)
    assert valid.all()
    assert sorted(index[0].tolist()) == list(range(n))


def test_of_four_and_three_and_three_the_parts_have_one_shape_and_say_what_counts():
    # 10 rows in parts of at most 4: ⌈10 / 4⌉ = 3 parts, not 4 + 4 + 2.
    index, valid = minibatches(torch.arange(10), 4, seeded())
    assert index.shape == (3, 4)
    assert valid.sum(-1).tolist() == [4, 3, 3]


def test_the_partition_follows_its_generator_and_nothing_else():
    rows, before = torch.arange(20), torch.get_rng_state()
    first, again, other = (minibatches(rows, 6, seeded(s))[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_epoch_is_dealt_anew():
    generator = seeded()
    assert not torch.equal(
        minibatches(torch.arange(20), 6, generator)[0], minibatches(torch.arange(20), 6, generator)[0]
    )


def test_every_row_is_as_likely_in_every_part():
    generator, hits, draws = seeded(), torch.zeros(6), 2000
    for _ in range(draws):
        index, valid = minibatches(torch.arange(6), 2, generator)
        hits += torch.bincount(index[0][valid[0]], minlength=6)
    # 1/3 each, within 4 standard errors √(⅓ · ⅔ / draws)
    assert ((hits / draws - 1 / 3).abs() < 4 * (2 / 9 / draws) ** 0.5).all()


# --- flatten and rows -------------------------------------------------------------------------------------------------


def rollout(T: int = 3, N: int = 2) -> Rollout:
    """Every tensor tells its own place: t in the tens, n in the units, and a part of its own per field."""
    place = (10.0 * torch.arange(T)[:, None] + torch.arange(N))[:, :, None]
    wide = {"obs": 4, "action": 2, "params": 5}
    tensors = {
        name: 100 * (k + 1) + place.expand(T, N, wide[name]) if name in wide else 100 * (k + 1) + place[..., 0]
        for k, name in enumerate(Rollout._fields)
    }
    flags = torch.tensor([[True, True], [False, True], [True, False]])
    return Rollout(**{**tensors, "valid": flags})


def test_a_rollout_is_flattened_step_by_step_with_every_field_in_its_place():
    r, adv, ret = rollout(), torch.arange(6.0).view(3, 2), torch.arange(6.0).view(3, 2) + 50
    batch = flatten(r, adv, ret, lambda obs: obs)
    rows = [(t, n) for t in range(3) for n in range(2)]
    sources = {
        "obs": r.obs,
        "action": r.action,
        "logp_old": r.logp,
        "params_old": r.params,
        "adv": adv,
        "ret": ret,
        "value_old": r.value,
        "valid": r.valid,
    }
    assert set(sources) == set(Batch._fields)
    for name, source in sources.items():
        flat = getattr(batch, name)
        assert flat.shape == (6, *source.shape[2:])
        for b, (t, n) in enumerate(rows):
            assert torch.equal(flat[b], source[t, n])


def test_observations_are_normalised_once_as_a_batch():
    seen = []

    def normalize(obs):
        seen.append(obs.shape)
        return obs / 2

    r = rollout()
    batch = flatten(r, r.reward, r.reward, normalize)
    assert seen == [(6, 4)]
    assert torch.equal(batch.obs, r.obs.flatten(0, 1) / 2)


def test_a_minibatch_has_the_rows_asked_for_and_the_mask_given():
    r = rollout()
    batch = flatten(r, r.reward, r.reward, lambda obs: obs)
    index, valid = torch.tensor([4, 0, 0]), torch.tensor([True, True, False])
    minibatch = batch.rows(index, valid)
    assert torch.equal(minibatch.valid, valid)
    for name in Batch._fields[:-1]:
        assert torch.equal(getattr(minibatch, name), getattr(batch, name)[[4, 0, 0]])
