"""The folder of a run: never overwritten, and enough in it to know what was run, with what, and how it ended."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ppo_kl.atomic import write_atomically
from ppo_kl.config import TrainConfig
from ppo_kl.diagnostics.rows import METRICS, rows_of
from ppo_kl.envs.cores import cores_allowed
from ppo_kl.errors import ConfigError, OutputError
from ppo_kl.load import to_yaml

if sys.platform != "win32":
    import fcntl

VERSIONS_OF = ("ppo-kl", "torch", "gymnasium", "numpy", "tensorboard")


def create(config: TrainConfig, folder: Path | None = None) -> Path:
    """Make the folder, or else runs_dir/ENV/OBJECTIVE/seedK, or seedK-2, … where that exists, with the configuration.

    Raises:
        ConfigError: it cannot be made there, or the folder that is asked for exists.
    """
    try:
        if folder is None:
            parent = Path(config.runs_dir) / _as_name(config.env.id) / _as_name(config.objective.name)
            parent.mkdir(parents=True, exist_ok=True)
            made = _first_free(parent, f"seed{config.seed}")
        else:
            made = Path(folder)
            made.mkdir(parents=True)
        try:
            (made / "checkpoints").mkdir()
            write_text(made / "config.yaml", to_yaml(config))
        except OSError:
            shutil.rmtree(made, ignore_errors=True)
            raise
    except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
        where = f"runs_dir={config.runs_dir!r}" if folder is None else f"folder={str(folder)!r}"
        raise ConfigError(f"{where}: {error}; name a folder that can be written", "runs_dir") from error
    return made


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes from training the same run; the claim ends with the process, however it ends.

    Raises:
        OutputError: another process has it.
    """
    if sys.platform == "win32":  # no such locks there
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"{folder}: another process is training this run; nothing was changed; wait for its end, or stop it"
            ) from error
        yield
    finally:
        os.close(handle)


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


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        OutputError: it is damaged, or something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"a {type(values).__name__} instead of an object")
    except (ValueError, RecursionError) as error:
        raise OutputError(
            f"{path}: not the JSON of a run ({error}); nothing was changed; put it right, or take it away"
        ) from error
    return values


class Metadata:
    """`metadata.json`: command, versions, commit, hardware, begin, end and exit status of a run and its earlier parts.

    At the end also the tags that were not finite in one of the rows: what to look at where a run is not well.

    Args:
        folder: the run's.
        device: what it trains on.
        config: of the run, with the threads and processes it takes.
        inexact: why the run is not, bit for bit, one that goes on without a stop; none where it is.
    """

    def __init__(self, folder: Path, device: torch.device, config: TrainConfig, inexact: str | None = None) -> None:
        self._path = folder / "metadata.json"
        earlier: list[Any] = []
        if self._path.exists():
            before = read_json(self._path)
            earlier = [*before.pop("earlier_parts", []), before]
        self._values: dict[str, Any] = {
            "command": _command(),
            "versions": {"python": platform.python_version(), **{n: _version(n) for n in VERSIONS_OF}},
            "commit": _commit(),
            "hardware": {
                "machine": platform.machine(),
                "cpus": os.cpu_count(),
                "cores_allowed": cores_allowed(),
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "threads": config.runtime.num_threads,
                "workers": config.env.num_envs if config.env.vectorization == "async" else config.runtime.num_workers,
                "threads_of_a_worker": 1,
            },
            "exact_resume": inexact is None,
            "inexact_because": inexact,
            "start": _now(),
            "end": None,
            "exit_status": None,
            "nonfinite_metrics": None,
            "earlier_parts": earlier,
        }
        write_json(self._path, self._values)

    def end(self, exit_status: int) -> None:
        """The run is over, for now or for good."""
        metrics = self._path.parent / METRICS
        rows = rows_of(metrics) if metrics.exists() else []
        nonfinite = sorted({tag for row in rows for tag, value in row.items() if value is None})
        self._values |= {"end": _now(), "exit_status": exit_status, "nonfinite_metrics": nonfinite}
        write_json(self._path, self._values)


def _command() -> list[str]:
    """The words of the command as they were given; whose home folder it was is nobody's business."""
    home = re.escape(os.path.expanduser("~"))
    return [Path(sys.argv[0]).name, *(re.sub(f"{home}(?=/|$)", "~", word) for word in sys.argv[1:])]


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
