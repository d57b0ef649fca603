"""How per-sample `[B]` becomes one number: the mean over the rows that count."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def valid_mean(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of `x` over the rows that count: Σ valid·x / max(Σ valid, 1).

    Rows that do not count are selected away, not multiplied by zero: a NaN in them stays out of the value and of the
    gradient at `x`. What a NaN did on the way to `x` has to be masked there.

    Args:
        x: `[B]`.
        valid: `[B]` bool; none: every row counts.

    Returns:
        `[]`; 0 where no row counts.
    """
    if valid is None:
        return x.mean()
    return torch.where(valid, x, 0.0).sum() / valid.sum().clamp(min=1)


def valid_means(samples: Mapping[str, Tensor], valid: Tensor) -> dict[str, Tensor]:
    """`valid_mean` of several quantities, by name, in a few operations for all of them.

    Args:
        samples: `[B]` each.
        valid: `[B]` bool.

    Returns:
        `[]` each.
    """
    stacked = torch.where(valid, torch.stack(list(samples.values())), 0.0)
    means = stacked.flatten(1).sum(1) / valid.sum().clamp(min=1)
    return dict(zip(samples, means.unbind(), strict=True))
