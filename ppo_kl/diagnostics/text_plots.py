"""Curves in characters: a line of blocks, and a small chart of a number against its band."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCKS = "▁▂▃▄▅▆▇█"
DECADES = 3.0
"""A chart reaches no further below its top, so that a KL of almost 0 does not press the rest together."""


class Cell(NamedTuple):
    """A character of a chart, and where it lies: above, in or below the band, or nowhere."""

    character: str
    place: str


def binned(values: NDArray[np.float64], width: int) -> list[NDArray[np.float64]]:
    """The finite values of at most `width` stretches of equal length; a stretch may be empty."""
    parts = np.array_split(values, max(min(width, len(values)), 1))
    return [part[np.isfinite(part)] for part in parts]


def sparkline(
    values: NDArray[np.float64], width: int, low: float | None = None, high: float | None = None, log: bool = False
) -> str:
    """One block per stretch, as high as the mean of its values; a space where there are none.

    Args:
        values: `[U]`.
        width: most characters.
        low: what the lowest block stands for; none: the smallest of the means.
        high: what the highest stands for.
        log: on a logarithmic scale; then values that are not positive do not count.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.log(np.where(values > 0, values, np.nan)) if log else values
    means = [float(part.mean()) if len(part) else math.nan for part in binned(scaled, width)]
    known = [mean for mean in means if not math.isnan(mean)]
    if not known:
        return ""
    low, high = (min(known) if low is None else low), (max(known) if high is None else high)
    span = (high - low) or 1.0
    top = len(BLOCKS) - 1
    return "".join(" " if math.isnan(m) else BLOCKS[min(max(round((m - low) / span * top), 0), top)] for m in means)


class Scale(NamedTuple):
    """Rows of a chart on a logarithmic scale; row 0 is the top."""

    low: float
    high: float
    height: int

    def row(self, value: float) -> int:
        """Where a value lies; what is off the scale lies on its edge."""
        if value <= self.low:
            return self.height - 1
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.height - 1 - min(max(round(share * (self.height - 1)), 0), self.height - 1)

    def value(self, row: int) -> float:
        """What the middle of a row stands for."""
        return float(self.low * (self.high / self.low) ** ((self.height - 1 - row) / (self.height - 1)))


def scale_for(values: NDArray[np.float64], height: int, *also: float) -> Scale | None:
    """A scale from the smallest to the largest positive number, or three decades down from it; None without one.

    Args:
        values: `[U]`.
        height: rows, at least 2.
        also: what must be on it too, positive.
    """
    positive = [*values[np.isfinite(values) & (values > 0)], *also]
    if not positive:
        return None
    high = max(positive) * 1.05
    low = min(max(min(positive), high / 10**DECADES), *also, high) / 1.05
    return Scale(low, high, height)


def chart(
    values: NDArray[np.float64],
    width: int,
    scale: Scale,
    band: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> list[list[Cell]]:
    """Rows of cells: ● the median of a stretch of updates, │ its quartiles, ╌ the edges of the band.

    Args:
        values: `[U]`.
        width: most columns.
        scale: of the rows.
        band: lower and upper edge, `[U]` each.
    """
    stretches = binned(values, width)
    rows = [[Cell(" ", "")] * len(stretches) for _ in range(scale.height)]
    edges = None if band is None else [[float(part.mean()) for part in binned(edge, width)] for edge in band]
    for x, stretch in enumerate(stretches):
        low, high = (0.0, math.inf) if edges is None else (edges[0][x], edges[1][x])
        if edges is not None:
            for edge in (low, high):
                rows[scale.row(edge)][x] = Cell("╌", "edge")
        if not len(stretch):
            continue
        bottom, middle, top = np.quantile(stretch, (0.25, 0.5, 0.75))
        place = "above" if middle > high else "below" if middle < low else "in"
        for y in range(scale.row(top), scale.row(bottom) + 1):
            rows[y][x] = Cell("│", place)
        rows[scale.row(middle)][x] = Cell("●", place)
    return rows
