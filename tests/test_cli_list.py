"""`ppo-kl list`: every objective, every file, every run with how it stands."""

import json

import pytest

from ppo_kl.cli import main
from ppo_kl.config.presets import PRESETS
from ppo_kl.load import load_config, shipped, to_yaml


@pytest.fixture(autouse=True)
def wide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def listed(capsys, *arguments):
    assert main(["list", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def a_run(folder, rows, *, status=None, end=None, result=None):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(load_config(overrides={"total_steps": 1000})))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "metadata.json").write_text(json.dumps({"exit_status": status, "end": end}))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))


def test_every_objective_and_every_file_stands_in_it(capsys):
    out = listed(capsys)
    words = set(out.split())
    assert set(PRESETS) <= words
    assert set(shipped("env")) <= words
    assert "HalfCheetah-v5" in words
    assert "None yet" in out


def test_one_of_them_alone(capsys):
    assert "kl_adaptive" not in listed(capsys, "environments")
    assert "cartpole" not in listed(capsys, "objectives")


def test_each_run_says_how_it_stands(capsys, tmp_path):
    row = {"steps": 256, "iteration": 1, "kl/forward": 0.0123, "rollout/return_last100": 21.5}
    a_run(tmp_path / "r/A/clip/seed0", [row, row | {"steps": 1024}], status=0, end="x", result={})
    a_run(tmp_path / "r/A/clip/seed1", [row], status=143, end="x")
    a_run(tmp_path / "r/A/clip/seed2", [row], status=4, end="x")
    a_run(tmp_path / "r/A/clip/seed4", [row], status=129, end="x")
    a_run(tmp_path / "r/A/clip/seed3", [row | {"kl/forward": None}, row | {"rollout/return_last100": None}])
    lines = {line.split()[0]: line for line in listed(capsys, "runs", "--runs-dir", "r").splitlines() if "seed" in line}
    assert list(lines) == [f"A/clip/seed{k}" for k in range(5)]
    assert "finished" in lines["A/clip/seed0"]
    assert "1,024 / 1,000" in lines["A/clip/seed0"]
    assert "stopped by SIGTERM" in lines["A/clip/seed1"]
    assert "exit status 4" in lines["A/clip/seed2"]
    assert "running, or killed" in lines["A/clip/seed3"]
    assert "stopped by SIGHUP" in lines["A/clip/seed4"]
    assert lines["A/clip/seed0"].split()[-2:] == ["21.5", "0.0123"]
    assert lines["A/clip/seed3"].split()[-2:] == ["–", "0.0123"]


def test_a_torn_last_line_and_a_file_without_one_do_no_harm(capsys, tmp_path):
    a_run(tmp_path / "runs/A/clip/seed0", [{"steps": 512, "iteration": 1}], status=0)
    with (tmp_path / "runs/A/clip/seed0/metrics.jsonl").open("a") as file:
        file.write('{"steps": 768, "iter')
        file.write('\n5\n{"steps": "x"}\n[1]')
    a_run(tmp_path / "runs/A/clip/seed1", [])
    out = listed(capsys, "runs")
    assert "512 / 1,000" in out
    assert "? / 1,000" in out
