"""TorchRL's PPO loop on Pendulum with an adaptive penalty on the exact KL: `pip install "ppo-kl[torchrl]"`.

Against the host's loop two lines are changed, the import and the class, and one is added: adapt_.
"""

import argparse

import torch
from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, RewardSum, TransformedEnv
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives.value import GAE
from torchrl.record import TensorboardLogger

from ppo_kl.integrations.torchrl import ObjectiveLoss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objective", default="kl_adaptive", help="a preset of ppo_kl, as clip or kl_pi")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--log-dir", default="runs")
    args = parser.parse_args()
    torch.manual_seed(0)
    env = TransformedEnv(GymEnv("Pendulum-v1"), RewardSum())
    env.set_seed(0)
    net = nn.Sequential(MLP(3, 1, num_cells=[64, 64], activation_class=nn.Tanh), AddStateIndependentNormalScale(1))
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],  # the collector stores both: they are π_old
        distribution_class=TanhNormal,
        distribution_kwargs={"low": -2.0, "high": 2.0},
        return_log_prob=True,
    )
    critic = ValueOperator(MLP(3, 1, num_cells=[64, 64], activation_class=nn.Tanh), in_keys=["observation"])
    settings = {"frames_per_batch": 1000, "total_frames": args.steps, "auto_register_policy_transforms": False}
    collector = Collector(env, actor, **settings)
    advantage = GAE(gamma=0.9, lmbda=0.95, value_network=critic)
    loss_module = ObjectiveLoss(actor, critic, objective=args.objective, entropy_bonus=False, normalize_advantage=True)
    optim = torch.optim.Adam(loss_module.parameters(), 1e-3)
    logger = TensorboardLogger(f"pendulum_{args.objective}", log_dir=args.log_dir)
    for iteration, rollout in enumerate(collector, start=1):
        advantage(rollout)
        for batch in (batch for _ in range(10) for batch in rollout[torch.randperm(1000)].split(50)):
            losses = loss_module(batch)
            optim.zero_grad()
            (losses["loss_objective"] + losses["loss_critic"]).backward()
            optim.step()
        metrics = loss_module.adapt_(rollout)  # λ follows the exact KL of the whole rollout
        metrics["return"] = rollout["next", "episode_reward"][rollout["next", "done"]].mean().item()
        for name, number in metrics.items():
            logger.log_scalar(name, number, step=iteration * 1000)
        print("return {return:8.1f}  KL {kl/forward:.4f}  λ {penalty/lambda:.4g}".format(**metrics))


if __name__ == "__main__":
    main()
