"""What Stable-Baselines3 and SBX have in common: an algorithm under the clock, on one of the workloads."""

import argparse
import json
from typing import Any

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from ppo_kl.bench.meter import Meter
from ppo_kl.bench.workloads import CLIP_EPS, PPO, WORKLOADS


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--steps", type=int, default=40_960, help="environment steps to time")
    parser.add_argument("--warmup", type=int, default=2, help="iterations before the clock starts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="inside one operation of PyTorch")
    parser.add_argument("--subproc", action="store_true", help="a process for every environment")
    return parser.parse_args()


def timed(algorithm: type, args: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """The row of a run of `algorithm`, a PPO of Stable-Baselines3's interface, `settings` beside the workload's."""
    workload = WORKLOADS[args.workload]
    meter = Meter(max(1, round(args.steps / workload.batch)), args.warmup)

    class Timed(algorithm):
        def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:  # the advantages are in it
            with meter.phase("rollout"):
                return super().collect_rollouts(*args, **kwargs)

        def train(self) -> None:
            with meter.phase("update"):
                super().train()
            meter.end_iteration(workload.batch, workload.grad_steps)

    # As the libraries' PPO calls them; its networks are 64×64, tanh, apart, by default.
    names = {"lr": "learning_rate"}
    shared = {names.get(name, name): value for name, value in PPO.items() if name != "adam_eps"}
    vec_env = SubprocVecEnv if args.subproc else DummyVecEnv
    env = make_vec_env(workload.env_id, n_envs=workload.num_envs, seed=args.seed, vec_env_cls=vec_env)
    model = Timed(
        "MlpPolicy",
        env,
        n_steps=workload.num_steps,
        batch_size=workload.minibatch_size,
        n_epochs=workload.num_epochs,
        clip_range=CLIP_EPS,
        seed=args.seed,
        **shared,
        **settings,
    )
    model.learn(meter.total_iterations * workload.batch)
    row = meter.result(algorithm.__module__.split(".")[0], args.workload, seed=args.seed, subproc=args.subproc)
    env.close()
    return row


def show(row: dict[str, Any], version: str) -> None:
    """The one line."""
    print(json.dumps({**row, "version": version}), flush=True)
