"""The paper that runs are drawn on: colours, axes, titles. Needs matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from ppo_kl.diagnostics.history import Column, History
from ppo_kl.diagnostics.story import finite

# Okabe and Ito's colours: told apart by the colour-blind.
BLUE, ORANGE, GREEN, PINK, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
BLACK, GREY = "#000000", "#777777"
COLOURS = (BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK)
TONES = {"bad": "#A33B00", "watch": "#7A5200", "note": "#222222", "well": "#006B4F"}
"""Of the verdict, by its level."""
SMOOTHING = 40
"""A curve is smoothed over one part in so many of its updates."""
SIZE, DPI = (14.0, 9.0), 100


def figure() -> Figure:
    """An empty page with room for a heading of two or three lines."""
    page = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
    page.subplots_adjust(left=0.06, right=0.97, top=0.82, bottom=0.08, hspace=0.42, wspace=0.14)
    return page


def title(page: Figure, text: str, below: Sequence[str], colour: str) -> None:
    """The page's heading, and sentences below it in a colour."""
    page.text(0.03, 0.98, text, fontsize=18, fontweight="bold", va="top")
    lines = "\n".join(textwrap.fill(sentence, 140) for sentence in below)
    page.text(0.03, 0.943, lines, fontsize=14, va="top", color=colour, linespacing=1.3)


def name(axes: Any, text: str) -> None:
    """What a panel shows."""
    axes.set_title(text, loc="left", fontsize=14)


def style(axes: Any) -> None:
    """A panel over environment steps: a light grid, two axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=12)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def logarithmic(axes: Any, values: Column, also: Sequence[float] = (), decades: int = 4) -> None:
    """A logarithmic y-axis with plain numbers; as it was where there is nothing positive to show.

    Args:
        axes: before anything is drawn on it.
        values: what will be drawn.
        also: what must be on it too, positive.
        decades: values further below the largest are left out.
    """
    known = np.array([*finite(values), *also])
    known = known[known > 0]
    if not len(known):
        return
    high = float(known.max()) * 1.6
    low = min(max(float(known.min()), high / 10**decades), *also, high) / 1.6
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    if high < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend(axes: Any) -> None:
    """Above the panel at the right, where it hides nothing."""
    if axes.get_legend_handles_labels()[0]:
        place = {"loc": "lower right", "bbox_to_anchor": (1.01, 0.96), "borderaxespad": 0.3}
        thin = {"ncols": 5, "frameon": False, "handlelength": 1.0, "handletextpad": 0.3, "columnspacing": 0.7}
        axes.legend(fontsize=11, **place, **thin)


def line(axes: Any, history: History, tag: str, **look: Any) -> None:
    """A metric over steps, its gaps closed."""
    column = history.column(tag)
    there = np.isfinite(column)
    axes.plot(history.steps[there], column[there], **look)


def smooth(values: Column, parts: int = SMOOTHING) -> Column:
    """Median of each value and its neighbours, over one part in `parts` of the whole; NaN where none is finite."""
    half = max(len(values) // parts // 2, 1)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, half, constant_values=np.nan), 2 * half + 1)
    smoothed = np.full(len(values), np.nan)
    there = np.isfinite(windows).any(axis=1)
    smoothed[there] = np.nanmedian(windows[there], axis=1)
    return smoothed
