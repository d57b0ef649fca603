"""Checkpoints: written whole or not at all, sealed with a digest, read without running any code in them.

A file is MAGIC, the length and the SHA-256 of what follows, and what `torch.save` makes of the state. Nothing of it is
given to torch before length and digest are right.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppo_kl.atomic import write_atomically
from ppo_kl.errors import CheckpointError, CheckpointWarning, OutputError

FORMAT_VERSION = 3
MAGIC = b"ppo_kl checkpoint\n"
_SEAL = struct.Struct(f"<{len(MAGIC)}sQ32s")
BEST = "best.pt"
"""The checkpoint whose evaluation was best so far, beside those of the steps."""
_NAME = re.compile(r"step_(\d{12})\.pt")


# --- saving ----------------------------------------------------------------------------------------------------------


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, None, lists and dicts of these) to `path`.

    Raises:
        CheckpointError: a parameter is not finite, or something is none of the above; an older checkpoint at `path`
            stays.
        OutputError: the disk refused it; an older checkpoint at `path` stays.
    """
    bad = [name for name, x in state["learner"]["policy"].items() if not x.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{path}: parameters {', '.join(bad)} are not finite; not saved, earlier checkpoints stay"
        )
    if unfit := _unfit(state):
        raise CheckpointError(f"{path}: {unfit}, which no checkpoint can hold; not saved, earlier checkpoints stay")
    content = io.BytesIO()
    torch.save({"format": FORMAT_VERSION, **state}, content)
    try:
        write_atomically(path, lambda file: file.write(sealed(content.getvalue())))
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error}; earlier checkpoints stay; make room there, or name another place"
        ) from error


def sealed(content: bytes) -> bytes:
    """`content` behind its length and digest."""
    return _SEAL.pack(MAGIC, len(content), hashlib.sha256(content).digest()) + content


def _leaves(state: Any) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in nested dicts and lists; of what is there twice, once."""
    seen: set[int] = set()
    left: list[tuple[str, Any]] = [("", state)]
    while left:
        key, value = left.pop()
        if type(value) not in (dict, list):
            yield key, value
        elif id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            left += [(f"{key}.{name}".lstrip("."), item) for name, item in items]


def _unfit(state: Any) -> str | None:
    """What in `state` is neither a plain value nor a tensor whose values are all there; none: nothing."""
    for key, x in _leaves(state):
        if type(x) not in (Tensor, str, int, float, bool, type(None)):
            return f"{key} is a {type(x).__name__}"
        if isinstance(x, Tensor) and (x.is_meta or x.numel() * x.element_size() > x.untyped_storage().nbytes()):
            return f"{key} of shape {tuple(x.shape)} has not as many values"
    return None


# --- loading ---------------------------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote.

    Raises:
        CheckpointError: there is no such file, it is damaged or something else, or its format is another version's.
    """
    content = _content(path)
    try:
        _require_uncompressed(content)
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        unfit = _unfit(state)
    except Exception as error:  # bytes that are no checkpoint make torch's reader stumble in every way there is
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path}: not a checkpoint ({reason}); it was not loaded") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {found!r}, this version reads {FORMAT_VERSION}; load it with the version of "
            "ppo_kl that wrote it, see metadata.json of its run"
        )
    if unfit:
        raise CheckpointError(f"{path}: not a checkpoint ({unfit}); it was not loaded")
    del state["format"]
    return state


def _content(path: Path) -> bytes:
    """What was sealed in the file at `path`.

    Raises:
        CheckpointError: there is none, or it is not as it was written.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    if not path.is_file():
        raise CheckpointError(f"{path}: not a checkpoint, but a folder or a device")
    try:
        with path.open("rb") as file:
            head, size = file.read(_SEAL.size), os.fstat(file.fileno()).st_size
            if head.startswith(b"PK\x03\x04"):
                raise CheckpointError(
                    f"{path}: no checkpoint of this version, which begin with {MAGIC!r}; what an earlier one wrote, "
                    "with no digest, is read by that version alone"
                )
            magic, length, digest = _SEAL.unpack(head) if len(head) == _SEAL.size else (head, 0, b"")
            if magic != MAGIC:
                raise CheckpointError(f"{path}: file damaged, or not a checkpoint; it was not loaded")
            if size != _SEAL.size + length:
                raise CheckpointError(
                    f"{path}: file damaged: {size} bytes instead of {_SEAL.size + length}; it was not loaded"
                )
            content = file.read()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if hashlib.sha256(content).digest() != digest:
        raise CheckpointError(f"{path}: file damaged: its content is not what was written; it was not loaded")
    return content


def _require_uncompressed(content: bytes) -> None:
    """Refuse an archive that could unfold into more than its own size: torch's own are stored as they are.

    Raises:
        ValueError: a member is compressed, or says that it is larger than the file.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
    folded = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size]
    if folded:
        raise ValueError(f"{folded[0]} in it is compressed")
    if sum(m.file_size for m in members) > len(content):
        raise ValueError(f"its parts are said to be larger than the {len(content)} bytes of the whole")


# --- folders of checkpoints ------------------------------------------------------------------------------------------


def path_at(folder: Path, steps: int) -> Path:
    """Where the checkpoint of environment step `steps` lies in `folder`."""
    return folder / f"step_{steps:012d}.pt"


def in_order(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, fewest steps first; other files are none of our business."""
    return sorted(p for p in folder.glob("step_*.pt") if _NAME.fullmatch(p.name) and p.is_file())


def newest(folder: Path) -> Path:
    """The checkpoint with the most environment steps in `folder`, be it damaged or not.

    Raises:
        CheckpointError: there is none.
    """
    found = in_order(folder)
    if not found:
        raise CheckpointError(f"{folder}: no checkpoint here")
    return found[-1]


def load_newest(folder: Path, *, strict: bool = False) -> dict[str, Any]:
    """Read the newest checkpoint in `folder`; where it is damaged, the one before it, with a `CheckpointWarning`.

    Args:
        folder: of checkpoints.
        strict: refuse instead of going back to an earlier one.

    Raises:
        CheckpointError: there is none that can be loaded; the newest one's complaint, if there is one.
    """
    newest_path = newest(folder)
    try:
        return load(newest_path)
    except CheckpointError as error:
        if strict:
            raise
        for path in reversed(in_order(folder)[:-1]):
            with contextlib.suppress(CheckpointError):
                state = load(path)
                warnings.warn(f"{error}; going back to {path.name}", CheckpointWarning, stacklevel=2)
                return state
        raise


def path_from(path: Path) -> Path:
    """The checkpoint itself, or the newest one of a run folder.

    Raises:
        CheckpointError: there is none in that folder.
    """
    return newest(path / "checkpoints") if path.is_dir() else path


def load_from(path: Path, *, strict: bool = False) -> dict[str, Any]:
    """Read an agent's state from a checkpoint, or from the newest one of a run folder; `strict` as `load_newest`.

    Raises:
        CheckpointError: there is none, it is damaged, or not an agent's.
    """
    state = load_newest(path / "checkpoints", strict=strict) if path.is_dir() else load(path)
    missing = {"config", "spaces"} - state.keys()
    if missing:
        raise CheckpointError(f"{path}: {', '.join(sorted(missing))} is missing; not an agent's checkpoint")
    return state


def prune(saved: Path, keep: int) -> None:
    """Let go of the oldest checkpoints beside `saved`, which was just written, so that `keep` stay with it.

    Those with more steps do not count: the run went back behind them, most likely because they are damaged.
    """
    for old in [path for path in in_order(saved.parent) if path.name <= saved.name][:-keep]:
        old.unlink(missing_ok=True)
