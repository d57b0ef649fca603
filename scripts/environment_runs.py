"""Trains the tuned files of configs/env with either family and writes down what came of it.

    python scripts/environment_runs.py acrobot pendulum            those, as docs/results/environments.json lacks them
    python scripts/environment_runs.py acrobot --anew              also what is there already
    python scripts/environment_runs.py hopper --sb3                also Stable-Baselines3's clip, in the same setting

Each run is `ppo-kl train --env FILE --objective NAME --seed K` without a folder, seeds 0 to 4, which no setting was
tuned on. A finished run is kept at once, so that an interrupted script goes on where it was. `make configs` makes the
README's table.
"""

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import sb3_run
from preset_runs import SEEDS, made_by, run

from ppo_kl.load import load_config

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "environments.json"
OBJECTIVES = ("kl_adaptive", "clip")
SB3 = "sb3"
"""In the place of an objective's name: Stable-Baselines3's own clipped surrogate."""
DIGITS = {"return": 1, "kl_median": 4}
"""What is kept of a run, and how finely."""


def main() -> None:
    """Run what is asked for and missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("envs", nargs="+", metavar="FILE", help="a name in configs/env")
    parser.add_argument("--anew", action="store_true", help="also runs that are there already")
    parser.add_argument("--sb3", action="store_true", help="also Stable-Baselines3's PPO")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    chosen = parser.parse_args()
    contestants = (*OBJECTIVES, SB3) if chosen.sb3 else OBJECTIVES
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    steps = {env: load_config(env=env).total_steps for env in chosen.envs}
    for env in chosen.envs:
        if chosen.anew or results.get(env, {}).get("steps") != steps[env]:
            results[env] = {"steps": steps[env], **made_by(), **{objective: {} for objective in OBJECTIVES}}
    missing = [
        (objective, env, seed, steps[env])
        for env in chosen.envs
        for objective in contestants
        for seed in SEEDS
        if str(seed) not in results[env].setdefault(objective, {})
    ]
    with ProcessPoolExecutor(chosen.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = {pool.submit(sb3_run.run if job[0] == SB3 else run, job): job for job in missing}
        for done in as_completed(jobs):
            objective, env, seed, _ = jobs[done]
            result = done.result()
            kept = {name: round(result[name], digits) for name, digits in DIGITS.items() if name in result}
            results[env][objective][str(seed)] = kept
            results[env][objective] = dict(sorted(results[env][objective].items()))
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{env:24} {objective:12} seed {seed}: {kept}", flush=True)


if __name__ == "__main__":
    main()
