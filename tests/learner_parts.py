"""A small learner and samples of its policy, for the tests of an update."""

import torch
from every_family import vector

from ppo_kl.batch import Batch
from ppo_kl.config.policy import PolicyConfig
from ppo_kl.config.training import TrainingConfig
from ppo_kl.objectives import Objective
from ppo_kl.policies.actor_critic import ActorCritic
from ppo_kl.policies.box_families import GaussianFamily
from ppo_kl.policies.families import CategoricalFamily
from ppo_kl.training.learner import Learner

FAMILIES = {
    "categorical": CategoricalFamily(4),
    "gaussian": GaussianFamily((-1.0, -1.0), (1.0, 1.0), (2,)),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(family=FAMILIES["gaussian"], objective="kl_fixed", **settings) -> Learner:
    """A learner whose policy is already some way from its start, so that no gradient is small by symmetry."""
    policy, generator = ActorCritic((vector(3),), family, PolicyConfig(hidden_sizes=(8,)), seeded()), seeded(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    if isinstance(objective, str):
        objective = Objective.from_preset(objective)
    config = TrainingConfig(**{"num_epochs": 4, "minibatch_size": 64, "lr": 1e-3, **settings})
    return Learner(policy, family, objective, config, seeded(2))


def batch_of(learner: Learner, n: int = 10) -> Batch:
    """Samples of the learner's policy as it is now: π_old."""
    generator, family = seeded(3), learner.family
    obs = torch.randn(n, 3, generator=generator)
    with torch.no_grad():
        params, value, _ = learner.policy(obs)
    action = family.sample(params, generator)
    return Batch(
        obs=obs,
        action=action,
        logp_old=family.build(params).log_prob(action),
        params_old=params.clone(),
        adv=torch.randn(n, generator=generator),
        ret=value + torch.randn(n, generator=generator),
        value_old=value.clone(),
        valid=torch.ones(n, dtype=torch.bool),
    )
