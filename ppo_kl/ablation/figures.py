"""The figures of a report. Needs matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from ppo_kl.ablation.numbers import Numbers
from ppo_kl.ablation.result import Result
from ppo_kl.ablation.statistics import AGGREGATES, Scores, iqm, performance_profile
from ppo_kl.ablation.study import Study, curve
from ppo_kl.diagnostics.canvas import BLUE, GREEN, ORANGE, PINK, RED, SKY

INK, PAPER, GRID = "#010203", "#fefdfc", "#0a0b0c"
"""Stand-ins, each for what a page has in its place: text, background and grid follow its colours, light or dark."""
ON_PAPER = {INK: "#222222", PAPER: "#ffffff", GRID: "#dddddd"}
ON_PAGE = {INK: "currentColor", PAPER: "none", GRID: "var(--grid)"}
COLOURS = (BLUE, RED, GREEN, ORANGE, PINK, SKY, "#8C6D31", "#7F7FBF", "#999999", "#B0413E", "#3E7C7B", "#C49C00")
"""Of arms; seen on white and on black."""
MARKS = "osD^vP<>Xph"
"""One fewer than colours, so that no two of many arms look alike."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "svg.hashsalt": "ppo-kl",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "legend.frameon": False,
}
WIDTH, COLUMN = 11.0, 3


def drawn(study: Study, numbers: Numbers) -> dict[str, tuple[str, str]]:
    """Every figure that there is something for: name -> its title, and it as SVG with stand-ins for its colours."""
    found = {}
    with mpl.rc_context(STYLE):
        for name, (title, draw) in FIGURES.items():
            figure = draw(study, numbers)
            if figure is not None:
                found[name] = title, svg_of(figure)
    return found


def svg_of(figure: Figure) -> str:
    """Without a date, so that the same study makes the same file."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return text.getvalue()


def coloured(svg: str, colours: dict[str, str]) -> str:
    """With real colours in the place of the stand-ins."""
    for stand_in, colour in colours.items():
        svg = svg.replace(stand_in, colour)
    return svg


def save_png(study: Study, numbers: Numbers, name: str, path: Any) -> None:
    """A figure as PNG, on white."""
    style = {key: ON_PAPER.get(str(value), value) for key, value in STYLE.items()}
    with mpl.rc_context(style):
        figure = FIGURES[name][1](study, numbers)
        if figure is not None:
            figure.savefig(path, dpi=150, metadata={"Software": None}, bbox_inches="tight")


def _looks(study: Study) -> dict[str, dict[str, Any]]:
    """Colour and mark of each arm, the same in all figures."""
    return {
        arm: {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]} for i, arm in enumerate(study.arms)
    }


def _panels(count: int, width: float = WIDTH, height: float = 2.9) -> tuple[Figure, list[Any]]:
    columns = columns_of(count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width if columns > 1 else width / 2, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def columns_of(count: int) -> int:
    """Of so many panels: two where that leaves no gap and three would."""
    return 2 if count in (2, 4) else min(count, COLUMN)


def _legend(figure: Figure, handles: dict[str, Any]) -> None:
    if len(handles) > 1:
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=min(len(handles), 6))


def _intervals(study: Study, numbers: Numbers) -> Figure | None:
    arms, looks = list(numbers.aggregates), _looks(study)
    if not arms:
        return None
    figure, panels = _panels(len(AGGREGATES), height=0.9 + 0.33 * len(arms))
    for k, (axes, name) in enumerate(zip(panels, AGGREGATES, strict=True)):
        for i, arm in enumerate(arms):
            found = numbers.aggregates[arm][name]
            axes.plot([found.low, found.high], [i, i], color=looks[arm]["color"], linewidth=6, alpha=0.4)
            axes.plot(found.estimate, i, linestyle="none", markersize=7, **looks[arm])
        axes.set_title(f"{name} ({'lower' if name == 'optimality gap' else 'higher'} is better)")
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_yticks(range(len(arms)), arms if k == 0 else [""] * len(arms))
        if name != "optimality gap":
            axes.axvline(1, color=_ink(), linewidth=1, linestyle="--")
    return figure


def _profile(study: Study, numbers: Numbers) -> Figure | None:
    arms, looks = list(numbers.aggregates), _looks(study)
    if not arms:
        return None
    every = np.concatenate([x for arm in arms for x in numbers.scores[arm].values()])
    low, high = np.quantile(every, [0.01, 0.99])
    thresholds = np.linspace(min(low, 0.0), max(high, 1.0), 200)
    figure, (axes,) = _panels(1, width=2 * 7.5, height=3.6)
    for arm in arms:
        share = performance_profile(numbers.scores[arm], thresholds)
        axes.plot(thresholds, share, color=looks[arm]["color"], linewidth=2, label=arm)
    axes.axvline(1, color=_ink(), linewidth=1, linestyle="--")
    axes.set_xlabel(f"score τ (1: the mean of {study.reference})")
    axes.set_ylabel("share of runs above τ")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.legend(fontsize=10, loc="best")
    return figure


def _efficiency(study: Study, numbers: Numbers) -> Figure | None:
    arms, looks = list(numbers.aggregates), _looks(study)
    if not arms:
        return None
    figure, (axes,) = _panels(1, width=2 * 7.5, height=3.6)
    for arm in arms:
        seeds = study.seeds_of(arm)
        scored = [
            numbers.scale[env](np.array(found[1]))
            for env in numbers.scale
            for result in study.of(arm, env)
            if result["seed"] in seeds and (found := curve(result)) is not None
        ]
        share = np.linspace(0, 1, len(scored[0]) + 1)[1:]
        axes.plot(share, iqm(np.array(scored).T), color=looks[arm]["color"], linewidth=2, label=arm)
    axes.axhline(1, color=_ink(), linewidth=1, linestyle="--")
    axes.set_xlabel("share of training done")
    axes.set_ylabel(f"score (1: {study.reference} at the end)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.legend(fontsize=10)
    return figure


def _returns(study: Study, numbers: Numbers) -> Figure | None:
    figure, panels = _panels(len(study.envs), height=0.9 + 0.3 * len(study.arms))
    looks = _looks(study)
    for k, (axes, env) in enumerate(zip(panels, study.envs, strict=True)):
        for i, arm in enumerate(study.arms):
            x = numbers.returns[arm].get(env)
            if x is None:
                continue
            axes.plot(x, np.full(len(x), i), linestyle="none", markersize=5, alpha=0.55, **looks[arm])
            spread = x.std(ddof=1) if len(x) > 1 else 0.0
            axes.errorbar(x.mean(), i + 0.28, xerr=spread, fmt="|", color=looks[arm]["color"], capsize=3, markersize=9)
        axes.set_title(env)
        axes.set_ylim(len(study.arms) - 0.4, -0.6)
        axes.set_yticks(
            range(len(study.arms)), study.arms if k % columns_of(len(study.envs)) == 0 else [""] * len(study.arms)
        )
    return figure


def _by_environment(study: Study, draw: Callable[[Any, list[Result], dict[str, Any]], Any]) -> tuple[Figure, list[Any]]:
    """A panel for each environment, with a legend for all.

    Args:
        study: whose runs are drawn.
        draw: draws the runs of an arm in its colour and mark; answers what the legend shows, none where nothing is.
    """
    figure, panels = _panels(len(study.envs))
    looks, handles = _looks(study), dict[str, Any]()
    for axes, env in zip(panels, study.envs, strict=True):
        for arm in study.arms:
            handle = draw(axes, study.of(arm, env), looks[arm])
            if handle is not None:
                handles[arm] = handle
        axes.set_title(env)
    _legend(figure, handles)
    return figure, panels


def _curves(study: Study, numbers: Numbers) -> Figure | None:  # noqa: ARG001
    def draw(axes: Any, runs: list[Result], look: dict[str, Any]) -> Any:
        curves = [found for result in runs if (found := curve(result)) is not None]
        if not curves:
            return None
        steps, y = np.array(curves[0][0]), np.array([returns for _, returns in curves])
        (line,) = axes.plot(steps, y.mean(0), color=look["color"], linewidth=1.8)
        if len(y) > 1:
            error = y.std(0, ddof=1) / math.sqrt(len(y))
            fill = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
            axes.fill_between(steps, y.mean(0) - error, y.mean(0) + error, **fill)
        return line

    figure, panels = _by_environment(study, draw)
    for axes in panels:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("environment steps")
    return figure


def _iso_kl(study: Study, numbers: Numbers) -> Figure | None:  # noqa: ARG001
    def draw(axes: Any, runs: list[Result], look: dict[str, Any]) -> Any:
        there = [(r["kl"]["median"], r["return"]) for r in runs if r["return"] is not None and r["kl"]["median"]]
        there = [(kl, score) for kl, score in there if kl > 0]
        if not there:
            return None
        kl, score = map(np.array, zip(*there, strict=True))
        axes.plot(kl, score, linestyle="none", markersize=5, alpha=0.5, **look)
        middle = float(np.exp(np.log(kl).mean())), float(score.mean())
        (mark,) = axes.plot(*middle, linestyle="none", markersize=10, markeredgecolor=_ink(), **look)
        return mark

    figure, panels = _by_environment(study, draw)
    for axes in panels:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("median KL of an update, nats")
    panels[0].set_ylabel("return")
    return figure


def _steering(study: Study, numbers: Numbers) -> Figure | None:
    """What each controller does with the KL, and the λ that an arm's objective amounts to."""
    tables = [("|ln(KL / target)|: 0 is on target", numbers.tracking), ("λ that the arm amounts to", numbers.implied)]
    shown = [(title, {arm: t for arm, t in table.items() if t}) for title, table in tables]
    shown = [(title, table) for title, table in shown if table]
    if not shown:
        return None
    looks = _looks(study)
    most = max(len(table) for _, table in shown)
    figure = Figure(figsize=(WIDTH, 0.9 + 0.33 * most), layout="constrained")
    for axes, (title, table) in zip(figure.subplots(1, len(shown), squeeze=False).flat, shown, strict=True):
        if title.startswith("λ"):  # before anything is drawn: margins are those of the scale
            axes.set_xscale("symlog", linthresh=0.01)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for i, (arm, by_env) in enumerate(table.items()):
            x: Scores = np.concatenate(list(by_env.values()))
            axes.plot(x, np.full(len(x), i), linestyle="none", markersize=5, alpha=0.5, **looks[arm])
            axes.plot(np.median(x), i, linestyle="none", markersize=10, markeredgecolor=_ink(), **looks[arm])
        axes.set_title(title)
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_yticks(range(len(table)), list(table))
    return figure


def _ink() -> Any:
    """The colour of text in the style that holds."""
    return mpl.rcParams["text.color"]


FIGURES: dict[str, tuple[str, Callable[[Study, Numbers], Figure | None]]] = {
    "aggregates": ("Scores over all environments, with 95 % intervals", _intervals),
    "profile": ("Performance profile", _profile),
    "efficiency": ("Sample efficiency: IQM of the scores over training", _efficiency),
    "returns": ("Every run, and mean ± standard deviation", _returns),
    "curves": ("Learning curves: mean ± standard error", _curves),
    "iso_kl": ("Iso-KL: what a return cost in KL, one point per run", _iso_kl),
    "steering": ("How the KL was steered", _steering),
}
"""Name -> title, and what draws it; none where there is nothing to draw."""
NARROW = ("profile", "efficiency")
"""Of one panel."""
