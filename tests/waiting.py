"""Waiting for what other processes do, with an end."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def eventually(what: Callable[[], Any], seconds: float = 5.0) -> Any:
    """What it answers as soon as that is something, or what it answers in the end."""
    deadline = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def gone(pid: int) -> bool:
    """Whether a process is no more, or only waits for somebody to read its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
