"""What is said of an environment that raises, and how one is closed that may."""

from __future__ import annotations

import traceback
import warnings
from typing import Any

from ppo_kl.errors import EnvWarning, EnvWorkerError


def raised(who: str, call: str, error: Exception) -> EnvWorkerError:
    """The error of an environment that raised `error` when it was asked to `call`, to be raised from it."""
    return EnvWorkerError(
        f"{who} raised in {call}: {type(error).__name__}: {error}; no update was made with what it sent, weights and "
        f"checkpoints are as before\n{traceback.format_exc()}"
    )


def close(env: Any, who: str) -> None:
    """Close `env`; that it cannot be closed is worth a warning, and no reason to lose what was done."""
    try:
        env.close()
    except Exception as error:
        warnings.warn(
            f"{who} raised in close: {type(error).__name__}: {error}; what was done before stays",
            EnvWarning,
            stacklevel=3,
        )
