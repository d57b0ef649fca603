"""The fast reader of event files finds what TensorBoard's own finds, and less only where a file is torn."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ppo_kl.diagnostics.event_file import read_scalars

FILE = "events.out.tfevents.1.x.0"


def write(path, events):
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString())
    return path


def scalar(step, tag, value, time=1.7e9):
    return Event(wall_time=time, step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))


def histogram(step):
    histo = HistogramProto(min=0, max=1, num=3, bucket_limit=[0.5, 1], bucket=[1, 2])
    return Event(wall_time=1.7e9, step=step, summary=Summary(value=[Summary.Value(tag="kl/per_state", histo=histo)]))


def restart(step):
    return Event(wall_time=1.7e9, step=step, session_log=SessionLog(status=SessionLog.START))


VERSION = Event(wall_time=1.7e9, file_version="brain.Event:2")


def ours(*paths):
    read = read_scalars(paths)
    return {
        tag: list(zip(points.steps, np.frombuffer(points.values, "<f4").tolist(), strict=True))
        for tag, points in read.items()
    }


def theirs(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_megabyte_of_scalars_and_histograms_reads_as_with_tensorboard(tmp_path):
    numbers = np.random.default_rng(0).lognormal(size=(400, 40))
    events = [VERSION]
    for i, row in enumerate(numbers):
        events += [scalar(256 * i, f"group/tag_{tag}", value, time=1.7e9 + i) for tag, value in enumerate(row)]
        events += [histogram(256 * i)] if i % 10 == 0 else []
    path = write(tmp_path / FILE, events)
    assert path.stat().st_size > 800_000
    read = ours(path)
    assert len(read) == 40
    assert read == theirs(tmp_path)


STEPS = st.integers(0, 2**62) | st.sampled_from([0, 1, 127, 128, 129, 16_383, 16_384, 2**31])
VALUES = st.floats(width=32, allow_nan=False)
POINTS = st.lists(st.tuples(STEPS, st.sampled_from(["a", "kl/forward", "λ", "x" * 200]), VALUES, st.booleans()))


@settings(max_examples=150)
@given(POINTS)
def test_whatever_steps_and_tags_come_in_whatever_order_all_points_come_back(tmp_path_factory, points):
    folder = tmp_path_factory.mktemp("events")
    timeless = [scalar(step, tag, value, time=0.0 if no_time else 1.7e9) for step, tag, value, no_time in points]
    expected = {}
    for step, tag, value, _ in points:
        expected.setdefault(tag, []).append((step, value))
    assert ours(write(folder / FILE, [VERSION, *timeless])) == expected


def test_numbers_that_are_not_finite_come_back_as_they_are(tmp_path):
    path = write(tmp_path / FILE, [scalar(1, "x", np.inf), scalar(2, "x", np.nan), scalar(3, "x", -np.inf)])
    np.testing.assert_array_equal([value for _, value in ours(path)["x"]], [np.inf, np.nan, -np.inf])


def test_several_values_in_one_record_are_all_read(tmp_path):
    values = [Summary.Value(tag="a", simple_value=1.0), Summary.Value(tag="b", simple_value=2.0)]
    both = Event(wall_time=1.7e9, step=5, summary=Summary(value=values))
    assert ours(write(tmp_path / FILE, [both, scalar(6, "b", 3.0), both])) == {
        "a": [(5, 1.0), (5, 1.0)],
        "b": [(5, 2.0), (6, 3.0), (5, 2.0)],
    }


def test_what_a_resumed_run_wrote_anew_takes_the_place_of_what_it_had_written(tmp_path):
    first = write(tmp_path / FILE, [VERSION, *(scalar(step, "x", step) for step in (1, 2, 3, 4))])
    later = [VERSION, restart(3), scalar(3, "x", 30.0), scalar(4, "x", 40.0), scalar(5, "x", 50.0)]
    second = write(tmp_path / FILE.replace(".1.", ".2."), later)
    assert ours(first, second) == {"x": [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]}
    assert ours(first, second) == theirs(tmp_path)


def test_a_tag_whose_every_point_was_superseded_is_gone(tmp_path):
    path = write(tmp_path / FILE, [scalar(3, "old", 1.0), restart(2), scalar(2, "new", 2.0)])
    assert ours(path) == {"new": [(2, 2.0)]}


def test_a_record_that_was_torn_ends_the_file_wherever_it_tore(tmp_path):
    whole = write(tmp_path / FILE, [scalar(1, "x", 1.0), scalar(2, "x", 2.0)]).read_bytes()
    one = len(whole) // 2
    for size in range(len(whole)):
        path = tmp_path / "torn"
        path.write_bytes(whole[:size])
        assert ours(path) == ({"x": [(1, 1.0)]} if size >= one else {}), size


@pytest.mark.parametrize("length", [0, 7, 2**63])
def test_a_length_that_its_checksum_denies_ends_the_file(tmp_path, length):
    path = write(tmp_path / FILE, [scalar(1, "x", 1.0), scalar(2, "x", 2.0), scalar(3, "x", 3.0)])
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 8] = struct.pack("<Q", length)
    path.write_bytes(data)
    assert ours(path) == {"x": [(1, 1.0)]}


def test_data_that_is_no_event_ends_the_file(tmp_path):
    path = tmp_path / FILE
    with path.open("wb") as file:
        for data in (scalar(1, "x", 1.0).SerializeToString(), b"\xff" * 20, scalar(3, "x", 3.0).SerializeToString()):
            RecordWriter(file).write(data)
    assert ours(path) == {"x": [(1, 1.0)]}


def test_an_empty_file_holds_nothing(tmp_path):
    (tmp_path / FILE).touch()
    assert ours(tmp_path / FILE) == {}
