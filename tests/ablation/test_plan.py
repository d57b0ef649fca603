"""A plan: every point checked before the first is run, duplicates merged, ids that stay."""

import dataclasses
import hashlib

import pytest

from ppo_kl.ablation.plan import _chosen, as_name, id_of, plan
from ppo_kl.commands.ablate import _study
from ppo_kl.config.ablation import AblationConfig
from ppo_kl.errors import ConfigError
from ppo_kl.load import load_config, load_study, shipped


def study(**changes):
    return AblationConfig(**{"objectives": ("clip", "kl_adaptive"), "seeds": 2, **changes})


def test_every_objective_meets_every_environment_and_seed():
    points = plan(study(envs=("cartpole", "pendulum"))).points
    assert {(p.arm, p.env, p.seed) for p in points} == {
        (arm, env, seed) for arm in ("clip", "kl_adaptive") for env in ("cartpole", "pendulum") for seed in (0, 1)
    }
    assert len({point.id for point in points}) == len(points) == 8
    for point in points:
        assert (point.config.seed, point.config.objective.name) == (point.seed, point.arm)


def test_it_goes_seed_by_seed_so_that_an_interrupted_study_has_something_of_everything():
    assert [point.seed for point in plan(study(envs=("cartpole", "pendulum"))).points] == [0] * 4 + [1] * 4


def test_a_run_is_its_tuned_file_but_for_what_the_study_sets():
    (point,) = plan(study(objectives=("clip",), seeds=1, first_seed=7, set={"total_steps": 5000})).points
    asked = load_config(env="cartpole", objective="clip", overrides={"total_steps": 5000, "seed": 7})
    assert dataclasses.replace(point.config, runtime=asked.runtime) == asked


def test_what_is_set_for_one_environment_is_not_set_for_others():
    points = plan(study(envs=("cartpole", "pendulum"), for_env={"pendulum": {"total_steps": 999}}, seeds=1)).points
    assert {(point.env, point.config.total_steps) for point in points} == {("cartpole", 100_000), ("pendulum", 999)}


def test_an_arm_is_an_objective_with_whatever_is_changed_of_it():
    arms = {"narrow": {"objective": "clip", "objective.surrogate.clip_eps": 0.1}}
    points = plan(study(objectives=("clip",), arms=arms, seeds=1)).points
    assert {point.arm: point.config.objective.surrogate.clip_eps for point in points} == {"clip": 0.2, "narrow": 0.1}


# --- grids ------------------------------------------------------------------------------------------------------------


def test_every_combination_of_a_grid_is_an_arm():
    grid = {"objective.controller.kl_target": (0.003, 0.01), "training.num_epochs": (3, 4)}
    planned = plan(study(objectives=("kl_adaptive",), grid=grid, seeds=1))
    assert planned.arms == [
        "kl_adaptive kl_target=0.003 num_epochs=3",
        "kl_adaptive kl_target=0.003 num_epochs=4",
        "kl_adaptive kl_target=0.01 num_epochs=3",
        "kl_adaptive kl_target=0.01 num_epochs=4",
    ]
    found = [(p.config.objective.controller.kl_target, p.config.training.num_epochs) for p in planned.points]
    assert found == [(0.003, 3), (0.003, 4), (0.01, 3), (0.01, 4)]


def test_an_objective_without_the_setting_is_run_without_and_that_is_said():
    planned = plan(study(grid={"objective.controller.kl_target": (0.003, 0.01)}, seeds=1))
    assert planned.arms == ["clip", "kl_adaptive kl_target=0.003", "kl_adaptive kl_target=0.01"]
    assert planned.notices == ("'clip' has no objective.controller.kl_target: run without",)


def test_a_grid_that_applies_to_no_arm_is_refused():
    with pytest.raises(ConfigError, match=r"grid.objective.controller.kl_target: no arm has such a setting"):
        plan(study(objectives=("clip",), grid={"objective.controller.kl_target": (0.1,)}))


def test_settings_of_one_name_are_named_in_full():
    grid = {"objective.controller.min": (0.1,), "objective.controller.max": (5.0,)}
    assert plan(study(objectives=("kl_adaptive",), grid=grid)).arms == ["kl_adaptive min=0.1 max=5"]


# --- duplicates and ids -----------------------------------------------------------------------------------------------


def test_what_is_the_same_run_is_run_once_with_a_notice():
    arms = {"usual": {"objective": "clip", "objective.surrogate.clip_eps": 0.2}}
    planned = plan(study(objectives=("clip",), arms=arms))
    assert [(point.arm, point.seed) for point in planned.points] == [("clip", 0), ("clip", 1)]
    assert planned.notices == ("'usual' on cartpole is 'clip' once more: run once, as 'clip'",)
    # A report shows it in both places.
    assert planned.arms == ["clip", "usual"]
    assert planned.cells["usual", "cartpole", 1] == planned.cells["clip", "cartpole", 1]


def test_an_id_is_a_function_of_what_matters():
    config = load_config(env="cartpole", objective="clip")
    runtime = dataclasses.replace(config.runtime, checkpoint_every=7)
    assert id_of(dataclasses.replace(config, runs_dir="elsewhere", runtime=runtime)) == id_of(config)
    assert id_of(dataclasses.replace(config, seed=1)) != id_of(config)
    assert id_of(dataclasses.replace(config, total_steps=5)) != id_of(config)


def test_ids_stay():
    # Committed results are found by them.
    shipped_ids = {name: {point.id for point in plan(load_study(name)).points} for name in shipped("ablation")}
    digests = {
        name: hashlib.sha256("".join(sorted(ids)).encode()).hexdigest()[:10] for name, ids in shipped_ids.items()
    }
    assert digests == {
        "classic": "fd19828cb9",
        "kl_vs_clip": "e2592d2ee9",
        "ppo_table1": "8cb0653c0c",
        "smoke": "7e79e6d8a7",
    }


def test_a_setting_of_another_kind_of_controller_is_no_part_of_an_id():
    clip = load_config(env="cartpole", objective="clip")
    assert not [key for key in _chosen(clip) if "kl_target" in key]
    assert _chosen(clip)["objective.controller.kind"] == "fixed"


def test_a_files_name_says_what_the_run_is():
    (point,) = plan(study(envs=("Pendulum-v1",), objectives=("clip",), seeds=1)).points
    assert point.name == f"Pendulum-v1.clip.seed0.{point.id}"
    assert as_name("../a b.c") == "a-b-c"


def test_nothing_is_left_that_a_machine_would_choose_for_itself():
    for point in plan(study(envs=("cartpole", "pendulum"))).points:
        runtime = point.config.runtime
        assert runtime.compile in ("on", "off")
        assert (runtime.workers, runtime.num_threads, runtime.device) == (0, 1, "cpu")


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objectives": ("clip", "nonesuch")}, "nonesuch"),
        ({"envs": ("nonesuch",)}, "nonesuch"),
        ({"set": {"training.gama": 0.9}}, "training.gama"),
        ({"set": {"training.gamma": 2.0}}, "training.gamma"),
        ({"for_env": {"hopper": {}}}, "for_env.hopper"),
        ({"arms": {"mine": {"training.gamma": 0.9}}}, "arms.mine: needs an objective"),
        ({"arms": {"mine": {"objective": None}}}, "in quotes where that is 'none'"),
        ({"arms": {"clip": {"objective": "clip"}}}, "arms.clip: there is an objective of that name"),
        ({"objectives": ()}, "name at least one objective"),
        ({"seeds": 0}, "seeds=0"),
        ({"set": {"seed": 3}}, "seeds are counted"),
        ({"objectives": ("clip", "clip")}, "'clip' is named twice"),
        ({"published": {"clip": 0.5}}, "in published_in where they come from: one without the other"),
        ({"published_in": "A paper"}, "in published_in where they come from: one without the other"),
        (
            {"published": {"clop": 0.5}, "published_in": "A paper"},
            "published.clop: there is no such arm (did you mean 'clip'?)",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(changes, words):
    with pytest.raises(ConfigError) as refused:
        plan(study(**changes))
    assert words in str(refused.value)


@pytest.mark.parametrize("name", shipped("ablation"))
def test_shipped_studies_can_be_planned(name):
    planned = plan(load_study(name))
    assert planned.study.name == name
    assert planned.study.reference in planned.arms
    assert not planned.notices


def test_the_papers_table_stands_by_its_own_runs_alone():
    asked = {"config": "ppo_table1", "env": None, "objective": None, "seeds": 5, "changed": (), "name": "mine"}
    published = _study(**asked).published
    assert len(published) == 11
    assert max(published, key=published.get) == "clip 0.2"
    for change in ({"env": "Hopper-v5"}, {"objective": "clip"}, {"changed": ("training.gamma=0.9",)}):
        changed = _study(**asked | change)
        assert (changed.published, changed.published_in) == ({}, "")


def test_the_papers_table_has_eleven_settings_on_seven_environments_with_three_seeds():
    planned = plan(load_study("ppo_table1"))
    assert (len(planned.arms), len(planned.study.envs), len(planned.points)) == (11, 7, 231)
    for point in planned.points:
        training, env = point.config.training, point.config.env
        assert (point.config.total_steps, training.num_steps, env.num_envs) == (1_000_000, 2048, 1)
        assert (training.num_epochs, training.minibatch_size, training.lr) == (10, 64, 3e-4)
        assert (training.gamma, training.gae_lambda, training.ent_coef) == (0.99, 0.95, 0.0)
        assert point.config.policy.hidden_sizes == (64, 64)
