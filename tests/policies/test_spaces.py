"""Which family an action space has, what is refused by name, and families as plain values."""

import json

import numpy as np
import pytest
from every_family import EVERY_FAMILY
from gymnasium import spaces
from toy_envs import ACTION_SPACES

from ppo_kl.errors import ConfigError
from ppo_kl.policies.box_families import BetaFamily, FullGaussianFamily, GaussianFamily, TanhGaussianFamily
from ppo_kl.policies.families import BernoulliFamily, CategoricalFamily, JointFamily, MultiCategoricalFamily
from ppo_kl.policies.spaces import BOX_FAMILIES, describe, family_of, from_description

MATRIX = spaces.Box(-np.arange(1, 7, dtype=np.float32).reshape(2, 3), np.float32(0.5), (2, 3), np.float32)


def test_a_discrete_space_has_a_categorical_family():
    assert family_of(spaces.Discrete(3)) == CategoricalFamily(3, 0)
    assert family_of(spaces.Discrete(3, start=-2)) == CategoricalFamily(3, -2)
    assert CategoricalFamily(3).num_params == 3


def test_a_multi_discrete_space_has_a_logit_for_every_action_of_every_head():
    family = family_of(spaces.MultiDiscrete([2, 5], start=[1, -1]))
    assert family == MultiCategoricalFamily((2, 5), (1, -1), (2,))
    assert family.num_params == 7


def test_a_multi_binary_space_has_one_logit_for_each_of_its_numbers():
    assert family_of(spaces.MultiBinary(3)) == BernoulliFamily((3,))
    assert family_of(spaces.MultiBinary((2, 3))).num_params == 6


def test_a_box_has_a_gaussian_family_with_a_mean_and_a_scale_per_dimension():
    family = family_of(MATRIX)
    assert family == GaussianFamily((-1.0, -2.0, -3.0, -4.0, -5.0, -6.0), (0.5,) * 6, (2, 3), "float32")
    assert family.num_params == 12
    assert family_of(spaces.Box(-1.0, 2.0, ())) == GaussianFamily((-1.0,), (2.0,), (), "float32")
    assert family_of(spaces.Box(-0.1, 0.1, (3,), np.float64)) == GaussianFamily(
        (-0.1,) * 3, (0.1,) * 3, (3,), "float64"
    )


@pytest.mark.parametrize(
    ("distribution", "kind"),
    [
        ("gaussian", GaussianFamily),
        ("tanh_gaussian", TanhGaussianFamily),
        ("beta", BetaFamily),
        ("full_gaussian", FullGaussianFamily),
    ],
)
def test_a_box_has_the_distribution_that_is_asked_for_wherever_it_stands(distribution, kind):
    assert type(family_of(MATRIX, distribution)) is kind
    inner = family_of(spaces.Dict(a=spaces.Tuple([spaces.Discrete(2), MATRIX])), distribution)
    assert type(inner.parts[0][1].parts[1][1]) is kind
    assert family_of(spaces.Discrete(2), distribution) == CategoricalFamily(2)


def test_a_dict_keeps_the_order_of_the_space_and_a_tuple_has_numbers():
    parts = {"b": spaces.Discrete(2), "a": spaces.Discrete(3)}
    assert family_of(spaces.Dict(parts)) == JointFamily((("a", CategoricalFamily(3)), ("b", CategoricalFamily(2))))
    assert family_of(spaces.Tuple(list(parts.values()))) == JointFamily(
        ((0, CategoricalFamily(2)), (1, CategoricalFamily(3)))
    )


UNSUPPORTED = [
    spaces.Text(4),
    spaces.Sequence(spaces.Discrete(2)),
    spaces.Graph(spaces.Discrete(2), None),
    spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]),
    spaces.Box(0, 255, (2,), np.uint8),
    spaces.Box(-3, 3, (2,), np.int64),
]
OUT_OF_BOUNDS = [
    spaces.Box(-np.inf, np.inf, (2,)),
    spaces.Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32)),
    spaces.Box(-np.inf, 1.0, (1,)),
]
EMPTY = [spaces.Box(-1.0, 1.0, (0,)), spaces.MultiDiscrete([]), spaces.Dict({}), spaces.Tuple([])]


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        *((space, "supported are Discrete, MultiDiscrete, MultiBinary, Box of floats") for space in UNSUPPORTED),
        *((space, "finite bounds") for space in OUT_OF_BOUNDS),
        *((space, "empty") for space in EMPTY),
        (spaces.Dict({1: spaces.Discrete(2)}), "words"),
    ],
    ids=str,
)
def test_an_action_space_without_a_family_is_refused_by_name(space, reason):
    with pytest.raises(ConfigError, match=reason) as error:
        family_of(space)
    assert str(space) in str(error.value)


def test_a_part_without_a_family_is_refused_with_its_place():
    space = spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple([spaces.Text(4)]))
    with pytest.raises(ConfigError, match="supported") as error:
        family_of(space)
    assert str(spaces.Text(4)) in str(error.value)
    assert f"in action space {space}" in str(error.value)


@pytest.mark.parametrize(
    "family",
    [
        *EVERY_FAMILY.values(),
        *(family_of(space, kind) for kind in BOX_FAMILIES for space in ACTION_SPACES.values()),
        family_of(MATRIX),
    ],
    ids=lambda family: type(family).__name__,
)
def test_a_description_survives_json_and_gives_the_same_family(family):
    again = from_description(json.loads(json.dumps(describe(family))))
    assert again == family
    assert type(again) is type(family)
