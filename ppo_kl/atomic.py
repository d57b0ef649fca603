"""A file is written whole or not at all: whoever reads it sees the old one or the new one, whatever happens."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"\.ppo_kl-(\d+)-[0-9a-f]+\.tmp")
_ABANDONED_AFTER = 3600.0
"""Seconds; no write takes so long, whatever process has the number in the name by now."""


def write_atomically(path: Path, write: Any) -> None:
    """Let `write(file)` fill a temporary file beside `path`, then put it in its place; readers see the old or the new.

    Args:
        path: where it shall lie.
        write: is given a binary file open for writing.

    Raises:
        OSError: it could not be written, or something that is no file lies there; `path` is as it was and nothing is
            left beside it.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise FileExistsError(f"{path} is a link, a folder or a device, which no file is written over")
    _remove_abandoned(path.parent)
    temporary = path.parent / f".ppo_kl-{os.getpid()}-{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of writers that were killed; a process that is alive may still be writing its own."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if (match := _TEMPORARY.fullmatch(path.name)) and (
                not _is_alive(int(match[1])) or time.time() - path.stat().st_mtime > _ABANDONED_AFTER
            ):
                path.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True
