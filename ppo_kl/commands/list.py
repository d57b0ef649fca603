"""`ppo-kl list`: what there is to choose from, and what has been run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ppo_kl.config.presets import PUBLISHED, said_of
from ppo_kl.diagnostics.history import config_of, runs_below, state_of
from ppo_kl.diagnostics.rows import METRICS, number_in, row_in
from ppo_kl.load import load_config, shipped

RUN_COLUMNS = ("run", "state", "steps", "return", "last KL")
TAIL = 64 * 1024
"""Bytes in which the last line of a metrics file lies."""


def list_(
    what: Annotated[Literal["all", "objectives", "environments", "runs"], tyro.conf.Positional] = "all",
    /,
    runs_dir: Path = Path("runs"),
) -> int:
    """List objectives, environments with a tuned file, and runs with their state.

    Args:
        what: of these; all: each of them.
        runs_dir: where runs lie.
    """
    console = Console(highlight=False)
    for name, table in TABLES.items():
        if what in ("all", name):
            console.print(table(runs_dir))
    return 0


def _objectives(_runs_dir: Path) -> Table:
    table = _table("Objectives", "ppo-kl train --objective NAME", "name", "loss, minimised", "use it")
    for make in PUBLISHED:
        said = said_of(make)
        table.add_row(make.__name__, said.formula, said.use)
    return table


def _environments(_runs_dir: Path) -> Table:
    caption = "ppo-kl train --env NAME, or any Gymnasium id, or package.module:Id of your own"
    table = _table("Environments with a file", caption, "name", "id", "steps", "environments")
    for name in shipped("env"):
        config = load_config(env=name)
        table.add_row(name, config.env.id, f"{config.total_steps:,}", str(config.env.num_envs))
    return table


def _runs(runs_dir: Path) -> Table:
    caption = "ppo-kl inspect RUN tells one's story; ppo-kl train --resume RUN goes on with one that is not finished"
    folders = runs_below(runs_dir)
    table = _table(f"Runs in {runs_dir}", caption if folders else "None yet: ppo-kl train makes one", *RUN_COLUMNS)
    for folder in folders:
        last, config = _last_row(folder / METRICS), config_of(folder)
        steps = f"{last['steps']:,}" if last else "?"
        wanted = "" if config is None else f" / {config.total_steps:,}"
        table.add_row(
            str(folder.relative_to(runs_dir)),
            state_of(folder),
            steps + wanted,
            _number(last.get("rollout/return_last100"), ".1f"),
            _number(last.get("kl/forward"), ".4f"),
        )
    return table


TABLES: dict[str, Callable[[Path], Table]] = {"objectives": _objectives, "environments": _environments, "runs": _runs}


def _table(title: str, caption: str, *columns: str) -> Table:
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(
            column, no_wrap=i == 0 or column == "steps", justify="right" if column in RUN_COLUMNS[2:] else "left"
        )
    return table


def _number(value: Any, form: str) -> str:
    number = number_in(value)
    return format(number, form) if math.isfinite(number) else "–"


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole row of a metrics file; nothing where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return {}
    return next((row for line in reversed(lines) if (row := row_in(line)) is not None), {})


def main(arguments: list[str]) -> int:
    """List what there is."""
    return tyro.cli(list_, args=arguments, prog="ppo-kl list")
