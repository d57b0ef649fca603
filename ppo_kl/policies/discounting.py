"""Discounted sums over time without a loop over time."""

from __future__ import annotations

import numpy as np

from ppo_kl.observations import Array


def discounted_sums(x: Array, decay: Array) -> Array:
    """y_t = x_t + decay_t · y_{t+1}, y_T = 0.

    Sums over 1, 2, 4, … steps, each from two of half the length: log₂(T) operations on whole arrays, and fewer where
    the decay over so many steps is 0. No power of the decay is divided by, which would overflow.

    Args:
        x: `[T, N]` float64.
        decay: in [0, 1], `[T, N]` float64; nothing comes through a 0, neither NaN nor infinity.

    Returns:
        `[T, N]`.

    Source: Hillis & Steele 1986, "Data parallel algorithms"; Blelloch 1990 for recurrences.
    """
    total, reach = x.copy(), decay.copy()
    step = 1
    with np.errstate(invalid="ignore", over="ignore"):
        while step < len(x) and reach[:-step].any():
            # `where` and not a product alone: 0 · NaN would leak.
            total[:-step] += np.where(reach[:-step] > 0, reach[:-step] * total[step:], 0.0)
            reach[:-step] *= reach[step:]
            step *= 2
    return total
