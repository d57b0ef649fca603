"""Where metrics go: TensorBoard, JSON lines. Both take numbers that were read from the device once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

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
            kept = [line for line in path.read_text().splitlines() if _steps_of(line) <= resumed_at]
            path.write_text("".join(line + "\n" for line in kept))
        self._file = path.open("a")

    def write(self, steps: int, iteration: int, metrics: dict[str, float]) -> None:
        """One iteration, at environment step `steps`."""
        finite = {tag: value if math.isfinite(value) else None for tag, value in metrics.items()}
        self._file.write(json.dumps({"steps": steps, "iteration": iteration, **finite}) + "\n")
        self._file.flush()

    def close(self, finished: bool) -> None:  # noqa: ARG002
        """Close the file."""
        self._file.close()


def _steps_of(line: str) -> float:
    """Environment steps of a line; a line that was torn when the run was killed counts as later than any."""
    try:
        return float(json.loads(line)["steps"])
    except (ValueError, KeyError, TypeError):
        return math.inf
