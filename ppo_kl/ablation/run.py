"""One point, run to its end in this process: from the start, from its checkpoint, or only read where it is done."""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path
from typing import NamedTuple

from ppo_kl.ablation.plan import Point, as_name
from ppo_kl.ablation.result import EVALUATED_EPISODES, Result, failure_of, result_of, write
from ppo_kl.errors import PPOKLError
from ppo_kl.imports import import_modules, import_modules_in

RESULTS, RUNS, LOGS = "results", "runs", "logs"
"""Folders of a study: what is kept of finished runs, small enough to be committed; the runs, as TensorBoard reads them;
and what they printed."""
ATTEMPTS = 2


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


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A signal ended the run; it is saved and goes on next time."""


def run(job: Job) -> Result:
    """Train, evaluate and keep the result; a run that fails is tried once more, from its checkpoint where it has one.

    Raises:
        Stopped: by a signal, saved.
    """
    # As where the study was planned: other processes know nothing of it.
    import_modules(job.plugins, "--plugin")
    import_modules_in(job.point.config, None)
    error = ""
    for _ in range(ATTEMPTS):
        try:
            result = _run(job)
        except Stopped:
            raise
        except PPOKLError as failed:
            error = f"{type(failed).__name__}: {failed}"
        except Exception:
            error = traceback.format_exc()
        else:
            write(result, job.result_file)
            return result
    failure = failure_of(job.point, error)
    write(failure, job.result_file)
    return failure


def _run(job: Job) -> Result:
    from ppo_kl.training.agent import Agent
    from ppo_kl.training.trainer import resume, train

    config, folder = job.point.config, job.run_folder
    initial = Agent(config).evaluate(job.initial_episodes, deterministic=False).returns
    if any((folder / "checkpoints").glob("*.pt")):
        done = resume(folder, quiet=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before it had a checkpoint
        done = train(config, folder=folder, quiet=True)
    if done.exit_status:
        raise Stopped(f"{folder}: stopped by signal {done.exit_status - 128}")
    evaluated = done.agent.evaluate(EVALUATED_EPISODES).returns
    return result_of(job.point, folder, initial, evaluated)
