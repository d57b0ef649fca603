"""Metrics reach TensorBoard and metrics.jsonl whole, and a resumed run leaves neither gap nor duplicate."""

import json
import math

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_kl.config import TrainConfig
from ppo_kl.diagnostics.histograms import Histogram
from ppo_kl.diagnostics.writers import JsonLinesWriter, TensorBoardWriter


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
