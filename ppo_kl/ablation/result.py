"""What is kept of a finished run: a small file, from which every number of the report can be made again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ppo_kl.ablation.plan import Point, id_of, settings_of
from ppo_kl.atomic import write_atomically
from ppo_kl.diagnostics.history import Column, History, config_of, read_history
from ppo_kl.errors import OutputError

POINTS = 50
"""Of a learning curve."""
INITIAL_EPISODES = 100
"""Of the initial policy on an environment, shared out over the seeds."""
EVALUATED_EPISODES = 10
"""With the most likely actions, after training."""
SMALLEST = 1e-6
"""Of a KL's share of its target."""
DIGITS = 6
"""Significant ones."""

FINISHED = (
    "return",
    "initial",
    "evaluated",
    "curve",
    "kl",
    "settings",
    "seconds",
    "steps",
    "versions",
    "commit",
    "end",
)
"""What the result of a finished run has beside its name."""

Result = dict[str, Any]


def result_of(point: Point, folder: Path, initial: list[float], evaluated: list[float]) -> Result:
    """Of a run that finished.

    Args:
        point: what was run.
        folder: its own.
        initial: returns of the initial policy.
        evaluated: returns with the most likely actions, after training.

    Raises:
        OutputError: the folder has no result.
    """
    try:
        done = json.loads((folder / "result.json").read_text())
        metadata = json.loads((folder / "metadata.json").read_text())
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder}: has no result that could be read: {error}; run it again") from error
    history = read_history(folder)
    config = point.config
    result: Result = _rounded(
        {
            "id": point.id,
            "arm": point.arm,
            "env": point.env,
            "env_id": config.env.id,
            "objective": config.objective.name,
            "seed": point.seed,
            "steps": done["steps"],
            "seconds": done["seconds"],
            "return": done["return_last100"],
            "initial": initial,
            "evaluated": evaluated,
            "curve": _curve(history, config.total_steps),
            "kl": _kl(history),
            "versions": metadata["versions"],
            "commit": metadata["commit"],
            "hardware": metadata["hardware"],
            "end": metadata["end"],
        }
    )
    return result | {"settings": settings_of(config)}


def result_of_run(folder: Path) -> Result | None:
    """Of a run made by hand, whose arm is its objective; none where it has not finished, or has no configuration."""
    config = config_of(folder)
    if config is None or not (folder / "result.json").is_file():
        return None
    point = Point(id_of(config), config.objective.name, config.env.id, config.seed, config)
    return result_of(point, folder, [], [])


def failure_of(point: Point, error: str) -> Result:
    """Of a run that failed for good."""
    return {"id": point.id, "arm": point.arm, "env": point.env, "seed": point.seed, "error": error}


def last_line(error: str) -> str:
    """Of a traceback, what it says; the whole is in the run's result."""
    lines = error.strip().splitlines()
    return lines[-1][:300] if lines else "no reason known"


def write(result: Result, path: Path) -> None:
    """Whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    text = json.dumps(result, separators=(",", ":")) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error}; the run itself is kept, and read next time") from error


def read(folder: Path) -> list[Result]:
    """The results in a folder, finished and failed ones.

    Raises:
        OutputError: a file is none.
    """
    return [_read(path) for path in sorted(folder.glob("*.json"))]


def _read(path: Path) -> Result:
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        wanted = ("id", "arm", "env", "seed")
        for name in wanted if "error" in result else (*wanted, *FINISHED):
            result[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path}: not the result of a run ({error!r}); put it right, or take it away") from error
    return result


def is_of(result: Result, point: Point) -> bool:
    """Whether a result is a finished one of the point; a setting whose default has changed since tells them apart."""
    if "error" in result or result["id"] != point.id:
        return False
    wanted = json.loads(json.dumps(settings_of(point.config)))
    return all(wanted[key] == value for key, value in result["settings"].items() if key in wanted)


def _curve(history: History, total_steps: int) -> dict[str, list[float | None]]:
    """Mean return of the episodes that ended, and median KL of the updates, in `POINTS` stretches of equal length."""
    ends = np.linspace(0, max(total_steps, int(history.steps[-1])), POINTS + 1)[1:]
    place = np.minimum(np.searchsorted(ends, history.steps), POINTS - 1)
    returns, episodes = history.column("rollout/return_mean"), history.column("rollout/episodes")
    kl = history.column("kl/forward")
    curve: dict[str, list[float | None]] = {"steps": [float(end) for end in ends], "return": [], "kl": []}
    for i in range(POINTS):
        here = (place == i) & np.isfinite(returns) & (episodes > 0)
        ended = float(episodes[here].sum())
        curve["return"].append(float((returns[here] * episodes[here]).sum()) / ended if ended else None)
        curve["kl"].append(_median(kl[place == i]))
    return curve


def _kl(history: History) -> dict[str, float | None]:
    """What the updates did to the policy, by exact forward KL of each."""
    kl, ratio = history.column("kl/forward"), history.column("kl/target_ratio")
    finite = kl[np.isfinite(kl)]
    # Rounding may leave an update that hardly moved with a KL of 0 or below: as far off as can be told.
    off = np.abs(np.log(np.maximum(ratio[np.isfinite(ratio)], SMALLEST)))
    with np.errstate(divide="ignore", invalid="ignore"):
        target = history.column("kl/controlled") / ratio
    return {
        "mean": float(finite.mean()) if len(finite) else None,
        "median": _median(kl),
        "p95": float(np.quantile(finite, 0.95)) if len(finite) else None,
        "target": _median(target),
        "tracking_error": float(off.mean()) if len(off) else None,
        "lambda": _median(history.column("penalty/lambda")),
        "implied_lambda": _median(history.column("penalty/implied_lambda")),
    }


def _median(column: Column) -> float | None:
    finite = column[np.isfinite(column)]
    return float(np.median(finite)) if len(finite) else None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
