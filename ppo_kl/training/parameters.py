"""Actor and critic as views of one flat float32 vector: clipping and Adam are then a few operations on one tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ppo_kl.errors import CheckpointError


def is_of_critic(name: str) -> bool:
    """Whether a parameter is the critic's alone, in our policy or in a module of the user's."""
    return name.removeprefix("module.").startswith("critic.")


def name_in_checkpoint(name: str) -> str:
    """The same for a module and for what `torch.compile` makes of it."""
    return name.replace("_orig_mod.", "")


class FlatParameters:
    """One leaf that holds every parameter of a policy, the actor's first.

    The module's own parameters become views of the same memory: it acts with what an optimiser step writes into `flat`.

    Args:
        policy: what is not the critic's counts as the actor's, also a trunk that both share.
    """

    def __init__(self, policy: nn.Module) -> None:
        named = dict(policy.named_parameters())
        self.names = sorted(named, key=is_of_critic)
        self.shapes = [named[name].shape for name in self.names]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.num_actor = sum(n for name, n in zip(self.names, self.sizes, strict=True) if not is_of_critic(name))
        with torch.no_grad():
            self.flat = torch.cat([named[name].reshape(-1).float() for name in self.names])
        for name, view in self.split(self.flat).items():
            named[name].data = view
        self.flat.requires_grad_()
        self._parameters = [named[name] for name in self.names]
        self._is_actors = torch.arange(len(self.flat), device=self.flat.device) < self.num_actor

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of `vector`, `[n]`, by parameter name; differentiable."""
        pieces = torch.split(vector, self.sizes)
        return {n: x.view(s) for n, x, s in zip(self.names, pieces, self.shapes, strict=True)}

    def gradient(self, loss: Tensor) -> Tensor:
        """∇ loss, `[n]`, of a loss that was computed with the module's own parameters; 0 for those that it lacks."""
        grads = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([grad.reshape(-1) for grad in grads])

    def by_part(self, actor_critic: Tensor) -> Tensor:
        """One number of the actor and one of the critic, `[2]`, spread over their parameters, `[n]`."""
        return torch.where(self._is_actors, actor_critic[0], actor_critic[1])

    def join(self, named: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `split`, on this device; takes the names of a checkpoint as well.

        Raises:
            CheckpointError: names or shapes are not this policy's.
        """
        named = {name_in_checkpoint(name): x for name, x in named.items()}
        names = [name_in_checkpoint(name) for name in self.names]
        expected = {name: tuple(shape) for name, shape in zip(names, self.shapes, strict=True)}
        found = {name: tuple(x.shape) for name, x in named.items()}
        if expected != found:
            differing = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
            lines = "; ".join(f"{k}: this policy {expected.get(k)}, given {found.get(k)}" for k in differing)
            raise CheckpointError(f"parameters do not fit this policy: {lines}; nothing was loaded")
        return torch.cat([named[name].reshape(-1) for name in names]).to(self.flat)
