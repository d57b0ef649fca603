"""Where metrics go: JSON lines. It takes numbers that were read from the device once, as TensorBoard's writer does."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ppo_kl.atomic import write_atomically
from ppo_kl.diagnostics.histograms import Histogram
from ppo_kl.diagnostics.rows import rows_of

NO_HISTOGRAMS: Mapping[str, Histogram] = {}


class Writer(Protocol):
    """Where the metrics of a run go."""

    def write(
        self, steps: int, iteration: int, metrics: dict[str, float], histograms: Mapping[str, Histogram] = NO_HISTOGRAMS
    ) -> None:
        """One iteration, at environment step `steps`."""

    def close(self, finished: bool) -> None:
        """The run is over, for now or for good."""


class JsonLinesWriter:
    """One JSON object per iteration; numbers that are not finite become null, as JSON knows no other word for them.

    Args:
        path: `metrics.jsonl` of the run.
        resumed_at: as `TensorBoardWriter`.
    """

    def __init__(self, path: Path, resumed_at: int | None = None) -> None:
        if resumed_at is not None and path.exists():
            kept = [json.dumps(row) + "\n" for row in rows_of(path) if row["steps"] <= resumed_at]
            write_atomically(path, lambda file: file.write("".join(kept).encode()))
        self._path, self._file = path, path.open("a")

    def write(
        self,
        steps: int,
        iteration: int,
        metrics: dict[str, float],
        histograms: Mapping[str, Histogram] = NO_HISTOGRAMS,  # noqa: ARG002
    ) -> None:
        """One iteration, at environment step `steps`; histograms are TensorBoard's alone.

        Raises:
            OSError: the disk refused it, or the file is gone from its folder, where nobody would find the line.
        """
        finite = {tag: value if math.isfinite(value) else None for tag, value in metrics.items()}
        self._file.write(json.dumps({"steps": steps, "iteration": iteration, **finite}) + "\n")
        self._file.flush()
        if not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
            raise FileNotFoundError(errno.ENOENT, "replaced while the run writes to it", str(self._path))

    def close(self, finished: bool) -> None:  # noqa: ARG002
        """Close the file."""
        self._file.close()
