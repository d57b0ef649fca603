"""The folder of an export: written whole after it was played against the agent, and read without running any code."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ppo_kl import __version__
from ppo_kl.atomic import write_atomically
from ppo_kl.config import TrainConfig
from ppo_kl.diagnostics.rows import METRICS, finite_in, rows_of
from ppo_kl.errors import CheckpointError, ConfigError, OutputError, PPOKLError, needs_extra
from ppo_kl.export.acting import answers, trial
from ppo_kl.export.card import LIBRARY, card
from ppo_kl.export.onnx import check_onnx, interface, to_onnx
from ppo_kl.load import from_yaml, to_yaml
from ppo_kl.training.agent import Agent

Format = Literal["safetensors", "onnx", "both"]

WEIGHTS, GRAPH, CONFIG, SPACES, CARD = "policy.safetensors", "policy.onnx", "config.yaml", "spaces.json", "README.md"
FILES = (WEIGHTS, GRAPH, CONFIG, SPACES, CARD)
"""All that an export may hold."""
PACKAGES = {"safetensors": ("safetensors",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
"""What a format needs of the extra [export]."""
TENSORS = {"policy": ("learner", "policy"), "buffers": ("learner", "buffers"), "obs_normalizer": ("obs_normalizer",)}
"""First word of a tensor's name -> where an agent's state has it."""
FORMAT_VERSION = "1"


class Exported(NamedTuple):
    """What was written."""

    folder: Path
    files: list[str]
    """Names in it."""
    onnx_difference: float | None
    """Largest difference of a continuous number between graph and agent; none without a graph."""


def export_run(
    run: str | Path, to: str | Path | None = None, format: Format = "both", *, episodes: int = 10, force: bool = False
) -> Exported:
    """Export a trained agent, played against the agent before anything is left in the folder.

    Args:
        run: a run folder (its newest checkpoint) or a checkpoint.
        to: the folder; none: `export` in the run's folder, or beside a checkpoint that lies in none.
        format: safetensors, onnx or both.
        episodes: played for the return in the model card; 0: none.
        force: write also into a folder that holds something else, which stays.

    Raises:
        ConfigError: the folder holds something else, or an extra is missing, or no graph can be made of the policy.
        CheckpointError: there is no such agent, or the export acts differently.
        OutputError: it cannot be written.
    """
    formats = ("safetensors", "onnx") if format == "both" else (format,)
    _require_packages(formats, f"--format {format}")
    if episodes < 0:
        raise ConfigError(f"--episodes {episodes}: allowed: >= 0")
    home = _home(Path(run))
    folder = home / "export" if to is None else Path(to)
    _require_free(folder, force)
    agent = Agent.load(run, device="cpu")
    played = agent.evaluate(episodes) if episodes else None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp") as made:
            difference = _fill(Path(made), agent, formats)
            graph = interface(Path(made) / GRAPH) if "onnx" in formats else []
            _write(Path(made) / CARD, card(agent, played, _kl(home, agent.steps), graph, "safetensors" in formats))
            written = sorted(path.name for path in Path(made).iterdir())
            _move(Path(made), folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error}; name another folder by --to") from error
    return Exported(folder, written, difference)


def load(folder: str | Path, *, device: str = "auto") -> Agent:
    """The agent of an export, to act and to be evaluated; training goes on from a checkpoint instead.

    Args:
        folder: with safetensors in it.
        device: as `runtime.device`.

    Raises:
        ConfigError: the extra is missing, or the agent is made of classes whose module was not imported.
        CheckpointError: something is missing, damaged, or does not fit together.
    """
    folder = Path(folder)
    _require_packages(("safetensors",), f"{folder}:")
    from safetensors import safe_open

    try:
        config = from_yaml((folder / CONFIG).read_text(), str(folder / CONFIG))
        spaces = json.loads((folder / SPACES).read_text())
        with safe_open(folder / WEIGHTS, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it has no other iterator
        if metadata.get("format") != FORMAT_VERSION:
            raise CheckpointError(f"export format {metadata.get('format')!r}, this version reads {FORMAT_VERSION!r}")
        agent = Agent.__new__(Agent)
        runtime = dataclasses.replace(config.runtime, device=device)
        agent._build(dataclasses.replace(config, runtime=runtime), spaces)
        state = agent.state_dict() | {name: int(metadata[name]) for name in ("steps", "iterations")}
        for group, path in TENSORS.items():
            mine = {name.removeprefix(f"{group}."): x for name, x in tensors.items() if name.startswith(f"{group}.")}
            _within(state, path[:-1])[path[-1]] = mine
        agent.load_state_dict(state)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no {Path(error.filename or WEIGHTS).name} here; not an export") from None
    except ConfigError:
        raise
    except Exception as error:  # files from anybody make their readers stumble in every way there is
        reason = str(error) if isinstance(error, PPOKLError) else f"damaged, or not an export ({error!r})"
        raise CheckpointError(f"{folder}: {reason}") from error
    return agent


# --- writing ----------------------------------------------------------------------------------------------------------


def _fill(folder: Path, agent: Agent, formats: Sequence[str]) -> float | None:
    """Write everything but the card into `folder` and play it against the agent; the graph's largest difference."""
    # Without paths of this machine.
    config: TrainConfig = dataclasses.replace(agent.config, runs_dir=TrainConfig.runs_dir, init_from=None)
    _write(folder / CONFIG, to_yaml(config))
    _write(folder / SPACES, json.dumps(agent.spaces, indent=2) + "\n")
    if "safetensors" in formats:
        from safetensors.torch import save

        state = agent.state_dict()
        tensors = {
            f"{group}.{name}": x.contiguous()
            for group, path in TENSORS.items()
            for name, x in _within(state, path).items()
        }
        numbers = {"steps": str(agent.steps), "iterations": str(agent.iterations)}
        content = save(tensors, {"format": FORMAT_VERSION, "ppo_kl": __version__, "env": config.env.id, **numbers})
        write_atomically(folder / WEIGHTS, lambda file: file.write(content))
        _check_weights(folder, agent)
    if "onnx" not in formats:
        return None
    graph = to_onnx(agent)
    write_atomically(folder / GRAPH, lambda file: file.write(graph))
    return check_onnx(folder / GRAPH, agent)


def _check_weights(folder: Path, agent: Agent) -> None:
    observations = trial(agent)
    loaded = answers(load(folder, device="cpu"), observations)
    for expected, found in zip(answers(agent, observations), loaded, strict=True):
        for name, x in expected.items():
            if not np.array_equal(x, found[name]):
                raise CheckpointError(f"{WEIGHTS}: {name} differs from the agent's; nothing was exported")


def _move(made: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in FILES:
        if (made / name).exists():
            os.replace(made / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier export in other formats


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def _within(state: Any, path: Sequence[str]) -> Any:
    for key in path:
        state = state[key]
    return state


# --- before and around ------------------------------------------------------------------------------------------------


def _require_packages(formats: Sequence[str], asked: str) -> None:
    for package in (package for name in formats for package in PACKAGES[name]):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(f"{asked} {needs_extra('export')} ({error})") from error


def _require_free(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--to {folder}: is a file; name a folder")
    try:
        held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        own = CARD in held and LIBRARY in (folder / CARD).read_text(errors="replace").splitlines()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be read: {error}; name another folder by --to") from error
    if not held or force:
        return
    if not own or held - set(FILES):
        foreign = sorted(held - set(FILES)) if own else sorted(held)
        raise ConfigError(
            f"--to {folder}: holds {', '.join(foreign[:5])}, which no export wrote; nothing was written; name another "
            "folder, or give --force to write the export's files beside it, over those of the same name"
        )


def _home(run: Path) -> Path:
    """The run's folder; that of a checkpoint which lies in none."""
    if run.is_dir():
        return run
    return run.parent.parent if run.parent.name == "checkpoints" else run.parent


def _kl(home: Path, steps: int) -> list[float]:
    """kl/forward of each iteration up to `steps`, from the run's metrics.jsonl; empty where there is none."""
    path = home / METRICS
    if not path.is_file():
        return []
    return finite_in((row for row in rows_of(path) if row["steps"] <= steps), "kl/forward")
