"""A file is written whole or not at all, and what is left of a killed writer goes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from ppo_kl.atomic import write_atomically


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "step_000000000001.pt"


def test_what_is_written_replaces_the_old_file_and_nothing_else_is_left(path):
    path.write_bytes(b"old")
    write_atomically(path, lambda file: file.write(b"new"))
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
        write_atomically(path, fails_halfway)
    assert names_in(path.parent) == ([] if old is None else [path.name])
    assert old is None or path.read_bytes() == old


def test_an_interrupt_in_the_middle_of_a_write_leaves_the_old_file_and_nothing_beside_it(path):
    def interrupted(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
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
    write_atomically(path, lambda file: file.write(b"new"))
    assert calls == [("fsync", (True, b"new")), ("replace", (True, path)), ("fsync", "folder")]


def test_until_it_is_complete_a_reader_sees_the_old_file_and_no_second_one(path):
    path.write_bytes(b"old")
    seen = []

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        seen.append((path.read_bytes(), list(path.parent.glob("[!.]*"))))

    write_atomically(path, write)
    assert seen == [(b"old", [path])]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_files_mode_is_the_umasks_from_the_first_byte_on(path, umask, mode):
    modes = []

    def write(file: BinaryIO) -> None:
        modes.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))

    before = os.umask(umask)
    try:
        write_atomically(path, write)
    finally:
        os.umask(before)
    assert [*modes, stat.S_IMODE(path.stat().st_mode)] == [mode, mode]


class FailsAt:
    """Stands for a system call and fails at its n-th use, from 0 on, as a disk does."""

    def __init__(self, call: Callable[..., Any], n: float) -> None:
        self.call, self.n, self.uses = call, n, 0

    def __call__(self, *arguments: Any) -> Any:
        self.uses += 1
        if self.uses > self.n:
            raise OSError(errno.EIO, "Input/output error")
        return self.call(*arguments)


def write_in_three(file: BinaryIO, monkeypatch: pytest.MonkeyPatch, call: str, n: float) -> FailsAt:
    """Write "new" byte by byte, while `call` fails at its n-th use."""
    fault = FailsAt(file.write if call == "write" else getattr(os, call), n)
    if call != "write":
        monkeypatch.setattr(os, call, fault)
    for byte in (b"n", b"e", b"w"):
        fault(byte) if call == "write" else file.write(byte)
    return fault


# The folder's own open and fsync come after the file took its place.
FAULTS = [("write", n, b"old") for n in range(3)]
FAULTS += [("fsync", 0, b"old"), ("fsync", 1, b"new"), ("replace", 0, b"old"), ("open", 0, b"new")]


@pytest.mark.parametrize(("call", "n", "content"), FAULTS)
def test_whichever_system_call_fails_the_file_is_the_old_or_the_new_and_nothing_is_beside_it(
    path, call, n, content, monkeypatch
):
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(path, lambda file: write_in_three(file, monkeypatch, call, n))
    assert path.read_bytes() == content
    assert names_in(path.parent) == [path.name]


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
def test_these_are_all_the_system_calls_there_are(path, call, monkeypatch):
    faults = []
    write_atomically(path, lambda file: faults.append(write_in_three(file, monkeypatch, call, float("inf"))))
    assert faults[0].uses == len([fault for fault in FAULTS if fault[0] == call])


def as_link(path: Path) -> None:
    (path.parent / "elsewhere").write_bytes(b"old")
    path.symlink_to(path.parent / "elsewhere")


def as_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize("make", [Path.mkdir, as_link, as_dangling_link, os.mkfifo])
def test_a_link_a_folder_or_a_device_is_not_written_over(path, make):
    make(path)
    before = {p.name: p.lstat().st_ino for p in path.parent.iterdir()}
    with pytest.raises(FileExistsError, match="link, a folder or a device"):
        write_atomically(path, lambda file: file.write(b"new"))
    assert {p.name: p.lstat().st_ino for p in path.parent.iterdir()} == before


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_writer_left_is_removed_by_the_next_write_and_nothing_else(path):
    folder, hours_ago = path.parent, time.time() - 7200
    left = [f".ppo_kl-{n}-0a1b.tmp" for n in (dead_process(), os.getpid(), 99999999999999999999)]
    kept = [f".ppo_kl-{os.getppid()}-0a1b.tmp", ".ppo_kl-x-0.tmp", "mine.tmp", f".{path.name}.tmp"]
    for name in (*left, *kept):
        (folder / name).touch()
    os.utime(folder / left[1], (hours_ago, hours_ago))  # a number that another process has by now
    write_atomically(path, lambda file: file.write(b"new"))
    assert names_in(folder) == sorted([*kept, path.name])
