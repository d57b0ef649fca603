"""Stable-Baselines3's PPO in the setting of one of our files, to hold our returns against; see environment_runs.py."""

import math
import statistics

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from ppo_kl.config.presets import PRESETS
from ppo_kl.load import load_config


def run(job: tuple[str, str, int, int]) -> dict[str, float]:
    """One training run with the clipped surrogate: mean return of the last 100 episodes."""
    _, name, seed, steps = job
    torch.set_num_threads(1)
    config, surrogate = load_config(env=name), PRESETS["clip"].surrogate
    training, policy = config.training, config.policy
    env = make_vec_env(config.env.id, n_envs=config.env.num_envs, seed=seed)
    if config.env.normalize_obs:
        env = VecNormalize(env, norm_reward=False)
    model = PPO(
        "MlpPolicy",
        env,
        learning_rate=training.lr,
        n_steps=training.num_steps,
        batch_size=training.minibatch_size,
        n_epochs=training.num_epochs,
        gamma=training.gamma,
        gae_lambda=training.gae_lambda,
        clip_range=surrogate.clip_eps,
        ent_coef=training.ent_coef,
        vf_coef=training.vf_coef,
        max_grad_norm=math.inf if training.max_grad_norm is None else training.max_grad_norm,
        policy_kwargs={
            "net_arch": list(policy.hidden_sizes),
            "activation_fn": {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[policy.activation],
            "optimizer_kwargs": {"eps": training.adam_eps},
        },
        stats_window_size=100,
        seed=seed,
        device="cpu",
    )
    model.learn(steps)
    env.close()
    return {"return": statistics.fmean(float(episode["r"]) for episode in model.ep_info_buffer)}
