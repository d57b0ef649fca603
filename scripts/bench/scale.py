"""Whether a step costs the same in small and large: more environments, longer rollouts, more iterations.

python scripts/bench/scale.py                     all three tables, as Markdown; a quarter of an hour
python scripts/bench/scale.py --only envs         one of them: envs, samples, iterations

CartPole-v1 with exact KL and all that is measured of an update; one thread, each row in a process of its own. What a
row says is of the median iteration after one of warm-up, compiled steps of minibatches of 512, two epochs.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from ppo_kl import Agent
from ppo_kl.training.iteration import Iteration

SETTINGS = {
    "training.num_epochs": 2,
    "training.minibatch_size": 512,
    "runtime.compile": "on",
    "runtime.workers": 0,
}
WARM_UP = 1
ENVS, SAMPLES_OF_EACH = (1, 4, 16, 64, 256, 1024), 32_768
SAMPLES, ENVS_OF_EACH = (2_048, 16_384, 131_072, 524_288, 2_097_152), 64
LOOKED_AT = (100, 500, 1_000, 1_500, 2_000)
"""Iterations after which memory, files and threads are counted."""


class Point(NamedTuple):
    """A shape of a rollout, N environments of T steps, how they are stepped, and how many iterations are made of it."""

    num_envs: int
    num_steps: int
    vectorization: str = "sync"
    iterations: int = 4


class Seen:
    """A callback that keeps what each iteration took, and what the process holds after some of them."""

    def __init__(self) -> None:
        self.seconds: list[dict[str, float]] = []
        self.holds: dict[int, tuple[float, int, int]] = {}

    def on_iteration(self, state: Iteration) -> bool:
        """Look at it."""
        self.seconds.append({phase: seconds.wall for phase, seconds in state.seconds.items()})
        if state.number in LOOKED_AT:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            counts = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))
            self.holds[state.number] = (pages * resource.getpagesize() / 1e6, *counts)
        return True


def measured(point: Point) -> Seen:
    """Train a little with rollouts of this shape."""
    torch.set_num_threads(1)
    seen = Seen()
    shape = {
        "env.num_envs": point.num_envs,
        "env.vectorization": point.vectorization,
        "training.num_steps": point.num_steps,
    }
    agent = Agent("CartPole-v1", "kl_adaptive", overrides=SETTINGS | shape)
    agent.learn(point.iterations * point.num_envs * point.num_steps, callbacks=[seen])
    agent.close()
    return seen


def microseconds(point: Point, seen: Seen) -> list[str]:
    """Per sample, by phase; and all of it."""
    samples = point.num_envs * point.num_steps
    later = seen.seconds[WARM_UP:]
    phases = [1e6 * statistics.median(row[phase] for row in later) / samples for phase in later[0]]
    return [f"{x:.2f}" for x in (*phases, sum(phases))]


def per_sample(points: list[Point], pool: ProcessPoolExecutor) -> list[str]:
    lines = []
    for point, seen in zip(points, pool.map(measured, points), strict=True):
        if not lines:
            head = ["N", "T", "samples", "vectorization", *(f"{phase}, µs" for phase in seen.seconds[0]), "all, µs"]
            lines = [row(head), row(["---"] * len(head))]
        shape = [f"{n:,}" for n in (point.num_envs, point.num_steps, point.num_envs * point.num_steps)]
        lines.append(row([*shape, point.vectorization, *microseconds(point, seen)]))
    return lines


def envs(pool: ProcessPoolExecutor) -> list[str]:
    """From 1 to 1,024 environments, rollouts of as many samples."""
    return per_sample([Point(n, SAMPLES_OF_EACH // n, v) for v in ("sync", "native") for n in ENVS], pool)


def samples(pool: ProcessPoolExecutor) -> list[str]:
    """From 2k to 2M samples a rollout, of as many environments."""
    return per_sample([Point(ENVS_OF_EACH, n // ENVS_OF_EACH, iterations=3) for n in SAMPLES], pool)


def iterations(pool: ProcessPoolExecutor) -> list[str]:
    """2,000 iterations: what the process holds, and how long an iteration takes by then."""
    seen = pool.submit(measured, Point(8, 32, iterations=LOOKED_AT[-1])).result()
    head = ["iteration", "resident, MB", "files", "threads", "ms per iteration, median of the 100 before"]
    lines = [row(head), row(["---"] * len(head))]
    for number, (mb, files, threads) in seen.holds.items():
        took = 1e3 * statistics.median(sum(phases.values()) for phases in seen.seconds[number - 100 : number])
        lines.append(row([f"{number:,}", f"{mb:.1f}", str(files), str(threads), f"{took:.2f}"]))
    return lines


TABLES = {"envs": envs, "samples": samples, "iterations": iterations}


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TABLES, nargs="+", default=list(TABLES))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        for name in parser.parse_args().only:
            print("\n".join([TABLES[name].__doc__ or "", "", *TABLES[name](pool), ""]), flush=True)


if __name__ == "__main__":
    main()
