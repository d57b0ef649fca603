"""A run that begins with another's weights has those, and nothing else of it."""

import re

import pytest
import torch

from ppo_kl import checkpoint
from ppo_kl.cli import main
from ppo_kl.envs import worker_count
from ppo_kl.errors import CheckpointError
from ppo_kl.load import load_config
from ppo_kl.training.agent import Agent
from ppo_kl.training.trainer import train

SMALL = {
    "total_steps": 128,
    "env.num_envs": 2,
    "env.normalize_obs": True,
    "training.num_steps": 32,
    "training.num_epochs": 2,
    "policy.hidden_sizes": (8,),
}


def config(objective="kl_adaptive", **changes):
    return load_config(objective=objective, overrides={**SMALL, **changes})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return train(config(runs_dir=str(tmp_path_factory.mktemp("runs"))), quiet=True)


def test_weights_and_observation_statistics_are_the_others(source):
    agent = Agent(config("clip", init_from=str(source.folder), seed=5))
    assert torch.equal(agent.learner.parameters.flat, source.agent.learner.parameters.flat)
    theirs = source.agent.obs_normalizer.state_dict()
    assert all(torch.equal(x, theirs[k]) for k, x in agent.obs_normalizer.state_dict().items())
    obs = [0.1, 0.2, -0.05, 0.3]
    assert agent.act(obs) == source.agent.act(obs)


def test_everything_else_is_that_of_a_new_run(source):
    fresh = Agent(config(seed=5))
    agent = Agent(config(seed=5, init_from=str(source.folder)))
    assert (agent.steps, agent.iterations, agent.last100, agent.best_return) == (0, 0, [], None)
    assert torch.equal(agent.learner.exp_avg, torch.zeros_like(agent.learner.exp_avg))
    assert agent.objective.kl_lambda == fresh.objective.kl_lambda != source.agent.objective.kl_lambda
    assert agent.learner.generator.get_state().equal(fresh.learner.generator.get_state())


def test_it_learns_on_from_there(source):
    agent = Agent(config("clip", init_from=str(source.folder)))
    agent.learn(64)
    assert not torch.equal(agent.learner.parameters.flat, source.agent.learner.parameters.flat)


def test_a_checkpoint_does_as_well_as_its_run(source):
    (newest,) = (source.folder / "checkpoints").glob("step_*.pt")
    agent = Agent(config(init_from=str(newest)))
    assert torch.equal(agent.learner.parameters.flat, source.agent.learner.parameters.flat)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"policy.hidden_sizes": (16,)}, "its policy .*8.* this run's .*16"),
        ({"policy.activation": "relu"}, "its policy .*tanh.* this run's .*relu"),
        ({"env.normalize_obs": False}, "its env.normalize_obs True, this run's False"),
        ({"env.id": "Acrobot-v1"}, "its spaces "),
    ],
)
def test_what_does_not_fit_is_refused_with_both_values_and_nothing_is_created(source, tmp_path, changes, named):
    with pytest.raises(CheckpointError, match=named):
        train(config(init_from=str(source.folder), runs_dir=str(tmp_path), **changes), quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_no_checkpoint_it_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        Agent(config(init_from=str(tmp_path)))


def test_on_the_command_line_the_other_runs_settings_come_with_it(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["train", "--init-from", str(source.folder), "--objective", "clip", "--runs-dir", "here", "--quiet"]
    assert main(asked) == 0
    written = (tmp_path / "here/CartPole-v1/clip/seed0/config.yaml").read_text()
    assert "normalize_obs: true" in written
    assert f"init_from: {source.folder}/checkpoints/step_000000000128.pt" in written
    assert "kind: clip" in written


def test_what_a_saved_run_names_is_not_imported_by_itself(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker_count, "cores_allowed", lambda: 2)  # on one core no environment is measured beforehand
    (tmp_path / "evil_module_of_a_run.py").write_text("open('payload', 'w')")
    state = checkpoint.load_from(source.folder)
    state["config"] = state["config"].replace("id: CartPole-v1", "id: evil_module_of_a_run:X")
    checkpoint.save(tmp_path / "a.pt", state)
    assert main(["train", "--init-from", "a.pt"]) == 2
    assert "--plugin evil_module_of_a_run" in capsys.readouterr().err
    assert not (tmp_path / "payload").exists()


def test_a_checkpoint_alone_brings_its_settings_but_not_its_folder(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (newest,) = (source.folder / "checkpoints").glob("step_*.pt")
    assert main(["train", "--init-from", str(newest), "--seed", "9", "--quiet"]) == 0
    written = (tmp_path / "runs/CartPole-v1/kl_adaptive/seed9/config.yaml").read_text()
    assert "normalize_obs: true" in written


def test_the_checkpoint_that_was_read_is_written_down_and_none_is_none(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--init-from", str(source.folder), "--quiet"]) == 0
    saved = tmp_path / "runs/CartPole-v1/kl_adaptive/seed0/config.yaml"
    assert load_config(config=str(saved)).init_from.endswith("step_000000000128.pt")
    assert main(["train", "--config", str(saved), "--init-from", "none", "--quiet"]) == 0
    assert "init_from: null" in (saved.parents[1] / "seed0-2/config.yaml").read_text()


def test_beside_resume_it_has_no_place(source, capsys):
    assert main(["train", "--resume", str(source.folder), "--init-from", str(source.folder)]) == 2
    assert "--init-from has no place" in capsys.readouterr().err


def test_a_number_of_steps_may_have_an_exponent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--total-steps", "1e2", "--training.num-epochs=1e0", "--quiet"]) == 0
    written = (tmp_path / "runs/CartPole-v1/kl_adaptive/seed0/config.yaml").read_text()
    assert "total_steps: 100\n" in written
    assert "num_epochs: 1\n" in written
