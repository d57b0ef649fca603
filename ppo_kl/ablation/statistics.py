"""What may be said of a study's scores: aggregates with intervals, comparisons, and how far either can be trusted.

A score table holds, by environment, the scores of an arm's runs `[n]`; arms may have different numbers of them. Needs
SciPy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Scores = NDArray[np.float64]
Table = Mapping[str, Scores]
"""Environment -> scores of one arm's runs, `[n]`; of many made-up studies, `[studies, n]`."""
Statistic = Callable[..., Any]
"""What is estimated from one or two arms' tables; of made-up studies, `[studies]`."""

RESAMPLES = 2_000
LEVEL = 0.95
SIMULATIONS = 400
"""Studies that are made up to see how often their intervals hold the truth."""


class Interval(NamedTuple):
    """A point estimate, and the bounds that resampling gives it; NaN where runs are too few for any."""

    estimate: float
    low: float
    high: float
    coverage: float
    """How often such bounds hold the truth, see `coverage`."""

    @property
    def known(self) -> bool:
        """Whether it has bounds."""
        return not math.isnan(self.low)


# --- aggregates -------------------------------------------------------------------------------------------------------


def iqm(scores: Scores) -> Any:
    """Mean of the middle half, over the last dimension; less moved by outliers than the mean, surer than the median.

    Source: Agarwal 2021 (arXiv:2108.13264), section 4.3.
    """
    return stats.trim_mean(scores, 0.25, axis=-1)


def mean(scores: Scores) -> Any:
    """Over the last dimension."""
    return scores.mean(-1)


def optimality_gap(scores: Scores) -> Any:
    """How much the runs fall short of 1, on average; what lies above 1 makes up for nothing.

    Source: Agarwal 2021 (arXiv:2108.13264), section 4.3.
    """
    return np.maximum(1 - scores, 0).mean(-1)


AGGREGATES: dict[str, Callable[[Scores], Any]] = {"IQM": iqm, "mean": mean, "optimality gap": optimality_gap}


def pooled(table: Table) -> Scores:
    """All scores of an arm, `[runs]`."""
    return np.concatenate(list(table.values()), -1)


def over_all(aggregate: Callable[[Scores], Any]) -> Statistic:
    """An aggregate over environments and runs."""
    return lambda x: aggregate(pooled(x))


def difference(aggregate: Callable[[Scores], Any]) -> Statistic:
    """An aggregate of X less that of Y."""
    return lambda x, y: aggregate(pooled(x)) - aggregate(pooled(y))


def probability_of_improvement(x: Table, y: Table) -> Any:
    """P(a run of X scores higher than one of Y on the same environment), ties counted half, mean over environments.

    Source: Agarwal 2021 (arXiv:2108.13264), section 4.3: Mann and Whitney's U over all pairs.
    """
    return np.mean([_wins(x[env], y[env]) for env in x if env in y], axis=0)


def _wins(x: Scores, y: Scores) -> Any:
    difference = x[..., :, None] - y[..., None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean((-2, -1))


# --- intervals --------------------------------------------------------------------------------------------------------


def interval(statistic: Statistic, *tables: Table, seed: int = 0) -> Interval:
    """A statistic with its percentile interval from a stratified bootstrap, and the coverage of such intervals.

    Args:
        statistic: of as many tables as are given; each is resampled for itself.
        tables: of one arm each.
        seed: of the resampling.

    Source: Agarwal 2021 (arXiv:2108.13264), section 4.1.
    """
    estimate = float(statistic(*tables))
    if not _all_resample(tables):
        return Interval(estimate, math.nan, math.nan, math.nan)
    generator = np.random.default_rng(seed)
    low, high = _bounds(statistic(*(resampled(table, generator) for table in tables)))
    return Interval(estimate, low, high, coverage(statistic, *tables, seed=seed))


def resampled(table: Table, generator: np.random.Generator, resamples: int = RESAMPLES) -> dict[str, Scores]:
    """Made-up studies, `[resamples, n]`: within each environment its runs are drawn with replacement."""
    return {env: x[generator.integers(len(x), size=(resamples, len(x)))] for env, x in table.items()}


def coverage(statistic: Statistic, *tables: Table, seed: int = 0, simulations: int = SIMULATIONS) -> float:
    """How often intervals of this many runs hold the truth, in studies made up like this one.

    Scores are drawn from a normal distribution with each environment's own mean and deviation, so that the truth is
    known; the percentile bootstrap with a handful of runs covers less than it says. NaN where a single run has none.
    """
    if not _all_resample(tables):
        return math.nan
    generator = np.random.default_rng(seed)

    def made_up(table: Table, *studies: int, runs: int | None = None) -> dict[str, Scores]:
        factor = 1 if runs is None else max(1.0, runs / len(pooled(table)))
        size = {env: (*studies, round(factor * len(x))) for env, x in table.items()}
        return {env: generator.normal(x.mean(), x.std(ddof=1), size[env]) for env, x in table.items()}

    truth = float(np.mean(statistic(*(made_up(table, 16, runs=1_000) for table in tables))))
    held = 0
    for _ in range(simulations):
        low, high = _bounds(statistic(*(resampled(made_up(table), generator, 400) for table in tables)))
        held += low <= truth <= high
    return held / simulations


def _all_resample(tables: Sequence[Table]) -> bool:
    """Whether drawing runs anew can show any spread: not where an environment has a single one."""
    return all(len(scores) > 1 for table in tables for scores in table.values())


def _bounds(made_up: Scores) -> tuple[float, float]:
    low, high = np.quantile(made_up, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


# --- comparisons ------------------------------------------------------------------------------------------------------


def performance_profile(table: Table, thresholds: Scores) -> Scores:
    """Share of all runs that score above each threshold, `[thresholds]`.

    Source: Agarwal 2021 (arXiv:2108.13264), section 4.2.
    """
    return np.asarray((pooled(table)[:, None] > thresholds).mean(0))


class Test(NamedTuple):
    """Welch's test of one environment: whether two arms' means differ."""

    difference: float
    p: float
    """Two-sided."""
    p_holm: float
    """Corrected for all tests of the study."""


def welch(x: Scores, y: Scores) -> tuple[float, float]:
    """Difference of the means and two-sided p; NaN where fewer than two runs, or no spread at all, allow no test."""
    difference = float(x.mean() - y.mean())
    if min(len(x), len(y)) < 2 or (np.ptp(x) == 0 and np.ptp(y) == 0):
        return difference, math.nan
    moments = (moment for scores in (x, y) for moment in (scores.mean(), scores.std(ddof=1), len(scores)))
    return difference, float(stats.ttest_ind_from_stats(*moments, equal_var=False).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Corrected p-values in the same order; those that are NaN are no tests.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    known = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    corrected = [math.nan] * len(p)
    worst = 0.0
    for rank, (value, i) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * value))
        corrected[i] = worst
    return corrected


def tests(arms: Mapping[str, Table], reference: str) -> dict[tuple[str, str], Test]:
    """(arm, environment) -> the arm against the reference, corrected over all of them."""
    pairs = [
        (arm, env) for arm, env in itertools.product(arms, arms[reference]) if arm != reference and env in arms[arm]
    ]
    found = [welch(arms[arm][env], arms[reference][env]) for arm, env in pairs]
    corrected = holm([p for _, p in found])
    return {pair: Test(d, p, q) for pair, (d, p), q in zip(pairs, found, corrected, strict=True)}


def overall(x: Table, y: Table) -> tuple[float, float]:
    """Difference of the mean scores over environments, each of which counts alike, and two-sided p of Welch's test.

    t = Σ_e (x̄ − ȳ) / √(Σ_e s²_x/n_x + s²_y/n_y), with Welch and Satterthwaite's degrees of freedom; NaN where a single
    run, or no spread, allows no test.
    """
    parts = [
        (scores.var(ddof=1) / len(scores), len(scores) - 1) for t in (x, y) for scores in t.values() if len(scores) > 1
    ]
    apart = float(sum(x[env].mean() - y[env].mean() for env in x)) / len(x)
    variance = sum(v for v, _ in parts)
    if len(parts) < 2 * len(x) or variance == 0:
        return apart, math.nan
    freedom = variance**2 / sum(v**2 / f for v, f in parts)
    return apart, float(2 * stats.t.sf(abs(apart * len(x)) / math.sqrt(variance), freedom))


# --- how far to trust them --------------------------------------------------------------------------------------------


def smallest_detectable(arms: Mapping[str, Table], power: float = 0.8) -> float:
    """Difference of two arms' means over all environments that a test would find in `power` of all such studies.

    (z₀.₉₇₅ + z_power) · SD · √(2 / runs), with the runs' pooled SD within an arm and an environment.
    """
    cells = [x for table in arms.values() for x in table.values() if len(x) > 1]
    freedom = sum(len(x) - 1 for x in cells)
    if not freedom:
        return math.nan
    deviation = math.sqrt(sum(((x - x.mean()) ** 2).sum() for x in cells) / freedom)
    runs = min(len(pooled(table)) for table in arms.values())
    z = stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(power)
    return float(z * deviation * math.sqrt(2 / runs))


# --- normalisation ----------------------------------------------------------------------------------------------------


class Scale(NamedTuple):
    """What return is 0 and what is 1 on an environment."""

    zero: float
    one: float

    def __call__(self, returns: Scores) -> Scores:
        """Returns as scores."""
        return (returns - self.zero) / (self.one - self.zero)


def scales(
    returns: Mapping[str, Table], initial: Mapping[str, Scores], best: Callable[[Mapping[str, Scores]], float]
) -> dict[str, Scale]:
    """Environment -> scale: 0 is the initial policy's mean return, 1 what `best` makes of all arms' returns there.

    Environments on which 1 would not lie above 0, by more than chance may have done it, have none: what is divided by
    next to nothing would outweigh all others.
    """
    envs = dict.fromkeys(env for table in returns.values() for env in table)
    found = {}
    for env in envs:
        one = best({arm: table[env] for arm, table in returns.items() if env in table})
        if env in initial and one > initial[env].mean() + 3 * _error(initial[env]):
            found[env] = Scale(float(initial[env].mean()), one)
    return found


def _error(x: Scores) -> float:
    """Standard error of a mean; 0 where a single number has none."""
    return float(x.std(ddof=1)) / math.sqrt(len(x)) if len(x) > 1 else 0.0


def best_run(there: Mapping[str, Scores]) -> float:
    """The best single run of the study, as in the PPO paper's table 1."""
    return max(float(x.max()) for x in there.values())


def best_arm(there: Mapping[str, Scores]) -> float:
    """The mean of the arm that does best."""
    return max(float(x.mean()) for x in there.values())


def anchored_at(reference: str) -> Callable[[Mapping[str, Scores]], float]:
    """The mean of one arm, so that 1 reads "as good as that" and does not move when another arm is added."""
    return lambda there: float(there[reference].mean()) if reference in there else -math.inf


def scored(returns: Mapping[str, Table], scale: Mapping[str, Scale]) -> dict[str, dict[str, Scores]]:
    """Every arm's returns as scores, on the environments that have a scale."""
    return {arm: {env: scale[env](x) for env, x in table.items() if env in scale} for arm, table in returns.items()}
