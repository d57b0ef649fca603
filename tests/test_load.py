"""YAML layers, complaints with a place, and configurations that reload byte for byte."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_kl.config import EnvConfig, TrainConfig
from ppo_kl.config.ablation import AblationConfig
from ppo_kl.config.objective import K3, PI, SPO, Adaptive, Clip, ForwardKL, ObjectiveConfig, Ratio
from ppo_kl.config.presets import PRESETS
from ppo_kl.config.training import KL_STOPS
from ppo_kl.errors import ConfigError
from ppo_kl.load import SHIPPED, differing, from_yaml, load_config, load_study, to_dict, to_yaml, value_of

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("written", ["auto", "0", "3"])
def test_a_word_in_the_place_of_a_number_is_read_and_written(written):
    loaded = from_yaml(f"runtime: {{workers: {written}}}", "file")
    assert str(loaded.runtime.workers) == written
    assert from_yaml(to_yaml(loaded), "again") == loaded
    with pytest.raises(ConfigError, match=r"file:1:20: runtime\.workers: expected int, got 'several'"):
        from_yaml("runtime: {workers: several}", "file")


@pytest.mark.parametrize("vectorization", ["async", "native"])
def test_workers_for_environments_that_have_their_own_way_are_refused(vectorization):
    with pytest.raises(
        ConfigError, match=rf"runtime\.workers=1: would be ignored: env\.vectorization '{vectorization}'"
    ):
        load_config(overrides={"runtime.workers": 1, "env.vectorization": vectorization})


def test_without_arguments_it_is_cartpole_with_the_adaptive_penalty():
    config = load_config()
    assert config.env.id == "CartPole-v1"
    assert config.objective == PRESETS["kl_adaptive"]


@pytest.mark.parametrize("name", PRESETS)
def test_the_objective_files_are_the_presets(name):
    assert load_config(objective=name).objective == PRESETS[name]


def test_generated_files_are_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "scripts/generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_shipped_file_loads(path):
    if path.parent.name == "ablation":
        assert isinstance(load_study(str(path)), AblationConfig)
        return
    option = {"recipes": "config"}.get(path.parent.name, path.parent.name)
    assert isinstance(load_config(**{option: str(path)}), TrainConfig)


@pytest.mark.parametrize("name", KL_STOPS)
def test_the_kl_stop_files_are_the_presets(name):
    assert load_config(kl_stop=name).training.kl_stop == KL_STOPS[name]


def test_the_paper_and_pat_coadys_recipe_are_what_they_say():
    paper, pat_coady = (load_config(config=name) for name in ("ppo_paper", "pat_coady"))
    assert paper.objective == PRESETS["clip"]
    # Schulman 2017, table 3.
    training = paper.training
    found = (training.num_steps, training.lr, training.num_epochs, training.minibatch_size, training.gamma)
    assert (*found, training.gae_lambda) == (2048, 3e-4, 10, 64, 0.99, 0.95)
    assert pat_coady.objective == PRESETS["kl_hinge"]
    stop = pat_coady.training.kl_stop
    assert (pat_coady.training.num_epochs, stop.scope, stop.multiplier) == (20, "after_epoch", 4.0)
    assert pat_coady.training.minibatch_size == pat_coady.training.num_steps * pat_coady.env.num_envs


def test_later_layers_win_and_a_part_of_another_kind_replaces_the_whole_part(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text("seed: 4\nobjective: {controller: {kind: adaptive, kl_target: 0.5}}\ntraining: {lr: 0.5}\n")
    assert load_config(config=str(base)).objective.controller == Adaptive(kl_target=0.5)
    switched = load_config(config=str(base), objective="clip", overrides={"training.lr": 0.25})
    assert (switched.seed, switched.training.lr) == (4, 0.25)
    assert switched.objective == PRESETS["clip"]


def test_a_gymnasium_id_finds_its_tuned_file_and_any_other_id_gets_the_defaults():
    assert load_config(env="CartPole-v1") == load_config(env="cartpole")
    other = load_config(env="MountainCar-v0")
    assert other.env.id == "MountainCar-v0"
    assert other.training == TrainConfig().training


def test_an_id_with_other_kwargs_keeps_the_files_settings_beside_them():
    config = load_config(env="lunarlander", overrides={"env.kwargs.continuous": True})
    assert config.env.kwargs == {"continuous": True}
    assert config.training == load_config(env="lunarlander").training


def test_an_objective_may_be_given_as_a_value():
    mine = dataclasses.replace(PRESETS["clip"], name="mine", surrogate=Clip(clip_eps=0.1))
    assert load_config(objective=mine).objective is mine


COMPLAINTS = [
    ("objective: {controller: {kind: adaptive, kl_targt: 1}}", ["f.yaml:1:52", "kl_targt", "did you mean 'kl_target'"]),
    ("training:\n  gamma: fast", ["f.yaml:2:10", "training.gamma", "expected float", "'fast'"]),
    ("training:\n  gamma: 1.5", ["f.yaml:2:10", "training.gamma=1.5", "<= 1"]),
    ("training:\n  gamma: nan", ["f.yaml:2:10", "training.gamma=nan"]),
    ("seed: 1\nseed: 2", ["f.yaml:2:1", "duplicate key 'seed'"]),
    ("objective: {surrogate: {kind: clp}}", ["f.yaml:1:31", "'clp'", "did you mean 'clip'"]),
    ("objective: {surrogate: {clip_eps: 0.1}}", ["objective.surrogate", "needs a kind", "clip"]),
    ("objective: {controller: {kind: adaptive, min: 2.0}}", ["kl_lambda=1.0", "min=2.0"]),
    ("env: {normalize_obs: no}", ["env.normalize_obs", "true or false", "'no'"]),
    ("policy: {hidden_sizes: 3}", ["policy.hidden_sizes", "expected a list"]),
    ("seed: [1]", ["seed", "expected int", "a list"]),
    ("env: cartpole", ["env", "expected a group of keys", "'cartpole'"]),
    ("sed: 1", ["f.yaml:1:6", "sed", "did you mean 'seed'"]),
    ("- 1", ["f.yaml", "expected 'key: value'"]),
    ("a: [", ["f.yaml", "not YAML"]),
    ("env: &x {num_envs: 1}\npolicy: *x", ["f.yaml", "anchors"]),
    ("seed: 1.5", ["f.yaml:1:7", "seed", "expected int", "'1.5'"]),
]


@pytest.mark.parametrize(("text", "parts"), COMPLAINTS, ids=[c[0][:40] for c in COMPLAINTS])
def test_a_complaint_names_file_line_column_key_and_remedy(text, parts):
    with pytest.raises(ConfigError) as refused:
        from_yaml(text, "f.yaml")
    for part in parts:
        assert part in str(refused.value)


def test_yaml_tags_construct_nothing(tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(ConfigError):
        from_yaml(f"seed: !!python/object/apply:os.system ['touch {marker}']", "f.yaml")
    assert not marker.exists()


def test_numbers_are_read_by_the_declared_type():
    config = from_yaml("total_steps: 1e5\ntraining: {lr: 1e-3, gamma: 1}\nenv: {id: no}", "f.yaml")
    assert (config.total_steps, config.training.lr, config.training.gamma, config.env.id) == (100_000, 1e-3, 1.0, "no")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"env": "cartpol"}, ["--env cartpol", "did you mean 'cartpole'"]),
        ({"objective": "kl_adptive"}, ["--objective", "did you mean 'kl_adaptive'"]),
        ({"runtime": "gpu"}, ["--runtime gpu", "cpu"]),
        ({"config": "nope.yaml"}, ["--config nope.yaml"]),
        ({"overrides": {"training.gama": 1}}, ["training.gama=1", "did you mean 'gamma'"]),
        ({"overrides": {"training.gamma": 7}}, ["training.gamma", "7"]),
        ({"overrides": {"seed.x": 7}}, ["seed.x", "not a group"]),
        ({"env": "../nowhere/env.yaml"}, ["--env"]),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(arguments, parts):
    with pytest.raises(ConfigError) as refused:
        load_config(**arguments)
    for part in parts:
        assert part in str(refused.value)


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "huge.yaml"
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="larger than"):
        load_config(config=str(path))


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**64 - 1),
    objective=st.sampled_from(list(PRESETS.values())),
    lr=st.floats(1e-12, 1.0),
    sizes=st.lists(st.integers(1, 4096), max_size=4),
    clip=st.none() | st.floats(1e-9, 1e9),
    name=st.text(min_size=1, max_size=20).filter(lambda s: s.isprintable()),
)
def test_a_saved_configuration_reloads_equal_and_saves_byte_for_byte(seed, objective, lr, sizes, clip, name):
    config = TrainConfig(seed=seed, objective=dataclasses.replace(objective, name=name))
    config = dataclasses.replace(
        config,
        policy=dataclasses.replace(config.policy, hidden_sizes=tuple(sizes)),
        training=dataclasses.replace(config.training, lr=lr, value_clip=clip),
    )
    text = to_yaml(config)
    assert from_yaml(text, "f.yaml") == config
    assert to_yaml(from_yaml(text, "f.yaml")) == text


def test_every_setting_is_in_the_saved_configuration():
    saved = to_dict(TrainConfig())
    assert set(saved) == {f.name for f in dataclasses.fields(TrainConfig)}
    assert saved["objective"]["controller"]["kind"] == "adaptive"
    assert set(saved["training"]) == {f.name for f in dataclasses.fields(TrainConfig().training)}


def test_a_part_of_another_kind_comes_with_its_defaults_and_shows_in_the_name():
    objective = load_config(objective="kl_adaptive", kinds={"penalty": "k3", "controller": "pi"}).objective
    assert objective == ObjectiveConfig("kl_adaptive-k3-pi", Ratio(), K3(), PI())
    assert load_config(kinds={"surrogate": "spo"}).objective == ObjectiveConfig("kl_adaptive-spo", SPO())


def test_kinds_beside_a_whole_objective_are_refused():
    with pytest.raises(ConfigError, match="set its parts instead"):
        load_config(objective=ObjectiveConfig(), kinds={"penalty": "k3"})


def test_an_unknown_kind_is_refused_where_it_was_given():
    with pytest.raises(ConfigError, match=r"--objective\.penalty\.kind k4: objective\.penalty\.kind: 'k4' is unknown"):
        load_config(kinds={"penalty": "k4"})


@pytest.mark.parametrize("preset", ["clip", "tr_ppo", "none"])
def test_a_penalty_that_lambda_would_never_weigh_is_refused(preset):
    with pytest.raises(ConfigError, match="would do nothing; say how λ moves"):
        load_config(objective=preset, kinds={"penalty": "forward_kl"})
    objective = load_config(objective=preset, kinds={"penalty": "forward_kl", "controller": "adaptive"}).objective
    assert (objective.penalty, objective.controller) == (ForwardKL(), Adaptive())
    assert objective.name == f"{preset}-forward_kl-adaptive"


# --- values without a declared type -----------------------------------------------------------------------------------

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]\w{0,8}", fullmatch=True), plain_values, max_size=4))
def test_what_an_environment_is_made_with_comes_back_byte_for_byte(kwargs):
    config = TrainConfig(env=EnvConfig(kwargs=kwargs, wrappers={"TimeLimit": kwargs}))
    text = to_yaml(config)
    again = from_yaml(text, "again")
    assert again == config
    assert to_yaml(again) == text


@pytest.mark.parametrize(
    "word", ["true", "False", "~", "", "null", "none", "None", "1_000", "+5", "5.", "1e5", "1e-3", "08", ".inf", "#fff"]
)
def test_a_word_that_looks_like_something_else_stays_a_word(word):
    config = TrainConfig(env=EnvConfig(kwargs={"x": word, "xs": [word]}))
    assert from_yaml(to_yaml(config), "again").env.kwargs == {"x": word, "xs": [word]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.6", 1.6),
        ("3", 3),
        ("1_000", 1000),
        ("1_", "1_"),
        ("1e-3", 1e-3),
        ("-.5", -0.5),
        (".inf", float("inf")),
        ("true", True),
        ("null", None),
        ("", None),
        ("'1'", "1"),
        ("[1, a, 2.5]", [1, "a", 2.5]),
        ("#fff", "#fff"),
        ("human", "human"),
        ("a: b: c", "a: b: c"),
    ],
)
def test_a_value_on_the_command_line_is_what_it_looks_like(text, value):
    found = value_of(text)
    assert found == value
    assert type(found) is type(value)


def test_settings_that_differ_are_named_with_both_values_and_none_where_one_has_no_such_setting():
    clip, spo = (load_config(objective=name, overrides={"seed": seed}) for name, seed in (("clip", 0), ("spo", 1)))
    wrapped = dataclasses.replace(clip, env=dataclasses.replace(clip.env, kwargs={"depth": 3}))
    assert differing(clip, spo) == {
        "seed": (0, 1),
        "objective.name": ("clip", "spo"),
        "objective.surrogate.kind": ("clip", "spo"),
        "objective.surrogate.clip_eps_schedule": ("constant", None),
    }
    assert differing(clip, wrapped) == {"env.kwargs": ({}, None), "env.kwargs.depth": (None, 3)}
    assert differing(clip, clip) == {}
