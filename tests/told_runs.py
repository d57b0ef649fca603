"""Runs made of numbers, for tests of what is told about them."""

from pathlib import Path

import numpy as np

from ppo_kl.config import TrainConfig
from ppo_kl.config.presets import PRESETS
from ppo_kl.diagnostics.history import History, Run

TARGET = {"kl/target_low": 0.01 / 1.5, "kl/target_high": 0.015, "penalty/saturated": 0.0}


def history(columns, n=100, nonfinite=None):
    """`n` updates of 256 steps; a number stands for a column of it."""
    made = {tag: np.broadcast_to(np.asarray(x, dtype=float), n).copy() for tag, x in columns.items()}
    return History(256 * np.arange(1, n + 1), made, nonfinite or {})


def run(columns, n=100, objective="kl_adaptive", state="finished", nonfinite=None, config=True):
    settings = TrainConfig(objective=PRESETS[objective]) if config else None
    folder = Path("runs/CartPole-v1") / objective / "seed0"
    return Run(folder, "CartPole-v1", objective, "0", state, settings, history(columns, n, nonfinite))


def steered(kl, kl_lambda=1.0, **more):
    """Columns of a run with a target of 0.01 and the band 0.0067 to 0.015."""
    kl = np.asarray(kl, dtype=float)
    return {"kl/controlled": kl, "kl/target_ratio": kl / 0.01, **TARGET, "penalty/lambda": kl_lambda, **more}


def free(kl, **more):
    """Columns of a run without target and penalty."""
    return {"kl/forward": kl, "penalty/lambda": 0.0, "ratio/clip_fraction": 0.1, **more}
