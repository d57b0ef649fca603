"""What a run makes of its settings: rounding, minibatches, devices, seeds, and saved configurations."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from command_line import run
from learner_parts import batch_of, make

from ppo_kl.config import TrainConfig
from ppo_kl.config.training import KLStop
from ppo_kl.errors import ConfigError
from ppo_kl.load import SHIPPED, from_yaml, load_config, load_study, to_yaml
from ppo_kl.objectives import Objective

ROLLOUT = 64
SMALL = ["--env.num-envs", "4", "--training.num-steps", "16", "--training.num-epochs", "1"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")


# --- total_steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", ["0", "-1"])
def test_no_steps_are_no_run(capsys, steps):
    status, _, err = run(capsys, "train", f"--total-steps={steps}")
    assert status == 2
    assert f"total_steps={steps}: allowed: >= 1" in err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(("asked", "done"), [(1, ROLLOUT), (ROLLOUT, ROLLOUT), (ROLLOUT + 1, 2 * ROLLOUT)])
def test_the_last_rollout_is_completed_and_the_steps_that_are_said_are_those_that_were_made(capsys, asked, done):
    status, out, _ = run(capsys, "train", "--total-steps", asked, *SMALL)
    assert status == 0
    folder = Path("runs/CartPole-v1/kl_adaptive/seed0")
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads((folder / "result.json").read_text())["steps"] == done
    assert json.loads(rows[-1])["steps"] == done
    assert f"Done: {done} steps" in out
    assert f"{done}/{asked} steps" in out


# --- minibatches ------------------------------------------------------------------------------------------------------


def test_a_minibatch_larger_than_the_rollout_is_the_rollout_and_the_first_lines_say_so(capsys):
    _, out, _ = run(capsys, "train", "--total-steps", "1", *SMALL, "--training.minibatch-size", ROLLOUT + 1)
    assert f"{ROLLOUT} samples an update in one minibatch, not of {ROLLOUT + 1}," in out
    _, out, _ = run(capsys, "train", "--total-steps", "1", *SMALL, "--training.minibatch-size", ROLLOUT)
    assert f"{ROLLOUT} samples an update, on" in out


@pytest.mark.parametrize(("rows", "size"), [(5, 4), (65, 64), (3, 2), (7, 3), (4, 1), (1, 1), (1, 64)])
@pytest.mark.parametrize("advantage_norm", ["minibatch", "rollout"])
def test_a_remainder_of_one_sample_and_minibatches_of_one_stay_finite(rows, size, advantage_norm):
    learner = make(minibatch_size=size, advantage_norm=advantage_norm)
    before = learner.parameters.flat.clone()
    metrics = learner.update(batch_of(learner, rows), 0.0)
    assert learner.parameters.flat.isfinite().all()
    assert not torch.equal(learner.parameters.flat, before)
    assert metrics["optim/skipped"] == 0
    assert metrics["optim/steps"] == 4 * -(-rows // size)


# --- device and environment -------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_only_auto_falls_back_and_says_to_what(capsys):
    status, _, err = run(capsys, "train", "--runtime.device", "cuda", *SMALL)
    assert (status, "CUDA" in err) == (2, True)
    assert not list(Path().iterdir())
    status, out, _ = run(capsys, "train", "--runtime.device", "auto", "--total-steps", "1", *SMALL)
    assert (status, ", on cpu, " in out) == (0, True)
    assert "device: cpu\n" in Path("runs/CartPole-v1/kl_adaptive/seed0/config.yaml").read_text()


@pytest.mark.parametrize(
    ("env", "parts"),
    [
        ("NoSuchEnv-v0", ["NoSuchEnv-v0", "doesn't exist"]),
        ("CartPole-v7", ["CartPole-v7"]),
        ("no_such_module:Maze-v0", ["no_such_module", "No module named 'no_such_module'"]),
        ("json:Maze", ["json:Maze"]),
    ],
)
def test_an_environment_that_cannot_be_found_is_named_with_the_reason(capsys, env, parts):
    status, _, err = run(capsys, "train", "--env", env)
    assert status == 2
    for part in parts:
        assert part in err
    assert not list(Path().iterdir())


# --- seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_is_none_is_refused(capsys, seed):
    status, _, err = run(capsys, "train", f"--seed={seed}")
    assert status == 2
    assert f"seed={seed}: allowed: >= 0 and < 18446744073709551616" in err
    assert not list(Path().iterdir())


def test_the_largest_seed_runs(capsys):
    status, out, _ = run(capsys, "train", "--seed", 2**64 - 1, "--total-steps", "1", *SMALL)
    assert (status, f"seed {2**64 - 1}," in out) == (0, True)


def test_a_seed_of_none_is_drawn_said_saved_and_reproducible(capsys):
    Path("f.yaml").write_text("seed: none\n")
    status, out, _ = run(capsys, "train", "--config", "f.yaml", "--total-steps", "1", *SMALL)
    assert status == 0
    (seed,) = re.findall(r"seed (\d+),", out)
    folder = Path(f"runs/CartPole-v1/kl_adaptive/seed{seed}")
    assert f"seed: {seed}\n" in (folder / "config.yaml").read_text()
    assert run(capsys, "train", "--config", folder / "config.yaml", "--quiet")[0] == 0
    again = folder.with_name(f"seed{seed}-2")

    def learned(folder):
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in row.items() if not k.startswith(("time/", "system/"))} for row in rows]

    assert learned(again) == learned(folder)


def test_a_seed_is_drawn_once_and_for_each_configuration_anew():
    drawn = [load_config(overrides={"seed": None}), from_yaml("seed: null", "f.yaml"), TrainConfig(seed=None)]
    seeds = [config.seed for config in drawn]
    assert len(set(seeds)) == 3
    assert all(isinstance(seed, int) for seed in seeds)
    assert dataclasses.replace(drawn[0], total_steps=7).seed == seeds[0]
    assert from_yaml(to_yaml(drawn[0]), "again").seed == seeds[0]


def test_a_seed_of_none_on_the_command_line(capsys):
    _, out, _ = run(capsys, "train", "--seed", "None", "--total-steps", "1", *SMALL)
    assert "seed 0," not in out
    assert re.search(r"seed \d+,", out)


# --- saved configurations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(SHIPPED.rglob("*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_what_every_shipped_file_comes_to_reloads_byte_for_byte(path):
    if path.parent.name == "ablation":
        study = load_study(str(path))
        Path("saved.yaml").write_text(to_yaml(study))
        assert load_study("saved.yaml") == study
        return
    option = {"recipes": "config"}.get(path.parent.name, path.parent.name)
    config = load_config(**{option: str(path)})
    text = to_yaml(config)
    Path("saved.yaml").write_text(text)
    again = load_config(config="saved.yaml")
    assert again == config
    assert to_yaml(again) == text


def test_a_file_against_an_option_the_option_wins_and_the_run_says_the_same_again(capsys):
    Path("f.yaml").write_text("total_steps: 10\ntraining: {gamma: 0.5}\nobjective: {name: mine}\n")
    refused = run(capsys, "train", "--config", "f.yaml", "--objective", "kl_pi", "--training.gamma", "2")
    assert (refused[0], "gamma=2" in refused[2]) == (2, True)
    options = ["--config", "f.yaml", "--objective", "kl_pi", "--training.gamma", "0.75", *SMALL, "--quiet"]
    assert run(capsys, "train", *options)[0] == 0
    saved = Path("runs/CartPole-v1/kl_pi/seed0/config.yaml")
    assert "gamma: 0.75\n" in saved.read_text()
    assert from_yaml(saved.read_text(), "saved").total_steps == 10
    assert run(capsys, "train", "--config", saved, "--quiet")[0] == 0
    assert saved.parent.with_name("seed0-2").joinpath("config.yaml").read_bytes() == saved.read_bytes()


# --- what reads the KL ------------------------------------------------------------------------------------------------

STEPS = {"num_epochs": 3, "minibatch_size": 10, "lr": 5e-3}
BY_KL = {**STEPS, "lr_schedule": "kl_adaptive", "lr_kl_target": 0.003}


def updated(controller_target, **settings):
    """The learning rate and λ after one update, the number of steps made, and how many there are without a stop."""
    objective = Objective.from_preset("kl_adaptive", kl_target=controller_target)
    learner = make(objective=objective, **settings)
    metrics = learner.update(batch_of(learner, 40), 0.0)
    objective.adapt_(torch.tensor(0.05))
    return metrics["optim/lr"].item(), objective.kl_lambda.item(), int(metrics["optim/steps"])


def test_the_schedule_moves_the_learning_rate_and_the_controller_lambda_and_neither_the_others():
    constant, by_kl = updated(0.01, **STEPS), updated(0.01, **BY_KL)
    assert constant[0] == pytest.approx(5e-3)
    assert by_kl[0] != pytest.approx(5e-3)
    assert by_kl[1] == constant[1] == 2.0  # 0.05 is above the band of 0.01
    other_target = updated(10.0, **BY_KL)
    assert other_target[0] == by_kl[0]
    assert other_target[1] == 0.5


def test_the_stop_comes_before_the_learning_rate_and_leaves_lambda_to_the_controller():
    stop = KLStop("before_step", threshold=1e-9)
    lr, kl_lambda, steps = updated(0.01, **BY_KL, kl_stop=stop)
    # The first step moves the policy; the second's KL stops the update before it can move the learning rate.
    assert steps == 1
    assert lr == pytest.approx(5e-3)
    assert kl_lambda == 2.0
    never = updated(0.01, **BY_KL, kl_stop=KLStop("before_step", threshold=1e9))
    assert never == updated(0.01, **BY_KL)
    assert never[2] == 12


def test_two_schedules_of_the_learning_rate_cannot_be_asked_for():
    with pytest.raises(ConfigError, match=r"lr_kl_target=.*would be ignored: belongs to lr_schedule 'kl_adaptive'"):
        load_config(overrides={"training.lr_schedule": "linear", "training.lr_kl_target": 0.02})
