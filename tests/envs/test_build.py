"""An environment is made of its name, its kwargs and its wrappers, or the message says what to install or to change."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from command_line import run
from faulty_envs import Takes
from gymnasium import spaces
from toy_envs import SEED

from ppo_kl.cli import main
from ppo_kl.config import EnvConfig
from ppo_kl.envs.build import EXTRAS
from ppo_kl.envs.make import EVALUATION, make_vector_env
from ppo_kl.errors import ConfigError, EnvWorkerError
from ppo_kl.load import from_yaml, load_config, to_yaml

BOTH = pytest.mark.parametrize("vectorization", ["sync", "async"])
TRAIN = ["train", "--quiet", "--total-steps=16", "--env.num-envs=2", "--training.num-steps=8"]
TRAIN += ["--training.minibatch-size=8", "--training.num-epochs=1"]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(capsys: Any, *arguments: str) -> tuple[int, str]:
    """Exit status and what it says, on stderr first."""
    status, out, err = run(capsys, *TRAIN, *arguments)
    return status, err + out


def attribute(config: EnvConfig, name: str) -> list[Any]:
    """Of each environment."""
    envs = make_vector_env(config, SEED)
    try:
        return list(envs.env.get_attr(name))
    finally:
        envs.close()


def one_reward(wrappers: dict[str, dict[str, Any]], vectorization: str = "sync") -> list[float]:
    """The reward of a first step of `Takes`, which gives 1, in wrappers."""
    envs = make_vector_env(
        EnvConfig("faulty_envs:Takes", wrappers=wrappers, num_envs=2, vectorization=vectorization), SEED
    )
    try:
        envs.reset()
        return envs.step(np.zeros(2, np.int64)).reward.tolist()
    finally:
        envs.close()


# --- names ------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("name", ["faulty_envs:Takes", "faulty_envs:faulty/Takes-v0", "faulty/Takes-v0"])
def test_an_environment_is_named_by_its_class_by_its_modules_id_or_by_its_id(name, vectorization):
    config = EnvConfig(name, num_envs=2, vectorization=vectorization)
    spaces_of = attribute(config, "observation_space")
    assert spaces_of == [spaces.Box(0.0, 1.0, (2,), np.float32)] * 2


@pytest.mark.parametrize("name", ["faulty_envs:Takes", "faulty_envs:faulty/Takes-v0"])
def test_the_command_line_imports_the_module_trains_and_saves_the_name(name, elsewhere, capsys):
    assert trained(capsys, "--env", name) == (0, "")
    (saved,) = elsewhere.glob("runs/**/config.yaml")
    assert from_yaml(saved.read_text(), "config.yaml").env.id == name


def test_a_module_in_the_working_folder_is_found(elsewhere, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = fresh_module(elsewhere, "class Mine(faulty_envs.Takes): pass", monkeypatch)
    assert trained(capsys, "--env", f"{name}:Mine", "--env.kwargs.depth", "3") == (0, "")
    assert Takes.made[-1] == {"depth": 3}


_numbers = count()


def fresh_module(folder: Path, text: str, monkeypatch: Any) -> str:
    """A module that nobody has imported, forgotten afterwards; its name."""
    name = f"of_their_own_{os.getpid()}_{next(_numbers)}"
    (folder / f"{name}.py").write_text(f"import faulty_envs\n{text}\n")
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


@BOTH
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CartPole-v7", ["CartPole-v7", "v1"]),
        ("NoSuchThing-v0", ["NoSuchThing"]),
        ("CartPol-v1", ["CartPol", "CartPole"]),
        ("faulty_envs:Nothing", ["faulty_envs:Nothing", "package.module:Id"]),
        ("faulty_envs:nothing/There-v0", ["faulty_envs:nothing/There-v0"]),
        ("faulty_envs:Adds", ["faulty_envs:Adds"]),  # a class, but no environment
    ],
)
def test_an_unknown_name_is_refused_with_it(name, words, vectorization):
    with pytest.raises(ConfigError) as told:
        make_vector_env(EnvConfig(name, num_envs=2, vectorization=vectorization), SEED)
    for word in (f"env.id={name!r}", *words):
        assert word in str(told.value)


def test_a_module_that_does_not_exist_is_refused_before_anything_is_created(elsewhere, capsys):
    status, err = trained(capsys, "--env", "no_such_package.module:Thing")
    assert status == 2
    assert "no_such_package.module" in err
    assert "No module named 'no_such_package'" in err
    assert not list(elsewhere.iterdir())


# --- kwargs -----------------------------------------------------------------------------------------------------------


@BOTH
def test_kwargs_reach_the_environment(vectorization):
    config = load_config(env="Pendulum-v1", overrides={"env.kwargs.g": 1.6, "env.vectorization": vectorization})
    assert attribute(config.env, "g") == [1.6] * config.env.num_envs
    assert attribute(EnvConfig("Pendulum-v1", num_envs=1), "g") == [10.0]


def test_kwargs_reach_a_native_vector_environment():
    config = EnvConfig("CartPole-v1", {"sutton_barto_reward": True}, num_envs=2, vectorization="native")
    envs = make_vector_env(config, SEED)
    envs.reset()
    # Sutton and Barto's reward is 0 until the pole falls, Gymnasium's is 1.
    assert envs.step(np.ones(2, np.int64)).reward.tolist() == [0.0, 0.0]


def test_gymnasiums_own_kwargs_work_too():
    envs = make_vector_env(EnvConfig("CartPole-v1", {"max_episode_steps": 3}, num_envs=2), SEED)
    envs.reset()
    told = [envs.step(np.array([0, 1])).truncated.tolist() for _ in range(3)]
    assert told == [[False, False], [False, False], [True, True]]


@BOTH
@pytest.mark.parametrize("name", ["CartPole-v1", "faulty_envs:TakesNothing"])
def test_kwargs_that_it_does_not_take_are_refused_with_their_names_and_values(name, vectorization):
    with pytest.raises(ConfigError, match=rf"env\.id='{name}'.*unexpected keyword argument 'gravty'.*'gravty': 1\.6"):
        make_vector_env(EnvConfig(name, {"gravty": 1.6}, num_envs=2, vectorization=vectorization), SEED)


WRITTEN = {
    "1": 1,
    "-1.6": -1.6,
    "-1.6e-3": -0.0016,
    "1e3": 1000.0,
    "10_000": 10_000,
    "[1, 2.5, a, true]": [1, 2.5, "a", True],
    "[]": [],
    "[1, 2": "[1, 2",
    "a-word": "a-word",
    "two words": "two words",
    "a=b": "a=b",
    "==": "==",
    "it's": "it's",
    "0x10": "0x10",
    "'1'": "1",
    '"true"': "true",
    "'none'": "none",
    "'two words'": "two words",
    "true": True,
    "False": False,
    "yes": "yes",
    "no": "no",
    "none": None,
    "": None,
}
"""What stands on the command line -> what it means."""


@pytest.mark.parametrize("form", ["--env.kwargs.{} VALUE", "--env.kwargs.{}=VALUE"])
def test_the_command_lines_kwargs_are_the_numbers_words_and_lists_that_are_written(form, elsewhere, capsys):
    arguments = []
    for number, text in enumerate(WRITTEN):
        option = form.format(f"k{number}")
        arguments += [part.replace("VALUE", text) for part in option.split(" ")]
    assert trained(capsys, "--env", "faulty_envs:Takes", *arguments) == (0, "")
    made = Takes.made[-1]
    expected = {f"k{number}": value for number, value in enumerate(WRITTEN.values())}
    assert made == expected
    assert repr(made) == repr(expected)  # 1 is neither 1.0 nor true


def test_kwargs_may_stand_between_other_options_the_last_of_a_name_wins_and_a_value_may_begin_with_dashes(
    elsewhere, capsys
):
    arguments = ["--env.kwargs.x", "1", "--seed", "3", "--env.kwargs.y", "2", "--env", "faulty_envs:Takes"]
    arguments += ["--env.kwargs.x=--dashes"]
    assert trained(capsys, *arguments) == (0, "")
    assert Takes.made[-2:] == [{"x": "--dashes", "y": 2}] * 2
    assert list(elsewhere.glob("runs/*/kl_adaptive/seed3"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--env.kwargs.x"], ["--env.kwargs.x", "needs a value"]),
        (["--env.kwargs.x", "--seed", "1"], ["--env.kwargs.x", "needs a value"]),
        (["--env.kwargs.x", "{a: 1}"], ["expected a value"]),
        (["--env.kwargs.x.y", "1"], ["env.kwargs.x", "expected a number, a word"]),
        (["--env.kwargs.a-b", "1"], ["a-b", "not a name"]),
        (["--env.wrappers.TimeLimit", "3"], ["env.wrappers.TimeLimit=3", "expected names with values"]),
    ],
    ids=lambda x: " ".join(x) if x[0].startswith("--") else "",
)
def test_what_is_no_entry_exits_with_2_and_creates_nothing(arguments, words, elsewhere, capsys):
    status, err = trained(capsys, "--env", "CartPole-v1", *arguments)
    assert status == 2
    for word in words:
        assert word in err
    assert not list(elsewhere.iterdir())


# --- wrappers ---------------------------------------------------------------------------------------------------------


@BOTH
def test_a_wrapper_of_gymnasiums_is_named_by_its_name(vectorization):
    config = EnvConfig(
        "CartPole-v1",
        wrappers={"FrameStackObservation": {"stack_size": 3}},
        num_envs=2,
        vectorization=vectorization,
    )
    envs = make_vector_env(config, SEED)
    assert envs.observation_space.shape == (3, 4)
    assert envs.reset().shape == (2, 3, 4)
    envs.close()


@BOTH
def test_wrappers_are_put_on_in_the_order_in_which_they_are_given_innermost_first(vectorization):
    adds, doubles = ("faulty_envs:Adds", {"much": 3}), ("faulty_envs:Doubles", {})
    assert one_reward({}, vectorization) == [1.0, 1.0]
    assert one_reward(dict([adds, doubles]), vectorization) == [8.0, 8.0]  # (1 + 3)·2
    assert one_reward(dict([doubles, adds]), vectorization) == [5.0, 5.0]  # 1·2 + 3


def test_the_command_line_gives_wrappers_in_their_order_with_and_without_kwargs(elsewhere, capsys):
    wrappers = ["--env.wrappers.faulty_envs:Doubles", "--env.wrappers.faulty_envs:Adds.much", "3"]
    wrappers += ["--env.wrappers.TimeLimit.max_episode_steps=4", "--env.wrappers.FrameStackObservation.stack_size", "2"]
    wrappers += ["--env.wrappers.FrameStackObservation.padding_type", "zero"]
    assert trained(capsys, "--env", "faulty_envs:Takes", *wrappers) == (0, "")
    (saved,) = elsewhere.glob("runs/**/config.yaml")
    config = from_yaml(saved.read_text(), "config.yaml")
    assert list(config.env.wrappers.items()) == [
        ("faulty_envs:Doubles", {}),
        ("faulty_envs:Adds", {"much": 3}),
        ("TimeLimit", {"max_episode_steps": 4}),
        ("FrameStackObservation", {"stack_size": 2, "padding_type": "zero"}),
    ]
    envs = make_vector_env(config.env, SEED)
    assert envs.reset().shape == (2, 2, 2)
    assert envs.step(np.zeros(2, np.int64)).reward.tolist() == [5.0, 5.0]  # 1·2 + 3


@BOTH
@pytest.mark.parametrize(
    ("wrappers", "words"),
    [
        ({"FrameStackObservaton": {}}, ["env.wrappers.FrameStackObservaton", "did you mean 'FrameStackObservation'?"]),
        ({"timelimit": {}}, ["env.wrappers.timelimit", "did you mean 'TimeLimit'?"]),
        ({"vector": {}}, ["env.wrappers.vector", "no wrapper of this name"]),
        ({"TimeLimit": {"max_steps": 3}}, ["unexpected keyword argument 'max_steps'", "{'max_steps': 3}"]),
        ({"TimeLimit": {}}, ["env.wrappers.TimeLimit", "max_episode_steps", "CartPole-v1"]),
        ({"ReshapeObservation": {"shape": [3, 3]}}, ["env.wrappers.ReshapeObservation", "{'shape': [3, 3]}"]),
        ({"faulty_envs:Takes": {}}, ["env.wrappers.faulty_envs:Takes", "gymnasium.core.Wrapper"]),
        ({"faulty_envs:Nothing": {}}, ["env.wrappers.faulty_envs:Nothing", "None"]),
        ({"no.such.module:Wrapper": {}}, ["no.such.module", "not imported", "--plugin no.such.module"]),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_wrapper_that_there_is_not_or_that_takes_no_such_kwargs_is_refused(wrappers, words, vectorization):
    with pytest.raises(ConfigError) as told:
        make_vector_env(EnvConfig("CartPole-v1", wrappers=wrappers, num_envs=2, vectorization=vectorization), SEED)
    for word in words:
        assert word in str(told.value)


@BOTH
def test_a_shape_in_a_file_is_the_tuple_that_gymnasiums_wrappers_want(vectorization):
    wrappers = {"ReshapeObservation": {"shape": [2, 2]}}
    config = EnvConfig("CartPole-v1", wrappers=wrappers, num_envs=2, vectorization=vectorization)
    envs = make_vector_env(config, SEED)
    obs = envs.reset()
    envs.close()
    assert obs.shape == (2, 2, 2)


def test_one_copy_records_and_evaluation_does_not_write_over_it(monkeypatch):
    recorded = []

    class Recorder(gym.Wrapper):
        def __init__(self, env, video_folder, name_prefix):
            super().__init__(env)
            recorded.append(f"{video_folder}/{name_prefix}")

    monkeypatch.setattr(gym.wrappers, "RecordVideo", Recorder)
    for kwargs in ({}, {"name_prefix": "mine"}):
        config = EnvConfig("CartPole-v1", wrappers={"RecordVideo": {"video_folder": "v", **kwargs}}, num_envs=2)
        for first_env in (0, EVALUATION):
            make_vector_env(config, SEED, first_env=first_env).close()
    assert recorded == ["v/rl-video", "v/rl-video-evaluation", "v/mine", "v/mine-evaluation"]


def test_wrappers_around_a_native_vector_environment_are_refused():
    with pytest.raises(ConfigError, match=r"wrappers.*would be ignored.*native"):
        EnvConfig("CartPole-v1", wrappers={"TimeLimit": {"max_episode_steps": 3}}, vectorization="native")


# --- the saved configuration ------------------------------------------------------------------------------------------


def test_the_saved_configuration_reloads_byte_for_byte_with_kwargs_and_wrappers_in_it(elsewhere, capsys):
    arguments = "--env faulty_envs:Takes --env.kwargs.a 1 --env.kwargs.b 1.0 --env.kwargs.c 1e-7 --env.kwargs.d true"
    arguments += " --env.kwargs.e word --env.kwargs.f none --env.kwargs.g [1,2.5,[x,none]] --env.kwargs.h 1e20"
    arguments += " --env.kwargs.i yes --env.wrappers.faulty_envs:Adds.much=0.5 --env.wrappers.faulty_envs:Doubles"
    assert trained(capsys, *arguments.split()) == (0, "")
    (saved,) = elsewhere.glob("runs/**/config.yaml")
    first = saved.read_text()
    assert to_yaml(from_yaml(first, "config.yaml")) == first
    assert main(["train", "--quiet", "--config", str(saved)]) == 0
    (again,) = set(elsewhere.glob("runs/**/config.yaml")) - {saved}
    assert again.read_text() == first
    kwargs = {"a": 1, "b": 1.0, "c": 1e-7, "d": True, "e": "word", "f": None}
    kwargs |= {"g": [1, 2.5, ["x", None]], "h": 1e20, "i": "yes"}
    assert Takes.made[-1] == kwargs
    assert repr(Takes.made[-1]) == repr(kwargs)  # 1 is no 1.0


# --- what is not installed --------------------------------------------------------------------------------------------


NOT_INSTALLED: dict[str, dict[str, Any]] = {
    "mujoco": {"id": "Hopper-v5"},
    "box2d": {"id": "LunarLander-v3"},
    "atari": {"id": "ALE/Pong-v5"},
    "video": {
        "id": "CartPole-v1",
        "kwargs": {"render_mode": "rgb_array"},
        "wrappers": {"RecordVideo": {"video_folder": "videos"}},
    },
}


@pytest.fixture(scope="module")
def without_extras(tmp_path_factory) -> dict[str, tuple[str, str]]:
    """Exit status and message in a process in which none of the extras' modules can be imported."""
    lines = [
        "import sys",
        "sys.modules.update(dict.fromkeys(('mujoco', 'Box2D', 'ale_py', 'moviepy')))",
        "from ppo_kl.config import EnvConfig",
        "from ppo_kl.envs.build import build",
        "from ppo_kl.errors import PPOKLError",
        f"for settings in {list(NOT_INSTALLED.values())!r}:",
        "    try:",
        "        print(0, build(EnvConfig(**settings)))",
        "    except PPOKLError as error:",
        "        print(error.exit_code, ' '.join(str(error).split()))",
    ]
    folder = tmp_path_factory.mktemp("bare")
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = [tuple(line.split(" ", 1)) for line in done.stdout.splitlines()]
    return dict(zip(NOT_INSTALLED, told, strict=True))


@pytest.mark.parametrize("extra", list(NOT_INSTALLED))
def test_what_needs_an_extra_says_which_and_exits_with_2(extra, without_extras):
    status, message = without_extras[extra]
    assert status == "2"
    assert f"the extra [{extra}] installs" in message
    assert f'pip install "ppo-kl[{extra}]"' in message
    assert f"env.id={NOT_INSTALLED[extra]['id']!r}" in message


def test_every_extra_is_asked_for_here():
    assert sorted(EXTRAS.values()) == sorted(NOT_INSTALLED)


def test_mujocos_notes_appear_neither_on_the_terminal_nor_in_a_file(tmp_path):
    pytest.importorskip("mujoco")
    # Of Gymnasium's models, HalfCheetah's has the attribute of which MuJoCo says that it is deprecated.
    lines = [
        "from ppo_kl.config import EnvConfig",
        "from ppo_kl.envs.make import make_vector_env",
        "for how in ('sync', 'async'):",
        "    envs = make_vector_env(EnvConfig('HalfCheetah-v5', num_envs=2, vectorization=how), 0)",
        "    envs.reset()",
        "    print(envs.step(envs.env.action_space.sample()).reward.shape)",
        "    envs.close()",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(2,)\n(2,)\n", "")
    assert not list(tmp_path.iterdir())


# --- copies that differ -----------------------------------------------------------------------------------------------


class Grows(Takes):
    """The second copy that is made shows three numbers, or takes three actions."""

    copies = open = 0

    def __init__(self, what: str) -> None:
        super().__init__()
        Grows.copies += 1
        Grows.open += 1
        if Grows.copies == 2:
            setattr(self, what, spaces.Box(0.0, 1.0, (3,)) if what == "observation_space" else spaces.Discrete(3))

    def close(self) -> None:
        Grows.open -= 1


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("observation_space", ["Box(0.0, 1.0, (3,), float32)", "Box(0.0, 1.0, (2,), float32)"]),
        ("action_space", ["Discrete(3)", "Discrete(2)"]),
    ],
)
def test_copies_of_one_environment_with_different_spaces_are_refused_with_which_and_what(what, words, monkeypatch):
    monkeypatch.setattr(Grows, "copies", 0)
    monkeypatch.setattr(Grows, "open", 0)
    monkeypatch.setitem(gym.registry, "build/Grows-v0", gym.envs.registration.EnvSpec("build/Grows-v0", Grows))
    with pytest.raises(ConfigError) as told:
        make_vector_env(EnvConfig("build/Grows-v0", {"what": what}, num_envs=3), SEED)
    for word in ("env.id='build/Grows-v0'", "must be alike", "number 1 has", "number 0 has", *words):
        assert word in str(told.value)
    assert Grows.open == 0


def test_copies_in_processes_with_different_spaces_are_refused_with_which_and_what(tmp_path):
    copies = tmp_path / "copies"

    def make(**_: Any) -> gym.Env[Any, Any]:
        """Two actions in the process that comes first, three in the other."""
        env = Takes()
        try:
            copies.mkdir()
        except FileExistsError:
            env.action_space = spaces.Discrete(3)
        return env

    gym.register("build/Counted-v0", entry_point=make, disable_env_checker=True)
    try:
        with pytest.raises(ConfigError, match=r"number 1 has the action space Discrete\(\d\), number 0 has Discrete"):
            make_vector_env(EnvConfig("build/Counted-v0", num_envs=2, vectorization="async"), SEED)
    finally:
        del gym.registry["build/Counted-v0"]


# --- bugs of an environment's own -------------------------------------------------------------------------------------


class NoSpaces(gym.Env):
    """Forgot its spaces."""


class Buggy(gym.Env):
    """A bug in its constructor."""

    def __init__(self, what="TypeError"):
        if what == "TypeError":
            len(3)
        import not_there_at_all  # noqa: F401


def test_an_environment_without_spaces_is_refused_naming_what_it_lacks():
    with pytest.raises(ConfigError, match="has no observation_space"):
        make_vector_env(EnvConfig(id=f"{__name__}:NoSpaces"), 0)


@pytest.mark.parametrize(("what", "text"), [("TypeError", "has no len"), ("ImportError", "not_there_at_all")])
def test_a_bug_in_its_constructor_is_told_with_its_traceback(what, text):
    with pytest.raises(EnvWorkerError, match=rf"could not be made: .*{text}") as error:
        make_vector_env(EnvConfig(id=f"{__name__}:Buggy", kwargs={"what": what}), 0)
    assert "test_build.py" in str(error.value)


@pytest.mark.parametrize("name", ["NormalizeObservation", "NormalizeReward", "RecordEpisodeStatistics"])
def test_wrappers_whose_memory_a_checkpoint_would_lose_are_refused(name):
    with pytest.raises(ConfigError, match=rf"env\.wrappers\.{name}: .*; use "):
        make_vector_env(EnvConfig(wrappers={name: {}}), 0)
