"""Metrics reach TensorBoard and metrics.jsonl whole, and a resumed run leaves neither gap nor duplicate."""

import errno
import json
import math
import os
import shutil
import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_kl.config import TrainConfig
from ppo_kl.diagnostics.glossary import GLOSSARY
from ppo_kl.diagnostics.histograms import Histogram
from ppo_kl.diagnostics.rows import rows_of
from ppo_kl.diagnostics.tensorboard_writer import TensorBoardWriter
from ppo_kl.diagnostics.writers import JsonLinesWriter


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_holds_steps_iteration_and_every_metric_and_null_for_what_is_not_finite(tmp_path):
    writer = JsonLinesWriter(tmp_path / "m.jsonl")
    writer.write(256, 1, {"kl/forward": 0.5, "ratio/max": math.inf, "loss/policy": math.nan})
    writer.close(True)
    expected = {"steps": 256, "iteration": 1, "kl/forward": 0.5, "ratio/max": None, "loss/policy": None}
    assert rows(tmp_path / "m.jsonl") == [expected]


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    writer = JsonLinesWriter(tmp_path / "m.jsonl")
    writer.write(1, 1, {"a": 1.0})
    assert len(rows(tmp_path / "m.jsonl")) == 1
    writer.close(True)


def test_resuming_drops_later_and_torn_lines_only(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"steps": 1, "iteration": 1}\n{"steps": 2, "iteration": 2}\n{"steps": 3, "iterat')
    writer = JsonLinesWriter(path, resumed_at=1)
    writer.write(2, 2, {"again": 1.0})
    writer.close(True)
    assert [row["steps"] for row in rows(path)] == [1, 2]
    assert rows(path)[1]["again"] == 1.0


def scalars(folder, tag):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_gets_each_value_at_its_environment_step(tmp_path):
    writer = TensorBoardWriter(tmp_path, TrainConfig())
    writer.write(256, 1, {"kl/forward": 0.5})
    writer.write(512, 2, {"kl/forward": 0.25})
    writer.close(True)
    assert scalars(tmp_path, "kl/forward") == [(256, 0.5), (512, 0.25)]


def test_a_histogram_keeps_its_buckets(tmp_path):
    writer = TensorBoardWriter(tmp_path, TrainConfig())
    writer.write(256, 1, {}, {"kl/per_state": Histogram([0.0, 0.25, 1.0], [3.0, 1.0])})
    writer.close(True)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Histograms("kl/per_state")
    assert event.step == 256
    told = event.histogram_value
    assert (told.min, told.max, told.num) == (0.0, 1.0, 4.0)
    assert (list(told.bucket_limit), list(told.bucket)) == ([0.25, 1.0], [3.0, 1.0])


def test_a_resumed_run_purges_what_came_after_its_checkpoint(tmp_path):
    first = TensorBoardWriter(tmp_path, TrainConfig())
    for step in (1, 2, 3):
        first.write(step, step, {"x": float(step)})
    first.close(False)
    second = TensorBoardWriter(tmp_path, TrainConfig(), resumed_at=1)
    second.write(2, 2, {"x": 20.0})
    second.close(True)
    assert scalars(tmp_path, "x") == [(1, 1.0), (2, 20.0)]


def test_rows_are_read_without_the_line_that_a_kill_tore(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(
        b'{"steps": 1, "x": null}\n\x00\xff\n[1]\n{"iteration": 2}\n{"steps": 2, "x": 0.5}\n{"steps": 3, "x"'
    )
    assert rows_of(path) == [{"steps": 1, "x": None}, {"steps": 2, "x": 0.5}]


def test_a_resumed_log_is_the_old_one_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    path.write_text('{"steps": 1}\n{"steps": 2}\n')
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        JsonLinesWriter(path, resumed_at=1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("leave", [Path.unlink, lambda path: path.rename(path.with_suffix(".moved"))])
def test_a_line_that_nobody_would_find_is_an_error(tmp_path, leave):
    path = tmp_path / "m.jsonl"
    writer = JsonLinesWriter(path)
    leave(path)
    with pytest.raises(FileNotFoundError):
        writer.write(1, 1, {"a": 1.0})
    writer.close(False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_events_that_cannot_be_written_are_an_error_of_the_same_iteration(tmp_path):
    folder, others = tmp_path / "run", threading.enumerate()
    folder.mkdir()
    writer = TensorBoardWriter(folder, TrainConfig())
    writer.write(1, 1, {"a": 1.0})
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        writer.write(2, 2, {"a": 1.0})
    for thread in set(threading.enumerate()).difference(others):
        thread.join()


# What dashboards and scripts of other people are built on; new ones may be added, none is taken away or renamed.
TAGS = """
kl/forward kl/forward_max kl/forward_p95 kl/reverse kl/mean_part kl/scale_part kl/k1 kl/k2 kl/k3 kl/before_update
kl/controlled kl/target_ratio kl/target_low kl/target_high penalty/lambda penalty/loss penalty/share penalty/saturated
penalty/nonfinite ratio/mean ratio/min ratio/max ratio/clip_fraction ratio/ess loss/policy loss/value loss/entropy
loss/total policy/entropy policy/scale_mean policy/std_at_bound value/explained_variance optim/lr optim/grad_norm
optim/steps optim/skipped optim/stopped_early rollout/return_mean rollout/return_last100 rollout/length_mean
rollout/episodes env/nonfinite time/steps_per_second time/rollout_seconds time/update_seconds
"""


def test_no_metric_loses_its_name():
    assert set(TAGS.split()) <= set(GLOSSARY)
