"""What a run says on the terminal: where it lies, what runs, what is not well, and how it ended."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from ppo_kl.diagnostics.rows import METRICS
from ppo_kl.imports import modules_in
from ppo_kl.training.agent import Agent

MODULES = {"tensorboard": "tensorboard.main", "ppo-kl": "ppo_kl"}
"""Command -> the module that is the same."""
KL_BEFORE_LIMIT = 1e-5
"""Nats; a KL above this before the first step is no rounding."""


def beginning(
    agent: Agent, folder: Path, *, tensorboard: bool, inexact: str | None, total_before: int | None
) -> Iterator[str]:
    """Where the run lies, how to look at it and what runs; of a resumed one, what it would not have had without a stop.

    Args:
        agent: who is trained.
        folder: the run's.
        tensorboard: whether its log is written.
        inexact: why this run is not, bit for bit, one that goes on without a stop; none where it is.
        total_before: the environment steps that an earlier part wanted; none where this is the first.
    """
    yield f"Run folder: {folder}"
    if tensorboard:
        yield f"Look at it: {_command('tensorboard')} --logdir {shlex.quote(_runs_dir(folder))}"
    else:
        yield f"TensorBoard cannot be imported: the log is {METRICS} alone"
    yield f"See its KL: {_command('ppo-kl')} inspect {shlex.quote(str(folder))}"
    yield _what_runs(agent)
    if inexact is not None:
        yield f"{'New episodes begin' if agent.resumes_exactly else 'A resumed run begins new episodes'}: {inexact}"
    wanted = agent.config.total_steps
    if total_before not in (None, wanted):
        yield f"total_steps {total_before:,} → {wanted:,}, from which schedules are reckoned now"


def warnings(metrics: dict[str, float]) -> Iterator[str]:
    """What is not well in an iteration."""
    before = metrics["kl/before_update"]
    if before > KL_BEFORE_LIMIT:
        yield (
            f"warning: KL(π_old ‖ π_θ) before the update is {before:.2g}, not 0: the stored policy is not the one that "
            "acted"
        )


def stopped(agent: Agent, folder: Path, by: signal.Signals) -> Iterator[str]:
    """That a signal ended the run, and the command that goes on with it."""
    plugins = "".join(f" --plugin {module}" for module in modules_in(agent.config))
    yield f"Stopped by {by.name} at step {agent.steps:,}, saved. Go on with:"
    yield f"{_command('ppo-kl')} train --resume {shlex.quote(str(folder))}{plugins}"


def finished(result: dict[str, float | None]) -> str:
    """How the run ended, from its `result.json`."""
    score = result["return_last100"]
    learned = "no episode ended" if score is None else f"mean return of the last 100 episodes {score:.1f}"
    return f"Done: {result['steps']:,} steps in {result['seconds']:.0f} s of training, {learned}"


def _what_runs(agent: Agent) -> str:
    config = agent.config
    samples = config.rollout_size
    whole = f" in one minibatch, not of {size}" if (size := config.training.minibatch_size) > samples else ""
    workers = f", {n} worker{'s' if n > 1 else ''}" if (n := config.runtime.num_workers) else ""
    return (
        f"{config.env.id} × {config.env.num_envs} ({config.env.vectorization}{workers}), "
        f"objective {config.objective.name}, "
        f"seed {config.seed}, {samples} samples an update{whole}, on {agent.device}, "
        f"{config.runtime.num_threads} thread{'s' if config.runtime.num_threads > 1 else ''}, gradient steps "
        f"{'eager' if agent.learner.compiled is None else 'compiled'}"
        f"{'' if agent.learner.replayed is None else ', launched as CUDA graphs'}"
    )


def _runs_dir(folder: Path) -> str:
    """The folder that holds runs_dir/ENV/OBJECTIVE/seedK, as named from here; `folder` may be named from inside it."""
    if len(folder.parents) > 2:
        return str(folder.parents[2])
    above = folder.resolve().parents
    return str(above[min(2, len(above) - 1)])


def _command(name: str) -> str:
    """The command as this shell can run it: bare where it is on the path, else beside our own interpreter."""
    if shutil.which(name):
        return name
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return shlex.quote(os.path.relpath(beside))
    return f"{shlex.quote(sys.executable)} -m {MODULES[name]}"
