"""`ppo-kl bench`: one line of JSON whose numbers fit together, and nothing left behind."""

import json
import subprocess
import sys
import tempfile
import time

import pytest

from ppo_kl.bench.meter import Meter
from ppo_kl.bench.workloads import WORKLOADS, settings_of
from ppo_kl.cli import main
from ppo_kl.config import TrainConfig
from ppo_kl.load import load_config
from ppo_kl.training.stopwatch import Seconds, Stopwatch

PEERS_KEYS = {
    *("peer", "workload", "steps_per_s", "rollout_s", "update_s", "cpu_s", "wall_s", "setup_s", "steps_per_cpu_s"),
    *("steps", "grad_steps", "rollout_cpu_s", "update_cpu_s", "us_per_env_step", "us_cpu_per_env_step"),
    *("us_per_grad_step", "us_cpu_per_grad_step", "rest_s", "python", "version"),
}
SHORT = ["bench", "--workload", "B", "--training.num-steps", "32", "--training.num-epochs", "2", "--warmup", "1"]
"""Rollouts of 8 · 32 = 256 samples, one minibatch, two gradient steps."""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_one_line_whose_numbers_fit_together_and_the_run_folder_is_gone(temporary, capsys):
    assert main([*SHORT, "--steps", "700", "--objective", "clip", "--seed", "3"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    row = json.loads(line)
    assert row.keys() > PEERS_KEYS
    assert (row["peer"], row["workload"], row["objective"], row["seed"]) == ("ppo_kl", "B", "clip", 3)
    assert row["steps"] == 3 * 256  # 700 / 256 = 2.7
    assert row["grad_steps"] == 3 * 2
    assert row["valid"] == 1.0
    assert row["steps_per_s"] == pytest.approx(row["steps"] / row["wall_s"], rel=1e-2)
    phases = row["rollout_s"] + row["update_s"] + row["measure_s"] + row["rest_s"]
    assert phases == pytest.approx(row["wall_s"], abs=1e-3)
    assert row["us_per_grad_step"] == pytest.approx(1e6 * row["update_s"] / 6, rel=1e-2)
    assert row["us_per_env_step"] == pytest.approx(1e6 * row["rollout_s"] / 768, rel=1e-2)
    assert 0 < row["gae_s"] < row["rollout_s"]
    assert list(temporary.iterdir()) == []


def test_rows_that_are_no_transitions_are_not_counted(temporary, capsys):
    assert main([*SHORT, "--steps", "512", "--env.vectorization", "native"]) == 0
    row = json.loads(capsys.readouterr().out)
    # CartPole's own vector environment answers a row without a transition after each episode.
    assert 0 < row["steps"] < 512
    assert row["valid"] == pytest.approx(row["steps"] / 512, abs=1e-4)


@pytest.mark.filterwarnings("ignore::ppo_kl.errors.EngineWarning")
def test_steps_that_were_to_be_compiled_and_could_not_be_are_told(temporary, capsys, monkeypatch):
    monkeypatch.setattr("ppo_kl.training.engine.cannot_compile", lambda device: "no compiler")
    assert main([*SHORT, "--steps", "256", "--runtime.compile", "on"]) == 0
    assert json.loads(capsys.readouterr().out)["compile"] == "failed"


def test_a_profile_stands_on_stderr_and_not_in_the_numbers(temporary, capsys):
    assert main([*SHORT, "--steps", "256", "--profile"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["steps"] == 256
    for words in ("rollout", "Python functions", "collector.py", "Tensor operations", "aten::"):
        assert words in captured.err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--workload", "D"], "--workload='D'"),
        (["--workload", "B", "--steps", "0"], "--steps=0"),
        (["--workload", "B", "--warmup", "0"], "--warmup=0"),
        (["--workload", "B", "--runs-dir", "mine"], "runs_dir='mine'"),
        (["--workload", "B", "--total-steps", "9"], "total_steps=9"),
        (["--workload", "B", "--objective", "clipp"], "clipp"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(options, named, temporary, capsys):
    assert main(["bench", *options]) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert not captured.out
    assert list(temporary.iterdir()) == []


def test_a_wrong_workload_is_refused_without_torch():
    code = "import sys; from ppo_kl.cli import main; main(['bench', '--workload', 'D']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("name", "batch", "grad_steps"), [("A", 2048, 320), ("B", 2048, 80), ("C", 2048, 16)])
def test_a_workload_is_all_default_but_for_what_every_library_is_given(name, batch, grad_steps):
    workload = WORKLOADS[name]
    assert (workload.batch, workload.grad_steps) == (batch, grad_steps)
    config = load_config(base=TrainConfig(), objective="clip", overrides=settings_of(workload))
    assert config.objective.surrogate.clip_eps == 0.2
    assert config.training.clip_grad == "joint"
    assert not config.env.normalize_obs
    assert config.diagnostics == TrainConfig().diagnostics


def test_the_meter_counts_what_comes_after_the_warm_up():
    meter = Meter(iterations=2, warmup=1)
    for wall in (100.0, 0.25, 0.5):
        meter.end_iteration(10, 4, {"rollout": Seconds(wall, 0.125), "gae": Seconds(wall / 5, 0.0)})
    meter.end_iteration(10, 4, {"rollout": Seconds(100.0, 100.0)})  # after the last timed one
    row = meter.result("mine", "A", norm=True)
    assert (row["steps"], row["grad_steps"], row["norm"]) == (20, 8, True)
    assert (row["rollout_s"], row["rollout_cpu_s"], row["gae_s"]) == (0.75, 0.25, 0.15)
    assert row["us_per_env_step"] == 37_500  # 0.75 s / 20
    assert row["update_s"] is None
    assert row["rest_s"] == pytest.approx(row["wall_s"] - 0.75, abs=1e-3)  # gae is part of the rollout


def test_phases_that_a_library_runs_inside_are_counted_while_they_are_timed():
    meter = Meter(iterations=1, warmup=1)
    for _ in range(3):  # one before, one after what is timed
        with meter.phase("update"):
            time.sleep(0.01)
        meter.end_iteration(10, 4)
    row = meter.result("mine", "A")
    assert 0.01 <= row["update_s"] <= row["wall_s"]
    assert row["us_per_grad_step"] == pytest.approx(1e6 * row["update_s"] / 4, rel=0.01)


def test_a_meter_that_saw_too_few_iterations_has_no_result():
    with pytest.raises(RuntimeError, match="mine, workload A: 0 of 3 iterations"):
        Meter(iterations=2, warmup=1).result("mine", "A")


def test_laps_of_one_phase_are_added_up():
    watch = Stopwatch()
    for phase in ("rollout", "update", "rollout"):
        watch.lap(phase)
    assert list(watch.seconds) == ["rollout", "update"]
    assert all(seconds.wall >= 0 and seconds.cpu >= 0 for seconds in watch.seconds.values())
