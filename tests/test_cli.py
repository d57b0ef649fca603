"""The command line as a person meets it: what it prints, what it exits with."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import run

ROOT = Path(__file__).parents[1]
SHORT = ["--total-steps", "256", "--training.num-epochs", "1"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def test_train_says_where_the_run_lies_and_how_to_look_at_it(capsys):
    status, out, err = run(capsys, "train", *SHORT)
    assert (status, err) == (0, "")
    assert "Run folder: runs/CartPole-v1/kl_adaptive/seed0" in out
    assert re.search(r"tensorboard'? --logdir runs\n", out)  # quoted where the path holds a space
    assert "256/256 steps" in out
    assert "× target" in out
    assert Path("runs/CartPole-v1/kl_adaptive/seed0/result.json").is_file()


def test_one_word_makes_it_the_clipped_surrogate(capsys):
    status, out, _ = run(capsys, "train", "--objective", "clip", *SHORT)
    assert status == 0
    assert "clipped" in out
    assert Path("runs/CartPole-v1/clip/seed0/result.json").is_file()


def test_options_win_over_files(capsys):
    options = "--objective.controller.kl-target 0.02 --seed 3 --total-steps 1024 --training.num-epochs 1 --quiet"
    run(capsys, "train", "--env", "pendulum", *options.split())
    text = Path("runs/Pendulum-v1/kl_adaptive/seed3/config.yaml").read_text()
    assert "kl_target: 0.02" in text
    assert "num_epochs: 1\n" in text


def test_quiet_prints_nothing(capsys):
    assert run(capsys, "train", "--quiet", *SHORT) == (0, "", "")


def test_a_saved_configuration_runs_again(capsys):
    run(capsys, "train", *SHORT, "--quiet")
    saved = Path("runs/CartPole-v1/kl_adaptive/seed0/config.yaml")
    status, _, _ = run(capsys, "train", "--config", saved, "--quiet")
    assert status == 0
    assert Path("runs/CartPole-v1/kl_adaptive/seed0-2/config.yaml").read_text() == saved.read_text()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "--objective.controller.kl-targt", "1"], ["Unrecognized", "--objective.controller.kl-target"]),
        (["train", "--objective.controller.kl-target", "-1"], ["kl_target=-1.0", "> 0"]),
        (["train", "--training.gamma", "nan"], ["gamma=nan"]),
        (["train", "--seed", "x"], ["seed"]),
        (["train", "--objective", "clp"], ["--objective clp", "did you mean 'clip'"]),
        (["train", "--env", "cartpol"], ["did you mean 'cartpole'"]),
        (["train", "--env", "NoSuchEnv-v0"], ["NoSuchEnv"]),
        (["train", "--config", "nope.yaml"], ["nope.yaml"]),
        (["train", "--resume", "x", "--seed", "1"], ["--seed"]),
        (["train", "--resume", "x", "--env", "pendulum"], ["--env"]),
        (["tain"], ["tain"]),
        ([], []),
    ],
    ids=lambda x: " ".join(x) if x and x[0] in ("train", "tain") else "",
)
def test_a_wrong_command_exits_with_2_and_creates_nothing(capsys, arguments, parts):
    status, out, err = run(capsys, *arguments)
    assert status == 2
    for part in parts:
        assert part in out + err
    assert not list(Path().iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_gpu_exits_with_2_and_creates_nothing(capsys):
    status, _, err = run(capsys, "train", "--runtime", "cuda")
    assert status == 2
    assert "CUDA" in err
    assert not list(Path().iterdir())


def test_a_folder_that_is_no_run_exits_with_5(capsys):
    assert run(capsys, "train", "--resume", "nowhere")[0] == 5
    status, _, err = run(capsys, "evaluate", "nowhere")
    assert status == 5
    assert "nowhere" in err


def test_evaluate_plays_the_trained_agent(capsys):
    run(capsys, "train", *SHORT, "--quiet")
    status, out, _ = run(capsys, "evaluate", "runs/CartPole-v1/kl_adaptive/seed0", "--episodes", "3")
    assert status == 0
    assert "256 steps" in out
    assert "3 episodes, most likely actions" in out
    again = run(capsys, "evaluate", "runs/CartPole-v1/kl_adaptive/seed0", "--episodes", "3")
    assert again[1] == out


def test_version_and_help(capsys):
    assert run(capsys, "--version")[1].startswith("ppo-kl 0.")
    assert "evaluate" in run(capsys, "--help")[1]
    out = run(capsys, "train", "--help")[1]
    for word in ("--objective NAME", "--resume RUN", "--objective.controller.kl-target", "nats"):
        assert word in out


def wait_for(condition, seconds=60):
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds
        time.sleep(0.05)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group_saves_says_so_and_the_run_can_go_on(vectorization, number, status):
    """As Ctrl-C in a terminal: every process of the group gets it, the environments' workers too."""
    command = [sys.executable, "-m", "ppo_kl", "train", "--total-steps", "10000000", "--env.num-envs", "2"]
    command += ["--env.vectorization", vectorization]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    folder = Path("runs/CartPole-v1/kl_adaptive/seed0")
    wait_for(lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size > 0)
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == status, out
    assert f"Stopped by {number.name}" in out
    assert re.search(rf"ppo-kl'? train --resume {folder}", out)  # quoted where its path has a space
    assert "Traceback" not in out
    assert list((folder / "checkpoints").glob("step_*.pt"))
    assert not (folder / "result.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_the_gpu_script_says_what_is_missing_and_creates_nothing():
    script = ROOT / "scripts/train_gpu.sh"
    done = subprocess.run([script], env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "sees no CUDA GPU" in done.stderr
    assert not list(Path().iterdir())
