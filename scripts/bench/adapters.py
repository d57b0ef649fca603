"""What the adapters cost over their hosts: the same update, side by side in one run, as a ratio.

python scripts/bench/adapters.py [--rounds 15]

Each round times one update of every variant, one after the other, on one thread; a ratio is the median over the rounds
of a variant's time over the host's in the same round. "without its KL" is the adapter with the exact KL taken out: what
is left is the adapter's own cost. Needs the extras [sb3] and [torchrl].
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from unittest import mock

import numpy as np
import torch
from stable_baselines3 import PPO
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.modules import IndependentNormal, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss, KLPENPPOLoss

from ppo_kl.integrations import sb3, torchrl
from ppo_kl.integrations.sb3 import PPOKL
from ppo_kl.integrations.torchrl import ObjectiveLoss

NO_KL = torch.zeros(64)


def nothing(*_: object, **__: object) -> torch.Tensor:
    """In the place of the KL, and of what is built for it."""
    return NO_KL


def sb3_updates(env: str) -> dict[str, Callable[[], None]]:
    """`train()` on a rollout of 2,048 steps: 10 epochs of 32 minibatches of 64, a 64×64 actor and critic."""

    def model(cls: type[PPO], **settings: str) -> PPO:
        made = cls("MlpPolicy", env, n_steps=2048, device="cpu", seed=0, **settings)
        return made.learn(2048)

    clip, bare, kl = (model(PPOKL, objective=name) for name in ("clip", "clip", "kl_adaptive"))

    def without_kl() -> None:
        with (
            mock.patch.object(sb3, "torch_distribution", nothing),
            mock.patch.object(bare, "_build", nothing),
            mock.patch.object(bare, "_adapt", nothing),
            mock.patch.object(bare.objective, "divergence", nothing),
        ):
            bare.train()

    return {
        "PPO": model(PPO).train,
        "clip": clip.train,
        "clip, without its KL": without_kl,
        "kl_adaptive": kl.train,
    }


def torchrl_updates(clip: bool) -> dict[str, Callable[[], None]]:
    """32 gradient steps on minibatches of 64: a 64×64 actor of 6 Gaussian actions and a critic of 17 observations."""

    def mlp(n_out: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, n_out))

    keys = ["loc", "scale"]
    actor = ProbabilisticActor(
        TensorDictModule(nn.Sequential(mlp(12), NormalParamExtractor()), in_keys=["observation"], out_keys=keys),
        in_keys=keys,
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )
    critic = ValueOperator(mlp(1), in_keys=["observation"])
    with torch.no_grad():
        rollout = actor(TensorDict({"observation": torch.randn(2048, 17)}, [2048]))
    rollout["advantage"], rollout["value_target"] = torch.randn(2048, 1), torch.randn(2048, 1)
    batches = rollout.split(64)

    def update(loss_module: nn.Module) -> None:
        optim = torch.optim.Adam(loss_module.parameters(), 1e-5)
        for batch in batches:
            losses = loss_module(batch)
            optim.zero_grad()
            (losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]).backward()
            optim.step()

    def without_kl(loss_module: nn.Module) -> None:
        with (
            mock.patch.object(torchrl, "policy_kl", nothing),
            mock.patch.object(loss_module, "_behaviour", nothing),
        ):
            update(loss_module)

    if clip:
        ours = ObjectiveLoss(actor, critic, objective="clip")
        return {
            "ClipPPOLoss": partial(update, ClipPPOLoss(actor, critic)),
            "clip": partial(update, ours),
            "clip, without its KL": partial(without_kl, ours),
        }
    held = KLPENPPOLoss(actor, critic, beta=1.0, increment=1.0, decrement=1.0)
    ours = ObjectiveLoss(actor, critic, objective="kl_fixed")
    return {"KLPENPPOLoss": partial(update, held), "kl_fixed": partial(update, ours)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for title, variants in (
        ("Stable-Baselines3, CartPole-v1", sb3_updates("CartPole-v1")),
        ("Stable-Baselines3, Pendulum-v1", sb3_updates("Pendulum-v1")),
        ("TorchRL, against the clipped loss", torchrl_updates(clip=True)),
        ("TorchRL, against the KL penalty", torchrl_updates(clip=False)),
    ):
        times: dict[str, list[float]] = {name: [] for name in variants}
        for step in range(args.rounds + 1):
            for name, update in variants.items():
                start = time.process_time()
                update()
                if step:  # the first round warms up
                    times[name].append(time.process_time() - start)
        host = np.array(next(iter(times.values())))
        print(title)
        for name, taken in times.items():
            print(f"  {name:22s} {median(taken) * 1e3:8.1f} ms   {float(np.median(np.array(taken) / host)):.3f}")


if __name__ == "__main__":
    main()
