"""skrl's PPO on Pendulum, its clipped loss swapped for a penalty on the exact KL: `pip install ppo-kl skrl`."""

import gymnasium as gym
import torch
import tyro  # comes with ppo-kl: main's arguments as options
from skrl.agents.torch.ppo.ppo import PPO, compute_gae
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.trainers.torch import SequentialTrainer
from skrl.utils.model_instantiators.torch import deterministic_model, gaussian_model
from torch.distributions import Independent, Normal
from torch.nn.functional import mse_loss

from ppo_kl.objectives import Objective, kl_metrics


class PPOKL(PPO):
    def __init__(self, *, objective, **settings):
        super().__init__(**settings)
        for name in ("mixed_precision", "kl_threshold", "learning_rate_scheduler", "state_preprocessor"):
            if getattr(self.cfg, name) not in (0, None, (None, None)):
                raise ValueError(f"cfg.{name} is left out of this copy of PPO.update")
        self.checkpoint_modules["objective"] = self.objective = objective.to(self.device)

    def pi(self, inputs):
        self.policy.act(inputs, role="policy")
        return Independent(self.policy.distribution(role="policy"), 1)

    @torch.no_grad()
    @torch.random.fork_rng()  # act also draws actions, which must not shift the draws of the next rollout
    def pi_of_rollout(self):
        return self.pi({"observations": self._observation_preprocessor(self.memory.tensors_view["observations"])})

    def update(self, *, timestep, timesteps):
        cfg, stored, pi_old_all = self.cfg, self.memory.tensors, self.pi_of_rollout()
        with torch.no_grad():
            inputs = {"observations": self._observation_preprocessor(self._current_next_observations)}
            last_values = self._value_preprocessor(self.value.act(inputs, role="value")[0], inverse=True)
        rollout = {name: stored[name] for name in ("rewards", "terminated", "truncated", "values")}
        rollout |= {"last_values": last_values, "time_limit_bootstrap": cfg.time_limit_bootstrap}
        returns, adv = compute_gae(**rollout, discount_factor=cfg.discount_factor, lambda_coefficient=cfg.gae_lambda)
        stored["values"].copy_(self._value_preprocessor(stored["values"], train=True))
        stored["returns"].copy_(self._value_preprocessor(returns, train=True))
        stored["advantages"].copy_(adv)
        for epoch in range(cfg.learning_epochs):
            for rows in torch.randperm(len(self.memory)).tensor_split(cfg.mini_batches):
                batch = {name: tensor[rows] for name, tensor in self.memory.tensors_view.items()}
                inputs = {"observations": self._observation_preprocessor(batch["observations"], train=not epoch)}
                pi, pi_old = self.pi(inputs), Independent(Normal(pi_old_all.mean[rows], pi_old_all.stddev[rows]), 1)
                logp, logp_old = pi.log_prob(batch["actions"]), batch["log_prob"].squeeze(-1)
                kl = self.objective.divergence(pi_old, pi)
                out = self.objective(logp=logp, logp_old=logp_old, adv=batch["advantages"].squeeze(-1), kl=kl)
                entropy_loss = -cfg.entropy_loss_scale * pi.entropy().mean()
                values = self.value.act(inputs, role="value")[0]
                if cfg.value_clip > 0:
                    values = batch["values"] + (values - batch["values"]).clip(-cfg.value_clip, cfg.value_clip)
                value_loss = cfg.value_loss_scale * mse_loss(batch["returns"], values)
                self.optimizer.zero_grad()
                (out.loss + entropy_loss + value_loss).backward()
                if cfg.grad_norm_clip > 0:
                    torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], cfg.grad_norm_clip)
                self.optimizer.step()
                self.track_data("Loss / Policy loss", out.loss.item())
                self.track_data("Loss / Value loss", value_loss.item())
        metrics = kl_metrics(self.objective, pi_old_all, self.pi_of_rollout())
        self.objective.adapt_(metrics["kl/controlled"])
        kl, kl_lambda = metrics["kl/controlled"].item(), metrics["penalty/lambda"].item()
        self.track_data("Policy / KL (exact)", kl)
        self.track_data("Policy / KL penalty coefficient", kl_lambda)
        total = torch.tensor(self._track_rewards).mean()
        print(f"step {timestep + 1:4d} of {timesteps}  KL {kl:.4f}  λ {kl_lambda:.3f}  return {total:.0f}")


def main(steps: int = 40_000, directory: str = "runs") -> None:
    env = wrap_env(gym.make_vec("Pendulum-v1", num_envs=8, vectorization_mode="sync"))
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space, "device": env.device}
    net = [{"name": "net", "input": "OBSERVATIONS", "layers": [64, 64], "activations": "tanh"}]
    models = {"policy": gaussian_model(**spaces, network=net, output="ACTIONS")}
    models["value"] = deterministic_model(**spaces, network=net, output="ONE")
    cfg = {"rollouts": 256, "learning_epochs": 10, "mini_batches": 32, "discount_factor": 0.9}
    cfg["rewards_shaper"] = lambda rewards, *_: 0.01 * rewards
    cfg["experiment"] = {"directory": directory, "write_interval": 256}
    memory = RandomMemory(memory_size=256, num_envs=8, device=env.device)
    agent = PPOKL(objective=Objective.from_preset("kl_adaptive"), models=models, memory=memory, cfg=cfg, **spaces)
    loop = {"timesteps": steps // 8, "headless": True, "disable_progressbar": True}
    SequentialTrainer(env=env, agents=agent, cfg=loop).train()


if __name__ == "__main__":
    tyro.cli(main)
