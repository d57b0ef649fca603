"""Distributions whose KL is right where torch's own breaks, each with its `register_kl`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, register_kl


class StableCategorical(Categorical):
    """A Categorical whose KL stays finite, with a gradient, at any gap between logits and under a shared mask.

    torch's KL tests `q.probs == 0`, which underflows from a gap of about 104 in float32 and answers inf with a zero
    gradient. Here the terms are taken from log-softmax, and an action that π_old cannot take contributes exactly 0.

    Args:
        logits: `[*, n]`; −inf for an action that cannot be taken.
        validate_args: as in torch.
    """

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        # torch takes logsumexp off, which rounds with the size of the logits; log_softmax takes off the maximum first.
        super().__init__(logits=torch.log_softmax(logits, -1), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StableCategorical:
        """As in torch; a class with a constructor of its own has to say so."""
        new = self._get_checked_instance(StableCategorical, _instance)  # type: ignore[no-untyped-call]
        expanded: StableCategorical = super().expand(batch_shape, new)  # type: ignore[no-untyped-call]
        return expanded


@register_kl(StableCategorical, StableCategorical)  # type: ignore[no-untyped-call, untyped-decorator]
def _kl_stable_categorical(p: StableCategorical, q: StableCategorical) -> Tensor:
    possible = p.logits != -torch.inf  # also true of NaN, which shall stay seen
    lost = possible & (q.logits == -torch.inf)
    log_p = torch.where(possible, p.logits, 0.0)
    log_q = torch.where(possible & ~lost, q.logits, 0.0)
    terms = torch.where(possible, log_p.exp() * (log_p - log_q), 0.0)
    return torch.where(lost, torch.inf, terms).sum(-1)
