"""Runs that differ by more than their seed are not taken together."""

from pathlib import Path

import numpy as np

from ppo_kl.diagnostics.history import History, Run
from ppo_kl.diagnostics.told_apart import told_apart
from ppo_kl.load import load_config


def run(**overrides):
    config = load_config(overrides=overrides)
    return Run(Path("r"), config.env.id, config.objective.name, str(config.seed), "finished", config, HISTORY)


HISTORY = History(np.array([1]), {}, {})


def names(*runs):
    return [run.objective for run in told_apart(runs)]


def test_seeds_places_and_what_was_watched_do_not_tell_runs_apart():
    same = [run(seed=1), run(runs_dir="there"), run(**{"diagnostics.gradient_every": 1, "runtime.num_threads": 2})]
    assert names(run(), *same) == ["kl_adaptive"] * 4


def test_other_settings_stand_behind_the_name_of_those_that_differ_from_the_first():
    found = names(run(), run(**{"training.gamma": 0.5}), run(seed=2), run(**{"training.gamma": 0.5, "seed": 3}))
    assert found == ["kl_adaptive", "kl_adaptive [gamma 0.5]", "kl_adaptive", "kl_adaptive [gamma 0.5]"]


def test_of_many_settings_two_are_named():
    other = run(**{"training.gamma": 0.5, "training.lr": 0.01, "training.num_epochs": 2, "total_steps": 7})
    (_, name) = names(run(), other)
    assert name.endswith(", 2 more]")


def test_a_run_whose_settings_cannot_be_read_keeps_its_name():
    assert names(run(), run()._replace(config=None)) == ["kl_adaptive", "kl_adaptive"]
