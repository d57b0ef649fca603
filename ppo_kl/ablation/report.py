"""A study's report: one page that needs nothing else, a summary in Markdown, the figures, and the numbers."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from ppo_kl.ablation import figures
from ppo_kl.ablation.numbers import Numbers, headline, numbers_of
from ppo_kl.ablation.result import last_line
from ppo_kl.ablation.statistics import AGGREGATES, LEVEL, Interval
from ppo_kl.ablation.study import Study, csv_of, read_study
from ppo_kl.atomic import write_atomically
from ppo_kl.errors import OutputError

MISSING_SHOWN = 10
PAGE, SUMMARY, CSV, FIGURES = "report.html", "report.md", "results.csv", "figures"


class Section(NamedTuple):
    """A table with what is to be known about it."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]


def write_report(folder: Path, into: Path | None = None) -> list[Path]:
    """Make the report of whatever lies in a study's folder; finished or not.

    Args:
        folder: the study's, or one that holds runs.
        into: where the report goes; none: beside the results.

    Returns:
        What was written, the page first.

    Raises:
        ConfigError: there is no finished run.
        OutputError: a result cannot be read.
    """
    study = read_study(folder)
    numbers = numbers_of(study)
    drawn = figures.drawn(study, numbers)
    into = folder if into is None else into
    try:
        return _written(study, numbers, drawn, into)
    except OSError as error:
        raise OutputError(f"{into}: the report cannot be written: {error}; name another folder with --into") from error


def _written(study: Study, numbers: Numbers, drawn: dict[str, tuple[str, str]], into: Path) -> list[Path]:
    (into / FIGURES).mkdir(parents=True, exist_ok=True)
    written = [into / PAGE, into / SUMMARY, into / CSV]
    _write(into / PAGE, page_of(study, numbers, drawn))
    _write(into / SUMMARY, summary_of(study, numbers, drawn))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(csv_of(study))
    _write(into / CSV, text.getvalue())
    for name, (_, svg) in drawn.items():
        _write(into / FIGURES / f"{name}.svg", figures.coloured(svg, figures.ON_PAPER))
        figures.save_png(study, numbers, name, into / FIGURES / f"{name}.png")
        written += [into / FIGURES / f"{name}.{kind}" for kind in ("svg", "png")]
    return written


def page_of(study: Study, numbers: Numbers, drawn: dict[str, tuple[str, str]]) -> str:
    """The page; its figures take the colours of the reader's light or dark theme."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("ppo_kl.ablation", "."), autoescape=True)
    shown = [(name, title, figures.coloured(svg, figures.ON_PAGE)) for name, (title, svg) in drawn.items()]
    return environment.get_template("report.html.jinja").render(
        study=study,
        headline=headline(study, numbers),
        trust=trust(study, numbers),
        sections=sections(study, numbers),
        figures=[(name, title, svg[svg.index("<svg") :], name not in figures.NARROW) for name, title, svg in shown],
        runs=csv_of(study),
        provenance=provenance(study),
    )


def summary_of(study: Study, numbers: Numbers, drawn: dict[str, tuple[str, str]]) -> str:
    """The same in Markdown."""
    lines = [f"# {study.name}", "", *_state(study), ""]
    lines += [f"- {sentence}" for sentence in headline(study, numbers)] + [""]
    for section in sections(study, numbers):
        lines += [f"## {section.title}", "", section.note, "", *_markdown(section.head, section.rows), ""]
    lines += ["## How far to trust this", "", *(f"- {line}" for line in trust(study, numbers)), ""]
    for name, (title, _) in drawn.items():
        lines += [f"![{title}]({FIGURES}/{name}.png)", ""]
    lines += ["## Where it comes from", "", *(f"- {line}" for line in provenance(study))]
    return "\n".join(lines) + "\n"


def _state(study: Study) -> list[str]:
    lines = [f"{len(study.results)} finished runs: {len(study.arms)} arms on {len(study.envs)} environments."]
    if study.missing:
        lines.append(f"**{sum(study.missing.values())} planned runs are missing** and have no part in any number.")
    return lines


def sections(study: Study, numbers: Numbers) -> list[Section]:
    """The tables."""
    tables = (_aggregates, _published, _by_environment, _tests, _kl)
    return [section for table in tables if (section := table(study, numbers)).rows]


def _aggregates(study: Study, numbers: Numbers) -> Section:
    rows = []
    for arm, found in numbers.aggregates.items():
        paper = numbers.paper[arm]
        rows.append(
            [
                arm,
                *(_interval(found[name]) for name in AGGREGATES),
                _interval(numbers.areas.get(arm)),
                _interval(numbers.differences.get(arm)),
                _interval(numbers.improvement.get(arm)),
                *map(_score, paper),
            ]
        )
    note = (
        f"Scores: 0 is the initial policy, 1 the mean return of {study.reference!r} on that environment; in brackets "
        f"{LEVEL:.0%} stratified bootstrap intervals, and then how often such an interval holds the truth, by "
        "simulation at this number of runs. The paper's scores have 1 at the best single run of an environment, or at "
        "the best arm's mean."
    )
    head = [
        "arm",
        *AGGREGATES,
        "area under the curve",
        "IQM less the reference's",
        f"P(beats {study.reference})",
        "paper: run",
        "paper: arm",
    ]
    return Section("Scores over all environments", note, head, rows)


def _published(study: Study, numbers: Numbers) -> Section:
    here = {arm: numbers.paper[arm][0] for arm in study.published if arm in numbers.paper}
    theirs = {arm: study.published[arm] for arm in here}
    rows = []
    for arm, score in study.published.items():
        mine = [_score(here[arm]), _rank(arm, here), _rank(arm, theirs)] if arm in here else ["–"] * 3
        rows.append([arm, _score(score), *mine])
    note = (
        f"{study.published_in}. Scores have 0 at the initial policy and 1 at the best run of an environment; they move "
        "with every arm that is added. Ranks are among the arms that have both."
    )
    return Section("Beside what was published", note, ["arm", "published", "here", "rank here", "rank published"], rows)


def _rank(arm: str, scores: Mapping[str, float]) -> str:
    return str(1 + sum(score > scores[arm] for score in scores.values()))


def _by_environment(study: Study, numbers: Numbers) -> Section:
    rows = []
    for arm in study.arms:
        cells = []
        for env in study.envs:
            x = numbers.returns[arm].get(env)
            spread = "" if x is None or len(x) < 2 else f" ± {_number(float(x.std(ddof=1)))}"
            cells.append("missing" if x is None else f"{_number(float(x.mean()))}{spread} ({len(x)})")
        rows.append([arm, *cells])
    initial = study.initial()
    rows.append(
        ["initial policy", *(_number(float(initial[env].mean())) if env in initial else "–" for env in study.envs)]
    )
    note = "Return of the last 100 training episodes, mean ± standard deviation over runs, in brackets their number."
    return Section("Returns", note, ["arm", *study.envs], rows)


def _tests(study: Study, numbers: Numbers) -> Section:
    rows = [
        [arm, env, _number(test.difference), _p(test.p), _p(test.p_holm)] for (arm, env), test in numbers.tests.items()
    ]
    note = f"Welch's t-test of each arm against {study.reference!r}, with Holm's correction over all of them."
    return Section("Tests", note, ["arm", "environment", "difference of means", "p", "p, Holm"], rows)


def _kl(study: Study, numbers: Numbers) -> Section:
    rows = []
    for arm in study.arms:
        cells = []
        for env in study.envs:
            kl, error, implied = (table[arm].get(env) for table in (numbers.kl, numbers.tracking, numbers.implied))
            cell = "–" if kl is None else f"{float(kl.mean()):.3g}"
            cell += "" if error is None else f", off by {math.expm1(float(error.mean())):.0%}"
            cells.append(cell + ("" if implied is None else f", λ {float(np.median(implied)):.2g}"))
        rows.append([arm, *cells])
    note = (
        "Median exact KL of an update in nats, mean over runs; how far it is off its target on (geometric) average, "
        "where there is one; and the median λ that the arm's objective amounts to: the weight of a KL penalty that "
        "would hold the policy back as much as clipping, or whatever the arm has, does."
    )
    return Section("KL", note, ["arm", *study.envs], rows)


def trust(study: Study, numbers: Numbers) -> list[str]:
    """What can be seen with this many runs, and what cannot."""
    counts = Counter(len(study.of(arm, env)) for arm in study.arms for env in study.envs)
    lines = [f"Runs of each arm on each environment: {', '.join(str(n) for n in sorted(counts))}."]
    if math.isfinite(numbers.detectable):
        lines.append(
            f"Power: a difference of {numbers.detectable:.3f} between two arms' mean scores would be found in four of "
            "five such studies, without a correction; smaller ones can only be ranked."
        )
    if known := [x["IQM"].coverage for x in numbers.aggregates.values() if x["IQM"].known]:
        low, high = min(known), max(known)
        lines.append(
            f"The {LEVEL:.0%} intervals of the IQM hold the truth in {low:.0%} to {high:.0%} of made-up studies of "
            "this size. Verdicts rest on Welch's test of the mean scores, with Holm's correction for all arms."
        )
    for env in study.envs:
        if env not in numbers.scale:
            there = study.of(study.reference, env)
            why = "did not get clearly beyond the initial policy there" if there else "has no run there"
            lines.append(f"{env} is in no score: {study.reference!r} {why}.")
    for arm in study.arms:
        seeds, runs = study.seeds_of(arm), max(len(study.of(arm, env)) for env in study.envs)
        if len(seeds) < runs:
            used = f"{len(seeds)} of {runs} seeds" if seeds else "no seed"
            lines.append(f"{arm}: {used} on every environment; the others are in the tables, but in no aggregate.")
    lines += study.remarks
    for result in study.failures:
        lines.append(f"Failed: {result['arm']} on {result['env']}, seed {result['seed']}: {last_line(result['error'])}")
    if study.missing:
        first = list(study.missing)[:MISSING_SHOWN]
        lines.append(f"Missing: {'; '.join(first)}{' and others' if len(study.missing) > len(first) else ''}.")
    return lines


def provenance(study: Study) -> list[str]:
    """Versions, commits and machines of the runs."""

    def told(key: str) -> str:
        counted = Counter(json.dumps(result[key], sort_keys=True) for result in study.results)
        return "; ".join(f"{_plain(json.loads(text))} ({n} runs)" for text, n in counted.most_common())

    return [f"{key}: {told(key)}" for key in ("versions", "commit", "hardware")]


def _plain(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def _interval(found: Interval | None) -> str:
    if found is None:
        return "–"
    bounds = f" [{found.low:.2f}, {found.high:.2f}]\n{found.coverage:.0%}" if found.known else ""
    return f"{found.estimate:.2f}{bounds}".replace("-", "−")


def _score(x: float) -> str:
    return f"{x:.2f}".replace("-", "−")


def _number(x: float) -> str:
    text = f"{x:,.0f}" if abs(x) >= 100 else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}"
    return text.replace("-", "−")


def _p(p: float) -> str:
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in row) + " |" for row in cells]


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
