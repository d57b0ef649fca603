"""Checkpoints: written whole or not at all, read without running any code in them."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from ppo_kl.errors import CheckpointError

FORMAT_VERSION = 3
_NAME = re.compile(r"step_(\d{12})\.pt")


def write_atomically(path: Path, write: Any) -> None:
    """Let `write(file)` fill a temporary file beside `path`, then put it in its place; readers see the old or the new.

    Args:
        path: where it shall lie.
        write: is given a binary file open for writing.

    Raises:
        OSError: it could not be written; `path` is as it was and nothing is left beside it.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists and dicts of these) to `path`.

    Raises:
        CheckpointError: a parameter is not finite; an older checkpoint at `path` stays.
    """
    bad = [name for name, x in state["learner"]["policy"].items() if not x.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{path}: parameters {', '.join(bad)} are not finite; not saved, earlier checkpoints stay"
        )
    write_atomically(path, lambda file: torch.save({"format": FORMAT_VERSION, **state}, file))


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote.

    Raises:
        CheckpointError: there is no such file, it is damaged or something else, or its format is another version's.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except Exception as error:  # bytes that are no checkpoint make torch's reader stumble in every way there is
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({reason})") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT_VERSION:
        raise CheckpointError(f"{path}: checkpoint format {found!r}, this version reads {FORMAT_VERSION}")
    del state["format"]
    return state


def path_at(folder: Path, steps: int) -> Path:
    """Where the checkpoint of environment step `steps` lies in `folder`."""
    return folder / f"step_{steps:012d}.pt"


def newest(folder: Path) -> Path:
    """The checkpoint with the most environment steps in `folder`.

    Raises:
        CheckpointError: there is none.
    """
    found = in_order(folder)
    if not found:
        raise CheckpointError(f"{folder}: no checkpoint here")
    return found[-1]


def in_order(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, fewest steps first; other files are none of our business."""
    return sorted(p for p in folder.glob("step_*.pt") if _NAME.fullmatch(p.name) and p.is_file())
