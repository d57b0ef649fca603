"""A run in numbers: what its KL was, where it should have been, and what moved it. Pure functions of its history."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppo_kl.config.objective import Adapting
from ppo_kl.diagnostics.history import Column, History, Run

SETTLING = 0.1
"""Share of the updates that λ is given to find its place before the tracking error is taken."""
LARGEST_FACTOR = 1000.0
"""KL and target count as no further apart, so that one KL of 0 does not make the mean infinite."""
ROUNDING = 1e-8
"""Nats; a KL below this is what float32 leaves of 0."""
YARDSTICK = 1.5
"""Half-width of the band for a controller that has none: near its target is within this factor."""


class Returns(NamedTuple):
    """Undiscounted return, mean over the last 100 episodes; `evaluated` is that of separate episodes."""

    first: float
    last: float
    best: float
    best_at: int
    noise: float
    """Standard deviation of a rollout's mean return over the first tenth of the run."""
    evaluated: float | None


class Realised(NamedTuple):
    """The exact KL of each update in nats, in the penalty's direction."""

    mean: float
    low: float
    """First quartile."""
    median: float
    high: float
    """Third quartile."""
    worst: float
    worst_at: int
    zero: float
    """Share of the updates whose KL is 0 but for rounding."""
    before_update: float
    """Largest KL before an update, which should be 0."""


class Tracking(NamedTuple):
    """The KL K beside its target d; shares are of updates."""

    target: float
    """At the end of the run, nats."""
    ratio: float
    """Median of K / d."""
    inside: float
    above: float
    below: float
    factor: float
    """exp(mean |ln(K / d)|) after the first tenth: by which factor K misses d; 1 is perfect."""
    far_above: int
    """Updates with K > 10 d."""
    worst: float
    """Largest K / d."""


class Steering(NamedTuple):
    """λ, and what the controller did with it from one update to the next."""

    first: float
    last: float
    lowest: float
    highest: float
    raised: int
    lowered: int
    kept: int
    at_min: float
    """Share of the updates after which λ stood at its min."""
    at_max: float
    alternating: float
    """Share of the moves that went the other way than the move before."""


class Trouble(NamedTuple):
    """Numbers that were not finite, and updates that ended early."""

    skipped: int
    """Gradient steps skipped, as loss or gradient was not finite."""
    controller: int
    """KLs that were not finite when the controller looked."""
    metrics: dict[str, int]
    """How often a tag was not finite, by tag."""
    episodes: int
    """Episodes cut by `env.nonfinite: truncate`."""
    stopped_early: float
    """Share of the updates that kl_stop ended."""


class Story(NamedTuple):
    """One run; a part is None where its metrics are not there, or mean nothing for this objective."""

    run: Run
    updates: int
    returns: Returns | None
    kl: Realised
    tracking: Tracking | None
    steering: Steering | None
    trouble: Trouble


def tell(run: Run) -> Story:
    """What the run's metrics say."""
    history = run.history
    return Story(
        run=run,
        updates=len(history.steps),
        returns=returns(history),
        kl=realised(history),
        tracking=tracking(history),
        steering=steering(run),
        trouble=trouble(history),
    )


def kl_of(history: History) -> Column:
    """The KL the controller saw, `[U]` nats, not negative; the forward KL where none is told."""
    controlled = history.column("kl/controlled")
    return np.maximum(np.where(np.isnan(controlled), history.column("kl/forward"), controlled), 0.0)


def band_of(history: History) -> tuple[Column, Column, Column] | None:
    """Target and band of each update, `[U]` nats each; none without a target.

    The band is where the controller leaves λ alone, and a factor of 1.5 to either side where it never does.
    """
    low, high, ratio = (history.column(f"kl/{name}") for name in ("target_low", "target_high", "target_ratio"))
    told = np.isfinite(ratio) & (ratio > 0) & (kl_of(history) > 0)
    if not told.any():
        return None
    index = np.arange(len(ratio))
    # A KL of 0 says nothing of its target; the one next to it does.
    target = np.interp(index, index[told], kl_of(history)[told] / ratio[told])
    bare = ~(high > low * (1 + 1e-6))
    return target, np.where(bare, target / YARDSTICK, low), np.where(bare, target * YARDSTICK, high)


def returns(history: History) -> Returns | None:
    """First, last and best return; None where no episode ended."""
    column, each = history.column("rollout/return_last100"), history.column("rollout/return_mean")
    there = np.flatnonzero(np.isfinite(column))
    if not len(there):
        return None
    best = there[np.argmax(column[there])]
    early = finite(each[: math.ceil(len(each) * SETTLING)])
    evaluated = finite(history.column("eval/return_mean"))
    return Returns(
        first=float(column[there[0]]),
        last=float(column[there[-1]]),
        best=float(column[best]),
        best_at=int(history.steps[best]),
        noise=float(early.std()) if len(early) else 0.0,
        evaluated=float(evaluated[-1]) if len(evaluated) else None,
    )


def realised(history: History) -> Realised:
    """Quartiles, mean and worst of the KL; NaN where no update has a finite one."""
    kl = kl_of(history)
    known = finite(kl)
    if not len(known):
        known = np.array([math.nan])
    low, median, high = np.quantile(known, (0.25, 0.5, 0.75))
    return Realised(
        mean=float(known.mean()),
        low=float(low),
        median=float(median),
        high=float(high),
        worst=float(known.max()),
        worst_at=int(history.steps[np.argmax(np.nan_to_num(kl))]),
        zero=float(np.mean(known < ROUNDING)),
        before_update=_largest(history, "kl/before_update"),
    )


def tracking(history: History) -> Tracking | None:
    """How near the KL came to its target; None without one."""
    band = band_of(history)
    if band is None:
        return None
    known = np.isfinite(kl_of(history))
    kl, target, low, high = (column[known] for column in (kl_of(history), *band))
    ratio = kl / target
    return Tracking(
        target=float(target[-1]),
        ratio=float(np.median(ratio)),
        inside=float(np.mean((low <= kl) & (kl <= high))),
        above=float(np.mean(kl > high)),
        below=float(np.mean(kl < low)),
        factor=tracking_factor(ratio[math.floor(len(ratio) * SETTLING) :]),
        far_above=int((ratio > 10).sum()),
        worst=float(ratio.max()),
    )


def tracking_factor(ratio: NDArray[np.float64]) -> float:
    """exp(mean |ln x|) of x = KL / target: 1 where the target is met, f where KL lies f times too high or too low.

    Args:
        ratio: KL / target of each update, not negative; counts as no further from 1 than a factor of 1000.

    Returns:
        From 1 to 1000.
    """
    limit = math.log(LARGEST_FACTOR)
    with np.errstate(divide="ignore"):
        return float(np.exp(np.mean(np.abs(np.clip(np.log(ratio), -limit, limit)))))


def steering(run: Run) -> Steering | None:
    """Where λ went; None where it was 0 throughout."""
    kl_lambda = run.history.column("penalty/lambda")
    known = finite(kl_lambda)
    if not len(known) or not known.any():
        return None
    moves = np.sign(np.diff(known)) * (np.abs(np.diff(known)) > 1e-9 * known[:-1])
    made = moves[moves != 0]
    bounds = bounds_of(run)
    middle = known[0] if bounds is None else math.sqrt(bounds[0] * bounds[1])
    # What an update's metrics call saturated is the λ after it, with which the next is made.
    after = np.append(kl_lambda[1:], kl_lambda[-1])
    saturated = run.history.column("penalty/saturated") == 1
    return Steering(
        first=float(known[0]),
        last=float(known[-1]),
        lowest=float(known.min()),
        highest=float(known.max()),
        raised=int((moves > 0).sum()),
        lowered=int((moves < 0).sum()),
        kept=int((moves == 0).sum()),
        at_min=float(np.mean(saturated & (after < middle))),
        at_max=float(np.mean(saturated & (after > middle))),
        alternating=float(np.mean(made[1:] != made[:-1])) if len(made) > 1 else 0.0,
    )


def bounds_of(run: Run) -> tuple[float, float] | None:
    """Min and max of λ; None where the controller has none, or the configuration could not be read."""
    controller = None if run.config is None else run.config.objective.controller
    return (controller.min, controller.max) if isinstance(controller, Adapting) else None


def trouble(history: History) -> Trouble:
    """What was not finite, and what was cut short."""
    return Trouble(
        skipped=int(np.nansum(history.column("optim/skipped"))),
        controller=int(_largest(history, "penalty/nonfinite")),
        metrics=history.nonfinite,
        episodes=int(np.nansum(history.column("env/nonfinite"))),
        stopped_early=float(np.mean(history.column("optim/stopped_early") == 1)),
    )


def finite(column: Column) -> Column:
    """The numbers of a column that are there."""
    return column[np.isfinite(column)]


def _largest(history: History, tag: str) -> float:
    known = finite(history.column(tag))
    return float(known.max()) if len(known) else 0.0
