"""Runs what is missing of a plan, on whatever there is to run it on; each executor answers results as they come."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from ppo_kl.ablation.plan import Plan, Point
from ppo_kl.ablation.result import INITIAL_EPISODES, Result, failure_of, is_of, read
from ppo_kl.ablation.run import Interrupted, Job, run
from ppo_kl.envs.cores import cores_allowed
from ppo_kl.errors import ConfigError, needs_extra


class Options(NamedTuple):
    """Of an executor."""

    parallel: int | None = None
    """Runs side by side; none: one for each core, or as many as a cluster takes."""
    address: str | None = None
    """Of a Ray cluster; none: one on this machine."""
    slurm: tuple[tuple[str, Any], ...] = ()
    """What submitit is told, as partition."""


class Done(NamedTuple):
    """A job that came to an end; without a result where it was stopped, and goes on next time."""

    job: Job
    result: Result | None


Executor = Callable[[Sequence[Job], Options], Iterator[Done]]


def missing(plan: Plan, folders: Iterable[Path]) -> list[Point]:
    """The points of which no folder has a finished result; those that failed before are tried anew."""
    found = [result for folder in folders for result in read(folder)]
    by_id: dict[str, list[Result]] = {}
    for result in found:
        by_id.setdefault(result["id"], []).append(result)
    return [point for point in plan.points if not any(is_of(result, point) for result in by_id.get(point.id, []))]


def jobs_of(points: Sequence[Point], plan: Plan, folder: Path, plugins: tuple[str, ...] = ()) -> list[Job]:
    """The points as jobs, whose initial policies play a hundred episodes in all on each environment."""
    episodes = -(-INITIAL_EPISODES // plan.study.seeds)
    return [Job(point, folder.resolve(), episodes, plugins) for point in points]


# --- this machine -----------------------------------------------------------------------------------------------------


def local(jobs: Sequence[Job], options: Options) -> Iterator[Done]:
    """A process for each core. A run whose process dies is tried once more, alone; the others go on."""
    left = list(jobs)
    while left:
        suspects: list[Job] = []
        yield from _side_by_side(left, options.parallel or cores_allowed(), suspects)
        # Which of them it was is not told: alone, each shows it.
        for job in suspects:
            dead: list[Job] = []
            yield from _side_by_side([job], 1, dead)
            if dead:
                yield Done(job, failure_of(job.point, "its process died twice without a word, as for want of memory"))


def _side_by_side(left: list[Job], workers: int, died: list[Job]) -> Iterator[Done]:
    """Take jobs from `left` until there are none, or the pool breaks; those that ran then are put into `died`."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(left)), mp_context=spawn, initializer=_in_a_worker)
    running: dict[Future[Result | None], Job] = {}
    try:
        while (left and not died) or running:
            # No more than are run at once: what waits in the pool could neither be stopped nor be told from what ran.
            while left and not died and len(running) < workers:
                job = left.pop(0)
                try:
                    running[pool.submit(_run_here, job)] = job
                except BrokenProcessPool:
                    left.insert(0, job)
                    break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    yield Done(job, future.result())
                except BrokenProcessPool:
                    died.append(job)
    finally:
        _shut(pool, busy=bool(running))


def _shut(pool: ProcessPoolExecutor, *, busy: bool) -> None:
    """Runs that are not done are asked to save themselves, and waited for; asked a second time, everything ends."""
    processes = list((pool._processes or {}).values())
    try:
        if busy:
            for process in processes:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
    except SystemExit as second:
        for process in processes:
            process.kill()
        os._exit(int(second.code or 1))


_busy = threading.Lock()


def _run_here(job: Job) -> Result | None:
    with _busy, _output_in(job.log_file):
        try:
            return run(job)
        except Interrupted:
            return None


@contextlib.contextmanager
def _output_in(path: Path) -> Iterator[None]:
    """What a run prints, warnings and what libraries write, is in a file of its own: else it would be everywhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if path.stat().st_size == 0:
            path.unlink()


def _in_a_worker() -> None:
    """Ctrl-C is the parent's to answer, with one SIGTERM for each worker; the end of the parent is answered alike.

    While it trains, a run has a handler of its own, which saves it.
    """
    os.setpgid(0, 0)

    def end(number: int, _frame: Any) -> None:  # noqa: ARG001
        if _busy.locked():
            raise Interrupted

    def watch() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)
            with _busy:  # what is saved is saved first
                os._exit(1)

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=watch, daemon=True).start()


# --- clusters ---------------------------------------------------------------------------------------------------------


def on_ray(jobs: Sequence[Job], options: Options) -> Iterator[Done]:
    """A Ray task for each run, one core each; the study's folder must be one that all machines see."""
    ray = _imported("ray", "ray", "--executor ray")
    before = signal.getsignal(signal.SIGTERM)
    try:
        cores = None if options.address else options.parallel
        ray.init(address=options.address, num_cpus=cores, log_to_driver=False, include_dashboard=False)
    except Exception as error:
        raise ConfigError(f"--address {options.address}: Ray: {_first_line(error)}; nothing was run") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray has one of its own, which would end this process without a word
    try:
        task = ray.remote(num_cpus=1, max_retries=1)(run)
        refs = {task.remote(job): job for job in jobs}
        while refs:
            (ref, *_), _ = ray.wait(list(refs), num_returns=1)
            job = refs.pop(ref)
            try:
                result = ray.get(ref)
            except Exception as error:  # of the cluster: a machine that was lost
                result = failure_of(job.point, f"{type(error).__name__}: {error}")
            yield Done(job, result)
    finally:
        ray.shutdown()


def on_slurm(jobs: Sequence[Job], options: Options) -> Iterator[Done]:
    """An array of Slurm jobs by way of submitit, or of processes here with `cluster=local`; cancelled where we stop."""
    submitit = _imported("submitit", "slurm", "--executor slurm")
    settings = {"cluster": "slurm", **dict(options.slurm)}
    if settings["cluster"] == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError(
            "--executor slurm: there is no sbatch here; nothing was run; try it with --slurm cluster=local"
        )
    at_once = len(jobs) if settings["cluster"] == "slurm" else options.parallel or cores_allowed()
    try:
        executor = submitit.AutoExecutor(folder=jobs[0].folder / "slurm", cluster=settings.pop("cluster"))
        executor.update_parameters(**{"cpus_per_task": 1, "timeout_min": 24 * 60, **settings})
        if options.parallel is not None and executor.cluster == "slurm":
            executor.update_parameters(slurm_array_parallelism=options.parallel)
    except Exception as error:
        raise ConfigError(f"--slurm: {_first_line(error)}; nothing was run") from error
    for first in range(0, len(jobs), at_once):
        part = jobs[first : first + at_once]
        submitted = dict(zip(executor.map_array(run, list(part)), part, strict=True))
        try:
            for task in submitit.helpers.as_completed(list(submitted)):
                job = submitted.pop(task)
                failed = task.exception()
                yield Done(job, task.result() if failed is None else failure_of(job.point, str(failed)))
        finally:
            for task in submitted:
                task.cancel()


EXECUTORS: dict[str, Executor] = {"local": local, "ray": on_ray, "slurm": on_slurm}
"""Name -> how runs are run; the results are the same."""


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _imported(module: str, extra: str, option: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{option}: {needs_extra(extra)} ({error})") from error
