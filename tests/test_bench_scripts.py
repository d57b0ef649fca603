"""What the benchmark's scripts make of a results file, by hand, and of runs that fail."""

import json
import os
import sys

import pytest
from script_modules import ROOT, load_script

# Speeds by repeat. Of the ratios to sb3, 2, 5 and 4, the median is 4; of the medians it would be 4 / 1.
SPEEDS = {"ppo_kl": [2000, 5000, 4000], "sb3": [1000, 1000, 1000], "sbx": [1500, 2500, 2000], "bare-sync": [9e5] * 3}
GRAD_STEP = {"ppo_kl": 200.0, "sb3": 1000.0, "sbx": 400.0}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "bench")
    yield lambda name: load_script(f"bench/{name}")
    sys.modules.pop("results", None)


@pytest.fixture
def results(tmp_path):
    rows = [
        {
            "peer": name,
            "workload": "A",
            "repeat": repeat,
            "steps_per_s": speed,
            "us_per_env_step": 40.0,
            "steps_per_cpu_s": speed,
            "setup_s": 3.0,
            **({"us_per_grad_step": GRAD_STEP[name]} if name in GRAD_STEP else {}),
        }
        for name, speeds in SPEEDS.items()
        for repeat, speed in enumerate(speeds)
    ]
    rows += [{"peer": "sb3-2-threads", "workload": "A", "repeat": 0, "error": "exit status 1: no\nKeyError: 'x'"}]
    rows += [{"peer": "sbx", "workload": "A", "repeat": 3, "error": "took longer than 60 s"}]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_table_has_medians_their_range_and_ratios_within_a_repeat(script, results):
    table = script("table")
    lines = table.table(table.read([results]), "A").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert [row[0] for row in cells] == ["bare-sync", "ppo_kl", "sbx", "sb3"]
    # name, steps/s, × sb3, µs per env step, µs per gradient step, × sbx, steps per CPU s, setup s
    assert cells[1] == ["ppo_kl", "4,000 (2,000–5,000)", "4.00", "40.0", "200", "0.50", "4,000", "3.0"]
    assert cells[2] == ["sbx", "2,000 (1,500–2,500)", "2.00", "40.0", "400", "1.00", "2,000", "3.0"]
    assert cells[0][4:6] == ["–", "–"]


def test_the_ratio_is_the_median_of_those_within_a_repeat(script):
    ratio = script("results").ratio
    ours, theirs = ([{"repeat": i, "steps_per_s": x} for i, x in enumerate(xs)] for xs in ([8, 1, 6], [2, 1, 3]))
    # 8/2, 1/1, 6/3: their median is 2; that of the medians would be 6/2.
    assert ratio(ours, theirs) == 2.0
    assert ratio(ours[:1], theirs[1:]) is None


def test_what_failed_is_named_and_takes_no_part(script, results):
    table = script("table")
    lines = table.table(table.read([results]), "A").splitlines()
    assert "- sb3-2-threads: 1 of 1 failed: KeyError: 'x'" in lines
    assert "- sbx: 1 of 4 failed: took longer than 60 s" in lines


def test_a_picture_is_drawn(script, results, tmp_path):
    pytest.importorskip("matplotlib")
    plot = script("plot")
    plot.picture(plot.read([results]), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no process can be pinned to a core here")
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('loading'); print('{\"steps_per_s\": 5.0}')", {"steps_per_s": 5.0}),
        ("raise SystemExit('no JAX here')", {"error": "exit status 1: no JAX here\n"}),
        ("import time; time.sleep(60)", {"error": "took longer than 1 s"}),
        ("""print('{"compile": "failed"}')""", {"error": "steps were not compiled: "}),
    ],
)
def test_a_run_is_what_it_printed_last_or_why_it_failed(script, code, expected):
    core = min(os.sched_getaffinity(0))
    assert script("run").run([sys.executable, "-c", code], [core], timeout=1 if "sleep" in code else 30) == expected


def test_every_contestant_has_a_script_and_workloads_there_are(script):
    for contestant in script("run").CONTESTANTS.values():
        assert set(contestant.workloads) <= set("ABC")
        file = contestant.command[0]
        assert file == "-m" or (ROOT / file).is_file()


# --- scale ------------------------------------------------------------------------------------------------------------


def test_what_a_sample_costs_is_of_the_median_iteration_after_the_first(script):
    scale = script("scale")
    seen = scale.Seen()
    # 4 · 5 = 20 samples: 2, 1 and 6 ms of a rollout have the median 2 ms, 100 µs each; updates 40 ms, 2,000 µs.
    seen.seconds = [{"rollout": 9.0, "update": 9.0}, *({"rollout": x, "update": 0.04} for x in (2e-3, 1e-3, 6e-3))]
    assert scale.microseconds(scale.Point(4, 5), seen) == ["100.00", "2000.00", "2100.00"]


def test_a_small_rollout_is_measured_and_what_the_process_holds_is_looked_at(script, monkeypatch):
    scale = script("scale")
    monkeypatch.setattr(scale, "SETTINGS", {**scale.SETTINGS, "runtime.compile": "off"})
    monkeypatch.setattr(scale, "LOOKED_AT", (2,))
    seen = scale.measured(scale.Point(2, 8, iterations=3))
    assert [set(row) for row in seen.seconds] == [{"rollout", "advantages", "measure", "update"}] * 3
    ((number, (resident, files, threads)),) = seen.holds.items()
    assert number == 2
    assert resident > 50
    assert min(files, threads) >= 1
