"""A run folder says what was run and how it ended; where the disk refuses more, what was written stays readable."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_kl import checkpoint
from ppo_kl.cli import main
from ppo_kl.diagnostics.rows import rows_of
from ppo_kl.errors import CheckpointWarning, ConfigError, OutputError
from ppo_kl.load import from_yaml, load_config
from ppo_kl.training import run_folder
from ppo_kl.training.agent import Agent
from ppo_kl.training.learner import Learner
from ppo_kl.training.trainer import RunResult, resume, train

STEPS = 64  # of an iteration


def config(runs: Path, iterations: int = 3, **changes: Any) -> Any:
    settings = {"runs_dir": str(runs), "total_steps": iterations * STEPS, "env.num_envs": 2}
    settings |= {"training.num_steps": STEPS // 2, "training.num_epochs": 1, "training.minibatch_size": STEPS}
    return load_config(
        overrides=settings | {"runtime.device": "cpu", "runtime.workers": 0, "runtime.checkpoint_every": 1} | changes
    )


def folder_in(runs: Path) -> Path:
    (folder,) = (runs / "CartPole-v1" / "kl_adaptive").iterdir()
    return folder


def metadata_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metadata.json").read_text())


class At:
    """A callback that does something after iteration n."""

    def __init__(self, n: int, act: Any) -> None:
        self.n, self.act = n, act

    def on_iteration(self, state: Any) -> bool | None:
        return self.act() if state.number == self.n else None


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunResult:
    return train(config(tmp_path_factory.mktemp("runs"), 12), quiet=True)


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_it_holds_what_is_needed_to_know_what_was_run(finished):
    names = {path.name for path in finished.folder.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert names - events == {"config.yaml", "metadata.json", "metrics.jsonl", "checkpoints", "result.json"}
    assert len(events) == 1
    metadata = metadata_of(finished.folder)
    assert {"command", "versions", "commit", "hardware", "start", "end", "exit_status"} <= metadata.keys()
    assert metadata["command"] == [Path(sys.argv[0]).name, *metadata["command"][1:]]
    assert set(metadata["versions"]) == {"python", *run_folder.VERSIONS_OF}
    assert metadata["versions"]["torch"] == torch.__version__
    assert (metadata["exit_status"], metadata["nonfinite_metrics"], metadata["earlier_parts"]) == (0, [], [])
    resolved = from_yaml((finished.folder / "config.yaml").read_text(), "config.yaml")
    assert resolved == finished.agent.config
    assert resolved.seed == 0


def test_the_commit_is_that_of_the_checkout_with_a_plus_where_files_differ(finished):
    commit = metadata_of(finished.folder)["commit"]
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        assert commit is None
        return
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert commit.removesuffix("+") == head.stdout.strip()


def test_every_step_is_in_both_logs_once_and_in_order(finished):
    expected = [n * STEPS for n in range(1, 13)]
    assert [row["steps"] for row in rows_of(finished.folder / "metrics.jsonl")] == expected
    events = EventAccumulator(str(finished.folder), size_guidance={"scalars": 0})
    events.Reload()
    for tag in ("kl/forward", "penalty/lambda", "time/steps_per_second"):
        assert [point.step for point in events.Scalars(tag)] == expected


def test_an_iteration_adds_less_than_8_kb_to_the_logs(tmp_path, finished):
    short = train(config(tmp_path, 2), quiet=True)

    def size(folder: Path) -> int:
        return sum(p.stat().st_size for p in folder.iterdir() if p.name.startswith(("events", "metrics")))

    assert 0 < (size(finished.folder) - size(short.folder)) / 10 < 8000


def test_metrics_that_were_not_finite_are_named_at_the_end(tmp_path, monkeypatch):
    update, calls = Learner.update, []

    def with_a_nan(self: Learner, *arguments: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        updated = update(self, *arguments)
        return updated | {"loss/value": torch.tensor(float("nan"))} if len(calls) == 2 else updated

    monkeypatch.setattr(Learner, "update", with_a_nan)
    folder = train(config(tmp_path), quiet=True).folder
    assert [row["loss/value"] is None for row in rows_of(folder / "metrics.jsonl")] == [False, True, False]
    assert metadata_of(folder)["nonfinite_metrics"] == ["loss/value"]
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    assert [point.value != point.value for point in events.Scalars("loss/value")] == [False, True, False]


# --- where it cannot be made -----------------------------------------------------------------------------------------


def test_a_file_in_the_place_of_the_folder_of_runs_ends_with_exit_status_2(tmp_path, capsys):
    (tmp_path / "runs").write_text("mine")
    assert main(["train", "--quiet", "--runs-dir", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert "runs_dir=" in error
    assert "name a folder that can be written" in error
    assert (tmp_path / "runs").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_disk_on_which_nothing_can_be_made_is_a_configuration_error(tmp_path, monkeypatch, number):
    def refuse(path: Any, mode: int = 0o777) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(ConfigError, match=os.strerror(number)):
        run_folder.create(config(tmp_path / "runs"))
    assert list(tmp_path.iterdir()) == []


def test_where_the_disk_is_full_before_the_run_begins_no_folder_is_left(tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        run_folder.create(config(tmp_path))
    assert list((tmp_path / "CartPole-v1" / "kl_adaptive").iterdir()) == []


def test_parents_that_are_missing_are_made(tmp_path):
    assert run_folder.create(config(tmp_path / "a" / "b" / "c")).is_dir()


# --- where it cannot be written any more -----------------------------------------------------------------------------


def test_a_folder_that_is_deleted_ends_the_run_within_one_iteration(tmp_path):
    seen = []
    with pytest.raises(OutputError, match="No such file"):
        train(
            config(tmp_path, 6, **{"runtime.checkpoint_every": 1000}),
            callbacks=[At(2, lambda: shutil.rmtree(folder_in(tmp_path))), At(3, lambda: seen.append(3))],
            quiet=True,
        )
    assert seen == []


def test_metrics_that_are_replaced_by_another_file_end_the_run_within_one_iteration(tmp_path):
    def replace() -> None:
        path = folder_in(tmp_path) / "metrics.jsonl"
        path.unlink()
        path.write_text("")

    with pytest.raises(OutputError, match="replaced while the run writes to it"):
        train(config(tmp_path, 6), callbacks=[At(2, replace)], quiet=True)
    assert Agent.load(folder_in(tmp_path)).steps == 2 * STEPS
    assert metadata_of(folder_in(tmp_path))["exit_status"] == 6


@pytest.fixture
def allow() -> Iterator[Callable[[int], None]]:
    """Files may grow to so many bytes from now on: what a full disk is like, in the middle of a line too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_in_the_middle_of_a_line_leaves_the_lines_before_it_readable(tmp_path, allow):
    def fill() -> None:
        allow((folder_in(tmp_path) / "metrics.jsonl").stat().st_size + 10)

    with pytest.raises(OutputError, match=r"cannot be written: \[Errno 27\].*what was written before stays") as failed:
        train(config(tmp_path, 6), callbacks=[At(3, fill)], quiet=True)
    assert failed.value.exit_code == 6
    folder = folder_in(tmp_path)
    assert not (folder / "metrics.jsonl").read_text().endswith("\n")
    assert [row["steps"] for row in rows_of(folder / "metrics.jsonl")] == [STEPS, 2 * STEPS, 3 * STEPS]
    assert Agent.load(folder, strict=True).steps == 3 * STEPS
    assert metadata_of(folder)["exit_status"] == 6


def test_a_disk_that_is_full_for_a_checkpoint_leaves_the_one_before_and_nothing_half_written(tmp_path, allow):
    def fill() -> None:
        allow(checkpoint.newest(folder_in(tmp_path) / "checkpoints").stat().st_size - 1)

    with pytest.raises(OutputError, match=r"step_0+192\.pt: cannot be written"):
        train(config(tmp_path, 6), callbacks=[At(2, fill)], quiet=True)
    folder = folder_in(tmp_path)
    assert [p.name for p in checkpoint.in_order(folder / "checkpoints")] == [
        "step_000000000064.pt",
        "step_000000000128.pt",
    ]
    assert Agent.load(folder, strict=True).steps == 2 * STEPS
    assert list(folder.rglob("*.tmp")) == []
    assert metadata_of(folder)["exit_status"] == 6


def test_a_checkpoint_that_cannot_be_saved_ends_the_run_and_lets_go_of_none(tmp_path, monkeypatch):
    replace, saves = os.replace, []

    def full(source: Any, target: Path) -> None:
        saves.append(target)
        if target.name == checkpoint.path_at(target.parent, 4 * STEPS).name:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=r"step_0+256\.pt: cannot be written: .*quota"):
        train(config(tmp_path, 6), quiet=True)
    names = sorted(p.name for p in (folder_in(tmp_path) / "checkpoints").iterdir())
    assert names == [checkpoint.path_at(Path(), n * STEPS).name for n in (1, 2, 3)]
    assert metadata_of(folder_in(tmp_path))["exit_status"] == 6


# --- going on --------------------------------------------------------------------------------------------------------


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_and_says_so(tmp_path, finished):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "result.json").unlink()
    newest = checkpoint.newest(folder / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-5])
    with pytest.warns(CheckpointWarning, match=rf"{newest.name}: file damaged.*going back to step_0+704\.pt"):
        again = resume(folder, quiet=True)
    assert (again.exit_status, again.agent.steps) == (0, 12 * STEPS)
    assert Agent.load(folder, strict=True).steps == 12 * STEPS
    assert [row["steps"] for row in rows_of(folder / "metrics.jsonl")] == [n * STEPS for n in range(1, 13)]


def test_the_command_line_shows_the_warning_as_a_sentence(tmp_path, finished, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    checkpoint.newest(folder / "checkpoints").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["evaluate", str(folder), "--episodes", "1"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ppo-kl: warning: {folder}/checkpoints/step_000000000768.pt: file damaged")
