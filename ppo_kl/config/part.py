"""What every exchangeable part of an objective has in common: a frozen dataclass of settings with a `kind`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppo_kl.config.checked import Settings


@dataclass(frozen=True)
class Part(Settings):
    """One exchangeable part of the objective; `kind` is its name in a config."""

    kind: ClassVar[str]
