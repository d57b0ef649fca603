"""The shipped smoke study through the command line, as a user runs it, and its report held against its results."""

import csv
import json
import statistics
import subprocess
import sys

import pytest


def test_the_smoke_study_runs_and_its_report_says_what_its_runs_say(tmp_path):
    study = [sys.executable, "-m", "ppo_kl", "ablate", "--config", "smoke", "--folder", str(tmp_path)]
    done = subprocess.run(study, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 of 12 runs are finished" in done.stdout
    assert f"Report: {tmp_path / 'report.html'}" in done.stdout

    results = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")]
    assert {(r["arm"], r["env"], r["seed"]) for r in results} == {
        (arm, env, seed) for arm in ("clip", "kl_adaptive") for env in ("cartpole", "pendulum") for seed in range(3)
    }
    rows = {row["id"]: row for row in csv.DictReader((tmp_path / "results.csv").read_text().splitlines())}
    for result in results:
        run = tmp_path / "runs" / result["env"] / result["arm"] / f"seed{result['seed']}-{result['id']}"
        assert result["return"] == pytest.approx(
            json.loads((run / "result.json").read_text())["return_last100"], rel=1e-5
        )
        assert list(run.glob("events.out.tfevents.*"))
        assert float(rows[result["id"]]["return"]) == result["return"]
    summary = (tmp_path / "report.md").read_text()
    for arm in ("clip", "kl_adaptive"):
        mean = statistics.fmean(r["return"] for r in results if (r["arm"], r["env"]) == (arm, "cartpole"))
        assert f"| {arm} | {mean:,.0f}" in summary or f"| {arm} | {mean:.1f} ±" in summary
    assert "<svg" in (tmp_path / "report.html").read_text()

    again = subprocess.run(study, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert "12 of 12 runs are finished" in again.stdout
    assert "return" not in again.stdout  # nothing was run
