"""Where metrics go: TensorBoard, JSON lines. Both take numbers that were read from the device once."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ppo_kl.atomic import write_atomically
from ppo_kl.config import TrainConfig
from ppo_kl.diagnostics.dashboard import LAYOUT, hparam_summaries


class TensorBoardWriter:
    """Scalars over environment steps, the KL layout and the run's settings, in one event file.

    Args:
        folder: the run's.
        config: the run's.
        resumed_at: environment steps from which the run goes on; later points of an earlier part disappear.
    """

    def __init__(self, folder: Path, config: TrainConfig, resumed_at: int | None = None) -> None:
        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)
        experiment, start, self._session_end = hparam_summaries(config)
        self._writer.add_custom_scalars(LAYOUT)
        self._add(experiment)
        self._add(start)

    def _add(self, summary: Any) -> None:
        self._writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]

    def write(self, steps: int, iteration: int, metrics: dict[str, float]) -> None:  # noqa: ARG002
        """One iteration, at environment step `steps`."""
        for tag, value in metrics.items():
            self._writer.add_scalar(tag, value, steps)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        """Close the file; a finished run is marked so."""
        if finished:
            self._add(self._session_end)
        self._writer.close()


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

    def write(self, steps: int, iteration: int, metrics: dict[str, float]) -> None:
        """One iteration, at environment step `steps`.

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


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, as they were written; a line that was torn when the run was killed is left out."""
    rows = (_row(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [row for row in rows if row is not None]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("steps"), int) else None
