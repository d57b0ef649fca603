"""Stable-Baselines3's PPO on CartPole with an adaptive penalty on the exact KL: `pip install "ppo-kl[sb3]"`.

Against the host's own example two lines are changed: the import and the class.
"""

import argparse
from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from ppo_kl.integrations.sb3 import PPOKL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objective", default="kl_adaptive", help="a preset of ppo_kl, as clip or kl_pi")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--log-dir", type=Path, default=Path("runs"))
    args = parser.parse_args()

    env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
    model = PPOKL(
        "MlpPolicy",
        env,
        objective=args.objective,
        n_steps=256,
        learning_rate=1e-3,
        gamma=0.98,
        seed=0,
        device="cpu",
        tensorboard_log=str(args.log_dir),
        verbose=1,
    )
    model.learn(args.steps, tb_log_name=f"PPO_{args.objective}")

    # λ and what its controller remembers are in the file, and training goes on with them.
    path = args.log_dir / "cartpole.zip"
    model.save(path)
    loaded = PPOKL.load(path, env=env)
    mean, std = evaluate_policy(loaded, env, n_eval_episodes=20)
    print(f"return {mean:.0f} ± {std:.0f}, λ {loaded.objective.kl_lambda:.4g}")
    print(f"tensorboard --logdir {args.log_dir}   # kl/forward, kl/target_ratio, penalty/lambda")


if __name__ == "__main__":
    main()
