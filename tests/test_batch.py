"""How a rollout becomes samples, and samples minibatches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppo_kl.batch import Batch, Rollout, cut, flatten, layout, minibatches, sequences, tensors_in


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
    wide = {"obs": 4, "action": 2, "params": 5, "action_mask": 3}
    tensors = {
        name: 100 * (k + 1) + place.expand(T, N, wide[name]) if name in wide else 100 * (k + 1) + place[..., 0]
        for k, name in enumerate(Rollout._fields)
        if name not in ("starts", "state")
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
        "action_mask": r.action_mask,
    }
    assert {*sources, "state", "all_count"} == set(Batch._fields)
    assert batch.state == ()
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
    for name in set(Batch._fields) - {"valid", "state", "all_count"}:
        assert torch.equal(getattr(minibatch, name), getattr(batch, name)[[4, 0, 0]])


def test_without_masks_no_row_has_one():
    r = rollout()._replace(action_mask=None)
    batch = flatten(r, r.reward, r.reward, lambda obs: obs)
    assert batch.action_mask is None
    assert batch.rows(torch.tensor([1]), torch.tensor([True])).action_mask is None


def test_the_parts_of_an_observation_stay_side_by_side():
    r = rollout()
    parts = {"a": r.obs, "b": r.action}
    batch = flatten(r._replace(obs=parts), r.reward, r.reward, lambda obs: obs)
    assert list(batch.obs) == ["a", "b"]
    minibatch = batch.rows(torch.tensor([4, 0]), torch.ones(2, dtype=torch.bool))
    for key, x in parts.items():
        assert torch.equal(minibatch.obs[key], x.flatten(0, 1)[[4, 0]])


# --- sequences --------------------------------------------------------------------------------------------------------


def stretches(starts, valid, length) -> list[list[tuple[int, int]]]:
    """Each stretch as its (t, n), padding left out."""
    index, counts = sequences(starts, valid, length)
    assert index.shape == counts.shape
    N = valid.shape[1]
    return [[divmod(i, N) for i in row[c].tolist()] for row, c in zip(index, counts, strict=True)]


def test_stretches_by_hand():
    # Environment 0 begins an episode at step 3; environment 1's step 1 only resets, so its episode begins at step 2.
    starts = torch.tensor([[True, False], [False, False], [False, True], [True, False], [False, False]])
    valid = torch.tensor([[True, True], [True, False], [True, True], [True, True], [True, True]])
    found = stretches(starts, valid, 2)
    assert found == [[(0, 0), (1, 0)], [(2, 0)], [(3, 0), (4, 0)], [(0, 1)], [(2, 1), (3, 1)], [(4, 1)]]
    assert stretches(starts, valid, 9) == [
        [(0, 0), (1, 0), (2, 0)],
        [(3, 0), (4, 0)],
        [(0, 1)],
        [(2, 1), (3, 1), (4, 1)],
    ]


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 13), st.randoms(use_true_random=False))
def test_stretches_hold_every_row_that_counts_once_and_no_episode_begins_within_one(T, N, length, random):
    flags = [[(random.random() < 0.2, random.random() < 0.8) for _ in range(N)] for _ in range(T)]
    starts, valid = (torch.tensor([[pair[k] for pair in row] for row in flags]) for k in (0, 1))
    found = stretches(starts, valid, length)
    assert sorted(place for row in found for place in row) == sorted(map(tuple, valid.nonzero().tolist()))
    for row in found:
        assert 1 <= len(row) <= length
        assert [(row[0][0] + k, row[0][1]) for k in range(len(row))] == row
        assert not any(starts[t, n] for t, n in row[1:])


def recurrent_rollout() -> Rollout:
    """`rollout` with a state of its own number in each row; environment 1 begins an episode at step 2."""
    r = rollout()
    starts = torch.tensor([[True, True], [False, False], [False, True]])
    return r._replace(starts=starts, state=(r.value[..., None],), valid=torch.ones(3, 2, dtype=torch.bool))


def test_a_recurrent_rollout_becomes_sequences_that_begin_with_their_own_state():
    r = recurrent_rollout()
    batch = flatten(r, r.reward, r.reward, lambda obs: obs, sequence_length=3)
    # Environment 0's three steps; environment 1's two, and its third with two rows of padding.
    assert batch.obs.shape == (3, 3, 4)
    assert batch.valid.view(3, 3).tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    first = [r.state[0][0, 0], r.state[0][0, 1], r.state[0][2, 1]]
    assert torch.equal(batch.state[0], torch.stack(first))
    steps = [(t, n) for row in ([(0, 0), (1, 0), (2, 0)], [(0, 1), (1, 1), (1, 1)], [(2, 1)] * 3) for t, n in row]
    assert torch.equal(batch.ret, torch.stack([r.reward[t, n] for t, n in steps]))
    assert torch.equal(batch.obs.flatten(0, 1), torch.stack([r.obs[t, n] for t, n in steps]))


def test_a_minibatch_of_sequences_has_whole_ones():
    r = recurrent_rollout()
    batch = flatten(r, r.reward, r.reward, lambda obs: obs, sequence_length=3)
    assert batch.units().tolist() == [0, 1, 2]
    minibatch = batch.rows(torch.tensor([2, 0, 0]), torch.tensor([True, True, False]))
    assert torch.equal(minibatch.state[0], batch.state[0][[2, 0, 0]])
    assert torch.equal(minibatch.obs, batch.obs[[2, 0, 0]])
    assert torch.equal(minibatch.ret.view(3, 3), batch.ret.view(3, 3)[[2, 0, 0]])
    assert minibatch.valid.view(3, 3).tolist() == [[True, False, False], [True] * 3, [False] * 3]


def test_minibatches_of_sequences_hold_about_as_many_rows_as_asked_for():
    # 6 sequences of 20 rows in all, and 8 to a minibatch: ⌈20 / 8⌉ = 3 parts of 2 sequences.
    index, valid = minibatches(torch.arange(6), 8, seeded(), num_rows=20)
    assert index.shape == (3, 2)
    assert valid.all()
    assert sorted(index.flatten().tolist()) == list(range(6))


# --- cutting ----------------------------------------------------------------------------------------------------------


def ten_rows(**more):
    x = torch.arange(10.0)
    parts = {"obs": {"a": x[:, None], "b": x.long()}, "params_old": x[:, None].expand(10, 2)}
    one_number = dict.fromkeys(("action", "logp_old", "adv", "ret", "value_old"), x)
    return Batch(**parts, **one_number, valid=x != 3, **more)


@pytest.mark.parametrize("most_rows", [1, 8, 65_536])
def test_minibatches_are_cut_as_they_were_dealt_however_many_are_copied_at_a_time(monkeypatch, most_rows):
    monkeypatch.setattr("ppo_kl.batch.MOST_ROWS", most_rows)
    batch, dealt = ten_rows(), minibatches(torch.arange(10), 4, torch.Generator().manual_seed(0))
    found = list(cut(batch, *dealt))
    expected = [batch.rows(index, valid) for index, valid in zip(*dealt, strict=True)]
    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.obs["a"], other.obs["a"])
        assert torch.equal(one.obs["b"], other.obs["b"])
        assert torch.equal(one.adv, other.adv)
        assert torch.equal(one.valid, other.valid)
        assert one.action_mask is None
        assert one.state == ()


def test_sequences_are_cut_with_their_states():
    # Five sequences of two steps, dealt as {4, 1} and {0, 2}.
    batch = ten_rows(state=(torch.arange(5.0),))._replace(obs=torch.arange(10.0).view(5, 2, 1))
    index, valid = torch.tensor([[4, 1], [0, 2]]), torch.tensor([[True, True], [True, False]])
    first, second = cut(batch, index, valid)
    assert first.state[0].tolist() == [4, 1]
    assert first.obs.flatten().tolist() == [8, 9, 2, 3]
    assert first.adv.tolist() == [8, 9, 2, 3]
    assert first.valid.tolist() == [True, True, True, False]  # row 3 does not count
    assert second.valid.tolist() == [True, True, False, False]


def test_a_width_pads_minibatches_to_one_shape_whatever_counts():
    for n in (7, 9, 12):
        index, valid = minibatches(torch.arange(n), 4, torch.Generator().manual_seed(0), width=4)
        assert index.shape[1] == 4
        assert sorted(index[valid].tolist()) == list(range(n))


def test_what_a_program_is_compiled_for_is_told_from_what_it_is_not():
    batch = ten_rows()
    assert layout(batch) == layout(batch._replace(adv=batch.adv + 1))
    others = [
        batch._replace(adv=batch.adv.double()),
        batch._replace(all_count=True),
        batch._replace(params_old=torch.zeros(10, 3)),
        batch._replace(params_old=torch.zeros(2, 10).T),
        batch._replace(action_mask=torch.ones(10, 4, dtype=torch.bool)),
        batch._replace(obs=batch.obs["a"]),
        batch._replace(state=(torch.zeros(5),)),
        batch.rows(torch.arange(9), torch.ones(9, dtype=torch.bool)),
    ]
    assert len({layout(batch), *map(layout, others)}) == len(others) + 1
    assert layout(batch, sizes=False) == layout(others[-1], sizes=False)


def test_a_copy_is_equal_and_in_memory_of_its_own():
    rows = torch.arange(4.0)
    batch = Batch(
        {"a": rows[:, None] + 1}, rows, rows, rows[:, None], rows, rows, rows, rows > 1, None, (rows + 2,), True
    )
    copy = batch.copied()
    assert copy.all_count
    for (name, x), (other, y) in zip(tensors_in(batch), tensors_in(copy), strict=True):
        assert name == other
        assert torch.equal(x, y)
        assert x.data_ptr() != y.data_ptr()
