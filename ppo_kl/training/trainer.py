"""Training with a run folder: logs, checkpoints, signals, and the result written last."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import torch

from ppo_kl import checkpoint
from ppo_kl.config import TrainConfig
from ppo_kl.diagnostics.console import TrainingConsole
from ppo_kl.diagnostics.writers import JsonLinesWriter, TensorBoardWriter, rows_of
from ppo_kl.errors import CheckpointError, OutputError, PPOKLError
from ppo_kl.imports import modules_in
from ppo_kl.training import run_folder
from ppo_kl.training.agent import Agent, resolve_device
from ppo_kl.training.iteration import Callback, all_go_on

KL_BEFORE_LIMIT = 1e-5
"""Nats; a KL above this before the first step is no rounding."""


class RunResult(NamedTuple):
    """What a training run left."""

    folder: Path
    agent: Agent
    exit_status: int
    """0 finished; 130 or 143 stopped by SIGINT or SIGTERM after saving."""
    result: dict[str, float | None] | None
    """As in `result.json`; none where the run was stopped."""


class StopRequest:
    """Set by SIGINT or SIGTERM; looked at between iterations."""

    signal: signal.Signals | None = None


def train(config: TrainConfig, *, callbacks: Sequence[Callback] = (), quiet: bool = False) -> RunResult:
    """Train from the start, in a new run folder.

    Args:
        config: the whole configuration, see `ppo_kl.load_config`.
        callbacks: asked after every iteration whether to go on.
        quiet: print nothing.

    Raises:
        ConfigError: nothing was created.
        EnvDataError: an environment sent something that is not finite; the last good state is saved.
        DivergedError: the update stayed non-finite; the last good state is saved.
    """
    # What `auto` means here is written down once and used again on resume.
    device = str(resolve_device(config.runtime.device))
    config = dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, device=device))
    torch.set_num_threads(config.runtime.num_threads)
    agent = Agent(config)
    return _run(agent, run_folder.create(config), callbacks, quiet, resumed=False)


def resume(folder: str | Path, *, callbacks: Sequence[Callback] = (), quiet: bool = False) -> RunResult:
    """Go on with a run from its newest checkpoint; environments begin new episodes.

    Args:
        folder: the run's.
        callbacks: as `train`.
        quiet: as `train`.

    Raises:
        CheckpointError: there is no usable checkpoint.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{folder}: not a run folder (it has no config.yaml)")
    agent = Agent.load(folder)
    done = folder / "result.json"
    if done.exists():
        with TrainingConsole(agent.config.total_steps, agent.steps, quiet) as console:
            console.say(f"{folder}: already done, nothing changed")
        return RunResult(folder, agent, 0, run_folder.read_json(done))
    torch.set_num_threads(agent.config.runtime.num_threads)
    return _run(agent, folder, callbacks, quiet, resumed=True)


def _run(agent: Agent, folder: Path, callbacks: Sequence[Callback], quiet: bool, *, resumed: bool) -> RunResult:
    config = agent.config
    resumed_at = agent.steps if resumed else None
    with _output(folder):
        metadata = run_folder.Metadata(folder, agent.device, config.runtime.num_threads)
        writers = (
            JsonLinesWriter(folder / "metrics.jsonl", resumed_at),
            TensorBoardWriter(folder, config, resumed_at),
        )
    begin, exit_status, result = time.perf_counter(), 1, None
    try:
        with _stop_on_signals() as stop, TrainingConsole(config.total_steps, agent.steps, quiet) as console:
            console.say(f"Run folder: {folder}")
            console.say(f"Look at it: {_tensorboard()} --logdir {shlex.quote(_runs_dir(folder))}")
            console.say(_what_runs(agent))
            for state in agent.iterations_until(config.total_steps):
                with _output(folder):
                    for writer in writers:
                        writer.write(state.steps, state.number, state.metrics, state.histograms)
                    if state.number % config.runtime.checkpoint_every == 0:
                        _save(agent, folder)
                console.show(state.steps, state.metrics)
                _warn_of_stale_policy(console, state.metrics["kl/before_update"])
                if not all_go_on(callbacks, state) or stop.signal:
                    break
            with _output(folder):
                _save(agent, folder)
            if stop.signal:
                exit_status = 128 + stop.signal
                console.say(f"Stopped by {stop.signal.name} at step {agent.steps:,}, saved. Go on with:")
                plugins = "".join(f" --plugin {module}" for module in modules_in(config))
                console.say(f"ppo-kl train --resume {shlex.quote(str(folder))}{plugins}")
            else:
                exit_status, result = 0, _result(agent, folder, time.perf_counter() - begin)
                console.say(_how_it_ended(result))
    except BaseException as error:
        exit_status = _exit_status(error)
        # A checkpoint of this step is of a finished iteration; what failed may be half-way through the next.
        saved = checkpoint.path_at(folder / "checkpoints", agent.steps).exists()
        if agent.steps and not saved and not isinstance(error, OutputError):
            with contextlib.suppress(OSError, PPOKLError):
                _save(agent, folder)
        raise
    finally:
        agent.close()
        with _output(folder), contextlib.ExitStack() as ending:  # all of it, also where one fails
            ending.callback(metadata.end, exit_status)
            for writer in writers:
                ending.callback(writer.close, exit_status == 0)
    if result is not None:
        with _output(folder):
            run_folder.write_json(folder / "result.json", result)
    return RunResult(folder, agent, exit_status, result)


def _exit_status(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return int(error.code or 0)
    return error.exit_code if isinstance(error, PPOKLError) else 1


@contextmanager
def _output(folder: Path) -> Iterator[None]:
    """What the disk refuses is an `OutputError`, apart from what an environment may raise."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error}; what was written before stays") from error


def _warn_of_stale_policy(console: TrainingConsole, kl_before: float) -> None:
    if kl_before > KL_BEFORE_LIMIT:
        console.say(
            f"warning: KL(π_old ‖ π_θ) before the update is {kl_before:.2g}, not 0: the stored policy is not the one "
            "that acted"
        )


def _save(agent: Agent, folder: Path) -> None:
    """Save, then let go of the oldest checkpoints: never the other way round."""
    path = checkpoint.path_at(folder / "checkpoints", agent.steps)
    agent.save(path)
    checkpoint.prune(path, agent.config.runtime.keep_checkpoints)


def _runs_dir(folder: Path) -> str:
    """The folder that holds runs_dir/ENV/OBJECTIVE/seedK, as named from here; `folder` may be named from inside it."""
    if len(folder.parents) > 2:
        return str(folder.parents[2])
    above = folder.resolve().parents
    return str(above[min(2, len(above) - 1)])


def _tensorboard() -> str:
    """The command as this shell can run it: bare where it is on the path, else beside our own interpreter."""
    if shutil.which("tensorboard"):
        return "tensorboard"
    beside = Path(sys.executable).parent / "tensorboard"
    if beside.exists():
        return shlex.quote(os.path.relpath(beside))
    return f"{shlex.quote(sys.executable)} -m tensorboard.main"


def _what_runs(agent: Agent) -> str:
    config = agent.config
    samples = config.env.num_envs * config.training.num_steps
    whole = f" in one minibatch, not of {size}" if (size := config.training.minibatch_size) > samples else ""
    return (
        f"{config.env.id} × {config.env.num_envs} ({config.env.vectorization}), objective {config.objective.name}, "
        f"seed {config.seed}, {samples} samples an update{whole}, on {agent.device}, "
        f"{config.runtime.num_threads} thread{'s' if config.runtime.num_threads > 1 else ''}"
    )


def _result(agent: Agent, folder: Path, seconds: float) -> dict[str, float | None]:
    kls = [kl for row in rows_of(folder / "metrics.jsonl") if (kl := row.get("kl/forward")) is not None]
    return {
        "steps": agent.steps,
        "iterations": agent.iterations,
        "return_last100": statistics.fmean(agent.last100) if agent.last100 else None,
        "kl_forward_mean": statistics.fmean(kls) if kls else None,
        "seconds": round(seconds, 1),
    }


def _how_it_ended(result: dict[str, float | None]) -> str:
    score = result["return_last100"]
    learned = "no episode ended" if score is None else f"mean return of the last 100 episodes {score:.1f}"
    return f"Done: {result['steps']:,} steps in {result['seconds']:.0f} s, {learned}"


@contextmanager
def _stop_on_signals() -> Iterator[StopRequest]:
    """The first SIGINT or SIGTERM asks to stop at the end of the iteration, the second stops at once."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if stop.signal is not None:
            raise SystemExit(128 + number)
        stop.signal = signal.Signals(number)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
