"""What an environment answers is taken as the number it means, or refused with what was expected and what came."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from faulty_envs import Sends, fault_config
from gymnasium import spaces
from toy_envs import FAULTY_ENV, SEED

from ppo_kl.config import EnvConfig
from ppo_kl.envs.autoreset import Environments, Step
from ppo_kl.envs.guard import GuardedEnv, all_usable, is_usable
from ppo_kl.envs.make import make_vector_env
from ppo_kl.errors import EnvDataError, EnvWarning, EnvWorkerError

AT = 2
"""The fault is sent in the third step."""
BOTH = pytest.mark.parametrize("vectorization", ["sync", "async"])


def here_and(*elsewhere: str) -> Any:
    """Every fault with sync, and those named with async too: a worker checks by the same code, and sends the answer."""
    return lambda cases: [
        (*case, how) for case in cases for how in ("sync", "async") if how == "sync" or case[0] in elsewhere
    ]


def stepped(config: EnvConfig, steps: int = AT + 1) -> tuple[Environments, Step]:
    """Environments after so many steps, closed, and their last answer."""
    envs = make_vector_env(config, SEED)
    try:
        envs.reset()
        for _ in range(steps):
            step = envs.step(np.zeros(2, np.int64))
    finally:
        envs.close()
    return envs, step


def refused(config: EnvConfig, *words: str) -> None:
    """Refused in the third step of environment 1, which is named, with these words and what to do about it."""
    with pytest.raises(EnvDataError) as told:
        stepped(config)
    message = str(told.value)
    for word in (f"environment {FAULTY_ENV} (faulty_envs:Sends), step ", "of its episode 0,", *words):
        assert word in message
    for word in ("no update was made with it", "weights and checkpoints are as before", "mend the environment"):
        assert word in message
    assert "Traceback" not in message


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_finite_in_float32_can_be_used_and_nothing_else(dtype):
    numbers = np.array([1.0, 6e4, -6e4, np.inf, -np.inf, np.nan, *([3.5e38] if dtype == np.float64 else [])], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_usable(numbers).tolist() == [True, True, True] + [False] * (len(numbers) - 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 3.5e38, -1e300])
def test_no_array_with_a_number_that_cannot_be_used_passes_the_quick_look(bad, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in (0.0, 1.0, -np.inf):
            x = np.full((3, 2), number, dtype)
            with np.errstate(over="ignore"):
                x[1, 1] = bad
            assert not all_usable(x)
        assert all_usable(np.array([[1.0, -6e4], [0.0, 1e-3]], dtype if dtype != np.float16 else np.float32))
        assert all_usable(np.zeros((0, 2), dtype))
    # The largest float32 is used, and the next float64 is not.
    largest = float(np.finfo(np.float32).max)
    assert all_usable(np.array([largest]))
    assert not all_usable(np.array([np.nextafter(largest, np.inf)]))


@BOTH
def test_an_environment_that_cannot_be_closed_takes_nothing_with_it(vectorization):
    config = EnvConfig("faulty_envs:CannotBeClosed", num_envs=2, vectorization=vectorization)
    envs = make_vector_env(config, SEED)
    envs.reset()
    if vectorization == "async":  # its worker says so, on its own standard error
        envs.close()
        return
    with pytest.warns(EnvWarning, match=r"environment [01] \(faulty_envs:CannotBeClosed\).*RuntimeError: viewer gone"):
        envs.close()


def test_a_tuple_that_is_sent_as_a_list_is_taken_beyond_the_end_of_an_episode():
    for nonfinite in ("stop", "truncate"):
        envs = make_vector_env(EnvConfig("faulty_envs:Lists", num_envs=2, nonfinite=nonfinite), SEED)
        envs.reset()
        steps = [envs.step(np.zeros(2, np.int64)) for _ in range(5)]
        envs.close()
        assert sum(step.over.sum() for step in steps) == 2
        assert steps[2].final_obs[0]["0"].tolist() == [3.0, 3.0]


def test_a_tensor_that_requires_a_gradient_is_refused():
    envs = make_vector_env(EnvConfig("faulty_envs:Differentiable", num_envs=1), SEED)
    with pytest.raises(EnvDataError, match=r"requires_grad=True.*expected an array of shape"):
        envs.reset()
    envs.close()


# --- rewards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "shown", "kind", "vectorization"),
    here_and("None", "array of two")(
        [
            ("None", "None", "NoneType"),
            ("str", "'1.0'", "str"),
            ("complex", "(1+1j)", "complex"),
            ("array of two", "array([1., 1.])", "ndarray"),
            ("array of words", "array(['1']", "ndarray"),
            ("list", "[1.0]", "list"),
        ]
    ),
)
def test_a_reward_that_is_not_one_number_is_refused_with_its_value_and_type(fault, shown, kind, vectorization):
    config = fault_config(f"reward {fault}", at=AT, vectorization=vectorization)
    refused(config, f"reward {shown}", f"of type {kind}, expected one number")


@pytest.mark.parametrize(
    ("fault", "value", "vectorization"),
    here_and("array of one", "tensor of no dimensions")(
        [
            ("2.5", 2.5),
            ("array of one", 2.5),
            ("array of no dimensions", 2.5),
            ("float32", 2.5),
            ("float64", 2.5),
            ("tensor of no dimensions", 2.5),
            ("int", 2.0),
            ("int64", 2.0),
            ("bool", 1.0),
            ("numpy bool", 1.0),
        ]
    ),
)
def test_a_reward_in_any_type_of_one_number_has_that_value(fault, value, vectorization):
    _, step = stepped(fault_config(f"reward {fault}", at=AT, vectorization=vectorization))
    assert step.reward.tolist() == [1.0, value]
    assert step.reward.dtype == np.float64


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "parts", "words", "vectorization"),
    here_and("four parts", "obs of shape (3,)", "obs of objects", "image as float", "no image")(
        [
            ("four parts", False, ["step answered (array(", "expected (obs, reward, terminated, truncated, info)"]),
            ("no answer", False, ["step answered None, expected (obs, reward, terminated, truncated, info)"]),
            ("info no dict", False, ["[])", "expected (obs, reward, terminated, truncated, info)"]),
            ("obs of shape (3,)", False, ["observation has shape (3,), expected (2,)"]),
            ("obs of shape (1, 2)", False, ["observation has shape (1, 2), expected (2,)"]),
            ("obs None", False, ["observation has shape (), expected (2,)"]),
            ("obs ragged", False, ["observation is [[1.0], [1.0, 2.0]], expected an array of shape (2,)"]),
            ("obs of words", False, ["observation has dtype <U1, which is no float32: array(['a', 'b']"]),
            ("obs of objects", False, ["observation has dtype object, which is no float32: array([None, 1.0]"]),
            ("obs complex", False, ["observation has dtype complex128, which is no float32"]),
            ("image as float", True, ["observation 'image' has dtype float32, which is no uint8"]),
            ("image as signed", True, ["observation 'image' has dtype int64, which is no uint8"]),
            ("image too large", True, ["observation 'image' has shape (3, 2), expected (2, 2)"]),
            ("no image", True, ["observation {'arm': ", "has no part 'image'"]),
            ("arm without joints", True, ["has no part 'arm.joints'"]),
            ("arm no dict", True, ["has no part 'arm.grip'"]),
            ("grip as float", True, ["observation 'arm.grip' has dtype float64, which is no int64: 1.0"]),
            ("obs of words", True, ["has no part 'arm.grip'"]),
        ]
    ),
    ids=lambda x: {True: "dict", False: "box"}[x] if isinstance(x, bool) else "" if isinstance(x, list) else x,
)
def test_an_answer_of_another_form_is_refused_with_what_came_and_what_was_expected(fault, parts, words, vectorization):
    refused(fault_config(fault, at=AT, parts=parts, vectorization=vectorization), *words)


class Shows(gym.Env[Any, Any]):
    """Shows whatever it is made with."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: gym.Space[Any], obs: Any) -> None:
        self.observation_space, self.obs = space, obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.obs, {}


@pytest.mark.parametrize(
    ("space", "obs", "words"),
    [
        (spaces.MultiBinary(3), np.array([0.5, 0.9, np.nan]), "dtype float64, which is no int8"),
        (spaces.Box(-9, 9, (3,), np.int32), np.array([0.5, 1.9, -1.0], np.float32), "dtype float32, which is no int32"),
        (spaces.Box(0, 255, (3,), np.uint8), np.array([300, -1, 7]), "dtype int64, which is no uint8"),
        (
            spaces.Dict(a=spaces.MultiBinary(1)),
            {"a": np.array([0.5])},
            "observation 'a' has dtype float64, which is no",
        ),
    ],
)
def test_what_would_become_another_number_in_the_spaces_own_type_is_refused(space, obs, words):
    with pytest.raises(EnvDataError, match=words):
        GuardedEnv(Shows(space, obs), "toy/Shows-v0", SEED, 0, 0).reset()


def test_a_wider_type_of_the_same_kind_is_taken():
    space, obs = spaces.Box(-9, 9, (2,), np.int32), np.array([3, -4])
    assert GuardedEnv(Shows(space, obs), "toy/Shows-v0", SEED, 0, 0).reset()[0].tolist() == [3, -4]


@pytest.mark.parametrize(
    ("fault", "vectorization"), here_and("obs of words")([("obs of shape (3,)",), ("obs of words",), ("info no dict",)])
)
def test_a_reset_is_checked_as_a_step_is(fault, vectorization):
    envs = make_vector_env(fault_config(fault, at_reset=True, vectorization=vectorization), SEED)
    with pytest.raises(EnvDataError, match=r"environment 1 \(faulty_envs:Sends\), step 0 of its episode 0,"):
        envs.reset()
    envs.close()


@BOTH
@pytest.mark.parametrize(
    ("fault", "sent"),
    [("obs float64", [0.25, 0.5]), ("obs list", [0.25, 0.5]), ("obs uint8", [0.0, 1.0]), ("obs outside", [-3.0, 5.0])],
)
def test_an_observation_in_another_real_type_is_used_with_its_values(fault, sent, vectorization):
    _, step = stepped(fault_config(fault, at=AT, vectorization=vectorization))
    assert step.obs[FAULTY_ENV].tolist() == sent
    np.testing.assert_array_equal(step.obs[0], np.array([0, 3], np.float32) / 100)


# --- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "ends", "vectorization"),
    here_and("terminated 1", "truncated 1")(
        [
            ("terminated 1", True),
            ("terminated 0", False),
            ("terminated numpy True", True),
            ("terminated numpy False", False),
            ("terminated array of one", True),
            ("truncated 1", True),
        ]
    ),
)
def test_true_and_false_in_any_type_end_the_episode_or_do_not(fault, ends, vectorization):
    _, step = stepped(fault_config(fault, at=AT, vectorization=vectorization))
    told = step.truncated if fault.startswith("truncated") else step.terminated
    assert told.tolist() == [False, ends]
    assert told.dtype == bool
    assert list(step.final_obs) == ([FAULTY_ENV] if ends else [])
    # The third step of an episode, or the first observation of the next.
    assert step.obs[FAULTY_ENV].tolist() == pytest.approx([0.01, 0.0 if ends else 0.03])


@pytest.mark.parametrize(
    ("fault", "words", "vectorization"),
    here_and("terminated None")(
        [
            ("terminated 2", "terminated is 2 of type int"),
            ("terminated -1", "terminated is -1 of type int"),
            ("terminated None", "terminated is None of type NoneType"),
            ("terminated str", "terminated is 'False' of type str"),
            ("terminated 1.0", "terminated is 1.0 of type float"),
            ("terminated array of two", "terminated is array([False, False]) of type ndarray"),
            ("truncated None", "truncated is None of type NoneType"),
        ]
    ),
)
def test_an_end_that_is_neither_true_nor_false_is_refused_with_its_value_and_type(fault, words, vectorization):
    refused(fault_config(fault, at=AT, vectorization=vectorization), f"{words}, expected True or False")


# --- info -------------------------------------------------------------------------------------------------------------


@BOTH
def test_nothing_of_info_but_masks_and_cuts_reaches_the_vector_environment(vectorization):
    # Every second step sends another key, with an object; the third a function, a generator and 80 MB.
    config = fault_config("info that cannot be sent", at=AT, vectorization=vectorization, length=4)
    envs = make_vector_env(config, SEED)
    try:
        _, info = envs.env.reset()
        told = [info, *(envs.env.step(np.zeros(2, np.int64))[4] for _ in range(6))]
    finally:
        envs.close()
    names = [{name for name in info if not name.startswith("_")} for info in told]
    # The fourth step ends both episodes, and its info is that of the end, which is empty as well.
    assert names[:4] + names[5:] == [set()] * 6
    assert names[4] == {"final_obs", "final_info"}
    assert told[4]["final_info"] == {} or list(told[4]["final_info"]) == [{}, {}]


# --- an environment that raises ---------------------------------------------------------------------------------------


class Raises(Sends):
    """Raises in its third step."""

    def step(self, action: int) -> Any:
        if self.steps == AT:
            raise KeyError("no such move")
        return super().step(action)


@BOTH
def test_an_environment_that_raises_is_told_with_index_step_type_text_and_traceback(vectorization):
    gym.register("guard/Raises-v0", entry_point=Raises, disable_env_checker=True)
    try:
        config = EnvConfig("guard/Raises-v0", num_envs=2, vectorization=vectorization)
        with pytest.raises(EnvWorkerError) as told:
            stepped(config)
    finally:
        del gym.registry["guard/Raises-v0"]
    message = str(told.value)
    for word in ("environment ", "(guard/Raises-v0), step 2 of its episode 0,", "raised in step: KeyError: "):
        assert word in message
    assert 'raise KeyError("no such move")' in message
