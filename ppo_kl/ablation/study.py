"""A study as it stands: its finished runs as tables, and what is missing of it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from ppo_kl.ablation.plan import Cell, Plan
from ppo_kl.ablation.result import Result, read, result_of_run
from ppo_kl.ablation.run import RESULTS, RUNS
from ppo_kl.ablation.statistics import Scores, Table
from ppo_kl.diagnostics.history import runs_below
from ppo_kl.errors import ConfigError, OutputError

PLAN = "plan.json"
"""Which run is to be found where, in a study's folder."""


class Study(NamedTuple):
    """What a report is made of."""

    name: str
    arms: list[str]
    """In the study's order; those without a finished run are not among them."""
    envs: list[str]
    reference: str
    """The arm that others are held against."""
    results: list[Result]
    """Of the finished runs, by arm, environment and seed."""
    failures: list[Result]
    missing: dict[str, int]
    """What is planned and has no result, or has not come to its end, with its number of runs: a run, or an arm of which
    there is none."""
    remarks: list[str]
    """What else is to be known, in sentences."""
    published: Mapping[str, float] = MappingProxyType({})
    """Arm -> its score in a paper, the highest first."""
    published_in: str = ""

    def of(self, arm: str, env: str) -> list[Result]:
        """The finished runs of an arm on an environment, by seed."""
        return [result for result in self.results if (result["arm"], result["env"]) == (arm, env)]

    def table(self, number: Callable[[Result], float | None], whole: bool = False) -> dict[str, Table]:
        """A number of every run, by arm and environment; runs that have none are left out.

        Args:
            number: of a run.
            whole: only the seeds that an arm has on every environment, so that each of these counts alike.
        """
        found: dict[str, Table] = {}
        for arm in self.arms:
            seeds = self.seeds_of(arm)
            kept = {
                env: [number(result) for result in self.of(arm, env) if not whole or result["seed"] in seeds]
                for env in self.envs
            }
            known = {env: np.array([x for x in column if x is not None], float) for env, column in kept.items()}
            found[arm] = {env: x for env, x in known.items() if len(x)}
        return found

    def seeds_of(self, arm: str) -> set[int]:
        """Those with which an arm has a score on every environment."""
        seeds = [{r["seed"] for r in self.of(arm, env) if last100(r) is not None} for env in self.envs]
        return set.intersection(*seeds) if seeds else set()

    def initial(self) -> dict[str, Scores]:
        """Returns of the initial policy, by environment; the first ones of each run where nobody played it."""
        found = {}
        for env in self.envs:
            mine = [result for result in self.results if result["env"] == env]
            returns = [x for result in mine for x in result["initial"]]
            first = [known[0] for result in mine if (known := [x for x in result["curve"]["return"] if x is not None])]
            if returns or first:
                found[env] = np.array(returns or first, float)
        return found


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


def plan_as_json(planned: Plan) -> str:
    """What a report needs of a plan: it is read anywhere, also where the study's files and plug-ins are not."""
    study = planned.study
    cells = [[*cell, key] for cell, key in planned.cells.items()]
    kept = {key: getattr(study, key) for key in ("name", "reference", "envs", "published", "published_in")}
    return json.dumps(kept | {"cells": cells}) + "\n"


def read_study(folder: Path) -> Study:
    """The study in a folder, finished or not; or one of whatever runs lie in it.

    Raises:
        ConfigError: there is nothing in it.
        OutputError: a file in it is no result, or no plan.
    """
    results = read(folder / RESULTS) if (folder / RESULTS).is_dir() else []
    if (folder / PLAN).is_file():
        study = _planned(folder, results)
    elif results:
        study = _found(folder.resolve().name, results, {})
    else:
        study = _by_hand(folder)
    if not study.results:
        raise ConfigError(
            f"{folder}: no finished run, neither in {RESULTS}/ nor as a run folder below it; name a study's folder, as "
            f"{RUNS}/ablation/NAME, or one that holds runs"
        )
    return study


def _planned(folder: Path, results: list[Result]) -> Study:
    """By its plan: that alone says which run is of which arm."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        cells = {(arm, env, seed): key for arm, env, seed, key in plan["cells"]}
        name, reference, envs = plan["name"], plan["reference"], plan["envs"]
        published = dict(sorted(plan.get("published", {}).items(), key=lambda item: -item[1]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{folder / PLAN}: not the plan of a study ({error!r}); run `ppo-kl ablate` again") from error
    by_id = {result["id"]: result for result in sorted(results, key=lambda result: "error" not in result)}
    there = {cell: by_id[key] | dict(zip(CELL, cell, strict=True)) for cell, key in cells.items() if key in by_id}
    known = set(cells.values())
    remarks = []
    if strangers := sorted({result["id"] for result in results} - known):
        remarks.append(f"Results that are not of this study, and have no part in it: {', '.join(strangers)}.")
    arms = list(dict.fromkeys(arm for arm, _, _ in cells))
    gone = _missing([cell for cell in cells if cell not in there], Counter(arm for arm, _, _ in cells))
    study = _study(name, arms, envs, reference, list(there.values()), gone, remarks)
    return study._replace(published=published, published_in=plan.get("published_in", ""))


CELL = ("arm", "env", "seed")


def _missing(cells: list[Cell], planned: Counter[str]) -> dict[str, int]:
    """Arms that were not begun are told as such, of others each run."""
    by_arm = Counter(arm for arm, _, _ in cells)
    whole = {arm: n for arm, n in by_arm.items() if n == planned[arm] > 1}
    runs = {f"{arm} on {env}, seed {seed}": 1 for arm, env, seed in cells if arm not in whole}
    return runs | {f"all {n} runs of {arm}": n for arm, n in whole.items()}


def _found(name: str, results: list[Result], missing: dict[str, int]) -> Study:
    """By what the results say of themselves."""
    arms, envs = (sorted({result[key] for result in results}) for key in ("arm", "env"))
    return _study(name, arms, envs, "clip", results, missing, [])


def _by_hand(folder: Path) -> Study:
    """Of runs made by hand: an arm for each objective, and for each of the settings in which its runs differ."""
    runs = {run: _result_of(run) for run in runs_below(folder)}
    done = [result for result in runs.values() if result is not None]
    for objective, env in {(result["objective"], result["env"]) for result in done}:
        mine = [result for result in done if (result["objective"], result["env"]) == (objective, env)]
        for key in varying(mine):
            for result in mine:
                result["arm"] += f" {key.rpartition('.')[2]}={result['settings'].get(key)}"
    return _found(
        folder.resolve().name,
        done,
        {f"{run} (not finished, or damaged)": 1 for run, found in runs.items() if not found},
    )


def _result_of(run: Path) -> Result | None:
    try:
        return result_of_run(run)
    except (ConfigError, OutputError):  # damaged
        return None


def varying(results: list[Result]) -> list[str]:
    """The settings, but for the seed, in which runs differ."""
    keys = dict.fromkeys(key for result in results for key in result["settings"] if key != "seed")
    return [key for key in keys if len({json.dumps(result["settings"].get(key)) for result in results}) > 1]


def _study(
    name: str,
    arms: list[str],
    envs: list[str],
    reference: str,
    results: list[Result],
    missing: dict[str, int],
    remarks: list[str],
) -> Study:
    finished = sorted(
        (result for result in results if "error" not in result),
        key=lambda result: (arms.index(result["arm"]), envs.index(result["env"]), result["seed"]),
    )
    with_runs = [arm for arm in arms if any(result["arm"] == arm for result in finished)]
    if reference not in with_runs and with_runs:
        remarks = [*remarks, f"There is no finished run of {reference!r}: {with_runs[0]!r} is the reference."]
        reference = with_runs[0]
    silent = [f"{r['arm']} on {r['env']}, seed {r['seed']}" for r in finished if last100(r) is None]
    if silent:
        remarks = [*remarks, f"No episode ended, so that there is no score: {'; '.join(silent)}."]
    played = [env for env in envs if any(result["env"] == env for result in finished)]
    failures = [result for result in results if "error" in result]
    return Study(name, with_runs, played, reference, finished, failures, missing, remarks)


KLS = ("mean", "median", "p95", "target", "tracking_error", "lambda", "implied_lambda")


def csv_of(study: Study) -> list[list[str]]:
    """A row for each run below a head: every number of a report comes from these and the curves."""
    differ = varying(study.results)
    head = ["id", "arm", "env", "seed", "state", "steps", "return", "area", "initial", "evaluated", "seconds"]
    head += [f"kl_{name}" if "lambda" not in name else name for name in KLS]
    rows = [[*head, "commit", "torch", "end", *differ]]
    for result in study.results:
        means = [float(np.mean(result[key])) if result[key] else None for key in ("initial", "evaluated")]
        values = [
            *(result[key] for key in head[:4]),
            "finished",
            result["steps"],
            last100(result),
            area(result),
            *means,
        ]
        values += [result["seconds"], *(result["kl"][name] for name in KLS)]
        values += [result["commit"], result["versions"].get("torch"), result["end"]]
        values += [result["settings"].get(key) for key in differ]
        rows.append(["" if x is None else f"{x:.6g}" if isinstance(x, float) else str(x) for x in values])
    for result in study.failures:
        rows.append([*(str(result[key]) for key in head[:4]), "failed", *[""] * (len(rows[0]) - 5)])
    return rows
