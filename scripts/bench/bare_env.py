"""The limit: a workload's environment stepped with actions drawn beforehand, and nothing learned; one line of JSON."""

import argparse
import json
from collections.abc import Callable

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from ppo_kl.bench.meter import Meter
from ppo_kl.bench.workloads import WORKLOADS, Workload


def vector_env(workload: Workload, kind: str) -> gym.vector.VectorEnv:
    if kind == "native":
        return gym.make_vec(workload.env_id, workload.num_envs, vectorization_mode="vector_entry_point")
    make = [lambda: gym.make(workload.env_id)] * workload.num_envs
    return AsyncVectorEnv(make) if kind == "async" else SyncVectorEnv(make)


def single(workload: Workload) -> tuple[gym.Env, Callable[[np.ndarray], None]]:
    """One environment without a vector around it, and how it takes a step."""
    env = gym.make(workload.env_id)

    def step(action: np.ndarray) -> None:
        *_, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()

    return env, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--kind", choices=["single", "sync", "async", "native"], required=True)
    parser.add_argument("--steps", type=int, default=40_960)
    parser.add_argument("--warmup", type=int, default=1, help="rollouts before the clock starts")
    args = parser.parse_args()
    workload = WORKLOADS[args.workload]
    if args.kind == "single":
        env, step = single(workload)
        workload = workload._replace(num_envs=1, num_steps=workload.batch)
    else:
        env = vector_env(workload, args.kind)
        step = env.step
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(workload.num_steps)]
    env.reset(seed=0)
    meter = Meter(max(1, round(args.steps / workload.batch)), args.warmup)
    for _ in range(meter.total_iterations):
        with meter.phase("rollout"):
            for action in actions:
                step(action)
        meter.end_iteration(workload.batch, 0)
    row = meter.result(f"bare-{args.kind}", args.workload, version=gym.__version__)
    env.close()
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
