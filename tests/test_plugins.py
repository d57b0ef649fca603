"""Objectives from elsewhere: a module named on the command line, or an installed package's entry point."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar

from ppo_kl.config.checked import setting
from ppo_kl.config.objective import Surrogate
from ppo_kl.objectives import register_surrogate


@dataclass(frozen=True)
class Power(Surrogate):
    """The ratio to a power."""

    kind: ClassVar[str] = "mine"
    power: float = setting(2.0, above=0)
    """Exponent."""


def power(ratio, adv, kl, *, power):
    return -(ratio**power) * adv / power


register_surrogate("mine", power, Power)
'''
SMALL = ["--total-steps", "64", "--env.num-envs", "2", "--training.num-steps", "16", "--training.num-epochs", "1"]


def ppo_kl(folder: Path, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess:
    """The command as a user runs it, in a folder of their own."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [str(Path(sys.executable).parent / "ppo-kl"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my_module.py").write_text(PLUGIN)
    return tmp_path


def test_a_plugin_trains_resumes_and_is_evaluated(folder):
    done = ppo_kl(folder, "train", "--plugin", "my_module", "--objective", "mine", *SMALL)
    assert done.returncode == 0, done.stderr
    run = folder / "runs" / "CartPole-v1" / "mine" / "seed0"
    assert "kind: mine" in (run / "config.yaml").read_text()
    assert json.loads((run / "result.json").read_text())["steps"] >= 64
    evaluated = ppo_kl(folder, "evaluate", str(run), "--episodes", "1", "--plugin", "my_module")
    assert evaluated.returncode == 0, evaluated.stderr
    resumed = ppo_kl(folder, "train", "--resume", str(run), "--plugin", "my_module")
    assert "already done" in resumed.stdout, resumed.stderr


def test_its_settings_are_options_like_any_other(folder):
    start = ("train", "--plugin", "my_module", "--objective", "mine")
    done = ppo_kl(folder, *start, "--objective.surrogate.power", "1.5", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "power: 1.5" in (folder / "runs/CartPole-v1/mine/seed0/config.yaml").read_text()
    wrong = ppo_kl(folder, *start, "--objective.surrogate.power", "-1")
    assert wrong.returncode == 2
    assert "power" in wrong.stderr


def test_inspect_tells_its_runs_apart_by_their_settings_where_it_is_given(folder):
    trained = ppo_kl(folder, "train", "--plugin", "my_module", "--objective", "mine", *SMALL)
    assert trained.returncode == 0, trained.stderr
    runs = folder / "runs/CartPole-v1/mine"
    other = shutil.copytree(runs / "seed0", runs / "seed1") / "config.yaml"
    other.write_text(other.read_text().replace("seed: 0", "seed: 1").replace("power: 2.0", "power: 3.0"))
    told, alone = ppo_kl(folder, "inspect", "--plugin", "my_module", "runs"), ppo_kl(folder, "inspect", "runs")
    assert (told.returncode, alone.returncode) == (0, 0), told.stderr + alone.stderr
    assert "mine [power 3.0]" in told.stdout
    assert "power" not in alone.stdout


def test_without_the_plugin_the_name_and_the_kind_are_unknown_and_the_error_says_how(folder):
    missing = ppo_kl(folder, "train", "--objective", "mine")
    assert missing.returncode == 2
    assert "--objective mine: unknown preset" in missing.stderr
    (folder / "mine.yaml").write_text("objective:\n  surrogate: {kind: mine}\n")
    missing = ppo_kl(folder, "train", "--objective", "mine.yaml")
    assert missing.returncode == 2
    assert "mine.yaml:2:21" in missing.stderr
    assert "--plugin MODULE" in missing.stderr
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("module", "text", "reason"),
    [("no_such_module", None, "No module named"), ("broken", "1 / 0", "ZeroDivisionError")],
)
def test_a_plugin_that_cannot_be_imported_is_named_with_the_reason(folder, module, text, reason):
    if text is not None:
        (folder / f"{module}.py").write_text(text)
    done = ppo_kl(folder, "train", "--plugin", module)
    assert done.returncode == 2
    assert f"--plugin {module}" in done.stderr
    assert reason in done.stderr


def installed(site: Path, module: str, text: str, points: str) -> None:
    """A package as pip would leave it."""
    (site / f"{module}.py").write_text(text)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ppo_kl.objectives]\n{points}\n")


def test_an_installed_package_adds_its_objectives_by_entry_point(tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    site.mkdir()
    work.mkdir()
    preset = PLUGIN + (
        "\nfrom ppo_kl.config.objective import ForwardKL, Adaptive, ObjectiveConfig\n"
        'penalised = ObjectiveConfig("x", Power(3.0), ForwardKL(), Adaptive())\n'
    )
    installed(site, "their_package", preset, "mine = their_package\ntheirs = their_package:penalised")
    for name in ("mine", "theirs"):
        done = ppo_kl(work, "train", "--objective", name, *SMALL, path=site)
        assert done.returncode == 0, done.stderr
        assert (work / "runs" / "CartPole-v1" / name / "seed0" / "result.json").exists()
    # The kinds in the saved configuration are found in the same way.
    evaluated = ppo_kl(work, "evaluate", "runs/CartPole-v1/theirs/seed0", "--episodes", "1", path=site)
    assert evaluated.returncode == 0, evaluated.stderr


def test_an_entry_point_may_be_a_function_and_only_the_one_that_is_named_is_loaded(tmp_path):
    register = PLUGIN.replace('register_surrogate("mine"', 'def register():\n    register_surrogate("mine"')
    installed(tmp_path, "their_package", register, "mine = their_package:register")
    installed(tmp_path, "other_package", "open('loaded', 'w').close()", "other = other_package")
    done = ppo_kl(tmp_path, "train", "--objective", "mine", *SMALL, path=tmp_path)
    assert done.returncode == 0, done.stderr
    run = "runs/CartPole-v1/mine/seed0"
    assert ppo_kl(tmp_path, "evaluate", run, "--episodes", "1", path=tmp_path).returncode == 0
    assert ppo_kl(tmp_path, "train", "--objective", "unknown", path=tmp_path).returncode == 2
    assert not (tmp_path / "loaded").exists()


def test_a_package_whose_entry_point_is_broken_is_named_but_only_when_it_is_needed(tmp_path):
    installed(tmp_path, "their_package", "raise RuntimeError('of theirs')", "mine = their_package")
    asked = ppo_kl(tmp_path, "train", "--objective", "mine", path=tmp_path)
    assert asked.returncode == 2
    assert "their_package" in asked.stderr
    assert "of theirs" in asked.stderr
    unasked = ppo_kl(tmp_path, "train", "--objective", "clip", *SMALL, path=tmp_path)
    assert unasked.returncode == 0, unasked.stderr


def test_help_names_the_options():
    done = subprocess.run(
        [sys.executable, "-m", "ppo_kl", "train", "--help"], capture_output=True, text=True, check=True
    )
    assert "--plugin MODULE" in done.stdout
    assert "--kl-stop NAME" in done.stdout


def test_the_plugin_in_the_readme_works_as_printed(tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(# my_module\.py\n.*?)```", readme, re.DOTALL)
    (command,) = re.findall(r"`ppo-kl (train --plugin my_module [^`]+)`", readme)
    (tmp_path / "my_module.py").write_text(code)
    done = ppo_kl(tmp_path, *command.split(), *SMALL)
    assert done.returncode == 0, done.stderr
    assert "power: 1.5" in (tmp_path / "runs/CartPole-v1/power/seed0/config.yaml").read_text()
