"""Training with a run folder: logs, checkpoints, signals, and the result written last."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ppo_kl import checkpoint
from ppo_kl.config import TrainConfig
from ppo_kl.diagnostics.background import InBackground
from ppo_kl.diagnostics.console import TrainingConsole
from ppo_kl.diagnostics.history import History, read_history
from ppo_kl.diagnostics.rows import METRICS, finite_in, rows_of
from ppo_kl.diagnostics.writers import JsonLinesWriter, Writer
from ppo_kl.envs.worker_count import choose_workers
from ppo_kl.errors import CheckpointError, ConfigError, OutputError, PPOKLError
from ppo_kl.load import differing, read_config, to_yaml
from ppo_kl.training import announce, run_folder
from ppo_kl.training.agent import Agent, resolve_device
from ppo_kl.training.iteration import Callback, Iteration, all_go_on
from ppo_kl.training.stopping import Stopped, StopRequest, stop_on_signals


class RunResult(NamedTuple):
    """What a training run left."""

    folder: Path
    agent: Agent
    exit_status: int
    """0 finished; 130, 143 or 129 stopped by SIGINT, SIGTERM or SIGHUP after saving."""
    result: dict[str, float | None] | None
    """As in `result.json`; none where the run was stopped."""

    @property
    def history(self) -> History:
        """The metrics so far, a row per iteration: `steps`, and `columns` by tag, as NumPy arrays.

        pandas.DataFrame(result.history.columns, index=result.history.steps)
        """
        return read_history(self.folder)


def train(
    config: TrainConfig, *, callbacks: Sequence[Callback] = (), quiet: bool = False, folder: Path | None = None
) -> RunResult:
    """Train from the start, in a new run folder.

    From the folder on, SIGINT, SIGTERM and SIGHUP end the run at once, also in the middle of an iteration or a
    callback, with a checkpoint of the last finished iteration. What was done since is done again on `resume`.

    Args:
        config: the whole configuration, see `ppo_kl.load_config`.
        callbacks: asked after every iteration whether to go on.
        quiet: print nothing.
        folder: the run's, which must not exist yet; none: one below `config.runs_dir`.

    Raises:
        ConfigError: nothing was created.
        EnvDataError: an environment sent something that is not finite; the last good state is saved.
        DivergedError: the update stayed non-finite; the last good state is saved.
    """
    config, settled = _resolved(config)
    if config.init_from is not None:
        config = dataclasses.replace(config, init_from=str(checkpoint.path_from(Path(config.init_from))))
    torch.set_num_threads(config.runtime.num_threads)
    agent = Agent(config)
    with closing(agent), stop_on_signals() as stop:
        settled += agent.settle()
        folder = run_folder.create(agent.config, folder)
        with run_folder.claimed(folder):
            return _run(agent, folder, callbacks, quiet, stop, settled=settled)


def _resolved(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """What `auto` means here, to be written down once and used again on resume; and how it was chosen, line by line."""
    runtime, lines = config.runtime, []
    runtime = dataclasses.replace(runtime, device=str(resolve_device(runtime.device)))
    if runtime.workers == "auto":
        workers, why = choose_workers(config.env, config.seed)
        runtime = dataclasses.replace(runtime, workers=workers)
        lines.append(f"runtime.workers auto: {workers}: {why}")
    return dataclasses.replace(config, runtime=runtime), lines


def resume(
    folder: str | Path,
    *,
    total_steps: int | None = None,
    device: str | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
) -> RunResult:
    """Go on with a run from its newest checkpoint.

    On the CPU what follows is, bit for bit, what would have followed had the run not stopped. Where environments cannot
    be brought to where they stood, they begin new episodes; a warning and metadata.json say so.

    Args:
        folder: the run's.
        total_steps: environment steps to train for, those already done included, from which schedules are reckoned
            anew; a finished run goes on to them. None: as they were.
        device: as `runtime.device`, to go on elsewhere; none: where it was trained.
        callbacks: as `train`.
        quiet: as `train`.

    Raises:
        CheckpointError: there is no usable checkpoint.
        ConfigError: more steps than `total_steps` are done already, or config.yaml was changed.
        OutputError: another process is training this run.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{folder}: not a run folder (it has no config.yaml)")
    # What was asked for last is in the file: the checkpoint may be older.
    config_file = folder / "config.yaml"
    written = read_config(config_file)
    before = written.total_steps
    agent = Agent.load(folder, device=device, total_steps=before if total_steps is None else total_steps)
    _require_unchanged(written, agent.config, config_file)
    if total_steps is not None and total_steps < agent.steps:
        raise ConfigError(
            f"total_steps={total_steps}: {folder} has done {agent.steps} steps already; nothing was changed; ask for "
            "more, or begin a new run",
            "total_steps",
        )
    done = folder / "result.json"
    if done.exists() and agent.config.total_steps <= (max(before, agent.steps) if total_steps is None else agent.steps):
        with TrainingConsole(agent.config.total_steps, agent.steps, quiet) as console:
            console.say(f"{folder}: already done, nothing changed")
        return RunResult(folder, agent, 0, run_folder.read_json(done))
    torch.set_num_threads(agent.config.runtime.num_threads)
    with run_folder.claimed(folder), closing(agent):
        begun_anew = agent.open()
        with stop_on_signals() as stop:
            if agent.config != written:
                with _output(folder):
                    run_folder.write_text(config_file, to_yaml(agent.config))
            if agent.steps < agent.config.total_steps:
                with _output(folder):
                    done.unlink(missing_ok=True)
            return _run(agent, folder, callbacks, quiet, stop, _Part(agent.steps, before, begun_anew))


def _require_unchanged(written: TrainConfig, trained: TrainConfig, path: Path) -> None:
    """Refuse a file that says other settings than those the checkpoint was trained with, but for where and how long.

    Raises:
        ConfigError: it names the first.
    """
    for key, (ours, theirs) in differing(written, trained).items():
        if key not in ("total_steps", "runtime.device"):
            raise ConfigError(
                f"{path}: {key} is {ours!r}, the checkpoint was trained with {theirs!r}; nothing was changed; a run "
                "goes on with its own settings: put it back, or begin a new run with --init-from"
            )


class _Part(NamedTuple):
    """What a later part of a run goes on from."""

    steps: int
    """Environment steps done."""
    total_steps: int
    """Environment steps that were wanted before."""
    begun_anew: str | None
    """Why its environments begin new episodes; none where they go on with theirs."""


def _run(
    agent: Agent,
    folder: Path,
    callbacks: Sequence[Callback],
    quiet: bool,
    stop: StopRequest,
    part: _Part | None = None,
    settled: Sequence[str] = (),
) -> RunResult:
    config = agent.config
    resumed_at, inexact = None if part is None else part.steps, _inexact(agent, part)
    with _output(folder):
        metadata = run_folder.Metadata(folder, agent.device, config, inexact)
        writers = _writers(folder, config, resumed_at)
    exit_status, result = 1, None
    boundary = agent.state_dict()
    """Of the last finished iteration: what is saved, however the run ends."""
    try:
        with TrainingConsole(config.total_steps, agent.steps, quiet) as console:
            said = announce.beginning(
                agent,
                folder,
                tensorboard=len(writers) > 1,
                inexact=inexact,
                total_before=None if part is None else part.total_steps,
            )
            console.say(*said, *settled)
            agent.best_return = best = _best_so_far(agent, folder)
            iterations = agent.iterations_until(config.total_steps)
            while taken := _next(iterations, stop):
                state, boundary = taken
                with _output(folder):
                    for writer in writers:
                        writer.write(state.steps, state.number, state.metrics, state.histograms)
                    if boundary["best_return"] != best:
                        best = boundary["best_return"]
                        checkpoint.save(folder / "checkpoints" / checkpoint.BEST, boundary)
                    if state.number % config.runtime.checkpoint_every == 0:
                        _save(boundary, folder, config.runtime.keep_checkpoints)
                console.show(state.steps, state.metrics)
                console.say(*announce.warnings(state.metrics))
                if not _all_go_on(callbacks, state, stop):
                    break
            with _output(folder):
                _save(boundary, folder, config.runtime.keep_checkpoints)
            if stop.signal:
                agent.load_state_dict(boundary)
                exit_status = 128 + stop.signal
                console.say(*announce.stopped(agent, folder, stop.signal))
            else:
                exit_status, result = 0, _result(agent, folder)
                console.say(announce.finished(result))
    except BaseException as error:
        exit_status = _exit_status(error)
        # Not where the disk refused it, or a second signal came: that one wants no more of anything.
        if boundary["steps"] and not isinstance(error, (OutputError, SystemExit)):
            with contextlib.suppress(OSError, PPOKLError):
                _save(boundary, folder, config.runtime.keep_checkpoints)
        raise
    finally:
        with _output(folder), contextlib.ExitStack() as ending:  # all of it, also where one fails
            ending.push(lambda _kind, error, _trace: metadata.end(_exit_status(error) if error else exit_status))
            ending.enter_context(_output(folder))
            for writer in writers:
                ending.callback(writer.close, exit_status == 0)
    if result is not None:
        with _output(folder):
            run_folder.write_json(folder / "result.json", result)
    return RunResult(folder, agent, exit_status, result)


def _writers(folder: Path, config: TrainConfig, resumed_at: int | None) -> list[Writer]:
    """JSON lines, at once, as it is what a run is resumed and told from; and TensorBoard where it is installed."""
    writers: list[Writer] = [JsonLinesWriter(folder / METRICS, resumed_at)]
    with contextlib.suppress(ImportError):
        from ppo_kl.diagnostics.tensorboard_writer import TensorBoardWriter

        writers.append(InBackground(TensorBoardWriter(folder, config, resumed_at)))
    return writers


def _next(iterations: Iterator[Iteration], stop: StopRequest) -> tuple[Iteration, dict[str, Any]] | None:
    """The next iteration and the state after it; none after the last, or where a signal ended it half-way."""
    try:
        with stop.interrupts():
            state = next(iterations, None)
            if state is None:
                return None
            return state, state.agent.state_dict()
    except Stopped:
        return None


def _all_go_on(callbacks: Sequence[Callback], state: Iteration, stop: StopRequest) -> bool:
    try:
        with stop.interrupts():
            return all_go_on(callbacks, state)
    except Stopped:
        return False


def _inexact(agent: Agent, part: _Part | None) -> str | None:
    """Why this run is not, bit for bit, one that goes on without a stop; none where it is."""
    if not agent.resumes_exactly:
        return f"{agent.config.env.id} steps its own copies and cannot be brought to where they stood"
    return None if part is None else part.begun_anew


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


def _save(state: dict[str, Any], folder: Path, keep: int) -> None:
    """Save, then let go of the oldest checkpoints: never the other way round."""
    path = checkpoint.path_at(folder / "checkpoints", state["steps"])
    checkpoint.save(path, state)
    checkpoint.prune(path, keep)


def _best_so_far(agent: Agent, folder: Path) -> float | None:
    """Of the agent's evaluations, and of that behind best.pt, which a run may have gone back behind."""
    found = [agent.best_return]
    with contextlib.suppress(CheckpointError):
        found.append(checkpoint.load(folder / "checkpoints" / checkpoint.BEST)["best_return"])
    return max((x for x in found if x is not None), default=None)


def _result(agent: Agent, folder: Path) -> dict[str, float | None]:
    """What `result.json` says of all parts of the run; seconds are those of its rollouts and updates."""
    rows = rows_of(folder / METRICS)
    kls = finite_in(rows, "kl/forward")
    return {
        "steps": agent.steps,
        "iterations": agent.iterations,
        "return_last100": statistics.fmean(agent.last100) if agent.last100 else None,
        "kl_forward_mean": statistics.fmean(kls) if kls else None,
        "seconds": round(sum(finite_in(rows, "time/rollout_seconds") + finite_in(rows, "time/update_seconds")), 1),
    }
