"""The training problems that speed is measured on; every library runs them with the same hyper-parameters."""

from __future__ import annotations

from typing import Any, NamedTuple


class Workload(NamedTuple):
    """An environment, and how a rollout is cut into gradient steps."""

    env_id: str
    num_envs: int
    num_steps: int
    minibatch_size: int
    num_epochs: int

    @property
    def batch(self) -> int:
        """Samples in a rollout."""
        return self.num_envs * self.num_steps

    @property
    def grad_steps(self) -> int:
        """Gradient steps in an update."""
        return self.batch // self.minibatch_size * self.num_epochs


WORKLOADS = {
    "A": Workload("HalfCheetah-v5", num_envs=1, num_steps=2048, minibatch_size=64, num_epochs=10),
    "B": Workload("CartPole-v1", num_envs=8, num_steps=256, minibatch_size=256, num_epochs=10),
    "C": Workload("HalfCheetah-v5", num_envs=16, num_steps=128, minibatch_size=512, num_epochs=4),
}
"""A: one environment, small minibatches; B: a light environment; C: many environments, few large minibatches."""

HIDDEN_SIZES = (64, 64)
"""Of the actor and of the critic, apart, with tanh between the layers."""
PPO: dict[str, float] = {
    "lr": 3e-4,
    "adam_eps": 1e-5,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "vf_coef": 0.5,
    "ent_coef": 0.0,
    "max_grad_norm": 0.5,
}
"""The same in every workload, under our names; observations and rewards are not normalised."""
CLIP_EPS = 0.2


def settings_of(workload: Workload) -> dict[str, Any]:
    """The workload as dotted keys of our own configuration; what is not among them has its default."""
    return {
        "env.id": workload.env_id,
        "env.num_envs": workload.num_envs,
        "policy.hidden_sizes": HIDDEN_SIZES,
        "training.num_steps": workload.num_steps,
        "training.minibatch_size": workload.minibatch_size,
        "training.num_epochs": workload.num_epochs,
        **{f"training.{name}": value for name, value in PPO.items()},
    }
