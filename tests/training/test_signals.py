"""A signal ends a run at once, whatever it is doing, and nothing of it is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from short_runs import STEPS, config, differences, last_state, metadata, rows
from waiting import eventually

from ppo_kl import checkpoint
from ppo_kl.envs.autoreset import Environments
from ppo_kl.load import from_yaml
from ppo_kl.training.agent import Agent
from ppo_kl.training.learner import Learner
from ppo_kl.training.stopping import Stopped, stop_on_signals
from ppo_kl.training.trainer import resume, train

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}

GO_ON = r"Stopped by {} at step {}, saved. Go on with:\n\S*ppo-kl'? train --resume {}"
"""Where ppo-kl is not on the path, as the shell can find it."""


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def before_call(monkeypatch: Any, owner: Any, name: str, n: int, act: Callable[[], Any]) -> None:
    """Do `act` before the n-th call of `owner.name`, counted from now."""
    real, calls = getattr(owner, name), []

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == n:
            act()
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, called)


# --- in the middle of something --------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(("owner", "name", "n"), [(Environments, "step", 45), (Learner, "step", 6)])
def test_in_a_rollout_or_an_update_it_stops_at_the_last_iteration_and_goes_on_as_if_nothing_had_been(
    tmp_path, monkeypatch, vectorization, owner, name, n
):
    # Not auto, which makes steps of its own to measure what they cost.
    run = config(tmp_path, iterations=3, env__vectorization=vectorization, runtime__compile="off")
    with monkeypatch.context() as patch:
        before_call(patch, owner, name, n, send)
        stopped = train(run, quiet=True)
    assert (stopped.exit_status, stopped.result, stopped.agent.steps) == (143, None, STEPS)
    assert [row["steps"] for row in rows(stopped.folder)] == [STEPS]
    assert metadata(stopped.folder)["exit_status"] == 143
    assert not differences(stopped.agent.state_dict(), last_state(stopped.folder))
    assert resume(stopped.folder, quiet=True).exit_status == 0
    whole = train(run, quiet=True)
    assert not differences(last_state(whole.folder), last_state(stopped.folder))
    assert rows(whole.folder) == rows(stopped.folder)


def test_in_the_first_iteration_it_leaves_a_run_that_begins_again(tmp_path, monkeypatch, capsys):
    run = config(tmp_path, iterations=2)
    with monkeypatch.context() as patch:
        before_call(patch, Environments, "step", 5, send)
        stopped = train(run)
    assert re.search(GO_ON.format("SIGTERM", 0, stopped.folder), capsys.readouterr().out)
    assert resume(stopped.folder, quiet=True).exit_status == 0
    whole = train(run, quiet=True)
    assert not differences(last_state(whole.folder), last_state(stopped.folder))
    assert rows(whole.folder) == rows(stopped.folder)
    assert metadata(stopped.folder)["exact_resume"] is True


def test_twelve_signals_at_random_moments_leave_the_run_that_had_none(tmp_path):
    rng, run = random.Random(), config(tmp_path, "Pendulum-v1", iterations=8)
    began = time.monotonic()
    whole = train(run, quiet=True)
    duration = time.monotonic() - began
    folder = None
    for number in (list(STATUS) * 4)[:12]:
        timer = threading.Timer(rng.uniform(0.1, 0.6) * duration, send, [number])
        with stop_on_signals():  # one that comes early or late ends nothing
            timer.start()
            part = train(run, quiet=True) if folder is None else resume(folder, quiet=True)
            timer.join()
        folder = part.folder
        assert part.exit_status in (0, STATUS[number])
        if part.exit_status == 0:
            break
    resume(folder, quiet=True)
    assert not differences(last_state(whole.folder), last_state(folder))
    assert rows(whole.folder) == rows(folder)


class _Waits(gym.Wrapper):
    """CartPole that waits for something that never comes, at its 40th step."""

    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 40:
            threading.Timer(0.2, send).start()
            time.sleep(600)
        return self.env.step(action)


class _AnswersEverything(gym.Wrapper):
    """CartPole that catches what is none of its business."""

    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        with contextlib.suppress(BaseException):
            if self.steps == 40:
                send()
        return self.env.step(action)


@pytest.fixture
def odd_env(request: Any) -> Iterator[str]:
    wrapper = request.param
    gym.register("Odd-v0", entry_point=lambda: wrapper(gym.make("CartPole-v1")))
    yield "Odd-v0"
    gym.registry.pop("Odd-v0")


@pytest.mark.parametrize("odd_env", [_Waits], indirect=True)
def test_an_environment_that_waits_for_ever_keeps_no_run_from_ending(tmp_path, odd_env):
    began = time.monotonic()
    stopped = train(config(tmp_path, odd_env), quiet=True)
    assert time.monotonic() - began < 60
    assert (stopped.exit_status, stopped.agent.steps) == (143, STEPS)


@pytest.mark.parametrize("odd_env", [_AnswersEverything], indirect=True)
def test_a_signal_that_an_environment_swallows_ends_the_run_after_the_iteration(tmp_path, odd_env):
    stopped = train(config(tmp_path, odd_env), quiet=True)
    assert (stopped.exit_status, stopped.agent.steps) == (143, 2 * STEPS)


class _Plays:
    """A callback that evaluates for a very long time."""

    def on_iteration(self, state: Any) -> None:
        threading.Timer(0.2, send).start()
        state.agent.evaluate(1_000_000)


def test_a_long_evaluation_is_not_waited_for(tmp_path):
    stopped = train(config(tmp_path), callbacks=[_Plays()], quiet=True)
    assert (stopped.exit_status, stopped.agent.steps) == (143, STEPS)
    assert len(rows(stopped.folder)) == 1


# --- while it is saved -----------------------------------------------------------------------------------------------


def test_a_signal_in_the_middle_of_a_save_lets_it_come_to_its_end(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        before_call(patch, checkpoint, "save", 2, send)
        stopped = train(config(tmp_path, runtime__checkpoint_every=1), quiet=True)
    assert stopped.exit_status == 143
    assert last_state(stopped.folder)["steps"] == stopped.agent.steps == 2 * STEPS


def test_a_second_signal_ends_a_save_at_once_and_the_checkpoint_before_it_stays(tmp_path, monkeypatch):
    real, files = os.fsync, []

    def twice(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        files.append(name)
        if "checkpoints" in name and sum("checkpoints/" in file for file in files) == 2:
            send(signal.SIGINT)
            send(signal.SIGTERM)
        real(handle)

    monkeypatch.setattr(os, "fsync", twice)
    with pytest.raises(SystemExit) as ended:
        train(config(tmp_path, runtime__checkpoint_every=1), quiet=True)
    assert ended.value.code == 143
    (folder,) = (tmp_path / "CartPole-v1" / "kl_adaptive").iterdir()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step_{STEPS:012d}.pt"]
    assert Agent.load(folder).steps == STEPS
    assert metadata(folder)["exit_status"] == 143
    assert resume(folder, quiet=True).exit_status == 0


# --- hang-ups, and who may be asked -----------------------------------------------------------------------------------


class _Sends:
    """A callback that sends a signal after each iteration."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_iteration(self, state: Any) -> None:
        send(self.number)


def test_a_hang_up_that_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(config(tmp_path, iterations=2), callbacks=[_Sends(signal.SIGHUP)], quiet=True).exit_status == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_trains_without_touching_handlers(tmp_path):
    done: list[int] = []
    before = [signal.getsignal(number) for number in STATUS]
    thread = threading.Thread(target=lambda: done.append(train(config(tmp_path, iterations=1), quiet=True).exit_status))
    thread.start()
    thread.join()
    assert done == [0]
    assert [signal.getsignal(number) for number in STATUS] == before


@pytest.mark.parametrize("number", STATUS)
def test_what_may_be_left_half_way_is_interrupted_and_nothing_else(number):
    with stop_on_signals() as stop:
        send(number)
        assert stop.signal == number
        with pytest.raises(Stopped), stop.interrupts():
            raise AssertionError("begun after a signal")
        with pytest.raises(SystemExit) as ended:
            send(signal.SIGTERM)
    assert ended.value.code == 143
    with stop_on_signals() as stop, pytest.raises(Stopped), stop.interrupts():
        send(number)


# --- the command ------------------------------------------------------------------------------------------------------

PROGRAM = (sys.executable, "-m", "ppo_kl", "train")


def settings(runs: Path, **changes: Any) -> list[str]:
    own = {
        "runs-dir": runs,
        "total-steps": 100_000_000,
        "env.num-envs": 2,
        "training.num-steps": 32,
        "training.lr-schedule": "constant",
    }
    return [word for key, value in {**own, **changes}.items() for word in (f"--{key}", str(value))]


def started(*words: str, path: Path | None = None, **kwargs: Any) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, [path, Path(__file__).parents[2]])))}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*PROGRAM, *words], env=env, **pipes, **kwargs)


BEFORE_TRAINING = {
    "while a module is imported": ("import os, signal; os.kill(os.getpid(), signal.{})", ["--plugin", "mine"]),
    "while environments are made": (
        "import os, signal, gymnasium\nclass Env(gymnasium.Env):\n"
        "    def __init__(self): os.kill(os.getpid(), signal.{})",
        ["--env", "mine:Env"],
    ),
}


@pytest.mark.parametrize(("moment", "number"), [*zip(BEFORE_TRAINING, (signal.SIGINT, signal.SIGTERM), strict=True)])
def test_before_training_begins_it_ends_with_one_line_and_creates_nothing(tmp_path, moment, number):
    code, words = BEFORE_TRAINING[moment]
    (tmp_path / "mine.py").write_text(code.format(number.name))
    process = started(*words, *settings(tmp_path / "runs"), path=tmp_path)
    out, err = process.communicate()
    assert process.returncode == STATUS[number]
    assert (out, err) == ("", f"ppo-kl: stopped by {number.name}; what was saved before stays\n")
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_to_the_whole_group_stops_a_run_with_processes_which_goes_on_as_if_it_had_not_come(tmp_path):
    process = started(*settings(tmp_path, **{"env.vectorization": "async"}), start_new_session=True)
    try:
        assert eventually(lambda: [f for f in tmp_path.rglob("metrics.jsonl") if f.read_text().count("\n") > 2], 60)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, "")
    (folder,) = (tmp_path / "CartPole-v1" / "kl_adaptive").iterdir()
    state = last_state(folder)
    assert re.search(GO_ON.format("SIGINT", f"{state['steps']:,}", folder), out)
    assert state["steps"] == rows(folder)[-1]["steps"]
    assert resume(folder, total_steps=state["steps"] + 128, quiet=True).exit_status == 0
    run = from_yaml((folder / "config.yaml").read_text(), "config.yaml")
    whole = train(dataclasses.replace(run, runs_dir=str(tmp_path / "whole")), quiet=True).folder
    resumed, expected = last_state(folder), last_state(whole)
    assert resumed.pop("config") != expected.pop("config")
    assert not differences(resumed, expected)
    assert rows(folder) == rows(whole)


def test_a_reader_that_goes_away_takes_nothing_with_it(tmp_path):
    with started(*settings(tmp_path, **{"total-steps": 640, "training.num-epochs": 1})) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    folder = Path(first.removeprefix("Run folder: ").strip())
    assert json.loads((folder / "result.json").read_text())["steps"] == 640
