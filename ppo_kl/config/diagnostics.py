"""What is measured beyond the numbers of every iteration, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from ppo_kl.config.checked import Settings, setting


@dataclass(frozen=True)
class DiagnosticsConfig(Settings):
    """How often what costs more is measured; nothing here changes what is learned."""

    gradient_every: int | None = setting(10, at_least=1, at_most=10**9)
    """Iterations between measurements of the penalty's gradient beside the surrogate's, about two epochs' work each;
    the first iteration is always measured; none: never."""
    histogram_every: int | None = setting(20, at_least=1, at_most=10**9)
    """Iterations between histograms in TensorBoard, the first iteration's included; none: never."""
