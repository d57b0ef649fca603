"""The recorded runs of tuned files are of the files as they stand, and complete."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from script_modules import ROOT, load_script

from ppo_kl.load import load_config

RECORDED = json.loads((ROOT / "docs" / "results" / "environments.json").read_text())
SEEDS = ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("name", RECORDED)
def test_each_is_of_a_files_own_length_on_five_seeds_with_both_families(name):
    assert RECORDED[name]["steps"] == load_config(env=name).total_steps
    for objective in ("kl_adaptive", "clip"):
        assert list(RECORDED[name][objective]) == SEEDS


def test_those_that_are_missing_are_made_and_the_others_kept(tmp_path, monkeypatch):
    there = {"return": 7.0, "kl_median": 0.5}
    complete = dict.fromkeys(SEEDS, there)
    recorded = tmp_path / "environments.json"
    recorded.write_text(json.dumps({"cartpole": {"steps": 64, "kl_adaptive": complete, "clip": {"0": there}}}))
    done = []

    def run(job):
        done.append(job)
        return {"return": 1.26, "kl_median": 0.00126}

    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = load_script("environment_runs")
    monkeypatch.setattr(script, "RESULTS", recorded)
    monkeypatch.setattr(script, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.setattr(script, "load_config", lambda env: SimpleNamespace(total_steps=64))
    monkeypatch.setattr(script, "run", run)
    monkeypatch.setattr("sys.argv", ["environment_runs.py", "cartpole"])
    script.main()
    assert done == [("clip", "cartpole", seed, 64) for seed in (1, 2, 3, 4)]
    kept = json.loads(recorded.read_text())["cartpole"]
    assert kept["kl_adaptive"] == complete
    assert kept["clip"] == {"0": there, **{key: {"return": 1.3, "kl_median": 0.0013} for key in SEEDS[1:]}}
