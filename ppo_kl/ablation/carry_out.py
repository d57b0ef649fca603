"""From a plan to its results: what is missing is run, progress is shown, and what comes is kept."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ppo_kl.ablation.execute import Executor, Options, jobs_of, missing
from ppo_kl.ablation.plan import Plan
from ppo_kl.ablation.result import is_of, last_line, read, write
from ppo_kl.ablation.run import RESULTS, Job
from ppo_kl.diagnostics.rows import METRICS, row_in
from ppo_kl.training.stopping import Stopped, stop_on_signals

LOOKS_EVERY = 1.0
"""Seconds between looks at how far the runs are."""
LAST_ROW = 100_000
"""Bytes from the end of a metrics file in which its last row lies."""


class Outcome(NamedTuple):
    """How it went."""

    finished: int
    """Of all runs."""
    left: int
    """Of those that were to be run, how many are not finished."""
    failed: list[str]
    """`NAME: error` of each run that failed for good."""
    signal: int
    """That stopped it; 0 where none did."""


def carry_out(
    plan: Plan,
    folder: Path,
    executor: Executor,
    options: Options,
    known: Sequence[Path],
    plugins: tuple[str, ...],
    arms: Sequence[str],
    console: Console,
) -> Outcome:
    """Run what neither the study's own results nor those in `known` have, of these arms.

    Every result is written as soon as there is one.

    Raises:
        OutputError: a result cannot be written, or read.
    """
    _take_over(known, plan, folder / RESULTS)
    points = missing(plan, [folder / RESULTS])
    jobs = jobs_of([point for point in points if point.arm in arms], plan, folder, plugins)
    finished, failed = len(plan.points) - len(points), list[str]()
    before = finished
    if not jobs:
        return Outcome(finished, 0, failed, 0)
    with stop_on_signals() as stop, _progress(jobs, finished, len(plan.points), console) as progress:
        try:
            with stop.interrupts():
                for job, result in executor(jobs, options):
                    if result is None:
                        continue
                    write(result, job.result_file)
                    if "error" in result:
                        failed.append(f"{job.point.name}: {last_line(result['error'])}")
                    else:
                        finished += 1
                    progress.done(job, result.get("return"), failed="error" in result)
        except Stopped:
            return Outcome(finished, len(jobs) - (finished - before), failed, int(stop.signal or 0))
    return Outcome(finished, len(jobs) - (finished - before), failed, 0)


def _take_over(known: Sequence[Path], plan: Plan, results: Path) -> None:
    """Copy what other folders have of this study: a report is made of one folder."""
    wanted = {point.id: point for point in missing(plan, [results])}
    for result in (result for folder in known for result in read(folder)):
        point = wanted.get(result["id"])
        if point is not None and is_of(result, point):
            write(result, results / f"{point.name}.json")


class _Shown:
    """One bar for all, and one for each run that has begun."""

    def __init__(self, progress: Progress, jobs: Sequence[Job], finished: int, total: int) -> None:
        self._progress, self._jobs = progress, {job.point.id: job for job in jobs}
        self._bars: dict[str, TaskID] = {}
        self._all = progress.add_task("all runs", total=total, completed=finished)
        self._lock = threading.Lock()

    def done(self, job: Job, last100: float | None, *, failed: bool) -> None:
        """A run came to its end."""
        with self._lock:
            del self._jobs[job.point.id]
            bar = self._bars.pop(job.point.id, None)
        if bar is not None:
            self._progress.remove_task(bar)
        said = "failed" if failed else "no episode ended" if last100 is None else f"return {last100:.4g}"
        point = job.point
        self._progress.console.print(f"{point.env}  {point.arm}  seed {point.seed}: {said}", markup=False)
        if not failed:
            self._progress.advance(self._all)

    def look(self) -> None:
        """How far each run is, by what it has written."""
        with self._lock:
            waiting = list(self._jobs.values())
        for job in waiting:
            steps = steps_written(job.run_folder)
            with self._lock:
                if steps is None or job.point.id not in self._jobs:
                    continue
                if job.point.id not in self._bars:
                    point = job.point
                    name = f"{point.env}  {point.arm}  seed {point.seed}"
                    self._bars[point.id] = self._progress.add_task(name, total=point.config.total_steps)
                self._progress.update(self._bars[job.point.id], completed=steps)


def steps_written(folder: Path) -> int | None:
    """Environment steps in the last whole row of a run's metrics; none where there is none."""
    try:
        with (folder / METRICS).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - LAST_ROW))
            rows = [row for line in file.read().splitlines()[-2:] if (row := row_in(line)) is not None]
    except OSError:
        return None
    return int(rows[-1]["steps"]) if rows else None


@contextlib.contextmanager
def _progress(jobs: Sequence[Job], finished: int, total: int, console: Console) -> Iterator[_Shown]:
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        shown, over = _Shown(progress, jobs, finished, total), threading.Event()

        def watch() -> None:
            while not over.wait(LOOKS_EVERY):
                shown.look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield shown
        finally:
            over.set()
            thread.join()
