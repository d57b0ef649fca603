"""Trains every preset on CartPole and Pendulum and writes down what came of it: docs/results/presets.json.

    python scripts/preset_runs.py                       all of them: 190 runs of 30,000 steps
    python scripts/preset_runs.py --only spo,drift      those, the others as they were

Each run is `Agent` with the shipped configuration of its environment, seeds 0 to 4, which no setting was tuned on. A
run fails loudly on a metric that is not finite or a λ outside its bounds. `make configs` makes the README's table.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import subprocess
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from ppo_kl import Agent, __version__
from ppo_kl.config.objective import Adapting
from ppo_kl.config.presets import PRESETS
from ppo_kl.training.iteration import Iteration

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "presets.json"
ENVS, SEEDS, STEPS = ("cartpole", "pendulum"), range(5), 30_000


class Watch:
    """Keeps the KL of each update, and lets nothing pass that is not a number."""

    def __init__(self, name: str) -> None:
        self.kls: list[float] = []
        controller = PRESETS[name].controller
        self.low, self.high = (controller.min, controller.max) if isinstance(controller, Adapting) else (0.0, math.inf)

    def on_iteration(self, state: Iteration) -> bool:
        """Look at every metric."""
        broken = {tag: value for tag, value in state.metrics.items() if not math.isfinite(value)}
        kl_lambda = state.agent.objective.kl_lambda.item()
        if broken or not self.low * (1 - 1e-6) <= kl_lambda <= self.high * (1 + 1e-6):
            raise ArithmeticError(f"at step {state.steps}: {broken}, λ = {kl_lambda}")
        self.kls.append(state.metrics["kl/forward"])
        return True


def run(job: tuple[str, str, int, int]) -> dict[str, float]:
    """One training run: mean return of the last 100 episodes, and the exact KL of its updates."""
    name, env, seed, steps = job
    torch.set_num_threads(1)
    watch = Watch(name)
    agent = Agent(env, name, seed=seed, overrides={"total_steps": steps})
    try:
        agent.learn(steps, callbacks=[watch])
    except ArithmeticError as error:
        raise ArithmeticError(f"{name} on {env}, seed {seed}: {error}") from None
    finally:
        agent.close()
    return {
        "return": statistics.fmean(agent.last100),
        "kl_median": statistics.median(watch.kls),
        "kl_mean": statistics.fmean(watch.kls),
        "lambda": agent.objective.kl_lambda.item(),
    }


def made_by() -> dict[str, str]:
    """What ran: versions and commit."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {"ppo_kl": __version__, "commit": git.stdout.strip() or "unknown", "torch": str(torch.__version__)}


def main() -> None:
    """Run what is asked for, and merge it into what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PRESETS), help="names, separated by commas")
    parser.add_argument("--envs", default=",".join(ENVS), help="names, separated by commas")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    chosen = parser.parse_args()
    names, envs = chosen.only.split(","), chosen.envs.split(",")
    jobs = [(name, env, seed, STEPS) for name in names for env in envs for seed in SEEDS]
    results = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}
    with ProcessPoolExecutor(chosen.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for (name, env, seed, _), result in zip(jobs, pool.map(run, jobs), strict=True):
            results.setdefault(name, {}).setdefault(env, {})[str(seed)] = result
            said = f"return {result['return']:8.1f}  KL {result['kl_median']:.4f}"
            print(f"{name:12} {env:9} seed {seed}: {said}", flush=True)
    ordered = {name: results[name] for name in PRESETS if name in results}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({**made_by(), "steps": STEPS, "runs": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
