"""Distributions whose KL is right where torch's own breaks, each with its `register_kl`; the Gaussian ones next door.

They compute in float32 at least: parameters in half precision are widened, so that a small step does not drown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    OneHotCategorical,
    constraints,
    kl_divergence,
    register_kl,
)
from torch.nn.functional import logsigmoid


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


def as_wide_as_can_be(x: Tensor) -> Tensor:
    """`x` in float64, or as it is on Apple's GPUs, which have none."""
    return x if x.device.type == "mps" else x.double()


class Expandable(Distribution):
    """A subclass with a constructor of its own that still expands as its parent does; torch wants that said."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """As in torch."""
        new = self._get_checked_instance(type(self), _instance)  # type: ignore[no-untyped-call]
        return super().expand(batch_shape, new)


class StableCategorical(Expandable, Categorical):
    """A Categorical whose KL stays finite, with a gradient, at any gap between logits and under a shared mask.

    torch's KL tests `q.probs == 0`, which underflows from a gap of about 104 in float32 and answers inf with a zero
    gradient. Here the terms are taken from log-softmax, and an action that π_old cannot take contributes exactly 0.
    An action that the first policy can take and the second cannot makes the KL inf, or a ValueError where one of them
    validates its arguments.

    Args:
        logits: `[*, n]`; −inf for an action that cannot be taken.
        validate_args: as in torch.
    """

    def __init__(self, *, logits: Tensor, validate_args: bool | None = None) -> None:
        if logits.dim() < 1:
            raise ValueError("StableCategorical: logits must have at least one dimension, that of the actions")
        # torch takes logsumexp off, which rounds with the size of the logits; log_softmax takes off the maximum first.
        # Its constructor would do so once more: half of what the whole distribution costs.
        self.logits = self._param = torch.log_softmax(at_least_float32(logits), -1)
        self._num_events = logits.shape[-1]
        Distribution.__init__(self, logits.shape[:-1], validate_args=validate_args)


@register_kl(StableCategorical, StableCategorical)  # type: ignore[no-untyped-call, untyped-decorator]
def _kl_stable_categorical(p: StableCategorical, q: StableCategorical) -> Tensor:
    if p._validate_args or q._validate_args:
        _require_support(p.logits, q.logits)
    return _kl_of_log_probs(p.logits, q.logits)


def _kl_of_log_probs(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ p (log p − log q) over the last dimension, without what p rules out; inf where q rules out what p does not."""
    possible = log_p != -torch.inf  # also true of NaN, which shall stay seen
    lost = possible & (log_q == -torch.inf)
    log_p = torch.where(possible, log_p, 0.0)
    log_q = torch.where(possible & ~lost, log_q, 0.0)
    terms = torch.where(possible, log_p.exp() * (log_p - log_q), 0.0)
    return torch.where(lost, torch.inf, terms).sum(-1)


def _require_support(log_p: Tensor, log_q: Tensor) -> None:
    """Refuse the first action that p can take and q cannot; reads from the device."""
    lost = (log_p != -torch.inf) & (log_q == -torch.inf)
    if lost.any():
        *row, action = lost.nonzero()[0].tolist()
        raise ValueError(
            f"policy_kl/StableCategorical: row {', '.join(map(str, row))}, action {action}: possible under the first "
            "policy, impossible under the second, so the KL is infinite; give both the same action mask"
        )


class StableOneHotCategorical(Expandable, OneHotCategorical):
    """A OneHotCategorical whose KL is that of `StableCategorical`.

    Args:
        logits: `[*, n]`; −inf for an action that cannot be taken.
        validate_args: as in torch.
    """

    def __init__(self, *, logits: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(logits=at_least_float32(logits), validate_args=validate_args)
        self._categorical = StableCategorical(logits=logits, validate_args=self._validate_args)


@register_kl(StableOneHotCategorical, StableOneHotCategorical)  # type: ignore[no-untyped-call, untyped-decorator]
def _kl_stable_one_hot(p: StableOneHotCategorical, q: StableOneHotCategorical) -> Tensor:
    return kl_divergence(p._categorical, q._categorical)


class StableBernoulli(Expandable, Bernoulli):
    """A Bernoulli whose KL is right at any logit: σ(p)(sp(−q) − sp(−p)) + σ(−p)(sp(q) − sp(p)), sp = softplus.

    torch's KL is inf for a new logit above 16.6 or below −103 in float32. A logit of ±inf is a probability of exactly
    1 or 0, for which torch's log-probability and entropy are NaN.

    Args:
        logits: any shape.
        validate_args: as in torch.
    """

    def __init__(self, *, logits: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(logits=at_least_float32(logits), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """log σ(l) where `value` is 1, log σ(−l) where it is 0."""
        if self._validate_args:
            self._validate_sample(value)
        return logsigmoid((2 * value - 1) * self.logits)

    def entropy(self) -> Tensor:
        """−Σ p log p over both outcomes, one that is impossible contributing 0."""
        log_p = self.log_both
        impossible = log_p == -torch.inf
        return -torch.where(impossible, 0.0, log_p.exp() * torch.where(impossible, 0.0, log_p)).sum(-1)

    @property
    def log_both(self) -> Tensor:
        """Log-probabilities of 1 and of 0, `[*, 2]`."""
        # Not softplus: torch's drops log1p(e^−x) from x = 20, which float64 still sees.
        return torch.stack([logsigmoid(self.logits), logsigmoid(-self.logits)], -1)


@register_kl(StableBernoulli, StableBernoulli)  # type: ignore[no-untyped-call, untyped-decorator]
def _kl_stable_bernoulli(p: StableBernoulli, q: StableBernoulli) -> Tensor:
    return _kl_of_log_probs(p.log_both, q.log_both)


class StableBeta(Expandable, Beta):
    """A Beta whose KL, log-probability and entropy are computed in float64 and answered in the parameters' dtype.

    In float32 the differences of lgamma lose everything: torch's KL(Beta(1e5, 1e5) ‖ Beta(1e5, 100010)) is −0.0685,
    the true one 0.00025.

    Args:
        concentration1: α > 0, any shape.
        concentration0: β > 0, the same shape.
        validate_args: as in torch.
    """

    def __init__(self, concentration1: Tensor, concentration0: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(
            at_least_float32(concentration1), at_least_float32(concentration0), validate_args=validate_args
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """(α − 1) log x + (β − 1) log(1 − x) − log B(α, β)."""
        if self._validate_args:
            self._validate_sample(value)
        a, b = _wide(self)
        x = as_wide_as_can_be(value)
        nats = torch.special.xlogy(a - 1, x) + torch.special.xlog1py(b - 1, -x) - _log_beta(a, b)
        log_density: Tensor = nats.to(self.concentration1.dtype)
        return log_density

    def entropy(self) -> Tensor:
        """log B(α, β) − (α − 1) ψ(α) − (β − 1) ψ(β) + (α + β − 2) ψ(α + β)."""
        a, b = _wide(self)
        psi_a, psi_b, psi = a.digamma(), b.digamma(), (a + b).digamma()
        nats = _log_beta(a, b) - (a - 1) * (psi_a - psi) - (b - 1) * (psi_b - psi)
        entropy: Tensor = nats.to(self.concentration1.dtype)
        return entropy


@register_kl(StableBeta, StableBeta)  # type: ignore[no-untyped-call, untyped-decorator]
def _kl_stable_beta(p: StableBeta, q: StableBeta) -> Tensor:
    (a, b), (c, d) = _wide(p), _wide(q)
    psi: Tensor = (a + b).digamma()
    kl: Tensor = _log_beta(c, d) - _log_beta(a, b) + (a - c) * (a.digamma() - psi) + (b - d) * (b.digamma() - psi)
    return kl.to(torch.promote_types(p.concentration1.dtype, q.concentration1.dtype))


def _wide(beta: Beta) -> tuple[Tensor, Tensor]:
    return as_wide_as_can_be(beta.concentration1), as_wide_as_can_be(beta.concentration0)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return a.lgamma() + b.lgamma() - (a + b).lgamma()


class Joint(Distribution):
    """Independent parts of possibly different kinds, as one distribution over their values side by side.

    A value is one float tensor `[*, ΣA_i]`; a part over single numbers takes one column, one over a vector its length.
    Log-probability, entropy and KL are the sums over the parts.

    Args:
        parts: at least one, of one batch shape, over numbers or vectors.
        validate_args: as in torch, for the value as a whole; the parts have their own.

    Raises:
        ValueError: there is no part, batch shapes differ, or a part is over a matrix.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012  # torch's own name and type

    def __init__(self, parts: Sequence[Distribution], validate_args: bool | None = None) -> None:
        self.parts = tuple(parts)
        shapes = [(tuple(part.batch_shape), tuple(part.event_shape)) for part in self.parts]
        if (
            not shapes
            or any(batch != shapes[0][0] for batch, _ in shapes)
            or any(len(event) > 1 for _, event in shapes)
        ):
            raise ValueError(
                f"Joint: batch and event shapes of the parts are {shapes}; give at least one part, all of one batch "
                "shape and each over numbers or vectors"
            )
        self.sizes = [event[0] if event else 1 for _, event in shapes]
        super().__init__(self.parts[0].batch_shape, torch.Size([sum(self.sizes)]), validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The supports of the parts, side by side."""
        vector: Any = constraints.independent
        each = [part.support if part.event_shape else vector(part.support, 1) for part in self.parts]
        cat: Any = constraints.cat
        return cat(each, dim=-1, lengths=self.sizes)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Joint:
        """Every part expanded."""
        new = self._get_checked_instance(Joint, _instance)  # type: ignore[no-untyped-call]
        Joint.__init__(new, [part.expand(batch_shape) for part in self.parts], validate_args=False)
        new._validate_args = self._validate_args
        expanded: Joint = new
        return expanded

    def __repr__(self) -> str:
        return f"Joint({', '.join(map(repr, self.parts))})"

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """One value of each part, side by side, `[*, ΣA_i]`."""
        samples = [(part, part.sample(sample_shape)) for part in self.parts]
        return at_least_float32(torch.cat([x if part.event_shape else x[..., None] for part, x in samples], -1))

    def log_prob(self, value: Tensor) -> Tensor:
        """Σ log-probability of each part; `[*, ΣA_i]` -> `[*]`."""
        if self._validate_args:
            self._validate_sample(value)
        columns = zip(self.parts, torch.split(value, self.sizes, -1), strict=True)
        return _total([part.log_prob(x if part.event_shape else x[..., 0]) for part, x in columns])

    def entropy(self) -> Tensor:
        """Σ entropy of each part, `[*]`."""
        return _total([part.entropy() for part in self.parts])


def _total(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum(0)


@register_kl(Joint, Joint)  # type: ignore[no-untyped-call, untyped-decorator]
def _kl_joint(p: Joint, q: Joint) -> Tensor:
    if p.sizes != q.sizes:
        raise NotImplementedError(f"Joint: parts of sizes {p.sizes} and {q.sizes} do not pair up: {p.parts}, {q.parts}")
    terms = []
    for i, (part, other) in enumerate(zip(p.parts, q.parts, strict=True)):
        try:
            terms.append(kl_divergence(part, other))
        except NotImplementedError:
            raise NotImplementedError(f"Joint: part {i}: no exact KL for {part!r} and {other!r}") from None
    return _total(terms)
