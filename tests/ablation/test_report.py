"""A report: its numbers are those of the runs, it makes nothing better than it is, and its page needs nothing else."""

import csv
import re
from functools import partial

import numpy as np
import pytest
from tiny_studies import TINY, made_up, tiny

from ppo_kl.ablation import statistics
from ppo_kl.ablation.figures import FIGURES
from ppo_kl.ablation.numbers import headline, numbers_of
from ppo_kl.ablation.plan import Plan, plan
from ppo_kl.ablation.report import write_report
from ppo_kl.ablation.result import failure_of, write
from ppo_kl.ablation.run import RESULTS
from ppo_kl.ablation.study import PLAN, area, csv_of, last100, plan_as_json, read_study
from ppo_kl.cli import main
from ppo_kl.errors import ConfigError, OutputError
from ppo_kl.load import load_config
from ppo_kl.training.trainer import train

# Anchored at clip, whose mean is 100 on both: scores 1.2 1.4 1.6 and 0.9 0.7 0.5.
RETURNS = {
    "clip": {"easy": [90, 100, 110], "hard": [80, 100, 120]},
    "kl": {"easy": [120, 140, 160], "hard": [90, 70, 50]},
}


def keep(folder, results):
    for result in results:
        write(result, folder / RESULTS / f"{result['id']}.json")
    return folder


@pytest.fixture(autouse=True)
def few_simulations(monkeypatch):
    monkeypatch.setattr(statistics, "coverage", partial(statistics.coverage, simulations=20))


@pytest.fixture
def folder(tmp_path):
    return keep(
        tmp_path / "study",
        [
            made_up(arm, env, seed, float(score), target=0.01 if arm == "kl" else None)
            for arm, table in RETURNS.items()
            for env, scores in table.items()
            for seed, score in enumerate(scores)
        ],
    )


def test_its_numbers_are_those_of_the_runs(folder):
    numbers = numbers_of(read_study(folder))
    # 0 is the initial policy: the mean of −1 and 1
    assert {env: (scale.zero, scale.one) for env, scale in numbers.scale.items()} == {
        "easy": (0, 100),
        "hard": (0, 100),
    }
    assert numbers.aggregates["clip"]["mean"].estimate == pytest.approx(1.0)
    assert numbers.aggregates["kl"]["mean"].estimate == pytest.approx((1.2 + 1.4 + 1.6 + 0.9 + 0.7 + 0.5) / 6)
    # of six the middle four: SciPy's trimmed mean takes off one at each end
    assert numbers.aggregates["kl"]["IQM"].estimate == pytest.approx((1.2 + 1.4 + 0.9 + 0.7) / 4)
    assert numbers.aggregates["kl"]["optimality gap"].estimate == pytest.approx((0.1 + 0.3 + 0.5) / 6)
    # easy: all nine pairs won; hard: 90 beats 80, and no other wins
    assert numbers.improvement["kl"].estimate == pytest.approx((1 + 1 / 9) / 2)
    # the best run of easy is 160, of hard 120
    assert numbers.paper["kl"][0] == pytest.approx((140 / 160 + 70 / 120) / 2)
    assert numbers.paper["kl"][1] == pytest.approx((140 / 140 + 70 / 100) / 2)


def test_the_area_of_a_curve_is_its_mean_with_what_is_not_known_as_it_was_before():
    result = made_up("clip", "easy", 0, 1.0)
    result["curve"]["return"] = [None, 2.0, None, 4.0]
    assert area(result) == (2 + 2 + 2 + 4) / 4
    result["curve"]["return"] = [None, None]
    assert area(result) is None


def test_the_page_needs_nothing_from_anywhere(folder):
    page = write_report(folder)[0].read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", page)
    assert not re.search(r"@import|url\((?!#)", page)
    assert page.count("<svg") >= 6
    assert "prefers-color-scheme: dark" in page
    assert "#010203" not in page  # every stand-in has become a colour of the page
    assert "currentColor" in page


def test_there_are_figures_summary_and_numbers_beside_it(folder):
    names = {str(path.relative_to(folder)) for path in write_report(folder)}
    kinds = ("aggregates", "profile", "efficiency", "returns", "curves", "iso_kl", "steering")
    assert names >= {
        "report.html",
        "report.md",
        "results.csv",
        *(f"figures/{k}.{e}" for k in kinds for e in ("png", "svg")),
    }
    for name in names:
        assert (folder / name).stat().st_size > 100
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert len(rows) == 12
    assert sum(float(row["return"]) for row in rows) == sum(x for t in RETURNS.values() for y in t.values() for x in y)
    summary = (folder / "report.md").read_text()
    assert "| kl | 140 ± 20.0 (3) | 70.0 ± 20.0 (3) |" in summary
    assert "'kl' reaches" in summary
    # every interval with how often such a one holds the truth
    (row,) = (line for line in summary.splitlines() if line.startswith("| kl |") and "%" in line and "[" in line)
    assert len(re.findall(r"−?\d\.\d\d \[−?\d\.\d\d, −?\d\.\d\d\] \d+%", row)) == 6


def test_the_same_results_make_the_same_page(folder):
    pages = [write_report(folder)[0].read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]


def test_the_headline_says_where_it_is_sure_and_where_not(tmp_path):
    generator = np.random.default_rng(0)
    better = {"clip": {"a": 0.0, "b": 0.0}, "up": {"a": 50.0, "b": 0.0}}
    results = [
        made_up(arm, env, seed, float(100 + shift + generator.normal(0, 5)))
        for arm, shifts in better.items()
        for env, shift in shifts.items()
        for seed in range(8)
    ]
    study = read_study(keep(tmp_path, results))
    (sentence,) = headline(study, numbers_of(study))
    assert sentence.startswith("'up' reaches 1.2")
    assert "], better (p < 0.001); a run of it beats" in sentence
    assert sentence.endswith("for sure above it on a.")


def test_published_scores_stand_beside_those_of_the_runs(tmp_path):
    published = {"kl": 0.7, "clip": 0.8, "kl_pi": 0.5, "none": -0.4}
    study = tiny(
        objectives=("clip", "kl", "kl_pi", "none"), envs=("easy",), published=published, published_in="A paper, 3 seeds"
    )
    # On one environment, the best run at 200: clip 0.5, kl 1, kl_pi 0.25; none was not run.
    returns = {"clip": 100.0, "kl": 200.0, "kl_pi": 50.0}
    cells = {(arm, "easy", seed): f"{arm}-easy-{seed}" for arm in published for seed in range(2)}
    (tmp_path / PLAN).write_text(plan_as_json(Plan(study, (), cells, ())))
    keep(tmp_path, [made_up(arm, "easy", seed, score) for arm, score in returns.items() for seed in range(2)])
    page, summary = (path.read_text() for path in write_report(tmp_path)[:2])
    table = summary[summary.index("## Beside what was published") : summary.index("## Returns")]
    assert "A paper, 3 seeds. Scores have 0 at the initial policy" in table
    assert [row for row in table.splitlines() if row.startswith("|")][2:] == [
        "| clip | 0.80 | 0.50 | 2 | 1 |",
        "| kl | 0.70 | 1.00 | 1 | 2 |",
        "| kl_pi | 0.50 | 0.25 | 3 | 3 |",
        "| none | −0.40 | – | – | – |",
    ]
    assert "2 of 3 pairs of arms are in the published order, 2 of them in at least 95% of studies" in summary
    assert "; in the other: 'kl' before 'clip' (100%).\n" in summary
    assert "Beside what was published" in page


def test_how_sure_an_order_is_comes_from_resampling_the_runs(tmp_path):
    study = tiny(objectives=("clip", "kl"), envs=("easy",), published={"kl": 0.7, "clip": 0.8}, published_in="A paper")
    returns = {"clip": [100.0, 300.0], "kl": [150.0, 150.0]}
    cells = {(arm, "easy", seed): f"{arm}-easy-{seed}" for arm in returns for seed in range(2)}
    (tmp_path / PLAN).write_text(plan_as_json(Plan(study, (), cells, ())))
    keep(tmp_path, [made_up(arm, "easy", seed, x) for arm, scores in returns.items() for seed, x in enumerate(scores)])
    (pair,) = numbers_of(read_study(tmp_path)).pairs
    assert (pair.better, pair.worse, pair.kept) == ("clip", "kl", True)
    # of the four ways to draw two runs of clip's, only 100 100 has a mean below 150
    assert pair.share == pytest.approx(3 / 4, abs=0.05)


def test_nothing_is_said_of_published_scores_where_there_are_none(folder):
    assert "published" not in write_report(folder)[1].read_text()


# --- what is missing --------------------------------------------------------------------------------------------------


def test_what_failed_or_is_missing_is_said_and_has_no_part_in_any_number(tmp_path):
    planned = plan(tiny())
    (tmp_path / PLAN).write_text(plan_as_json(planned))
    first, second, third, fourth = planned.points
    keep(tmp_path, [made_up(p.arm, p.env, p.seed, 100.0, id=p.id) for p in (first, second)])
    keep(tmp_path, [failure_of(third, "Traceback\nValueError: not by chance")])
    study = read_study(tmp_path)
    assert (len(study.results), len(study.failures), study.missing) == (
        2,
        1,
        {f"{fourth.arm} on {fourth.env}, seed {fourth.seed}": 1},
    )
    page = write_report(tmp_path)[0].read_text()
    assert "1 planned runs are missing" in page
    assert "ValueError: not by chance" in page
    states = [row["state"] for row in csv.DictReader((tmp_path / "results.csv").read_text().splitlines())]
    assert states == ["finished", "finished", "failed"]


def test_an_arm_that_was_not_begun_is_missing_as_a_whole(tmp_path):
    planned = plan(tiny())
    (tmp_path / PLAN).write_text(plan_as_json(planned))
    keep(tmp_path, [made_up(p.arm, p.env, p.seed, 100.0, id=p.id) for p in planned.points if p.arm == "clip"][:1])
    page, summary = (path.read_text() for path in write_report(tmp_path)[:2])
    for text in (page, summary):
        assert "3 planned runs are missing" in text
        assert "Missing: clip on cartpole, seed 1; all 2 runs of kl_adaptive." in text


def test_the_plan_alone_says_what_a_result_is_of(tmp_path):
    arms = {"usual": {"objective": "clip", "objective.surrogate.clip_eps": 0.2}}
    planned = plan(tiny(objectives=("clip",), arms=arms, reference="usual"))
    (tmp_path / PLAN).write_text(plan_as_json(planned))
    keep(tmp_path, [made_up("an older name", p.env, p.seed, 100.0, id=p.id) for p in planned.points])
    keep(tmp_path, [made_up("clip", "cartpole", 0, 5.0, id="ofanother")])
    study = read_study(tmp_path)
    # Two arms that come to the same runs are both there; what is not of this study is not.
    assert (study.arms, study.reference) == (["clip", "usual"], "usual")
    assert study.table(last100)["clip"]["cartpole"].tolist() == [100.0, 100.0]
    assert study.remarks == ["Results that are not of this study, and have no part in it: ofanother."]


def test_an_arm_counts_by_the_seeds_that_it_has_everywhere(folder):
    # Well on easy, badly on hard, where it has one run of five: counted run by run it would look better than clip.
    keep(folder, [made_up("new", "easy", seed, 130.0) for seed in range(5)] + [made_up("new", "hard", 0, 50.0)])
    numbers = numbers_of(read_study(folder))
    assert numbers.aggregates["new"]["mean"].estimate == pytest.approx((1.3 + 0.5) / 2)
    assert numbers.returns["new"]["easy"].tolist() == [130.0] * 5
    assert "new: 1 of 5 seeds on every environment" in write_report(folder)[1].read_text()


def test_so_it_does_in_the_figure_of_sample_efficiency(folder):
    keep(folder, [made_up("new", "easy", seed, 130.0) for seed in range(5)] + [made_up("new", "hard", 0, 50.0)])
    study = read_study(folder)
    figure = FIGURES["efficiency"][1](study, numbers_of(study))
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "new"]
    assert line.get_ydata()[-1] == pytest.approx((1.3 + 0.5) / 2)


def test_an_arm_without_runs_on_some_environment_is_in_no_aggregate(folder):
    keep(folder, [made_up("new", "easy", 0, 50.0)])
    numbers = numbers_of(read_study(folder))
    assert "new" not in numbers.aggregates
    assert numbers.returns["new"]["easy"].tolist() == [50.0]
    assert "new: no seed on every environment" in write_report(folder)[1].read_text()


def test_a_reference_without_runs_is_replaced_and_that_is_said(tmp_path):
    study = read_study(keep(tmp_path, [made_up("kl", "easy", 0, 5.0)]))
    assert study.reference == "kl"
    assert study.remarks == ["There is no finished run of 'clip': 'kl' is the reference."]


def test_a_run_in_which_no_episode_ended_is_named(folder):
    keep(folder, [made_up("kl", "easy", 9, 0.0) | {"return": None}])
    assert "No episode ended, so that there is no score: kl on easy, seed 9." in read_study(folder).remarks


def test_where_the_reference_learned_nothing_there_is_no_score_and_the_reason_is_true(folder):
    keep(folder, [made_up(arm, "flat", seed, 0.0) for arm in ("clip", "kl") for seed in range(3)])
    summary = write_report(folder)[1].read_text()
    assert "flat is in no score: 'clip' did not get clearly beyond the initial policy there." in summary


def test_one_run_alone_makes_a_report(tmp_path):
    results = [made_up("clip", "easy", 0, 10.0), made_up("kl", "easy", 0, 5.0)]
    write_report(keep(tmp_path, results))
    summary = (tmp_path / "report.md").read_text()
    assert "'kl' reaches 0.50 of 'clip' (IQM): too few runs to say more" in summary
    assert "| kl | 0.50 | 0.50 | 0.50 | 0.50 | −0.50 | 0.00 | 0.50 | 0.50 |\n" in summary


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    with pytest.raises(ConfigError, match="no finished run"):
        read_study(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_a_damaged_result_is_named(folder):
    (folder / RESULTS / "torn.json").write_text('{"id": ')
    with pytest.raises(OutputError, match=r"torn\.json"):
        read_study(folder)


# --- runs made by hand ------------------------------------------------------------------------------------------------


def test_runs_made_by_hand_have_a_report_too(tmp_path, capsys):
    for objective in ("clip", "kl_adaptive"):
        settings = {**TINY, "policy.hidden_sizes": (8,), "runs_dir": str(tmp_path / "runs")}
        train(load_config(env="cartpole", objective=objective, overrides=settings), quiet=True)
    assert main(["report", str(tmp_path / "runs"), "--into", str(tmp_path / "report")]) == 0
    assert "report.html" in capsys.readouterr().out
    study = read_study(tmp_path / "runs")
    assert (study.arms, study.envs, study.reference) == (["clip", "kl_adaptive"], ["CartPole-v1"], "clip")
    train(load_config(env="cartpole", objective="clip", overrides=settings | {"total_steps": 640}), quiet=True)
    study = read_study(tmp_path / "runs")
    # Runs that differ are not taken for repetitions.
    assert study.arms == ["clip total_steps=512", "clip total_steps=640", "kl_adaptive"]
    head, *rows = csv_of(study)
    assert {row[head.index("total_steps")] for row in rows} == {"512", "640"}
