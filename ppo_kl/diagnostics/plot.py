"""The story of one run as a picture of six panels. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ppo_kl.diagnostics import canvas
from ppo_kl.diagnostics.canvas import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, TONES
from ppo_kl.diagnostics.history import History
from ppo_kl.diagnostics.plot_several import draw_several
from ppo_kl.diagnostics.story import Story, band_of, bounds_of, finite, kl_of
from ppo_kl.diagnostics.verdict import judge
from ppo_kl.errors import ConfigError, OutputError


def save(stories: Sequence[Story], path: Path) -> None:
    """Draw one run's story, or several runs, into a file of the kind that its name says.

    Raises:
        ConfigError: matplotlib knows no such kind of file.
        OutputError: it cannot be written.
    """
    figure = draw(stories[0]) if len(stories) == 1 else draw_several(stories)
    kinds = figure.canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise ConfigError(
            f"{path}: cannot be drawn; give a name that ends in .png, or another of {', '.join(sorted(kinds))}"
        )
    try:
        figure.savefig(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error}; name a file in a folder that exists") from error


def draw(story: Story) -> Figure:
    """Six panels: return, KL in its band, λ, and what else the run measured; above them the verdict."""
    run, figure = story.run, canvas.figure()
    chosen = [panel for panel, there in PANELS if there(story)][:6]
    for i, panel in enumerate(chosen):
        axes = figure.add_subplot(3, 2, i + 1)
        canvas.style(axes)
        axes.set_xlim(0, run.history.steps[-1])
        panel(axes, story)
        if i >= len(chosen) - 2 and not axes.get_xlabel():
            axes.set_xlabel("environment steps", fontsize=12)
    finding = judge(story)[0]
    steps = f"{run.history.steps[-1]:,} steps, {run.state}"
    title = f"{run.env} · {run.objective} · seed {run.seed} · {steps}"
    canvas.title(figure, title, [finding.sentence, f"→ {finding.advice}"], TONES[finding.level])
    return figure


def _return(axes: Any, story: Story) -> None:
    history = story.run.history
    canvas.name(axes, "Return of an episode")
    canvas.line(axes, history, "rollout/return_mean", color=SKY, linewidth=0.8, alpha=0.8, label="each rollout")
    canvas.line(axes, history, "rollout/return_last100", color=BLUE, linewidth=2.2, label="last 100 episodes")
    evaluated = history.column("eval/return_mean")
    if len(finite(evaluated)):
        axes.plot(history.steps, evaluated, "o", color=BLACK, markersize=4, label="evaluation")
    canvas.legend(axes)


def _kl(axes: Any, story: Story) -> None:
    history, band, t = story.run.history, band_of(story.run.history), story.tracking
    kl = np.maximum(kl_of(history), 1e-9)
    canvas.name(axes, "KL of each update, nats")
    canvas.logarithmic(axes, kl, [] if band is None else [band[1].min(), band[2].max()])
    if band is None or t is None:
        axes.plot(history.steps, kl, ".", color=SKY, markersize=4)
        axes.axhline(story.kl.median, color=GREY, linewidth=1, linestyle="--", label=f"median {story.kl.median:.2g}")
    else:
        target, low, high = band
        axes.fill_between(history.steps, low, high, color=GREEN, alpha=0.18, linewidth=0)
        axes.plot(history.steps, target, color=GREEN, linewidth=1)
        shares = (("above", kl > high, RED, t.above), ("inside", (kl >= low) & (kl <= high), GREEN, t.inside))
        for name, there, colour, share in (*shares, ("below", kl < low, BLUE, t.below)):
            axes.plot(history.steps[there], kl[there], ".", color=colour, markersize=4, label=f"{name} {share:.0%}")
    axes.plot(history.steps, canvas.smooth(kl), color=BLACK, linewidth=1.5)
    canvas.legend(axes)


def _lambda(axes: Any, story: Story) -> None:
    history, bounds, s = story.run.history, bounds_of(story.run), story.steering
    kl_lambda = history.column("penalty/lambda")
    canvas.name(axes, "λ, the weight of the penalty")
    canvas.logarithmic(axes, kl_lambda, decades=30)
    axes.step(history.steps, kl_lambda, color=ORANGE, linewidth=1.8, where="post")
    if bounds is not None and s is not None:
        for name, bound, share in (("min", bounds[0], s.at_min), ("max", bounds[1], s.at_max)):
            if share > 0:
                axes.axhline(
                    bound,
                    color=RED,
                    linewidth=1.2,
                    linestyle="--",
                    label=f"at {name} {share:.0%}",
                )
    canvas.legend(axes)


def _clip(axes: Any, story: Story) -> None:
    history = story.run.history
    canvas.name(axes, "Samples outside the clip band (1 ± 0.2 where there is none)")
    axes.plot(history.steps, history.column("ratio/clip_fraction"), color=SKY, linewidth=0.8, alpha=0.8)
    axes.plot(history.steps, canvas.smooth(history.column("ratio/clip_fraction")), color=BLUE, linewidth=2)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))


def _profile(axes: Any, story: Story) -> None:
    history = story.run.history
    canvas.name(axes, "KL within an update, by epoch")
    tags = _epochs(history)
    axes.set_xlim(0.5, len(tags) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch", fontsize=12)
    third = max(len(history.steps) // 3, 1)
    for name, part, colour in (("first", slice(None, third), SKY), ("last", slice(-third, None), BLUE)):
        medians = [np.median(known) if len(known := finite(history.column(tag)[part])) else np.nan for tag in tags]
        axes.plot(range(1, len(tags) + 1), medians, "o-", color=colour, label=f"{name} third")
    canvas.legend(axes)


def _entropy(axes: Any, story: Story) -> None:
    history = story.run.history
    canvas.name(axes, "Entropy of the policy, nats")
    scale = finite(history.column("policy/scale_mean"))
    label = f"standard deviation {scale[0]:.2g} → {scale[-1]:.2g}" if len(scale) else None
    canvas.line(axes, history, "policy/entropy", color=PINK, linewidth=1.8, label=label)
    canvas.legend(axes)


def _share(axes: Any, story: Story) -> None:
    history = story.run.history
    share = np.maximum(history.column("penalty/share"), 1e-6)
    canvas.name(axes, "Penalty's share: |λ · penalty| / |surrogate|")
    canvas.logarithmic(axes, share, [1.0])
    axes.plot(history.steps, share, ".", color=SKY, markersize=4)
    axes.plot(history.steps, canvas.smooth(share), color=BLUE, linewidth=2)
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--")


def _ratio(axes: Any, story: Story) -> None:
    history = story.run.history
    canvas.name(axes, "Ratio π/π_old of the samples: smallest to largest")
    low, high = np.maximum(history.column("ratio/min"), 1e-4), history.column("ratio/max")
    canvas.logarithmic(axes, np.concatenate([low, high]), decades=8)
    axes.fill_between(history.steps, low, high, color=SKY, alpha=0.6, linewidth=0)
    axes.axhline(1, color=GREY, linewidth=1)


def _explained(axes: Any, story: Story) -> None:
    canvas.name(axes, "Explained variance of the value function")
    canvas.line(axes, story.run.history, "value/explained_variance", color=GREEN, linewidth=1.5)
    axes.set_ylim(-1.05, 1.05)
    axes.axhline(0, color=GREY, linewidth=1)


def _has(*tags: str) -> Callable[[Story], bool]:
    return lambda story: all(len(finite(story.run.history.column(tag))) > 0 for tag in tags)


def _always(story: Story) -> bool:
    return bool(np.isfinite(kl_of(story.run.history)).any())


def _steers(story: Story) -> bool:
    return story.steering is not None


def _epochs(history: History) -> list[str]:
    """The tags of the inner loop's profile, in order."""
    found = [tag for tag in history.columns if tag.startswith("kl/epoch_") and tag.removeprefix("kl/epoch_").isdigit()]
    return sorted(found, key=lambda tag: int(tag.removeprefix("kl/epoch_")))


PANELS: tuple[tuple[Callable[[Any, Story], None], Callable[[Story], bool]], ...] = (
    (_return, _has("rollout/return_last100")),
    (_kl, _always),
    (_lambda, _steers),
    (_clip, _has("ratio/clip_fraction")),
    (_profile, lambda story: bool(_epochs(story.run.history))),
    (_entropy, _has("policy/entropy")),
    (_share, lambda story: _steers(story) and _has("penalty/share")(story)),
    (_ratio, _has("ratio/min", "ratio/max")),
    (_explained, _has("value/explained_variance")),
)
"""Panel, and whether the run has what it shows; the first six are drawn."""
