"""Tianshou's PPO on CartPole, its clipped loss swapped for a penalty on the exact KL: `pip install ppo-kl tianshou`."""

from dataclasses import make_dataclass

import gymnasium as gym
import tianshou as ts
import tyro  # comes with ppo-kl: main's arguments as options
from tianshou.algorithm.modelfree.a2c import A2CTrainingStats
from torch.utils.tensorboard import SummaryWriter

from ppo_kl.objectives import Objective, kl_metrics

KLStats = make_dataclass("KLStats", [("kl", float), ("kl_lambda", float)], bases=(A2CTrainingStats,), kw_only=True)


class PPOKL(ts.algorithm.PPO):
    def __init__(self, *, objective, **settings):
        super().__init__(**settings)
        if self.dual_clip or self.value_clip or self.recompute_adv:
            raise ValueError("dual_clip, value_clip and recompute_advantage are left out of this copy of the update")
        self.objective = objective  # as a submodule it is in state_dict(): λ, and what its controller remembers

    def _update_with_batch(self, batch, batch_size, repeat):
        actor, dist_fn, losses = self.policy.actor, self.policy.dist_fn, []
        batch.logits_old = actor(batch.obs)[0].detach()  # the actor alone: the policy would also draw actions
        for part in (part for _ in range(repeat) for part in batch.split(batch_size or -1, merge_last=True)):
            pi, pi_old, adv = self.policy(part).dist, dist_fn(part.logits_old), part.adv
            adv = (adv - adv.mean()) / (adv.std() + self._eps) if self.advantage_normalization else adv
            kl = self.objective.divergence(pi_old, pi)
            out = self.objective(logp=pi.log_prob(part.act), logp_old=part.logp_old, adv=adv, kl=kl)
            vf_loss, entropy = (part.returns - self.critic(part.obs).flatten()).pow(2).mean(), pi.entropy().mean()
            loss = out.loss + self.vf_coef * vf_loss - self.ent_coef * entropy
            self.optim.step(loss)
            losses.append({"loss": loss, "actor_loss": out.loss, "vf_loss": vf_loss, "ent_loss": entropy})
        metrics = kl_metrics(self.objective, dist_fn(batch.logits_old), dist_fn(actor(batch.obs)[0]))
        self.objective.adapt_(metrics["kl/controlled"])
        stats = {k: ts.data.SequenceSummaryStats.from_sequence([x[k].item() for x in losses]) for k in losses[0]}
        stats |= {"kl": metrics["kl/controlled"].item(), "kl_lambda": metrics["penalty/lambda"].item()}
        return KLStats(gradient_steps=len(losses), **stats)


def main(steps: int = 24_000, log_dir: str | None = None) -> None:
    net, actor = (ts.utils.net.common.Net(state_shape=4, action_shape=n, hidden_sizes=(64, 64)) for n in (0, 2))
    critic = ts.utils.net.discrete.DiscreteCritic(preprocess_net=net)
    policy = ts.algorithm.modelfree.reinforce.DiscreteActorPolicy(actor=actor, action_space=gym.spaces.Discrete(2))
    objective, adam = Objective.from_preset("kl_adaptive"), ts.algorithm.optim.AdamOptimizerFactory(lr=1e-3)
    algorithm = PPOKL(objective=objective, policy=policy, critic=critic, optim=adam, gamma=0.98)
    envs = ts.env.DummyVectorEnv([lambda: gym.make("CartPole-v1")] * 4)
    collector = ts.data.Collector(algorithm, envs, ts.data.VectorReplayBuffer(2048, 4))
    logger = ts.utils.TensorboardLogger(SummaryWriter(log_dir), update_interval=1)  # in updates; 1000 by default
    loop = {"training_collector": collector, "logger": logger, "max_epochs": 1, "epoch_num_steps": steps}
    algorithm.run_training(ts.trainer.OnPolicyTrainerParams(**loop, update_step_num_repetitions=8, show_progress=False))
    tb = logger.restore_logged_data(logger.writer.log_dir)
    for row in zip(tb["update"]["kl"], tb["update"]["kl_lambda"], tb["training"]["returns_stat"]["mean"], strict=True):
        print("KL {:.4f}  λ {:.3f}  return {:.0f}".format(*row))


if __name__ == "__main__":
    tyro.cli(main)
