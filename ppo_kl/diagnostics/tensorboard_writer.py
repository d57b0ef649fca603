"""The event file of a run, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from torch.utils.tensorboard import SummaryWriter

from ppo_kl.config import TrainConfig
from ppo_kl.diagnostics.dashboard import LAYOUT, hparam_summaries
from ppo_kl.diagnostics.glossary import metric_of
from ppo_kl.diagnostics.histograms import Histogram
from ppo_kl.diagnostics.writers import NO_HISTOGRAMS
from ppo_kl.load import to_yaml


class TensorBoardWriter:
    """Scalars and histograms over environment steps, the KL layout and the run's settings, in one event file.

    Each tag is described there in the words of the glossary.

    Args:
        folder: the run's.
        config: the run's.
        resumed_at: environment steps from which the run goes on; later points of an earlier part disappear.
    """

    def __init__(self, folder: Path, config: TrainConfig, resumed_at: int | None = None) -> None:
        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)
        experiment, start, self._session_end = hparam_summaries(config)
        self._described: set[str] = set()
        self._writer.add_custom_scalars(LAYOUT)
        # Markdown shows four spaces as a block of code, whatever stands in it.
        self._writer.add_text("config", "\n".join(f"    {line}" for line in to_yaml(config).splitlines()))
        self._add(experiment)
        self._add(start)

    def _add(self, summary: Any, steps: int | None = None) -> None:
        self._writer._get_file_writer().add_summary(summary, steps)  # type: ignore[no-untyped-call]

    def write(
        self,
        steps: int,
        iteration: int,  # noqa: ARG002
        metrics: dict[str, float],
        histograms: Mapping[str, Histogram] = NO_HISTOGRAMS,
    ) -> None:
        """One iteration, at environment step `steps`."""
        values = [
            Summary.Value(tag=tag, simple_value=x, metadata=self._described_once(tag)) for tag, x in metrics.items()
        ]
        self._add(Summary(value=values), steps)
        for tag, (edges, counts) in histograms.items():
            self._writer.add_histogram_raw(
                tag,
                min=edges[0],
                max=edges[-1],
                num=sum(counts),
                sum=sum(n * (a + b) / 2 for n, a, b in zip(counts, edges, edges[1:], strict=False)),
                sum_squares=sum(n * (a + b) ** 2 / 4 for n, a, b in zip(counts, edges, edges[1:], strict=False)),
                bucket_limits=edges[1:],
                bucket_counts=counts,
                global_step=steps,
            )
        self._writer.flush()

    def _described_once(self, tag: str) -> SummaryMetadata | None:
        """What the first point of a tag says about it: TensorBoard shows it beside the chart's title."""
        metric = metric_of(tag)
        if metric is None or tag in self._described:
            return None
        self._described.add(tag)
        return SummaryMetadata(summary_description=f"{metric.meaning} [{metric.unit}; θ: {metric.theta}]")

    def close(self, finished: bool) -> None:
        """Close the file; a finished run is marked so."""
        if finished:
            self._add(self._session_end)
        self._writer.close()
