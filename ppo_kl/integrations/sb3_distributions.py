"""Stable-Baselines3's action distributions as torch's: taken apart into tensors, and put together for their KL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributions import Distribution as TorchDistribution
from torch.distributions import Independent

from ppo_kl.integrations.adapter import missing_library
from ppo_kl.objectives.distributions import Joint, StableBernoulli, StableCategorical
from ppo_kl.objectives.gaussians import StableNormal

try:
    from stable_baselines3.common import distributions as sb3
except ImportError as error:
    raise missing_library("sb3", "sb3", error) from error


class Kind(NamedTuple):
    """How a distribution of SB3's is taken apart into tensors `[B, …]`, and put together with batch shape `[B]`."""

    params: Callable[[Any], tuple[Tensor, ...]]
    build: Callable[[Sequence[Tensor]], TorchDistribution]


def _normal(params: Sequence[Tensor]) -> TorchDistribution:
    loc, scale = params
    return Independent(StableNormal(loc, scale, validate_args=False), 1, validate_args=False)


# A squashed Gaussian is its Gaussian here: tanh is a bijection, and leaves the KL as it is.
GAUSSIAN = Kind(lambda dist: (dist.distribution.loc, dist.distribution.scale), _normal)
KINDS: dict[type[sb3.Distribution], Kind] = {
    sb3.DiagGaussianDistribution: GAUSSIAN,
    sb3.StateDependentNoiseDistribution: GAUSSIAN,
    sb3.CategoricalDistribution: Kind(
        lambda dist: (dist.distribution.logits,),
        lambda params: StableCategorical(logits=params[0], validate_args=False),
    ),
    sb3.MultiCategoricalDistribution: Kind(
        lambda dist: tuple(part.logits for part in dist.distribution),
        lambda params: Joint([StableCategorical(logits=x, validate_args=False) for x in params], validate_args=False),
    ),
    sb3.BernoulliDistribution: Kind(
        lambda dist: (dist.distribution.logits,),
        lambda params: Independent(StableBernoulli(logits=params[0], validate_args=False), 1, validate_args=False),
    ),
}
"""Every distribution that SB3 gives a policy."""


def kind_of(dist: sb3.Distribution) -> Kind:
    """The kind of SB3's distribution, or of the class that it is derived from.

    Raises:
        NotImplementedError: it is none of SB3's, so that its KL is not known.
    """
    for cls in type(dist).__mro__:
        if cls in KINDS:
            return KINDS[cls]
    names = ", ".join(cls.__name__ for cls in KINDS)
    raise NotImplementedError(
        f"PPOKL: no exact KL is known for the policy's {type(dist).__name__}; there is for {names}"
    )


def torch_distribution(dist: sb3.Distribution) -> TorchDistribution:
    """SB3's distribution as one of torch's, of batch shape `[B]`; gradients reach its parameters.

    Raises:
        NotImplementedError: it is none of SB3's, or the policy did not set it in `evaluate_actions`.
    """
    kind = kind_of(dist)
    if not hasattr(dist, "distribution"):
        raise NotImplementedError(
            f"PPOKL: the policy's evaluate_actions does not set policy.action_dist ({type(dist).__name__}), as SB3's "
            "own do, so that its KL is not known; let it be made by action_dist.proba_distribution"
        )
    return kind.build(kind.params(dist))
