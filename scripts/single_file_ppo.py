"""PPO in one file, CleanRL-style: it reads from top to bottom, and its policy loss is an objective of ppo_kl.

    python scripts/single_file_ppo.py                                     # CartPole-v1, adaptive KL penalty
    python scripts/single_file_ppo.py --objective clip --seed 1
    python scripts/single_file_ppo.py --env Pendulum-v1 --total-steps 200000

It needs torch with its TensorBoard writer, gymnasium, numpy and ppo_kl.objectives. What makes it ppo_kl are the lines
marked OBJECTIVE: two in the minibatch, one after the rollout's update. Copy it, change it.
"""

import argparse
import time
from collections import deque
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from torch.utils.tensorboard import SummaryWriter

from ppo_kl.objectives import Objective, kl_metrics

# What differs between tasks. Any other Box task takes Pendulum's, which are short-sighted: look at gamma first.
DISCRETE = {"num_envs": 8, "num_steps": 128, "num_epochs": 4, "minibatch": 256, "gamma": 0.99, "anneal_lr": True}
CONTINUOUS = {"num_envs": 4, "num_steps": 256, "num_epochs": 10, "minibatch": 64, "gamma": 0.9, "anneal_lr": False}
LR, GAE_LAMBDA, VF_COEF, MAX_GRAD_NORM = 1e-3, 0.95, 0.5, 0.5


def parse() -> argparse.Namespace:
    """The command line; what is not given is the task's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="a Gymnasium id with Discrete or Box actions")
    parser.add_argument("--objective", default="kl_adaptive", help="a preset of ppo_kl, as clip or kl_pi")
    parser.add_argument("--kl-target", type=float, help="KL wanted of an update, nats")
    parser.add_argument("--total-steps", type=int, default=100_000)
    parser.add_argument("--ent-coef", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    return parser.parse_args()


def make_env(env_id: str) -> gym.Env:
    """One environment of vectors; actions of a Box that has bounds are clipped to [-1, 1] and scaled to them."""
    env = gym.wrappers.RecordEpisodeStatistics(gym.make(env_id))
    obs_space, space = env.observation_space, env.action_space
    discrete = isinstance(space, gym.spaces.Discrete) and space.start == 0
    box = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
    if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1 or not (discrete or box):
        raise SystemExit(
            f"--env {env_id}: {obs_space} -> {space}; this file takes vectors, and Discrete or vector actions"
        )
    if box and space.is_bounded("both"):
        env = gym.wrappers.ClipAction(gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1)))
    return env


def gae(reward: Tensor, value: Tensor, next_value: Tensor, over: Tensor, gamma: float) -> Tensor:
    """Advantages, all [T, N], backwards: a trace ends with its episode; next_value is 0 after a termination."""
    adv, trace = torch.zeros_like(reward), torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        trace = reward[t] + gamma * next_value[t] - value[t] + gamma * GAE_LAMBDA * (1 - over[t]) * trace
        adv[t] = trace
    return adv


def layer(n_in: int, n_out: int, gain: float = 2**0.5) -> nn.Linear:
    """A linear layer as PPO starts it: orthogonal weights, zero bias."""
    linear = nn.Linear(n_in, n_out)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


class ActorCritic(nn.Module):
    """obs [B, O] -> parameters of the policy [B, P] and value [B]."""

    def __init__(self, space: gym.Space, num_obs: int) -> None:
        super().__init__()
        self.discrete = isinstance(space, gym.spaces.Discrete)
        num_out = int(space.n) if self.discrete else int(np.prod(space.shape))

        def mlp(n_out: int, gain: float) -> nn.Sequential:
            return nn.Sequential(layer(num_obs, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, n_out, gain))

        self.actor, self.critic = mlp(num_out, 0.01), mlp(1, 1.0)
        self.log_std = nn.Parameter(torch.zeros(num_out)) if not self.discrete else None

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        params = self.actor(obs)
        if self.log_std is not None:
            params = torch.cat([params, self.log_std.expand_as(params)], -1)
        return params, self.critic(obs).squeeze(-1)

    def policy(self, params: Tensor) -> Distribution:
        """The policy that the parameters stand for; stored ones give back π_old."""
        if self.discrete:
            return Categorical(logits=params, validate_args=False)
        mean, log_std = params.chunk(2, -1)
        return Independent(Normal(mean, log_std.exp(), validate_args=False), 1, validate_args=False)


def main() -> float:
    """Train; the mean return of the last 100 episodes."""
    args = parse()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    device = torch.device(args.device)
    task = DISCRETE if isinstance(gym.make(args.env).action_space, gym.spaces.Discrete) else CONTINUOUS
    T, N, gamma = task["num_steps"], task["num_envs"], task["gamma"]
    # SAME_STEP: the row after the end of an episode is the first of the next, and no row is a dummy.
    envs = SyncVectorEnv([lambda: make_env(args.env)] * N, autoreset_mode=AutoresetMode.SAME_STEP)
    obs_shape = envs.single_observation_space.shape

    agent = ActorCritic(envs.single_action_space, obs_shape[0]).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=LR, eps=1e-5)
    settings = {} if args.kl_target is None else {"kl_target": args.kl_target}
    objective = Objective.from_preset(args.objective, **settings).to(device)  # OBJECTIVE: the part you swap
    run = args.runs_dir / args.env / f"single_file_{args.objective}" / f"seed{args.seed}-{time.time_ns()}"
    writer = SummaryWriter(str(run))

    action_shape = () if agent.discrete else envs.single_action_space.shape
    obs = torch.zeros(T, N, *obs_shape)
    action = torch.zeros(T, N, *action_shape, dtype=torch.long if agent.discrete else torch.float32)
    reward, over, value, next_value = (torch.zeros(T, N) for _ in range(4))
    params_old: Tensor | None = None
    returns: deque[float] = deque(maxlen=100)
    num_iterations = max(1, args.total_steps // (T * N))
    now = torch.as_tensor(envs.reset(seed=args.seed)[0], dtype=torch.float32)
    start = time.perf_counter()

    for iteration in range(num_iterations):
        if task["anneal_lr"]:
            optimizer.param_groups[0]["lr"] = LR * (1 - iteration / num_iterations)

        # Collect. The parameters of the policy are stored: from them π_old is rebuilt, exactly.
        for t in range(T):
            obs[t] = now
            with torch.no_grad():
                params, value_now = agent(now.to(device))
                action_now = agent.policy(params).sample()
            if params_old is None:
                params_old = torch.zeros(T, N, params.shape[-1], device=device)
            params_old[t], value[t], action[t] = params, value_now.cpu(), action_now.cpu()
            after, rewards, terminated, truncated, infos = envs.step(action[t].numpy())
            now = torch.as_tensor(after, dtype=torch.float32)
            reward[t] = torch.as_tensor(rewards, dtype=torch.float32)
            over[t] = torch.as_tensor(terminated | truncated, dtype=torch.float32)
            with torch.no_grad():
                following = now.clone()
                for i in np.flatnonzero(terminated | truncated):
                    following[i] = torch.as_tensor(infos["final_obs"][i], dtype=torch.float32)
                    returns.append(float(infos["final_info"]["episode"]["r"][i]))
                # A termination is worth nothing more; a truncation what its true last observation is worth.
                next_value[t] = agent(following.to(device))[1].cpu() * torch.as_tensor(~terminated)

        adv = gae(reward, value, next_value, over, gamma)
        batch = [x.flatten(0, 1).to(device) for x in (obs, action, params_old, adv, adv + value)]
        b_obs, b_action, b_params_old, b_adv, b_ret = batch
        with torch.no_grad():
            pi_old_all = agent.policy(b_params_old)
            b_logp_old = pi_old_all.log_prob(b_action)

        # Update.
        losses = []
        for _ in range(task["num_epochs"]):
            for rows in torch.as_tensor(rng.permutation(T * N)).to(device).split(task["minibatch"]):
                params, value_new = agent(b_obs[rows])
                pi_old, pi = agent.policy(b_params_old[rows]), agent.policy(params)
                adv_rows = (b_adv[rows] - b_adv[rows].mean()) / (b_adv[rows].std() + 1e-8)

                kl = objective.divergence(pi_old, pi)  # OBJECTIVE: exact KL of every sample
                out = objective(logp=pi.log_prob(b_action[rows]), logp_old=b_logp_old[rows], adv=adv_rows, kl=kl)

                value_loss = (value_new - b_ret[rows]).square().mean()
                loss = out.loss + VF_COEF * value_loss - args.ent_coef * pi.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM)
                optimizer.step()
                losses.append(torch.stack([out.loss.detach(), value_loss.detach()]))

        with torch.no_grad():
            pi_all = agent.policy(agent(b_obs)[0])
        metrics = kl_metrics(objective, pi_old_all, pi_all)
        objective.adapt_(metrics["kl/controlled"], progress=(iteration + 1) / num_iterations)  # OBJECTIVE: λ moves

        # Log: one host read for all of it.
        metrics["loss/policy"], metrics["loss/value"] = torch.stack(losses).mean(0)
        names, numbers = list(metrics), torch.stack(list(metrics.values())).tolist()
        shown = dict(zip(names, numbers, strict=True))
        steps = (iteration + 1) * T * N
        shown["time/steps_per_second"] = steps / (time.perf_counter() - start)
        if returns:
            shown["rollout/return_last100"] = float(np.mean(returns))
        for tag, number in shown.items():
            writer.add_scalar(tag, number, steps)
        if iteration % 10 == 9 or iteration == num_iterations - 1:
            line = f"steps {steps:7d}  return {shown.get('rollout/return_last100', float('nan')):8.1f}"
            print(f"{line}  KL {shown['kl/forward']:.4f}  λ {shown['penalty/lambda']:.3g}", flush=True)

    torch.save({"agent": agent.state_dict(), "objective": objective.state_dict()}, run / "checkpoint.pt")
    writer.close()
    envs.close()
    print(f"log and checkpoint: {run}   (tensorboard --logdir {args.runs_dir})")
    return float(np.mean(returns)) if returns else float("nan")


if __name__ == "__main__":
    main()
