"""What a run says can be acted on: the commands run where they are read, and what is not well is said."""

import shlex
import sys
from pathlib import Path

import pytest
import toy_envs

from ppo_kl.training import announce


@pytest.fixture(scope="module")
def agent():
    return toy_envs.small_agent("Endless")


def said(agent, folder, **changes):
    about = {"tensorboard": True, "inexact": None, "total_before": None}
    return list(announce.beginning(agent, Path(folder), **about | changes))


def test_a_command_is_bare_on_the_path_else_beside_the_interpreter_else_a_module_of_it(agent, tmp_path, monkeypatch):
    for name, folder in (("tensorboard", "on the path"), ("tensorboard", "beside"), ("ppo-kl", "beside")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "beside/python 3"))
    monkeypatch.setenv("PATH", str(tmp_path / "on the path"))
    _, look, see, *_ = said(agent, "runs/E/o/seed0")
    assert look == "Look at it: tensorboard --logdir runs"
    assert see == "See its KL: beside/ppo-kl inspect runs/E/o/seed0"
    (tmp_path / "beside/ppo-kl").unlink()
    _, _, see, *_ = said(agent, "runs/E/o/seed 0")
    command = see.removeprefix("See its KL: ")
    assert shlex.split(command) == [sys.executable, "-m", "ppo_kl", "inspect", "runs/E/o/seed 0"]


def test_a_first_part_says_nothing_of_parts_and_a_later_one_what_is_new_in_it(agent):
    wanted = agent.config.total_steps
    alone = said(agent, "runs/E/o/seed0")
    assert len(alone) == 4
    assert said(agent, "runs/E/o/seed0", total_before=wanted) == alone
    later = said(agent, "runs/E/o/seed0", total_before=wanted + 1000, inexact="no seed repeats it")
    new_episodes, schedules = later[4:]
    assert new_episodes == "New episodes begin: no seed repeats it"
    assert schedules == f"total_steps {wanted + 1000:,} → {wanted:,}, from which schedules are reckoned now"


def test_a_kl_before_the_update_that_is_no_rounding_is_warned_of():
    assert list(announce.warnings({"kl/before_update": announce.KL_BEFORE_LIMIT})) == []
    (line,) = announce.warnings({"kl/before_update": 0.25})
    assert line.startswith("warning: KL(π_old ‖ π_θ) before the update is 0.25, not 0")
