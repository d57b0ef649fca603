"""The lines that `run.py` wrote, as what a table or a plot shows of them."""

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

Row = dict[str, Any]
BASE = "sb3"
"""Whom the others are compared with."""


class Spread(NamedTuple):
    """Of the repeats of one contestant."""

    median: float
    low: float
    high: float


def read(paths: Iterable[Path]) -> list[Row]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def by_contestant(rows: list[Row], workload: str) -> dict[str, list[Row]]:
    """The workload's rows by name, fastest first, those that all failed last."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["workload"] == workload:
            found.setdefault(row["peer"], []).append(row)

    def speed(name: str) -> float:
        speeds = spread(found[name], "steps_per_s")
        return -speeds.median if speeds else 0.0

    return {name: found[name] for name in sorted(found, key=speed)}


def spread(rows: list[Row], key: str) -> Spread | None:
    """Median, least and most of what the runs that did not fail say; none where none says it."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return Spread(median(values), min(values), max(values)) if values else None


def ratio(rows: list[Row], base: list[Row], key: str = "steps_per_s") -> float | None:
    """Median over the repeats of the ratio to `base` in the same repeat: what slows both down falls out."""
    by_repeat = {row["repeat"]: row[key] for row in base if row.get(key) is not None}
    ratios = [
        row[key] / by_repeat[row["repeat"]] for row in rows if row.get(key) is not None and row["repeat"] in by_repeat
    ]
    return median(ratios) if ratios else None
