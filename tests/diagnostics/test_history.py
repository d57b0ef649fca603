"""A run's metrics are read back as they were written, from either file, whole or torn."""

import json
import math

import numpy as np
import pytest

from ppo_kl.config import TrainConfig
from ppo_kl.diagnostics.history import find_runs, read_history, read_run
from ppo_kl.diagnostics.tensorboard_writer import TensorBoardWriter
from ppo_kl.diagnostics.writers import JsonLinesWriter
from ppo_kl.errors import ConfigError
from ppo_kl.load import to_yaml

ROWS = [
    {"kl/forward": 0.5, "rollout/return_mean": 1.0},
    {"kl/forward": math.inf},
    {"kl/forward": 0.25, "rollout/return_mean": 3.0, "eval/return_mean": 9.0},
]


def write(writer, rows=ROWS, begin=1):
    for i, row in enumerate(rows, begin):
        writer.write(256 * i, i, row)
    writer.close(True)


def lines(folder, *rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return folder


@pytest.fixture(params=["metrics.jsonl", "events"])
def folder(request, tmp_path):
    """A run with three iterations, of which one or the other file is there."""
    write(
        JsonLinesWriter(tmp_path / "metrics.jsonl")
        if request.param == "metrics.jsonl"
        else TensorBoardWriter(tmp_path, TrainConfig())
    )
    return tmp_path


def test_columns_have_a_place_for_every_iteration_and_nan_where_it_told_nothing(folder):
    history = read_history(folder)
    assert history.steps.tolist() == [256, 512, 768]
    np.testing.assert_array_equal(history.columns["kl/forward"], [0.5, np.nan, 0.25])
    np.testing.assert_array_equal(history.columns["rollout/return_mean"], [1.0, np.nan, 3.0])
    np.testing.assert_array_equal(history.columns["eval/return_mean"], [np.nan, np.nan, 9.0])


def test_what_was_not_finite_is_counted_and_what_was_not_told_is_not(folder):
    assert read_history(folder).nonfinite == {"kl/forward": 1}


def test_a_tag_that_no_iteration_has_is_a_column_of_nan(folder):
    assert np.isnan(read_history(folder).column("kl/epoch_3")).tolist() == [True] * 3


def test_a_resumed_run_is_read_without_what_it_superseded(tmp_path):
    again = [{"kl/forward": 7.0}, {"kl/forward": 8.0}]
    for name in ("lines", "events"):
        (tmp_path / name).mkdir()
    write(JsonLinesWriter(tmp_path / "lines/metrics.jsonl"))
    write(JsonLinesWriter(tmp_path / "lines/metrics.jsonl", resumed_at=512), again, begin=3)
    write(TensorBoardWriter(tmp_path / "events", TrainConfig()))
    write(TensorBoardWriter(tmp_path / "events", TrainConfig(), resumed_at=512), again, begin=3)
    for name in ("lines", "events"):
        history = read_history(tmp_path / name)
        assert history.steps.tolist() == [256, 512, 768, 1024]
        np.testing.assert_array_equal(history.columns["kl/forward"], [0.5, np.nan, 7.0, 8.0])


def test_lines_win_over_event_files(tmp_path):
    write(TensorBoardWriter(tmp_path, TrainConfig()))
    lines(tmp_path, {"steps": 1, "iteration": 1, "kl/forward": 0.125})
    assert read_history(tmp_path).steps.tolist() == [1]


def test_lines_that_are_torn_or_no_iteration_are_passed_over(tmp_path):
    good = {"steps": 5, "iteration": 1, "kl/forward": 0.5}
    bad = ['{"steps": 6, "kl/for', "", "[1]", "null", {"iteration": 2}, {"steps": "7"}, "\x00\x01"]
    assert read_history(lines(tmp_path, *bad, good, *bad)).columns["kl/forward"].tolist() == [0.5]


def test_a_value_that_is_no_number_counts_as_not_finite(tmp_path):
    history = read_history(lines(tmp_path, {"steps": 1, "x": "words"}, {"steps": 2, "x": [1]}, {"steps": 3, "x": 2}))
    np.testing.assert_array_equal(history.columns["x"], [np.nan, np.nan, 2.0])
    assert history.nonfinite == {"x": 2}


@pytest.mark.parametrize("text", [[], ['{"steps": 6, "kl']])
def test_a_run_without_an_iteration_is_refused_with_what_to_do(tmp_path, text):
    with pytest.raises(ConfigError, match="no iteration in its metrics yet; look again"):
        read_history(lines(tmp_path, *text))


# --- folders ---------------------------------------------------------------------------------------------------------

LINE = {"steps": 1, "iteration": 1, "kl/forward": 0.5}


def test_a_folder_that_holds_runs_stands_for_all_of_them_by_name(tmp_path):
    runs = [
        lines(tmp_path / name, LINE) for name in ("Env/clip/seed0", "Env/kl_adaptive/seed0", "Env/kl_adaptive/seed1")
    ]
    assert find_runs(tmp_path) == runs
    assert find_runs(tmp_path / "Env/kl_adaptive") == runs[1:]
    assert find_runs(runs[1]) == [runs[1]]


@pytest.mark.parametrize(
    ("name", "reason"), [("nowhere", "no such folder"), (".", "neither metrics.jsonl nor an event")]
)
def test_a_folder_without_runs_is_refused_with_what_to_name(tmp_path, name, reason):
    with pytest.raises(ConfigError, match=f"{reason}.*name a run folder, as runs/ENV/OBJECTIVE/seed0"):
        find_runs(tmp_path / name)


def test_a_run_is_named_by_its_configuration(tmp_path):
    (lines(tmp_path, LINE) / "config.yaml").write_text(to_yaml(TrainConfig(seed=7)))
    run = read_run(tmp_path)
    assert (run.env, run.objective, run.seed) == ("CartPole-v1", "kl_adaptive", "7")
    assert run.config == TrainConfig(seed=7)


@pytest.mark.parametrize(
    "text", [None, "objective: {name: mine, surrogate: {kind: of_a_plugin}}", ": not yaml", "\x00"]
)
def test_a_configuration_that_cannot_be_read_leaves_the_folders_names(tmp_path, text):
    folder = lines(tmp_path / "Maze-v0/mine/seed3-2", LINE)
    if text is not None:
        (folder / "config.yaml").write_text(text)
    run = read_run(folder)
    assert (run.env, run.objective, run.seed, run.config) == ("Maze-v0", "mine", "3-2", None)


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({"result.json": "{}", "metadata.json": '{"end": "now", "exit_status": 0}'}, "finished"),
        ({"metadata.json": '{"end": null, "exit_status": null}'}, "running, or killed"),
        ({"metadata.json": '{"end": "now", "exit_status": 143}'}, "stopped by SIGTERM"),
        ({"metadata.json": '{"end": "now", "exit_status": 130}'}, "stopped by SIGINT"),
        ({"metadata.json": '{"end": "now", "exit_status": 4}'}, "failed: exit status 4, the update stayed non-finite"),
        ({"metadata.json": '{"end": "now", "exit_status": 1}'}, "failed: exit status 1"),
        ({"metadata.json": "{torn"}, "state unknown"),
        ({"metadata.json": "[]"}, "state unknown"),
        ({}, "state unknown"),
    ],
)
def test_how_a_run_ended(tmp_path, files, state):
    lines(tmp_path, LINE)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_run(tmp_path).state == state
