"""What a run left behind, read back: its metrics as columns, and what it was."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppo_kl.config import TrainConfig
from ppo_kl.diagnostics.event_file import Points, read_scalars
from ppo_kl.diagnostics.rows import METRICS, number_in, rows_of
from ppo_kl.errors import ConfigError
from ppo_kl.load import read_config

EVENTS = "events.out.tfevents.*"

Column = NDArray[np.float64]


class History(NamedTuple):
    """A run's metrics, one row per iteration."""

    steps: NDArray[np.int64]
    """Environment steps `[U]`, strictly increasing."""
    columns: dict[str, Column]
    """`[U]` by tag; NaN where an iteration has no such number, or none that is finite."""
    nonfinite: dict[str, int]
    """How often a tag's number was not finite, where it ever was."""

    def column(self, tag: str) -> Column:
        """The tag's column; NaN throughout where the run has no such tag."""
        found = self.columns.get(tag)
        return np.full(len(self.steps), math.nan) if found is None else found


class Run(NamedTuple):
    """A run folder."""

    folder: Path
    env: str
    objective: str
    seed: str
    state: str
    """How it ended, in a few words."""
    config: TrainConfig | None
    """None where there is none that this version, without plug-ins, can read."""
    history: History


def is_run(folder: Path) -> bool:
    """Whether metrics lie in the folder itself."""
    return (folder / METRICS).is_file() or any(folder.glob(EVENTS))


def find_runs(folder: Path) -> list[Path]:
    """The folder if it is a run, else every run below it, by name.

    Raises:
        ConfigError: there is none.
    """
    below = runs_below(folder)
    if not below:
        what = f"neither {METRICS} nor an event file in it or below" if folder.is_dir() else "no such folder"
        raise ConfigError(f"{folder}: {what}; name a run folder, as runs/ENV/OBJECTIVE/seed0, or one that holds runs")
    return below


def runs_below(folder: Path) -> list[Path]:
    """The folder if it is a run, else every run below it, by name; there may be none."""
    if is_run(folder):
        return [folder]
    return sorted({path.parent for name in (METRICS, EVENTS) for path in folder.rglob(name)})


def read_run(folder: Path) -> Run:
    """A run's metrics, and what its other files say about it; a file that is missing or cannot be read says nothing.

    Raises:
        ConfigError: there are no metrics.
    """
    config = config_of(folder)
    # Runs lie in runs_dir/ENV/OBJECTIVE/seedK, which is what is left where the configuration cannot be read.
    named = folder.resolve()
    env, objective, seed = named.parents[1].name, named.parent.name, named.name.removeprefix("seed")
    if config is not None:
        env, objective, seed = config.env.id, config.objective.name, str(config.seed)
    if named.name.startswith(f"seed{seed}-"):  # the second run of that name
        seed = named.name.removeprefix("seed")
    return Run(folder, env, objective, seed, state_of(folder), config, read_history(folder))


def read_history(folder: Path) -> History:
    """The metrics of a run, from `metrics.jsonl`, or from event files where there is no such file.

    Raises:
        ConfigError: there are none, or they cannot be read.
    """
    try:
        if (folder / METRICS).is_file():
            history = _from_rows(rows_of(folder / METRICS))
        else:
            history = _from_points(read_scalars(sorted(folder.glob(EVENTS))))
    except OSError as error:
        raise ConfigError(f"{folder}: metrics cannot be read: {error}") from error
    if not len(history.steps):
        raise ConfigError(f"{folder}: no iteration in its metrics yet; look again when the run has made one")
    return history


def _from_rows(written: Iterable[dict[str, Any]]) -> History:
    rows = {row["steps"]: row for row in written if abs(row["steps"]) < 2**63}
    in_order = [rows[step] for step in sorted(rows)]
    tags = dict.fromkeys(tag for row in in_order for tag in row if tag not in ("steps", "iteration"))
    columns = {tag: np.array([number_in(row.get(tag)) for row in in_order]) for tag in tags}
    nonfinite = {tag: sum(tag in row for row in in_order) - int(np.isfinite(columns[tag]).sum()) for tag in tags}
    return _history(np.array(sorted(rows), dtype=np.int64), columns, nonfinite)


def _from_points(points: dict[str, Points]) -> History:
    at = {tag: np.frombuffer(tagged.steps, dtype=np.int64) for tag, tagged in points.items()}
    steps = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *at.values()]))
    columns, nonfinite = {}, {}
    for tag, tagged in points.items():
        values = np.frombuffer(tagged.values, dtype="<f4").astype(np.float64)
        columns[tag] = np.full(len(steps), math.nan)
        columns[tag][np.searchsorted(steps, at[tag])] = values
        nonfinite[tag] = int((~np.isfinite(values)).sum())
    return _history(steps, columns, nonfinite)


def _history(steps: NDArray[np.int64], columns: dict[str, Column], nonfinite: dict[str, int]) -> History:
    for column in columns.values():
        column[~np.isfinite(column)] = math.nan
    return History(steps, columns, {tag: count for tag, count in nonfinite.items() if count})


def config_of(folder: Path) -> TrainConfig | None:
    """The run's configuration; none where there is none that this version, without plug-ins, can read."""
    try:
        return read_config(folder / "config.yaml")
    except ConfigError:
        return None


_MEANINGS = {
    2: "a setting was refused",
    3: "the environment failed",
    4: "the update stayed non-finite",
    5: "a checkpoint",
    6: "the disk",
    129: "stopped by SIGHUP",
    130: "stopped by SIGINT",
    143: "stopped by SIGTERM",
}


def state_of(folder: Path) -> str:
    """How the run ended: `result.json` is written last, and only by a run that finished."""
    if (folder / "result.json").is_file():
        return "finished"
    try:
        metadata = json.loads((folder / "metadata.json").read_text())
        status, end = metadata["exit_status"], metadata["end"]
    except (OSError, ValueError, KeyError, TypeError):
        return "state unknown"
    if end is None:
        return "running, or killed"
    if status in (129, 130, 143):
        return _MEANINGS[status]
    return f"failed: exit status {status}" + (f", {_MEANINGS[status]}" if status in _MEANINGS else "")
