"""The objective as settings: ranges, presets, overrides, and what each refusal says."""

import itertools

import pytest

from ppo_kl.config.objective import Adaptive, Clip, Fixed, ForwardKL, NoPenalty, ObjectiveConfig, Ratio
from ppo_kl.config.presets import PRESETS, preset
from ppo_kl.errors import ConfigError

NAN, INF = float("nan"), float("inf")
PAPER = Adaptive(kl_target=0.01, kl_lambda=1.0, band=1.5, factor=2.0, min=1e-4, max=1e4)

REFUSED = {
    (Clip, "clip_eps"): [-0.2, 0, 0.0, 1, 1.0, 1.5, NAN, INF, -INF, "0.2", True, None],
    (Clip, "clip_eps_high"): [-0.1, 0, NAN, INF, "0.2", False],
    (Fixed, "kl_lambda"): [-1e-9, -1, NAN, INF, "1", True, None],
    (Adaptive, "kl_target"): [0, -0.01, NAN, INF, -INF, "0.01", True, None],
    (Adaptive, "kl_lambda"): [0, -1, NAN, INF, "1", True],
    (Adaptive, "band"): [0.99, 0, -1.5, NAN, INF, "1.5", True],
    (Adaptive, "factor"): [1, 1.0, 0.5, 0, -2, NAN, INF, "2", True],
    (Adaptive, "min"): [0, -1e-4, NAN, "0"],
    (Adaptive, "max"): [0, -1, NAN, INF, "0"],
}


@pytest.mark.parametrize(
    ("part", "name", "value"), [(part, name, v) for (part, name), values in REFUSED.items() for v in values]
)
def test_a_value_outside_its_range_is_refused_with_name_and_value(part, name, value):
    with pytest.raises(ConfigError) as error:
        part(**{name: value})
    assert f"{name}={value!r}" in str(error.value)
    assert error.value.key == name
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        (Clip, "clip_eps", 1e-9),
        (Clip, "clip_eps", 0.999),
        (Clip, "clip_eps_high", 5.0),
        (Fixed, "kl_lambda", 0.0),
        (Adaptive, "kl_target", 1e-9),
        (Adaptive, "band", 1.0),
        (Adaptive, "factor", 1.0001),
        (Adaptive, "min", 1.0),
        (Adaptive, "max", 1.0),
    ],
)
def test_a_value_at_the_edge_of_its_range_is_taken(part, name, value):
    assert getattr(part(**{name: value}), name) == value


def test_a_whole_number_is_taken_as_a_float():
    assert type(Fixed(2).kl_lambda) is float


@pytest.mark.parametrize(("low", "start", "high"), list(itertools.permutations([0.5, 1.0, 2.0])))
def test_lambda_must_lie_between_its_bounds(low, start, high):
    if (low, start, high) == (0.5, 1.0, 2.0):
        assert Adaptive(min=low, kl_lambda=start, max=high).kl_lambda == start
        return
    with pytest.raises(ConfigError) as error:
        Adaptive(min=low, kl_lambda=start, max=high)
    message = str(error.value)
    assert f"kl_lambda={start}" in message
    assert f"min={low}" in message
    assert f"max={high}" in message


def test_lambda_may_stand_on_a_bound():
    assert Adaptive(min=1.0, kl_lambda=1.0, max=1.0).kl_lambda == 1.0


@pytest.mark.parametrize("controller", [Adaptive(), Fixed(1.0), Fixed(1e-6)])
def test_a_controller_with_nothing_to_multiply_is_refused(controller):
    with pytest.raises(ConfigError, match="penalty 'none'") as error:
        ObjectiveConfig("mine", Ratio(), NoPenalty(), controller)
    assert error.value.key == "controller"


@pytest.mark.parametrize(
    ("field", "part"),
    [
        ("surrogate", ForwardKL()),
        ("penalty", Fixed()),
        ("controller", Clip()),
        ("surrogate", None),
        ("penalty", "none"),
    ],
)
def test_a_part_of_the_wrong_family_is_refused(field, part):
    with pytest.raises(ConfigError) as error:
        ObjectiveConfig(**{field: part})
    assert error.value.key == field


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("none", (Ratio(), NoPenalty(), Fixed(0.0))),
        ("clip", (Clip(0.2), NoPenalty(), Fixed(0.0))),
        ("kl_fixed", (Ratio(), ForwardKL(), Fixed(1.0))),
        ("kl_adaptive", (Ratio(), ForwardKL(), PAPER)),
        ("kl_clip", (Clip(0.2), ForwardKL(), PAPER)),
    ],
)
def test_a_preset_is_the_published_choice_of_three_parts(name, parts):
    config = preset(name)
    assert config.name == name
    assert (config.surrogate, config.penalty, config.controller) == parts


def test_every_preset_is_listed_under_its_own_name():
    assert {key: config.name for key, config in PRESETS.items()} == {key: key for key in PRESETS}


def test_an_override_goes_to_the_part_that_has_it_and_leaves_the_rest():
    config = preset("kl_clip", clip_eps=0.3, kl_target=0.02)
    assert config == ObjectiveConfig("kl_clip", Clip(0.3), ForwardKL(), Adaptive(kl_target=0.02))


@pytest.mark.parametrize(
    "settings",
    [
        {"max": 1e6, "kl_lambda": 1e5},
        {"kl_lambda": 1e5, "max": 1e6},
        {"kl_lambda": 3.0, "min": 2.0},
        {"min": 2.0, "kl_lambda": 3.0},
    ],
    ids=lambda settings: "-then-".join(settings),
)
def test_overrides_are_judged_together_whatever_their_order(settings):
    assert preset("kl_adaptive", **settings).controller == Adaptive(**settings)


@pytest.mark.parametrize(("name", "meant"), [("kl_adaptiv", "kl_adaptive"), ("Clip", "clip"), ("kl-fixed", "kl_fixed")])
def test_an_unknown_preset_is_refused_with_the_nearest_name(name, meant):
    with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
        preset(name)


def test_a_preset_that_resembles_none_is_refused_with_the_list_of_all():
    with pytest.raises(ConfigError) as error:
        preset("zzzzzz")
    assert all(name in str(error.value) for name in PRESETS)


def test_an_unknown_setting_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'kl_target'") as error:
        preset("kl_adaptive", kl_targt=0.02)
    assert error.value.key == "kl_targt"


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("kl_adaptive", "clip_eps"),
        ("clip", "kl_target"),
        ("clip", "band"),
        ("none", "clip_eps"),
        ("kl_fixed", "kl_target"),
    ],
)
def test_a_setting_of_another_objective_is_refused(name, setting):
    with pytest.raises(ConfigError, match=setting):
        preset(name, **{setting: 0.1})


def test_a_penalty_coefficient_without_a_penalty_is_refused():
    with pytest.raises(ConfigError, match=r"kl_lambda=0\.5"):
        preset("clip", kl_lambda=0.5)


def test_an_override_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"kl_target=-1"):
        preset("kl_adaptive", kl_target=-1.0)
