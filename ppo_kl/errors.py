"""Every error a user can meet, with the exit status the command line gives it.

A message says what was wrong with its value, where, what was kept, and what to do.
"""

from __future__ import annotations


class PPOKLError(Exception):
    """Base of the errors below; `exit_code` is what `ppo-kl` exits with."""

    exit_code = 1


class ConfigError(PPOKLError, ValueError):
    """A setting or a command is wrong; nothing was created.

    Args:
        message: the whole sentence, with the value and what is allowed.
        key: the setting's name inside its group, so that the loader can add group, file and line.
    """

    exit_code = 2

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class EnvDataError(PPOKLError):
    """An environment sent data that cannot be trained on; no update was made with it."""

    exit_code = 3


class EnvWarning(UserWarning):
    """An environment sends something odd that can be trained on nevertheless."""


class EngineWarning(UserWarning):
    """Gradient steps are run in another way than was asked for; they compute the same."""


class EnvWorkerError(PPOKLError):
    """An environment failed, died or did not answer in time; no update was made with what it sent."""

    exit_code = 3


class DivergedError(PPOKLError):
    """Loss or gradient stayed non-finite; weights and optimiser are as before the first such step."""

    exit_code = 4


class OutputError(PPOKLError):
    """Logs, checkpoint or result cannot be written; what was written before stays."""

    exit_code = 6


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged, and an earlier one is used instead."""


class CheckpointError(PPOKLError):
    """A checkpoint cannot be written, read, or does not fit this agent."""

    exit_code = 5


def needs_extra(extra: str) -> str:
    """What to install, as the end of a sentence about what was asked for."""
    return f'needs what the extra [{extra}] installs: pip install "ppo-kl[{extra}]"'
