"""How long a study will take, said before it is begun."""

import pytest
from tiny_studies import TINY, made_up, tiny

from ppo_kl.ablation import estimate
from ppo_kl.ablation.estimate import BESIDE, COMPILED_SHARE, COMPILING, Seconds, in_words, seconds_of
from ppo_kl.ablation.plan import plan
from ppo_kl.ablation.result import write
from ppo_kl.cli import main
from ppo_kl.load import load_study


@pytest.fixture
def timed(monkeypatch):
    """An iteration takes a second to update and half a second beside it; the configurations that were looked at."""
    looked_at = []

    def iteration(config):
        looked_at.append(config)
        return Seconds(update=1.0, beside=0.5)

    monkeypatch.setattr(estimate, "_iteration", iteration)
    return looked_at


def test_runs_that_differ_in_seed_length_and_objective_alone_are_timed_once(timed):
    # 2 objectives × 2 seeds of 4 and of 8 iterations: 2 × 64 samples each
    points = plan(tiny(grid={"total_steps": (512, 1024)})).points
    assert seconds_of(points) == pytest.approx(4 * (4 * 1.5 + BESIDE) + 4 * (8 * 1.5 + BESIDE))
    assert len(timed) == 1


def test_every_other_kind_of_run_is_timed_by_itself(timed):
    points = plan(tiny(envs=("cartpole", "pendulum"), grid={"training.num_epochs": (1, 3)})).points
    seconds_of(points)
    assert {(config.env.id, config.training.num_epochs) for config in timed} == {
        ("CartPole-v1", 1),
        ("CartPole-v1", 3),
        ("Pendulum-v1", 1),
        ("Pendulum-v1", 3),
    }
    assert len(timed) == 4


def test_compiled_runs_are_reckoned_with_what_compiling_costs_and_saves(timed):
    (point,) = plan(tiny(objectives=("clip",), seeds=1, set={"runtime.compile": "on", "total_steps": 100_000})).points
    iterations = -(-100_000 // (point.config.env.num_envs * point.config.training.num_steps))
    assert seconds_of([point]) == pytest.approx(iterations * (0.5 + COMPILED_SHARE) + BESIDE + COMPILING)


def test_a_plan_with_its_time_is_printed_and_nothing_is_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / "study"
    (first, *_) = plan(tiny()).points
    write(made_up(first.arm, first.env, first.seed, 100.0, id=first.id), tmp_path / "known" / "first.json")
    settings = [f"--set={key}={value}" for key, value in TINY.items()]
    study = ["--objective", "clip,kl_adaptive", "--env", "cartpole", "--seeds", "2", *settings]
    more = ["--known", str(tmp_path / "known"), "--arms", "clip", "--parallel", "1", "--dry-run"]
    assert main(["ablate", *study, "--folder", str(folder), *more]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # runs, finished, to do now
    assert ["clip", "2", "1", "1", "512"] in lines
    assert ["kl_adaptive", "2", "0", "0", "512"] in lines
    assert ["cartpole", "4", "1", "1", "512"] in lines
    assert lines[-1][:9] == ["1", "runs", "to", "do,", "1", "side", "by", "side:", "about"]
    assert not folder.exists()


def test_the_papers_table_fits_a_terminal(timed, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["ablate", "--config", "ppo_table1", "--folder", str(tmp_path), "--parallel", "2", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert all(f"\n {env} " in out for env in plan(load_study("ppo_table1")).study.envs)
    assert "231 runs to do, 2 side by side" in out
    assert len(timed) == 7


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 seconds"), (89, "89 seconds"), (90, "2 minutes"), (5399, "90 minutes"), (5400, "1.5 hours")],
)
def test_a_duration_is_said_as_people_say_it(seconds, words):
    assert in_words(seconds) == words
