"""`ppo-kl report`: the report of a study, made again from what lies in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from ppo_kl.errors import ConfigError, needs_extra


def report(folder: Annotated[Path, tyro.conf.Positional], /, into: Path | None = None) -> int:
    """Make the report of a study: a page, a Markdown summary, figures, and results.csv.

    Args:
        folder: of a study, finished or not, or one that holds runs made by hand.
        into: another folder for the report; none: the study's own.
    """
    made = make(folder, into)
    Console(highlight=False).print(f"Report: {made}", markup=False, soft_wrap=True)
    return 0


def make(folder: Path, into: Path | None = None) -> Path:
    """The page. Loaded where it is asked for alone: it needs an extra."""
    try:
        from ppo_kl.ablation.report import write_report
    except ImportError as error:
        raise ConfigError(f"report: {needs_extra('report')} ({error})") from error
    return write_report(folder, into)[0]


def main(arguments: list[str]) -> int:
    """Make a report."""
    return tyro.cli(report, args=arguments, prog="ppo-kl report")
