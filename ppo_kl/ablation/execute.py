"""Runs what is missing of a plan, on whatever there is to run it on; each executor answers results as they come."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from ppo_kl.ablation.plan import Plan, Point
from ppo_kl.ablation.result import INITIAL_EPISODES, Result, failure_of, read
from ppo_kl.ablation.run import Job, Stopped, run
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
    """A job that came to an end, or was stopped and goes on next time."""

    job: Job
    result: Result | None


Executor = Callable[[Sequence[Job], Options], Iterator[Done]]


def missing(plan: Plan, folders: Iterable[Path]) -> list[Point]:
    """The points of which no folder has a finished result; those that failed before are tried anew."""
    done = {key for folder in folders for key, result in read(folder).items() if "error" not in result}
    return [point for point in plan.points if point.id not in done]


def jobs_of(points: Sequence[Point], plan: Plan, folder: Path, plugins: tuple[str, ...] = ()) -> list[Job]:
    """The points as jobs, whose initial policies play a hundred episodes in all on each environment."""
    episodes = -(-INITIAL_EPISODES // plan.study.seeds)
    return [Job(point, folder.resolve(), episodes, plugins) for point in points]


# --- this machine -----------------------------------------------------------------------------------------------------


def local(jobs: Sequence[Job], options: Options) -> Iterator[Done]:
    """A process for each core. One that dies is a failed run, tried once more; the others go on."""
    left = list(jobs)
    died: set[str] = set()
    while left:
        broken: list[Job] = []
        with _pool(min(options.parallel or cores_allowed(), len(left))) as pool:
            futures = {pool.submit(_run_here, job): job for job in left}
            try:
                yield from _as_they_end(futures, broken)
            finally:
                _stop(pool, futures)
        left = []
        for job in broken:
            # Who of those that ran side by side broke the pool is not told: each has its second try.
            if job.point.id in died:
                yield Done(job, failure_of(job.point, "its process died twice without a word, as for want of memory"))
            else:
                died.add(job.point.id)
                left.append(job)


def _pool(workers: int) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=spawn, initializer=_in_a_worker)


def _as_they_end(futures: dict[Future[Result], Job], broken: list[Job]) -> Iterator[Done]:
    pending = set(futures)
    while pending:
        ended, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in ended:
            try:
                yield Done(futures[future], future.result())
            except BrokenProcessPool:
                broken.append(futures[future])
            except Stopped:
                yield Done(futures[future], None)


def _stop(pool: ProcessPoolExecutor, futures: Iterable[Future[Result]]) -> None:
    """Nothing new is begun, and what runs is asked to save itself; nothing where all is done."""
    for future in futures:
        future.cancel()
    if any(future.running() for future in futures):
        for process in list((pool._processes or {}).values()):
            process.terminate()


_busy = threading.Lock()


def _run_here(job: Job) -> Result:
    with _busy, _output_in(job.log_file):
        return run(job)


@contextlib.contextmanager
def _output_in(path: Path) -> Iterator[None]:
    """What a run prints, warnings and whatever libraries write, is in a file of its own: else it would be everywhere."""
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
    """Ctrl-C is the parent's to answer, with one SIGTERM for each worker; the end of the parent is answered alike."""
    os.setpgid(0, 0)

    def watch() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)
            with _busy:  # what is saved is saved first
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# --- clusters ---------------------------------------------------------------------------------------------------------


def on_ray(jobs: Sequence[Job], options: Options) -> Iterator[Done]:
    """A Ray task for each run, one core each; the study's folder must be one that all machines see."""
    ray = _imported("ray", "ray", "--executor ray")
    ray.init(address=options.address, num_cpus=None if options.address else options.parallel, log_to_driver=False)
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
    """An array of Slurm jobs by way of submitit, or of processes here with `cluster=local`."""
    submitit = _imported("submitit", "slurm", "--executor slurm")
    folder = jobs[0].folder / "slurm" if jobs else Path("slurm")
    settings = dict(options.slurm)
    executor = submitit.AutoExecutor(folder=folder, cluster=settings.pop("cluster", None))
    executor.update_parameters(**{"cpus_per_task": 1, "timeout_min": 24 * 60, **settings})
    if options.parallel is not None and executor.cluster == "slurm":
        executor.update_parameters(slurm_array_parallelism=options.parallel)
    submitted = dict(zip(executor.map_array(run, list(jobs)), jobs, strict=True))
    for task in submitit.helpers.as_completed(list(submitted)):
        job = submitted[task]
        error = task.exception()
        yield Done(job, task.result() if error is None else failure_of(job.point, str(error)))


EXECUTORS: dict[str, Executor] = {"local": local, "ray": on_ray, "slurm": on_slurm}
"""Name -> how runs are run; the results are the same."""


def _imported(module: str, extra: str, option: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{option}: {needs_extra(extra)} ({error})") from error
