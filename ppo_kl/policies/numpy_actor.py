"""A small actor in NumPy, over views of the policy's own weights: a fraction of what the same costs in torch.

Torch needs several microseconds for each of a dozen operations on a handful of numbers, and on a GPU ten times that to
get there and back: what lives there is copied once for a rollout. Each module and family that has a form here is in one
of two tables; an actor with any other part acts in torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppo_kl.observations import Array
from ppo_kl.policies.actor_critic import ActorCritic
from ppo_kl.policies.box_families import GaussianFamily, TanhGaussianFamily
from ppo_kl.policies.encoders import Flat
from ppo_kl.policies.families import CategoricalFamily, Family
from ppo_kl.policies.heads import GaussianHead, PlainHead
from ppo_kl.policies.networks import FewInputs, FewOutputs, Tanh
from ppo_kl.policies.normalize import CLIP, ObservationNormalizer, VectorNormalizer

LARGEST = 2**17
"""Products of the largest layer for all environments beyond which torch is as fast, and NumPy would use threads."""

Layer = Callable[[Array], Array]
Sampler = Callable[[int, Array, Array | None], Array]
Act = Callable[[int, Any, Array | None], Array]
"""Step of the rollout, observations as they are stored `[N, *obs]`, mask `[N, M]` or none -> actions `[N, *A]`."""


def numpy_actor(policy: Any, family: Family, normalize: Any, noise: Tensor) -> Act | None:
    """How a policy acts through one rollout, in which it stands still.

    Args:
        policy: whose weights are looked at, and copied only from a GPU.
        family: what its parameters mean.
        normalize: the observation normaliser, which stands still too.
        noise: of the whole rollout, `[T, N, num_noise]`, on the CPU.

    Returns:
        What draws the actions that `family.sample` would draw with the same noise, up to rounding; none where it has
        no form in NumPy, or torch serves as well.
    """
    if type(policy) is not ActorCritic or type(normalize) is not ObservationNormalizer or type(family) not in SAMPLERS:
        return None
    body: Any = policy.actor.body if policy.trunk is None else policy.trunk
    last: Any = policy.actor.last
    if body.memory is not None or len(body.encoder.parts) != 1:
        return None
    modules = [*normalize.vectors.values(), *body.encoder.parts, *body.layers, last, policy.actor.head]
    sizes = [module.weight.numel() for module in modules if isinstance(module, nn.Linear)]
    if max(sizes) * noise.shape[1] > LARGEST:
        return None
    layers: list[Layer] = []
    for module in modules:
        layer = LAYERS[type(module)](module) if type(module) in LAYERS else None
        if layer is None:
            return None
        layers.append(layer)
    sample = SAMPLERS[type(family)](policy, noise)

    def act(t: int, obs: Array, action_mask: Array | None) -> Array:
        x = obs
        for layer in layers:
            x = layer(x)
        return sample(t, x, action_mask)

    return act


def _array(x: Tensor) -> Array:
    """A view, or from a GPU a copy."""
    array: Array = x.detach().cpu().numpy()
    return array


# --- modules ----------------------------------------------------------------------------------------------------------


def _normalizer(module: VectorNormalizer) -> Layer:
    moments = module.moments
    if not moments.count > 0:
        return _as_it_is
    mean, std = _array(moments.mean), _array(module.std())

    def normalized(x: Array) -> Array:
        y: Array = (x - mean) / std
        np.minimum(np.maximum(y, -CLIP, out=y), CLIP, out=y)
        return y.astype(np.float32)

    return normalized


def _flat(module: Flat) -> Layer | None:
    return None if module.scale != 1 else lambda x: x.reshape(len(x), -1)


def _linear(module: nn.Linear) -> Layer:
    weight, bias = _array(module.weight).T, _array(module.bias)

    def linear(x: Array) -> Array:
        y: Array = x.dot(weight)
        y += bias
        return y

    return linear


def _as_it_is(x: Array) -> Array:
    return x


def _gaussian_head(module: GaussianHead) -> Layer | None:
    """The mean alone; σ is in the noise."""
    if module.config.scale_depends_on_state:
        return None
    if module.config.mean != "tanh":
        return _as_it_is
    centre, half_width = _array(module.centre), _array(module.half_width)
    return lambda x: centre + half_width * np.tanh(x)


LAYERS: dict[type[nn.Module], Callable[[Any], Layer | None]] = {
    VectorNormalizer: _normalizer,
    Flat: _flat,
    nn.Linear: _linear,
    FewInputs: _linear,
    FewOutputs: _linear,
    Tanh: lambda module: np.tanh,  # noqa: ARG005
    nn.ReLU: lambda module: lambda x: np.maximum(x, 0),  # noqa: ARG005
    nn.ELU: lambda module: lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),  # noqa: ARG005
    nn.SiLU: lambda module: lambda x: x * (0.5 + 0.5 * np.tanh(0.5 * x)),  # noqa: ARG005 - exp would overflow
    PlainHead: lambda module: _as_it_is,  # noqa: ARG005
    GaussianHead: _gaussian_head,
}
"""Module -> its form in NumPy, or none where its settings have none."""


# --- families ---------------------------------------------------------------------------------------------------------


def _categorical(policy: ActorCritic, noise: Tensor) -> Sampler:  # noqa: ARG001
    gumbel = noise.log().neg().numpy()

    def sample(t: int, logits: Array, action_mask: Array | None) -> Array:
        allowed = logits if action_mask is None else np.where(action_mask, logits, -np.inf)
        chosen: Array = (allowed + gumbel[t]).argmax(-1)
        return chosen

    return sample


def _gaussian(policy: ActorCritic, noise: Tensor) -> Sampler:
    head: Any = policy.actor.head
    with torch.no_grad():
        zero = torch.zeros(1, head.dims, device=head.centre.device)
        log_std = head.with_scale(zero, policy.actor.scale)[:, head.dims :].cpu()
    # The same for every state: multiplied once.
    step = (log_std.exp() * noise).numpy()
    return lambda t, mean, action_mask: mean + step[t]  # noqa: ARG005 - a Box has no mask


SAMPLERS: dict[type[Any], Callable[[ActorCritic, Tensor], Sampler]] = {
    CategoricalFamily: _categorical,
    GaussianFamily: _gaussian,
    TanhGaussianFamily: _gaussian,
}
"""Family -> how it draws, from the policy and the noise of a whole rollout."""
