"""Writing beside the training: it waits for no disk, and hears of a failure by its next iteration."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from ppo_kl.diagnostics.histograms import Histogram
from ppo_kl.diagnostics.writers import NO_HISTOGRAMS, Writer


class InBackground:
    """A writer at work in a thread of its own, one iteration behind at most.

    Args:
        writer: is called from that thread alone.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, "writer")
        self._under_way: Future[None] | None = None

    def write(
        self, steps: int, iteration: int, metrics: dict[str, float], histograms: Mapping[str, Histogram] = NO_HISTOGRAMS
    ) -> None:
        """Hand over one iteration, as it is now.

        Raises:
            Exception: what the writing of the iteration before it raised.
        """
        self._wait()
        self._under_way = self._thread.submit(self._writer.write, steps, iteration, dict(metrics), dict(histograms))

    def _wait(self) -> None:
        """Until what was handed over is written; raises what that raised, once."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def close(self, finished: bool) -> None:
        """Write what is left, and close the writer, also where that fails.

        Raises:
            Exception: what the last writing raised, or the closing.
        """
        try:
            self._wait()
        except BaseException:
            finished = False
            raise
        finally:
            self._thread.shutdown()
            self._writer.close(finished)
