"""The story of one run, or of several side by side, as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ppo_kl.diagnostics.facts import facts_of
from ppo_kl.diagnostics.history import Column
from ppo_kl.diagnostics.story import Story, band_of, finite, kl_of
from ppo_kl.diagnostics.text_plots import chart, scale_for, sparkline
from ppo_kl.diagnostics.verdict import Finding, judge

HEIGHT, WIDEST = 11, 110
"""Rows of the chart, and its most columns with its labels."""
STYLES = {"bad": "bold red", "watch": "bold yellow", "note": "cyan", "well": "bold green"}
MARKS = {"bad": "✗", "watch": "!", "note": "·", "well": "✓"}
PLACES = {"above": "red", "in": "green", "below": "blue", "edge": "dim", "": ""}


def show(console: Console, story: Story) -> None:
    """One run: what it was, the verdict, its KL as a chart, and the numbers."""
    run = story.run
    console.print(Text(f"{run.env} · {run.objective} · seed {run.seed}", style="bold"))
    console.print(Text(f"{run.state}, {_length(story)}"))
    console.print(Text(f"{run.folder}", style="dim"), soft_wrap=True)
    console.print()
    for finding in judge(story):
        console.print(_told(finding))
    console.print()
    _print_chart(console, story)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for name, text in facts_of(story):
        facts.add_row(name, Text(text))
    console.print(facts)


def show_several(console: Console, stories: Sequence[Story]) -> None:
    """A table with a row per run, an objective's seeds together, and each run's verdict below it."""
    for env in dict.fromkeys(story.run.env for story in stories):
        of_env = sorted(
            (s for s in stories if s.run.env == env), key=lambda s: (s.run.objective, _by_number(s.run.seed))
        )
        console.print(Text(f"{env}: {len(of_env)} run{'s' if len(of_env) > 1 else ''}", style="bold"))
        console.print(_comparison(of_env))
        console.print()
        for story in of_env:
            finding = judge(story)[0]
            mark = (f"{MARKS[finding.level]} ", STYLES[finding.level])
            name = (f"{story.run.objective} seed {story.run.seed}: ", "bold")
            console.print(Text.assemble(mark, name, finding.sentence))
        console.print()
    console.print(Text(LEGEND, style="dim"))
    console.print(Text("ppo-kl inspect RUN with one of them says more.", style="dim"))


def _told(finding: Finding) -> Table:
    mark = Text(f"{MARKS[finding.level]} ", style=STYLES[finding.level])
    grid = Table.grid()
    style = "" if finding.level == "note" else "bold"
    grid.add_row(mark, Text(finding.sentence, style=style))
    grid.add_row("", Text(f"→ {finding.advice}"))
    return grid


def _length(story: Story) -> str:
    steps, config = int(story.run.history.steps[-1]), story.run.config
    of = f" of {config.total_steps:,}" if config is not None and steps < config.total_steps else ""
    return f"{steps:,}{of} steps in {story.updates:,} updates"


def _print_chart(console: Console, story: Story) -> None:
    history = story.run.history
    kl, band = kl_of(history), band_of(history)
    width = min(console.width, WIDEST) - 11
    edges = [] if band is None else [float(edge) for column in band[1:] for edge in (column.min(), column.max())]
    scale = scale_for(kl, HEIGHT, *edges)
    if scale is None:
        return
    labels = {y: f"{scale.value(y):.1g}" for y in range(0, HEIGHT, 2 if band is None else HEIGHT - 1)}
    if band is not None:
        labels |= {scale.row(float(edge[-1])): f"{edge[-1]:.2g}" for edge in band[1:]}
    ends = "" if band is None else ", ╌ target band"
    console.print(Text(f"KL of the updates, nats (log scale): ● median, │ quartiles{ends}", style="bold"))
    rows = chart(kl, width, scale, None if band is None else band[1:])
    for y, row in enumerate(rows):
        line = Text(f"{labels[y]:>9} ┤" if y in labels else f"{'':9} │", style="dim")
        for cell in row:
            line.append(cell.character, style=PLACES[cell.place])
        console.print(line, no_wrap=True)
    ticks = f"{history.steps[-1]:,} steps"
    console.print(Text(f"{'':9} └{'─' * len(rows[0])}", style="dim"), no_wrap=True)
    console.print(Text(f"{'':11}0{ticks:>{max(len(rows[0]) - 1, len(ticks) + 1)}}", style="dim"), no_wrap=True)
    for name, tag, log in CURVES:
        column = history.column(tag)
        if len(set(finite(column))) > 1:
            console.print(Text(f"{name:>9}  {sparkline(column, width, log=log)}"), no_wrap=True)
    console.print()


CURVES = (
    ("return", "rollout/return_last100", False),
    ("λ (log)", "penalty/lambda", True),
    ("clipped", "ratio/clip_fraction", False),
    ("entropy", "policy/entropy", False),
)
"""Sparklines below the chart, on its x-axis: name, tag, whether on a logarithmic scale."""


def _comparison(stories: Sequence[Story]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("objective", style="bold", overflow="fold")
    for name, align in COMPARED:
        table.add_column(name, justify=align, no_wrap=True)
    curves = [finite(s.run.history.column("rollout/return_last100")) for s in stories]
    low, high = _extent(curves)
    before = None
    for story, curve in zip(stories, curves, strict=True):
        r, t, s = story.returns, story.tracking, story.steering
        clipped = finite(story.run.history.column("ratio/clip_fraction"))
        table.add_row(
            "" if story.run.objective == before else story.run.objective,
            story.run.seed,
            _short(float(story.run.history.steps[-1])),
            "" if r is None else f"{r.last:.4g}",
            sparkline(curve, 8, low, high),
            _small(story.kl.median),
            "" if t is None else f"{t.ratio:.2f}",
            "" if t is None else f"{t.inside:.0%}",
            "0" if s is None else _small(s.last),
            f"{clipped.mean():.0%}" if len(clipped) else "",
        )
        before = story.run.objective
    return table


COMPARED: tuple[tuple[str, Literal["left", "right"]], ...] = (
    ("seed", "right"),
    ("steps", "right"),
    ("return", "right"),
    ("learning", "left"),
    ("KL", "right"),
    ("/target", "right"),
    ("inside", "right"),
    ("λ", "right"),
    ("clip", "right"),
)
"""Columns behind the objective."""
LEGEND = (
    "KL and KL / target: medians; inside: updates in the target band; λ: the last; clip: mean share of clipped samples"
)


def _small(number: float) -> str:
    """0.0034 as it is, 0.000034 as 3e-05: six characters at most."""
    return f"{number:.2g}" if number == 0 or 1e-3 <= number < 1e4 else f"{number:.0e}"


def _short(number: float) -> str:
    """60,160 as 60k, 1,500,000 as 1.5M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.0f}"


def _extent(curves: Iterable[Column]) -> tuple[float, float]:
    """One scale for all, so that they can be compared."""
    known = np.concatenate([*curves, np.zeros(0)])
    return (float(known.min()), float(known.max())) if len(known) else (math.nan, math.nan)


def _by_number(seed: str) -> tuple[int, str]:
    return (int(seed), "") if seed.isdecimal() else (2**64, seed)
