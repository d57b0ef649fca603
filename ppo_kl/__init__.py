"""PPO whose policy-update objective is a part you swap, on exact KL.

The public names load what they need on first use: `Agent`, `train`, `resume`, `load_config`, `Objective`; the
subpackage `ppo_kl.objectives` loads torch alone.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Agent": "ppo_kl.training.agent",
    "Objective": "ppo_kl.objectives",
    "load_config": "ppo_kl.load",
    "resume": "ppo_kl.training.trainer",
    "train": "ppo_kl.training.trainer",
}

__all__ = ["Agent", "Objective", "load_config", "objectives", "resume", "train"]


def __getattr__(name: str) -> Any:
    if name == "objectives":
        return importlib.import_module("ppo_kl.objectives")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ppo_kl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
