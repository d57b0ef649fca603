"""One point, run to its end in this process: from the start, from its checkpoint, or only read where it is done."""

from __future__ import annotations

import shutil
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from ppo_kl.ablation.plan import Point, as_name
from ppo_kl.ablation.result import EVALUATED_EPISODES, Result, failure_of, result_of, write
from ppo_kl.errors import OutputError, PPOKLError
from ppo_kl.imports import import_modules, import_modules_in

RESULTS, RUNS, LOGS = "results", "runs", "logs"
"""Folders of a study: what is kept of finished runs, small enough to be committed; the runs, as TensorBoard reads them;
and what they printed."""
ATTEMPTS = 2
PATIENCE = 60.0
"""Seconds in which a process that was told to end has saved its run and let go of it."""


class Job(NamedTuple):
    """A point, and what it needs to be run anywhere."""

    point: Point
    folder: Path
    """The study's."""
    initial_episodes: int
    """Of the initial policy."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, beside those that the settings name."""

    @property
    def run_folder(self) -> Path:
        """Named so that TensorBoard groups them: env/arm/seed."""
        point = self.point
        return self.folder / RUNS / as_name(point.env) / as_name(point.arm) / f"seed{point.seed}-{point.id}"

    @property
    def log_file(self) -> Path:
        """What it printed, where a process of its own runs it."""
        return self.folder / LOGS / f"{self.point.name}.log"

    @property
    def result_file(self) -> Path:
        """Where its result is kept."""
        return self.folder / RESULTS / f"{self.point.name}.json"


class Interrupted(BaseException):
    """The process was told to end while a run was not training: nothing of it need be saved."""


def run(job: Job) -> Result | None:
    """Train, evaluate and keep the result; a run that fails is tried once more, from its checkpoint where it has one.

    Returns:
        What was kept, or the failure; none where a signal ended the run, which goes on from its checkpoint next time.
    """
    import torch

    # As where the study was planned: other processes know nothing of it.
    import_modules(job.plugins, "--plugin")
    import_modules_in(job.point.config)
    torch.set_num_threads(job.point.config.runtime.num_threads)
    error = ""
    for _ in range(ATTEMPTS):
        try:
            result = _run(job)
            if result is not None:
                write(result, job.result_file)
            return result
        except Interrupted:
            return None
        except PPOKLError as failed:
            error = f"{type(failed).__name__}: {failed}"
        except Exception:
            error = traceback.format_exc()
    failure = failure_of(job.point, error)
    write(failure, job.result_file)
    return failure


def _run(job: Job) -> Result | None:
    from ppo_kl.training.agent import Agent
    from ppo_kl.training.trainer import resume, train

    config, folder = job.point.config, job.run_folder
    initial = Agent(config).evaluate(job.initial_episodes, deterministic=False).returns
    _wait_for(folder)
    if any((folder / "checkpoints").glob("*.pt")):
        done = resume(folder, quiet=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before it had a checkpoint
        done = train(config, folder=folder, quiet=True)
    if done.exit_status:
        return None
    evaluated = done.agent.evaluate(EVALUATED_EPISODES).returns
    return result_of(job.point, folder, initial, evaluated)


def _wait_for(folder: Path) -> None:
    """Until nobody trains the run any more: who was told to end may still be saving it.

    Raises:
        OutputError: somebody does, for longer than that takes.
    """
    from ppo_kl.training.run_folder import claimed

    end = time.monotonic() + PATIENCE
    while folder.is_dir():
        try:
            with claimed(folder):
                return
        except OutputError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
