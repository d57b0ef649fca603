"""A small learner, samples of its policy, and an iteration of both, for the tests of an update."""

import torch
from every_family import vector

from ppo_kl.batch import Batch
from ppo_kl.config.policy import PolicyConfig
from ppo_kl.config.training import TrainingConfig
from ppo_kl.diagnostics.measure import measure
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


def make(family=FAMILIES["gaussian"], objective="kl_fixed", device="cpu", **settings) -> Learner:
    """A learner whose policy is already some way from its start, so that no gradient is small by symmetry."""
    policy, generator = ActorCritic((vector(3),), family, PolicyConfig(hidden_sizes=(8,)), seeded()), seeded(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    if isinstance(objective, str):
        objective = Objective.from_preset(objective)
    config = TrainingConfig(**{"num_epochs": 4, "minibatch_size": 64, "lr": 1e-3, **settings})
    return Learner(policy.to(device), family, objective.to(device), config, seeded(2))


def batch_of(learner: Learner, n: int = 10) -> Batch:
    """Samples of the learner's policy as it is now: π_old; drawn on the CPU, the same on any device."""
    generator, family, device = seeded(3), learner.family, learner.parameters.flat.device
    obs = torch.randn(n, 3, generator=generator).to(device)
    with torch.no_grad():
        params, value, _ = learner.policy(obs)
    action = family.sample(params.cpu(), generator).to(device)
    adv, error = (torch.randn(n, generator=generator).to(device) for _ in range(2))
    return Batch(
        obs=obs,
        action=action,
        logp_old=family.build(params).log_prob(action),
        params_old=params.clone(),
        adv=adv,
        ret=value + error,
        value_old=value.clone(),
        valid=torch.ones(n, dtype=torch.bool, device=device),
    )


def path_of(learner: Learner, batch_for=batch_of) -> dict[str, torch.Tensor]:
    """An iteration of training, and what is said of it."""
    batch = batch_for(learner)
    said = learner.update(batch, 0.5)
    measured = measure(learner.policy, learner.family, learner.objective, batch)
    said |= measured | {"penalty/lambda": learner.objective.kl_lambda.clone()}
    learner.objective.adapt_(measured["kl/controlled"])
    return said


def same_numbers(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float) -> None:
    """By name, on whichever device."""
    assert first.keys() == second.keys()
    for tag, value in first.items():
        torch.testing.assert_close(
            second[tag].cpu(), value.cpu(), rtol=tolerance, atol=tolerance, msg=lambda m, t=tag: f"{t}: {m}"
        )
