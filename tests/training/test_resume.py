"""2N steps are N steps, a stop, and N steps: bit for bit, wherever the stop comes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from short_runs import RUNS, STEPS, Everywhere, StopAfter, config, differences, last_state, metadata, rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_envs import env_config, small_agent

from ppo_kl import checkpoint
from ppo_kl.cli import main
from ppo_kl.diagnostics.rows import rows_of
from ppo_kl.envs.make import make_vector_env
from ppo_kl.errors import CheckpointError, ConfigError, EnvWarning
from ppo_kl.load import from_yaml
from ppo_kl.training.agent import Agent
from ppo_kl.training.trainer import resume, train


class Partial(gym.Wrapper):
    """CartPole that allows one action alone now and then, as a function of its state."""

    def _told(self, obs: Any) -> dict[str, Any]:
        return {"action_mask": np.array([True, obs[1] < 0.5])} if obs[0] > 0 else {}

    def reset(self, **kwargs: Any) -> Any:
        obs, _ = self.env.reset(**kwargs)
        return obs, self._told(obs)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, _ = self.env.step(action)
        return obs, reward, terminated, truncated, self._told(obs)


class Unseeded(gym.Wrapper):
    """CartPole with a wind that no seed knows of."""

    rng = np.random.default_rng()

    def step(self, action: Any) -> Any:
        obs, *rest = self.env.step(action)
        return (obs + self.rng.normal(size=4).astype(np.float32) / 100, *rest)


def _in_cartpole(wrapper: Any) -> Any:
    return lambda **kwargs: wrapper(gym.make("CartPole-v1", **kwargs))


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Any:
    made = {"Partial": _in_cartpole(Partial), "Everywhere": Everywhere, "Unseeded": _in_cartpole(Unseeded)}
    for name, entry_point in made.items():
        gym.register(f"resume/{name}-v0", entry_point=entry_point, disable_env_checker=True)
    yield
    for name in made:
        gym.registry.pop(f"resume/{name}-v0")


# --- bit for bit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
def test_a_run_that_was_stopped_after_every_iteration_is_the_one_that_never_was(tmp_path, run):
    env, objective, changes = RUNS[run]
    whole = train(config(tmp_path, env, objective, **changes), quiet=True)
    parts = train(config(tmp_path, env, objective, **changes), callbacks=[StopAfter(1)], quiet=True)
    for number in range(2, 5):
        parts = resume_unfinished(parts.folder, number)
    assert not differences(last_state(whole.folder), last_state(parts.folder))
    assert rows(whole.folder) == rows(parts.folder)
    assert whole.result is not None
    assert parts.result is not None
    assert {**whole.result, "seconds": 0} == {**parts.result, "seconds": 0}
    assert metadata(parts.folder)["exact_resume"] is True
    assert len(metadata(parts.folder)["earlier_parts"]) == 3


def resume_unfinished(folder: Path, number: int) -> Any:
    """Go on with what a callback ended, which counts as finished."""
    (folder / "result.json").unlink()
    return resume(folder, callbacks=[StopAfter(number)], quiet=True)


def test_the_stops_of_the_test_above_are_in_the_middle_of_episodes(tmp_path):
    state = last_state(train(config(tmp_path, "Pendulum-v1", iterations=1), quiet=True).folder)
    assert state["envs"]["steps"].tolist() == [32, 32]
    state = last_state(train(config(tmp_path, iterations=3), quiet=True).folder)
    assert (state["envs"]["steps"] > 0).all()


def test_a_new_process_goes_on_as_the_old_one_would_have(tmp_path):
    whole = train(config(tmp_path, iterations=4), quiet=True)
    part = train(config(tmp_path, iterations=4), callbacks=[StopAfter(2)], quiet=True)
    (part.folder / "result.json").unlink()
    subprocess.run([sys.executable, "-m", "ppo_kl", "train", "--quiet", "--resume", str(part.folder)], check=True)
    assert not differences(last_state(whole.folder), last_state(part.folder))
    assert rows(whole.folder) == rows(part.folder)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_in_memory_too_a_saved_agent_learns_on_as_the_one_that_was_saved(tmp_path, name):
    agent = small_agent(name, env__normalize_obs=True, env__normalize_reward=True)
    agent.learn(96)
    agent.save(tmp_path / "agent.pt")
    again = Agent.load(tmp_path / "agent.pt")
    again.save(tmp_path / "again.pt")
    for one in (agent, again):
        one.learn(96)
    assert not differences(agent.state_dict(), again.state_dict())
    assert not differences(Agent.load(tmp_path / "again.pt").learn(96).state_dict(), again.state_dict())


def test_acting_makes_no_environments(tmp_path, monkeypatch):
    small_agent().learn(32).save(tmp_path / "agent.pt")
    monkeypatch.setattr("ppo_kl.training.agent.make_vector_env", None)
    assert Agent.load(tmp_path / "agent.pt").act(np.zeros(4, np.float32)) in (0, 1)


def test_a_state_is_a_copy_that_later_training_leaves_as_it_is():
    agent, copied = small_agent(env__normalize_obs=True, env__normalize_reward=True).learn(64), {}
    before = agent.state_dict()
    copied = json.loads(json.dumps(before, default=lambda x: x.tolist()))
    agent.learn(96)
    assert json.loads(json.dumps(before, default=lambda x: x.tolist())) == copied


# --- where it cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_no_seed_repeats_is_told_and_begins_new_episodes(tmp_path, vectorization, capsys):
    run = config(tmp_path, "resume/Unseeded-v0", iterations=3, env__vectorization=vectorization)
    part = train(run, callbacks=[StopAfter(1)], quiet=True)
    assert metadata(part.folder)["exact_resume"] is True
    begun = last_state(part.folder)["episodes_begun"]
    (part.folder / "result.json").unlink()
    with pytest.warns(EnvWarning, match=r"not reproducible: resume continues from a fresh episode; environment \d of"):
        done = resume(part.folder)
    assert done.exit_status == 0
    assert "New episodes begin: env is not reproducible" in capsys.readouterr().out
    assert (np.array(last_state(part.folder)["episodes_begun"]) > begun).all()
    assert metadata(part.folder)["exact_resume"] is False
    assert "not reproducible" in metadata(part.folder)["inexact_because"]
    assert [row["steps"] for row in rows(part.folder)] == [STEPS, 2 * STEPS, 3 * STEPS]


def test_an_environment_that_raises_when_it_is_replayed_begins_new_episodes_too(tmp_path, monkeypatch):
    part = train(config(tmp_path, iterations=2), callbacks=[StopAfter(1)], quiet=True)
    (part.folder / "result.json").unlink()
    step, calls = gym.envs.classic_control.CartPoleEnv.step, []

    def refuses_once(self: Any, action: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("no such move")
        return step(self, action)

    monkeypatch.setattr(gym.envs.classic_control.CartPoleEnv, "step", refuses_once)
    with pytest.warns(EnvWarning, match=r"not reproducible.*no such move"):
        assert resume(part.folder, quiet=True).exit_status == 0


def test_a_native_environment_says_so_at_the_start_and_begins_new_episodes(tmp_path, capsys):
    run = config(tmp_path, iterations=2, env__vectorization="native")
    part = train(run, callbacks=[StopAfter(1)])
    assert "A resumed run begins new episodes: CartPole-v1 steps its own copies" in capsys.readouterr().out
    assert last_state(part.folder)["envs"] is None
    assert metadata(part.folder)["exact_resume"] is False
    (part.folder / "result.json").unlink()
    assert resume(part.folder, quiet=True).exit_status == 0
    assert "steps its own copies" in metadata(part.folder)["inexact_because"]


def test_a_checkpoint_without_running_episodes_goes_on_with_new_ones_and_says_so(tmp_path, capsys):
    part = train(config(tmp_path, iterations=2), callbacks=[StopAfter(1)], quiet=True)
    path = checkpoint.newest(part.folder / "checkpoints")
    checkpoint.save(path, {**checkpoint.load(path), "envs": None})
    (part.folder / "result.json").unlink()
    assert resume(part.folder).exit_status == 0
    assert "New episodes begin: there are none in the checkpoint" in capsys.readouterr().out
    assert metadata(part.folder)["exact_resume"] is False


@pytest.mark.parametrize(
    ("key", "wrong", "words"),
    [
        ("actions", [torch.zeros(40, 3, dtype=torch.int64)], r"\(3,\)"),
        ("actions", [], "no episode longer than the 0 steps"),
        ("steps", torch.tensor([3, -1]), "-1"),
        ("steps", torch.tensor([3]), "1 episodes, 2 returns, expected 2"),
        ("returns", None, "NoneType"),
    ],
)
def test_a_wrong_account_of_the_episodes_is_refused_and_nothing_loaded(tmp_path, key, wrong, words):
    agent, other = small_agent().learn(64), small_agent(seed=1).learn(32)
    state, before = agent.state_dict(), other.state_dict()
    state["envs"][key] = wrong
    with pytest.raises(CheckpointError, match=words):
        other.load_state_dict(state)
    assert not differences(before, other.state_dict())
    del state["envs"][key]
    with pytest.raises(CheckpointError, match=key):
        other.load_state_dict(state)
    del state["envs"]
    with pytest.raises(CheckpointError, match="envs"):
        other.load_state_dict(state)


# --- another end ------------------------------------------------------------------------------------------------------


def test_a_finished_run_goes_on_to_more_steps_and_schedules_follow_them(tmp_path, capsys):
    run = train(config(tmp_path, iterations=2), quiet=True)
    assert main(["train", "--resume", str(run.folder), "--total-steps", str(4 * STEPS)]) == 0
    assert f"total_steps {2 * STEPS:,} → {4 * STEPS:,}, from which schedules" in capsys.readouterr().out
    assert [row["steps"] for row in rows(run.folder)] == [STEPS, 2 * STEPS, 3 * STEPS, 4 * STEPS]
    lr = run.agent.config.training.lr
    expected = [lr, lr / 2, lr / 2, lr / 4]  # of 2 iterations, then of 4
    assert [row["optim/lr"] for row in rows(run.folder)] == pytest.approx(expected)
    assert from_yaml((run.folder / "config.yaml").read_text(), "c").total_steps == 4 * STEPS
    assert json.loads((run.folder / "result.json").read_text())["steps"] == 4 * STEPS


def test_the_result_counts_the_seconds_of_every_part(tmp_path):
    run = train(config(tmp_path, iterations=2), quiet=True)
    log = run.folder / "metrics.jsonl"
    first, second = rows_of(log)
    slow = {**first, "time/rollout_seconds": 300.0, "time/update_seconds": 700.0}
    log.write_text("".join(json.dumps(row) + "\n" for row in (slow, second)))
    done = resume(run.folder, total_steps=3 * STEPS, quiet=True)
    assert done.result is not None
    later = sum(row["time/rollout_seconds"] + row["time/update_seconds"] for row in rows_of(log)[1:])
    assert done.result["seconds"] == pytest.approx(300 + 700 + later, abs=0.051)  # in tenths


def test_the_new_end_holds_for_later_parts_although_the_checkpoint_knows_the_old_one(tmp_path, monkeypatch):
    run = train(config(tmp_path, iterations=2), quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr("ppo_kl.training.trainer.JsonLinesWriter", None)  # killed before anything was saved
        with pytest.raises(TypeError):
            resume(run.folder, total_steps=3 * STEPS, quiet=True)
    assert resume(run.folder, quiet=True).agent.steps == 3 * STEPS


@pytest.mark.parametrize("total_steps", [0, 1, 2 * STEPS - 1])
def test_fewer_steps_than_are_done_are_refused_and_nothing_is_changed(tmp_path, total_steps):
    run = train(config(tmp_path, iterations=2), quiet=True)
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    with pytest.raises(ConfigError, match=rf"total_steps={total_steps}"):
        resume(run.folder, total_steps=total_steps, quiet=True)
    assert resume(run.folder, total_steps=2 * STEPS, quiet=True).result == run.result
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


# --- the log ----------------------------------------------------------------------------------------------------------


def test_after_a_crash_each_step_is_in_the_log_once(tmp_path):
    def crash(state: Any) -> bool:
        raise RuntimeError("power cut")

    run = config(tmp_path, iterations=4, runtime__checkpoint_every=2)
    part = train(run, callbacks=[StopAfter(3)], quiet=True)
    # Killed after iteration 3: what was saved last is of iteration 2.
    checkpoint.newest(part.folder / "checkpoints").unlink()
    (part.folder / "result.json").unlink()
    resume(part.folder, quiet=True)
    steps = [STEPS, 2 * STEPS, 3 * STEPS, 4 * STEPS]
    assert [row["steps"] for row in rows(part.folder)] == steps
    events = EventAccumulator(str(part.folder)).Reload()
    assert [event.step for event in events.Scalars("kl/forward")] == steps
    assert rows(part.folder) == rows(train(run, quiet=True).folder)


# --- what a result does not depend on ---------------------------------------------------------------------------------


def test_no_two_environments_of_100_seeds_begin_alike():
    seen = []
    for seed in range(100):
        envs = make_vector_env(env_config("CartPole-v1"), seed)
        seen.append(envs.reset())
        envs.close()
    assert len(np.unique(np.concatenate(seen), axis=0)) == 200


class Evaluates:
    """A callback that plays episodes, and draws from every global stream there is."""

    def on_iteration(self, state: Any) -> None:
        state.agent.evaluate(2)
        torch.rand(3)
        np.random.rand(3)


def test_evaluation_checkpoints_and_global_random_streams_leave_no_trace_in_what_is_learned(tmp_path):
    plain = train(config(tmp_path), quiet=True)
    busy = train(config(tmp_path, runtime__checkpoint_every=1), callbacks=[Evaluates()], quiet=True)
    first, second = last_state(plain.folder), last_state(busy.folder)
    assert first.pop("config") != second.pop("config")
    assert not differences(first, second)
    assert rows(plain.folder) == rows(busy.folder)


def test_the_order_in_which_a_process_hashes_words_leaves_no_trace(tmp_path):
    code = (
        "import sys, hashlib, short_runs as t; from pathlib import Path; from ppo_kl.training.trainer import train\n"
        "t.gym.register('resume/Everywhere-v0', entry_point=t.Everywhere)\n"
        "env, objective, changes = t.RUNS['Dict']\n"
        "agent = train(t.config(Path(sys.argv[1]), env, objective, 2, **changes), quiet=True).agent\n"
        "print(hashlib.sha256(agent.learner.parameters.flat.detach().numpy().tobytes()).hexdigest())"
    )
    found = set()
    for seed in ("1", "2"):
        here = Path(__file__)
        paths = os.pathsep.join([str(here.parents[2]), str(here.parents[1])])
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        command = [sys.executable, "-c", code, str(tmp_path)]
        found.add(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
    assert len(found) == 1
    assert len(found.pop().strip()) == 64


# --- beside others, and elsewhere ------------------------------------------------------------------------------------


def test_a_run_that_is_being_trained_is_not_resumed(tmp_path):
    class Meanwhile:
        def on_iteration(self, state):
            (folder,) = (tmp_path / "CartPole-v1" / "kl_adaptive").iterdir()
            if state.number < 2:
                return True
            code = f"import ppo_kl; ppo_kl.resume({str(folder)!r}, quiet=True)"
            other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert "another process is training this run" in other.stderr
            return False

    run = train(config(tmp_path, **{"runtime.checkpoint_every": 1}), callbacks=[Meanwhile()], quiet=True)
    assert run.exit_status == 0
    assert len(rows(run.folder)) == 2


def test_a_setting_that_was_changed_in_the_folder_is_refused_by_name(tmp_path):
    run = train(config(tmp_path, iterations=2), quiet=True)
    file = run.folder / "config.yaml"
    file.write_text(re.sub("  gamma: .*", "  gamma: 0.5", file.read_text()))
    with pytest.raises(ConfigError, match=r"training.gamma is 0.5, the checkpoint was trained with 0.9\d"):
        resume(run.folder, total_steps=3 * STEPS, quiet=True)


def test_a_run_goes_on_on_another_device_and_its_file_says_so(tmp_path):
    run = train(config(tmp_path, iterations=2), quiet=True)
    state, file = checkpoint.load_from(run.folder), run.folder / "config.yaml"
    state["config"] = state["config"].replace("device: cpu", "device: cuda:77")  # which this machine has not
    file.write_text(file.read_text().replace("device: cpu", "device: cuda:77"))
    checkpoint.save(checkpoint.newest(run.folder / "checkpoints"), state)
    with pytest.raises(ConfigError, match="CUDA"):
        resume(run.folder, total_steps=3 * STEPS, quiet=True)
    assert resume(run.folder, total_steps=3 * STEPS, device="cpu", quiet=True).agent.steps == 3 * STEPS
    assert "device: cpu" in file.read_text()


def test_what_the_result_of_a_run_saves_knows_where_its_environments_stood(tmp_path):
    run = train(config(tmp_path, iterations=2), quiet=True)
    run.agent.save(tmp_path / "a.pt")
    assert Agent.load(tmp_path / "a.pt").open() is None
