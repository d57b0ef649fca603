"""A run that is evaluated as it goes: the best checkpoint stays, and nothing of what is learned changes."""

import json
import math

import numpy as np
import pytest
import torch
import toy_envs

from ppo_kl.checkpoint import BEST, in_order
from ppo_kl.config import TrainConfig
from ppo_kl.errors import ConfigError
from ppo_kl.load import load_config
from ppo_kl.training.agent import Agent
from ppo_kl.training.evaluation import Evaluation
from ppo_kl.training.trainer import resume, train

STEPS = 64


def config(tmp_path, iterations=6, **changes) -> TrainConfig:
    return load_config(
        overrides={
            "runs_dir": str(tmp_path),
            "total_steps": iterations * STEPS,
            "env.num_envs": 2,
            "training.num_steps": STEPS // 2,
            "training.num_epochs": 2,
            "policy.hidden_sizes": (8,),
            **changes,
        }
    )


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def scores(monkeypatch):
    """Evaluations answer these means, one after the other."""
    answers: list[float] = []
    monkeypatch.setattr(Agent, "evaluate", lambda *_, **__: Evaluation([answers.pop(0)], [1]))
    return answers


def test_an_evaluation_is_logged_when_it_is_due_and_the_checkpoint_that_did_best_is_kept(tmp_path, scores):
    scores += [10.0, 30.0, 20.0]
    done = train(config(tmp_path, **{"evaluation.every": 2}), quiet=True)
    told = [row.get("eval/return_mean") for row in rows(done.folder)]
    assert told == [None, 10.0, None, 30.0, None, 20.0]
    best = done.folder / "checkpoints" / BEST
    assert Agent.load(best).steps == 4 * STEPS
    assert best not in in_order(done.folder / "checkpoints")
    assert Agent.load(done.folder).steps == 6 * STEPS


def test_a_return_that_is_no_number_is_never_the_best(tmp_path, scores):
    scores += [math.nan, 5.0, math.nan]
    done = train(config(tmp_path, **{"evaluation.every": 2}), quiet=True)
    assert Agent.load(done.folder / "checkpoints" / BEST).steps == 4 * STEPS


def test_a_resumed_run_knows_the_best_so_far(tmp_path, scores):
    scores += [30.0, 20.0, 40.0]

    class StopAtFour:
        def on_iteration(self, state):
            return state.number < 3

    first = train(config(tmp_path, **{"evaluation.every": 2}), callbacks=[StopAtFour()], quiet=True)
    (first.folder / "result.json").unlink()
    best = first.folder / "checkpoints" / BEST
    assert Agent.load(best).steps == 2 * STEPS

    class LookAtFour:
        def on_iteration(self, state):
            if state.number == 5:  # the evaluation of 20 was at 4
                assert Agent.load(best).steps == 2 * STEPS
            return True

    resume(first.folder, callbacks=[LookAtFour()], quiet=True)
    assert Agent.load(best).steps == 6 * STEPS


def test_going_back_behind_the_best_does_not_forget_it(tmp_path, scores):
    scores += [10.0, 30.0, 20.0]
    changes = {"evaluation.every": 1, "runtime.checkpoint_every": 1}
    done = train(config(tmp_path, iterations=2, **changes), quiet=True)
    in_order(done.folder / "checkpoints")[-1].unlink()  # the run goes back to step 64, whose best was 10
    (done.folder / "result.json").unlink()
    resume(done.folder, quiet=True)
    assert scores == []
    assert Agent.load(done.folder).best_return == 30.0


def test_an_agent_that_learns_in_memory_is_evaluated_too(tmp_path):
    agent = Agent(config(tmp_path, **{"evaluation.every": 2, "evaluation.episodes": 1}))
    told = [state.metrics.get("eval/return_mean") for state in agent.iterations_until(2 * STEPS)]
    assert told == [None, agent.best_return]


def test_evaluation_and_diagnostics_change_nothing_of_what_is_learned(tmp_path):
    plain = train(config(tmp_path), quiet=True)
    watched = train(
        config(tmp_path, **{"evaluation.every": 1, "evaluation.episodes": 2, "diagnostics.gradient_every": 1}),
        quiet=True,
    )
    assert torch.equal(plain.agent.learner.parameters.flat, watched.agent.learner.parameters.flat)
    for a, b in zip(rows(plain.folder), rows(watched.folder), strict=True):
        for tag in ("kl/forward", "loss/total", "penalty/lambda"):
            assert a[tag] == b[tag]
    assert all(math.isfinite(row["eval/return_std"]) for row in rows(watched.folder))


def test_settings_of_an_evaluation_that_never_is_are_refused():
    with pytest.raises(ConfigError, match="would be ignored"):
        load_config(overrides={"evaluation.episodes": 3})


def test_the_result_holds_the_history_for_a_notebook(tmp_path):
    done = train(config(tmp_path, iterations=3), quiet=True)
    history = done.history
    assert history.steps.tolist() == [STEPS, 2 * STEPS, 3 * STEPS]
    assert np.array_equal(history.columns["kl/forward"], [row["kl/forward"] for row in rows(done.folder)])


# --- evaluation alone ------------------------------------------------------------------------------------------------


def test_two_evaluations_play_the_same_episodes():
    agent = Agent("CartPole-v1", seed=3)
    assert agent.evaluate(3) == agent.evaluate(3)


def test_an_episode_that_does_not_end_counts_as_far_as_it_went():
    agent = toy_envs.small_agent("Endless")
    assert agent.evaluate(3, max_steps=20) == ([20.0] * 3, [20] * 3)


def test_what_records_training_does_not_record_evaluations(tmp_path):
    pytest.importorskip("moviepy")
    env = {
        "env.kwargs": {"render_mode": "rgb_array"},
        "env.wrappers": {"RecordVideo": {"video_folder": str(tmp_path / "v")}},
    }
    agent = Agent(load_config(overrides=env))
    agent.evaluate(1)
    assert not list(tmp_path.rglob("*evaluation*"))


def test_every_episode_is_on_video(tmp_path):
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    agent = Agent("CartPole-v1")
    found = agent.evaluate(2, video=tmp_path / "videos")
    assert found.returns[0] in agent.evaluate(2).returns  # the first episode of the first environment
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 2


def test_what_steps_its_own_copies_cannot_be_recorded(tmp_path):
    agent = Agent(load_config(overrides={"env.vectorization": "native", "env.id": "CartPole-v1"}))
    with pytest.raises(ConfigError, match="no wrapper can record"):
        agent.evaluate(1, video=tmp_path)
