"""A checkpoint is written whole or not at all, and reading one runs none of it."""

from __future__ import annotations

import os
import pickle
import random
import stat
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_kl import checkpoint
from ppo_kl.errors import CheckpointError


def state(value: float = 1.5, **more: Any) -> dict[str, Any]:
    """The least that is a checkpoint's content."""
    return {"learner": {"policy": {"actor.net.1.weight": torch.tensor([value, 0.1])}}, **more}


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "step_000000000001.pt"


# --- writing ---------------------------------------------------------------------------------------------------------


def test_what_is_written_replaces_the_old_file_and_nothing_else_is_left(path):
    path.write_bytes(b"old")
    checkpoint.write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert names_in(path.parent) == [path.name]


def fails_halfway(file: BinaryIO) -> None:
    file.write(b"half of the new")
    file.flush()
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("old", [b"old", None])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(path, old):
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_atomically(path, fails_halfway)
    assert names_in(path.parent) == ([] if old is None else [path.name])
    assert old is None or path.read_bytes() == old


def test_an_interrupt_in_the_middle_of_a_write_leaves_the_old_file_and_nothing_beside_it(path):
    def interrupted(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_atomically(path, interrupted)
    assert path.read_bytes() == b"old"
    assert names_in(path.parent) == [path.name]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_system_call_that_fails_leaves_the_old_file_and_nothing_beside_it(path, call, monkeypatch):
    def refuse(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OSError, match="Input/output error"):
        checkpoint.write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert names_in(path.parent) == [path.name]


def test_the_file_is_on_the_disk_before_it_takes_its_place_and_the_folder_after(path, monkeypatch):
    calls: list[tuple[str, Any]] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{handle}"))
        calls.append(("fsync", "folder" if target.is_dir() else (target.parent == path.parent, target.read_bytes())))
        fsync(handle)

    def spy_replace(source: str, target: Path) -> None:
        calls.append(("replace", (Path(source).parent == path.parent, target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    checkpoint.write_atomically(path, lambda file: file.write(b"new"))
    assert calls == [("fsync", (True, b"new")), ("replace", (True, path)), ("fsync", "folder")]


def test_until_it_is_complete_a_reader_sees_the_old_file_and_no_second_checkpoint(path):
    path.write_bytes(b"old")
    seen = []

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        seen.append((path.read_bytes(), checkpoint.in_order(path.parent)))

    checkpoint.write_atomically(path, write)
    assert seen == [(b"old", [path])]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_files_mode_is_the_umasks(path, umask, mode):
    before = os.umask(umask)
    try:
        checkpoint.write_atomically(path, lambda file: file.write(b"new"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


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
    with pytest.raises(CheckpointError, match=r"damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [b"\0" * 100, b"PK\x03\x04 no zip", b"step: 3\n", b"\x80\x02]q\x00."])
def test_a_file_that_is_something_else_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=200)
@given(content=st.binary(max_size=100))
def test_any_bytes_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(path)


@pytest.mark.filterwarnings("ignore")
def test_a_flipped_bit_raises_nothing_but_a_checkpoint_error(path):
    checkpoint.save(path, state(text="x" * 500, more=torch.arange(500)))
    whole, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            checkpoint.load(path)
        except CheckpointError:
            refused += 1
    assert refused > 0


def test_a_folder_in_a_checkpoints_place_is_refused(path):
    path.mkdir()
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [{"format": 999}, {"steps": 3}, [1, 2], torch.zeros(2)])
def test_another_format_is_refused_with_both_numbers(path, content):
    torch.save(content, path)
    found = content.get("format") if isinstance(content, dict) else None
    with pytest.raises(CheckpointError, match=rf"format {found!r}, this version reads {checkpoint.FORMAT_VERSION}"):
        checkpoint.load(path)


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def as_pickle(payload: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(payload, protocol=2))


def as_torch(payload: Any, path: Path) -> None:
    torch.save({"format": checkpoint.FORMAT_VERSION, **state(), "extra": payload}, path)


def as_old_torch(payload: Any, path: Path) -> None:
    torch.save({"format": checkpoint.FORMAT_VERSION, "extra": payload}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [as_pickle, as_torch, as_old_torch])
def test_code_in_a_file_is_not_run(path, tmp_path, write):
    marker = tmp_path / "executed"
    write(Payload(marker), path)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load(path)
    assert not marker.exists()


def test_the_payload_of_the_test_above_would_run_where_pickle_is_trusted(path, tmp_path):
    as_torch(Payload(tmp_path / "executed"), path)
    torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists()


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
        f".{kept.name}.x.tmp",
        "step_abcdefghijkl.pt",
        "best.pt",
    ):
        (tmp_path / name).touch()
    checkpoint.path_at(tmp_path, 8).mkdir()
    assert checkpoint.in_order(tmp_path) == [kept]


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: no checkpoint here"):
        checkpoint.newest(tmp_path)
