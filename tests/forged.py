"""Checkpoints as somebody writes them who knows the format and means harm, or has another version."""

import io
from pathlib import Path
from typing import Any

import torch

from ppo_kl import checkpoint


def forge(path: Path, content: Any) -> None:
    """Whatever it is, with the right length and digest; bytes as they are, everything else as torch saves it."""
    if not isinstance(content, bytes):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        content = buffer.getvalue()
    path.write_bytes(checkpoint.sealed(content))
