"""A program that kills its own children while they write, and prints what they left; see test_kills.

It is one process that loads torch once and forks; forking pytest itself, with its threads, would not be safe.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo_kl import checkpoint
from ppo_kl.config import TrainConfig
from ppo_kl.diagnostics.rows import rows_of
from ppo_kl.diagnostics.tensorboard_writer import TensorBoardWriter
from ppo_kl.diagnostics.writers import JsonLinesWriter
from ppo_kl.training import run_folder

RNG = random.Random(0)
KILLS = 50


def state(n: int) -> dict[str, Any]:
    return {"learner": {"policy": {"w": torch.full((2000,), float(n))}}, "steps": n}


def steps_if_whole(loaded: dict[str, Any]) -> int | None:
    """The step that a checkpoint says it is of; none where its parts are of different ones."""
    steps: int = loaded["steps"]
    return steps if (loaded["learner"]["policy"]["w"] == steps).all() else None


def forked(act: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def killed_while(act: Callable[[], None], seconds: float, is_under_way: Callable[[], bool] = lambda: True) -> None:
    child = forked(act)
    while not is_under_way():
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def saving(folder: Path) -> dict[str, Any]:
    """Kill a process that does nothing but save."""

    def save_on(n: int) -> None:
        while True:
            n += 1
            path = checkpoint.path_at(folder, n)
            checkpoint.save(path, state(n))
            checkpoint.prune(path, keep=3)

    newest, in_the_middle = [0], 0
    while len(newest) <= KILLS:
        killed_while(lambda: save_on(newest[-1]), RNG.uniform(0.002, 0.05))
        in_the_middle += any(p.name.startswith(".ppo_kl-") for p in folder.iterdir())
        if checkpoint.in_order(folder):
            newest.append(steps_if_whole(checkpoint.load_newest(folder, strict=True)) or -1)
    checkpoint.save(checkpoint.path_at(folder, newest[-1] + 1), state(newest[-1] + 1))
    left = [p.name for p in folder.iterdir() if p not in checkpoint.in_order(folder)]
    return {"newest": newest, "in_the_middle": in_the_middle, "left": left}


def together(folder: Path) -> dict[str, Any]:
    """Two processes save to one path, while it is read."""
    path = folder / "agent.pt"

    def save_on(n: int) -> None:
        for _ in range(60):
            checkpoint.save(path, state(n))

    children = {forked(lambda n=n: save_on(n)) for n in (1, 2)}
    seen, statuses = set(), []
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            children.discard(child)
            statuses.append(status)
        if path.exists():
            seen.add(steps_if_whole(checkpoint.load(path)) or -1)
    return {"seen": sorted(seen), "statuses": statuses, "left": [p.name for p in folder.iterdir()]}


def logging(folder: Path) -> dict[str, Any]:
    """Kill a process that does nothing but log; the steps of both logs."""

    def log_on(run: Path) -> None:
        writers = (JsonLinesWriter(run / "metrics.jsonl"), TensorBoardWriter(run, TrainConfig()))
        n = 0
        while True:
            n += 1
            for writer in writers:
                writer.write(n, n, {f"tag/{i}": float(n) for i in range(40)})

    left: list[dict[str, Any]] = []
    for i in range(4):
        run = folder / str(i)
        run.mkdir()
        lines = run / "metrics.jsonl"
        killed_while(lambda: log_on(run), RNG.uniform(0, 0.1), lambda: lines.exists() and len(rows_of(lines)) > 2)  # noqa: B023 - called at once
        events = EventAccumulator(str(run), size_guidance={"scalars": 0})
        events.Reload()
        rows = [row["steps"] for row in rows_of(lines)]
        left.append({"rows": rows, "points": [point.step for point in events.Scalars("tag/0")]})
    return {"runs": left}


def starting(folder: Path) -> dict[str, Any]:
    """Eight processes make the folder of the same run at the same moment; who owns which."""
    start = time.time() + 0.3

    def create() -> None:
        while time.time() < start:
            pass
        made = run_folder.create(TrainConfig(runs_dir=str(folder)))
        with (made / "owner").open("x") as file:
            file.write(str(os.getpid()))

    children = [forked(create) for _ in range(8)]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    made = (folder / "CartPole-v1" / "kl_adaptive").iterdir()
    owners = {run.name: int((run / "owner").read_text()) for run in made}
    return {"statuses": statuses, "owners": owners, "children": children}


if __name__ == "__main__":
    found = {}
    for scene in (saving, together, logging, starting):
        folder = Path(sys.argv[1]) / scene.__name__
        folder.mkdir()
        found[scene.__name__] = scene(folder)
    print(json.dumps(found))
