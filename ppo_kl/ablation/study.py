"""A study as it stands: its finished runs as tables, and what is missing of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppo_kl.ablation.plan import plan
from ppo_kl.ablation.result import Result, read, result_of_run
from ppo_kl.ablation.run import RESULTS, RUNS
from ppo_kl.ablation.statistics import Table
from ppo_kl.diagnostics.history import runs_below
from ppo_kl.errors import ConfigError
from ppo_kl.load import load_study

STUDY = "study.yaml"


class Study(NamedTuple):
    """What a report is made of."""

    name: str
    arms: list[str]
    """In the study's order; those without a finished run are not among them."""
    envs: list[str]
    reference: str
    """The arm that others are held against."""
    results: list[Result]
    """Of the finished runs."""
    failures: list[Result]
    missing: list[str]
    """Names of the runs that are planned and have no result."""

    def of(self, arm: str, env: str) -> list[Result]:
        """The finished runs of an arm on an environment, by seed."""
        return [result for result in self.results if (result["arm"], result["env"]) == (arm, env)]

    def table(self, number: Callable[[Result], float | None]) -> dict[str, Table]:
        """A number of every run, by arm and environment; runs that have none are left out."""
        found: dict[str, Table] = {}
        for arm in self.arms:
            columns = {env: [number(result) for result in self.of(arm, env)] for env in self.envs}
            known = {env: np.array([x for x in column if x is not None], float) for env, column in columns.items()}
            found[arm] = {env: x for env, x in known.items() if len(x)}
        return found

    def initial(self) -> dict[str, float]:
        """Mean return of the initial policy, by environment; its first returns where nobody played it."""
        means = {}
        for env in self.envs:
            mine = [result for result in self.results if result["env"] == env]
            returns = [x for result in mine for x in result["initial"]]
            first = [known[0] for result in mine if (known := [x for x in result["curve"]["return"] if x is not None])]
            if returns or first:
                means[env] = float(np.mean(returns or first))
        return means


def last100(result: Result) -> float | None:
    """The score of a run: mean return of the last 100 training episodes; none where no episode ended."""
    score: float | None = result["return"]
    return score


def area(result: Result) -> float | None:
    """Mean of the learning curve over the whole run: how soon it learned; none where no episode ended."""
    known = _filled(result["curve"]["return"])
    return None if known is None else float(np.mean(known))


def _filled(values: list[float | None]) -> list[float] | None:
    """What is not known is as it was before, and before the first as the first; none where nothing is known."""
    known = [x for x in values if x is not None and math.isfinite(x)]
    if not known:
        return None
    filled, last = [], known[0]
    for x in values:
        last = last if x is None else x
        filled.append(last)
    return filled


def curve(result: Result) -> tuple[list[float], list[float]] | None:
    """Steps and returns of a run; none where no episode ended."""
    returns = _filled(result["curve"]["return"])
    return None if returns is None else (result["curve"]["steps"], returns)


def read_study(folder: Path) -> Study:
    """The study in a folder, finished or not; or one of whatever runs lie in it.

    Raises:
        ConfigError: there is nothing in it.
        OutputError: a file in it is no result.
    """
    results = read(folder / RESULTS) if (folder / RESULTS).is_dir() else {}
    planned = plan(load_study(str(folder / STUDY))) if (folder / STUDY).is_file() else None
    if planned is None and not results:
        results = {found["id"]: found for run in runs_below(folder) if (found := result_of_run(run)) is not None}
    finished = [result for result in results.values() if "error" not in result]
    if not finished:
        raise ConfigError(
            f"{folder}: no finished run, neither in {RESULTS}/ nor as a run folder below it; name a study's folder, as "
            f"{RUNS}/ablation/NAME, or one that holds runs"
        )
    order = list(dict.fromkeys([*(planned.arms if planned else []), *sorted(result["arm"] for result in finished)]))
    arms = [arm for arm in order if any(result["arm"] == arm for result in finished)]
    wanted = planned.study.envs if planned else ()
    envs = list(dict.fromkeys([*wanted, *sorted(result["env"] for result in finished)]))
    reference = planned.study.reference if planned else "clip"
    known = {result["id"] for result in finished}
    return Study(
        planned.study.name if planned else folder.resolve().name,
        arms,
        [env for env in envs if any(result["env"] == env for result in finished)],
        reference if reference in arms else arms[0],
        sorted(finished, key=lambda result: (result["arm"], result["env"], result["seed"])),
        [result for result in results.values() if "error" in result],
        [point.name for point in planned.points if point.id not in known] if planned else [],
    )


def csv_of(study: Study) -> list[list[str]]:
    """A row for each finished run, below a head: every number of a report comes from these and the curves."""
    head = ["id", "arm", "env", "seed", "steps", "return", "area", "initial", "evaluated", "seconds"]
    kls = ["mean", "median", "p95", "target", "tracking_error", "lambda", "implied_lambda"]
    rows = [[*head, *(f"kl_{name}" if "lambda" not in name else name for name in kls), "settings"]]
    for result in study.results:
        means = [float(np.mean(result[key])) if result[key] else None for key in ("initial", "evaluated")]
        values = [*(result[key] for key in head[:6]), area(result), *means, result["seconds"]]
        values += [result["kl"][name] for name in kls]
        rows.append([*("" if x is None else f"{x:.6g}" if isinstance(x, float) else str(x) for x in values)])
        rows[-1].append(json.dumps(result["settings"]))
    return rows
