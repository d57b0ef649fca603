"""A module runs code when it is imported: what a user names is imported, what a saved run names never is."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import faulty_envs
import gymnasium as gym
import pytest

from ppo_kl.cli import main
from ppo_kl.config import EnvConfig, TrainConfig
from ppo_kl.config.policy import PolicyConfig
from ppo_kl.envs.make import make_vector_env
from ppo_kl.errors import ConfigError, OutputError
from ppo_kl.imports import attribute_named, class_named, import_modules, module_of, modules_in
from ppo_kl.load import load_config
from ppo_kl.training.agent import Agent

TEXT = """
import pathlib
import gymnasium
import torch
import faulty_envs

with open(pathlib.Path(__file__).with_suffix(".imported"), "a") as file:
    file.write("x")

class Env(faulty_envs.Takes):
    pass

class Wrapper(gymnasium.Wrapper):
    pass

class Net(torch.nn.Module):
    def __init__(self, obs_shape, num_outputs, config):
        super().__init__()
        self.actor, self.critic = torch.nn.Linear(obs_shape[0], num_outputs), torch.nn.Linear(obs_shape[0], 1)

    def forward(self, obs):
        return self.actor(obs), self.critic(obs).squeeze(-1)
"""
TRAIN = ["train", "--quiet", "--total-steps=16", "--env.num-envs=2", "--training.num-steps=8"]
TRAIN += ["--training.minibatch-size=8", "--training.num-epochs=1"]
_numbers = itertools.count()


class Module(NamedTuple):
    """A module in the working folder that nobody has imported yet."""

    name: str
    folder: Path

    def times_imported(self) -> int:
        marker = self.folder / f"{self.name}.imported"
        return len(marker.read_text()) if marker.exists() else 0

    def forget(self) -> None:
        """As in a new process."""
        sys.modules.pop(self.name, None)
        (self.folder / f"{self.name}.imported").unlink(missing_ok=True)


@pytest.fixture
def module(tmp_path, monkeypatch) -> Iterator[Module]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    name = f"somebodys_{os.getpid()}_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(TEXT)
    yield Module(name, tmp_path)
    sys.modules.pop(name, None)


def stopped_run(module: Module, *arguments: str) -> str:
    """The folder of a run of 32 steps that was stopped after 16, and whose module is then forgotten."""
    last = ["--total-steps", "32", "--runtime.checkpoint-every", "1"]
    assert main([*TRAIN, *(argument.format(module.name) for argument in arguments), *last]) == 0
    assert module.times_imported() == 1
    module.forget()
    (config,) = module.folder.glob("runs/**/config.yaml")
    run = config.parent
    (run / "result.json").unlink()
    sorted((run / "checkpoints").glob("*.pt"))[-1].unlink()
    return str(run)


BY = pytest.mark.parametrize(
    "arguments",
    [
        ["--env", "{}:Env"],
        ["--env", "CartPole-v1", "--env.wrappers.{}:Wrapper"],
        ["--env", "CartPole-v1", "--policy.module", "{}:Net"],
    ],
    ids=["environment", "wrapper", "network"],
)


# --- what a saved run names -------------------------------------------------------------------------------------------


@BY
def test_nothing_that_a_saved_run_names_is_imported_when_it_is_resumed_evaluated_or_loaded(module, arguments, capsys):
    run = stopped_run(module, *arguments)
    for command in (["train", "--quiet", "--resume", run], ["evaluate", run, "--episodes", "1"]):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert f"module {module.name!r} is not imported" in told
        assert "what a saved run names is never imported by itself" in told
        assert f"--plugin {module.name}" in told
    with pytest.raises(ConfigError, match=f"{module.name!r} is not imported"):
        Agent.load(run).evaluate(1)
    with pytest.raises(ConfigError, match=f"{module.name!r} is not imported"):
        Agent.load(run).learn(16)
    assert module.times_imported() == 0
    assert module.name not in sys.modules


@BY
def test_with_plugin_a_saved_run_goes_on_and_is_evaluated(module, arguments):
    run = stopped_run(module, *arguments, "--env.wrappers.TimeLimit.max_episode_steps", "5")
    assert main(["evaluate", run, "--episodes", "1", "--plugin", module.name]) == 0
    assert module.times_imported() == 1
    module.forget()
    assert main(["train", "--quiet", "--resume", run, "--plugin", module.name]) == 0
    assert module.times_imported() == 1
    assert Agent.load(run).steps == 32


def test_a_module_that_was_imported_before_is_used(module):
    run = stopped_run(module, "--env", "{}:Env", "--env.wrappers.TimeLimit.max_episode_steps", "5")
    import_modules([module.name], "test")
    assert Agent.load(run).evaluate(1).returns == [5.0]
    assert module.times_imported() == 1


# --- what a user names ------------------------------------------------------------------------------------------------


def test_a_saved_configuration_that_a_user_names_is_imported(module):
    run = stopped_run(module, "--env", "{}:Env")
    assert main(["train", "--quiet", "--config", str(Path(run, "config.yaml"))]) == 0
    assert module.times_imported() == 1


def test_load_config_imports_what_it_names(module):
    config = load_config(env=f"{module.name}:Env", overrides={f"env.wrappers.{module.name}:Wrapper": {}})
    assert module.times_imported() == 1
    assert attribute_named(config.env.id, "env.id") is sys.modules[module.name].Env


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("by", ["id", "wrappers"])
def test_a_configuration_made_by_hand_imports_nothing(module, by, vectorization):
    named = {"id": f"{module.name}:Env"} if by == "id" else {"wrappers": {f"{module.name}:Wrapper": {}}}
    config = EnvConfig(**named, num_envs=2, vectorization=vectorization)
    for make in (lambda: make_vector_env(config, 0), lambda: Agent(TrainConfig(env=config))):
        with pytest.raises(ConfigError, match=f"{module.name!r} is not imported"):
            make()
    assert module.times_imported() == 0


def test_a_module_of_the_working_folder_is_imported_once(module):
    import_modules([module.name, module.name], "--plugin")
    import_modules([module.name], "--plugin")
    assert module.times_imported() == 1
    assert sys.path[0] == str(module.folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["ModuleNotFoundError", "No module named"]),
        ("1 / 0", ["ZeroDivisionError: division by zero"]),
        ("def broken(:", ["SyntaxError"]),
        ("import no_such_package_at_all", ["no_such_package_at_all"]),
    ],
    ids=["missing", "raises", "syntax", "needs another"],
)
def test_a_module_that_cannot_be_imported_is_told_with_where_it_was_named_and_why(module, text, words):
    name = f"{module.name}_other"
    if text is not None:
        (module.folder / f"{name}.py").write_text(text)
    with pytest.raises(ConfigError) as told:
        import_modules([name], "--plugin")
    for word in (f"--plugin {name}: cannot be imported", str(module.folder), *words):
        assert word in str(told.value)


@pytest.mark.parametrize("name", ["", "..relative", "with space"])
def test_what_is_no_name_of_a_module_is_refused(module, name):
    with pytest.raises(ConfigError, match=r"module .*cannot be imported"):
        import_modules([name], "module")


def test_an_error_of_ours_in_a_module_keeps_its_own_words(module):
    (module.folder / f"{module.name}.py").write_text("from ppo_kl.errors import OutputError\nraise OutputError('own')")
    with pytest.raises(OutputError, match=r"^own$"):
        import_modules([module.name], "--plugin")


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module_name"),
    [("CartPole-v1", None), ("ALE/Pong-v5", None), ("a.b:C", "a.b"), ("a:space/Id-v0", "a"), (":C", "")],
)
def test_the_module_is_what_stands_before_the_colon(name, module_name):
    assert module_of(name) == module_name


def test_a_configuration_names_the_modules_of_its_environment_its_wrappers_and_its_network():
    env = EnvConfig("a.b:Id-v0", wrappers={"TimeLimit": {"max_episode_steps": 3}, "c:D": {}})
    assert modules_in(TrainConfig(env=env, policy=PolicyConfig(module="e.f:G"))) == ["a.b", "c", "e.f"]
    assert modules_in(TrainConfig()) == []


def test_a_name_in_an_imported_module_is_what_it_says_or_nothing():
    assert attribute_named("faulty_envs:Takes", "env.id") is faulty_envs.Takes
    assert attribute_named("faulty_envs:Nothing", "env.id") is None
    assert class_named("faulty_envs:Adds", gym.Wrapper, "env.wrappers") is faulty_envs.Adds


@pytest.mark.parametrize("name", ["Takes", "SEED", "Nothing", "sends"])
def test_what_is_no_class_of_the_kind_is_refused_with_what_it_is(name):
    found = getattr(faulty_envs, name, None)
    with pytest.raises(ConfigError) as told:
        class_named(f"faulty_envs:{name}", gym.Wrapper, "env.wrappers")
    for word in (f"env.wrappers='faulty_envs:{name}'", "expected a subclass of gymnasium.core.Wrapper", repr(found)):
        assert word in str(told.value)
