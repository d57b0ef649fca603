"""How a gradient step is run. Acceleration wraps the step and never enters it: every engine calls the same function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Step = Callable[..., Any]


def eager(step: Step) -> Step:
    """Operation by operation, as written."""
    return step


ENGINES: dict[str, Callable[[Step], Step]] = {"eager": eager}
"""Engine by its name in `runtime.engine`."""
