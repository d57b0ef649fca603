"""Several runs as curves on top of each other. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ppo_kl.diagnostics import canvas
from ppo_kl.diagnostics.canvas import COLOURS, GREY, TONES
from ppo_kl.diagnostics.history import Column
from ppo_kl.diagnostics.story import Story, kl_of

MEAN_POINTS = 200
SMALLEST = 1e-9
"""Nats; a KL of 0 is drawn here, off the axis' lower end."""


class Curve(NamedTuple):
    """A run's finite values over environment steps, `[K]` each."""

    steps: NDArray[np.float64] | NDArray[np.int64]
    values: Column


def draw_several(stories: Sequence[Story]) -> Figure:
    """Return, KL and λ over steps, a column for each environment, a colour for each objective, a line for each seed."""
    figure, envs = canvas.figure(), list(dict.fromkeys(story.run.env for story in stories))
    objectives = sorted({story.run.objective for story in stories})
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(objectives)}
    rows = (_overlay_return, _overlay_kl, _overlay_lambda)
    for x, env in enumerate(envs):
        for y, row in enumerate(rows):
            axes = figure.add_subplot(len(rows), len(envs), y * len(envs) + x + 1)
            canvas.style(axes)
            of_env = [story for story in stories if story.run.env == env]
            axes.set_xlim(0, max(story.run.history.steps[-1] for story in of_env))
            row(axes, of_env, colour)
            if y == 0 and len(envs) > 1:
                canvas.name(axes, f"{env}: {axes.get_title(loc='left')}")
    names = [f"{name} ({sum(s.run.objective == name for s in stories)})" for name in objectives]
    lines = [Line2D([], [], color=colour[name], linewidth=2.5) for name in objectives]
    figure.legend(lines, names, loc="lower center", ncols=min(len(names), 7), frameon=False, fontsize=12)
    env = envs[0] if len(envs) == 1 else f"{len(envs)} environments"
    thick = "Thin: a run. Thick: mean of an objective's runs, as far as all of them reach. In brackets: how many."
    canvas.title(figure, f"{env} · {len(stories)} runs", [thick], TONES["note"])
    figure.subplots_adjust(top=0.87)
    return figure


def _overlay_return(axes: Any, stories: Sequence[Story], colour: dict[str, str]) -> None:
    canvas.name(axes, "Return, last 100 episodes")
    _overlay(axes, stories, colour, lambda story: story.run.history.column("rollout/return_last100"))


def _overlay_kl(axes: Any, stories: Sequence[Story], colour: dict[str, str]) -> None:
    canvas.name(axes, "KL of an update, nats, smoothed; dashed: targets")
    targets = {story.tracking.target for story in stories if story.tracking is not None}
    canvas.logarithmic(axes, np.concatenate([_smooth_kl(story) for story in stories]))
    _overlay(axes, stories, colour, _smooth_kl)
    for target in targets:
        axes.axhline(target, color=GREY, linewidth=1, linestyle="--")


def _smooth_kl(story: Story) -> Column:
    return np.maximum(canvas.smooth(kl_of(story.run.history)), SMALLEST)


def _overlay_lambda(axes: Any, stories: Sequence[Story], colour: dict[str, str]) -> None:
    steered = [story for story in stories if story.steering is not None]
    canvas.name(axes, "λ, the weight of the penalty" + ("" if steered else ": 0 in all of them"))
    if steered:
        canvas.logarithmic(axes, np.concatenate([_lambda(story) for story in steered]), decades=30)
        _overlay(axes, steered, colour, _lambda)


def _lambda(story: Story) -> Column:
    return story.run.history.column("penalty/lambda")


def _overlay(axes: Any, stories: Sequence[Story], colour: dict[str, str], column: Callable[[Story], Column]) -> None:
    """A thin line per run and a thick one per objective with several: their mean where all of them are."""
    for name in dict.fromkeys(story.run.objective for story in stories):
        of_objective = [story for story in stories if story.run.objective == name]
        curves = [curve for story in of_objective if len((curve := _known(story, column(story))).steps)]
        for steps, values in curves:
            axes.plot(steps, values, color=colour[name], linewidth=1.6 if len(curves) == 1 else 0.9, alpha=0.75)
        if len(curves) > 1:
            steps, values = mean_of(curves, logarithmic=axes.get_yscale() == "log")
            axes.plot(steps, values, color=colour[name], linewidth=2.8)


def _known(story: Story, column: Column) -> Curve:
    there = np.isfinite(column)
    return Curve(story.run.history.steps[there], column[there])


def mean_of(curves: Sequence[Curve], logarithmic: bool) -> Curve:
    """Mean over runs, which need not share their steps: between its points a run is a straight line.

    Args:
        curves: of at least one point each.
        logarithmic: the geometric mean, for positive values.

    Returns:
        From where the last one begins to where the first one ends; no point where they do not overlap.
    """
    begin, end = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    if begin > end:
        return Curve(np.zeros(0), np.zeros(0))
    steps = np.linspace(begin, end, MEAN_POINTS)
    values = [np.interp(steps, s, np.log(v) if logarithmic else v) for s, v in curves]
    mean = np.mean(values, axis=0)
    return Curve(steps, np.exp(mean) if logarithmic else mean)
