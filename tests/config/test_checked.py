"""Every setting refuses what it cannot mean, before anything else happens."""

import contextlib
import dataclasses
import math
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppo_kl.config import EnvConfig, PolicyConfig, RuntimeConfig, TrainConfig, TrainingConfig
from ppo_kl.config.checked import types_of
from ppo_kl.config.objective import Adaptive, Clip, Fixed
from ppo_kl.config.training import KLStop
from ppo_kl.errors import ConfigError

GROUPS = (TrainConfig, EnvConfig, PolicyConfig, TrainingConfig, RuntimeConfig, KLStop, Adaptive, Clip, Fixed)
NUMERIC = [
    (group, field)
    for group in GROUPS
    for field in dataclasses.fields(group)
    if {int, float} & {types_of(group)[field.name], *typing.get_args(types_of(group)[field.name])}
    and "tuple" not in str(types_of(group)[field.name])
]


@pytest.mark.parametrize(("group", "field"), NUMERIC, ids=lambda x: getattr(x, "name", getattr(x, "__name__", "")))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "fast", True, [1], 1 + 2j], ids=repr)
def test_no_number_may_be_nan_infinite_or_of_another_type(group, field, value):
    with pytest.raises(ConfigError, match=field.name):
        group(**{field.name: value})


@pytest.mark.parametrize(("group", "field"), NUMERIC, ids=lambda x: getattr(x, "name", getattr(x, "__name__", "")))
@given(number=st.one_of(st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False)))
def test_a_number_is_accepted_only_inside_its_declared_range(group, field, number):
    holds = {">": number.__gt__, ">=": number.__ge__, "<": number.__lt__, "<=": number.__le__}
    if isinstance(number, int):
        holds = {sign: getattr(float(number), method.__name__) for sign, method in holds.items()}
    inside = all(holds[sign](float(bound)) for sign, bound in field.metadata.items())
    whole_wanted = int in {types_of(group)[field.name], *typing.get_args(types_of(group)[field.name])}
    if not inside or (whole_wanted and isinstance(number, float)):
        with pytest.raises(ConfigError, match=field.name):
            group(**{field.name: number})
    else:
        # What is inside may still contradict another setting, as kl_lambda outside [min, max]; nothing else is refused.
        with contextlib.suppress(ConfigError):
            assert getattr(group(**{field.name: number}), field.name) == pytest.approx(number)


REFUSED = [
    (TrainingConfig, "gamma", 1.01),
    (TrainingConfig, "gamma", -0.01),
    (TrainingConfig, "gae_lambda", 2),
    (TrainingConfig, "max_grad_norm", -1),
    (TrainingConfig, "max_grad_norm", 0),
    (TrainingConfig, "num_epochs", 0),
    (TrainingConfig, "num_steps", 0),
    (TrainingConfig, "minibatch_size", 0),
    (TrainingConfig, "lr", 0),
    (TrainingConfig, "advantage_norm", "minibach"),
    (TrainConfig, "total_steps", 0),
    (TrainConfig, "seed", 2**64),
    (EnvConfig, "num_envs", 0),
    (EnvConfig, "id", ""),
    (PolicyConfig, "hidden_sizes", (64, 0)),
    (PolicyConfig, "hidden_sizes", 64),
    (PolicyConfig, "log_std_init", 3.0),
    (RuntimeConfig, "device", "gpu"),
    (RuntimeConfig, "device", "cuda:x"),
    (RuntimeConfig, "compile", "jit"),
    (RuntimeConfig, "workers", "many"),
    (RuntimeConfig, "workers", -1),
    (RuntimeConfig, "workers", 1.5),
]


@pytest.mark.parametrize(("group", "key", "value"), REFUSED)
def test_nonsense_is_refused_with_key_and_value(group, key, value):
    with pytest.raises(ConfigError) as refused:
        group(**{key: value})
    assert key in str(refused.value)
    assert repr(value).strip("()").split(",")[-1].strip() in str(refused.value) or str(value) in str(refused.value)


def test_a_misspelt_choice_gets_the_nearest_one():
    with pytest.raises(ConfigError, match="did you mean 'minibatch'"):
        TrainingConfig(advantage_norm="minibach")


def test_a_word_may_stand_in_the_place_of_a_number():
    assert [RuntimeConfig(workers=n).workers for n in ("auto", 0, 3)] == ["auto", 0, 3]
    with pytest.raises(ConfigError, match="workers='many': allowed: auto, or a number"):
        RuntimeConfig(workers="many")


def test_a_whole_number_becomes_a_float_where_one_is_declared():
    assert repr(TrainingConfig(gamma=1).gamma) == "1.0"


def test_a_list_becomes_a_tuple_so_that_settings_stay_hashable():
    assert PolicyConfig(hidden_sizes=[32, 32]).hidden_sizes == (32, 32)
    hash(TrainConfig())


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: KLStop(threshold=0.1), "threshold"),
        (lambda: KLStop(stops="actor"), "stops"),
        (lambda: KLStop(estimator="k3"), "estimator"),
        (lambda: TrainingConfig(lr_kl_target=0.02), "lr_kl_target"),
        (lambda: TrainingConfig(lr_schedule="linear", lr_kl_cadence="epoch"), "lr_kl_cadence"),
        (lambda: PolicyConfig(distribution="beta", log_std_init=-1.0), "log_std_init"),
        (lambda: PolicyConfig(distribution="beta", scale="softplus"), "scale"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(make, key):
    with pytest.raises(ConfigError, match=f"{key}=.*would be ignored") as error:
        make()
    assert error.value.key == key


@pytest.mark.parametrize("lr", [0.1, 1e-6])
def test_a_learning_rate_that_would_be_moved_at_once_is_refused(lr):
    with pytest.raises(ConfigError, match=r"from 1e-05 to 0\.01"):
        TrainingConfig(lr=lr, lr_schedule="kl_adaptive")
