"""An action that an environment rules out is never taken, and the mask that ruled it out is the one that is stored."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from faulty_envs import Masked, agent_in, mask_of
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from toy_envs import SEED, small_agent

from ppo_kl.config import EnvConfig
from ppo_kl.envs.action_mask import allows_something, flat_mask, head_sizes
from ppo_kl.envs.make import make_vector_env
from ppo_kl.errors import EnvDataError
from ppo_kl.training.collector import Collector

MULTI = spaces.MultiDiscrete([2, 3])
SHAPED = spaces.MultiDiscrete([[2, 2], [3, 2]])
DICT = spaces.Dict({"go": spaces.Discrete(2), "arm": spaces.Box(-1.0, 1.0, (2,)), "keys": spaces.MultiBinary(2)})
TUPLE = spaces.Tuple((spaces.Discrete(3), spaces.Dict({"a": spaces.Discrete(2), "b": MULTI})))
BOX = spaces.Box(-1.0, 1.0, (2,))
T, F = True, False


# --- one row, whatever the space --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "sizes"),
    [
        (spaces.Discrete(4, start=2), (4,)),
        (MULTI, (2, 3)),
        (SHAPED, (2, 2, 3, 2)),
        (DICT, (2,)),  # a Box and a MultiBinary have no single actions to rule out
        (TUPLE, (3, 2, 2, 3)),
        (BOX, ()),
        (spaces.MultiBinary(3), ()),
    ],
    ids=str,
)
def test_a_space_has_as_many_places_in_a_mask_as_it_has_actions_to_choose_from(space, sizes):
    assert head_sizes(space) == sizes


@pytest.mark.parametrize(
    ("space", "mask", "row"),
    [
        (spaces.Discrete(3), np.array([1, 0, 1], np.int8), [T, F, T]),
        (spaces.Discrete(3), [False, True, True], [F, T, T]),
        (spaces.Discrete(3), np.array([0.0, 1.0, 0.0]), [F, T, F]),
        (MULTI, ([1, 0], [0, 1, 1]), [T, F, F, T, T]),
        (MULTI, [np.array([1, 0]), np.array([0, 1, 1])], [T, F, F, T, T]),
        (MULTI, np.array([1, 0, 0, 1, 1]), [T, F, F, T, T]),
        (MULTI, [1, 0, 0, 1, 1], [T, F, F, T, T]),
        (SHAPED, ([1, 0], [1, 1], [0, 0, 1], [0, 1]), [T, F, T, T, F, F, T, F, T]),
        (DICT, {"go": [0, 1]}, [F, T]),
        (DICT, {"go": [0, 1], "arm": None}, [F, T]),
        (DICT, {"go": None}, [T, T]),
        (DICT, {}, [T, T]),
        (DICT, None, [T, T]),
        (TUPLE, ([1, 1, 0], {"a": [0, 1], "b": ([1, 1], [0, 0, 1])}), [T, T, F, F, T, T, T, F, F, T]),
        (TUPLE, ([1, 1, 0],), [T, T, F, T, T, T, T, T, T, T]),
        (TUPLE, (None, {"b": [1, 0, 1, 0, 0]}), [T, T, T, T, T, T, F, T, F, F]),
        (TUPLE, {1: {"a": [1, 0]}}, [T, T, T, T, F, T, T, T, T, T]),
        (BOX, None, []),
    ],
    ids=str,
)
def test_a_mask_in_the_shape_of_its_space_becomes_one_row_in_the_order_of_the_space(space, mask, row):
    found = flat_mask(mask, space)
    assert found.tolist() == row
    assert found.dtype == bool


@pytest.mark.parametrize(
    ("space", "mask", "words"),
    [
        (spaces.Discrete(3), [1, 0], ["expected 3 entries that are 0 or 1", "[1, 0]"]),
        (spaces.Discrete(3), [1, 0, 1, 1], ["expected 3 entries"]),
        (spaces.Discrete(3), 1, ["expected 3 entries"]),
        (spaces.Discrete(3), [1, 0, 2], ["expected 3 entries that are 0 or 1"]),
        (spaces.Discrete(3), [1, 0, -1], ["0 or 1"]),
        (spaces.Discrete(3), [1.0, 0.5, 0.0], ["0 or 1"]),
        (spaces.Discrete(3), [1.0, np.nan, 0.0], ["0 or 1"]),
        (spaces.Discrete(3), ["a", "b", "c"], ["0 or 1"]),
        (MULTI, ([1, 0], [1, 1]), ["expected 5 entries"]),
        (MULTI, [1, 0, 1], ["expected 5 entries"]),
        (DICT, {"stop": [1, 0]}, ["['stop']", "which the action space Dict(", "has not"]),
        (DICT, {"go": [1, 0, 1]}, ["expected 2 entries"]),
        (DICT, {"arm": [1, 0]}, ["no single actions to rule out", "Box"]),
        (TUPLE, (None, None, None), ["['2']", "has not"]),
        (TUPLE, (None, {"c": [1]}), ["['c']", "has not"]),
    ],
    ids=str,
)
def test_a_mask_of_another_shape_or_of_other_numbers_is_refused_with_what_is_expected(space, mask, words):
    with pytest.raises(EnvDataError) as told:
        flat_mask(mask, space)
    for word in ("action_mask", *words):
        assert word in str(told.value)


def test_masks_nest_as_the_space_itself_does():
    # Gymnasium's own sample takes this form for a grid of choices.
    grid = spaces.MultiDiscrete([[2, 3], [4, 2]])
    mask = tuple(tuple(np.eye(n, dtype=np.int8)[0] for n in row) for row in grid.nvec)
    grid.seed(0)
    assert not grid.sample(mask=mask).any()
    assert flat_mask(mask, grid).tolist() == [T, F, T, F, F, T, F, F, F, T, F]


def test_a_mask_for_parts_that_has_no_parts_is_refused():
    with pytest.raises(EnvDataError, match="action_mask 3: expected one for each part"):
        flat_mask(3, TUPLE)


@pytest.mark.parametrize(
    ("row", "something"),
    [([T, F, F, T, F], True), ([F, F, T, T, T], False), ([T, T, F, F, F], False), ([F, F, F, F, F], False)],
)
def test_a_mask_allows_something_where_every_choice_has_an_action_left(row, something):
    assert allows_something(np.array([row]), head_sizes(MULTI)).tolist() == [something]


# --- through the environments -----------------------------------------------------------------------------------------


class Sends(gym.Env[np.ndarray, Any]):
    """Sends `mask` as it is with its second step, and none before; episodes of three steps."""

    def __init__(self, space: spaces.Space[Any], mask: Any) -> None:
        self.observation_space, self.action_space, self.mask = spaces.Box(0.0, 1.0, (1,)), space, mask

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        info = {"action_mask": self.mask} if self.steps == 2 else {}
        return np.ones(1, np.float32), 0.0, self.steps == 3, False, info


@pytest.fixture(params=["sync", "async"])
def masks_sent(request) -> Iterator[Any]:
    """Make two copies of `Sends`, step them three times, and tell what was allowed before and after each."""

    def told(space: spaces.Space[Any], mask: Any) -> list[Any]:
        gym.register("mask/Sends-v0", entry_point=lambda: Sends(space, mask), disable_env_checker=True)
        envs = make_vector_env(EnvConfig("mask/Sends-v0", num_envs=2, vectorization=request.param), SEED)
        try:
            envs.reset()
            space.seed(0)
            first = envs.action_mask
            return [first, *(envs.step(envs.env.action_space.sample()).action_mask for _ in range(3))]
        finally:
            envs.close()

    yield told
    gym.registry.pop("mask/Sends-v0", None)


@pytest.mark.parametrize(
    ("space", "mask", "row"),
    [
        (spaces.Discrete(3), np.array([1, 0, 1], np.int8), [T, F, T]),
        (MULTI, ([1, 0], [0, 1, 1]), [T, F, F, T, T]),
        (DICT, {"go": np.array([F, T])}, [F, T]),
        (TUPLE, (None, {"a": [0, 1]}), [T, T, T, F, T, T, T, T, T, T]),
    ],
    ids=["Discrete", "MultiDiscrete", "Dict", "Tuple"],
)
def test_a_mask_holds_until_the_next_step_and_without_one_everything_is_allowed(masks_sent, space, mask, row):
    first, second, third, fourth = masks_sent(space, mask)
    assert (first, second, fourth) == (None, None, None)
    assert third.tolist() == [row, row]


def test_where_there_is_nothing_to_rule_out_a_mask_of_any_form_is_left_alone(masks_sent):
    assert masks_sent(BOX, "any form") == [None, None, None, None]


def test_a_mask_of_bits_is_refused_rather_than_not_kept_to(masks_sent):
    with pytest.raises(EnvDataError, match=r"MultiBinary\(2\) has no single actions to rule out"):
        masks_sent(spaces.MultiBinary(2), [0, 1])


@pytest.mark.parametrize(
    ("space", "mask", "words"),
    [
        (spaces.Discrete(3), np.ones(2), "expected 3 entries"),
        (spaces.Discrete(3), np.array([1, 2, 0]), "0 or 1"),
        (MULTI, ([1], [1, 0]), "expected 5 entries"),
        (DICT, {"stop": [1, 1]}, "stop"),
    ],
    ids=["length", "numbers", "MultiDiscrete", "key"],
)
def test_a_mask_that_does_not_fit_names_environment_and_step(masks_sent, space, mask, words):
    with pytest.raises(EnvDataError, match=r"environment [01] \(mask/Sends-v0\), step 2 of its episode 0,") as told:
        masks_sent(space, mask)
    assert words in str(told.value)
    assert "no update was made with it" in str(told.value)


@pytest.mark.parametrize(
    ("space", "mask"),
    [(spaces.Discrete(3), np.zeros(3)), (MULTI, ([1, 1], [0, 0, 0])), (TUPLE, (None, {"a": [0, 0]}))],
    ids=["Discrete", "one choice of MultiDiscrete", "one part of Tuple"],
)
def test_a_mask_that_allows_nothing_names_environment_and_step(masks_sent, space, mask):
    with pytest.raises(EnvDataError, match="action_mask of environment 0 allows no action after step 2;"):
        masks_sent(space, mask)


# --- through rollouts -------------------------------------------------------------------------------------------------


HOW = [("sync", AutoresetMode.SAME_STEP), ("async", AutoresetMode.SAME_STEP), ("sync", AutoresetMode.NEXT_STEP)]
SPACES = {"Discrete": 3, "MultiDiscrete": [3, 4]}


def collected(kwargs: dict[str, Any], vectorization: str, mode: AutoresetMode) -> SimpleNamespace:
    """Four rollouts of 12 steps in three copies of `Masked`, which raises for an action that it ruled out."""
    agent = agent_in("Masked", **{f"env__kwargs__{name}": value for name, value in kwargs.items()})
    config = EnvConfig("faulty_envs:Masked", kwargs, num_envs=3, vectorization=vectorization)
    envs = make_vector_env(config, SEED, autoreset=mode)
    noise = torch.Generator().manual_seed(1)
    collector = Collector(envs, agent.family, agent.obs_normalizer, 12, noise, agent.device)
    try:
        rollouts = [collector.collect(agent.policy)[0] for _ in range(4)]
    finally:
        envs.close()
    sizes = list(head_sizes(envs.action_space))
    return SimpleNamespace(rollouts=rollouts, sizes=sizes, agent=agent)


@pytest.mark.parametrize(("vectorization", "mode"), HOW, ids=lambda x: getattr(x, "name", x))
@pytest.mark.parametrize("actions", list(SPACES))
@pytest.mark.parametrize("every", [1, 3], ids=["always", "with every third step"])
def test_the_stored_mask_is_that_of_the_observation_acted_on_and_no_action_it_rules_out_is_taken(
    actions, every, vectorization, mode
):
    run = collected({"actions": SPACES[actions], "every": every}, vectorization, mode)
    offsets = torch.tensor(np.cumsum([0, *run.sizes[:-1]]))
    ruled_out = ended = 0
    for rollout in run.rollouts:
        expected = mask_of(rollout.obs.numpy(), run.sizes)
        real = rollout.valid.numpy()  # the row that only resets is no transition, its action is ignored
        np.testing.assert_array_equal(rollout.action_mask.numpy()[real], expected[real])
        chosen = rollout.action.long().view(*rollout.valid.shape, -1) + offsets
        assert rollout.action_mask.gather(-1, chosen)[rollout.valid].all()
        ruled_out += int((~rollout.action_mask).sum())
        ended += int((rollout.terminated | rollout.truncated).sum())
    assert ruled_out > 40
    assert ended > 8


@pytest.mark.parametrize(("vectorization", "mode"), HOW, ids=lambda x: getattr(x, "name", x))
def test_log_probabilities_are_those_of_the_masked_policy(vectorization, mode):
    run = collected({"actions": 3}, vectorization, mode)
    for rollout in run.rollouts:
        with torch.no_grad():
            logits = run.agent.policy(rollout.obs.flatten(0, 1)).params.view(*rollout.valid.shape, 3)
        # softmax over the allowed actions alone
        masked = torch.log_softmax(logits.masked_fill(~rollout.action_mask, -torch.inf), -1)
        expected = masked.gather(-1, rollout.action.long().unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(rollout.logp[rollout.valid], expected[rollout.valid], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "vectorization"),
    [
        ({"actions": 3}, "sync"),
        ({"actions": [3, 4]}, "sync"),
        ({"actions": [3, 4], "as_tuple": True}, "async"),
        ({"actions": 3, "every": 2}, "async"),
    ],
    ids=["Discrete", "MultiDiscrete", "as a tuple", "sometimes"],
)
def test_an_agent_learns_with_the_masks_it_acted_with(kwargs, vectorization):
    own = {f"env__kwargs__{name}": value for name, value in kwargs.items()}
    agent = agent_in("Masked", env__vectorization=vectorization, **own)
    for _ in range(3):
        metrics = agent.iterate()
        assert metrics["kl/before_update"] == 0.0
        assert all(np.isfinite(value) for value in metrics.values())
        assert metrics["kl/forward"] > 0.0
    agent.close()


def test_evaluation_takes_no_action_that_is_ruled_out():
    agent = agent_in("Masked", env__kwargs__actions=[3, 4])
    for deterministic in (True, False):
        evaluated = agent.evaluate(12, deterministic=deterministic)
        assert len(evaluated.returns) == 12
        assert 1.0 <= evaluated.mean <= 6.0  # the environment raises for an action that it ruled out


@pytest.mark.parametrize(("actions", "vectorization"), [("Discrete", "sync"), ("MultiDiscrete", "async")])
def test_an_environment_in_which_nothing_can_be_done_ends_the_run_with_nothing_lost(actions, vectorization):
    agent = agent_in(
        "Masked",
        env__kwargs__actions=SPACES[actions],
        env__kwargs__closes=40,
        env__vectorization=vectorization,
        training__num_steps=16,
    )
    # Observation 40 of an environment is, with a reset or more among them, of its third rollout of 16 or of its second.
    states = [agent.learner.state_dict()]

    def learn() -> None:
        for _ in range(3):
            agent.iterate()
            states.append(agent.learner.state_dict())

    with pytest.raises(EnvDataError, match=r"action_mask of environment \d allows no action after step \d+;"):
        learn()
    before, after = states[-1], agent.learner.state_dict()
    assert len(states) > 1
    for name in ("policy", "exp_avg", "exp_avg_sq"):
        for key, value in before[name].items():
            assert torch.equal(after[name][key], value)
    agent.close()


def test_the_fixture_rules_out_something_and_never_everything():
    obs = np.stack(np.broadcast_arrays(np.linspace(0, 1, 99, dtype=np.float32), np.float32(1)), -1)
    masks = mask_of(obs, [3])
    assert len(np.unique(masks, axis=0)) == 7
    assert masks.any(1).all()
    assert mask_of(obs * np.float32([1, 0]), [3]).all()
    assert Masked([3, 4]).action_space == spaces.MultiDiscrete([3, 4])


# --- acting -----------------------------------------------------------------------------------------------------------


def test_an_agent_that_acts_by_itself_keeps_to_the_mask_it_is_given():
    agent = small_agent()
    for allowed in (0, 1):
        mask = [k == allowed for k in range(2)]
        assert agent.act(np.zeros(4), action_mask=mask) == allowed
        drawn = agent.act(np.zeros((50, 4)), action_mask=[mask] * 50, deterministic=False)
        assert (drawn == allowed).all()


@pytest.mark.parametrize("mask", [[0, 0], [1], [1, 1, 1], [[1, 0], [0, 1]]])
def test_a_mask_of_another_shape_or_without_an_action_is_refused(mask):
    with pytest.raises(ValueError, match=r"action_mask .*expected shape \(1, 2\)"):
        small_agent().act(np.zeros(4), action_mask=mask)
