"""The rows of a `metrics.jsonl`, read one way everywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
"""The file's name in a run's folder."""


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows, as they were written; a line that is none, as one that was torn when the run was killed, is left out.

    Raises:
        OSError: the file cannot be read.
    """
    rows = map(row_in, path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [row for row in rows if row is not None]


def row_in(line: str | bytes) -> dict[str, Any] | None:
    """The row in a line; none where it is no object with a whole number of steps."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("steps")) is int else None


def number_in(value: Any) -> float:
    """A row's number; NaN for what is none, or too large to be one."""
    try:
        return float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:
        return math.nan


def finite_in(rows: Iterable[dict[str, Any]], tag: str) -> list[float]:
    """The tag's finite numbers, of the rows that have one."""
    return [number for row in rows if math.isfinite(number := number_in(row.get(tag)))]
