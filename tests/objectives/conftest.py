"""Four per-sample tensors to feed an objective, and a real policy of each family that they can come from."""

from dataclasses import dataclass

import pytest
import torch
from every_family import vector
from torch import Tensor

from ppo_kl.config.policy import PolicyConfig
from ppo_kl.objectives import Objective
from ppo_kl.policies.actor_critic import ActorCritic
from ppo_kl.policies.box_families import GaussianFamily
from ppo_kl.policies.families import CategoricalFamily

FAMILIES = {
    "categorical": CategoricalFamily(4),
    "gaussian": GaussianFamily((-1.0, -1.0), (1.0, 1.0), (2,)),
}


@dataclass
class Samples:
    """A policy, and 64 actions drawn from it as it is now: π_old."""

    family: CategoricalFamily | GaussianFamily
    policy: ActorCritic
    obs: Tensor
    params_old: Tensor
    action: Tensor
    logp_old: Tensor
    adv: Tensor

    def inputs(self, objective: Objective) -> dict[str, Tensor]:
        """What the objective is called with at the policy's present parameters."""
        pi_old, pi = self.family.build(self.params_old), self.family.build(self.policy(self.obs).params)
        kl = objective.divergence(pi_old, pi)
        return {"logp": pi.log_prob(self.action), "logp_old": self.logp_old, "adv": self.adv, "kl": kl}

    def gradient(self, loss: Tensor) -> Tensor:
        """With respect to every parameter of the actor, in one vector."""
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(self.policy.actor.parameters()))])

    def move(self, size: float) -> None:
        """Take the policy away from π_old."""
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in self.policy.actor.parameters():
                parameter += size * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(params=FAMILIES)
def samples(request) -> Samples:
    """64 samples of a policy that is not symmetric in its actions, for each family."""
    family, generator = FAMILIES[request.param], torch.Generator().manual_seed(3)
    policy = ActorCritic((vector(3),), family, PolicyConfig(hidden_sizes=(8,)), generator)
    obs = torch.randn(64, 3, generator=generator)
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        params_old = policy(obs).params
        action = family.sample(params_old, generator)
        logp_old = family.build(params_old).log_prob(action)
    return Samples(family, policy, obs, params_old, action, logp_old, torch.randn(64, generator=generator))
