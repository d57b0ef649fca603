"""Every number of a report, computed once: what the page, the summary and the figures show is the same."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ppo_kl.ablation import statistics
from ppo_kl.ablation.statistics import AGGREGATES, Interval, Scale, Table, Test, interval
from ppo_kl.ablation.study import Study, area, last100


class Pair(NamedTuple):
    """Two arms whose order was published."""

    better: str
    """As published."""
    worse: str
    kept: bool
    """Whether it is so here, by the paper's score with 1 at the best run."""
    share: float
    """Of studies made up by resampling these runs, in which it is so."""


class Numbers(NamedTuple):
    """Of a study; arms and environments in its order."""

    returns: dict[str, Table]
    scale: dict[str, Scale]
    """The anchored one, by environment: 0 the initial policy, 1 the mean of the reference arm."""
    scores: Mapping[str, Table]
    """Anchored."""
    aggregates: dict[str, dict[str, Interval]]
    """Arm -> IQM, mean, optimality gap of the anchored scores, of the seeds that it has on every environment."""
    paper: dict[str, tuple[float, float]]
    """Arm -> mean score where 1 is the best run of each environment, and where it is the best arm's mean."""
    areas: dict[str, Interval]
    """Arm -> IQM of the area under the learning curve, where 1 is the reference arm's."""
    differences: dict[str, Interval]
    """Arm -> its IQM less the reference arm's."""
    overall: dict[str, Test]
    """Arm -> whether its mean score differs from the reference arm's, corrected for all arms."""
    improvement: dict[str, Interval]
    """Arm -> probability that a run of it beats one of the reference arm."""
    tests: dict[tuple[str, str], Test]
    detectable: float
    """Smallest difference of mean scores that would be found in four of five such studies."""
    kl: dict[str, Table]
    """Median KL of each run's updates, nats."""
    tracking: dict[str, Table]
    """Mean |ln(KL / target)| of each run; of arms with a target."""
    implied: dict[str, Table]
    """Median λ that each run's objective amounted to."""
    pairs: list[Pair]
    """Of the arms that have a published score."""


def numbers_of(study: Study) -> Numbers:
    """All of them; a minute or two, for the coverage of every interval is simulated."""
    returns, initial = study.table(last100), study.initial()
    # Where an arm has fewer runs on one environment than on others, that would count for less.
    complete = study.table(last100, whole=True)
    scale = statistics.scales(returns, initial, statistics.anchored_at(study.reference))
    scores = statistics.scored(complete, scale)
    whole = {arm: table for arm, table in scores.items() if table}
    papers = []
    for best in (statistics.best_run, statistics.best_arm):
        of_paper = {env: s for env, s in statistics.scales(returns, initial, best).items() if env in scale}
        papers.append(statistics.scored({arm: complete[arm] for arm in whole}, of_paper))
    reference = whole.get(study.reference, {})
    others = {arm: table for arm, table in whole.items() if reference and arm != study.reference}
    overall = {arm: statistics.overall(table, reference) for arm, table in others.items()}
    corrected = statistics.holm([p for _, p in overall.values()])
    return Numbers(
        returns,
        scale,
        scores,
        {
            arm: {name: interval(statistics.over_all(aggregate), table) for name, aggregate in AGGREGATES.items()}
            for arm, table in whole.items()
        },
        {arm: (float(_mean(papers[0][arm])), float(_mean(papers[1][arm]))) for arm in whole},
        _areas(study, scale),
        {arm: interval(statistics.difference(statistics.iqm), table, reference) for arm, table in others.items()},
        {arm: Test(d, p, q) for (arm, (d, p)), q in zip(overall.items(), corrected, strict=True)},
        {arm: interval(statistics.probability_of_improvement, table, reference) for arm, table in others.items()},
        statistics.tests(returns, study.reference) if study.reference in returns else {},
        statistics.smallest_detectable(whole) if whole else math.nan,
        study.table(lambda result: result["kl"]["median"]),
        study.table(lambda result: result["kl"]["tracking_error"]),
        study.table(lambda result: result["kl"]["implied_lambda"]),
        _pairs(study.published, papers[0]),
    )


def _areas(study: Study, scale: Mapping[str, Scale]) -> dict[str, Interval]:
    """On the same environments as all other scores, or none: with 1 the mean area of the reference arm."""
    areas = study.table(area, whole=True)
    reference = areas.get(study.reference, {})
    if any(env not in reference or reference[env].mean() <= scale[env].zero for env in scale):
        return {}
    of_areas = {env: Scale(scale[env].zero, float(reference[env].mean())) for env in scale}
    scored = statistics.scored(areas, of_areas)
    return {arm: interval(statistics.over_all(statistics.iqm), table) for arm, table in scored.items() if table}


def _mean(table: Table, axis: int | None = None) -> Any:
    """Over environments, of which each counts alike; of a table's runs, or of those of every made-up study."""
    return np.mean([x.mean(axis) for x in table.values()], axis=0)


def _pairs(published: Mapping[str, float], scores: Mapping[str, Table]) -> list[Pair]:
    """Of the arms that have a published score and one here."""
    both = [arm for arm in published if arm in scores]
    generator = np.random.default_rng(0)
    made_up = {arm: _mean(statistics.resampled(scores[arm], generator), axis=-1) for arm in both}
    return [
        Pair(a, b, bool(_mean(scores[a]) > _mean(scores[b])), float(np.mean(made_up[a] > made_up[b])))
        for a, b in itertools.combinations(both, 2)
        if published[a] > published[b]
    ]


def headline(study: Study, numbers: Numbers) -> list[str]:
    """What the study says, in sentences, arm by arm, the best first; and how much of it may be believed."""
    said = []
    for arm in sorted(numbers.differences, key=lambda arm: -numbers.differences[arm].estimate):
        iqm, apart = numbers.aggregates[arm]["IQM"].estimate, numbers.differences[arm]
        surely = [env for env in study.envs if _sure(numbers.tests.get((arm, env)))]
        up = [env for env in surely if numbers.tests[arm, env].difference > 0]
        down = [env for env in surely if env not in up]
        test, verdict = numbers.overall[arm], "too few runs to say more"
        if apart.known and not math.isnan(test.p_holm):
            word = "not to be told apart"
            if _sure(test):
                word = "better" if test.difference > 0 else "worse"
            verdict = (
                f"difference {_signed(apart.estimate)} [{_signed(apart.low)}, {_signed(apart.high)}], {word} "
                f"(p {_p(test.p_holm)})"
            )
        where = [f"above it on {', '.join(up)}"] if up else []
        where += [f"below it on {', '.join(down)}"] if down else []
        said.append(
            f"{arm!r} reaches {iqm:.2f} of {study.reference!r} (IQM): {verdict}; a run of it beats one of "
            f"{study.reference!r} in {numbers.improvement[arm].estimate:.0%} of pairs"
            f"{'; for sure ' + ' and '.join(where) if where else ''}."
        )
    if numbers.pairs:
        said.append(_order(numbers.pairs))
    return said


def _order(pairs: list[Pair]) -> str:
    kept, turned = ([pair for pair in pairs if pair.kept == as_published] for as_published in (True, False))
    firm = sum(pair.share >= statistics.LEVEL for pair in kept)
    others = ", ".join(f"{worse!r} before {better!r} ({1 - share:.0%})" for better, worse, _, share in turned)
    return (
        f"{len(kept)} of {len(pairs)} pairs of arms are in the published order, {firm} of them in at least "
        f"{statistics.LEVEL:.0%} of studies made up by resampling these runs"
        f"{'; in the other: ' + others if others else ''}."
    )


def _signed(x: float) -> str:
    return f"{x:+.3f}".replace("-", "−")


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def _sure(test: Test | None) -> bool:
    return test is not None and test.p_holm < 1 - statistics.LEVEL
