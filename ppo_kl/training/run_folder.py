"""The folder of a run: never overwritten, and enough in it to know what was run, with what, and how it ended."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from ppo_kl.checkpoint import write_atomically
from ppo_kl.config import TrainConfig
from ppo_kl.errors import ConfigError
from ppo_kl.load import to_yaml

VERSIONS_OF = ("ppo-kl", "torch", "gymnasium", "numpy", "tensorboard")


def create(config: TrainConfig) -> Path:
    """Make runs_dir/ENV/OBJECTIVE/seedK, or seedK-2, seedK-3, … where that exists, with the configuration in it.

    Raises:
        ConfigError: it cannot be made there.
    """
    parent = Path(config.runs_dir) / _as_name(config.env.id) / _as_name(config.objective.name)
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = _first_free(parent, f"seed{config.seed}")
        (folder / "checkpoints").mkdir()
        write_text(folder / "config.yaml", to_yaml(config))
    except OSError as error:
        raise ConfigError(
            f"runs_dir={config.runs_dir!r}: {error}; name a folder that can be written", "runs_dir"
        ) from error
    return folder


def _first_free(parent: Path, name: str) -> Path:
    n = 1
    while True:
        folder = parent / (name if n == 1 else f"{name}-{n}")
        try:
            folder.mkdir()  # exclusive: of several processes, one gets it
        except FileExistsError:
            n += 1
        else:
            return folder


def _as_name(text: str) -> str:
    """`text` as one folder name: nothing in it can lead out of the parent."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", text).strip(".-")[:100] or "unnamed"


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a small JSON file whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


class Metadata:
    """`metadata.json`: versions, commit, hardware, begin, end and exit status of the run, and of its earlier parts.

    Args:
        folder: the run's.
        device: what it trains on.
        threads: CPU threads inside one PyTorch operation.
        inexact: why the run is not, bit for bit, one that goes on without a stop; none where it is.
    """

    def __init__(self, folder: Path, device: torch.device, threads: int, inexact: str | None = None) -> None:
        self._path = folder / "metadata.json"
        earlier: list[Any] = []
        if self._path.exists():
            before = json.loads(self._path.read_text())
            earlier = [*before.pop("earlier_parts", []), before]
        self._values: dict[str, Any] = {
            "versions": {"python": platform.python_version(), **{n: _version(n) for n in VERSIONS_OF}},
            "commit": _commit(),
            "hardware": {
                "machine": platform.machine(),
                "cpus": os.cpu_count(),
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "threads": threads,
            },
            "exact_resume": inexact is None,
            "inexact_because": inexact,
            "start": _now(),
            "end": None,
            "exit_status": None,
            "earlier_parts": earlier,
        }
        write_json(self._path, self._values)

    def end(self, exit_status: int) -> None:
        """The run is over, for now or for good."""
        self._values |= {"end": _now(), "exit_status": exit_status}
        write_json(self._path, self._values)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of this project's own checkout, with a + where files differ from it; none where it is installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        describe = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        described = subprocess.run(  # noqa: S603 - constant words and our own path
            describe,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
