"""What an observation is made of, in which order, and what is refused."""

import numpy as np
import pytest
from gymnasium import spaces
from shown import NESTED, SHOWN
from toy_envs import small_agent

from ppo_kl.errors import CheckpointError, ConfigError
from ppo_kl.observations import (
    Part,
    bounds_of,
    by_part,
    describe_parts,
    each_part,
    from_parts_description,
    over_parts,
    parts_of,
    read,
)
from ppo_kl.training.agent import Agent


@pytest.mark.parametrize(
    ("space", "part"),
    [
        (spaces.Box(-1.0, 1.0, (3,)), Part((), "vector", (3,))),
        (spaces.Box(-1.0, 1.0, ()), Part((), "vector", ())),
        (spaces.Box(-1.0, 1.0, (2, 2), np.float64), Part((), "vector", (2, 2))),
        (spaces.Box(-5, 5, (3,), np.int64), Part((), "vector", (3,))),
        (spaces.Box(0, 1, (3,), np.bool_), Part((), "vector", (3,))),
        (spaces.Box(0, 255, (128,), np.uint8), Part((), "vector", (128,))),
        (spaces.MultiBinary((2, 2)), Part((), "vector", (2, 2))),
        (spaces.Discrete(4, start=-3), Part((), "index", (), "int64", (4,), (-3,))),
        (spaces.MultiDiscrete([2, 5], start=[1, 0]), Part((), "index", (2,), "int64", (2, 5), (1, 0))),
        (spaces.Box(0, 255, (84, 84), np.uint8), Part((), "image", (84, 84), "uint8", scale=255.0)),
        (spaces.Box(0, 10, (7, 7), np.uint8), Part((), "image", (7, 7), "uint8", scale=10.0)),
        (spaces.Box(0, 1, (7, 7), np.uint8), Part((), "image", (7, 7), "uint8", scale=1.0)),
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), Part((), "image", (4, 84, 84), "uint8", scale=255.0)),
        (spaces.Box(0.0, 1.0, (64, 64, 3)), Part((), "image", (64, 64, 3), "float32", scale=1.0)),
        (spaces.Box(0.0, 255.0, (64, 64, 3)), Part((), "image", (64, 64, 3), "float32", scale=255.0)),
        (spaces.Box(-1.0, 1.0, (64, 64, 3)), Part((), "vector", (64, 64, 3))),
    ],
    ids=str,
)
def test_a_plain_space_is_one_part(space, part):
    assert parts_of(space) == (part,)


def test_the_parts_of_a_nested_space_are_in_its_order_and_named_by_their_path():
    # Gymnasium sorts the keys of a Dict that is made from a dict.
    parts = parts_of(NESTED)
    assert [part.key for part in parts] == ["a.0", "a.1", "cam", "m", "z"]
    assert [part.kind for part in parts] == ["index", "vector", "image", "index", "vector"]


def test_the_order_in_which_an_environment_sends_its_keys_is_of_no_account():
    parts, obs = parts_of(NESTED), NESTED.sample()
    backwards = dict(reversed(obs.items()))
    assert list(backwards) != list(obs)
    for (key, x), (other, y) in zip(each_part(read(parts, obs)), each_part(read(parts, backwards)), strict=True):
        assert key == other
        assert np.array_equal(x, y)


def test_indices_are_counted_from_the_first_value_of_their_space():
    parts = parts_of(NESTED)
    sent = {"a": (np.array([2, 5]), np.zeros((2, 2))), "m": np.array([[1, 0], [2, 4]]), "cam": 0, "z": 0}
    seen = read(parts, sent)
    assert seen["a.0"].tolist() == [0, 3]
    assert seen["m"].tolist() == [[0, 0], [1, 4]]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(4),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Graph(spaces.Box(0.0, 1.0, (2,)), None),
        spaces.OneOf([spaces.Discrete(2), spaces.Box(0.0, 1.0, (2,))]),
        spaces.Box(0.0, 1.0, (3, 0)),
        spaces.Box(0, 255, (0, 4, 4), np.uint8),
        spaces.Dict(),
        spaces.Tuple(()),
    ],
    ids=str,
)
def test_a_space_without_an_encoder_is_refused_by_name_wherever_it_stands(space):
    for whole in (space, spaces.Dict(a=spaces.Discrete(2), b=space), spaces.Tuple((space,))):
        with pytest.raises(ConfigError, match=r"supported|empty") as error:
            parts_of(whole)
        assert str(whole) in str(error.value)


def test_two_parts_of_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"'?a\.0"):
        parts_of(spaces.Dict({"a": spaces.Tuple((spaces.Discrete(2),)), "a.0": spaces.Discrete(2)}))


@pytest.mark.parametrize("space", [NESTED, spaces.Discrete(3), spaces.Box(0, 255, (8, 8), np.uint8)], ids=str)
def test_parts_come_back_from_their_description(space):
    assert from_parts_description(describe_parts(parts_of(space))) == parts_of(space)


def test_what_is_done_by_part_keeps_the_shape_of_the_space():
    parts = parts_of(NESTED)
    sizes = by_part(parts, lambda part: len(part.shape))
    assert sizes == {"a.0": 0, "a.1": 1, "cam": 3, "m": 1, "z": 2}
    assert over_parts(lambda x, y: x + y, sizes, sizes) == {key: 2 * size for key, size in sizes.items()}
    assert by_part(parts_of(spaces.Discrete(2)), lambda part: part.kind) == "index"
    assert over_parts(lambda x: x + 1, 1) == 2
    assert each_part(7) == [("", 7)]


def test_bounds_are_those_of_a_box_where_it_has_any():
    space = spaces.Dict(box=spaces.Box(-1.0, 2.0, (2,)), free=spaces.Box(-np.inf, np.inf, (2,)), k=spaces.Discrete(3))
    found = {part.key: bounds_of(part, space) for part in parts_of(space)}
    assert found["free"] is found["k"] is None
    low, high = found["box"]
    assert (low.tolist(), high.tolist()) == ([-1.0, -1.0], [2.0, 2.0])


# --- an agent that sees them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("name", SHOWN)
def test_an_agent_sees_every_kind_of_observation(name, vectorization):
    agent = small_agent(f"Shows{name}", env__vectorization=vectorization, env__normalize_obs=True)
    metrics = [agent.iterate() for _ in range(2)]
    agent.close()
    assert all(np.isfinite(value) for m in metrics for value in m.values())
    assert all(m["kl/before_update"] <= 1e-6 for m in metrics)
    obs = SHOWN[name].sample()
    assert agent.act(obs) in (0, 1)
    assert agent.evaluate(2).returns == [3.0, 3.0]


def test_a_batch_of_nested_observations_is_answered_row_by_row():
    agent = small_agent("ShowsTuple")
    agent.learn(64)
    one, other = SHOWN["Tuple"].sample(), SHOWN["Tuple"].sample()
    both = tuple(np.stack(parts) for parts in zip(one, other, strict=True))
    assert agent.act(both).tolist() == [agent.act(one), agent.act(other)]


@pytest.mark.parametrize("obs", [{"a": 1}, (np.zeros(()), np.zeros(3)), np.zeros(2)], ids=["dict", "shape", "array"])
def test_an_observation_of_another_shape_is_refused(obs):
    with pytest.raises(ValueError, match="act: obs"):
        small_agent("ShowsTuple").act(obs)


def test_an_agent_comes_back_with_its_parts_in_their_order_and_refuses_another_order(tmp_path):
    agent = small_agent("ShowsNested")
    agent.learn(32)
    agent.save(tmp_path / "agent.pt")
    again = Agent.load(tmp_path / "agent.pt")
    assert again.parts == agent.parts
    obs = NESTED.sample()
    assert again.act(obs) == agent.act(obs)
    again.iterate()
    state = agent.state_dict()
    state["spaces"]["obs"].reverse()
    with pytest.raises(CheckpointError, match="spaces"):
        small_agent("ShowsNested").load_state_dict(state)
