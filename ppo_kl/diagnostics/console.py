"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY_SECONDS = 5.0


class _Lasting(Console):
    """Falls silent when nobody is left to read, as after `| head` or where the terminal is gone; training goes on."""

    def on_broken_pipe(self) -> None:
        """Where rich would end the process."""
        self.quiet = True
        with suppress(OSError, ValueError):  # a stream in memory has no number
            # Else the interpreter complains when it flushes what is left.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class TrainingConsole:
    """A progress bar with return, KL, λ and speed; without a terminal, a line every few seconds.

    Args:
        total_steps: environment steps wanted.
        done: environment steps done before.
        quiet: say nothing at all.
    """

    def __init__(self, total_steps: int, done: int = 0, quiet: bool = False) -> None:
        self.console = _Lasting(quiet=quiet, highlight=False, soft_wrap=True)
        self.total_steps = total_steps
        self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self.console,
            redirect_stdout=False,
            redirect_stderr=False,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=done)

    def __enter__(self) -> TrainingConsole:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._progress.stop()
        except OSError:
            self.console.on_broken_pipe()

    def say(self, *lines: str) -> None:
        """Lines of their own, above the bar."""
        try:
            for line in lines:
                self.console.print(line, markup=False)
        except OSError:  # the terminal is gone
            self.console.on_broken_pipe()

    def show(self, steps: int, metrics: dict[str, float]) -> None:
        """Where the run stands after an iteration."""
        self._progress.update(self._task, completed=min(steps, self.total_steps), description=summary(metrics))
        now = time.monotonic()
        if not self.console.is_terminal and (now - self._last_line > PLAIN_EVERY_SECONDS or steps >= self.total_steps):
            self._last_line = now
            left = max(self.total_steps - steps, 0) / metrics["time/steps_per_second"]
            self.say(f"{steps:,}/{self.total_steps:,} steps  {summary(metrics)}  {left:.0f} s left")


def summary(metrics: dict[str, float]) -> str:
    """One line: return, KL beside its target (or alone), λ (or the clip fraction), steps per second."""
    parts = [f"return {metrics['rollout/return_last100']:.1f}"] if "rollout/return_last100" in metrics else []
    if "kl/target_ratio" in metrics:
        parts.append(f"KL {metrics['kl/controlled']:.4f} ({metrics['kl/target_ratio']:.1f}× target)")
    else:
        parts.append(f"KL {metrics['kl/forward']:.4f}")
    if metrics["penalty/lambda"] > 0:
        parts.append(f"λ {metrics['penalty/lambda']:.3g}")
    else:
        parts.append(f"clipped {metrics['ratio/clip_fraction']:.0%}")
    return "  ".join([*parts, f"{metrics['time/steps_per_second']:,.0f} steps/s"])
