"""`ppo-kl inspect`. Reads what runs left behind; nothing is written but the picture that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ppo_kl.diagnostics.history import Run, find_runs, read_run
from ppo_kl.diagnostics.story import Story, tell
from ppo_kl.diagnostics.terminal import show, show_several
from ppo_kl.diagnostics.told_apart import told_apart
from ppo_kl.errors import ConfigError, needs_extra
from ppo_kl.imports import import_modules


def inspect(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    png: Path | None = None,
    plugin: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
) -> int:
    """Tell the KL story of a run, or compare several: in the terminal, and as a picture.

    Args:
        runs: run folders, or folders that hold runs.
        png: draw it into this file too, as kl_story.png (or .svg, .pdf).
        plugin: a module to import first, once or more, for runs whose objective is not one of ours.
    """
    if not runs:
        raise ConfigError(
            "no RUN given; name run folders, as runs/ENV/OBJECTIVE/seed0, or one that holds runs, as runs"
        )
    import_modules(plugin, "--plugin")
    save = None if png is None else _save()
    folders = dict.fromkeys(folder for named in runs for folder in find_runs(named))
    console = Console(highlight=False)
    stories, without = _told(list(folders))
    if len(stories) == 1:
        show(console, stories[0])
    else:
        show_several(console, stories)
    if without:
        console.print(f"No iteration yet in {', '.join(map(str, without))}", markup=False, soft_wrap=True)
    if png is not None and save is not None:
        save(stories, png)
        console.print(f"Drawn: {png}", markup=False, soft_wrap=True)
    return 0


def _told(folders: list[Path]) -> tuple[list[Story], list[Path]]:
    """The stories, and the runs that have none to tell yet, which is an error where no other has."""
    runs: list[Run] = []
    without: list[Path] = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except ConfigError:
            if len(folders) == len(without) + 1:
                raise
            without.append(folder)
    return [tell(run) for run in told_apart(runs)], without


def _save() -> Callable[[Sequence[Story], Path], None]:
    """What draws; loaded where it is asked for alone, as matplotlib is an extra and slow to load."""
    try:
        from ppo_kl.diagnostics.plot import save
    except ImportError as error:
        raise ConfigError(f"--png: {needs_extra('report')} ({error})") from error
    return save


def main(arguments: list[str]) -> int:
    """Tell the story of runs."""
    return tyro.cli(inspect, args=arguments, prog="ppo-kl inspect")
