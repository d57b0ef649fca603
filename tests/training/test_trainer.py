"""A run leaves a folder that says everything, stops when told, and goes on where it stopped."""

import errno
import json
import os
import signal
import sys
import threading
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from ppo_kl.diagnostics.tensorboard_writer import TensorBoardWriter
from ppo_kl.diagnostics.writers import JsonLinesWriter
from ppo_kl.envs.cores import cores_allowed
from ppo_kl.envs.worker_count import Chosen
from ppo_kl.errors import CheckpointError, ConfigError, EnvDataError, EnvWorkerError, OutputError
from ppo_kl.load import from_yaml, load_config
from ppo_kl.training import run_folder, trainer
from ppo_kl.training.agent import Agent
from ppo_kl.training.learner import Learner
from ppo_kl.training.trainer import resume, train

STEPS = 256  # of one iteration of the CartPole configuration


def config(runs, total_steps=3 * STEPS, **changes):
    settings = {
        "runs_dir": str(runs),
        "total_steps": total_steps,
        "training.num_steps": 32,
        "training.num_epochs": 2,
        "runtime.device": "cpu",
        "runtime.workers": 0,
    }
    return load_config(overrides=settings | changes)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class At:
    """A callback that does something after iteration n."""

    def __init__(self, n, act):
        self.n, self.act = n, act

    def on_iteration(self, state):
        return self.act() if state.number == self.n else True


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(config(tmp_path_factory.mktemp("runs")), quiet=True)


def test_the_folder_is_named_after_environment_objective_and_seed(finished):
    assert finished.folder.parts[-3:] == ("CartPole-v1", "kl_adaptive", "seed0")


def test_the_folder_holds_configuration_metadata_metrics_events_checkpoint_and_result(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert {"config.yaml", "metadata.json", "metrics.jsonl", "checkpoints", "result.json"} <= names
    assert [n for n in names if n.startswith("events.out.tfevents.")]
    assert [p.name for p in (finished.folder / "checkpoints").iterdir()] == ["step_000000000768.pt"]


def test_the_saved_configuration_is_the_one_that_ran(finished):
    assert from_yaml((finished.folder / "config.yaml").read_text(), "config.yaml") == finished.agent.config


def test_what_auto_chose_is_written_down(tmp_path):
    result = train(config(tmp_path, STEPS, **{"runtime.device": "auto"}), quiet=True)
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert from_yaml((result.folder / "config.yaml").read_text(), "c").runtime.device == expected


@pytest.mark.parametrize(("asked", "runs"), [("auto", 1), (1, 1), (0, 0)])
def test_the_number_of_workers_that_was_measured_is_said_written_down_and_used_again(
    tmp_path, monkeypatch, capsys, asked, runs
):
    monkeypatch.setattr(trainer, "choose_workers", lambda *_: Chosen(1, "steps are dear"))
    settings = {"runtime.workers": asked, "env.num_envs": 2}
    result = train(config(tmp_path, STEPS, **settings))
    written = from_yaml((result.folder / "config.yaml").read_text(), "c").runtime.workers
    assert written == result.agent.config.runtime.workers == runs
    out = capsys.readouterr().out
    assert ("runtime.workers auto: 1: steps are dear" in out) == (asked == "auto")
    assert ("(sync, 1 worker)" in out) == (runs == 1)
    monkeypatch.setattr(trainer, "choose_workers", None)
    again = resume(result.folder, total_steps=2 * STEPS, quiet=True)
    assert again.agent.config.runtime.workers == runs
    hardware = json.loads((result.folder / "metadata.json").read_text())["hardware"]
    assert (hardware["workers"], hardware["cores_allowed"]) == (runs, cores_allowed())


def test_metadata_says_with_what_it_ran_and_how_it_ended(finished):
    metadata = json.loads((finished.folder / "metadata.json").read_text())
    assert metadata["exit_status"] == 0
    assert metadata["start"] <= metadata["end"]
    assert metadata["versions"]["torch"] == torch.__version__
    assert metadata["versions"]["gymnasium"] == gym.__version__
    assert metadata["hardware"]["threads"] == 1


def test_there_is_a_row_for_every_iteration_and_the_result_sums_them_up(finished):
    assert [row["steps"] for row in rows(finished.folder)] == [STEPS, 2 * STEPS, 3 * STEPS]
    result = json.loads((finished.folder / "result.json").read_text())
    assert result["steps"] == finished.agent.steps == 3 * STEPS
    mean_kl = np.mean([row["kl/forward"] for row in rows(finished.folder)])
    assert result["kl_forward_mean"] == pytest.approx(mean_kl)
    spent = sum(row["time/rollout_seconds"] + row["time/update_seconds"] for row in rows(finished.folder))
    assert result["seconds"] == pytest.approx(spent, abs=0.051)  # in tenths
    assert result["return_last100"] == pytest.approx(rows(finished.folder)[-1]["rollout/return_last100"])


def test_total_steps_are_rounded_up_to_whole_rollouts(tmp_path):
    assert train(config(tmp_path, STEPS + 1), quiet=True).agent.steps == 2 * STEPS


def test_a_folder_that_exists_is_never_touched(tmp_path):
    first = train(config(tmp_path, STEPS), quiet=True).folder
    before = {path: path.read_bytes() for path in first.iterdir() if path.is_file()}
    second = train(config(tmp_path, STEPS), quiet=True).folder
    assert second.name == "seed0-2"
    assert {path: path.read_bytes() for path in first.iterdir() if path.is_file()} == before


def test_eight_runs_of_one_name_that_start_together_get_eight_folders(tmp_path):
    made = []
    threads = [threading.Thread(target=lambda: made.append(run_folder.create(config(tmp_path)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8


@pytest.mark.parametrize("name", ["../../up", "/abs", "a/b", ".", "..", "x\ny", "x" * 300, "-lead", "nul\0"])
def test_no_name_leads_out_of_the_folder_of_runs(tmp_path, name):
    folder = run_folder.create(config(tmp_path / "runs", **{"objective.name": name}))
    assert (tmp_path / "runs").resolve() in folder.resolve().parents
    assert len(folder.relative_to(tmp_path / "runs").parts) == 3


def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="runs_dir"):
        train(config(tmp_path / "file"), quiet=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_gpu_is_refused_before_anything_is_created(tmp_path):
    with pytest.raises(ConfigError, match="CUDA"):
        train(config(tmp_path / "runs", **{"runtime.device": "cuda"}), quiet=True)
    assert not (tmp_path / "runs").exists()


def test_an_environment_that_does_not_exist_is_refused_before_anything_is_created(tmp_path):
    with pytest.raises(ConfigError, match="NoSuchEnv"):
        train(config(tmp_path / "runs", **{"env.id": "NoSuchEnv-v0"}), quiet=True)
    assert not (tmp_path / "runs").exists()


def test_checkpoints_are_kept_up_to_their_number(tmp_path):
    changes = {"runtime.checkpoint_every": 1, "runtime.keep_checkpoints": 2}
    folder = train(config(tmp_path, 4 * STEPS, **changes), quiet=True).folder
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "step_000000000768.pt",
        "step_000000001024.pt",
    ]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_the_run_goes_on_where_it_stopped(tmp_path, number, status):
    stopped = train(config(tmp_path), callbacks=[At(1, lambda: os.kill(os.getpid(), number) or True)], quiet=True)
    assert (stopped.exit_status, stopped.agent.steps, stopped.result) == (status, STEPS, None)
    assert not (stopped.folder / "result.json").exists()
    assert json.loads((stopped.folder / "metadata.json").read_text())["exit_status"] == status

    loaded = Agent.load(stopped.folder)
    assert torch.equal(loaded.objective.kl_lambda, stopped.agent.objective.kl_lambda)
    assert torch.equal(loaded.learner.parameters.flat, stopped.agent.learner.parameters.flat)

    gone_on = resume(stopped.folder, quiet=True)
    assert (gone_on.exit_status, gone_on.agent.steps) == (0, 3 * STEPS)
    assert [row["steps"] for row in rows(stopped.folder)] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert [row["iteration"] for row in rows(stopped.folder)] == [1, 2, 3]
    metadata = json.loads((stopped.folder / "metadata.json").read_text())
    assert (metadata["exit_status"], metadata["earlier_parts"][0]["exit_status"]) == (0, status)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_handler_of_the_caller_is_put_back(tmp_path, number):
    def mine(number, frame):
        raise AssertionError("this signal was not sent")

    before = signal.signal(number, mine)
    try:
        train(config(tmp_path, STEPS), quiet=True)
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, before)


def test_a_callback_that_answers_false_ends_the_run(tmp_path):
    assert train(config(tmp_path), callbacks=[At(2, lambda: False)], quiet=True).agent.steps == 2 * STEPS


def test_a_finished_run_is_not_touched_by_resume(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    again = resume(finished.folder, quiet=True)
    assert (again.exit_status, again.result) == (0, finished.result)
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before


def test_what_is_no_run_folder_cannot_be_resumed(tmp_path):
    with pytest.raises(CheckpointError, match="not a run folder"):
        resume(tmp_path)


def test_a_callback_that_answers_nothing_lets_the_run_go_on(tmp_path):
    assert train(config(tmp_path), callbacks=[At(1, lambda: None)], quiet=True).agent.steps == 3 * STEPS


def test_without_tensorboard_it_trains_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ppo_kl.diagnostics.tensorboard_writer", None)  # as if it could not be imported
    run = train(config(tmp_path))
    assert "TensorBoard cannot be imported" in capsys.readouterr().out
    assert not list(run.folder.glob("events*"))
    assert rows(run.folder)
    assert run.exit_status == 0


def test_a_disk_that_is_full_is_an_output_error_and_earlier_checkpoints_stay(tmp_path, monkeypatch):
    write, full = JsonLinesWriter.write, OSError(errno.ENOSPC, "No space left on device")

    def until_full(self, steps, iteration, metrics, histograms):
        if iteration == 3:
            raise full
        write(self, steps, iteration, metrics)

    monkeypatch.setattr(JsonLinesWriter, "write", until_full)
    with pytest.raises(OutputError, match="No space left") as failed:
        train(config(tmp_path, **{"runtime.checkpoint_every": 2}), quiet=True)
    assert failed.value.exit_code == 6
    (folder,) = (tmp_path / "CartPole-v1" / "kl_adaptive").iterdir()
    assert Agent.load(folder).steps == 2 * STEPS
    assert len(rows(folder)) == 2
    assert json.loads((folder / "metadata.json").read_text())["exit_status"] == 6


@pytest.mark.parametrize("iteration", [1, 3], ids=["first", "last"])
def test_an_event_file_that_cannot_be_written_ends_the_run_within_an_iteration(iteration, tmp_path, monkeypatch):
    write = TensorBoardWriter.write

    def until_full(self, steps, number, *row):
        if number == iteration:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, steps, number, *row)

    monkeypatch.setattr(TensorBoardWriter, "write", until_full)
    with pytest.raises(OutputError, match="No space left"):
        train(config(tmp_path), quiet=True)
    (folder,) = (tmp_path / "CartPole-v1" / "kl_adaptive").iterdir()
    assert len(rows(folder)) <= iteration + 1
    assert json.loads((folder / "metadata.json").read_text())["exit_status"] == 6
    assert not (folder / "result.json").exists()


class _LosesItsFile(gym.Wrapper):
    """CartPole that cannot read a file of its own at its 40th step."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps > 40:
            raise FileNotFoundError("level.dat")
        return self.env.step(action)


def test_what_an_environment_raises_comes_through_with_the_last_good_state_saved(tmp_path):
    gym.register("LosesItsFile-v0", entry_point=lambda: _LosesItsFile(gym.make("CartPole-v1")))
    with pytest.raises(EnvWorkerError, match=r"FileNotFoundError: level\.dat") as error:
        train(config(tmp_path, **{"env.id": "LosesItsFile-v0"}), quiet=True)
    gym.registry.pop("LosesItsFile-v0")
    assert isinstance(error.value.__cause__, FileNotFoundError)
    (folder,) = (tmp_path / "LosesItsFile-v0" / "kl_adaptive").iterdir()
    assert Agent.load(folder).steps == STEPS
    assert json.loads((folder / "metadata.json").read_text())["exit_status"] == 3


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_a_run_can_be_named_from_any_folder_above_it(tmp_path, monkeypatch, levels, capsys):
    stopped = train(config(tmp_path), callbacks=[At(1, lambda: os.kill(os.getpid(), signal.SIGTERM))], quiet=True)
    folder = stopped.folder.relative_to(stopped.folder.parents[levels])
    monkeypatch.chdir(stopped.folder.parents[levels])
    assert resume(folder).exit_status == 0
    logdir = capsys.readouterr().out.split("--logdir ")[1].splitlines()[0]
    assert Path(logdir).resolve() == tmp_path.resolve()


def test_a_fault_in_the_middle_of_an_update_does_not_replace_the_checkpoint_before_it(tmp_path, monkeypatch):
    step, calls = Learner.update, []

    def broken_half_way(self, batch, progress):
        calls.append(1)
        done = step(self, batch, progress)
        if len(calls) == 2:
            raise ZeroDivisionError("half-way")
        return done

    monkeypatch.setattr(Learner, "update", broken_half_way)
    with pytest.raises(ZeroDivisionError):
        train(config(tmp_path, **{"runtime.checkpoint_every": 1}), quiet=True)
    (folder,) = (tmp_path / "CartPole-v1" / "kl_adaptive").iterdir()
    first = Agent.load(folder)
    monkeypatch.undo()
    clean = train(config(tmp_path, **{"objective.name": "clean"}), callbacks=[At(1, lambda: False)], quiet=True)
    assert first.steps == STEPS
    assert torch.equal(first.learner.parameters.flat, clean.agent.learner.parameters.flat)


class _SendsNaN(gym.Wrapper):
    """CartPole whose reward is NaN from its 41st step on."""

    steps = 0

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        return obs, float("nan") if self.steps > 40 else reward, terminated, truncated, info


@pytest.fixture
def nan_env():
    gym.register("SendsNaN-v0", entry_point=lambda: _SendsNaN(gym.make("CartPole-v1")))
    yield "SendsNaN-v0"
    gym.registry.pop("SendsNaN-v0")


def test_a_nan_reward_ends_the_run_with_the_last_good_state_saved(tmp_path, nan_env):
    with pytest.raises(EnvDataError, match="reward of environment 0 is nan at step 8"):
        train(config(tmp_path, **{"env.id": nan_env}), quiet=True)
    (folder,) = (tmp_path / nan_env / "kl_adaptive").iterdir()
    assert Agent.load(folder).steps == STEPS
    assert json.loads((folder / "metadata.json").read_text())["exit_status"] == 3
    assert len(rows(folder)) == 1
