"""A checkpoint is written whole or not at all, and reading one runs none of it."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forged import forge
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_kl import checkpoint
from ppo_kl.errors import CheckpointError, CheckpointWarning, OutputError


def state(value: float = 1.5, **more: Any) -> dict[str, Any]:
    """The least that is a checkpoint's content."""
    return {"learner": {"policy": {"actor.net.1.weight": torch.tensor([value, 0.1])}}, **more}


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "step_000000000001.pt"


# --- what the disk refuses -------------------------------------------------------------------------------------------


def test_a_checkpoint_that_the_disk_refuses_is_an_output_error_that_names_it(path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoint.save(path, state())
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=rf"{path}: cannot be written: .*No space left.*earlier checkpoints stay"):
        checkpoint.save(path, state(2.5))
    assert path.read_bytes() == before
    assert names_in(path.parent) == [path.name]


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="No such file or directory"):
        checkpoint.save(tmp_path / "gone" / "agent.pt", state())


# --- saving and loading ----------------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded_bit_for_bit(path):
    more = {
        "text": "a: é\n",
        "numbers": [1, 2**60, 0.1, -0.0, None, True],
        "nested": {"f64": torch.tensor([0.1, 1e300], dtype=torch.float64), "int": torch.arange(3), "none": {}},
    }
    checkpoint.save(path, state(**more))
    loaded = checkpoint.load(path)
    assert loaded.keys() == {"learner", *more}
    assert (loaded["text"], loaded["numbers"]) == (more["text"], more["numbers"])
    assert str(loaded["numbers"]) == str(more["numbers"])
    for name, x in (*state()["learner"]["policy"].items(), *more["nested"].items()):
        if isinstance(x, torch.Tensor):
            y = loaded["nested"].get(name, loaded["learner"]["policy"].get(name))
            assert y.dtype == x.dtype
            assert torch.equal(y, x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_parameters_that_are_not_finite_never_replace_a_checkpoint(path, bad):
    checkpoint.save(path, state())
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"actor\.net\.1\.weight.*not finite"):
        checkpoint.save(path, state(bad))
    assert path.read_bytes() == before
    assert names_in(path.parent) == [path.name]


def test_a_file_that_is_not_there_is_named(path):
    with pytest.raises(CheckpointError, match=rf"{path}: no such checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("share", [i / 20 for i in range(20)])
def test_a_truncated_file_is_refused(path, share):
    checkpoint.save(path, state(more=torch.arange(1000)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=rf"{path}: file damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [b"\0" * 100, b"PK\x03\x04 no zip", b"step: 3\n", b"\x80\x02]q\x00."])
def test_a_file_that_is_something_else_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(path)


@settings(max_examples=200)
@given(content=st.binary(max_size=100))
def test_any_bytes_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(path)


def test_a_file_in_which_any_bit_was_flipped_is_refused(path):
    checkpoint.save(path, state(text="x" * 500, more=torch.arange(500)))
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"{path}: file damaged"):
            checkpoint.load(path)


def test_a_file_with_something_behind_its_end_is_refused(path):
    checkpoint.save(path, state())
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=r"file damaged: .* bytes instead of"):
        checkpoint.load(path)


def test_nothing_is_given_to_torch_before_the_digest_is_right(path, monkeypatch):
    checkpoint.save(path, state())
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch was asked"))
    with pytest.raises(CheckpointError, match="file damaged"):
        checkpoint.load(path)


def test_a_folder_in_a_checkpoints_place_is_refused(path):
    path.mkdir()
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [{"format": 999}, {"steps": 3}, [1, 2], torch.zeros(2)])
def test_another_format_is_refused_with_both_numbers(path, content):
    forge(path, content)
    found = content.get("format") if isinstance(content, dict) else None
    with pytest.raises(CheckpointError, match=rf"format {found!r}, this version reads {checkpoint.FORMAT_VERSION}"):
        checkpoint.load(path)


def test_what_a_version_without_digests_wrote_is_refused_with_the_reason(path):
    torch.save({"format": 2, **state()}, path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of this version.*no digest"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("strange", "named"),
    [
        ({"a": (1, 2)}, r"extra\.a is a tuple"),
        ([0, {1}], r"extra\.1 is a set"),
        (np.float64(1.0), "extra is a float64"),
        (Path("x"), "extra is a PosixPath"),
        (torch.nn.Parameter(torch.zeros(1)), "extra is a Parameter"),
        (torch.zeros(1).expand(10), r"extra of shape \(10,\) has not as many values"),
    ],
)
def test_what_is_neither_tensor_nor_plain_value_is_not_saved(path, strange, named):
    with pytest.raises(CheckpointError, match=named):
        checkpoint.save(path, state(extra=strange))
    assert names_in(path.parent) == []


# --- which one -------------------------------------------------------------------------------------------------------


def test_checkpoints_are_in_order_of_their_steps(tmp_path):
    paths = [checkpoint.path_at(tmp_path, steps) for steps in (9, 10, 2_000, 123_456_789_012)]
    for path in reversed(paths):
        path.touch()
    assert checkpoint.in_order(tmp_path) == paths
    assert checkpoint.newest(tmp_path) == paths[-1]


def test_files_and_folders_of_other_names_are_none_of_its_business(tmp_path):
    kept = checkpoint.path_at(tmp_path, 5)
    for name in (
        kept.name,
        "step_6.pt",
        "step_000000000007.pt.bak",
        f".ppo_kl-{os.getpid()}-0a1b.tmp",
        "step_abcdefghijkl.pt",
        "best.pt",
    ):
        (tmp_path / name).touch()
    checkpoint.path_at(tmp_path, 8).mkdir()
    assert checkpoint.in_order(tmp_path) == [kept]


def save_at(folder: Path, *steps: int) -> list[Path]:
    paths = [checkpoint.path_at(folder, n) for n in steps]
    for n, path in zip(steps, paths, strict=True):
        checkpoint.save(path, state(float(n), steps=n))
    return paths


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_the_newest_is_the_one_with_most_steps_whenever_it_was_written(tmp_path):
    save_at(tmp_path, 30, 20, 10)
    assert checkpoint.load_newest(tmp_path)["steps"] == 30


def test_where_the_newest_is_damaged_the_one_before_is_loaded_with_a_warning_that_names_both(tmp_path):
    save_at(tmp_path, 10, 20, 30, 40)
    for steps in (30, 40):
        damage(checkpoint.path_at(tmp_path, steps))
    with pytest.warns(CheckpointWarning, match=r"step_0+40\.pt: file damaged.*going back to step_0+20\.pt"):
        assert checkpoint.load_newest(tmp_path)["steps"] == 20


def test_strictly_a_damaged_newest_is_refused(tmp_path):
    save_at(tmp_path, 10, 20)
    damage(checkpoint.path_at(tmp_path, 20))
    with pytest.raises(CheckpointError, match=r"step_0+20\.pt: file damaged"):
        checkpoint.load_newest(tmp_path, strict=True)


def test_where_all_are_damaged_the_newest_is_complained_of(tmp_path):
    for path in save_at(tmp_path, 10, 20):
        damage(path)
    with pytest.raises(CheckpointError, match=r"step_0+20\.pt: file damaged"):
        checkpoint.load_newest(tmp_path)


def test_the_oldest_are_let_go_of(tmp_path):
    paths = save_at(tmp_path, 10, 20, 30, 40)
    (tmp_path / "step_1.pt").touch()
    checkpoint.prune(paths[-1], keep=3)
    assert names_in(tmp_path) == sorted(["step_1.pt", *(path.name for path in paths[1:])])


def test_what_was_just_written_stays_where_the_run_went_back_behind_a_damaged_one(tmp_path):
    damaged, saved = save_at(tmp_path, 40, 30)
    damage(damaged)
    checkpoint.prune(saved, keep=1)
    with pytest.warns(CheckpointWarning):
        assert checkpoint.load_newest(tmp_path)["steps"] == 30


def test_saving_at_equal_steps_replaces_that_checkpoint_alone(tmp_path):
    first, second = save_at(tmp_path, 10, 20)
    before = first.read_bytes()
    checkpoint.save(second, state(7.0, steps=20, again=True))
    assert checkpoint.load(second)["again"]
    assert (first.read_bytes(), names_in(tmp_path)) == (before, [first.name, second.name])


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: no checkpoint here"):
        checkpoint.newest(tmp_path)
